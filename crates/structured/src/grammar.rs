use breakers_core::{Json, ResponseFormat};

use crate::SchemaOptions;

/// What a text may be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Grammar {
    /// JSON that a schema accepts, with the default [`SchemaOptions`]: all of it is enforced, properties in
    /// the order in which the schema declares them.
    JsonSchema(Json),
    /// JSON that a schema accepts, with other options.
    JsonSchemaWith(Json, SchemaOptions),
    /// Any JSON value.
    AnyJson,
    /// Any JSON object.
    AnyJsonObject,
    /// A text that the whole of a regular expression matches, in the syntax of Rust's crate `regex`, without
    /// looking around.
    Regex(String),
    /// A context-free grammar in the syntax of Lark, as `llguidance` reads it. It begins with the rule
    /// `start`.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

impl Grammar {
    /// The grammar of the answer that a request asks for; `None` if it may be any text.
    ///
    /// # Example
    /// ```
    /// use breakers_core::ResponseFormat;
    /// use breakers_structured::Grammar;
    ///
    /// assert_eq!(Grammar::of_response(&ResponseFormat::JsonObject), Some(Grammar::AnyJsonObject));
    /// let digits = ResponseFormat::Regex("[0-9]+".to_owned());
    /// assert_eq!(Grammar::of_response(&digits), Some(Grammar::Regex("[0-9]+".to_owned())));
    /// assert_eq!(Grammar::of_response(&ResponseFormat::Text), None);
    /// ```
    pub fn of_response(format: &ResponseFormat) -> Option<Self> {
        match format {
            ResponseFormat::JsonObject => Some(Self::AnyJsonObject),
            ResponseFormat::JsonSchema(schema) => {
                let options = SchemaOptions::default().with_strict(schema.strict);
                Some(Self::JsonSchemaWith(schema.schema.clone(), options))
            }
            ResponseFormat::Regex(regex) => Some(Self::Regex(regex.clone())),
            ResponseFormat::Lark(grammar) => Some(Self::Lark(grammar.clone())),
            ResponseFormat::Choice(texts) => Some(Self::Choice(texts.clone())),
            _ => None,
        }
    }

    /// Its text, for limits.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::JsonSchema(json) | Self::JsonSchemaWith(json, _) => json.as_str().len(),
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
            Self::AnyJson | Self::AnyJsonObject => 0,
        }
    }

    /// Levels of nesting and what they are of: brackets, and for a schema the values that it describes. A
    /// value within another takes two brackets, its own and that of `properties`.
    pub(crate) fn depth(&self) -> (usize, &'static str) {
        match self {
            Self::JsonSchema(json) | Self::JsonSchemaWith(json, _) => {
                (depth(json.as_str(), true).div_ceil(2), "levels of nested values")
            }
            Self::Regex(text) | Self::Lark(text) => (depth(text, false), "levels of brackets"),
            _ => (0, ""),
        }
    }
}

/// Levels of brackets in a text, those in strings of JSON left out.
pub(crate) fn depth(text: &str, has_strings: bool) -> usize {
    let (mut now, mut most, mut in_string) = (0usize, 0, false);
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'"' if has_strings => in_string = !in_string,
            _ if in_string => {}
            b'(' | b'[' | b'{' => {
                now += 1;
                most = most.max(now);
            }
            b')' | b']' | b'}' => now = now.saturating_sub(1),
            _ => {}
        }
    }
    most
}
