//! SQLite databases: opened with settings for durability and for use by many processes, migrated, and written
//! to with a time limit.
//!
//! The library is compiled in, so that every machine has the same one: at least 3.51.3, since versions from
//! 3.7.0 to 3.51.2 can lose a checkpoint of the write-ahead log
//! (<https://sqlite.org/wal.html#walresetbug>).

use crate::{Error, Result};
use breakers_files::regular;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// The longest time that SQLite waits.
const MAX_WAIT: Duration = Duration::from_millis(i32::MAX as u64);
/// Between tries to switch the log on.
const PAUSE: Duration = Duration::from_millis(5);

/// What is guaranteed once a write has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// The write is on the disk.
    #[default]
    Full,
    /// A process crash loses nothing. A system crash may lose the last writes, but never a part of one.
    Process,
}

/// How a database is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SqliteConfig {
    /// What is guaranteed once a write has returned.
    pub durability: Durability,
    /// For how long to wait for other connections and processes, each time; at most 24 days, which is as much
    /// as SQLite counts.
    pub busy_timeout: Duration,
    /// How many prepared statements a connection keeps.
    pub statement_cache: usize,
    /// SQLite's file system (VFS); otherwise its default.
    pub vfs: Option<String>,
}

impl Default for SqliteConfig {
    fn default() -> Self {
        Self {
            durability: Durability::Full,
            busy_timeout: Duration::from_secs(30),
            statement_cache: 64,
            vfs: None,
        }
    }
}

/// A database's schema as a list of migrations: version `n` is the result of the first `n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schema {
    /// Marks the databases of a program in their file's header; not zero.
    pub application_id: i32,
    /// Statements that bring a database from one version to the next. Published migrations never change.
    pub migrations: &'static [&'static str],
}

/// The version of the library that is compiled in, such as `3.54.1`.
pub fn library_version() -> &'static str {
    rusqlite::version()
}

/// Opens a database, creates it if there is none, and brings it to the schema's version.
///
/// Opening a database that is up to date takes no write lock, so it does not wait for a writer.
///
/// # Errors
/// [`Error::Schema`] for a database of another program or a later version; it is left as it was.
/// [`Error::Locked`] if others held it for longer than the config allows, [`Error::Setting`],
/// [`Error::Sqlite`], [`Error::Files`].
pub fn open(path: impl AsRef<Path>, config: &SqliteConfig, schema: &Schema) -> Result<Connection> {
    let path = path.as_ref();
    let mut connection = attach(path, config)?;
    // Checked before anything is written, because the file may belong to another program.
    schema.found(&connection, path)?;
    set_wal(&connection, path, config.busy_timeout)?;
    schema.migrate(&mut connection, path)?;
    Ok(connection)
}

/// One more connection to a database that [`open`] has opened. Nothing is checked or migrated.
///
/// # Errors
/// [`Error::Locked`], [`Error::Setting`], [`Error::Sqlite`], [`Error::Files`].
pub fn connect(path: impl AsRef<Path>, config: &SqliteConfig) -> Result<Connection> {
    let path = path.as_ref();
    let connection = attach(path, config)?;
    set_wal(&connection, path, config.busy_timeout)?;
    Ok(connection)
}

/// A connection to a copy of a database that nobody else uses: it keeps the journal's mode that it has, so
/// that it stays one file. Nothing is checked; [`Schema::migrate`] does that.
///
/// # Errors
/// [`Error::Sqlite`], [`Error::Files`].
pub fn open_copy(path: impl AsRef<Path>, config: &SqliteConfig) -> Result<Connection> {
    attach(path.as_ref(), config)
}

