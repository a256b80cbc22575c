//! Uploaded files and files of results.

use std::collections::HashSet;
use std::fs::File;

use breakers_files::{Replacement, clean};
use rusqlite::{OptionalExtension as _, Row, params};

use super::{Result, Store, StoreError, int, uint};
use crate::api_error::ApiError;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Requests of a batch.
    Batch,
    /// Results of a batch.
    BatchOutput,
}

impl Purpose {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::BatchOutput => "batch_output",
        }
    }
}

/// A file that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileRow {
    pub(crate) id: String,
    pub(crate) tenant: String,
    pub(crate) name: String,
    pub(crate) purpose: String,
    pub(crate) bytes: u64,
    pub(crate) created: u64,
    pub(crate) expires: Option<u64>,
}

/// A part of a list.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// The part begins behind this one.
    pub(crate) after: Option<String>,
    pub(crate) limit: usize,
    pub(crate) is_ascending: bool,
}

const COLUMNS: &str = "id, tenant, name, purpose, bytes, created, expires";

fn file_of(row: &Row<'_>) -> rusqlite::Result<FileRow> {
    Ok(FileRow {
        id: row.get(0)?,
        tenant: row.get(1)?,
        name: row.get(2)?,
        purpose: row.get(3)?,
        bytes: uint(row.get(4)?),
        created: uint(row.get(5)?),
        expires: row.get::<_, Option<i64>>(6)?.map(uint),
    })
}

