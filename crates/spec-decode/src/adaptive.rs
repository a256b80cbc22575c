//! Chooses how many tokens to draft, from the cost of steps on this machine and from past acceptance.
//!
//! A token that is not gained now costs 1/ρ seconds later, where ρ is the rate at which tokens will be
//! produced. So a step that takes T seconds and is expected to give E tokens is worth E − ρT, and the length
//! with the largest value is chosen. ρ is the running mean rate or, if this step promises more, its own best
//! E/T: a good stretch (a copied passage) tends to continue, and within it the length with the most tokens
//! per second is the right one. E comes from running estimates of acceptance, T from running medians of
//! measured times: a plain step, verification by the number of rows, drafting by the number of tokens.
//!
//! - Length 0 is always a candidate, so speculation turns itself off where it would be slower.
//! - Proposals that cost almost nothing (n-gram) are made in every step. Those that are not verified are
//!   compared with the text that follows, so acceptance is learned for free.
//! - More expensive proposals are probed from time to time, within 1 % of the decoding time.
//! - Costs need not grow evenly with the number of rows (because of tiles and of kernels for few rows), so
//!   lengths below the best one are tried until their cost is known.
//! - A plain step is repeated from time to time where the gain is small, because everything is compared
//!   with its cost.
//! - Where texts share a pass, T is what the whole pass takes and ρ the rate of all texts together: a draft
//!   is charged for the rows that it adds to those of the others, and to those of tokens that are certain.
//!
//! # Source
//! E and T: Leviathan et al. (arXiv 2211.17192), equation 1 and theorem 3.8, with measured in place of
//! assumed costs. Stopping by a threshold: SpecDec++ (arXiv 2405.19715), section 4.

use std::time::Instant;

use breakers_core::{LanguageModel, Step, TokenId, Want};

use crate::acceptance::Acceptance;
use crate::costs::CostTable;
use crate::{Error, Result};

/// Assumed relative growth of the cost of verification per row, until two different numbers of rows have been
/// measured.
const ROW_GROWTH: f64 = 0.1;
/// Tokens in the first draft, when its cost is unknown.
const FIRST_DRAFT: usize = 4;
/// Tokens in a draft that only probes whether things have changed.
const PROBE_DRAFT: usize = 2;
/// The fewest steps between two probes.
const PROBE_EVERY: u64 = 16;
/// Share of the decoding time that probes may cost.
const PROBE_SHARE: f64 = 0.01;
/// A draft that costs less than this share of a plain step is made in every step.
const FREE_SHARE: f64 = 0.01;
/// The expected gain, in tokens, that a draft must have.
const MARGIN: f64 = 0.02;
/// After how many steps the cost of a plain step is measured again, if speculation gains little and if it
/// gains much.
const PLAIN_AGE: (u64, u64) = (64, 512);
/// Ratio of speculative to plain rate below which the gain counts as little.
const SMALL_GAIN: f64 = 1.5;
/// Draft lengths whose cost is measured early, in this order, because costs need not grow evenly with the
/// rows.
const LADDER: [usize; 7] = [7, 3, 15, 11, 5, 2, 1];
/// Drafts between two that only measure the cost of a length.
const EXPLORE_EVERY: u64 = 4;
/// The factor by which each step reduces the weight of earlier ones in the running rate.
const RATE_DECAY: f64 = 0.97;

/// Chooses draft lengths; see the module's page for the rule.
///
/// It belongs to one pair of model and drafter on one machine, and should be kept from text to text.
#[derive(Clone, Debug)]
pub struct AdaptiveLength {
    steps: CostTable,
    drafts: CostTable,
    acceptance: Acceptance,
    rate_tokens: f64,
    rate_seconds: f64,
    total_seconds: f64,
    probe_seconds: f64,
    since_probe: u64,
    probing: bool,
    since_explored: u64,
    /// Other texts in the same pass, and their rows.
    others: OtherTexts,
    /// Tokens before the draft that are certain, which are in the step anyway.
    ahead: usize,
    /// Acceptance of what constraints hold for likely.
    likely: Acceptance,
}

/// Texts that share a pass with the one whose draft is sized.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OtherTexts {
    pub(crate) texts: usize,
    pub(crate) rows: usize,
}

impl Default for AdaptiveLength {
    fn default() -> Self {
        Self::new()
    }
}

