//! Sampling from logits on the host.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{TokenId, TokenLogprob};

/// Logits that cannot be sampled from.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// There are no logits.
    #[error("no logits to sample from")]
    Empty,
    /// A logit is NaN or +∞, or all are −∞.
    #[error("logit of token {token} is {value}; expected finite values (or -inf for excluded tokens)")]
    NotFinite {
        /// Where.
        token: TokenId,
        /// What was found.
        value: f32,
    },
    /// A parameter is outside of its range.
    #[error("{name} is {value}, expected {expected}")]
    Parameter {
        /// Name of the parameter.
        name: &'static str,
        /// Value received.
        value: f32,
        /// The range.
        expected: &'static str,
    },
}

/// How a token is drawn. Applied in this order: repetition penalty, temperature, top-k, top-p, min-p.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingConfig {
    /// 0: greedy, the arg-max. Otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the `k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most likely tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens with at least this fraction of the most likely token's probability; 0 keeps all.
    pub min_p: f32,
    /// Logits of tokens seen before are divided by this if positive, multiplied if negative
    /// (CTRL, arXiv 1909.05858, section 4.1); 1 changes nothing.
    pub repetition_penalty: f32,
    /// How many of the latest tokens the penalty looks at.
    pub repetition_window: usize,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self::greedy()
    }
}

impl SamplingConfig {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_window: 64,
        }
    }

    /// Plain sampling at a temperature.
    pub fn temperature(temperature: f32) -> Self {
        Self { temperature, ..Self::greedy() }
    }

    /// Whether the result is a function of the logits alone.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether the arg-max of the raw logits is the answer, so that no logits need to be copied.
    pub fn is_plain_argmax(&self) -> bool {
        self.is_greedy() && self.repetition_penalty == 1.0
    }

    /// Checks the ranges of all parameters.
    ///
    /// # Errors
    /// [`SamplingError::Parameter`].
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |ok: bool, name, value, expected| {
            if ok { Ok(()) } else { Err(SamplingError::Parameter { name, value, expected }) }
        };
        let t = self.temperature;
        check(t.is_finite() && t >= 0.0, "temperature", t, "a finite number >= 0")?;
        check((0.0..=1.0).contains(&self.top_p), "top_p", self.top_p, "0 to 1")?;
        check((0.0..=1.0).contains(&self.min_p), "min_p", self.min_p, "0 to 1")?;
        let r = self.repetition_penalty;
        check(r.is_finite() && r > 0.0, "repetition_penalty", r, "a finite number > 0")
    }

    /// The distribution that a token is drawn from.
    ///
    /// # Shapes
    /// `logits`: `[vocab]`. `history`: the tokens before, oldest first.
    ///
    /// # Errors
    /// [`SamplingError`] for NaN or +∞ logits and for parameters out of range.
    ///
    /// # Example
    /// ```
    /// use breakers_core::SamplingConfig;
    /// let d = SamplingConfig::temperature(1.0).distribution(&[0.0, 0.0], &[])?;
    /// assert_eq!(d.probability(0), 0.5);
    /// # Ok::<(), breakers_core::SamplingError>(())
    /// ```
    pub fn distribution(&self, logits: &[f32], history: &[TokenId]) -> Result<Distribution, SamplingError> {
        self.validate()?;
        check_logits(logits)?;
        let penalized;
        let logits = if self.repetition_penalty == 1.0 || history.is_empty() {
            logits
        } else {
            penalized = self.penalize(logits, history);
            &penalized
        };
        if self.is_greedy() {
            return Ok(Distribution { entries: vec![(argmax(logits)?, 1.0)] });
        }
        let inverse = 1.0 / self.temperature as f64;
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
        let mut entries: Vec<(TokenId, f64)> = logits
            .iter()
            .enumerate()
            .map(|(i, &l)| (i as TokenId, ((l as f64 - max) * inverse).exp()))
            .filter(|e| e.1 > 0.0)
            .collect();
        if self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0 {
            let by_weight = |a: &(TokenId, f64), b: &(TokenId, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
            if self.top_k > 0 && self.top_k < entries.len() {
                entries.select_nth_unstable_by(self.top_k - 1, by_weight);
                entries.truncate(self.top_k);
            }
            entries.sort_unstable_by(by_weight);
            let total: f64 = entries.iter().map(|e| e.1).sum();
            if self.top_p < 1.0 {
                let (mut sum, mut keep) = (0.0, 0);
                while keep < entries.len() && (keep == 0 || sum < self.top_p as f64 * total) {
                    sum += entries[keep].1;
                    keep += 1;
                }
                entries.truncate(keep);
            }
            let least = entries[0].1 * self.min_p as f64;
            entries.retain(|e| e.1 >= least);
            entries.sort_unstable_by_key(|e| e.0);
        }
        let total: f64 = entries.iter().map(|e| e.1).sum();
        entries.iter_mut().for_each(|e| e.1 /= total);
        Ok(Distribution { entries })
    }

    fn penalize(&self, logits: &[f32], history: &[TokenId]) -> Vec<f32> {
        let mut out = logits.to_vec();
        let recent = &history[history.len().saturating_sub(self.repetition_window)..];
        let mut seen: Vec<TokenId> = recent.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for token in seen {
            if let Some(l) = out.get_mut(token as usize) {
                *l = if *l > 0.0 { *l / self.repetition_penalty } else { *l * self.repetition_penalty };
            }
        }
        out
    }
}

