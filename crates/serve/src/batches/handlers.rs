//! The routes of files, batches and jobs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_core::Stream;
use tokio::task::JoinHandle;

use super::Batches;
use super::endpoint::{Endpoint, Parsed};
use super::store::{FileRow, JobRow, NewBatch, Page};
use super::upload::{self, FILE_SECONDS, expiry};
use super::wire::{WireBatch, WireDeleted, WireFile, WireJob, WireList};
use crate::answer;
use crate::api_error::ApiError;
use crate::edge::Caller;
use crate::environment::new_id;
use crate::request::Fields;
use crate::routes::{json, read_body};
use crate::spool::is_ticket;
use crate::state::{Phase, State};

type Answer = Result<Response, ApiError>;
type Name = Result<Path<String>, PathRejection>;

/// Hours that a batch may take: a day, as OpenAI has it, and up to 30.
const MAX_HOURS: u64 = 30 * 24;
/// The longest that a client is kept waiting for a job.
const MAX_WAIT: u64 = 60;
/// Bytes of a file that are read at a time.
const READ_BYTES: usize = 256 << 10;

pub(crate) fn routes() -> Router<Arc<State>> {
    Router::new()
        .route("/v1/files", post(create_file).get(list_files))
        .route("/v1/files/{id}", get(file).delete(delete_file))
        .route("/v1/files/{id}/content", get(content))
        .route("/v1/batches", post(create_batch).get(list_batches))
        .route("/v1/batches/{id}", get(batch))
        .route("/v1/batches/{id}/cancel", post(cancel_batch))
        .route("/v1/jobs", post(create_job))
        .route("/v1/jobs/{ticket}", get(job))
}

/// What keeps files, and whose request it is.
fn kept(state: &State, request: &Request) -> Result<(Arc<Batches>, Caller), ApiError> {
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
    match &state.batches {
        Some(batches) => Ok((Arc::clone(batches), caller)),
        None => {
            let error = ApiError::no_route(request.method().as_str(), request.uri().path());
            let message = format!("{} This server keeps no files: it has no folder for them.", error.message);
            Err(ApiError { message, ..error })
        }
    }
}

/// A name in an address. What is no UTF-8 is the name of nothing.
fn text_of(name: Name) -> String {
    name.map_or_else(|_| "?".to_owned(), |Path(name)| name)
}

/// The parameters of an address.
fn query(request: &Request) -> BTreeMap<String, String> {
    let pairs = request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    // Names and values that are known here have no characters that are escaped.
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Which part of a list is wanted.
fn page(query: &BTreeMap<String, String>, default: usize, max: usize) -> Result<Page, ApiError> {
    let limit = match query.get("limit") {
        None => default,
        Some(text) => text.parse().ok().filter(|limit| (1..=max).contains(limit)).ok_or_else(|| {
            ApiError::field("limit", format!("`limit`: {text:.40?} is not from 1 to {max}"))
        })?,
    };
    let is_ascending = match query.get("order").map(String::as_str) {
        None | Some("desc") => false,
        Some("asc") => true,
        Some(_) => return Err(ApiError::field("order", "`order`: it is neither `asc` nor `desc`")),
    };
    Ok(Page { after: query.get("after").cloned(), limit, is_ascending })
}

async fn create_file(Shared(state): Shared<Arc<State>>, request: Request) -> Answer {
    let (batches, caller) = kept(&state, &request)?;
    let _visit = caller.visit(state.environment.elapsed())?;
    let id = new_id(&*state.environment, "file-");
    let now = state.environment.unix_time();
    let (parts, body) = request.into_parts();
    let file = upload::receive(&batches, &parts.headers, body, id, caller.tenant().to_owned(), now).await?;
    Ok(json(answer::json(&WireFile::of(&file))))
}

async fn list_files(Shared(state): Shared<Arc<State>>, request: Request) -> Answer {
    let (batches, caller) = kept(&state, &request)?;
    let query = query(&request);
    let page = page(&query, 10_000, 10_000)?;
    let purpose = query.get("purpose").cloned();
    let (tenant, now) = (caller.tenant().to_owned(), state.environment.unix_time());
    let (files, has_more) =
        batches.on_disk(move |store| store.files(&tenant, purpose.as_deref(), &page, now)).await?;
    Ok(json(answer::json(&WireList::of(&files, has_more, |file| &file.id, WireFile::of))))
}

/// A file of the caller.
async fn find_file(
    state: &State,
    batches: &Batches,
    caller: &Caller,
    id: String,
) -> Result<FileRow, ApiError> {
    let (tenant, now) = (caller.tenant().to_owned(), state.environment.unix_time());
    Ok(batches.on_disk(move |store| store.file(&tenant, &id, now)).await?)
}

async fn file(Shared(state): Shared<Arc<State>>, id: Name, request: Request) -> Answer {
    let id = text_of(id);
    let (batches, caller) = kept(&state, &request)?;
    let file = find_file(&state, &batches, &caller, id).await?;
    Ok(json(answer::json(&WireFile::of(&file))))
}

async fn delete_file(Shared(state): Shared<Arc<State>>, id: Name, request: Request) -> Answer {
    let id = text_of(id);
    let (batches, caller) = kept(&state, &request)?;
    let (tenant, now, name) = (caller.tenant().to_owned(), state.environment.unix_time(), id.clone());
    batches.on_disk(move |store| store.delete_file(&tenant, &name, now)).await?;
    Ok(json(answer::json(&WireDeleted { id: &id, object: "file", deleted: true })))
}

async fn content(Shared(state): Shared<Arc<State>>, id: Name, request: Request) -> Answer {
    let id = text_of(id);
    let (batches, caller) = kept(&state, &request)?;
    let file = find_file(&state, &batches, &caller, id).await?;
    let id = file.id.clone();
    let opened = batches.on_disk(move |store| store.open_file(&id)).await?;
    let mut response = Response::new(Body::from_stream(Content { opened: Some(opened), reading: None }));
    let headers = response.headers_mut();
    // A browser must not show what somebody has uploaded as a page.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(file.bytes));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    Ok(response)
}

type ReadPiece = std::io::Result<(File, Bytes)>;

/// The bytes of a file, read when the client is ready for more.
struct Content {
    opened: Option<File>,
    reading: Option<JoinHandle<ReadPiece>>,
}

impl Stream for Content {
    type Item = std::io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(mut file) = self.opened.take() {
            self.reading = Some(tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::with_capacity(READ_BYTES);
                (&mut file).take(READ_BYTES as u64).read_to_end(&mut bytes)?;
                Ok((file, bytes.into()))
            }));
        }
        let Some(reading) = &mut self.reading else { return Poll::Ready(None) };
        let read = ready!(Pin::new(reading).poll(context));
        self.reading = None;
        Poll::Ready(match read {
            Ok(Ok((_, bytes))) if bytes.is_empty() => None,
            Ok(Ok((file, bytes))) => {
                self.opened = Some(file);
                Some(Ok(bytes))
            }
            Ok(Err(error)) => Some(Err(error)),
            Err(_) => Some(Err(std::io::ErrorKind::Other.into())),
        })
    }
}

