//! What is kept: one SQLite database for all that is known, a folder for the bytes of files.
//!
//! A file's bytes are in place before its row is written, and its row is gone before its bytes are removed,
//! so that every row has its bytes; bytes without a row are removed when the server starts. A line's result
//! is written once: a second one finds that there is one. Output files are made from the rows, in the order
//! of lines, and put in place as a whole.

mod batch;
mod file;
mod job;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use breakers_files::{Disk, FileLock, OsDisk};
use breakers_sqlite::{self as sqlite, Durability, Schema, SqliteConfig, failed};
use rusqlite::{Connection, Transaction};

pub(crate) use self::batch::{BatchRow, Ending, NewBatch, Pending, Status};
pub(crate) use self::file::{FileRow, Page, Purpose};
pub(crate) use self::job::JobRow;
use super::BatchConfig;
use crate::api_error::ApiError;

const SCHEMA: Schema = Schema {
    application_id: 0x4272_4261, // "BrBa"
    migrations: &["
CREATE TABLE files (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER
) STRICT;
CREATE TABLE batches (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    input TEXT NOT NULL,
    completion_window TEXT NOT NULL,
    metadata TEXT,
    models TEXT,
    output_seconds INTEGER NOT NULL,
    idempotency TEXT,
    status TEXT NOT NULL,
    ending TEXT,
    errors TEXT,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    in_progress_at INTEGER,
    finalizing_at INTEGER,
    completed_at INTEGER,
    failed_at INTEGER,
    expired_at INTEGER,
    cancelling_at INTEGER,
    cancelled_at INTEGER,
    total INTEGER NOT NULL DEFAULT 0,
    n_good INTEGER NOT NULL DEFAULT 0,
    n_bad INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0,
    reasoning_tokens INTEGER NOT NULL DEFAULT 0,
    output TEXT,
    error TEXT,
    UNIQUE (tenant, idempotency)
) STRICT;
CREATE INDEX open_batches ON batches (status) WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');
CREATE TABLE lines (
    batch INTEGER NOT NULL REFERENCES batches (n),
    line INTEGER NOT NULL,
    custom_id TEXT NOT NULL,
    start INTEGER NOT NULL,
    length INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    status INTEGER,
    body TEXT,
    PRIMARY KEY (batch, line)
) STRICT;
CREATE INDEX pending_lines ON lines (batch, rank) WHERE status IS NULL;
CREATE TABLE jobs (
    n INTEGER PRIMARY KEY,
    ticket TEXT NOT NULL UNIQUE,
    tenant TEXT,
    endpoint TEXT NOT NULL,
    request TEXT NOT NULL,
    created INTEGER NOT NULL,
    status INTEGER,
    body TEXT,
    ended INTEGER
) STRICT;
CREATE INDEX pending_jobs ON jobs (n) WHERE status IS NULL;
"],
};

/// What goes wrong with what is kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(transparent)]
    Files(#[from] breakers_files::Error),
    #[error(transparent)]
    Sqlite(#[from] sqlite::Error),
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    /// Nothing is wrong with the store: the client asked for what cannot be.
    #[error("{}", .0.message)]
    Refused(ApiError),
}

impl From<ApiError> for StoreError {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(error) => error,
            // Paths are not for clients.
            error => {
                tracing::error!(%error, "files and batches: the disk failed");
                ApiError::failed("the server could not read or write its disk")
            }
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, StoreError>;

/// The folder of a server.
pub(crate) struct Store {
    folder: PathBuf,
    disk: &'static dyn Disk,
    path: PathBuf,
    sqlite: SqliteConfig,
    connection: Mutex<Connection>,
    /// Writes results, and does not wait until each is on the disk: if the machine stops, those that are lost
    /// are made again, and are the same.
    results: Mutex<Connection>,
    config: BatchConfig,
    /// The folder is no other server's as long as this is held.
    _lock: FileLock,
}

impl Store {
    /// Opens a folder, and removes what a crash has left.
    pub(crate) fn open(config: &BatchConfig) -> Result<Self> {
        Self::open_on(config, &OsDisk, SqliteConfig::default())
    }

    pub(crate) fn open_on(
        config: &BatchConfig,
        disk: &'static dyn Disk,
        sqlite: SqliteConfig,
    ) -> Result<Self> {
        let folder = config.folder.clone();
        for part in ["files", "spool"] {
            let path = folder.join(part);
            let made = make_private(&path);
            made.map_err(|source| StoreError::Io { action: "make the folder", path, source })?;
        }
        // A server that was just told to end may still be about to let go of it.
        let lock = FileLock::exclusive(folder.join(".lock"), Duration::from_secs(5))?;
        let path = folder.join("batches.db");
        let connection = sqlite::open(&path, &sqlite, &SCHEMA)?;
        let mut quick = sqlite.clone();
        quick.durability = Durability::Process;
        let results = Mutex::new(sqlite::connect(&path, &quick)?);
        let config = config.clone();
        let connection = Mutex::new(connection);
        let store = Self { folder, disk, path, sqlite, connection, results, config, _lock: lock };
        store.remove_orphans()?;
        Ok(store)
    }

    /// The folder for jobs that come while the server is down.
    pub(crate) fn spool(&self) -> PathBuf {
        self.folder.join("spool")
    }

    fn path_of(&self, id: &str) -> PathBuf {
        self.folder.join("files").join(id)
    }

    /// SQLite takes back what a failed transaction did.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a transaction that writes. What it has written is on the disk when this returns.
    fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        sqlite::write(&mut self.lock(), &self.path, work)
    }

    /// Runs a transaction that writes a result, which survives the process and perhaps not the machine.
    fn write_result<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut connection = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        sqlite::write(&mut connection, &self.path, work)
    }

    /// Runs something that only reads.
    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        work(&self.lock()).map_err(|error| self.sql(error))
    }

    fn sql(&self, error: rusqlite::Error) -> StoreError {
        failed(&self.path)(error).into()
    }
}

/// Makes a folder that only this user can look into.
fn make_private(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Numbers are stored as SQLite has them; all of ours are far below 2^63.
fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What [`int`] has stored.
fn uint(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