fn check_logits(logits: &[f32]) -> Result<(), SamplingError> {
    if logits.is_empty() {
        return Err(SamplingError::Empty);
    }
    let bad = find(logits, |l| l.is_nan() || l == f32::INFINITY);
    let bad = bad.or_else(|| logits.iter().all(|l| *l == f32::NEG_INFINITY).then_some(0));
    match bad {
        Some(i) => Err(SamplingError::NotFinite { token: i as TokenId, value: logits[i] }),
        None => Ok(()),
    }
}

/// A probability distribution over tokens, sparse, in ascending order of id.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    entries: Vec<(TokenId, f64)>,
}

impl Distribution {
    /// A distribution from weights, which are normalized. Zero weights are dropped.
    ///
    /// Returns `None` when no weight is positive, or one is negative or not finite.
    pub fn from_weights(weights: impl IntoIterator<Item = (TokenId, f64)>) -> Option<Self> {
        let mut entries: Vec<(TokenId, f64)> = weights.into_iter().filter(|e| e.1 != 0.0).collect();
        if entries.iter().any(|e| !e.1.is_finite() || e.1 < 0.0) || entries.is_empty() {
            return None;
        }
        entries.sort_unstable_by_key(|e| e.0);
        let total: f64 = entries.iter().map(|e| e.1).sum();
        entries.iter_mut().for_each(|e| e.1 /= total);
        Some(Self { entries })
    }

    /// All of the probability on one token.
    pub fn certain(token: TokenId) -> Self {
        Self { entries: vec![(token, 1.0)] }
    }

    /// Tokens of positive probability, in ascending order of id.
    pub fn entries(&self) -> &[(TokenId, f64)] {
        &self.entries
    }

    /// Probability of a token, 0 if it is excluded.
    pub fn probability(&self, token: TokenId) -> f64 {
        self.entries.binary_search_by_key(&token, |e| e.0).map_or(0.0, |i| self.entries[i].1)
    }

    /// The token at cumulative probability `u`, for `u` in `[0, 1)`.
    pub fn at(&self, u: f64) -> TokenId {
        let mut sum = 0.0;
        for &(token, p) in &self.entries {
            sum += p;
            if u < sum {
                return token;
            }
        }
        // Rounding can leave the sum just below 1.
        self.entries[self.entries.len() - 1].0
    }
}

/// Draws tokens, reproducibly: the same seed and logits give the same tokens on every machine.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplingConfig,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler with its own stream of random numbers.
    pub fn new(config: SamplingConfig, seed: u64) -> Self {
        Self { config, rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The configuration.
    pub fn config(&self) -> &SamplingConfig {
        &self.config
    }

    /// Draws the next token.
    ///
    /// # Errors
    /// Those of [`SamplingConfig::distribution`].
    pub fn sample(&mut self, logits: &[f32], history: &[TokenId]) -> Result<TokenId, SamplingError> {
        let distribution = self.config.distribution(logits, history)?;
        if self.config.is_greedy() { Ok(distribution.entries[0].0) } else { Ok(self.draw(&distribution)) }
    }

    /// Draws from a given distribution.
    pub fn draw(&mut self, distribution: &Distribution) -> TokenId {
        distribution.at(self.uniform())
    }

    /// A uniform number in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        self.rng.random()
    }
}

/// The index of the largest logit; of equal ones the lowest.
///
/// # Errors
/// [`SamplingError::Empty`], and [`SamplingError::NotFinite`] for a NaN.
pub fn argmax(logits: &[f32]) -> Result<TokenId, SamplingError> {
    if logits.is_empty() {
        return Err(SamplingError::Empty);
    }
    if let Some(token) = find(logits, f32::is_nan) {
        return Err(SamplingError::NotFinite { token: token as TokenId, value: f32::NAN });
    }
    let max = largest(logits);
    Ok(find(logits, |l| l == max).unwrap_or(0) as TokenId)
}