impl AdaptiveLength {
    /// A policy without any experience.
    pub fn new() -> Self {
        Self {
            steps: CostTable::new(ROW_GROWTH),
            drafts: CostTable::new(1.0),
            acceptance: Acceptance::default(),
            rate_tokens: 0.0,
            rate_seconds: 0.0,
            total_seconds: 0.0,
            probe_seconds: 0.0,
            since_probe: 0,
            probing: false,
            since_explored: 0,
            others: OtherTexts::default(),
            ahead: 0,
            likely: Acceptance::default(),
        }
    }

    /// Measures what forward passes over 1, 2, 4, … `max_rows` rows cost after `prompt`, so that the choice
    /// starts with figures instead of assumptions. It takes three passes each in a sequence of its own.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::Target`].
    pub fn calibrate<M: LanguageModel + ?Sized>(
        &mut self,
        model: &mut M,
        prompt: &[TokenId],
        max_rows: usize,
    ) -> Result<()> {
        let Some(&token) = prompt.last() else { return Err(Error::EmptyPrompt) };
        let sequence = model.open().map_err(Error::Target)?;
        let mut measure = || -> breakers_core::Result<()> {
            model.forward(&mut [Step::last(sequence, prompt.to_vec(), Want::Nothing)])?;
            model.commit(sequence, prompt.len())?;
            let room = model.info().max_context.saturating_sub(prompt.len());
            let counts = std::iter::successors(Some(1usize), |rows| rows.checked_mul(2));
            for rows in counts.take_while(|&rows| rows <= max_rows.min(room)) {
                for _ in 0..3 {
                    let begun = Instant::now();
                    model.forward(&mut [Step::each(sequence, vec![token; rows], Want::ArgMax)])?;
                    self.record_cost(rows, begun.elapsed().as_secs_f64());
                    model.truncate(sequence, prompt.len())?;
                }
            }
            Ok(())
        };
        let result = measure().map_err(Error::Target);
        model.close(sequence);
        result
    }

    /// Tells which other texts are in the next pass.
    pub(crate) fn set_others(&mut self, others: OtherTexts) {
        self.others = others;
    }

    /// Tells how many tokens of the next step are certain and stand before its draft.
    pub(crate) fn set_ahead(&mut self, n_tokens: usize) {
        self.ahead = n_tokens;
    }

    /// What passes over 1 to `rows` rows cost, those of other texts and of certain tokens being in them, too.
    fn costs(&self, rows: usize) -> Option<Vec<f64>> {
        let before = self.others.rows + self.ahead;
        Some(self.steps.estimates(before + rows)?.split_off(before))
    }

    /// How many of `n_tokens` tokens that are certain to verify at a time: all but where rows cost so much
    /// that plain steps give more.
    pub(crate) fn keep_certain(&self, n_tokens: usize) -> usize {
        let Some(costs) = self.costs(n_tokens + 1) else { return n_tokens };
        self.best(&vec![1.0; n_tokens], &costs, 0.0, |_| 0.0)
    }

    /// How many tokens to verify of those that a constraint holds for likely.
    pub(crate) fn keep_likely(&self, n_tokens: usize) -> usize {
        let Some(costs) = self.costs(n_tokens + 1) else { return n_tokens };
        self.best(&reaches(&self.likely.of_positions(n_tokens)), &costs, 0.0, |_| 0.0)
    }

    /// Notes whether the target agreed with such a token, all before it having been accepted.
    pub(crate) fn record_likely(&mut self, position: usize, accepted: bool) {
        self.likely.record(position, None, accepted);
    }

    /// Tokens per second of plain decoding, of all texts together.
    fn plain_rate(&self) -> f64 {
        let texts = 1 + self.others.texts;
        let seconds = self.steps.estimates(texts).map_or(f64::INFINITY, |costs| costs[texts - 1]);
        texts as f64 / seconds.max(1e-12)
    }

    /// How many tokens to ask the drafter for, at most `limit`; 0: make a plain step without asking.
    ///
    /// A drafter that `stops_itself` gets the whole limit if drafting pays at all.
    pub fn budget(&mut self, limit: usize, stops_itself: bool) -> usize {
        self.probing = false;
        self.since_probe += 1;
        let Some(costs) = self.costs(limit + 1) else { return 0 };
        let Some(drafts) = self.drafts.estimates(limit) else { return limit.min(FIRST_DRAFT) };
        if limit == 0 || drafts[0] < FREE_SHARE * costs[0] {
            return limit;
        }
        let reach = reaches(&self.acceptance.of_positions(limit));
        let best = self.best(&reach, &costs, 0.0, |n| drafts[n - 1]);
        if best == 0 {
            let affordable = self.probe_seconds <= PROBE_SHARE * self.total_seconds;
            self.probing = self.since_probe >= PROBE_EVERY && affordable;
            return if self.probing { limit.min(PROBE_DRAFT) } else { 0 };
        }
        if self.plain_is_due() {
            return 0;
        }
        match self.explore(best) {
            shorter if shorter < best => shorter,
            _ if stops_itself => limit,
            _ => best,
        }
    }

