/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with the methods that quantize weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or a format that is refused.
    #[error(transparent)]
    Gguf(#[from] breakers_gguf::Error),
    /// Bytes or values of another number than the shape asks for.
    #[error("{what}: {expected} expected, {found} found")]
    Length {
        /// What is counted.
        what: &'static str,
        /// The number expected.
        expected: usize,
        /// The number found.
        found: usize,
    },
    /// A number that is infinite, or none, where finite ones are needed.
    #[error("{what} hold {found} in row {row}, column {col}; finite numbers are needed")]
    NotFinite {
        /// Whose numbers.
        what: &'static str,
        /// The row.
        row: usize,
        /// The column.
        col: usize,
        /// What stands there.
        found: f32,
    },
    /// Fewer calibration rows than a method needs.
    #[error("{expected} calibration rows are needed at least, {found} were seen")]
    TooFewRows {
        /// Rows needed.
        expected: u64,
        /// Rows seen.
        found: u64,
    },
    /// Statistics that a method needs and that were not collected.
    #[error("the method needs {needed}, which were not collected")]
    NoStatistics {
        /// What is needed.
        needed: &'static str,
    },
    /// A Hessian that no damping makes positive definite.
    #[error("the Hessian is indefinite at column {column}, even with {damping} of its mean diagonal added")]
    Indefinite {
        /// The column whose pivot is not positive.
        column: usize,
        /// The largest damping tried.
        damping: f32,
    },
    /// A method's setting that is out of range.
    #[error("{what}: {found} is out of range")]
    Setting {
        /// The setting.
        what: &'static str,
        /// The value found.
        found: f32,
    },
    /// Operands with different numbers of columns (input features).
    #[error("the matrix has {expected} columns, the other operand {found}")]
    Columns {
        /// Columns of the matrix.
        expected: usize,
        /// Columns of the other operand.
        found: usize,
    },
    /// Activations that cannot be quantized, or a length that has no rotation.
    #[error(transparent)]
    Cpu(Box<breakers_cpu::Error>),
}

impl From<breakers_cpu::Error> for Error {
    fn from(error: breakers_cpu::Error) -> Self {
        Error::Cpu(Box::new(error))
    }
}
