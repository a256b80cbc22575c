//! Canaries: a prompt whose answer is known. Kernels give the same bits whatever runs beside them, so an
//! answer that differs in one token is a model that differs.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use breakers_core::{ChatModel, ChatRequest, FinishReason, Message, ModelCard, Prompt, TokenId, chain};
use serde::{Deserialize, Serialize};

use super::RegistryError;

/// The most tokens of a canary's answer.
const MAX_TOKENS: usize = 4096;
/// Characters of an answer that a message quotes.
const QUOTED: usize = 40;

/// A prompt and the answer that a version must give to it, decoded greedily.
///
/// # Example
/// ```
/// use breakers_serve::registry::Canary;
///
/// let canary = Canary::new("The capital of France is", 4).with_text(" Paris.");
/// assert_eq!(canary.text.as_deref(), Some(" Paris."));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Canary {
    /// A text to be continued, or what a user says.
    pub prompt: String,
    /// Whether the prompt is what a user says in a conversation.
    #[serde(default)]
    pub chat: bool,
    /// The most tokens of the answer.
    pub max_tokens: usize,
    /// The answer's text; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The answer's tokens; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<TokenId>>,
}

impl Canary {
    /// A text that is continued for so many tokens. Without an answer, the first one that the version gives
    /// is recorded.
    pub fn new(prompt: impl Into<String>, max_tokens: usize) -> Self {
        Self { prompt: prompt.into(), chat: false, max_tokens, text: None, token_ids: None }
    }

    /// The same canary, whose prompt is what a user says.
    pub fn of_user(mut self) -> Self {
        self.chat = true;
        self
    }

    /// The same canary with the text that must come.
    pub fn with_text(mut self, text: impl Into<String>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// The same canary with the tokens that must come.
    pub fn with_token_ids(mut self, token_ids: impl Into<Vec<TokenId>>) -> Self {
        self.token_ids = Some(token_ids.into());
        self
    }

    /// What a version is asked that came without a canary.
    pub(super) fn of_card(card: &ModelCard) -> Self {
        Self { chat: !card.capabilities.text, ..Self::new("The capital of France is", 16) }
    }

    pub(super) fn check(&self) -> Result<(), RegistryError> {
        let wrong = |name, expected, found| Err(RegistryError::Parameter { name, expected, found });
        if !(1..=MAX_TOKENS).contains(&self.max_tokens) {
            return wrong("canary.max_tokens", "1 to 4,096", self.max_tokens.to_string());
        }
        if self.prompt.is_empty() {
            return wrong("canary.prompt", "a text", "nothing".to_owned());
        }
        Ok(())
    }

    /// Whether an answer is recorded.
    pub(super) fn is_recorded(&self) -> bool {
        self.text.is_some() || self.token_ids.is_some()
    }

    /// The same canary with an answer recorded.
    pub(super) fn recorded(mut self, answer: &CanaryAnswer) -> Self {
        self.text = Some(answer.text.clone());
        self.token_ids = (!answer.token_ids.is_empty()).then(|| answer.token_ids.clone());
        self
    }

    /// Asks a model, for at most `limit`.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(super) fn ask(&self, model: &Arc<dyn ChatModel>, limit: Duration) -> Result<CanaryAnswer, String> {
        let prompt: Prompt = match self.chat {
            true => Message::user(&*self.prompt).into(),
            false => self.prompt.as_str().into(),
        };
        let request = ChatRequest::new(prompt).with_max_tokens(self.max_tokens);
        let (sender, answer) = mpsc::channel();
        let is_late = Arc::new(AtomicBool::new(false));
        let (model, late) = (Arc::clone(model), Arc::clone(&is_late));
        let ask = move || {
            let asked = catch_unwind(AssertUnwindSafe(|| {
                model.chat(&request, &mut |_| match late.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                })
            }));
            drop(model);
            let _ = sender.send(match asked {
                Ok(Ok(reply)) => Ok(reply),
                Ok(Err(error)) => Err(chain(&error, ": ")),
                Err(payload) => Err(format!("the model panicked: {}", super::panic_text(&*payload))),
            });
        };
        let thread = std::thread::Builder::new().name("breakers-canary".to_owned()).spawn(ask);
        thread.map_err(|error| format!("no thread for the canary: {error}"))?;
        let reply = answer.recv_timeout(limit).map_err(|_| {
            is_late.store(true, Ordering::Relaxed);
            format!("no answer within {limit:?}")
        })??;
        if reply.finish == FinishReason::Cancelled {
            return Err("the model ended its answer by itself".to_owned());
        }
        Ok(CanaryAnswer { text: reply.text, token_ids: reply.token_ids })
    }

    /// What differs between an answer and the recorded one.
    pub(super) fn difference(&self, answer: &CanaryAnswer) -> Option<String> {
        if let Some(expected) = &self.token_ids {
            let found = &answer.token_ids;
            if found.is_empty() && !expected.is_empty() {
                return Some("the model does not say which tokens it wrote".to_owned());
            }
            let at = expected.iter().zip(found).position(|(a, b)| a != b);
            let at = at.or((expected.len() != found.len()).then(|| expected.len().min(found.len())));
            if let Some(at) = at {
                let word = |tokens: &[TokenId]| {
                    tokens.get(at).map_or_else(|| "the end".to_owned(), ToString::to_string)
                };
                return Some(format!("token {at} is {}; expected {}", word(found), word(expected)));
            }
        }
        let (expected, found) = (self.text.as_ref()?, &answer.text);
        if expected == found {
            return None;
        }
        let same = expected.chars().zip(found.chars()).take_while(|(a, b)| a == b).count();
        let quote = |text: &str| text.chars().skip(same).take(QUOTED).collect::<String>();
        Some(format!(
            "the text differs from character {same} on: {:?}; expected {:?}",
            quote(found),
            quote(expected)
        ))
    }
}

/// What a model said to a canary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CanaryAnswer {
    pub(super) text: String,
    pub(super) token_ids: Vec<TokenId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_told() {
        let answer = |text: &str, token_ids: &[TokenId]| CanaryAnswer {
            text: text.to_owned(),
            token_ids: token_ids.to_vec(),
        };
        let canary = Canary::new("x", 4).with_text("Grüße an alle").with_token_ids([1, 2, 3]);
        let differs = |text, tokens: &[TokenId]| canary.difference(&answer(text, tokens));
        assert_eq!(differs("Grüße an alle", &[1, 2, 3]), None);
        for (text, tokens, expected) in [
            ("Grüße an alle", &[1, 2, 4][..], "token 2 is 4; expected 3"),
            ("Grüße an alle", &[1, 2][..], "token 2 is the end; expected 3"),
            ("Grüße an alle", &[1, 2, 3, 9][..], "token 3 is 9; expected the end"),
            ("Grüße an alle", &[][..], "does not say"),
            ("Grüsse", &[1, 2, 3][..], "character 3 on: \"sse\"; expected \"ße an alle\""),
            ("Grüße an alle!", &[1, 2, 3][..], "character 13 on: \"!\"; expected \"\""),
        ] {
            let found = differs(text, tokens).unwrap();
            assert!(found.contains(expected), "{found}");
        }
        // Without an answer anything goes, and what came is recorded.
        let open = Canary::new("x", 4);
        assert_eq!(open.difference(&answer("a", &[])), None);
        assert!(!open.is_recorded());
        assert_eq!(open.recorded(&answer("a", &[])), Canary::new("x", 4).with_text("a"));
    }
}