    /// How many tokens of a deterministic draft to verify, given the confidences of its tokens if there are
    /// any.
    pub fn keep(&mut self, n_tokens: usize, confidences: Option<&[f32]>) -> usize {
        let Some(costs) = self.costs(n_tokens + 1) else { return 0 };
        if self.probing || n_tokens == 0 {
            return n_tokens;
        }
        let acceptances = match confidences {
            Some(confidences) => {
                confidences.iter().enumerate().map(|(i, &c)| self.acceptance.of_token(i, c)).collect()
            }
            None => self.acceptance.of_positions(n_tokens),
        };
        let spent = self.drafts.estimates(n_tokens).map_or(0.0, |drafts| drafts[n_tokens - 1]);
        let best = self.best(&reaches(&acceptances), &costs, spent, |_| 0.0);
        if best > 0 && self.plain_is_due() { 0 } else { self.explore(best) }
    }

    /// Whether it is worth drafting one more token after tokens with these confidences.
    pub fn pays(&self, confidences: &[f32]) -> bool {
        let n = confidences.len();
        if self.probing {
            return n < PROBE_DRAFT;
        }
        let (Some(costs), Some(drafts)) = (self.costs(n + 2), self.drafts.estimates(n + 1)) else {
            return n < FIRST_DRAFT;
        };
        let acceptances: Vec<f64> =
            confidences.iter().enumerate().map(|(i, &c)| self.acceptance.of_token(i, c)).collect();
        let reach = reaches(&acceptances);
        let gain = reach.last().unwrap_or(&1.0) * self.acceptance.of_positions(n + 1)[n];
        let before = if n == 0 { 0.0 } else { drafts[n - 1] };
        let so_far = (self.ahead as f64 + 1.0 + reach.iter().sum::<f64>()) / (before + costs[n]);
        gain > self.rate().max(so_far) * (drafts[n] - before + costs[n + 1] - costs[n])
    }

    /// Notes how long drafting `n_tokens` took, not counting the time to catch up with skipped steps.
    pub fn record_draft(&mut self, n_tokens: usize, seconds: f64, catch_up_seconds: f64) {
        // Finding nothing costs as much as finding one token.
        self.drafts.record(n_tokens.max(1), seconds);
        self.spend(seconds + catch_up_seconds);
    }

    /// Notes how long a step over `rows` tokens took that was made only as a measurement.
    pub fn record_cost(&mut self, rows: usize, seconds: f64) {
        self.steps.record(rows, seconds);
    }

    /// Notes how long a step over `rows` tokens (1 + those verified) took, and that it gave `n_tokens`.
    pub fn record_step(&mut self, rows: usize, seconds: f64, n_tokens: usize) {
        if self.probing {
            self.since_probe = 0;
            // A probe that paid off cost nothing.
            self.probe_seconds -= n_tokens as f64 / self.plain_rate();
        }
        self.steps.record(rows, seconds);
        self.rate_tokens = self.rate_tokens * RATE_DECAY + n_tokens as f64;
        self.rate_seconds *= RATE_DECAY;
        self.spend(seconds);
        self.probe_seconds = self.probe_seconds.max(0.0);
    }

    /// Notes whether the target agreed with the token at `position` of a draft whose earlier tokens were all
    /// accepted.
    pub fn record_acceptance(&mut self, position: usize, confidence: Option<f32>, accepted: bool) {
        self.acceptance.record(position, confidence, accepted);
    }

    fn spend(&mut self, seconds: f64) {
        self.rate_seconds += seconds;
        self.total_seconds += seconds;
        if self.probing {
            self.probe_seconds += seconds;
        }
    }

    /// ρ: tokens per second in the long run, but at least the rate of plain decoding.
    fn rate(&self) -> f64 {
        let plain = self.plain_rate();
        if self.rate_seconds > 0.0 { plain.max(self.rate_tokens / self.rate_seconds) } else { plain }
    }

