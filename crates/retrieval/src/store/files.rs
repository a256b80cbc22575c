//! Which files are the store's: their names, and whether they are still where they were.

use super::{DATABASE, Inner};
use crate::{Error, Result};
use std::{
    ffi::OsStr,
    io::ErrorKind,
    path::{Path, PathBuf},
};

impl Inner {
    /// Sees that the database is still the file that was opened: what is written to one that was removed is
    /// nowhere.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn check_in_place(&self) -> Result<()> {
        let path = self.folder.join(DATABASE);
        if file_place(&path) == self.place {
            return Ok(());
        }
        let (kind, what) = (ErrorKind::NotFound, "the database was removed or replaced while it was open");
        Err(Error::io(path)(std::io::Error::new(kind, what)))
    }

    /// Whether a file is one of those that the store keeps in its folder, under whatever name.
    pub(super) fn owns(&self, path: &Path) -> Result<bool> {
        if is_same_file(path, &self.folder.join(DATABASE)) {
            return Ok(true);
        }
        let canonical = |path: &Path| path.canonicalize().map_err(Error::io(path));
        Ok(is_own_name(path.file_name()) && canonical(parent(path))? == canonical(&self.folder)?)
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether a store gives this name to a file of its folder.
pub(super) fn is_own_name(name: Option<&OsStr>) -> bool {
    let Some(name) = name.and_then(OsStr::to_str) else { return false };
    let is_index = || {
        let number = name.strip_prefix("index-").and_then(|rest| rest.strip_suffix(".bin"));
        number.is_some_and(|number| number.parse::<i64>().is_ok())
    };
    name.strip_prefix(DATABASE).is_some_and(|rest| rest.is_empty() || SIDECARS.contains(&rest)) || is_index()
}

/// What SQLite puts beside a database.
pub(super) const SIDECARS: [&str; 3] = ["-wal", "-shm", "-journal"];

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Which file a path leads to, by whatever name: device and number.
#[cfg(unix)]
pub(super) type FilePlace = (u64, u64);
#[cfg(not(unix))]
pub(super) type FilePlace = PathBuf;

/// The file that a path leads to, if there is one.
pub(super) fn file_place(path: &Path) -> Option<FilePlace> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok()
    }
    #[cfg(not(unix))]
    path.canonicalize().ok()
}

pub(super) fn is_same_file(a: &Path, b: &Path) -> bool {
    file_place(a).is_some_and(|a| file_place(b) == Some(a))
}
