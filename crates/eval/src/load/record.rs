use serde::Serialize;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// The stream came to its end.
    Done,
    /// The server has too much to do and said so: status 429 or 503.
    Refused(u16),
    /// The time limit of a request passed.
    TimedOut,
    /// Anything else, in words.
    Failed(String),
}

/// Where a number of tokens comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Counted {
    /// The server's own count.
    Usage,
    /// The number of events with text, because the server did not say: too few where events hold several
    /// tokens.
    Chunks,
}

/// What happened to a request.
///
/// # Units
/// Moments are in seconds from the start of the round.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Record {
    /// When it was to be sent; in a closed loop, when it was.
    pub planned: f64,
    /// When it was sent.
    pub sent: f64,
    /// When each event with a choice came, those without text included.
    pub events: Vec<f64>,
    /// When each event with text came.
    pub texts: Vec<f64>,
    /// When the stream or the attempt ended.
    pub end: f64,
    /// How it ended.
    pub outcome: Outcome,
    /// Tokens of the prompt, if the server said.
    pub prompt_tokens: Option<u64>,
    /// How many of them were cached, if the server said.
    pub cached_tokens: Option<u64>,
    /// Tokens of the answer.
    pub output_tokens: u64,
    /// Who counted them.
    pub counted: Counted,
}

impl Record {
    /// Whether it was answered to the end.
    pub fn is_done(&self) -> bool {
        self.outcome == Outcome::Done
    }

    /// How long after its planned moment it was sent.
    pub fn lateness(&self) -> f64 {
        (self.sent - self.planned).max(0.0)
    }
}
