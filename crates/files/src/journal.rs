//! A journal: an append-only file of JSON lines with checksums.
//!
//! Each record is a JSON object on a line of its own. Its last member, `crc32`, is the CRC-32 (eight
//! hexadecimal digits) of the part of the line before that member. Any reader of JSON lines can read it, such
//! as `jq` and `pandas.read_json(lines=True)`.
//!
//! ```text
//! {"question":17,"correct":true,"crc32":"9c3a5f02"}
//! ```
//!
//! # After a crash
//! An interrupted write leaves an incomplete last line, or zeros where a page did not reach the disk. Opening
//! the journal cuts that off and reports it ([`Recovery::torn_bytes`]); reading the journal skips it. A
//! damaged line with whole lines after it is not an interrupted write, and an error.
//!
//! # Writers
//! Only one handle at a time can write, which a lock on the file ensures. Any number may read meanwhile
//! (except on Windows, where locks keep readers out). A failed write is undone, so writing can continue when
//! a full disk has room again. After a failed sync nobody knows what the disk holds, and the journal refuses
//! all writes until it is opened again.
//!
//! # Example
//! ```
//! use breakers_files::journal::{Journal, JournalConfig};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, PartialEq, Serialize, Deserialize)]
//! struct Answer {
//!     question: u32,
//!     correct: bool,
//! }
//!
//! let folder = tempfile::tempdir().unwrap();
//! let path = folder.path().join("answers.jsonl");
//! let mut journal = Journal::open(&path, JournalConfig::default())?;
//! journal.append(&Answer { question: 1, correct: true })?;
//! drop(journal);
//!
//! // The next day: go on where it ended.
//! let (mut journal, done) = Journal::resume::<Answer>(&path, JournalConfig::default())?;
//! assert_eq!(done, [Answer { question: 1, correct: true }]);
//! journal.append(&Answer { question: 2, correct: false })?;
//! # Ok::<(), breakers_files::Error>(())
//! ```

mod line;
mod reader;

use crate::{
    Disk, Error, OsDisk, Result,
    atomic::{folder_of, regular},
    lock::lock_within,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    io::{BufReader, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

pub use reader::Reader;

/// When a journal waits until its lines are on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SyncPolicy {
    /// After each record: once `append` has returned, the record survives a system crash.
    #[default]
    Each,
    /// With the first record after this time, and when the journal is closed. A system crash loses at most
    /// what was appended since the last sync; a process crash loses nothing.
    Every(Duration),
    /// When [`Journal::sync`] is called, and when the journal is closed.
    OnDemand,
}

/// How a journal is opened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct JournalConfig {
    /// When the journal waits for the disk.
    pub sync: SyncPolicy,
    /// How long to wait for another writer's lock.
    pub lock_wait: Duration,
    /// Whether to accept lines without a checksum, such as other programs write.
    pub accept_unchecked: bool,
    /// The longest line in bytes. A longer line counts as damaged when read, and is refused when written.
    pub max_line: usize,
    /// The disk that the journal is written to.
    pub disk: Arc<dyn Disk>,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            sync: SyncPolicy::Each,
            lock_wait: Duration::from_secs(5),
            accept_unchecked: false,
            max_line: 64 << 20,
            disk: Arc::new(OsDisk),
        }
    }
}

/// What opening a journal found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Recovery {
    /// The number of whole records.
    pub n_records: u64,
    /// The bytes of an interrupted write that were cut off.
    pub torn_bytes: u64,
}

/// A journal that is open for appending.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    config: JournalConfig,
    recovery: Recovery,
    /// Bytes that are whole.
    length: u64,
    state: State,
    /// When the oldest line that was not synced was written.
    unsynced_since: Option<Instant>,
}

#[derive(Debug, PartialEq)]
enum State {
    Good,
    /// Bytes beyond `length` could not be removed yet.
    Torn,
    /// A sync failed.
    Failed,
}

impl Journal {
    /// Opens a journal, or starts a new one, and checks every line.
    ///
    /// # Errors
    /// [`Error::Locked`] if another writer holds it for longer than the config waits, [`Error::DamagedLine`],
    /// [`Error::NotAFile`], [`Error::Io`].
    pub fn open(path: impl AsRef<Path>, config: JournalConfig) -> Result<Self> {
        Self::open_with(path.as_ref(), config, |_, _| Ok(()))
    }

    /// Opens a journal, or starts a new one, and returns all of its records.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Error::DamagedLine`] also for a record that is not a `T`.
    pub fn resume<T: DeserializeOwned>(
        path: impl AsRef<Path>,
        config: JournalConfig,
    ) -> Result<(Self, Vec<T>)> {
        let path = path.as_ref();
        let mut records = Vec::new();
        let journal = Self::open_with(path, config, |number, text| {
            records.push(line::record(text, path, number)?);
            Ok(())
        })?;
        Ok((journal, records))
    }

