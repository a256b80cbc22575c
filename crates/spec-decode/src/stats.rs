use serde::{Deserialize, Serialize};

/// What happened to the draft tokens at one position (depth, for trees).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PositionStats {
    /// Drafts with a token at this position whose earlier tokens were all accepted.
    pub reached: usize,
    /// How many of these tokens were accepted.
    pub accepted: usize,
}

/// Steps with one number of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RowStats {
    /// Rows of the forward pass: 1 for a plain step, 1 + the draft's tokens for verification.
    pub rows: usize,
    /// Number of steps.
    pub steps: usize,
    /// Their total time in seconds.
    pub seconds: f64,
}

/// What a run did and what it cost.
///
/// # Units
/// Times are wall-clock times in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Prompts that were fed.
    pub prompts: usize,
    /// Tokens of the prompts that were fed, not counting those that the sequence already held.
    pub prompt_tokens: usize,
    /// Tokens produced, including the one that follows the prompt.
    pub emitted: usize,
    /// Decoding steps of the target after the prompt.
    pub steps: usize,
    /// How many of them verified a draft.
    pub speculative_steps: usize,
    /// Draft tokens verified.
    pub drafted: usize,
    /// Draft tokens that became output.
    pub accepted: usize,
    /// Draft tokens that were certain, because a constraint left no other.
    #[serde(default)]
    pub certain: usize,
    /// Acceptance by position.
    pub positions: Vec<PositionStats>,
    /// `accepted_histogram[n]`: speculative steps in which n draft tokens became output.
    pub accepted_histogram: Vec<usize>,
    /// Steps by number of rows, ascending.
    pub rows: Vec<RowStats>,
    /// Time of the target's pass over the prompt.
    pub prefill_seconds: f64,
    /// Time that the drafter spent on the prompt.
    pub draft_prefill_seconds: f64,
    /// Time of all proposals.
    pub draft_seconds: f64,
    /// The part of it spent on tokens from steps without a draft.
    pub catch_up_seconds: f64,
    /// Time of steps that verified a draft.
    pub verify_seconds: f64,
    /// Time of steps without a draft.
    pub plain_seconds: f64,
}

impl Stats {
    /// Mean number of tokens per decoding step: 1 for plain decoding. This is what Spec-Bench
    /// (arXiv 2401.07851) calls mean accepted tokens.
    pub fn tokens_per_step(&self) -> f64 {
        ratio(self.decoded() as f64, self.steps as f64)
    }

    /// Mean number of draft tokens accepted in a step that verified a draft.
    pub fn accepted_per_step(&self) -> f64 {
        ratio(self.accepted as f64, self.speculative_steps as f64)
    }

    /// Share of the draft tokens that became output.
    pub fn acceptance_rate(&self) -> f64 {
        ratio(self.accepted as f64, self.drafted as f64)
    }

    /// Probability that a token is accepted given that those before it were, over all positions: the α of
    /// [`theory`](crate::theory).
    pub fn alpha(&self) -> f64 {
        let reached: usize = self.positions.iter().map(|p| p.reached).sum();
        let accepted: usize = self.positions.iter().map(|p| p.accepted).sum();
        ratio(accepted as f64, reached as f64)
    }

    /// Time from the first produced token to the last: drafts, verification and plain steps.
    pub fn decode_seconds(&self) -> f64 {
        self.draft_seconds + self.verify_seconds + self.plain_seconds
    }

    /// Tokens per second of decoding, without the prompt and the token that follows it.
    pub fn decode_tokens_per_second(&self) -> f64 {
        ratio(self.decoded() as f64, self.decode_seconds())
    }

    /// Tokens per second in the target's pass over the prompt.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        ratio(self.prompt_tokens as f64, self.prefill_seconds)
    }

    /// Mean time of a step over a number of rows; `None` if there was none.
    pub fn step_seconds(&self, rows: usize) -> Option<f64> {
        let found = self.rows.iter().find(|r| r.rows == rows)?;
        Some(found.seconds / found.steps as f64)
    }

    /// Adds another run to this one.
    pub fn merge(&mut self, other: &Stats) {
        self.prompts += other.prompts;
        self.prompt_tokens += other.prompt_tokens;
        self.emitted += other.emitted;
        self.steps += other.steps;
        self.speculative_steps += other.speculative_steps;
        self.drafted += other.drafted;
        self.accepted += other.accepted;
        self.certain += other.certain;
        for (position, p) in other.positions.iter().enumerate() {
            let sum = at(&mut self.positions, position);
            sum.reached += p.reached;
            sum.accepted += p.accepted;
        }
        for (n, steps) in other.accepted_histogram.iter().enumerate() {
            *at(&mut self.accepted_histogram, n) += steps;
        }
        for r in &other.rows {
            self.add_rows(r.rows, r.steps, r.seconds);
        }
        self.prefill_seconds += other.prefill_seconds;
        self.draft_prefill_seconds += other.draft_prefill_seconds;
        self.draft_seconds += other.draft_seconds;
        self.catch_up_seconds += other.catch_up_seconds;
        self.verify_seconds += other.verify_seconds;
        self.plain_seconds += other.plain_seconds;
    }

    /// A step over 1 + `drafted` rows, of which `accepted` became output.
    pub(crate) fn record_step(&mut self, drafted: usize, accepted: usize, seconds: f64) {
        self.steps += 1;
        self.add_rows(drafted + 1, 1, seconds);
        if drafted == 0 {
            self.plain_seconds += seconds;
            return;
        }
        self.verify_seconds += seconds;
        self.speculative_steps += 1;
        self.drafted += drafted;
        self.accepted += accepted;
        *at(&mut self.accepted_histogram, accepted) += 1;
    }

    pub(crate) fn record_position(&mut self, position: usize, accepted: bool) {
        let position = at(&mut self.positions, position);
        position.reached += 1;
        position.accepted += accepted as usize;
    }

    fn add_rows(&mut self, rows: usize, steps: usize, seconds: f64) {
        let place = self.rows.partition_point(|r| r.rows < rows);
        if self.rows.get(place).is_none_or(|r| r.rows != rows) {
            self.rows.insert(place, RowStats { rows, ..RowStats::default() });
        }
        self.rows[place].steps += steps;
        self.rows[place].seconds += seconds;
    }

    /// Tokens that decoding steps produced: all but those that follow a prompt.
    fn decoded(&self) -> usize {
        self.emitted.saturating_sub(self.prompts)
    }
}

fn at<T: Default + Clone>(values: &mut Vec<T>, index: usize) -> &mut T {
    if values.len() <= index {
        values.resize(index + 1, T::default());
    }
    &mut values[index]
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}
