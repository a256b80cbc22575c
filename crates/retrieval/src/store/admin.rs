//! Maintenance: backup and restore, verification, compaction, leftover files.

use super::{
    DATABASE, Inner, Options, Store, fields,
    files::{SIDECARS, is_own_name, is_same_file, with_suffix},
    parse_config, schema,
    shared::lock,
    state::point_of,
};
use crate::{Error, Result};
use breakers_files::{Replacement, clean, regular};
use breakers_sqlite::{self as sqlite, SqliteConfig};
use rusqlite::{Connection, params};
use std::{io::ErrorKind, path::Path};

/// What a verification checked. Anything wrong would have been an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Verification {
    /// Collections.
    pub n_collections: usize,
    /// Points; each has the checksum that it was written with.
    pub n_points: usize,
    /// Collections whose table of fields did not match the payloads, and was made anew.
    pub n_fields_rebuilt: usize,
}

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Repair {
    /// Points that were removed: the collection's name, and the id.
    pub removed: Vec<(String, u64)>,
    /// Collections whose table of fields was made anew.
    pub n_fields_rebuilt: usize,
}

/// A long operation that was begun, as recorded in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Job {
    /// Its number.
    pub id: i64,
    /// What it does: `backup`, `compact`.
    pub kind: String,
    /// `running`, or `interrupted` if the process ended before the work did.
    pub state: String,
    /// What it works on.
    pub detail: String,
}

impl Store {
    /// Writes a copy of the database as it is now to a file; reading and writing go on. The file gets its
    /// name only once it is complete, verified and on the disk.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a file of the store itself, by any name, and for a database that has a log
    /// beside it: of another store, which may be open. [`Error::Io`], [`Error::Sqlite`], [`Error::Corrupt`]
    /// if the copy is not what it should be.
    ///
    /// # Example
    /// ```
    /// use breakers_retrieval::{Metric, store::{Config, Options, Point, Store}};
    ///
    /// let folder = tempfile::tempdir().unwrap();
    /// let store = Store::open(folder.path().join("store"))?;
    /// store.create("points", &Config::new(2, Metric::L2))?.upsert(&[Point::new(1, [0.0, 0.0])])?;
    /// store.backup(folder.path().join("backup.db"))?;
    ///
    /// let backup = folder.path().join("backup.db");
    /// let restored = Store::restore(backup, folder.path().join("again"), Options::default())?;
    /// assert_eq!(restored.collection("points")?.len()?, 1);
    /// # Ok::<(), breakers_retrieval::Error>(())
    /// ```
    pub fn backup(&self, path: impl AsRef<Path>) -> Result<Verification> {
        let path = path.as_ref();
        if self.inner.owns(path)? {
            let expected = "a file that is not the store's own";
            return Err(Error::parameter("the backup's path", expected, path.display()));
        }
        // SQLite would take the log for the copy's.
        if let Some(log) =
            SIDECARS.map(|suffix| with_suffix(path, suffix)).into_iter().find(|log| log.exists())
        {
            let expected = "a path without a database's log beside it";
            return Err(Error::parameter("the backup's path", expected, log.display()));
        }
        let detail = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        self.job("backup", &detail, || {
            let copy = Replacement::by_name_on(&*self.inner.options.disk, path)?;
            let name = copy.temporary().to_str().ok_or_else(|| {
                Error::parameter("the backup's path", "UTF-8", copy.temporary().to_string_lossy())
            })?;
            self.inner.read(|connection| Ok(connection.execute("VACUUM INTO ?1", [name])?))?;
            let verification = verify(&open_copy(copy.temporary(), &self.inner.options.sqlite(), path)?)?;
            copy.commit()?;
            Ok(verification)
        })
    }

    /// Makes a store from a backup, in a folder that has none yet.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the folder holds a store, [`Error::SchemaVersion`], [`Error::Corrupt`] and
    /// [`Error::Sqlite`] if the backup is damaged or not a backup; no store is created then.
    pub fn restore(backup: impl AsRef<Path>, folder: impl AsRef<Path>, options: Options) -> Result<Self> {
        let (backup, folder) = (backup.as_ref(), folder.as_ref());
        let path = folder.join(DATABASE);
        if path.exists() {
            return Err(Error::parameter("folder", "a folder without store", path.display()));
        }
        if regular(backup)?.is_none() {
            return Err(Error::io(backup)(ErrorKind::NotFound.into()));
        }
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let new = Replacement::by_name_on(&*options.disk, &path)?;
        let restored = restore_to(&new, backup, folder, &options);
        for suffix in SIDECARS {
            let _ = std::fs::remove_file(with_suffix(new.temporary(), suffix));
        }
        restored?;
        new.commit()?;
        Self::open_with(folder, options)
    }