/// The first number of which something is true.
fn find(logits: &[f32], is_it: impl Fn(f32) -> bool) -> Option<usize> {
    let any = |chunk: &&[f32]| chunk.iter().fold(false, |any, &l| any | is_it(l));
    let (chunk_idx, chunk) = logits.chunks(16 * LANES).enumerate().find(|(_, chunk)| any(chunk))?;
    Some(chunk_idx * 16 * LANES + chunk.iter().position(|&l| is_it(l))?)
}

/// Numbers that are looked at together, so that the compiler takes several at a time.
const LANES: usize = 16;

/// The largest number; −∞ of none. NaNs do not count.
fn largest(logits: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &l) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, l);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

/// eˣ for x ≤ 0, within 2 units in the last place, and 0 below −87.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, the Taylor polynomial of degree 7 of eʳ, and 2ⁿ by its exponent bits. No branches
/// and no calls: a loop over it is vectorized on every processor.
#[inline(always)]
fn exp_nonpositive(x: f32) -> f32 {
    /// 1.5·2²³: a number added to it and taken away again is rounded to an integer, which the low bits hold meanwhile.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first of which has few enough bits that its product with n is exact.
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { p * power }
}

/// ln Σ exp(logits). Exponentials have the precision of `f32`, their sum that of `f64`.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = largest(logits);
    if max.is_infinite() {
        return max as f64;
    }
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [0.0f64; LANES];
    for chunk in chunks {
        for (lane, &l) in lanes.iter_mut().zip(chunk) {
            *lane += exp_nonpositive(l - max) as f64;
        }
    }
    let rest: f64 = rest.iter().map(|&l| exp_nonpositive(l - max) as f64).sum();
    max as f64 + (lanes.iter().sum::<f64>() + rest).ln()
}

/// Log-probabilities `[vocab]` of logits `[vocab]`, in nats.
pub fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let z = log_sum_exp(logits);
    logits.iter().map(|&l| (l as f64 - z) as f32).collect()
}

/// Up to this many best tokens are found by insertion instead of selection.
const SMALL_K: usize = 16;

