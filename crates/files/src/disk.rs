//! What durable files need from a file system, as a trait, so that tests can make each operation fail.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::Path,
};

/// The operations that change a disk. [`OsDisk`] is the real one; `testing::FaultyDisk` (feature `testing`)
/// fails where a test tells it to.
///
/// # Errors
/// All methods return those of the operating system.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Creates a file for reading and writing. It must not exist yet.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if there is a file of this name.
    fn create(&self, path: &Path) -> io::Result<File>;
    /// Opens a file for reading and appending, and creates it if there is none.
    ///
    /// # Errors
    /// Those of the operating system.
    fn append(&self, path: &Path) -> io::Result<File>;
    /// Writes all bytes.
    ///
    /// # Errors
    /// Those of the operating system; some of the bytes may have been written.
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()>;
    /// Cuts a file to a length.
    ///
    /// # Errors
    /// Those of the operating system.
    fn truncate(&self, file: &File, length: u64) -> io::Result<()>;
    /// Waits until a file's content is on the disk.
    ///
    /// # Errors
    /// Those of the operating system; then it is unknown whether the content is on the disk.
    fn sync(&self, file: &File) -> io::Result<()>;
    /// Renames a file over another one.
    ///
    /// # Errors
    /// Those of the operating system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Waits until a folder's list of names is on the disk.
    ///
    /// # Errors
    /// Those of the operating system.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// Those of the operating system.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).open(path)
    }

    fn append(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).append(true).create(true).open(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn truncate(&self, file: &File, length: u64) -> io::Result<()> {
        file.set_len(length)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        // Only Unix lets folders be synced.
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
}
