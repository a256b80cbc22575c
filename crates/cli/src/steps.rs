//! The per-token part of the JSON answers.

use breakers_core::{TokenId, TokenLogprob};
use serde_json::{Value, json};

/// How many alternatives are listed for each token.
pub const N_TOP: usize = 5;

/// A token, and the most likely tokens in its place.
#[derive(Clone, Copy, Debug)]
pub struct ScoredStep<'a> {
    /// The token.
    pub token: TokenId,
    /// Its log-probability, unless it is that of the first alternative.
    pub logprob: Option<f32>,
    /// The most likely tokens, best first.
    pub top: &'a [TokenLogprob],
}

/// `{"id": …, "logprob": …, "top": [[id, logprob], …]}`, without `logprob` if there is none.
pub fn step_json(step: ScoredStep<'_>) -> Value {
    let top: Vec<Value> = step.top.iter().map(|t| json!([t.token, t.logprob])).collect();
    let mut json = json!({ "id": step.token, "top": top });
    if let Some(logprob) = step.logprob {
        json["logprob"] = json!(logprob);
    }
    json
}

/// A rate; 0 if nothing was done or no time passed.
pub fn tokens_per_second(n_tokens: usize, time: std::time::Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { n_tokens as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_the_documented_form() {
        let top = [TokenLogprob { token: 7, logprob: -0.25 }, TokenLogprob { token: 9, logprob: -1.5 }];
        let step = ScoredStep { token: 9, logprob: Some(-1.5), top: &top };
        assert_eq!(step_json(step), json!({ "id": 9, "logprob": -1.5, "top": [[7, -0.25], [9, -1.5]] }));
        let step = ScoredStep { logprob: None, ..step };
        assert!(step_json(step).get("logprob").is_none());
    }
}
