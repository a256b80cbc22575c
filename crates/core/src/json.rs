use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

/// A JSON value, kept as text. Numbers keep their digits and objects the order of their keys, because a model
/// sees both.
///
/// # Example
/// ```
/// use breakers_core::Json;
///
/// let schema = Json::parse(r#"{"type": "object", "properties": {"b": {}, "a": {}}}"#)?;
/// assert!(schema.as_str().find("\"b\"") < schema.as_str().find("\"a\""));
/// assert!(Json::parse("{").is_err());
/// # Ok::<(), breakers_core::JsonError>(())
/// ```
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(Box<RawValue>);

impl Json {
    /// Reads one JSON value.
    ///
    /// # Errors
    /// [`JsonError`] if the text is not one JSON value.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        serde_json::from_str(text).map(Self).map_err(JsonError::new)
    }

    /// The JSON of anything that serializes.
    ///
    /// # Errors
    /// [`JsonError`] for what JSON cannot hold, such as a map whose keys are not strings.
    pub fn from_serialize(value: &(impl Serialize + ?Sized)) -> Result<Self, JsonError> {
        serde_json::value::to_raw_value(value).map(Self).map_err(JsonError::new)
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// Deserializes the value into a type of the caller's choice.
    ///
    /// # Errors
    /// [`JsonError`] if it does not fit.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, JsonError> {
        serde_json::from_str(self.as_str()).map_err(JsonError::new)
    }
}

impl PartialEq for Json {
    /// Compares the texts, including white space.
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Json {}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is not the JSON that was expected, or a value that JSON cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid JSON: {message}")]
pub struct JsonError {
    /// What is wrong, with line and column where there is a text.
    pub message: String,
}

impl JsonError {
    fn new(error: serde_json::Error) -> Self {
        Self { message: error.to_string() }
    }
}
