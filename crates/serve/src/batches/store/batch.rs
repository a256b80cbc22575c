//! Batches and their lines.

use std::io::Write as _;

use breakers_core::Usage;
use breakers_sqlite as sqlite;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{FileRow, Page, Purpose, Result, Store, StoreError, int, uint};
use crate::api_error::ApiError;
use crate::batches::endpoint::Origin;
use crate::batches::input::{Line, LineError};

/// How far a batch has got, in OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Validating,
    Failed,
    InProgress,
    Finalizing,
    Completed,
    Expired,
    Cancelling,
    Cancelled,
}

impl Status {
    const ALL: [Self; 8] = [
        Self::Validating,
        Self::Failed,
        Self::InProgress,
        Self::Finalizing,
        Self::Completed,
        Self::Expired,
        Self::Cancelling,
        Self::Cancelled,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    fn of(name: &str) -> Self {
        Self::ALL.into_iter().find(|status| status.name() == name).unwrap_or(Self::Failed)
    }
}

/// Why a batch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// All lines have results.
    Completed,
    /// Its time is over.
    Expired,
    /// Its owner no longer wants it.
    Cancelled,
}

impl Ending {
    /// What the lines without a result are told.
    fn error(self) -> (&'static str, &'static str) {
        match self {
            Self::Completed => ("failed", "This request was not executed."),
            Self::Expired => {
                ("batch_expired", "This request could not be executed before the completion window expired.")
            }
            Self::Cancelled => {
                ("batch_cancelled", "This request was not executed before the batch was cancelled.")
            }
        }
    }

    fn status(self) -> Status {
        match self {
            Self::Completed => Status::Completed,
            Self::Expired => Status::Expired,
            Self::Cancelled => Status::Cancelled,
        }
    }
}

/// A batch.
#[derive(Clone, Debug)]
pub(crate) struct BatchRow {
    /// Its number in the database.
    pub(crate) n: i64,
    pub(crate) id: String,
    pub(crate) tenant: String,
    pub(crate) endpoint: String,
    pub(crate) input: String,
    pub(crate) window: String,
    /// A JSON object.
    pub(crate) metadata: Option<String>,
    /// The models that its owner may use, as a JSON list; `None`: all.
    pub(crate) models: Option<String>,
    pub(crate) output_seconds: u64,
    pub(crate) status: Status,
    /// A JSON list.
    pub(crate) errors: Option<String>,
    pub(crate) created: u64,
    pub(crate) expires: u64,
    /// When it got into each status: in progress, finalizing, completed, failed, expired, cancelling,
    /// cancelled.
    pub(crate) times: [Option<u64>; 7],
    pub(crate) total: u64,
    pub(crate) n_good: u64,
    pub(crate) n_bad: u64,
    pub(crate) usage: Usage,
    pub(crate) output: Option<String>,
    pub(crate) error: Option<String>,
    ending: Option<String>,
}

impl BatchRow {
    /// Whether every line has a result.
    pub(crate) fn is_done(&self) -> bool {
        self.n_good + self.n_bad == self.total
    }

    /// Why it ends, if that is settled.
    pub(crate) fn ending(&self) -> Option<Ending> {
        match self.ending.as_deref() {
            Some("completed") => Some(Ending::Completed),
            Some("expired") => Some(Ending::Expired),
            Some(_) => Some(Ending::Cancelled),
            None => None,
        }
    }
}

/// A batch that is asked for.
#[derive(Clone, Debug)]
pub(crate) struct NewBatch {
    pub(crate) id: String,
    pub(crate) tenant: String,
    pub(crate) endpoint: &'static str,
    pub(crate) input: String,
    pub(crate) window: String,
    pub(crate) metadata: Option<String>,
    pub(crate) models: Option<String>,
    pub(crate) output_seconds: u64,
    /// The client's name for this request.
    pub(crate) idempotency: Option<String>,
    /// Whether the client says that it has sent this request before.
    pub(crate) is_retry: bool,
    pub(crate) created: u64,
    pub(crate) expires: u64,
}

