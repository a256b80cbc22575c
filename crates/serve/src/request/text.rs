//! Bodies of `/v1/completions`.

use std::sync::Arc;

use breakers_core::Prompt;

use super::{Common, Completion, Fields, Prompts, Route};
use crate::Limits;
use crate::api_error::ApiError;

/// What the protocol generates if no number of tokens is given.
const DEFAULT_MAX_TOKENS: usize = 16;

pub(super) fn read(fields: &mut Fields<'_>, limits: &Limits) -> Result<Completion, ApiError> {
    let common = Common::read(fields, limits)?;
    let prompts = Prompts::read(fields, "prompt")?;
    if prompts.len().saturating_mul(common.n) > limits.max_choices {
        let message = format!(
            "{} prompts with {} answers each are more than {}",
            prompts.len(),
            common.n,
            limits.max_choices
        );
        return Err(fields.wrong("prompt", message));
    }
    let max_tokens = fields.count("max_tokens", 1, u64::MAX)?.unwrap_or(DEFAULT_MAX_TOKENS);
    let top_logprobs = fields.count("logprobs", 0, 5)?;
    if fields.get::<String>("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(fields.unsupported("suffix", "text is not inserted before a suffix"));
    }
    let mut echo = Vec::new();
    if fields.get("echo")?.unwrap_or(false) {
        match &prompts {
            Prompts::Tokens(_) => return Err(fields.unsupported("echo", "tokens are not repeated as text")),
            _ if top_logprobs.is_some() => {
                return Err(fields.unsupported("echo", "log-probabilities of a prompt are not reported"));
            }
            Prompts::Texts(texts) => echo.clone_from(texts),
        }
    }
    let prompts = match prompts {
        Prompts::Texts(texts) => texts.into_iter().map(Prompt::Text).collect::<Vec<_>>(),
        Prompts::Tokens(tokens) => tokens.into_iter().map(Prompt::Tokens).collect(),
    };
    let request = |prompt| {
        let mut request = common.request(prompt);
        request.max_tokens = Some(max_tokens);
        request.top_logprobs = top_logprobs;
        Arc::new(request)
    };
    let prompts = prompts.into_iter().map(request).collect();
    let form_field = common.form_field("structured_outputs");
    let Common { model, n, stream, include_usage, user, ignored, .. } = common;
    let route = Route::Text;
    Ok(Completion { route, model, prompts, n, stream, include_usage, echo, form_field, user, ignored })
}
