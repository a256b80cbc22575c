use std::path::PathBuf;

use breakers_core::BoxError;
use breakers_gguf::Encoding;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with the methods that quantize weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or a format is refused.
    #[error(transparent)]
    Gguf(#[from] breakers_gguf::Error),
    /// A model cannot be read, or cannot process a text.
    #[error(transparent)]
    Model(Box<breakers_model::Error>),
    /// Predictions cannot be compared.
    #[error(transparent)]
    Sampling(#[from] breakers_core::SamplingError),
    /// The number of bytes or values does not match the shape.
    #[error("{what}: {expected} expected, {found} found")]
    Length {
        /// What is counted.
        what: &'static str,
        /// The number expected.
        expected: usize,
        /// The number found.
        found: usize,
    },
    /// A number is infinite or NaN where finite ones are needed.
    #[error("{what} hold {found} in row {row}, column {col}; finite numbers are needed")]
    NotFinite {
        /// Whose numbers.
        what: &'static str,
        /// The row.
        row: usize,
        /// The column.
        col: usize,
        /// What was found there.
        found: f32,
    },
    /// There are fewer calibration rows than a method needs.
    #[error("{expected} calibration rows are needed at least, {found} were seen")]
    TooFewRows {
        /// Rows needed.
        expected: u64,
        /// Rows seen.
        found: u64,
    },
    /// A method needs statistics that were not collected.
    #[error("the method needs {needed}, which were not collected")]
    NoStatistics {
        /// What is needed.
        needed: &'static str,
    },
    /// No damping makes the Hessian positive definite.
    #[error("the Hessian is indefinite at column {column}, even with {damping} of its mean diagonal added")]
    Indefinite {
        /// The column whose pivot is not positive.
        column: usize,
        /// The largest damping tried.
        damping: f32,
    },
    /// A method's setting is out of range.
    #[error("{what}: {found} is out of range")]
    Setting {
        /// The setting.
        what: &'static str,
        /// The value found.
        found: f32,
    },
    /// The operands have different numbers of columns (input features).
    #[error("the matrix has {expected} columns, the other operand {found}")]
    Columns {
        /// Columns of the matrix.
        expected: usize,
        /// Columns of the other operand.
        found: usize,
    },
    /// A method does not support a format.
    #[error("{method} is for {expected}; {found} is something else")]
    Unsuited {
        /// The method.
        method: String,
        /// The formats that it is for.
        expected: &'static str,
        /// The format asked for.
        found: Encoding,
    },
    /// A quantizer returned something other than the requested matrix.
    #[error("{method} was asked for {expected} and gave {found}")]
    WrongMatrix {
        /// The method.
        method: String,
        /// What was asked for.
        expected: String,
        /// What it gave.
        found: String,
    },
    /// An error about one tensor.
    #[error("tensor {name}: {source}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        source: BoxError,
    },
    /// A tensor is not in the file.
    #[error("tensor {name} is missing")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// There is less calibration text than a method needs.
    #[error(
        "{expected} tokens of text are needed, {found} are there (a remainder of a window does not count)"
    )]
    TooLittleText {
        /// Tokens needed.
        expected: usize,
        /// Whole windows of tokens found.
        found: usize,
    },
    /// The format does not exist in GGUF, and the output is a GGUF file.
    #[error("{name}: {encoding} is no format of GGUF; give the output a name that ends in .safetensors")]
    NotOfGguf {
        /// The tensor.
        name: String,
        /// The format asked for.
        encoding: Encoding,
    },
    /// The model does not allow this change of basis.
    #[error("what the method changes cannot be folded into this model: {reason}")]
    Unfoldable {
        /// Why not.
        reason: String,
    },
    /// A job's description has unknown words.
    #[error("unknown {what} {found:?}; expected {expected}")]
    Words {
        /// What the words should be.
        what: &'static str,
        /// What is possible.
        expected: String,
        /// The words.
        found: String,
    },
    /// Not even the smallest formats fit into the budget.
    #[error("the smallest formats take {expected} bytes, the budget is {found}")]
    Budget {
        /// Bytes of the matrices of the blocks in their smallest formats.
        expected: u64,
        /// Bytes allowed.
        found: u64,
    },
    /// A file or folder cannot be read or written.
    #[error("cannot read or write {path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// There is no rotation of this length.
    #[error(transparent)]
    Cpu(Box<breakers_cpu::Error>),
}

impl Error {
    /// An error about one tensor.
    pub(crate) fn in_tensor<E: Into<BoxError>>(name: &str) -> impl Fn(E) -> Self + use<'_, E> {
        move |source| Self::Tensor { name: name.to_owned(), source: source.into() }
    }
}

impl From<breakers_model::Error> for Error {
    fn from(error: breakers_model::Error) -> Self {
        Error::Model(Box::new(error))
    }
}

impl From<breakers_cpu::Error> for Error {
    fn from(error: breakers_cpu::Error) -> Self {
        Error::Cpu(Box::new(error))
    }
}
