/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with packed weights and their products.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Rows are not whole blocks, or a file cannot be read.
    #[error(transparent)]
    Gguf(#[from] breakers_gguf::Error),
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
    /// The system has no memory for weights.
    #[error("no memory for {n_bytes} bytes of weights: {source}")]
    OutOfMemory {
        /// Bytes asked for.
        n_bytes: usize,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A row of weights is larger than any buffer of the device.
    #[error("a row of weights takes {row_bytes} bytes; a buffer of the device holds {limit}")]
    DeviceBuffer {
        /// Bytes of the row.
        row_bytes: usize,
        /// Bytes of the device's largest buffer.
        limit: usize,
    },
    /// A row beyond the last.
    #[error("there is no row {found} in a matrix of {n_rows}")]
    RowIndex {
        /// Rows of the matrix.
        n_rows: usize,
        /// The row asked for.
        found: usize,
    },
    /// The operands have different numbers of columns (input features).
    #[error("the matrix has {expected} columns, the other operand {found}")]
    Columns {
        /// Columns of the matrix.
        expected: usize,
        /// Columns of the other operand.
        found: usize,
    },
    /// An adapter changes outputs that the layer does not have.
    #[error("an adapter changes the outputs {found:?} of a layer that has {n_outputs}")]
    AdapterOutputs {
        /// Outputs of the layer.
        n_outputs: usize,
        /// The outputs that the adapter changes.
        found: std::ops::Range<usize>,
    },
    /// A linear layer has no matrices.
    #[error("a linear layer needs at least one matrix")]
    NoMatrices,
    /// There are several matrices where one is needed.
    #[error("one matrix is needed, {found} were given")]
    ManyMatrices {
        /// Matrices given.
        found: usize,
    },
    /// There is no product kernel for the format.
    #[error(
        "{format} with rows of {n_cols} has no product kernel: there are some for groups of whole 32 columns (16 in NVFP4) in rows \
         of whole 32"
    )]
    NoProduct {
        /// The format's name.
        format: String,
        /// Weights in a row.
        n_cols: usize,
    },
    /// A matrix is for inputs that are divided first, or rotated differently from those of another matrix of
    /// the layer.
    #[error("the matrix is for inputs that are divided first, or rotated otherwise than the layer's others")]
    InputBasis,
    /// Activations cannot be quantized, or there is no rotation of this length.
    #[error(transparent)]
    Cpu(Box<breakers_cpu::Error>),
    /// There are no kernels for the device.
    #[error(transparent)]
    Backend(Box<breakers_backend::Error>),
}

impl From<breakers_cpu::Error> for Error {
    fn from(error: breakers_cpu::Error) -> Self {
        Error::Cpu(Box::new(error))
    }
}

impl From<breakers_backend::Error> for Error {
    fn from(error: breakers_backend::Error) -> Self {
        Error::Backend(Box::new(error))
    }
}