/// A line without a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) line: u64,
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) rank: u64,
}

/// For how long a request that is said to be sent again counts as the same.
const RETRY_SECONDS: u64 = 600;

const COLUMNS: &str = "n, id, tenant, endpoint, input, completion_window, metadata, models, output_seconds, status,
    errors, created, expires, in_progress_at, finalizing_at, completed_at, failed_at, expired_at, cancelling_at,
    cancelled_at, total, n_good, n_bad, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, output,
    error, ending";

fn batch_of(row: &Row<'_>) -> rusqlite::Result<BatchRow> {
    let number = |i| row.get::<_, i64>(i).map(uint);
    let mut times = [None; 7];
    for (i, time) in times.iter_mut().enumerate() {
        *time = row.get::<_, Option<i64>>(13 + i)?.map(uint);
    }
    let mut usage = Usage::new(number(23)?, number(25)?);
    (usage.cached_prompt, usage.reasoning) = (number(24)?, number(26)?);
    Ok(BatchRow {
        n: row.get(0)?,
        id: row.get(1)?,
        tenant: row.get(2)?,
        endpoint: row.get(3)?,
        input: row.get(4)?,
        window: row.get(5)?,
        metadata: row.get(6)?,
        models: row.get(7)?,
        output_seconds: number(8)?,
        status: Status::of(&row.get::<_, String>(9)?),
        errors: row.get(10)?,
        created: number(11)?,
        expires: number(12)?,
        times,
        total: number(20)?,
        n_good: number(21)?,
        n_bad: number(22)?,
        usage,
        output: row.get(27)?,
        error: row.get(28)?,
        ending: row.get(29)?,
    })
}

