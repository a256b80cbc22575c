//! Files, batches and jobs as clients see them.

use serde::Serialize;
use serde_json::value::RawValue;

use super::store::{BatchRow, FileRow, JobRow, Status};

#[derive(Serialize)]
pub(crate) struct WireFile<'a> {
    id: &'a str,
    object: &'static str,
    bytes: u64,
    created_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    filename: &'a str,
    purpose: &'a str,
    status: &'static str,
}

impl<'a> WireFile<'a> {
    pub(crate) fn of(file: &'a FileRow) -> Self {
        Self {
            id: &file.id,
            object: "file",
            bytes: file.bytes,
            created_at: file.created,
            expires_at: file.expires,
            filename: &file.name,
            purpose: &file.purpose,
            // Old clients wait until a file is processed.
            status: "processed",
        }
    }
}

/// A part of a list.
#[derive(Serialize)]
pub(crate) struct WireList<'a, T> {
    object: &'static str,
    data: Vec<T>,
    first_id: &'a str,
    last_id: &'a str,
    has_more: bool,
}

impl<'a, T> WireList<'a, T> {
    /// A list of what `wire` makes of the rows.
    pub(crate) fn of<R>(
        rows: &'a [R],
        has_more: bool,
        id: impl Fn(&'a R) -> &'a str,
        wire: impl Fn(&'a R) -> T,
    ) -> Self {
        Self {
            object: "list",
            data: rows.iter().map(wire).collect(),
            first_id: rows.first().map_or("", &id),
            last_id: rows.last().map_or("", &id),
            has_more,
        }
    }
}

#[derive(Serialize)]
pub(crate) struct WireDeleted<'a> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) deleted: bool,
}

#[derive(Serialize)]
pub(crate) struct WireBatch<'a> {
    id: &'a str,
    object: &'static str,
    endpoint: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<Errors<'a>>,
    input_file_id: &'a str,
    completion_window: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_file_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_file_id: Option<&'a str>,
    created_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    in_progress_at: Option<u64>,
    expires_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    finalizing_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expired_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cancelling_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cancelled_at: Option<u64>,
    request_counts: Counts,
    usage: WireUsage,
    metadata: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Errors<'a> {
    object: &'static str,
    data: &'a RawValue,
}

#[derive(Serialize)]
struct Counts {
    total: u64,
    completed: u64,
    failed: u64,
}

#[derive(Serialize)]
struct WireUsage {
    input_tokens: u64,
    input_tokens_details: InputDetails,
    output_tokens: u64,
    output_tokens_details: OutputDetails,
    total_tokens: u64,
}

#[derive(Serialize)]
struct InputDetails {
    cached_tokens: u64,
}

#[derive(Serialize)]
struct OutputDetails {
    reasoning_tokens: u64,
}

/// JSON that we have written, or nothing.
fn raw(text: Option<&String>) -> Option<&RawValue> {
    text.and_then(|text| serde_json::from_str(text).ok())
}

impl<'a> WireBatch<'a> {
    pub(crate) fn of(batch: &'a BatchRow) -> Self {
        let [in_progress, finalizing, completed, failed, expired, cancelling, cancelled] = batch.times;
        // It has its results and nothing else to do, but its files are not there yet.
        let usage = batch.usage;
        Self {
            id: &batch.id,
            object: "batch",
            endpoint: &batch.endpoint,
            errors: raw(batch.errors.as_ref()).map(|data| Errors { object: "list", data }),
            input_file_id: &batch.input,
            completion_window: &batch.window,
            status: batch.status.name(),
            output_file_id: batch.output.as_deref(),
            error_file_id: batch.error.as_deref(),
            created_at: batch.created,
            in_progress_at: in_progress,
            expires_at: batch.expires,
            finalizing_at: finalizing.filter(|_| batch.status != Status::Cancelling),
            completed_at: completed,
            failed_at: failed,
            expired_at: expired,
            cancelling_at: cancelling,
            cancelled_at: cancelled,
            request_counts: Counts { total: batch.total, completed: batch.n_good, failed: batch.n_bad },
            usage: WireUsage {
                input_tokens: usage.prompt,
                input_tokens_details: InputDetails { cached_tokens: usage.cached_prompt },
                output_tokens: usage.completion,
                output_tokens_details: OutputDetails { reasoning_tokens: usage.reasoning },
                total_tokens: usage.total(),
            },
            metadata: raw(batch.metadata.as_ref()),
        }
    }
}

/// A job. OpenAI's protocol has none.
#[derive(Serialize)]
pub(crate) struct WireJob<'a> {
    ticket: &'a str,
    object: &'static str,
    status: &'static str,
    endpoint: &'a str,
    created_at: u64,
    response: Option<WireResponse<'a>>,
}

#[derive(Serialize)]
struct WireResponse<'a> {
    status_code: u16,
    body: Option<&'a RawValue>,
}

impl<'a> WireJob<'a> {
    pub(crate) fn of(job: &'a JobRow) -> Self {
        let response = job
            .answer
            .as_ref()
            .map(|(status_code, body)| WireResponse { status_code: *status_code, body: raw(Some(body)) });
        let status = match &job.answer {
            None => "queued",
            Some((200, _)) => "completed",
            Some(_) => "failed",
        };
        let JobRow { ticket, endpoint, created, .. } = job;
        Self { ticket, object: "breakers.job", status, endpoint, created_at: *created, response }
    }
}
