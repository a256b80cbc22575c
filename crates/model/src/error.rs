use std::path::PathBuf;

use breakers_core::{BoxError, TokenId};
use breakers_gguf::Encoding;
use breakers_kv_cache::Error as CacheError;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a model, its tokenizer and its chat template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file, its metadata or a packed tensor.
    #[error(transparent)]
    Gguf(#[from] breakers_gguf::Error),
    /// Weights that no product can be made of.
    #[error(transparent)]
    Linear(#[from] breakers_linear::Error),
    /// A method that quantizes weights.
    #[error(transparent)]
    Quant(#[from] breakers_quant::Error),
    /// The cache of keys and values.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Logits that nothing can be chosen from.
    #[error(transparent)]
    Sampling(#[from] breakers_core::SamplingError),
    /// One step (or one segment) of a pass is the cause.
    #[error("step {step} of the pass: {source}")]
    AtStep {
        /// Its index.
        step: usize,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// The architecture is not implemented.
    #[error("architecture {found:?} is not supported; expected one of {known:?}")]
    UnknownArchitecture {
        /// The value of `general.architecture`.
        found: String,
        /// What is implemented.
        known: &'static [&'static str],
    },
    /// A model that turns texts into vectors was to be loaded as one that continues texts.
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
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
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
    /// Something about one tensor.
    #[error("tensor {name}: {source}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        source: BoxError,
    },
    /// Less text than a method needs to be calibrated with.
    #[error(
        "{expected} tokens of text are needed, {found} are there (a remainder of a window does not count)"
    )]
    TooLittleText {
        /// Tokens needed.
        expected: usize,
        /// Whole windows of tokens found.
        found: usize,
    },
    /// A format that GGUF lacks, for a GGUF file.
    #[error("{name}: {encoding} is no format of GGUF; give the output a name that ends in .safetensors")]
    NotOfGguf {
        /// The tensor.
        name: String,
        /// The format asked for.
        encoding: Encoding,
    },
    /// A format that a method has no codes for.
    #[error(
        "{name}: {method} chooses offsets of integers, which {encoding} has not; int4-g64 and its like have"
    )]
    Unsuited {
        /// The tensor.
        name: String,
        /// The method.
        method: &'static str,
        /// The format asked for.
        encoding: Encoding,
    },
    /// A change of basis that this model does not allow.
    #[error("the rotation cannot be folded into this model: {reason}")]
    Unfoldable {
        /// Why not.
        reason: String,
    },
    /// A window of text that is empty or too long.
    #[error("a window of {found} tokens; 1 to {limit} are possible")]
    WindowLength {
        /// Tokens that the model can see at a time.
        limit: usize,
        /// Tokens of the window.
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
    /// A safetensors file is damaged.
    #[cfg(feature = "bert")]
    #[error("{path} is not a valid safetensors file", path = path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        source: safetensors::SafeTensorError,
    },
    /// The tokenizer knows ids that the embedding table lacks.
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
    /// The kind of tokenizer is not implemented.
    #[error(
        "tokenizer model {found:?} is not supported; expected \"gpt2\" or \"llama\" in a GGUF file, \"BPE\", \
         \"Unigram\", \"WordLevel\" or \"WordPiece\" in a tokenizer.json"
    )]
    UnknownTokenizer {
        /// The value of `tokenizer.ggml.model`, or the model type in a tokenizer.json.
        found: String,
    },
    /// The rule that splits text into words is not implemented.
    #[error("pre-tokenizer {found:?} is not supported; the ids would differ from the model's own")]
    UnknownPreTokenizer {
        /// The value of `tokenizer.ggml.pre`.
        found: String,
    },
    /// An array of the vocabulary does not fit the number of tokens.
    #[error("{what} has {found} entries for {expected} tokens")]
    VocabularyLength {
        /// The array.
        what: &'static str,
        /// Number of tokens.
        expected: usize,
        /// Entries found.
        found: usize,
    },
    /// Two ids have the same text.
    #[error("tokens {first} and {second} are both {text:?}")]
    DuplicateToken {
        /// The text.
        text: String,
        /// The lower id.
        first: TokenId,
        /// The higher id.
        second: TokenId,
    },
    /// A merge rule does not consist of two tokens whose concatenation is a token.
    #[error("merge {index} is {merge:?}: {reason}")]
    InvalidMerge {
        /// Position in the list of merges.
        index: usize,
        /// The rule as it is written.
        merge: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A score by which merges are ordered is not a number.
    #[error("the score of token {token} is NaN")]
    InvalidScore {
        /// The token.
        token: TokenId,
    },
    /// A token that is to stand for a byte is not spelled `<0xXX>`.
    #[error("byte token {token} is {text:?}, expected <0x00> to <0xFF>")]
    InvalidByteToken {
        /// The token.
        token: TokenId,
        /// Its text.
        text: String,
    },
    /// A special token's id is outside of the vocabulary.
    #[error("{key} is {found}, outside of the vocabulary of {vocab_size}")]
    SpecialTokenOutOfRange {
        /// The metadata key.
        key: String,
        /// The id found.
        found: u64,
        /// Size of the vocabulary; ids below it are valid.
        vocab_size: usize,
    },
    /// A special token is to be added to every text, but the file does not say which one it is.
    #[error("{flag} is set, but the vocabulary has no {token} token")]
    MissingSpecialToken {
        /// The setting that asks for it.
        flag: &'static str,
        /// The token's role.
        token: &'static str,
    },
    /// Text falls back to bytes, but the vocabulary has no token for one of them.
    #[error("no token for the byte {byte:#04x}, and no token for unknown text")]
    MissingByte {
        /// The byte.
        byte: u8,
    },
    /// A text is too long to be encoded at once.
    #[error("a text of {found} bytes is longer than {limit}")]
    TextTooLong {
        /// Bytes of the text.
        found: usize,
        /// Bytes that it may have.
        limit: usize,
    },
    /// A token id is outside of the vocabulary.
    #[error("token {token} is outside of the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The token received.
        token: TokenId,
        /// Size of the vocabulary; ids below it are valid.
        vocab_size: usize,
    },
    /// A tokenizer.json describes something that is not implemented, or that no tokenizer should do.
    #[error("{what} of tokenizer.json: found {found}, expected {expected}")]
    TokenizerJson {
        /// The part of the file.
        what: &'static str,
        /// What was found there.
        found: String,
        /// What is understood.
        expected: &'static str,
    },
    /// The rules of a tokenizer.json fail on a text.
    #[error("the text cannot be tokenized")]
    Tokenize {
        /// Why.
        source: BoxError,
    },
    /// JSON that does not parse, or holds something else than expected.
    #[error("{what} is not valid JSON, or not of its format")]
    Json {
        /// What was read.
        what: &'static str,
        /// Where it breaks.
        source: serde_json::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A chat template that does not parse or render.
    #[error("the chat template fails")]
    ChatTemplate {
        /// Where and why.
        #[source]
        source: crate::chat::TemplateError,
    },
    /// A chat template refuses the conversation with a message of its own.
    #[error("the chat template refuses the conversation: {message}")]
    ChatRefused {
        /// The template's message.
        message: String,
    },
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

/// A failure below becomes the caller's own kind of error where there is one, and else keeps its cause.
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