async fn create_batch(Shared(state): Shared<Arc<State>>, request: Request) -> Answer {
    let (batches, caller) = kept(&state, &request)?;
    let _visit = caller.visit(state.environment.elapsed())?;
    let (parts, body) = request.into_parts();
    let body = read_body(&state, body).await?;
    let now = state.environment.unix_time();
    let id = new_id(&*state.environment, "batch_");
    let new = read_batch(&state, &caller, &body, &parts.headers, id, now)?;
    let batch = batches.on_disk(move |store| store.create_batch(&new, now)).await?;
    batches.wake.notify_one();
    Ok(json(answer::json(&WireBatch::of(&batch))))
}

fn read_batch(
    state: &State,
    caller: &Caller,
    body: &[u8],
    headers: &HeaderMap,
    id: String,
    now: u64,
) -> Result<NewBatch, ApiError> {
    let mut fields = Fields::of_body(body, state.config.limits.json_depth)?;
    let input = fields.need("input_file_id")?;
    let endpoint = Endpoint::of(&fields.need::<String>("endpoint")?)?;
    let window: String = fields.need("completion_window")?;
    let hours = window.strip_suffix('h').and_then(|hours| hours.parse::<u64>().ok());
    let hours = hours.filter(|hours| (1..=MAX_HOURS).contains(hours)).ok_or_else(|| {
        fields.wrong(
            "completion_window",
            format!("{window:.40?} is not 24h, or another time from 1h to {MAX_HOURS}h"),
        )
    })?;
    let metadata = read_metadata(&mut fields)?;
    let output_seconds = match fields.object("output_expires_after")? {
        None => FILE_SECONDS,
        Some(mut after) => {
            let (anchor, seconds) = (after.get::<String>("anchor")?, after.get("seconds")?);
            expiry(anchor.as_deref(), seconds, "output_expires_after")?
        }
    };
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let idempotency = text("idempotency-key").map(str::to_owned);
    if idempotency.as_ref().is_some_and(|key| key.is_empty() || key.len() > 255) {
        return Err(ApiError::body("the Idempotency-Key does not have 1 to 255 bytes"));
    }
    // The models that there are and that the caller may use now; lines with others are refused.
    let chat = state.chat_models().into_iter().map(|(id, ..)| id);
    let all = chat.chain(state.embedders.keys().cloned());
    let models: Vec<String> = all.filter(|model| caller.check_model(model).is_ok()).collect();
    Ok(NewBatch {
        id,
        tenant: caller.tenant().to_owned(),
        endpoint: endpoint.path(),
        input,
        window,
        metadata,
        models: Some(answer::json(&models)),
        output_seconds,
        idempotency,
        // OpenAI's clients say how often they have sent a request before.
        is_retry: text("x-stainless-retry-count")
            .is_some_and(|count| count.parse().is_ok_and(|n: u32| n > 0)),
        created: now,
        expires: now.saturating_add(hours * 3600),
    })
}