    /// Reads everything and compares checksums. Tables of fields are derived from payloads, and are made anew
    /// if they differ from them.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first thing that is wrong, [`Error::Sqlite`].
    pub fn verify(&self) -> Result<Verification> {
        let found = self.inner.read(|connection| {
            let transaction = connection.unchecked_transaction()?;
            check_integrity(&transaction)?;
            inspect(&transaction, false)?.checked()
        })?;
        if !found.other_fields.is_empty() {
            self.heal(|_, _| Ok(()))?;
        }
        Ok(found.verification)
    }

    /// Removes what is damaged, which leaves the rest whole: points that are not as they were written are
    /// removed and reported, and tables of fields that do not match the payloads are made anew.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if SQLite itself finds its file damaged beyond its indexes,
    /// [`Error::Sqlite`], [`Error::Busy`].
    ///
    /// # Example
    /// ```
    /// use breakers_retrieval::store::Store;
    ///
    /// let folder = tempfile::tempdir().unwrap();
    /// let store = Store::open(folder.path())?;
    /// println!("{:?}, then {:?}", store.verify()?, store.repair()?);
    /// # Ok::<(), breakers_retrieval::Error>(())
    /// ```
    pub fn repair(&self) -> Result<Repair> {
        {
            let writer = self.inner.writer()?;
            if check_integrity(&writer).is_err() {
                writer.execute_batch("REINDEX")?;
                check_integrity(&writer)?;
            }
        }
        self.heal(|transaction, found| {
            for (collection, name, point, error) in &found.damaged {
                tracing::warn!("point {point} of {name:?} is taken out: {error}");
                let key = *point as i64;
                transaction.execute(&format!("DELETE FROM points_{collection} WHERE id = ?1"), [key])?;
                fields::remove(transaction, *collection, key)?;
                let sql = format!(
                    "INSERT OR REPLACE INTO removed_{collection}(id, seq)
                     SELECT ?1, seq + 1 FROM collections WHERE id = ?2"
                );
                transaction.execute(&sql, [key, *collection])?;
            }
            let mut collections: Vec<i64> = transaction
                .prepare("SELECT id FROM collections")?
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            for id in collections.drain(..) {
                let sql = format!(
                    "UPDATE collections SET n_points = (SELECT count(*) FROM points_{id}) WHERE id = ?1"
                );
                transaction.execute(&sql, [id])?;
            }
            Ok(())
        })
    }

    /// Inspects and changes the database, and updates the indexes in memory.
    fn heal(&self, change: impl FnOnce(&Connection, &Inspection) -> Result<()>) -> Result<Repair> {
        let found = {
            let mut writer = self.inner.writer()?;
            let transaction = writer.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let found = inspect(&transaction, true)?;
            change(&transaction, &found)?;
            // A change like any other: results found before it are not taken for current ones.
            transaction.execute("UPDATE collections SET seq = seq + 1", [])?;
            transaction.commit()?;
            found
        };
        let open: Vec<_> = lock(&self.inner.collections).values().cloned().collect();
        for shared in open {
            let changing = shared.change(&self.inner)?;
            shared.catch_up_now(&self.inner, &changing)?;
        }
        Ok(Repair {
            removed: found.damaged.into_iter().map(|(_, name, point, _)| (name, point)).collect(),
            n_fields_rebuilt: found.other_fields.len(),
        })
    }