impl Store {
    /// Accepts a batch, or finds the one that the client has asked for before.
    ///
    /// # Errors
    /// 404 if there is no such file, 409 if the key of idempotency was used for another request, 429 if there
    /// are too many open batches.
    pub(crate) fn create_batch(&self, new: &NewBatch, now: u64) -> Result<BatchRow> {
        let file = self.file(&new.tenant, &new.input, now)?;
        if file.purpose != Purpose::Batch.name() {
            let message =
                format!("`input_file_id`: the file's purpose is `{}` and not `batch`", file.purpose);
            return Err(ApiError::field("input_file_id", message).into());
        }
        self.write(|transaction| {
            let sql = |error| self.sql(error);
            let find = |condition: &str, values: &[&dyn rusqlite::ToSql]| {
                let query = format!("SELECT {COLUMNS} FROM batches WHERE tenant = ?1 AND {condition}");
                transaction.query_row(&query, values, batch_of).optional().map_err(sql)
            };
            let is_same = |found: &BatchRow| {
                found.input == new.input
                    && found.endpoint == new.endpoint
                    && found.window == new.window
                    && found.metadata == new.metadata
            };
            if let Some(key) = &new.idempotency
                && let Some(found) = find("idempotency = ?2", &[&new.tenant, key])?
            {
                return match is_same(&found) {
                    true => Ok(found),
                    false => {
                        Err(ApiError::conflict("the Idempotency-Key was used for another request").into())
                    }
                };
            }
            if new.is_retry {
                let since = int(now.saturating_sub(RETRY_SECONDS));
                let last = find(
                    "input = ?2 AND created >= ?3 ORDER BY n DESC LIMIT 1",
                    &[&new.tenant, &new.input, &since],
                )?;
                if let Some(found) = last.filter(is_same) {
                    return Ok(found);
                }
            }
            let query = "SELECT count(*) FROM batches
                WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')";
            let n_open: i64 = transaction.query_row(query, [], |row| row.get(0)).map_err(sql)?;
            if uint(n_open) >= self.config.open_batches as u64 {
                return Err(ApiError::too_many("batches", self.config.open_batches).into());
            }
            let query =
                "INSERT INTO batches (id, tenant, endpoint, input, completion_window, metadata, models,
                output_seconds, idempotency, status, created, expires)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 'validating', ?10, ?11)";
            let values = params![
                new.id,
                new.tenant,
                new.endpoint,
                new.input,
                new.window,
                new.metadata,
                new.models,
                int(new.output_seconds),
                new.idempotency,
                int(new.created),
                int(new.expires)
            ];
            transaction.execute(query, values).map_err(sql)?;
            let found = find("id = ?2", &[&new.tenant, &new.id])?;
            found.ok_or_else(|| ApiError::failed("the batch was not written").into())
        })
    }

    /// A tenant's batch.
    ///
    /// # Errors
    /// 404 if it has none of this name.
    pub(crate) fn batch(&self, tenant: &str, id: &str) -> Result<BatchRow> {
        let query = format!("SELECT {COLUMNS} FROM batches WHERE id = ?1 AND tenant = ?2");
        let found =
            self.read(|connection| connection.query_row(&query, [id, tenant], batch_of).optional())?;
        found.ok_or_else(|| ApiError::no_object("batch", id).into())
    }

    /// A tenant's batches, the latest first, and whether there are more.
    ///
    /// # Errors
    /// If there is no batch to begin behind.
    pub(crate) fn batches(&self, tenant: &str, page: &Page) -> Result<(Vec<BatchRow>, bool)> {
        let after = match &page.after {
            None => i64::MAX,
            Some(id) => {
                let found = self.batch(tenant, id);
                found
                    .map_err(|_| ApiError::field("after", format!("`after`: there is no batch {id:.100?}")))?
                    .n
            }
        };
        let query =
            format!("SELECT {COLUMNS} FROM batches WHERE tenant = ?1 AND n < ?2 ORDER BY n DESC LIMIT ?3");
        let mut batches: Vec<BatchRow> = self.read(|connection| {
            let values = params![tenant, after, int(page.limit as u64 + 1)];
            connection.prepare_cached(&query)?.query_map(values, batch_of)?.collect()
        })?;
        let has_more = batches.len() > page.limit;
        batches.truncate(page.limit);
        Ok((batches, has_more))
    }

    /// Batches that have not ended, the oldest first.
    pub(crate) fn open_batches(&self) -> Result<Vec<BatchRow>> {
        let query = format!(
            "SELECT {COLUMNS} FROM batches WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
             ORDER BY n"
        );
        self.read(|connection| connection.prepare_cached(&query)?.query_map([], batch_of)?.collect())
    }

    /// Asks for the end of a batch.
    ///
    /// # Errors
    /// 404 if there is none of this name, 409 if it has ended.
    pub(crate) fn cancel_batch(&self, tenant: &str, id: &str, now: u64) -> Result<BatchRow> {
        let found = self.batch(tenant, id)?;
        self.write(|transaction| {
            let query = "UPDATE batches SET status = 'cancelling', cancelling_at = ?2, ending = 'cancelled'
                WHERE n = ?1 AND status IN ('validating', 'in_progress')";
            transaction.execute(query, params![found.n, int(now)]).map_err(|error| self.sql(error))
        })?;
        let found = self.batch(tenant, id)?;
        match found.status {
            Status::Cancelling | Status::Cancelled => Ok(found),
            status => {
                let message = format!("the batch {id} is {} and cannot be cancelled", status.name());
                Err(ApiError::conflict(message).into())
            }
        }
    }

    /// A batch's file has been checked: it begins, or it fails.
    pub(crate) fn validated(
        &self,
        n: i64,
        lines: std::result::Result<Vec<Line>, Vec<LineError>>,
        now: u64,
    ) -> Result<()> {
        self.write(|transaction| {
            let work = || match &lines {
                Ok(lines) => {
                    let query = "UPDATE batches SET status = 'in_progress', in_progress_at = ?2, total = ?3
                        WHERE n = ?1 AND status = 'validating'";
                    let values = params![n, int(now), int(lines.len() as u64)];
                    // It may have been cancelled meanwhile.
                    if transaction.execute(query, values)? == 1 {
                        insert_lines(transaction, n, lines)?;
                    }
                    Ok(())
                }
                Err(errors) => {
                    let query = "UPDATE batches SET status = 'failed', failed_at = ?2, errors = ?3
                        WHERE n = ?1 AND status = 'validating'";
                    let errors = serde_json::to_string(errors).unwrap_or_default();
                    transaction.execute(query, params![n, int(now), errors]).map(|_| ())
                }
            };
            work().map_err(|error| self.sql(error))
        })
    }

    /// The next lines without a result, in the order of running.
    pub(crate) fn pending(&self, n: i64, after: Option<u64>, limit: usize) -> Result<Vec<Pending>> {
        let query = "SELECT line, start, length, rank FROM lines
            WHERE batch = ?1 AND status IS NULL AND rank > ?2 ORDER BY rank LIMIT ?3";
        self.read(|connection| {
            let mut statement = connection.prepare_cached(query)?;
            let after = after.map_or(-1, int);
            let number = |row: &Row<'_>, i| row.get::<_, i64>(i).map(uint);
            let lines = statement.query_map(params![n, after, int(limit as u64)], |row| {
                let (line, start, length, rank) =
                    (number(row, 0)?, number(row, 1)?, number(row, 2)?, number(row, 3)?);
                Ok(Pending { line, start, length, rank })
            })?;
            lines.collect()
        })
    }

    /// Writes the result of a line, unless it has one or its batch is ending.
    pub(crate) fn end_line(&self, n: i64, line: u64, status: u16, body: &str, usage: &Usage) -> Result<()> {
        self.write_result(|transaction| {
            let work = || {
                let query = "UPDATE lines SET status = ?3, body = ?4 WHERE batch = ?1 AND line = ?2
                    AND status IS NULL AND (SELECT status FROM batches WHERE n = ?1) = 'in_progress'";
                let n_written =
                    transaction.prepare_cached(query)?.execute(params![n, int(line), status, body])?;
                if n_written == 0 {
                    return Ok(());
                }
                let query = "UPDATE batches SET n_good = n_good + ?2, n_bad = n_bad + ?3,
                    prompt_tokens = prompt_tokens + ?4, cached_tokens = cached_tokens + ?5,
                    completion_tokens = completion_tokens + ?6, reasoning_tokens = reasoning_tokens + ?7
                    WHERE n = ?1";
                let is_good = status == 200;
                let values = params![
                    n,
                    is_good,
                    !is_good,
                    int(usage.prompt),
                    int(usage.cached_prompt),
                    int(usage.completion),
                    int(usage.reasoning)
                ];
                transaction.prepare_cached(query)?.execute(values).map(|_| ())
            };
            work().map_err(|error| self.sql(error))
        })
    }

    /// Ends a batch: makes its files of results and tells that they are there. After a crash it does the same
    /// again.
    ///
    /// # Errors
    /// The disk's; the batch is then as it was, or `finalizing`.
    pub(crate) fn finish_batch(&self, batch: &BatchRow, ending: Ending, now: u64) -> Result<()> {
        let name = ending.status().name();
        self.write(|transaction| {
            // From here on no line gets a result anymore.
            let query = "UPDATE batches SET ending = coalesce(ending, ?2), finalizing_at = coalesce(finalizing_at, ?3),
                status = CASE status WHEN 'in_progress' THEN 'finalizing' ELSE status END WHERE n = ?1";
            transaction.execute(query, params![batch.n, name, int(now)]).map_err(|error| self.sql(error))
        })?;
        // Results are read on a connection of their own, so that others can write meanwhile.
        let reader = sqlite::connect(&self.path, &self.sqlite)?;
        let output = self.write_results(&reader, batch, ending, true, now)?;
        let error = self.write_results(&reader, batch, ending, false, now)?;
        self.write(|transaction| {
            for file in [&output, &error].into_iter().flatten() {
                self.insert_file(transaction, file)?;
            }
            // The name is one of three words of this program.
            let query = format!(
                "UPDATE batches SET status = '{name}', {name}_at = ?2, output = ?3, error = ?4
                 WHERE n = ?1 AND status IN ('finalizing', 'cancelling')"
            );
            let id = |file: &Option<FileRow>| file.as_ref().map(|file| file.id.clone());
            let values = params![batch.n, int(now), id(&output), id(&error)];
            transaction.execute(&query, values).map_err(|error| self.sql(error))?;
            // The results are in the files now.
            transaction
                .execute("DELETE FROM lines WHERE batch = ?1", [batch.n])
                .map_err(|error| self.sql(error))?;
            Ok(())
        })
    }

    /// Writes the file of good or of bad results, in the order of lines; `None` if there are none.
    fn write_results(
        &self,
        reader: &Connection,
        batch: &BatchRow,
        ending: Ending,
        is_good: bool,
        now: u64,
    ) -> Result<Option<FileRow>> {
        let sql = |error| self.sql(error);
        let condition = if is_good { "status = 200" } else { "(status IS NULL OR status <> 200)" };
        let query = format!(
            "SELECT line, custom_id, status, body FROM lines WHERE batch = ?1 AND {condition} ORDER BY line"
        );
        let mut statement = reader.prepare(&query).map_err(sql)?;
        let mut rows = statement.query([batch.n]).map_err(sql)?;
        let Some(mut row) = rows.next().map_err(sql)? else { return Ok(None) };
        // The name follows from the batch's, so that a second try replaces the first.
        let kind = if is_good { "output" } else { "error" };
        let id = Origin::line(&batch.id, 0, 0).id_of("file-", kind);
        let file = self.begin_file(&id)?;
        let path = self.path_of(&id);
        let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
        let mut bytes = 0;
        loop {
            let line = result_line(batch, ending, row).map_err(sql)?;
            let written = out.write_all(line.as_bytes());
            written.map_err(|source| StoreError::Io { action: "write", path: path.clone(), source })?;
            bytes += line.len() as u64;
            match rows.next().map_err(sql)? {
                Some(next) => row = next,
                None => break,
            }
        }
        let file = out.into_inner().map_err(|error| StoreError::Io {
            action: "write",
            path,
            source: error.into_error(),
        })?;
        file.commit()?;
        Ok(Some(FileRow {
            name: format!("{}_{kind}.jsonl", batch.id),
            id,
            tenant: batch.tenant.clone(),
            purpose: Purpose::BatchOutput.name().to_owned(),
            bytes,
            created: now,
            expires: Some(now.saturating_add(batch.output_seconds)),
        }))
    }
}

