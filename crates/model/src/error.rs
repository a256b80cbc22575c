use std::path::PathBuf;

use breakers_core::BoxError;
use breakers_kv_cache::Error as CacheError;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file, its metadata or a packed tensor.
    #[error(transparent)]
    Gguf(#[from] breakers_gguf::Error),
    /// The tokenizer or the chat template.
    #[error(transparent)]
    Tokenizer(#[from] breakers_tokenizer::Error),
    /// The weights cannot be used in a product.
    #[error(transparent)]
    Linear(#[from] breakers_linear::Error),
    /// The cache of keys and values.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// No token can be chosen from the logits.
    #[error(transparent)]
    Sampling(#[from] breakers_core::SamplingError),
    /// One step (or one segment) of a pass is at fault.
    #[error("step {step} of the pass: {source}")]
    AtStep {
        /// Its index.
        step: usize,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A part of a model cannot consist of these layers, or is asked for what another part has.
    #[error(
        "layers {found:?} of a model with {limit}: the first part has layer 0 and all ends, no part is empty"
    )]
    Layers {
        /// The layers.
        found: std::ops::Range<usize>,
        /// Layers of the model.
        limit: usize,
    },
    /// A stage of the model, in another process, cannot be used.
    #[error("stage {stage}: {message}")]
    Stage {
        /// Which one.
        stage: String,
        /// What is wrong with it.
        message: String,
    },
    /// The architecture is not implemented.
    #[error("architecture {found:?} is not supported; expected one of {known:?}")]
    UnknownArchitecture {
        /// The value of `general.architecture`.
        found: String,
        /// What is implemented.
        known: &'static [&'static str],
    },
    /// The model turns texts into vectors, and cannot continue texts.
    #[error(
        "{path} is a {found:?} model: it turns texts into vectors and continues none",
        path = path.display()
    )]
    NotCausal {
        /// The model's file or folder.
        path: PathBuf,
        /// Its architecture.
        found: String,
    },
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
    /// There are hyperparameters that are not implemented: without them the model would compute something
    /// other than what it was trained for.
    #[error("the file sets {}, which {} not implemented", .names.join(", "), if .names.len() == 1 { "is" } else { "are" })]
    UnreadKeys {
        /// Their names in the file.
        names: Vec<String>,
    },
    /// There are tensors that are not used: without them the model would compute something other than what it
    /// was trained for.
    #[error("the file has {} tensors that a {architecture} model of {n_blocks} blocks does not use: {}", .names.len(), listed(.names))]
    UnreadTensors {
        /// The architecture.
        architecture: &'static str,
        /// The blocks that the file says it has.
        n_blocks: usize,
        /// Their names.
        names: Vec<String>,
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
    /// An error about one tensor.
    #[error("tensor {name}: {source}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        source: BoxError,
    },
    /// A window of text is empty or too long.
    #[error("a window of {found} tokens; 1 to {limit} are possible")]
    WindowLength {
        /// Tokens that the model can see at a time.
        limit: usize,
        /// Tokens of the window.
        found: usize,
    },
    /// The model cannot have a context of this length.
    #[error("a context of {found} tokens; the model can have 1 to {limit}")]
    ContextLength {
        /// Tokens that the model was trained for.
        limit: usize,
        /// Tokens asked for.
        found: usize,
    },
    /// A block beyond the last.
    #[error("there is no block {found} in a model of {n_blocks}")]
    BlockIndex {
        /// Blocks of the model.
        n_blocks: usize,
        /// The block asked for.
        found: usize,
    },
    /// A tensor is not in the file.
    #[error("tensor {name} is missing")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// The tokenizer has ids that the embedding table lacks.
    #[error("the tokenizer has {tokens} tokens, the embedding table {rows} rows")]
    Vocabulary {
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Rows of the table.
        rows: usize,
    },
    /// The observer of matrix inputs has failed.
    #[error("what watches the inputs of matrices has failed: {0}")]
    Observer(#[source] BoxError),
    /// A result could not be read back from the device.
    #[error("a result could not be read back from the device: {reason}")]
    TensorData {
        /// What the backend says.
        reason: String,
    },
    /// JSON does not parse, or has other contents than expected.
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

/// The first names of a list.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

impl Error {
    /// An error about one tensor.
    pub(crate) fn in_tensor<E: Into<BoxError>>(name: &str) -> impl Fn(E) -> Self + use<'_, E> {
        move |source| Self::Tensor { name: name.to_owned(), source: source.into() }
    }

    pub(crate) fn tensor_data(error: impl std::fmt::Debug) -> Self {
        Self::TensorData { reason: format!("{error:?}") }
    }
}

/// An error from below becomes the same kind of error of `breakers-core` if there is one, and otherwise keeps
/// its cause.
impl Error {
    /// The same error with the step that caused it.
    pub(crate) fn at_step(self, step: usize) -> Self {
        Self::AtStep { step, source: Box::new(self) }
    }
}

impl From<Error> for breakers_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Sampling(error) => error.into(),
            Error::Cache(CacheError::Step(error)) => error.into(),
            Error::AtStep { source, .. } => (*source).into(),
            error => Self::Engine(Box::new(error)),
        }
    }
}