/// Runs a transaction that writes. It takes the write lock first, so that it cannot fail in the middle
/// because another writer was faster; what `work` writes is committed, unless it returns an error.
///
/// # Errors
/// [`Error::Locked`] if other writers held the lock for longer than the connection waits, [`Error::Sqlite`],
/// and those of `work`. Nothing is written then.
pub fn write<R, E: From<Error>>(
    connection: &mut Connection,
    path: impl AsRef<Path>,
    work: impl FnOnce(&Transaction<'_>) -> Result<R, E>,
) -> Result<R, E> {
    let path = path.as_ref();
    let begun = connection.transaction_with_behavior(TransactionBehavior::Immediate);
    let transaction = begun.map_err(failed(path))?;
    let result = work(&transaction)?;
    transaction.commit().map_err(failed(path))?;
    Ok(result)
}

/// Turns an error of SQLite into one that names the database: [`Error::Locked`] if others held a lock for too
/// long, [`Error::Sqlite`] otherwise.
pub fn failed(path: &Path) -> impl Fn(rusqlite::Error) -> Error {
    move |source| {
        let path = path.to_owned();
        if is_busy(&source) { Error::Locked { path } } else { Error::Sqlite { path, source } }
    }
}

impl Schema {
    /// The version that the migrations lead to.
    pub const fn version(&self) -> i64 {
        self.migrations.len() as i64
    }

    /// Brings a database to this version in one transaction. Nothing happens if it is up to date.
    ///
    /// # Errors
    /// [`Error::Schema`] for a database of another program or a later version, [`Error::Locked`],
    /// [`Error::Sqlite`]; the database is then unchanged.
    pub fn migrate(&self, connection: &mut Connection, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if self.found(connection, path)? == self.version() {
            return Ok(());
        }
        write(connection, path, |transaction| {
            // Another process may have been faster.
            let found = self.read(transaction, path)?;
            for statements in &self.migrations[found as usize..] {
                transaction.execute_batch(statements).map_err(failed(path))?;
            }
            let set = |name, value| transaction.pragma_update(None, name, value).map_err(failed(path));
            set("application_id", i64::from(self.application_id))?;
            set("user_version", self.version())
        })
    }

    /// The version of a database that is new or has this schema.
    fn found(&self, connection: &Connection, path: &Path) -> Result<i64> {
        // All reads see the same snapshot, because another process may be creating the tables.
        let transaction = connection.unchecked_transaction().map_err(failed(path))?;
        self.read(&transaction, path)
    }

    fn read(&self, connection: &Connection, path: &Path) -> Result<i64> {
        let number = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(failed(path));
        let (owner, found) = (number("PRAGMA application_id")?, number("PRAGMA user_version")?);
        let ours = owner == i64::from(self.application_id);
        let first_table = connection.query_row("SELECT 1 FROM sqlite_schema", [], |_| Ok(()));
        let is_empty = first_table.optional().map_err(failed(path))?.is_none();
        let foreign = !ours && (owner != 0 || found != 0 || !is_empty);
        if foreign || !(0..=self.version()).contains(&found) {
            let (path, expected) = (path.to_owned(), self.version());
            return Err(Error::Schema { path, expected, found, foreign });
        }
        Ok(found)
    }
}

/// Opens a connection with this crate's settings, except for the journal mode.
fn attach(path: &Path, config: &SqliteConfig) -> Result<Connection> {
    regular(path)?;
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = match &config.vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs.as_str()),
        None => Connection::open_with_flags(path, flags),
    };
    let connection = opened.map_err(failed(path))?;
    connection.busy_timeout(config.busy_timeout.min(MAX_WAIT)).map_err(failed(path))?;
    connection.set_prepared_statement_cache_capacity(config.statement_cache);
    let synchronous = match config.durability {
        Durability::Full => "FULL",
        Durability::Process => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous).map_err(failed(path))?;
    // Whatever a database file contains, its schema is not allowed to run code.
    connection.pragma_update(None, "trusted_schema", false).map_err(failed(path))?;
    Ok(connection)
}

/// Switches on the write-ahead log. SQLite does not wait for other connections here but refuses at once, so
/// this tries again.
fn set_wal(connection: &Connection, path: &Path, wait: Duration) -> Result<()> {
    let begun = Instant::now();
    loop {
        let mode = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0));
        match mode {
            Ok(mode) if mode == "wal" => return Ok(()),
            // A database in memory, or on a file system without shared memory.
            Ok(found) => {
                let (path, expected) = (path.to_owned(), "wal".to_owned());
                return Err(Error::Setting { path, setting: "journal_mode", expected, found });
            }
            Err(error) if is_busy(&error) && begun.elapsed() < wait => std::thread::sleep(PAUSE),
            Err(error) => return Err(failed(path)(error)),
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}