    fn open_with(
        path: &Path,
        config: JournalConfig,
        mut each: impl FnMut(u64, &str) -> Result<()>,
    ) -> Result<Self> {
        let mut file = open_locked(path, &config)?;
        file.seek(SeekFrom::Start(0)).map_err(Error::io("read", path))?;
        let handle = file.try_clone().map_err(Error::io("read", path))?;
        let mut lines = reader::Lines::new(BufReader::new(handle), path, &config);
        while let Some((number, text)) = lines.next_line()? {
            each(number, text)?;
        }
        let (mut length, recovery) = (lines.good_bytes(), lines.recovery());
        if lines.lacks_end() {
            // An editor may have left out the final line end, or a crash cut off the last byte.
            config.disk.write(&mut file, b"\n").map_err(Error::io("write", path))?;
            length += 1;
        }
        if recovery.torn_bytes > 0 {
            config.disk.truncate(&file, length).map_err(Error::io("cut", path))?;
            config.disk.sync(&file).map_err(Error::io("sync", path))?;
        }
        let (state, path) = (State::Good, path.to_owned());
        Ok(Self { path, file, config, recovery, length, state, unsynced_since: None })
    }

    /// What opening the journal found.
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a record. When this returns, the record is as safe as [`SyncPolicy`] promises. On an error the
    /// record is not in the journal, unless it was a sync that failed.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Record`] if the record is not a JSON object, or is too long; [`Error::Io`];
    /// [`Error::Failed`] after a sync failed.
    pub fn append<T: Serialize + ?Sized>(&mut self, record: &T) -> Result<()> {
        self.append_all([record])
    }

    /// Appends several records with one write and at most one sync: all of them or, on an error, none.
    ///
    /// A system crash in the middle may leave only the first ones.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_all<'a, T: Serialize + ?Sized + 'a>(
        &mut self,
        records: impl IntoIterator<Item = &'a T>,
    ) -> Result<()> {
        let mut bytes = Vec::new();
        for record in records {
            line::write(record, &mut bytes, self.config.max_line, &self.path)?;
        }
        if self.state == State::Failed {
            return Err(Error::Failed { path: self.path.clone() });
        }
        if self.state == State::Torn {
            self.take_back()?;
        }
        if let Err(source) = self.config.disk.write(&mut self.file, &bytes) {
            self.state = State::Torn;
            // If this fails, the next record tries again.
            let _ = self.take_back();
            return Err(Error::io("write", &self.path)(source));
        }
        self.length += bytes.len() as u64;
        let since = *self.unsynced_since.get_or_insert_with(Instant::now);
        match self.config.sync {
            SyncPolicy::Each => self.sync(),
            SyncPolicy::Every(interval) if since.elapsed() >= interval => self.sync(),
            SyncPolicy::Every(_) | SyncPolicy::OnDemand => Ok(()),
        }
    }

    /// Waits until all records are on the disk.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Failed`] after a sync failed.
    pub fn sync(&mut self) -> Result<()> {
        if self.state == State::Failed {
            return Err(Error::Failed { path: self.path.clone() });
        }
        if self.unsynced_since.take().is_some()
            && let Err(source) = self.config.disk.sync(&self.file)
        {
            // The system may have dropped what it could not write, and may not report it the next time.
            self.state = State::Failed;
            return Err(Error::io("sync", &self.path)(source));
        }
        Ok(())
    }

    fn take_back(&mut self) -> Result<()> {
        self.config.disk.truncate(&self.file, self.length).map_err(Error::io("cut", &self.path))?;
        self.state = State::Good;
        Ok(())
    }
}

/// Opens a file for appending and locks it, even if another process held it before.
fn open_locked(path: &Path, config: &JournalConfig) -> Result<File> {
    let begun = Instant::now();
    loop {
        let is_new = regular(path)?.is_none();
        let file = config.disk.append(path).map_err(Error::io("open", path))?;
        lock_within(&file, path, config.lock_wait.saturating_sub(begun.elapsed()))?;
        if is_new {
            config.disk.sync_folder(folder_of(path)).map_err(Error::io("sync the folder of", path))?;
        }
        // The previous holder of the lock may have removed or replaced the file.
        if is_at(&file, path)? {
            return Ok(file);
        }
    }
}

/// Whether an open file is the one at a path.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let open = file.metadata().map_err(Error::io("read", path))?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((open.dev(), open.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// On other systems an open file cannot be removed.
#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> Result<bool> {
    Ok(true)
}

impl Drop for Journal {
    fn drop(&mut self) {
        // A caller that must know whether it succeeded calls `sync`.
        let _ = self.sync();
    }
}
