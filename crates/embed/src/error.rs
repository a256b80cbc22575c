use std::path::PathBuf;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a sentence encoder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The tokenizer's file is missing or invalid.
    #[error(transparent)]
    TokenizerJson(#[from] breakers_tokenizer_json::Error),
    /// A text that cannot be tokenized.
    #[error(transparent)]
    Tokenizer(#[from] breakers_tokenizer::Error),
    /// The weights cannot be used in a product.
    #[error(transparent)]
    Linear(#[from] breakers_linear::Error),
    /// The observer of matrix inputs has failed.
    #[error("what watches the inputs of matrices has failed: {0}")]
    Observer(#[source] breakers_core::BoxError),
    /// Attention failed.
    #[error(transparent)]
    Attention(#[from] breakers_kv_cache::Error),
    /// A hyperparameter is impossible, or asks for something that is not implemented.
    #[error("{name} is {found}, expected {expected}")]
    Hyperparameter {
        /// Its name in the file.
        name: String,
        /// The allowed values.
        expected: String,
        /// The value in the file.
        found: String,
    },
    /// A tensor is not in the file.
    #[error("tensor {name} is missing")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor's shape does not follow from the hyperparameters.
    #[error("tensor {name} has shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// The tensor.
        name: String,
        /// Rows, columns.
        expected: Vec<usize>,
        /// What the file says.
        found: Vec<usize>,
    },
    /// A tensor's element type cannot be read here.
    #[error("tensor {name} has elements of type {found}, expected F32, F16 or BF16")]
    TensorType {
        /// The tensor.
        name: String,
        /// What the file says.
        found: String,
    },
    /// A safetensors file is damaged.
    #[error("{path} is not a valid safetensors file", path = path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        source: safetensors::SafeTensorError,
    },
    /// The tokenizer has ids that the embedding table lacks.
    #[error("the tokenizer has {tokens} tokens, the embedding table {rows} rows")]
    Vocabulary {
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Rows of the table.
        rows: usize,
    },
    /// A result could not be read back from the device.
    #[error("a result could not be read back from the device: {reason}")]
    TensorData {
        /// What the backend says.
        reason: String,
    },
    /// A JSON file does not parse, or has other contents than expected.
    #[error("{what} is not valid JSON, or not of its format")]
    Json {
        /// What was read.
        what: &'static str,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn tensor_data(error: impl std::fmt::Debug) -> Self {
        Self::TensorData { reason: format!("{error:?}") }
    }
}

impl From<Error> for breakers_core::Error {
    fn from(error: Error) -> Self {
        Self::Engine(Box::new(error))
    }
}