    /// The length with the largest E − ρT, or 0 if none exceeds a plain step by the margin. `draft(n)`: the
    /// seconds that drafting n tokens will take; `spent`: the seconds that drafting has already taken.
    fn best(&self, reach: &[f64], costs: &[f64], spent: f64, draft: impl Fn(usize) -> f64) -> usize {
        let expected: Vec<f64> = reach
            .iter()
            .scan(1.0, |sum, r| {
                *sum += r;
                Some(*sum)
            })
            .collect();
        let rate = (1..=reach.len())
            .map(|n| (self.ahead as f64 + expected[n - 1]) / (spent + draft(n) + costs[n]))
            .fold(self.rate(), f64::max);
        let (mut best, mut lead) = (0, 1.0 + MARGIN);
        for n in 1..=reach.len() {
            let worth = expected[n - 1] - rate * (draft(n) + costs[n] - costs[0]);
            if worth > lead {
                (best, lead) = (n, worth);
            }
        }
        best
    }

    /// From time to time a shorter length whose cost is unknown; otherwise the best one.
    fn explore(&mut self, best: usize) -> usize {
        self.since_explored += (best > 0) as u64;
        // Shared passes have many different numbers of rows anyway.
        if self.since_explored < EXPLORE_EVERY || self.others.texts > 0 {
            return best;
        }
        match LADDER.into_iter().find(|&n| n < best && self.steps.age(n + 1).is_none()) {
            Some(shorter) => {
                self.since_explored = 0;
                shorter
            }
            None => best,
        }
    }

    fn plain_is_due(&self) -> bool {
        if self.others.texts > 0 {
            return false;
        }
        let gain = self.rate() / self.plain_rate();
        let limit = if gain < SMALL_GAIN { PLAIN_AGE.0 } else { PLAIN_AGE.1 };
        self.steps.age(1).is_none_or(|age| age >= limit)
    }
}

/// Probabilities that a draft is accepted up to and including each position.
fn reaches(acceptances: &[f64]) -> Vec<f64> {
    acceptances
        .iter()
        .scan(1.0, |reach, a| {
            *reach *= a;
            Some(*reach)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_charged_for_what_it_adds_to_the_rows_of_others() {
        // Four rows cost as much as one, and each further row a quarter of that. Every token is accepted with
        // probability 1/2.
        let mut policy = AdaptiveLength::new();
        for rows in 1..=32 {
            policy.record_cost(rows, (rows as f64 / 4.0).max(1.0));
        }
        policy.record_draft(4, 0.0, 0.0);
        for i in 0..400 {
            policy.record_acceptance(i / 2 % 4, None, i % 2 == 0);
        }
        let mut check = |others: OtherTexts, expected: std::ops::RangeInclusive<usize>| {
            policy.set_others(others);
            let kept = policy.keep(4, None);
            assert!(expected.contains(&kept), "{others:?}: {kept}");
        };
        check(OtherTexts::default(), 3..=3);
        // One other text leaves two rows that are free.
        check(OtherTexts { texts: 1, rows: 1 }, 2..=2);
        // A row costs a quarter of a pass. In that time four texts produce one token, more than a guess is
        // worth.
        check(OtherTexts { texts: 3, rows: 3 }, 0..=0);
        check(OtherTexts { texts: 15, rows: 15 }, 0..=0);
    }

    #[test]
    fn certain_tokens_are_verified_where_rows_cost_less_than_steps() {
        let mut policy = AdaptiveLength::new();
        assert_eq!(policy.keep_certain(5), 5, "nothing is known yet");
        // Each row more costs a tenth; from the ninth on as much as a step of its own.
        for rows in 1..=32usize {
            policy.record_cost(rows, 1.0 + 0.1 * rows.min(8) as f64 + 1.1 * rows.saturating_sub(8) as f64);
        }
        let kept = policy.keep_certain(20);
        assert!((7..=9).contains(&kept), "{kept}");
        // Behind rows that are there anyway, a guess costs what it adds.
        policy.record_draft(4, 0.0, 0.0);
        (0..400).for_each(|i| policy.record_acceptance(i / 2 % 4, None, i % 2 == 0));
        assert!(policy.keep(4, None) > 0);
        policy.set_ahead(8);
        assert_eq!(policy.keep(4, None), 0);
        policy.set_ahead(0);
        // What a constraint holds for likely has an account of its own.
        assert_eq!(policy.keep_likely(4), 4);
        (0..50).for_each(|_| policy.record_likely(0, false));
        assert_eq!(policy.keep_likely(4), 0);
        assert!(policy.keep(4, None) > 0);
    }
}
