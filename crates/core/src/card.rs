use serde::{Deserialize, Serialize};

use crate::Usage;

/// What is known of a model before it is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ModelCard {
    /// The name that callers use for the model.
    pub id: String,
    /// A key for caching answers: two models give the same answers only if their revisions are equal. It is
    /// the SHA-256 of a model's file, or an endpoint with its model and fingerprint. `None`: answers must not
    /// be reused.
    pub revision: Option<String>,
    /// How many tokens a prompt and its answer may have together; `None` if that is not known.
    pub max_context: Option<usize>,
    /// What it can do.
    pub capabilities: Capabilities,
    /// What it costs; `None` if it is free.
    pub price: Option<Price>,
}

impl ModelCard {
    /// The card of a model of which only the name is known. Assign to the other fields to fill them in.
    pub fn new(id: impl Into<String>) -> Self {
        let id = id.into();
        Self { id, revision: None, max_context: None, capabilities: Capabilities::default(), price: None }
    }
}

/// What a model can do. A request that needs anything else is refused with
/// [`CallError::Unsupported`](crate::CallError::Unsupported).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Capabilities {
    /// Answers conversations ([`Prompt::Chat`](crate::Prompt::Chat)).
    pub chat: bool,
    /// Continues plain texts ([`Prompt::Text`](crate::Prompt::Text)).
    pub text: bool,
    /// Continues tokens of its own vocabulary ([`Prompt::Tokens`](crate::Prompt::Tokens)).
    pub tokens: bool,
    /// Calls functions.
    pub tools: bool,
    /// Answers in JSON, and can follow a schema.
    pub json: bool,
    /// Follows regular expressions, grammars and choices.
    pub grammar: bool,
    /// Is faster where an answer is as [predicted](crate::ChatRequest::prediction).
    pub prediction: bool,
    /// Reports log-probabilities.
    pub logprobs: bool,
    /// Gives the same answer for the same seed.
    pub seed: bool,
    /// Reads images.
    pub vision: bool,
}

/// Prices in billionths of a dollar per million tokens, so that sums are exact: 150,000,000 means $0.15 per
/// million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Price {
    /// For the prompt's tokens that had to be computed.
    pub input: u64,
    /// For the prompt's tokens that were cached.
    pub cached_input: u64,
    /// For the tokens produced.
    pub output: u64,
}

impl Price {
    /// Prices in billionths of a dollar per million tokens.
    pub fn new(input: u64, cached_input: u64, output: u64) -> Self {
        Self { input, cached_input, output }
    }

    /// What a request costs, in units of 10⁻¹⁵ dollars, so that nothing is rounded.
    ///
    /// ```
    /// use breakers_core::{Price, Usage};
    ///
    /// // $ 0.15 and $ 0.60 for a million tokens.
    /// let price = Price::new(150_000_000, 75_000_000, 600_000_000);
    /// let cost = price.cost(&Usage::new(1000, 100));
    /// assert_eq!(cost as f64 * 1e-15, 0.00021);
    /// ```
    pub fn cost(&self, usage: &Usage) -> u128 {
        let cached = usage.cached_prompt.min(usage.prompt);
        let parts = [
            (usage.prompt - cached, self.input),
            (cached, self.cached_input),
            (usage.completion, self.output),
        ];
        parts.into_iter().map(|(tokens, price)| u128::from(tokens) * u128::from(price)).sum()
    }
}
