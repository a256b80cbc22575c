use std::time::Duration;

use crate::{ConstraintError, Error, SamplingError, SharedError, StepError};

/// Why a call of a model failed, the same for local and remote ones.
///
/// The list is closed: a caller that retries, falls back or counts can treat every kind.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// This caller has sent too many requests or tokens.
    #[error("rate limited{}", retry(.retry_after))]
    RateLimited {
        /// How long to wait before trying again, if the endpoint says.
        retry_after: Option<Duration>,
    },
    /// The model is too busy to take another request right now.
    #[error("overloaded{}", retry(.retry_after))]
    Overloaded {
        /// How long to wait before trying again, if the endpoint says.
        retry_after: Option<Duration>,
    },
    /// The call took too long.
    #[error("no {phase} within {limit:?}")]
    Timeout {
        /// What the caller was waiting for.
        phase: TimeoutPhase,
        /// The time limit that was exceeded.
        limit: Duration,
    },
    /// The connection could not be made, or broke before any of the answer came.
    #[error("the connection failed: {0}")]
    Transport(#[source] SharedError),
    /// The prompt, or the prompt with its answer, is longer than the context.
    #[error("the request does not fit into the context{}", fit(.needed, .limit))]
    ContextTooLong {
        /// Tokens needed, if known.
        needed: Option<usize>,
        /// Tokens that fit, if known.
        limit: Option<usize>,
    },
    /// The endpoint's content filter refused the request.
    #[error("refused by a content filter: {message}")]
    ContentFiltered {
        /// What it says.
        message: String,
    },
    /// The request is wrong, and repeating it will not help.
    #[error("bad request{}: {message}", field(.param))]
    BadRequest {
        /// The field that is wrong, if one is named.
        param: Option<String>,
        /// What is wrong.
        message: String,
    },
    /// The model cannot do what the request asks for.
    #[error("{model} does not support {feature}")]
    Unsupported {
        /// The model.
        model: String,
        /// What was asked for.
        feature: String,
    },
    /// The key is missing, wrong or not allowed to do this.
    #[error("not authorized: {message}")]
    Auth {
        /// What the endpoint says.
        message: String,
    },
    /// There is no such model.
    #[error("no model {model:?}")]
    ModelNotFound {
        /// The name asked for.
        model: String,
    },
    /// The answer does not follow the protocol.
    #[error("malformed answer: {message}")]
    Malformed {
        /// What is wrong with it.
        message: String,
    },
    /// The answer broke off: the part that arrived was handed to the caller, but it is incomplete.
    #[error("the answer broke off: {message}")]
    Truncated {
        /// What is missing.
        message: String,
    },
    /// The model failed.
    #[error("the model failed: {0}")]
    Failed(#[source] SharedError),
}

/// What a call that took too long was waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimeoutPhase {
    /// A connection.
    Connect,
    /// The first piece of the answer.
    FirstToken,
    /// The next piece.
    NextToken,
    /// The whole answer.
    Total,
}

impl std::fmt::Display for TimeoutPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TimeoutPhase::Connect => "connection",
            TimeoutPhase::FirstToken => "first token",
            TimeoutPhase::NextToken => "further token",
            TimeoutPhase::Total => "complete answer",
        })
    }
}

impl CallError {
    /// A failure of the model itself.
    pub fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        CallError::Failed(std::sync::Arc::new(error))
    }

    /// A failure of the connection.
    pub fn transport(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        CallError::Transport(std::sync::Arc::new(error))
    }

    /// An error for a wrong field of a request.
    pub fn bad_request(param: impl Into<String>, message: impl Into<String>) -> Self {
        CallError::BadRequest { param: Some(param.into()), message: message.into() }
    }

    /// An error for something that a model cannot do.
    pub fn unsupported(model: impl Into<String>, feature: impl Into<String>) -> Self {
        CallError::Unsupported { model: model.into(), feature: feature.into() }
    }

    /// Whether the same request may succeed later. False for [`Truncated`](Self::Truncated): the caller has
    /// already received a part of the answer and must decide what to do with it.
    pub fn is_retryable(&self) -> bool {
        use CallError::*;
        matches!(self, RateLimited { .. } | Overloaded { .. } | Timeout { .. } | Transport(_))
    }

    /// How long the endpoint asks to wait before the next attempt.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            CallError::RateLimited { retry_after } | CallError::Overloaded { retry_after } => *retry_after,
            _ => None,
        }
    }
}