    /// Gives back space on the disk and in the indexes of all collections, and forgets removals.
    ///
    /// # Errors
    /// [`Error::Sqlite`], [`Error::Io`], [`Error::Busy`].
    pub fn compact(&self) -> Result<()> {
        self.job("compact", "", || {
            let mut open = Vec::new();
            for name in self.list()? {
                match self.collection(&name) {
                    Ok(collection) => {
                        collection.shared.compact(&self.inner)?;
                        open.push(collection);
                    }
                    // Removed in between.
                    Err(Error::UnknownCollection { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            {
                let mut writer = self.inner.writer()?;
                let transaction =
                    writer.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
                let ids: Vec<i64> = transaction
                    .prepare("SELECT id FROM collections")?
                    .query_map([], |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?;
                for id in ids {
                    transaction.execute(&format!("DELETE FROM removed_{id}"), [])?;
                }
                transaction.execute("UPDATE collections SET pruned = seq", [])?;
                transaction.commit()?;
                writer.execute_batch("VACUUM")?;
            }
            self.checkpoint()
        })
    }

    /// Writes the index files of open collections, and moves the log into the database.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Sqlite`].
    pub fn checkpoint(&self) -> Result<()> {
        let open: Vec<_> = lock(&self.inner.collections).values().cloned().collect();
        for shared in open {
            shared.save_changes(&self.inner)?;
        }
        let writer = self.inner.writer()?;
        writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    /// Long operations that are under way or were interrupted.
    ///
    /// # Errors
    /// [`Error::Sqlite`].
    pub fn jobs(&self) -> Result<Vec<Job>> {
        self.inner.read(|connection| {
            let mut statement = connection.prepare("SELECT id, kind, state, detail FROM jobs ORDER BY id")?;
            let jobs = statement.query_map([], |row| {
                let (noted, detail): (String, String) = (row.get(2)?, row.get(3)?);
                let state = if is_running(&detail) { noted } else { "interrupted".to_owned() };
                Ok(Job { id: row.get(0)?, kind: row.get(1)?, state, detail })
            })?;
            Ok(jobs.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Records a long operation in the database while it runs.
    fn job<R>(&self, kind: &str, detail: &str, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let id = {
            // This repeats any operation of the same kind that was interrupted.
            let interrupted =
                self.jobs()?.into_iter().filter(|job| job.kind == kind && job.state == "interrupted");
            let writer = self.inner.writer()?;
            for job in interrupted {
                writer.execute("DELETE FROM jobs WHERE id = ?1", [job.id])?;
            }
            let pid = std::process::id();
            writer.execute(
                "INSERT INTO jobs(kind, state, detail) VALUES (?1, 'running', ?2)",
                params![kind, format!("{detail} (process {pid})")],
            )?;
            writer.last_insert_rowid()
        };
        let result = work();
        let ended = self
            .inner
            .writer()
            .and_then(|writer| Ok(writer.execute("DELETE FROM jobs WHERE id = ?1", [id])?));
        let result = result?;
        ended?;
        Ok(result)
    }
}

/// Puts the content of a backup where the new database is written, and takes away what an old store left.
fn restore_to(new: &Replacement<'_>, backup: &Path, folder: &Path, options: &Options) -> Result<()> {
    std::fs::copy(backup, new.temporary()).map_err(Error::io(backup))?;
    // The last changes of a store's database are in its log.
    let log = with_suffix(backup, "-wal");
    if log.exists() {
        std::fs::copy(&log, with_suffix(new.temporary(), "-wal")).map_err(Error::io(&log))?;
    }
    let copy = open_copy(new.temporary(), &options.sqlite(), backup)?;
    verify(&copy)?;
    copy.execute("UPDATE collections SET uid = random()", [])?;
    copy.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    copy.close().map_err(|(_, error)| error)?;
    // It would be read as the new store's.
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    for entry in entries.flatten().filter(|entry| is_own_name(Some(&entry.file_name()))) {
        if !is_same_file(&entry.path(), backup) {
            options.disk.remove(&entry.path()).map_err(Error::io(entry.path()))?;
        }
    }
    Ok(())
}

/// A copy that nobody else uses, with this build's tables; errors about its version name `original`.
fn open_copy(path: &Path, config: &SqliteConfig, original: &Path) -> Result<Connection> {
    let mut connection = sqlite::open_copy(path, config)?;
    // SQLite takes a file that was cut down to nothing for a new database.
    let is_empty: bool =
        connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))?;
    if is_empty {
        let (expected, found) = ("the tables of a store".to_owned(), "none".to_owned());
        return Err(Error::Corrupt { what: original.display().to_string(), expected, found });
    }
    schema::SCHEMA.migrate(&mut connection, original)?;
    Ok(connection)
}

/// What a look at every point of a database found.
#[derive(Default)]
struct Inspection {
    verification: Verification,
    /// Collection, its name, point, and what is wrong with it.
    damaged: Vec<(i64, String, u64, Error)>,
    /// Collections whose table of fields is not what the payloads say.
    other_fields: Vec<i64>,
    /// Collections that record a wrong number of points: the name, the recorded number, and the true one.
    other_counts: Vec<(String, i64, i64)>,
}

/// Reads everything. With `heal`, tables of fields are made anew if they differ; that needs a writing
/// transaction.
fn inspect(connection: &Connection, heal: bool) -> Result<Inspection> {
    let mut found = Inspection::default();
    let collections: Vec<(i64, String, String, i64)> = connection
        .prepare("SELECT id, name, config, n_points FROM collections ORDER BY id")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (id, name, config, said) in collections {
        let config = parse_config(&name, &config)?;
        let expected = fields::Expected::new(connection, &config.indexed)?;
        let mut points = connection.prepare(&format!("SELECT id, vector, payload, crc FROM points_{id}"))?;
        let mut points = points.query([])?;
        let mut n = 0i64;
        while let Some(row) = points.next()? {
            let point: i64 = row.get(0)?;
            n += 1;
            let whole = point_of(row, &config).and_then(|(_, payload)| {
                payload
                    .map(fields::parse)
                    .transpose()?
                    .map_or(Ok(()), |payload| expected.add(point, &payload))
            });
            match whole {
                Ok(()) => {}
                Err(error @ Error::Corrupt { .. }) => {
                    found.damaged.push((id, name.clone(), point as u64, error));
                }
                Err(error) => return Err(error),
            }
        }
        // Rows of a damaged point go with it.
        for (_, _, point, _) in found.damaged.iter().filter(|(collection, ..)| *collection == id) {
            let sql =
                format!("INSERT OR IGNORE INTO temp.expected_fields SELECT * FROM fields_{id} WHERE id = ?1");
            connection.execute(&sql, [*point as i64])?;
        }
        if expected.differs(id)? {
            if heal {
                expected.replace(id)?;
            }
            found.other_fields.push(id);
        }
        if said != n {
            found.other_counts.push((name, said, n));
        }
        found.verification.n_collections += 1;
        found.verification.n_points += n as usize;
    }
    found.verification.n_fields_rebuilt = found.other_fields.len();
    Ok(found)
}

impl Inspection {
    /// # Errors
    /// [`Error::Corrupt`] for the first thing that is not as it was written.
    fn checked(self) -> Result<Self> {
        if let Some((_, name, point, error)) = self.damaged.into_iter().next() {
            let what = format!("point {point} of {name:?}");
            return Err(match error {
                Error::Corrupt { expected, found, .. } => Error::Corrupt { what, expected, found },
                error => error,
            });
        }
        if let Some((name, expected, found)) = self.other_counts.first() {
            let what = format!("the number of points of {name:?}");
            return Err(Error::Corrupt { what, expected: expected.to_string(), found: found.to_string() });
        }
        Ok(Self { damaged: Vec::new(), ..self })
    }
}

/// # Errors
/// [`Error::Corrupt`].
fn check_integrity(connection: &Connection) -> Result<()> {
    let found: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if found == "ok" {
        return Ok(());
    }
    let what = "SQLite's integrity check".to_owned();
    Err(Error::Corrupt { what, expected: "ok".to_owned(), found })
}

/// For a copy that nobody else uses: checks everything, and makes anew what is derived from payloads.
fn verify(connection: &Connection) -> Result<Verification> {
    check_integrity(connection)?;
    let transaction = connection.unchecked_transaction()?;
    let found = inspect(&transaction, true)?.checked()?;
    transaction.commit()?;
    Ok(found.verification)
}

impl Inner {
    /// Removes files left by processes that ended in the middle of an operation.
    pub(super) fn clean(&self) {
        // A file that cannot be removed now is found again the next time.
        let _ = clean(&*self.options.disk, &self.folder);
    }
}

/// Whether the process that recorded an operation still runs; assumed if it cannot be known.
fn is_running(detail: &str) -> bool {
    let pid =
        detail.rsplit_once("(process ").and_then(|(_, rest)| rest.strip_suffix(')')?.parse::<u32>().ok());
    match pid {
        Some(pid) if cfg!(target_os = "linux") => Path::new("/proc").join(pid.to_string()).exists(),
        pid => pid.is_some(),
    }
}