fn read_metadata(fields: &mut Fields<'_>) -> Result<Option<String>, ApiError> {
    let Some(pairs) = fields.get::<BTreeMap<String, String>>("metadata")? else { return Ok(None) };
    let is_long =
        |(name, value): (&String, &String)| name.chars().count() > 64 || value.chars().count() > 512;
    if pairs.len() > 16 || pairs.iter().any(is_long) {
        let message =
            "it has more than 16 pairs, a name of more than 64 characters or a value of more than 512";
        return Err(fields.wrong("metadata", message));
    }
    Ok(Some(answer::json(&pairs)))
}

async fn list_batches(Shared(state): Shared<Arc<State>>, request: Request) -> Answer {
    let (batches, caller) = kept(&state, &request)?;
    let page = page(&query(&request), 20, 100)?;
    let tenant = caller.tenant().to_owned();
    let (rows, has_more) = batches.on_disk(move |store| store.batches(&tenant, &page)).await?;
    Ok(json(answer::json(&WireList::of(&rows, has_more, |batch| &batch.id, WireBatch::of))))
}

async fn batch(Shared(state): Shared<Arc<State>>, id: Name, request: Request) -> Answer {
    let id = text_of(id);
    let (batches, caller) = kept(&state, &request)?;
    let tenant = caller.tenant().to_owned();
    let batch = batches.on_disk(move |store| store.batch(&tenant, &id)).await?;
    Ok(json(answer::json(&WireBatch::of(&batch))))
}

async fn cancel_batch(Shared(state): Shared<Arc<State>>, id: Name, request: Request) -> Answer {
    let id = text_of(id);
    let (batches, caller) = kept(&state, &request)?;
    let (tenant, now) = (caller.tenant().to_owned(), state.environment.unix_time());
    let batch = batches.on_disk(move |store| store.cancel_batch(&tenant, &id, now)).await?;
    batches.wake.notify_one();
    Ok(json(answer::json(&WireBatch::of(&batch))))
}

async fn create_job(Shared(state): Shared<Arc<State>>, request: Request) -> Answer {
    let (batches, caller) = kept(&state, &request)?;
    let _visit = caller.visit(state.environment.elapsed())?;
    let body = read_body(&state, request.into_body()).await?;
    let mut fields = Fields::of_body(&body, state.config.limits.json_depth)?;
    let ticket: String = fields.need("ticket")?;
    if !is_ticket(&ticket) {
        return Err(fields.wrong("ticket", "it does not have 16 to 64 letters, digits, `_` and `-`"));
    }
    let endpoint = Endpoint::of(&fields.need::<String>("endpoint")?)?;
    let inner = fields.raw("body").ok_or_else(|| fields.missing("body"))?;
    // What is wrong with it is better told now than when it runs.
    let parsed = Parsed::read(&state, endpoint, inner.get().as_bytes())?;
    caller.check_model(parsed.model())?;
    let job = JobRow {
        ticket,
        tenant: Some(caller.tenant().to_owned()),
        endpoint: endpoint.path().to_owned(),
        request: inner.get().to_owned(),
        created: state.environment.unix_time(),
        answer: None,
    };
    let job = batches.on_disk(move |store| store.add_job(&job)).await?;
    batches.wake.notify_one();
    Ok(json(answer::json(&WireJob::of(&job))))
}

/// A job. With `wait=SECONDS` the answer comes when the job has ended, or after that time.
async fn job(Shared(state): Shared<Arc<State>>, ticket: Name, request: Request) -> Answer {
    let ticket = text_of(ticket);
    let (batches, caller) = kept(&state, &request)?;
    let wait = match query(&request).get("wait") {
        None => 0,
        Some(text) => text.parse().ok().filter(|&wait| wait <= MAX_WAIT).ok_or_else(|| {
            ApiError::field("wait", format!("`wait`: {text:.40?} is not from 0 to {MAX_WAIT} seconds"))
        })?,
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(wait);
    let mut phase = state.phase.subscribe();
    loop {
        let mut ended = std::pin::pin!(batches.job_ended.notified());
        // Registered before the look, so that an end in between is not missed.
        ended.as_mut().enable();
        let (tenant, name) = (caller.tenant().to_owned(), ticket.clone());
        let job = batches.on_disk(move |store| store.job(&tenant, &name)).await?;
        let is_over = job.answer.is_some() || tokio::time::Instant::now() >= deadline;
        if is_over || *phase.borrow() != Phase::Serving {
            return Ok(json(answer::json(&WireJob::of(&job))));
        }
        tokio::select! {
            () = ended => {}
            () = tokio::time::sleep_until(deadline) => {}
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => {}
        }
    }
}
