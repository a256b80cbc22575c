use std::ops::ControlFlow;

use crate::{FinishReason, Result, SamplingConfig, TokenId};

/// A request to continue a text.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// Token ids of the prompt.
    pub prompt: Vec<TokenId>,
    /// New tokens at most.
    pub max_tokens: usize,
    /// How a token is drawn.
    pub sampling: SamplingConfig,
    /// Seed of the draws; the same seed gives the same text.
    pub seed: u64,
    /// Texts that end the output; they are not part of it.
    pub stop: Vec<String>,
}

/// A finished continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Tokens produced, end token included.
    pub tokens: Vec<TokenId>,
    /// Their text, up to a stop string.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
}

/// Something that continues texts: a local model, a router over several, a remote one.
pub trait TextGenerator {
    /// Continues a prompt; `on_piece` receives the text as it grows, in pieces that never split a
    /// character, and can stop it.
    ///
    /// # Errors
    /// Those of the engine underneath.
    fn generate(
        &mut self,
        request: &GenerateRequest,
        on_piece: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated>;
}
