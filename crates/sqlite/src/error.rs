use std::path::PathBuf;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a database.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The database's file is not a regular file, or the operating system failed.
    #[error(transparent)]
    Files(#[from] breakers_files::Error),
    /// Another connection or process held the lock for longer than the caller was willing to wait.
    #[error("{path} is still locked by another connection or process after the time limit", path = path.display())]
    Locked {
        /// The database.
        path: PathBuf,
    },
    /// SQLite failed.
    #[error("{path}: SQLite: {source}", path = path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
    /// The database belongs to another program, or to a later version of this one.
    #[error("{path} has schema version {found} of {owner}; this build knows versions up to {expected}",
        path = path.display(), owner = if *foreign { "another program" } else { "this program" })]
    Schema {
        /// The database.
        path: PathBuf,
        /// The latest version that is known.
        expected: i64,
        /// The version that was found.
        found: i64,
        /// Whether the database belongs to another program.
        foreign: bool,
    },
    /// SQLite refused a setting, without which durability or concurrency would be less than asked for.
    #[error("{path}: SQLite keeps {setting} at {found}; expected {expected}", path = path.display())]
    Setting {
        /// The database.
        path: PathBuf,
        /// The pragma.
        setting: &'static str,
        /// What was asked for.
        expected: String,
        /// What SQLite answered.
        found: String,
    },
}