impl Store {
    /// Removes the bytes of files that have no row: those whose writer was killed.
    pub(super) fn remove_orphans(&self) -> Result<()> {
        let folder = self.folder.join("files");
        clean(self.disk, &folder)?;
        let ids: HashSet<String> = self.read(|connection| {
            let mut statement = connection.prepare("SELECT id FROM files")?;
            statement.query_map([], |row| row.get(0))?.collect()
        })?;
        let entries = std::fs::read_dir(&folder).map_err(|source| StoreError::Io {
            action: "read the folder",
            path: folder.clone(),
            source,
        })?;
        for entry in entries.flatten() {
            let is_ours = entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with("file-") && !ids.contains(name));
            if is_ours {
                // If it cannot be removed now, there is the next start.
                let _ = self.disk.remove(&entry.path());
            }
        }
        Ok(())
    }

    /// Begins a file.
    pub(crate) fn begin_file(&self, id: &str) -> Result<Replacement<'static>> {
        Ok(Replacement::on(self.disk, self.path_of(id))?)
    }

    /// Puts a file in place whose bytes have all been written.
    ///
    /// # Errors
    /// If all files together would be too large.
    pub(crate) fn add_file(&self, bytes: Replacement<'static>, file: &FileRow) -> Result<()> {
        self.check_room(file.bytes)?;
        bytes.commit()?;
        let added = self.write(|transaction| {
            // Another file may have been faster.
            self.check_room_in(transaction, file.bytes)?;
            self.insert_file(transaction, file)
        });
        // If the database failed, the row may be there all the same, so the bytes stay. Without a row they
        // are removed at the next start.
        if matches!(added, Err(StoreError::Refused(_))) {
            let _ = self.disk.remove(&self.path_of(&file.id));
        }
        added
    }

    fn check_room(&self, bytes: u64) -> Result<()> {
        self.check_room_in(&self.lock(), bytes)
    }

    fn check_room_in(&self, connection: &rusqlite::Connection, bytes: u64) -> Result<()> {
        let sql = "SELECT coalesce(sum(bytes), 0) FROM files";
        let used = connection.query_row(sql, [], |row| row.get(0)).map_err(|error| self.sql(error))?;
        let limit = self.config.data_bytes;
        if uint(used).saturating_add(bytes) > limit {
            return Err(ApiError::no_room(limit).into());
        }
        Ok(())
    }

    pub(super) fn insert_file(&self, transaction: &rusqlite::Transaction<'_>, file: &FileRow) -> Result<()> {
        // A file of results is made again if its maker was killed before its batch had ended.
        let sql = "INSERT OR REPLACE INTO files (id, tenant, name, purpose, bytes, created, expires)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let FileRow { id, tenant, name, purpose, bytes, created, expires } = file;
        let values = params![id, tenant, name, purpose, int(*bytes), int(*created), expires.map(int)];
        transaction.execute(sql, values).map_err(|error| self.sql(error))?;
        Ok(())
    }

    /// A tenant's file.
    ///
    /// # Errors
    /// 404 if it has none of this name.
    pub(crate) fn file(&self, tenant: &str, id: &str, now: u64) -> Result<FileRow> {
        let sql = format!(
            "SELECT {COLUMNS} FROM files WHERE id = ?1 AND tenant = ?2 AND (expires IS NULL OR expires > ?3)"
        );
        let found = self.read(|connection| {
            connection.query_row(&sql, params![id, tenant, int(now)], file_of).optional()
        })?;
        found.ok_or_else(|| ApiError::no_object("file", id).into())
    }

    /// A tenant's files, and whether there are more.
    ///
    /// # Errors
    /// If there is no file to begin behind.
    pub(crate) fn files(
        &self,
        tenant: &str,
        purpose: Option<&str>,
        page: &Page,
        now: u64,
    ) -> Result<(Vec<FileRow>, bool)> {
        let (sign, order) = if page.is_ascending { (">", "ASC") } else { ("<", "DESC") };
        let after: i64 = match &page.after {
            None if page.is_ascending => 0,
            None => i64::MAX,
            Some(id) => {
                let sql = "SELECT n FROM files WHERE id = ?1 AND tenant = ?2";
                let found = self.read(|connection| {
                    connection.query_row(sql, params![id, tenant], |row| row.get(0)).optional()
                })?;
                found.ok_or_else(|| {
                    ApiError::field("after", format!("`after`: there is no file {id:.100?}"))
                })?
            }
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM files WHERE tenant = ?1 AND n {sign} ?2 AND (?3 IS NULL OR purpose = ?3)
             AND (expires IS NULL OR expires > ?4) ORDER BY n {order} LIMIT ?5"
        );
        let mut files: Vec<FileRow> = self.read(|connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let values = params![tenant, after, purpose, int(now), int(page.limit as u64 + 1)];
            statement.query_map(values, file_of)?.collect()
        })?;
        let has_more = files.len() > page.limit;
        files.truncate(page.limit);
        Ok((files, has_more))
    }

    /// Deletes a tenant's file.
    ///
    /// # Errors
    /// 404 if it has none of this name, 409 if a batch still reads it.
    pub(crate) fn delete_file(&self, tenant: &str, id: &str, now: u64) -> Result<()> {
        self.file(tenant, id, now)?;
        self.write(|transaction| {
            let sql = "SELECT id FROM batches WHERE input = ?1
                AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling')";
            let reader: Option<String> = transaction
                .query_row(sql, [id], |row| row.get(0))
                .optional()
                .map_err(|error| self.sql(error))?;
            if let Some(batch) = reader {
                return Err(ApiError::conflict(format!("the batch {batch} still reads the file {id}")).into());
            }
            transaction.execute("DELETE FROM files WHERE id = ?1", [id]).map_err(|error| self.sql(error))?;
            Ok(())
        })?;
        // Without a row the bytes are an orphan, which the next start removes at the latest.
        let _ = self.disk.remove(&self.path_of(id));
        Ok(())
    }

    /// Opens the bytes of a file.
    pub(crate) fn open_file(&self, id: &str) -> Result<File> {
        Ok(breakers_files::open(self.path_of(id))?)
    }

    /// Deletes files that have expired and answers of jobs that are too old.
    pub(crate) fn sweep(&self, now: u64) -> Result<()> {
        let ids: Vec<String> = self.write(|transaction| {
            let gone = "expires <= ?1 AND id NOT IN (SELECT input FROM batches
                WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling'))";
            let delete = || {
                let mut statement =
                    transaction.prepare(&format!("DELETE FROM files WHERE {gone} RETURNING id"))?;
                let ids =
                    statement.query_map([int(now)], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
                let old = now.saturating_sub(self.config.job_time.as_secs());
                transaction.execute("DELETE FROM jobs WHERE ended < ?1", [int(old)])?;
                Ok(ids)
            };
            delete().map_err(|error| self.sql(error))
        })?;
        for id in ids {
            let _ = self.disk.remove(&self.path_of(&id));
        }
        Ok(())
    }
}
