//! Uploads: a form (`multipart/form-data`) whose file goes to the disk as it comes.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, header};
use breakers_files::Replacement;
use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use multer::{Constraints, Multipart, SizeLimit};

use super::Batches;
use super::store::{FileRow, Purpose, StoreError};
use crate::api_error::ApiError;
use crate::request::Fields;

/// Bytes that are collected before they are written.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes that may wait to become a part of the form: heads of parts are not longer.
const HEAD_BYTES: u64 = 64 << 10;
/// Bytes of a field that is no file.
const FIELD_BYTES: u64 = 4 << 10;
/// Bytes and time that are spent on the rest of an upload that is refused.
const DRAIN_BYTES: usize = 64 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Bytes of a file's name; longer ones are cut off.
const NAME_BYTES: usize = 255;

/// Seconds after which a file of requests is deleted if its owner says nothing: 30 days, as OpenAI has it.
pub(crate) const FILE_SECONDS: u64 = 30 * 24 * 3600;

/// A form's body, a piece at a time. The reader of forms takes what comes until nothing more is there; with a
/// pause after each piece, and a limit on what it holds, it cannot be made to keep a whole upload in memory.
struct Pieces {
    body: SharedBody,
    pauses: bool,
    given: u64,
    /// Bytes of the file that have been taken out again.
    taken: Arc<AtomicU64>,
}

/// A body of which the rest can still be read when the form is given up.
type SharedBody = Arc<Mutex<BodyDataStream>>;

/// The next piece of a body.
fn next_piece(body: &SharedBody, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, axum::Error>>> {
    let mut body = body.lock().unwrap_or_else(PoisonError::into_inner);
    Pin::new(&mut *body).poll_next(context)
}

/// Reads and drops the rest of a body that is refused, within limits: a client that is still sending would
/// otherwise see a broken connection and not why.
async fn drain(body: &SharedBody) {
    let rest = async {
        let mut n_bytes = 0;
        while let Some(Ok(piece)) = std::future::poll_fn(|context| next_piece(body, context)).await {
            n_bytes += piece.len();
            if n_bytes > DRAIN_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME, rest).await;
}

impl Stream for Pieces {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.pauses) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let piece = match next_piece(&self.body, context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(_))) => {
                return Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionAborted.into())));
            }
            Poll::Ready(Some(Ok(piece))) => piece,
        };
        self.pauses = true;
        if self.given.saturating_sub(self.taken.load(Ordering::Relaxed)) > HEAD_BYTES + WRITE_BYTES as u64 {
            return Poll::Ready(Some(Err(std::io::ErrorKind::InvalidData.into())));
        }
        self.given += piece.len() as u64;
        Poll::Ready(Some(Ok(piece)))
    }
}

/// Takes an upload and keeps the file.
///
/// # Errors
/// What is wrong with the form; that it is too large or too slow; that there is no room.
pub(crate) async fn receive(
    batches: &Batches,
    headers: &HeaderMap,
    body: Body,
    id: String,
    tenant: String,
    now: u64,
) -> Result<FileRow, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(kind)
        .map_err(|_| ApiError::body("the body is no form (multipart/form-data with a boundary)"))?;
    let limit = batches.config.file_bytes;
    let taken = Arc::new(AtomicU64::new(0));
    let body = Arc::new(Mutex::new(body.into_data_stream()));
    let pieces = Pieces { body: Arc::clone(&body), pauses: false, given: 0, taken: Arc::clone(&taken) };
    let sizes = SizeLimit::new()
        .whole_stream(limit.saturating_add(1 << 20))
        .per_field(FIELD_BYTES)
        .for_field("file", limit);
    let form = Multipart::with_constraints(pieces, boundary, Constraints::new().size_limit(sizes));
    let receive = async {
        let _turn = batches.uploads.acquire().await;
        read_form(batches, form, taken, id, tenant, now).await
    };
    match tokio::time::timeout(batches.config.upload_time, receive).await {
        Ok(Ok(file)) => Ok(file),
        Ok(Err(error)) => {
            drain(&body).await;
            Err(error)
        }
        Err(_) => Err(ApiError::body_timeout()),
    }
}