impl From<Error> for CallError {
    /// Errors that a caller can act on keep a kind of their own; the rest become [`CallError::Failed`].
    fn from(error: Error) -> Self {
        match error.cause() {
            Error::Step(StepError::ContextFull { needed, limit }) => {
                CallError::ContextTooLong { needed: Some(*needed), limit: Some(*limit) }
            }
            Error::Sampling(SamplingError::Parameter { name, .. }) => {
                CallError::bad_request(*name, error.to_string())
            }
            Error::Sampling(SamplingError::InvalidToken { .. }) => {
                CallError::bad_request("logit_bias", error.to_string())
            }
            Error::InvalidToken { .. } => CallError::bad_request("prompt", error.to_string()),
            Error::Unsupported { model, feature } => CallError::unsupported(model, *feature),
            _ => CallError::failed(error),
        }
    }
}

impl From<SamplingError> for CallError {
    fn from(error: SamplingError) -> Self {
        Error::from(error).into()
    }
}

impl From<ConstraintError> for CallError {
    fn from(error: ConstraintError) -> Self {
        Error::from(error).into()
    }
}

fn retry(after: &Option<Duration>) -> String {
    after.map_or_else(String::new, |after| format!("; try again in {after:?}"))
}

fn fit(needed: &Option<usize>, limit: &Option<usize>) -> String {
    match (needed, limit) {
        (Some(needed), Some(limit)) => format!(": {needed} tokens are needed, {limit} fit"),
        (None, Some(limit)) => format!(": {limit} tokens fit"),
        (Some(needed), None) => format!(": {needed} tokens are needed"),
        (None, None) => String::new(),
    }
}

fn field(param: &Option<String>) -> String {
    param.as_ref().map_or_else(String::new, |param| format!(" ({param})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SequenceId;

    #[test]
    fn errors_of_engines_become_what_a_caller_can_treat() {
        let check = |error: Error, expected: &str| {
            let call = CallError::from(error.at_step(1, SequenceId(5)));
            assert!(format!("{call:?}").starts_with(expected), "{call:?}");
        };
        check(
            StepError::ContextFull { needed: 9, limit: 8 }.into(),
            "ContextTooLong { needed: Some(9), limit: Some(8) }",
        );
        let parameter = SamplingError::Parameter { name: "top_p", value: 2.0, expected: "0 to 1" };
        check(parameter.into(), "BadRequest { param: Some(\"top_p\")");
        check(Error::InvalidToken { token: 9, vocab_size: 5 }, "BadRequest { param: Some(\"prompt\")");
        check(Error::Unsupported { model: "m".into(), feature: "f" }, "Unsupported");
        check(StepError::Empty.into(), "Failed");
    }

    #[test]
    fn what_can_be_tried_again() {
        let after = Some(Duration::from_secs(3));
        let limited = CallError::RateLimited { retry_after: after };
        assert_eq!((limited.is_retryable(), limited.retry_after()), (true, after));
        assert_eq!(limited.to_string(), "rate limited; try again in 3s");
        let broken = CallError::Truncated { message: "no finish reason".into() };
        assert_eq!((broken.is_retryable(), broken.retry_after()), (false, None));
        let long = CallError::ContextTooLong { needed: Some(9), limit: Some(8) };
        assert_eq!(long.to_string(), "the request does not fit into the context: 9 tokens are needed, 8 fit");
    }
}
