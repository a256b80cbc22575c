use std::path::PathBuf;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the vector store and its indexes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A vector of another length than the index or collection has.
    #[error("{what} has {found} numbers; expected {expected}")]
    Dimension {
        /// What was measured.
        what: &'static str,
        /// The dimension of the index or collection.
        expected: usize,
        /// The length of the vector.
        found: usize,
    },
    /// A dimension that cannot be indexed.
    #[error("dimension {found} is not within 1 to {max}")]
    DimensionRange {
        /// The dimension that was asked for.
        found: usize,
        /// The largest that is supported.
        max: usize,
    },
    /// A number that is NaN, infinite, or too large to be squared and summed in 32 bits.
    #[error("{what}: number {index} is {value}; finite numbers of magnitude below {max:e} are needed")]
    NotFinite {
        /// Where the number is.
        what: &'static str,
        /// Its index there.
        index: usize,
        /// The number.
        value: f32,
        /// The bound on magnitudes.
        max: f32,
    },
    /// A vector that its collection's element type cannot hold.
    #[error(
        "number {index} is {value}; as {element} the largest number of a vector must be within {least:e} to {most:e}"
    )]
    ElementRange {
        /// The element type.
        element: &'static str,
        /// The index of the vector's largest number.
        index: usize,
        /// That number.
        value: f32,
        /// The least magnitude that it may have.
        least: f32,
        /// The greatest magnitude that it may have.
        most: f32,
    },
    /// A vector of zeros has no direction, and cosine compares directions.
    #[error("{what} is zero; the cosine metric needs a direction")]
    ZeroVector {
        /// What is zero.
        what: &'static str,
    },
    /// A parameter is out of its range.
    #[error("{name} is {found}; expected {expected}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// What is allowed.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The index is full.
    #[error("an index holds at most {max} vectors")]
    Full {
        /// The limit.
        max: usize,
    },
    /// There is no point with this id.
    #[error("no point has the id {id}")]
    UnknownPoint {
        /// The id asked for.
        id: u64,
    },
    /// There is no collection with this name.
    #[error("there is no collection {name:?}")]
    UnknownCollection {
        /// The name asked for.
        name: String,
    },
    /// The collection that a handle refers to was removed.
    #[error("the collection {name:?} was removed")]
    CollectionRemoved {
        /// The name that it had.
        name: String,
    },
    /// A lock was held by another thread or process for longer than the time limit.
    #[error("{what} is held by others for longer than {limit:?}")]
    Busy {
        /// The lock that was waited for.
        what: &'static str,
        /// For how long.
        limit: std::time::Duration,
    },
    /// A collection with this name exists already, with other settings.
    #[error("the collection {name:?} exists with other settings: expected {expected}, found {found}")]
    CollectionExists {
        /// The name asked for.
        name: String,
        /// What was asked for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// An index file is damaged. The store rebuilds such a file from SQLite by itself.
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
    /// A record of the database is not as this crate wrote it.
    #[error("the database is damaged: {what}: expected {expected}, found {found}")]
    Corrupt {
        /// The part that is wrong.
        what: String,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A database of a later version of this crate, or of another program.
    #[error("{path} has schema version {found}; this build knows versions up to {expected}", path = path.display())]
    SchemaVersion {
        /// The database.
        path: PathBuf,
        /// The latest version that is known.
        expected: i64,
        /// The version that was found.
        found: i64,
    },
    /// A filter that cannot be evaluated.
    #[error("filter: {problem}")]
    Filter {
        /// What is wrong with it.
        problem: String,
    },
    /// SQLite failed; a write that was not acknowledged was not done.
    #[error("SQLite: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The operating system failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A payload is nested so deep that it could not be read back.
    #[error("the payload is nested more than {max} deep")]
    PayloadDepth {
        /// How deep it may be nested.
        max: usize,
    },
    /// A payload is not a JSON object, or cannot be written as one.
    #[error("payload: {0}")]
    Json(#[from] serde_json::Error),
    /// A file cannot be written or replaced.
    #[error(transparent)]
    Files(Box<breakers_files::Error>),
    /// The database is locked by another process, or SQLite lacks something that the store needs.
    #[error(transparent)]
    Database(Box<breakers_sqlite::Error>),
    /// There is no rotation for a vector of this length.
    #[error(transparent)]
    Cpu(Box<breakers_cpu::Error>),
    /// There are no kernels for this device.
    #[cfg(feature = "device")]
    #[error(transparent)]
    Backend(Box<breakers_backend::Error>),
}

impl From<breakers_cpu::Error> for Error {
    fn from(error: breakers_cpu::Error) -> Self {
        Self::Cpu(Box::new(error))
    }
}

#[cfg(feature = "device")]
impl From<breakers_backend::Error> for Error {
    fn from(error: breakers_backend::Error) -> Self {
        Self::Backend(Box::new(error))
    }
}

impl From<breakers_files::Error> for Error {
    fn from(error: breakers_files::Error) -> Self {
        match error {
            breakers_files::Error::Io { path, source, .. } => Self::Io { path, source },
            breakers_files::Error::Damaged { path, what, expected, found } => {
                Self::Damaged { path, what, expected, found }
            }
            error => Self::Files(Box::new(error)),
        }
    }
}

impl From<breakers_sqlite::Error> for Error {
    fn from(error: breakers_sqlite::Error) -> Self {
        match error {
            breakers_sqlite::Error::Files(error) => error.into(),
            breakers_sqlite::Error::Sqlite { source, .. } => Self::Sqlite(source),
            breakers_sqlite::Error::Schema { path, expected, found, .. } => {
                Self::SchemaVersion { path, expected, found }
            }
            error => Self::Database(Box::new(error)),
        }
    }
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, source }
    }

    pub(crate) fn parameter(name: &'static str, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Parameter { name, expected: expected.into(), found: found.to_string() }
    }
}
