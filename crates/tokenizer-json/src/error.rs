use serde_json::Value;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a tokenizer.json.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The parts do not form a valid tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] breakers_tokenizer::Error),
    /// The model's type is not implemented.
    #[error(
        "model {found:?} is not supported; expected \"BPE\", \"Unigram\", \"WordLevel\" or \"WordPiece\""
    )]
    UnknownTokenizer {
        /// The model's type.
        found: String,
    },
    /// A merge rule does not consist of two tokens whose concatenation is a token.
    #[error("merge {index} is {merge}: {reason}")]
    InvalidMerge {
        /// Position in the list of merges.
        index: usize,
        /// The rule as it is written.
        merge: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file asks for something that is not implemented, or that no tokenizer should do.
    #[error("{what} of tokenizer.json: found {found}, expected {expected}")]
    TokenizerJson {
        /// The part of the file.
        what: &'static str,
        /// What was found there.
        found: String,
        /// What is supported.
        expected: &'static str,
    },
    /// JSON does not parse, or has other contents than expected.
    #[error("{what} is not valid JSON, or not of its format")]
    Json {
        /// What was read.
        what: &'static str,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// The file cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

pub(crate) fn unexpected(what: &'static str, found: impl Into<String>, expected: &'static str) -> Error {
    Error::TokenizerJson { what, found: found.into(), expected }
}

/// What a JSON value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "missing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
