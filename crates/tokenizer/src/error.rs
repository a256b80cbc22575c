use breakers_core::TokenId;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a tokenizer or a chat template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file or its metadata.
    #[error(transparent)]
    Gguf(#[from] breakers_gguf::Error),
    /// The kind of tokenizer is not implemented.
    #[error("tokenizer model {found:?} is not supported; expected \"gpt2\" or \"llama\"")]
    UnknownTokenizer {
        /// The value of `tokenizer.ggml.model`.
        found: String,
    },
    /// The rule that splits text into words is not implemented.
    #[error("pre-tokenizer {found:?} is not supported; the ids would differ from the model's own")]
    UnknownPreTokenizer {
        /// The value of `tokenizer.ggml.pre`.
        found: String,
    },
    /// An array of the vocabulary does not match the number of tokens.
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
    /// A token that should stand for a byte is not spelled `<0xXX>`.
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
    /// A special token should be added to every text, but the file does not say which one.
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
    /// The rules of another crate ([`Encode`](crate::Encode)) failed on a text.
    #[error("the text cannot be tokenized")]
    Tokenize {
        /// The cause.
        source: breakers_core::BoxError,
    },
    /// JSON does not parse, or has other contents than expected.
    #[error("{what} is not valid JSON, or not of its format")]
    Json {
        /// What was read.
        what: &'static str,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A message contains the spelling of a control token, and there is no unused character left to mark it
    /// as text.
    #[error(
        "a message spells the control token {spelling:?}, and holds all characters that could tell it from one"
    )]
    NoMark {
        /// The spelling, at most 32 characters.
        spelling: String,
    },
    /// A chat template does not parse, or fails when it runs.
    #[error("the chat template fails")]
    ChatTemplate {
        /// Where and why.
        #[source]
        source: crate::TemplateError,
    },
    /// A chat template refuses the conversation with a message of its own.
    #[error("the chat template refuses the conversation: {message}")]
    ChatRefused {
        /// The template's message.
        message: String,
    },
}

impl From<Error> for breakers_core::Error {
    fn from(error: Error) -> Self {
        Self::Engine(Box::new(error))
    }
}
