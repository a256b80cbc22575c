//! Locks between processes: a file that only one of them can hold at a time.

use crate::{Error, Result, atomic::regular};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::Path,
    time::{Duration, Instant},
};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// An exclusive lock on a file. It lasts until this is dropped or the process ends, however it ends.
///
/// The lock is advisory (`flock`, `LockFileEx`): it keeps out only those who ask for it. The empty file
/// stays; removing it would allow two processes to lock two files of the same name. On file systems without
/// locks nothing is locked.
///
/// ```
/// use breakers_files::{Error, FileLock};
/// use std::time::Duration;
///
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join(".lock");
/// let held = FileLock::exclusive(&path, Duration::ZERO)?;
/// assert!(FileLock::try_exclusive(&path)?.is_none());
/// let refused = FileLock::exclusive(&path, Duration::from_millis(5)).unwrap_err();
/// assert!(matches!(refused, Error::Locked { .. }));
/// drop(held);
/// FileLock::exclusive(&path, Duration::ZERO)?;
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct FileLock {
    // Never read: the lock ends when it is closed.
    _file: File,
}

impl FileLock {
    /// Takes the lock, waiting at most `wait` for another holder.
    ///
    /// # Errors
    /// [`Error::Locked`] after that time, [`Error::Io`], [`Error::NotAFile`].
    pub fn exclusive(path: impl AsRef<Path>, wait: Duration) -> Result<Self> {
        let path = path.as_ref();
        let file = Self::open(path)?;
        lock_within(&file, path, wait)?;
        Ok(Self { _file: file })
    }

    /// Takes the lock, or returns `None` if another holds it.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NotAFile`].
    pub fn try_exclusive(path: impl AsRef<Path>) -> Result<Option<Self>> {
        let path = path.as_ref();
        let file = Self::open(path)?;
        Ok(try_lock(&file, path)?.then_some(Self { _file: file }))
    }

    fn open(path: &Path) -> Result<File> {
        regular(path)?;
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        options.map_err(Error::io("open", path))
    }
}

/// Locks an open file, waiting at most `wait`.
pub(crate) fn lock_within(file: &File, path: &Path, wait: Duration) -> Result<()> {
    let begun = Instant::now();
    let mut pause = FIRST_PAUSE;
    while !try_lock(file, path)? {
        let left = wait.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(Error::Locked { path: path.to_owned() });
        }
        std::thread::sleep(pause.min(left));
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
    Ok(())
}

/// Tries to lock an open file, and returns whether this handle now holds the lock.
pub(crate) fn try_lock(file: &File, path: &Path) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        // On a file system without locks nobody else can hold one either.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(true),
        Err(TryLockError::Error(error)) => Err(Error::io("lock", path)(error)),
    }
}
