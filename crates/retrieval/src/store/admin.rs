//! Care: backup and restore, verification, compaction, leftovers.

use super::{DATABASE, Inner, Options, Store, collection::change_crc, parse_config, schema, shared::lock};
use crate::{Error, Result};
use breakers_files::{Replacement, clean};
use rusqlite::{Connection, params};
use std::path::Path;

/// What a verification found: nothing wrong, or it would have been an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Verification {
    /// Collections.
    pub n_collections: usize,
    /// Points, each of which has the checksum that it was written with.
    pub n_points: usize,
}

/// A piece of work that was begun, as it stands in the database.
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
    /// Writes a copy of the database as it is now to a file; reading and writing go on. The file has its name only once
    /// it is whole, verified and on the disk.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Sqlite`], [`Error::Corrupt`] if the copy is not what it should be.
    pub fn backup(&self, path: impl AsRef<Path>) -> Result<Verification> {
        let path = path.as_ref();
        let detail = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        self.job("backup", &detail, || {
            let copy = Replacement::by_name_on(&*self.inner.options.disk, path)?;
            let name = copy.temporary().to_str().ok_or_else(|| {
                Error::parameter("the backup's path", "UTF-8", copy.temporary().to_string_lossy())
            })?;
            self.inner.read(|connection| Ok(connection.execute("VACUUM INTO ?1", [name])?))?;
            let verification = verify(&Connection::open(copy.temporary())?)?;
            copy.commit()?;
            Ok(verification)
        })
    }

    /// Makes a store out of a backup, in a folder that holds none.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the folder holds a store, [`Error::SchemaVersion`], [`Error::Corrupt`] and
    /// [`Error::Sqlite`] if the backup is none or damaged; no store is there then.
    pub fn restore(backup: impl AsRef<Path>, folder: impl AsRef<Path>, options: Options) -> Result<Self> {
        let (backup, folder) = (backup.as_ref(), folder.as_ref());
        let path = folder.join(DATABASE);
        if path.exists() {
            return Err(Error::parameter("folder", "a folder without store", path.display()));
        }
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let new = Replacement::by_name_on(&*options.disk, &path)?;
        std::fs::copy(backup, new.temporary()).map_err(Error::io(backup))?;
        let mut copy = Connection::open(new.temporary())?;
        schema::migrate(&mut copy, backup)?;
        verify(&copy)?;
        copy.execute("UPDATE collections SET uid = random()", [])?;
        copy.close().map_err(|(_, error)| error)?;
        new.commit()?;
        Self::open_with(folder, options)
    }

    /// Reads everything and compares checksums.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first thing that is wrong, [`Error::Sqlite`].
    pub fn verify(&self) -> Result<Verification> {
        self.inner.read(|connection| {
            let transaction = connection.unchecked_transaction()?;
            verify(&transaction)
        })
    }

    /// Gives room on the disk back, and forgets removals; index files older than now are rebuilt when they are opened.
    ///
    /// # Errors
    /// [`Error::Sqlite`], [`Error::Io`].
    pub fn compact(&self) -> Result<()> {
        self.job("compact", "", || {
            {
                let mut writer = lock(&self.inner.writer);
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

    /// Writes the index files of open collections, and the log into the database.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Sqlite`].
    pub fn checkpoint(&self) -> Result<()> {
        let open: Vec<_> =
            lock(&self.inner.collections).values().filter_map(std::sync::Weak::upgrade).collect();
        for shared in open {
            shared.save_changes()?;
        }
        let writer = lock(&self.inner.writer);
        writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    /// Work that is under way, or was interrupted.
    ///
    /// # Errors
    /// [`Error::Sqlite`].
    pub fn jobs(&self) -> Result<Vec<Job>> {
        self.inner.read(|connection| {
            let mut statement = connection.prepare("SELECT id, kind, state, detail FROM jobs ORDER BY id")?;
            let jobs = statement.query_map([], |row| {
                Ok(Job { id: row.get(0)?, kind: row.get(1)?, state: row.get(2)?, detail: row.get(3)? })
            })?;
            Ok(jobs.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Notes a piece of work in the database while it is done.
    fn job<R>(&self, kind: &str, detail: &str, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let id = {
            let writer = lock(&self.inner.writer);
            let pid = std::process::id();
            // Of work of this kind that was interrupted before, this is the repetition.
            writer.execute("DELETE FROM jobs WHERE kind = ?1 AND state = 'interrupted'", [kind])?;
            writer.execute(
                "INSERT INTO jobs(kind, state, detail) VALUES (?1, 'running', ?2)",
                params![kind, format!("{detail} (process {pid})")],
            )?;
            writer.last_insert_rowid()
        };
        let result = work();
        let ended = lock(&self.inner.writer).execute("DELETE FROM jobs WHERE id = ?1", [id]);
        let result = result?;
        ended?;
        Ok(result)
    }
}

fn verify(connection: &Connection) -> Result<Verification> {
    let text: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    let corrupt =
        |what: String, expected: String, found: String| Err(Error::Corrupt { what, expected, found });
    if text != "ok" {
        return corrupt("SQLite's integrity check".to_owned(), "ok".to_owned(), text);
    }
    let mut found = Verification::default();
    let mut collections = connection.prepare("SELECT id, name, config, n_points FROM collections")?;
    let mut rows = collections.query([])?;
    while let Some(row) = rows.next()? {
        let (id, name, config): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let config = parse_config(&name, &config)?;
        let mut points = connection.prepare(&format!("SELECT id, vector, payload, crc FROM points_{id}"))?;
        let mut points = points.query([])?;
        let mut n = 0i64;
        while let Some(row) = points.next()? {
            let id: i64 = row.get(0)?;
            let vector = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
            let payload = row.get_ref(2)?.as_str_or_null().map_err(rusqlite::Error::from)?;
            let (expected, crc) = (row.get::<_, i64>(3)?, change_crc(id as u64, vector, payload));
            if expected != crc {
                return corrupt(
                    format!("point {id} of {name:?}"),
                    format!("checksum {expected:08x}"),
                    format!("{crc:08x}"),
                );
            }
            config.element.decode(vector, config.dimension)?;
            n += 1;
        }
        let expected: i64 = row.get(3)?;
        if n != expected {
            return corrupt(format!("the points of {name:?}"), expected.to_string(), n.to_string());
        }
        found.n_collections += 1;
        found.n_points += n as usize;
    }
    Ok(found)
}

impl Inner {
    /// Takes away what processes left that ended in the middle of something.
    pub(super) fn clean(&self) {
        // What cannot be removed now is found the next time.
        let _ = clean(&*self.options.disk, &self.folder);
        // Jobs of processes that are gone; those that run hold on to their row by ending it themselves.
        let running = format!("%(process {})", std::process::id());
        let _ = lock(&self.writer).execute(
            "UPDATE jobs SET state = 'interrupted' WHERE state = 'running' AND detail NOT LIKE ?1",
            [running],
        );
    }
}
