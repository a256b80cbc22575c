use std::{
    io,
    path::{Path, PathBuf},
};

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a durable file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system failed.
    #[error("could not {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// What is at the path cannot be read or replaced as a file.
    #[error("{path}: expected a regular file, found {found}", path = path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there: a folder, a device, a pipe.
        found: &'static str,
    },
    /// A file does not match its checksums or its header.
    #[error("{path}: {what}: expected {expected}, found {found}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The part that is wrong.
        what: &'static str,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A line of a journal is damaged, and whole lines follow it, so it is not the end of an
    /// interrupted write.
    #[error("{path}, line {line}: expected {expected}, found {found}", path = path.display())]
    DamagedLine {
        /// The journal.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A record cannot be written as JSON.
    #[error("a record for {path} cannot be written as JSON: {source}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A record of a journal is not a JSON object, or is too long.
    #[error("a record for {path} is {found}; expected {expected}", path = path.display())]
    Record {
        /// The journal.
        path: PathBuf,
        /// What a record may be.
        expected: String,
        /// What was given.
        found: String,
    },
    /// An earlier write or sync of the journal failed. Open it again to find out what it holds.
    #[error("{path}: an earlier write failed; open the journal again", path = path.display())]
    Failed {
        /// The journal.
        path: PathBuf,
    },
    /// Another handle or process held the lock for longer than the caller was willing to wait.
    #[error("{path} is still locked by another handle or process after the time limit", path = path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.as_ref().to_owned(), source }
    }

    /// The operating system's error, if it was the cause: `StorageFull`, `PermissionDenied`,
    /// `NotFound` and so on.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
    }
}