fn insert_lines(transaction: &Transaction<'_>, n: i64, lines: &[Line]) -> rusqlite::Result<()> {
    let query =
        "INSERT INTO lines (batch, line, custom_id, start, length, rank) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let mut statement = transaction.prepare(query)?;
    for Line { number, custom_id, start, length, rank } in lines {
        statement.execute(params![n, int(*number), custom_id, int(*start), int(*length), int(*rank)])?;
    }
    Ok(())
}

/// A line of a file of results.
fn result_line(batch: &BatchRow, ending: Ending, row: &Row<'_>) -> rusqlite::Result<String> {
    #[derive(Serialize)]
    struct Line<'a> {
        id: String,
        custom_id: String,
        response: Option<Response<'a>>,
        error: Option<Missing>,
    }
    #[derive(Serialize)]
    struct Response<'a> {
        status_code: u16,
        request_id: String,
        body: &'a RawValue,
    }
    #[derive(Serialize)]
    struct Missing {
        code: &'static str,
        message: &'static str,
    }
    let origin = Origin::line(&batch.id, uint(row.get(0)?), batch.created);
    let (status, body): (Option<u16>, Option<String>) = (row.get(2)?, row.get(3)?);
    // Only bodies that are JSON are stored.
    let body = body.and_then(|body| RawValue::from_string(body).ok());
    let response = status.zip(body.as_deref()).map(|(status_code, body)| Response {
        status_code,
        request_id: origin.id("req_"),
        body,
    });
    let (code, message) = ending.error();
    let error = response.is_none().then_some(Missing { code, message });
    let line = Line { id: origin.id("batch_req_"), custom_id: row.get(1)?, response, error };
    Ok(crate::answer::json(&line) + "\n")
}
