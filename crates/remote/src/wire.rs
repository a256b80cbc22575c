//! The JSON that endpoints send. Fields that are not used are not checked.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// A piece of an answer, or all of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Chunk {
    pub(crate) model: Option<String>,
    pub(crate) choices: Option<Vec<Choice>>,
    pub(crate) usage: Option<WireUsage>,
    pub(crate) error: Option<ErrorBody>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Choice {
    pub(crate) index: Option<u64>,
    /// In a stream.
    pub(crate) delta: Option<WireMessage>,
    /// In a whole answer.
    pub(crate) message: Option<WireMessage>,
    /// In the continuation of a text.
    pub(crate) text: Option<String>,
    pub(crate) finish_reason: Option<String>,
    /// vLLM: the text or the token that ended the answer.
    pub(crate) stop_reason: Option<serde_json::Value>,
    /// SGLang: the same.
    pub(crate) matched_stop: Option<serde_json::Value>,
    pub(crate) logprobs: Option<WireLogprobs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WireMessage {
    pub(crate) content: Option<String>,
    pub(crate) refusal: Option<String>,
    pub(crate) tool_calls: Option<Vec<WireCall>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WireCall {
    pub(crate) index: Option<usize>,
    pub(crate) id: Option<String>,
    pub(crate) function: Option<WireFunction>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WireFunction {
    pub(crate) name: Option<String>,
    /// A string; some servers send the object itself.
    pub(crate) arguments: Option<Box<RawValue>>,
}

impl WireFunction {
    /// The arguments as text; `None` if they are neither a string nor an object.
    pub(crate) fn arguments(&self) -> Option<Cow<'_, str>> {
        let Some(raw) = &self.arguments else { return Some("".into()) };
        match raw.get().as_bytes().first() {
            Some(b'"') => serde_json::from_str::<String>(raw.get()).ok().map(Cow::Owned),
            Some(b'{') => Some(raw.get().into()),
            Some(b'n') => Some("".into()),
            _ => None,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WireLogprobs {
    /// In chats.
    pub(crate) content: Option<Vec<WireToken>>,
    /// In texts: four parallel lists.
    pub(crate) tokens: Option<Vec<String>>,
    pub(crate) token_logprobs: Option<Vec<Option<f64>>>,
    pub(crate) top_logprobs: Option<Vec<Option<BTreeMap<String, f64>>>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct WireToken {
    #[serde(default)]
    pub(crate) token: String,
    pub(crate) logprob: f64,
    #[serde(default)]
    pub(crate) bytes: Option<Vec<u8>>,
    #[serde(default)]
    pub(crate) top_logprobs: Option<Vec<WireToken>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WireUsage {
    pub(crate) prompt_tokens: Option<u64>,
    pub(crate) completion_tokens: Option<u64>,
    pub(crate) prompt_tokens_details: Option<PromptDetails>,
    pub(crate) completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PromptDetails {
    pub(crate) cached_tokens: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CompletionDetails {
    pub(crate) reasoning_tokens: Option<u64>,
    pub(crate) accepted_prediction_tokens: Option<u64>,
    pub(crate) rejected_prediction_tokens: Option<u64>,
}

/// An error: an object according to the protocol, a string from some servers.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum ErrorBody {
    Object(ErrorObject),
    Text(String),
    Other(serde::de::IgnoredAny),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ErrorObject {
    pub(crate) message: Option<String>,
    pub(crate) r#type: Option<String>,
    pub(crate) param: Option<String>,
    /// A word according to the protocol, a number from some servers.
    pub(crate) code: Option<serde_json::Value>,
}