async fn read_form(
    batches: &Batches,
    mut form: Multipart<'_>,
    taken: Arc<AtomicU64>,
    id: String,
    tenant: String,
    now: u64,
) -> Result<FileRow, ApiError> {
    let limit = batches.config.file_bytes;
    let wrong = |error| form_error(error, limit);
    let mut file: Option<(Replacement<'static>, String, u64)> = None;
    let mut purpose = None;
    // `expires_after[anchor]` and `expires_after[seconds]`, or one field with both as JSON.
    let (mut anchor, mut seconds) = (None, None);
    while let Some(mut field) = form.next_field().await.map_err(wrong)? {
        let name = field.name().unwrap_or_default().to_owned();
        if name == "file" {
            if file.is_some() {
                return Err(ApiError::field("file", "`file`: there are two"));
            }
            let file_name = field.file_name().unwrap_or("upload").to_owned();
            let file_name = file_name[..file_name.floor_char_boundary(NAME_BYTES)].to_owned();
            let name = id.clone();
            let mut writer = batches.on_disk(move |store| store.begin_file(&name)).await?;
            let (mut buffer, mut n_bytes) = (BytesMut::new(), 0);
            while let Some(chunk) = field.chunk().await.map_err(wrong)? {
                taken.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                n_bytes += chunk.len() as u64;
                buffer.extend_from_slice(&chunk);
                if buffer.len() >= WRITE_BYTES {
                    writer = put(batches, writer, buffer.split().freeze()).await?;
                }
            }
            writer = put(batches, writer, buffer.freeze()).await?;
            file = Some((writer, file_name, n_bytes));
            continue;
        }
        let text = field.text().await.map_err(wrong)?;
        taken.fetch_add(text.len() as u64, Ordering::Relaxed);
        match &*name {
            "purpose" => purpose = Some(text),
            "expires_after[anchor]" => anchor = Some(text),
            "expires_after[seconds]" => seconds = Some(text),
            "expires_after" => {
                let mut fields = Fields::of_body(text.as_bytes(), 4)
                    .map_err(|_| ApiError::field("expires_after", "`expires_after`: it is no object"))?;
                anchor = fields.get("anchor")?;
                seconds = fields.get::<u64>("seconds")?.map(|seconds| seconds.to_string());
            }
            // Fields that the protocol does not have are skipped, as everywhere.
            _ => {}
        }
    }
    let missing = |name: &str| {
        let error = ApiError::field(name, format!("Missing required parameter: `{name}`."));
        ApiError { code: Some("missing_required_parameter"), ..error }
    };
    match purpose.as_deref() {
        None => return Err(missing("purpose")),
        Some("batch") => {}
        Some(other) => {
            let message =
                format!("`purpose`: {other:.40?} is not supported; files are for batches (`batch`)");
            return Err(ApiError::unsupported("purpose", message));
        }
    }
    let expires = match (anchor, seconds) {
        (None, None) => FILE_SECONDS,
        (anchor, seconds) => {
            expiry(anchor.as_deref(), seconds.and_then(|text| text.parse().ok()), "expires_after")?
        }
    };
    let (writer, name, bytes) = file.ok_or_else(|| missing("file"))?;
    let row = FileRow {
        id,
        tenant,
        name,
        purpose: Purpose::Batch.name().to_owned(),
        bytes,
        created: now,
        expires: Some(now.saturating_add(expires)),
    };
    let added = row.clone();
    batches.on_disk(move |store| store.add_file(writer, &added)).await?;
    Ok(row)
}

/// Checks when a file is to expire.
///
/// # Errors
/// If it is not counted from the file's creation, or not within an hour and 30 days.
pub(crate) fn expiry(anchor: Option<&str>, seconds: Option<u64>, field: &str) -> Result<u64, ApiError> {
    if anchor != Some("created_at") {
        return Err(ApiError::field(
            format!("{field}.anchor"),
            format!("`{field}.anchor`: it is not `created_at`"),
        ));
    }
    match seconds {
        Some(seconds @ 3600..=2_592_000) => Ok(seconds),
        _ => {
            let message = format!("`{field}.seconds`: it is not from 3600 to 2592000");
            Err(ApiError::field(format!("{field}.seconds"), message))
        }
    }
}

async fn put(
    batches: &Batches,
    mut writer: Replacement<'static>,
    bytes: Bytes,
) -> Result<Replacement<'static>, StoreError> {
    batches
        .on_disk(move |_| {
            writer.put(&bytes)?;
            Ok(writer)
        })
        .await
}

fn form_error(error: multer::Error, limit: u64) -> ApiError {
    match error {
        multer::Error::FieldSizeExceeded { field_name: Some(name), .. } if name == "file" => {
            ApiError::body_too_large(usize::try_from(limit).unwrap_or(usize::MAX))
        }
        multer::Error::StreamSizeExceeded { .. } => {
            ApiError::body_too_large(usize::try_from(limit).unwrap_or(usize::MAX))
        }
        multer::Error::StreamReadFailed(_) => {
            ApiError::body("the form broke off, or a part of it has a head that is too long")
        }
        error => ApiError::body(format!("the form is wrong: {error}")),
    }
}