/// The `k` most likely tokens with their log-probabilities, best first, equal ones by ascending id.
///
/// # Errors
/// [`SamplingError`] for NaN or +∞ logits.
pub fn top_k(logits: &[f32], k: usize) -> Result<Vec<TokenLogprob>, SamplingError> {
    check_logits(logits)?;
    let z = log_sum_exp(logits);
    let by_logit =
        |a: &TokenId, b: &TokenId| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let k = k.min(logits.len());
    if k == 0 {
        return Ok(Vec::new());
    }
    let mut ids: Vec<TokenId>;
    if k <= SMALL_K {
        // Nothing of the vocabulary's size is written.
        ids = Vec::with_capacity(k + 1);
        let mut worst = f32::NEG_INFINITY;
        for (chunk, first) in logits.chunks(LANES).zip((0..).step_by(LANES)) {
            // Nearly all chunks hold none.
            if !chunk.iter().fold(ids.len() < k, |any, &l| any | (l >= worst)) {
                continue;
            }
            for id in first..first + chunk.len() as TokenId {
                if ids.len() < k || by_logit(&id, &ids[k - 1]).is_lt() {
                    let place = ids.partition_point(|better| by_logit(better, &id).is_lt());
                    ids.insert(place, id);
                    ids.truncate(k);
                }
            }
            worst = logits[ids[ids.len() - 1] as usize];
        }
    } else {
        ids = (0..logits.len() as TokenId).collect();
        if k < ids.len() {
            ids.select_nth_unstable_by(k - 1, by_logit);
            ids.truncate(k);
        }
        ids.sort_unstable_by(by_logit);
    }
    Ok(ids
        .into_iter()
        .map(|token| TokenLogprob { token, logprob: (logits[token as usize] as f64 - z) as f32 })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]).unwrap(), 1);
        assert!(matches!(argmax(&[1.0, f32::NAN]), Err(SamplingError::NotFinite { token: 1, .. })));
        assert_eq!(argmax(&[]), Err(SamplingError::Empty));
    }

    #[test]
    fn sums_of_exponentials_are_exact_to_f32() {
        let mut worst = 0.0f64;
        for i in 0..=870_000 {
            let x = i as f32 * -1e-4;
            let want = (x as f64).exp();
            worst = worst.max((exp_nonpositive(x) as f64 / want - 1.0).abs());
        }
        assert!(worst < 2.0 * f32::EPSILON as f64, "{worst}");
        assert_eq!([exp_nonpositive(0.0), exp_nonpositive(f32::NEG_INFINITY)], [1.0, 0.0]);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 20]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
    }

    #[test]
    fn filters_keep_what_they_say() {
        // Probabilities 0.5, 0.25, 0.125, 0.125.
        let logits = [8f32.ln(), 4f32.ln(), 2f32.ln(), 2f32.ln()];
        let kept = |c: SamplingConfig| -> Vec<TokenId> {
            c.distribution(&logits, &[]).unwrap().entries().iter().map(|e| e.0).collect()
        };
        let base = SamplingConfig::temperature(1.0);
        assert_eq!(kept(base.clone()), [0, 1, 2, 3]);
        assert_eq!(kept(SamplingConfig { top_k: 3, ..base.clone() }), [0, 1, 2]);
        assert_eq!(kept(SamplingConfig { top_p: 0.7, ..base.clone() }), [0, 1]);
        assert_eq!(kept(SamplingConfig { top_p: 0.0, ..base.clone() }), [0]);
        assert_eq!(kept(SamplingConfig { min_p: 0.4, ..base.clone() }), [0, 1]);
        let squared = SamplingConfig::temperature(0.5).distribution(&logits, &[]).unwrap();
        assert!((squared.probability(0) - 64.0 / 88.0).abs() < 1e-6);
    }

    #[test]
    fn repetition_penalty_moves_both_signs_down() {
        let c = SamplingConfig { repetition_penalty: 2.0, ..SamplingConfig::temperature(1.0) };
        let d = c.distribution(&[2.0, -1.0, 0.5], &[0, 1]).unwrap();
        let plain = SamplingConfig::temperature(1.0).distribution(&[1.0, -2.0, 0.5], &[]).unwrap();
        assert_eq!(d, plain);
    }

    #[test]
    fn out_of_range_parameters_are_refused() {
        for (name, c) in [
            ("temperature", SamplingConfig::temperature(f32::NAN)),
            ("temperature", SamplingConfig::temperature(-1.0)),
            ("top_p", SamplingConfig { top_p: 1.5, ..Default::default() }),
            ("min_p", SamplingConfig { min_p: -0.1, ..Default::default() }),
            ("repetition_penalty", SamplingConfig { repetition_penalty: 0.0, ..Default::default() }),
        ] {
            match c.distribution(&[0.0], &[]) {
                Err(SamplingError::Parameter { name: found, .. }) => assert_eq!(found, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn distributions_sum_to_one(
            logits in prop::collection::vec(-20f32..20.0, 1..200),
            temperature in 0.1f32..3.0, top_k in 0usize..50, top_p in 0f32..=1.0, min_p in 0f32..0.5,
        ) {
            let c = SamplingConfig { temperature, top_k, top_p, min_p, ..Default::default() };
            let d = c.distribution(&logits, &[]).unwrap();
            let sum: f64 = d.entries().iter().map(|e| e.1).sum();
            prop_assert!((sum - 1.0).abs() < 1e-9);
            prop_assert!(d.probability(argmax(&logits).unwrap()) > 0.0);
        }

        #[test]
        fn log_sum_exp_agrees_with_f64(logits in prop::collection::vec(-90f32..90.0, 1..100)) {
            let max = logits.iter().fold(f64::NEG_INFINITY, |a, &l| a.max(l as f64));
            let want = max + logits.iter().map(|&l| (l as f64 - max).exp()).sum::<f64>().ln();
            prop_assert!((log_sum_exp(&logits) - want).abs() < 3e-7);
            let at = argmax(&logits).unwrap() as usize;
            prop_assert!(logits[..at].iter().all(|&l| l < logits[at]) && logits[at..].iter().all(|&l| l <= logits[at]));
        }

        #[test]
        fn top_k_agrees_with_a_full_sort(logits in prop::collection::vec((-20i32..20).prop_map(|l| l as f32 / 4.0), 1..100), k in 0usize..40) {
            let got = top_k(&logits, k).unwrap();
            let all = log_softmax(&logits);
            let mut ids: Vec<usize> = (0..logits.len()).collect();
            ids.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            prop_assert_eq!(got.len(), k.min(logits.len()));
            for (g, &i) in got.iter().zip(&ids) {
                prop_assert_eq!(g.token as usize, i);
                prop_assert_eq!(g.logprob, all[i]);
            }
        }
    }
}
