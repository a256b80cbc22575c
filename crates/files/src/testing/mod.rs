//! A disk whose n-th operation fails. Repeat a piece of work, letting each of its operations fail in turn,
//! and check what is left.
//!
//! ```
//! use breakers_files::{Replacement, testing::{Fault, FaultyDisk}};
//!
//! let folder = tempfile::tempdir().unwrap();
//! let path = folder.path().join("file");
//! breakers_files::replace(&path, b"old")?;
//! let disk = FaultyDisk::default();
//! for n in 0.. {
//!     disk.countdown().start(n, Fault::Once);
//!     let result = Replacement::on(&disk, &path).and_then(|mut file| {
//!         file.put(b"new")?;
//!         file.commit()
//!     });
//!     let met = disk.countdown().stop();
//!     let content = std::fs::read(&path).unwrap();
//!     assert!(content == b"new" || (result.is_err() && content == b"old"));
//!     if !met {
//!         break;
//!     }
//! }
//! # Ok::<(), breakers_files::Error>(())
//! ```

use crate::{Disk, OsDisk};
use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
    sync::atomic::{AtomicI64, AtomicU8, Ordering},
};

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Fault {
    /// Only this operation fails.
    Once = 1,
    /// This operation and all later ones fail, as if the process had died or the disk were gone.
    FromThen = 2,
    /// As `FromThen`, but with the error that the disk is full, after half of the data has been written.
    DiskFull = 3,
}

impl Fault {
    /// All kinds of faults.
    pub const ALL: [Self; 3] = [Self::Once, Self::FromThen, Self::DiskFull];
}

/// Counts the operations that still succeed before a fault. It uses atomics, since SQLite calls it from C.
#[derive(Debug)]
pub struct Countdown {
    left: AtomicI64,
    fault: AtomicU8,
}

impl Default for Countdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Countdown {
    /// A countdown that has not been started.
    pub const fn new() -> Self {
        Self { left: AtomicI64::new(i64::MAX), fault: AtomicU8::new(0) }
    }

    /// Lets `n` operations succeed; the next one fails.
    pub fn start(&self, n: i64, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
        self.left.store(n, Ordering::SeqCst);
    }

    /// Ends all faults, and returns whether one occurred.
    pub fn stop(&self) -> bool {
        self.left.swap(i64::MAX, Ordering::SeqCst) < 0
    }

    /// Counts an operation, and returns the fault that it should have, if any.
    pub fn next(&self) -> Option<Fault> {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        match self.fault.load(Ordering::SeqCst) {
            1 if left == 0 => Some(Fault::Once),
            2 if left <= 0 => Some(Fault::FromThen),
            3 if left <= 0 => Some(Fault::DiskFull),
            _ => None,
        }
    }
}

/// A disk whose operations fail when a [`Countdown`] says so.
#[derive(Debug, Default)]
pub struct FaultyDisk(Countdown);

impl FaultyDisk {
    /// The countdown that decides which operation fails.
    pub fn countdown(&self) -> &Countdown {
        &self.0
    }

    fn check(&self) -> io::Result<()> {
        match self.0.next() {
            None => Ok(()),
            Some(Fault::DiskFull) => Err(io::Error::from(io::ErrorKind::StorageFull)),
            Some(_) => Err(io::Error::other("injected")),
        }
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.check()?;
        OsDisk.create(path)
    }

    fn append(&self, path: &Path) -> io::Result<File> {
        self.check()?;
        OsDisk.append(path)
    }

    fn truncate(&self, file: &File, length: u64) -> io::Result<()> {
        self.check()?;
        OsDisk.truncate(file, length)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let result = self.check();
        if result.is_err() {
            file.write_all(&bytes[..bytes.len() / 2])?;
        }
        result?;
        OsDisk.write(file, bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.check()?;
        OsDisk.sync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check()?;
        OsDisk.rename(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        OsDisk.sync_folder(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        OsDisk.remove(path)
    }
}
