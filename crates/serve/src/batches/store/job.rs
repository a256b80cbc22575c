//! Jobs: single requests, each with a ticket.

use rusqlite::{OptionalExtension as _, Row, params};

use super::{Result, Store, int, uint};
use crate::api_error::ApiError;

/// A job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JobRow {
    pub(crate) ticket: String,
    /// Whose it is; `None`: it came by the spool folder, and whoever knows its ticket may have its answer.
    pub(crate) tenant: Option<String>,
    pub(crate) endpoint: String,
    /// The request's body.
    pub(crate) request: String,
    pub(crate) created: u64,
    /// Status and body of the answer, once there is one.
    pub(crate) answer: Option<(u16, String)>,
}

fn job_of(row: &Row<'_>) -> rusqlite::Result<JobRow> {
    let status: Option<u16> = row.get(5)?;
    Ok(JobRow {
        ticket: row.get(0)?,
        tenant: row.get(1)?,
        endpoint: row.get(2)?,
        request: row.get(3)?,
        created: uint(row.get(4)?),
        answer: status.zip(row.get(6)?),
    })
}

const COLUMNS: &str = "ticket, tenant, endpoint, request, created, status, body";

impl Store {
    /// Accepts a job. One with the same ticket is the same job, and is accepted once.
    ///
    /// # Errors
    /// 409 if the ticket is that of another job, 429 if there are too many.
    pub(crate) fn add_job(&self, job: &JobRow) -> Result<JobRow> {
        self.write(|transaction| {
            let sql = |error| self.sql(error);
            let query = format!("SELECT {COLUMNS} FROM jobs WHERE ticket = ?1");
            let found = transaction.query_row(&query, [&job.ticket], job_of).optional().map_err(sql)?;
            if let Some(found) = found {
                // A job that was spooled may be handed in again by its caller.
                let is_same = found.request == job.request
                    && found.endpoint == job.endpoint
                    && (found.tenant == job.tenant || found.tenant.is_none() || job.tenant.is_none());
                return match is_same {
                    true => Ok(found),
                    false => Err(ApiError::conflict("the ticket is that of another job").into()),
                };
            }
            let query = "SELECT count(*) FROM jobs WHERE status IS NULL";
            let n_open: i64 = transaction.query_row(query, [], |row| row.get(0)).map_err(sql)?;
            if uint(n_open) >= self.config.open_jobs as u64 {
                return Err(ApiError::too_many("jobs", self.config.open_jobs).into());
            }
            let JobRow { ticket, tenant, endpoint, request, created, answer } = job;
            let (status, body) = answer.clone().unzip();
            let ended = answer.is_some().then(|| int(*created));
            let query = "INSERT INTO jobs (ticket, tenant, endpoint, request, created, status, body, ended)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
            let values = params![ticket, tenant, endpoint, request, int(*created), status, body, ended];
            transaction.execute(query, values).map_err(sql)?;
            Ok(job.clone())
        })
    }

    /// The job of a ticket.
    ///
    /// # Errors
    /// 404 if the caller has none of this ticket.
    pub(crate) fn job(&self, tenant: &str, ticket: &str) -> Result<JobRow> {
        let query =
            format!("SELECT {COLUMNS} FROM jobs WHERE ticket = ?1 AND (tenant IS NULL OR tenant = ?2)");
        let found =
            self.read(|connection| connection.query_row(&query, [ticket, tenant], job_of).optional())?;
        found.ok_or_else(|| ApiError::no_object("job", ticket).into())
    }

    /// All jobs without an answer, in the order in which they came.
    pub(crate) fn open_jobs(&self) -> Result<Vec<JobRow>> {
        let query = format!("SELECT {COLUMNS} FROM jobs WHERE status IS NULL ORDER BY n");
        self.read(|connection| connection.prepare_cached(&query)?.query_map([], job_of)?.collect())
    }

    /// Writes a job's answer, unless it has one.
    pub(crate) fn end_job(&self, ticket: &str, status: u16, body: &str, now: u64) -> Result<()> {
        self.write_result(|transaction| {
            let query =
                "UPDATE jobs SET status = ?2, body = ?3, ended = ?4 WHERE ticket = ?1 AND status IS NULL";
            transaction
                .execute(query, params![ticket, status, body, int(now)])
                .map_err(|error| self.sql(error))?;
            Ok(())
        })
    }
}
