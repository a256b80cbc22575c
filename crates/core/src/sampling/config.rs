use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::exp::{append_exp, scale as scale_weights, sum, sum_exp};
use super::logits::{check, largest_of};
use super::select::{Tokens, bound_of_largest};
use super::{Distribution, SamplingError};
use crate::{TokenId, TokenMask};

/// How a token is drawn.
///
/// The settings are applied in this order: logit bias; repetition penalty; frequency and presence penalties;
/// the mask, if one is given; temperature; top-k; top-p, among what top-k has left; min-p.
///
/// Penalties and biases may be of any size. A logit that would overflow becomes the largest or the smallest
/// finite number, so no token is excluded by accident.
///
/// # Example
/// ```
/// use breakers_core::SamplingConfig;
///
/// let config = SamplingConfig { top_p: 0.95, frequency_penalty: 0.5, ..SamplingConfig::temperature(0.8) };
/// config.validate()?;
/// # Ok::<(), breakers_core::SamplingError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingConfig {
    /// Logits are divided by this. 0 means greedy: always the arg-max.
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
    /// Subtracted from the logit of a token once for each time that the token was seen before (as in OpenAI's
    /// interface); 0 changes nothing.
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of every token that was seen before, however often (as in OpenAI's
    /// interface); 0 changes nothing.
    pub presence_penalty: f32,
    /// How many of the latest tokens the three penalties look at, including those of the prompt.
    pub repetition_window: usize,
    /// Added to the logits of these tokens.
    pub logit_bias: BTreeMap<TokenId, f32>,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self::greedy()
    }
}

/// Working memory for a draw, kept from draw to draw so that nothing as large as the vocabulary is allocated
/// again.
#[derive(Clone, Debug, Default)]
pub(super) struct Scratch {
    /// Logits after penalties, biases and mask.
    row: Vec<f32>,
    /// The tokens left; their weights are probabilities in the end.
    pub(super) tokens: Tokens,
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
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_window: 64,
            logit_bias: BTreeMap::new(),
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

    /// Whether the answer is the arg-max of the raw logits, so that no logits need to be copied. This does
    /// not take a mask into account.
    pub fn is_plain_argmax(&self) -> bool {
        self.is_greedy() && !self.changes_logits()
    }

    /// Whether a penalty or a bias changes the logits, and with them perhaps the most likely token.
    pub fn changes_logits(&self) -> bool {
        self.has_penalties() || !self.logit_bias.is_empty()
    }

    fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
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
        check(r.is_finite() && r > 0.0, "repetition_penalty", r, "a finite number > 0")?;
        for (name, value) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            check(value.is_finite(), name, value, "a finite number")?;
        }
        self.logit_bias.values().try_for_each(|&b| check(b.is_finite(), "logit_bias", b, "a finite number"))
    }

    /// The distribution that a token is drawn from.
    ///
    /// # Shapes
    /// `logits`: `[vocab]`. `history`: the tokens so far, oldest first; ids outside of the vocabulary are
    /// ignored, as they cannot be drawn.
    ///
    /// # Errors
    /// [`SamplingError`] for NaN or +∞ logits, for parameters out of range, and for a bias of a token outside
    /// of the vocabulary.
    ///
    /// # Example
    /// ```
    /// use breakers_core::SamplingConfig;
    /// let d = SamplingConfig::temperature(1.0).distribution(&[0.0, 0.0], &[])?;
    /// assert_eq!(d.probability(0), 0.5);
    /// # Ok::<(), breakers_core::SamplingError>(())
    /// ```
    pub fn distribution(&self, logits: &[f32], history: &[TokenId]) -> Result<Distribution, SamplingError> {
        self.distribution_within(logits, history, None)
    }

    /// The distribution that a token is drawn from, among the tokens that a mask allows. Tokens beyond the
    /// mask's vocabulary are excluded.
    ///
    /// # Errors
    /// Those of [`distribution`](Self::distribution), and [`SamplingError::NothingAllowed`].
    ///
    /// # Example
    /// ```
    /// use breakers_core::{SamplingConfig, TokenMask};
    /// let mask = TokenMask::of(4, [1, 3]);
    /// let config = SamplingConfig::temperature(1.0);
    /// let d = config.distribution_within(&[9.0, 0.0, 9.0, 0.0], &[], Some(&mask))?;
    /// assert_eq!(d.entries(), [(1, 0.5), (3, 0.5)]);
    /// # Ok::<(), breakers_core::SamplingError>(())
    /// ```
    pub fn distribution_within(
        &self,
        logits: &[f32],
        history: &[TokenId],
        mask: Option<&TokenMask>,
    ) -> Result<Distribution, SamplingError> {
        let mut scratch = Scratch::default();
        self.select(logits, history, mask, &mut scratch)?;
        Ok(Distribution::from_probabilities(&scratch.tokens.ids, &scratch.tokens.weights))
    }

    /// Fills `scratch` with the tokens that may be drawn, at least one, and their probabilities.
    pub(super) fn select(
        &self,
        logits: &[f32],
        history: &[TokenId],
        mask: Option<&TokenMask>,
        scratch: &mut Scratch,
    ) -> Result<(), SamplingError> {
        self.validate()?;
        let mut max = check(logits)?;
        let Scratch { row, tokens } = scratch;
        let row = if self.changes_logits() || mask.is_some() {
            row.clear();
            match mask {
                Some(mask) => mask.append_allowed(logits, row),
                None => row.extend_from_slice(logits),
            }
            self.change(row, history)?;
            max = largest_of(row);
            if let (f32::NEG_INFINITY, Some(mask)) = (max, mask) {
                return Err(SamplingError::NothingAllowed { allowed: mask.count(), vocab_size: row.len() });
            }
            &row[..]
        } else {
            logits
        };
        if self.is_greedy() {
            tokens.gather(row, max);
            tokens.retain(|i, _, _| i == 0);
            tokens.weights.push(1.0);
            return Ok(());
        }

        let inverse = 1.0 / f64::from(self.temperature);
        let (max_64, scale) = (f64::from(max), inverse.min(f64::from(f32::MAX)) as f32);
        let limited = self.top_k > 0 && self.top_k < row.len();
        // Collects a little more than what the filters leave.
        let mut rough_total = 0.0;
        let mut least_weight = f64::MIN_POSITIVE;
        if self.top_p < 1.0 && !limited {
            rough_total = sum_exp(row, max, scale);
            // The tokens below this weight have, together, at most half of the probability that may be left
            // out.
            least_weight = (1.0 - f64::from(self.top_p)) * rough_total / (2 * row.len()) as f64;
        }
        if self.top_p == 1.0 || !limited {
            least_weight = least_weight.max(0.999 * f64::from(self.min_p));
        }
        let mut least = floor_to_f32(max_64 + f64::from(self.temperature) * least_weight.ln());
        if limited {
            let bound = bound_of_largest(row, self.top_k);
            least = if self.top_p == 1.0 { least.max(bound) } else { bound.max(f32::MIN) };
        }
        tokens.gather(row, least);
        if limited && tokens.ids.len() > self.top_k {
            tokens.keep_heaviest(self.top_k as f64, false);
        }

        let Tokens { logits: kept, weights, .. } = tokens;
        append_exp(weights, kept, max_64, inverse);
        if self.top_p < 1.0 {
            let mut total = sum(weights);
            if !limited {
                // Those that were not collected weigh so little that f32 is enough for them.
                total += (rough_total - sum_exp(kept, max, scale)).max(0.0);
            }
            tokens.keep_heaviest(f64::from(self.top_p) * total, true);
        }
        let least = f64::from(self.min_p).max(f64::MIN_POSITIVE);
        if tokens.weights.iter().fold(false, |any, &weight| any | (weight < least)) {
            tokens.retain(|_, _, weight| weight >= least);
        }
        let total = sum(&tokens.weights);
        scale_weights(&mut tokens.weights, 1.0 / total);
        Ok(())
    }

    /// Applies biases and penalties.
    fn change(&self, row: &mut [f32], history: &[TokenId]) -> Result<(), SamplingError> {
        let vocab_size = row.len();
        for (&token, &bias) in &self.logit_bias {
            let logit =
                row.get_mut(token as usize).ok_or(SamplingError::InvalidToken { token, vocab_size })?;
            *logit = finite(*logit, f64::from(*logit) + f64::from(bias));
        }
        if !self.has_penalties() {
            return Ok(());
        }
        let recent = &history[history.len().saturating_sub(self.repetition_window)..];
        let mut seen: Vec<TokenId> = recent.to_vec();
        seen.sort_unstable();
        for same in seen.chunk_by(|a, b| a == b) {
            let Some(logit) = row.get_mut(same[0] as usize) else { continue };
            let (before, by) = (f64::from(*logit), f64::from(self.repetition_penalty));
            let repeated = if before > 0.0 { before / by } else { before * by };
            let taken =
                same.len() as f64 * f64::from(self.frequency_penalty) + f64::from(self.presence_penalty);
            *logit = finite(*logit, repeated - taken);
        }
        Ok(())
    }
}

/// A changed logit. Tokens that were excluded stay excluded, and no other token becomes so.
fn finite(before: f32, after: f64) -> f32 {
    if before == f32::NEG_INFINITY { before } else { (after as f32).clamp(f32::MIN, f32::MAX) }
}

/// A finite number that is less than `x` by some units in the last place.
fn floor_to_f32(x: f64) -> f32 {
    (x as f32).next_down().max(f32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::argmax;
    use proptest::prelude::*;

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
            ("frequency_penalty", SamplingConfig { frequency_penalty: f32::INFINITY, ..Default::default() }),
            ("presence_penalty", SamplingConfig { presence_penalty: f32::NAN, ..Default::default() }),
            ("logit_bias", SamplingConfig { logit_bias: [(0, f32::NAN)].into(), ..Default::default() }),
        ] {
            match c.distribution(&[0.0], &[]) {
                Err(SamplingError::Parameter { name: found, .. }) => assert_eq!(found, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn penalties_and_biases_are_those_of_their_formulas() {
        let changed = |config: SamplingConfig, history: &[TokenId]| {
            let mut row = [2.0, -1.0, 0.5, f32::NEG_INFINITY];
            config.change(&mut row, history).unwrap();
            row
        };
        let base = SamplingConfig::greedy();
        let frequency = SamplingConfig { frequency_penalty: 0.5, ..base.clone() };
        assert_eq!(changed(frequency, &[0, 1, 0, 3, 9]), [1.0, -1.5, 0.5, f32::NEG_INFINITY]);
        let presence = SamplingConfig { presence_penalty: -0.25, ..base.clone() };
        assert_eq!(changed(presence, &[0, 1, 0]), [2.25, -0.75, 0.5, f32::NEG_INFINITY]);
        let all = SamplingConfig {
            logit_bias: [(1, 3.0), (2, -0.5), (3, 100.0)].into(),
            repetition_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            ..base.clone()
        };
        // The bias comes first: token 1 is positive when it is divided.
        assert_eq!(changed(all.clone(), &[1, 1, 2]), [2.0, 1.0 - 1.25, -0.75, f32::NEG_INFINITY]);
        assert!(!all.is_plain_argmax() && base.is_plain_argmax());
        let last_two = SamplingConfig { repetition_window: 2, presence_penalty: 1.0, ..base.clone() };
        assert_eq!(changed(last_two, &[0, 1, 1])[..2], [2.0, -2.0]);
        let nothing = SamplingConfig { repetition_window: 0, presence_penalty: 1.0, ..base.clone() };
        assert_eq!(changed(nothing, &[0, 1])[..2], [2.0, -1.0]);
        let beyond = SamplingConfig { logit_bias: [(4, 1.0)].into(), ..base };
        let error = SamplingError::InvalidToken { token: 4, vocab_size: 4 };
        assert_eq!(beyond.distribution(&[0.0; 4], &[]), Err(error));
    }

    #[test]
    fn no_value_empties_a_distribution() {
        let extremes = [1e-45, 1e-38, 1e-3, 1.0, 1e3, 1e38, f32::MAX];
        let rows: [&[f32]; 6] = [
            &[1.0, 2.0, 3.0],
            &[-1.0, 0.0, -2.0],
            &[f32::MAX, f32::MIN, 0.0],
            &[1e-45, -1e-45, 0.0],
            &[f32::NEG_INFINITY, f32::MIN, f32::MIN],
            &[5.0; 300],
        ];
        for (temperature, penalty) in extremes.iter().flat_map(|t| extremes.map(|p| (*t, p))) {
            for additive in [0.0, f32::MAX, f32::MIN] {
                for (top_k, top_p, min_p) in
                    [(0, 1.0, 0.0), (1, 0.0, 1.0), (2, 1e-45, 0.5), (0, 1.0 - 6e-8, 1e-45)]
                {
                    for row in rows {
                        let config = SamplingConfig {
                            temperature,
                            top_k,
                            top_p,
                            min_p,
                            repetition_penalty: penalty,
                            frequency_penalty: additive,
                            presence_penalty: additive,
                            logit_bias: [(1, additive)].into(),
                            ..SamplingConfig::greedy()
                        };
                        let found = config.distribution(row, &[0, 1, 1, 2]).unwrap();
                        let sum: f64 = found.entries().iter().map(|e| e.1).sum();
                        assert!(
                            (sum - 1.0).abs() < 1e-9 && found.entries().iter().all(|e| e.1 > 0.0),
                            "{config:?}"
                        );
                        assert!(row[0] > f32::MIN || found.probability(0) == 0.0, "{config:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_mask_excludes_for_all_filters() {
        let row = [5.0, 4.0, 3.0, 2.0, 9.0];
        // Token 4 is beyond the mask's vocabulary.
        let mask = TokenMask::of(4, [1, 3]);
        for temperature in [0.0, 1e-30, 1.0] {
            for (top_k, top_p, min_p) in [(0, 1.0, 0.0), (1, 1.0, 0.0), (0, 0.5, 0.0), (0, 1.0, 0.9)] {
                let config =
                    SamplingConfig { top_k, top_p, min_p, ..SamplingConfig::temperature(temperature) };
                let found = config.distribution_within(&row, &[], Some(&mask)).unwrap();
                assert!(found.probability(1) > 0.0 && found.entries().iter().all(|e| mask.is_allowed(e.0)));
                let none = config.distribution_within(&row, &[], Some(&TokenMask::none(5)));
                assert_eq!(none, Err(SamplingError::NothingAllowed { allowed: 0, vocab_size: 5 }));
                // A mask cannot bring back what the model excludes.
                let dead =
                    config.distribution_within(&[f32::NEG_INFINITY, 1.0], &[], Some(&TokenMask::of(2, [0])));
                assert_eq!(dead, Err(SamplingError::NothingAllowed { allowed: 1, vocab_size: 2 }));
                for bad in [f32::NAN, f32::INFINITY] {
                    let error = config.distribution_within(&[bad, 1.0], &[], Some(&TokenMask::of(2, [1])));
                    assert!(matches!(error, Err(SamplingError::NotFinite { token: 0, .. })));
                }
            }
        }
    }

    #[test]
    fn settings_survive_json_and_old_ones_are_read() {
        let config = SamplingConfig { logit_bias: [(7, -100.0)].into(), ..SamplingConfig::temperature(0.5) };
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<SamplingConfig>(&json).unwrap(), config);
        let old: SamplingConfig = serde_json::from_str(r#"{"temperature": 0.5}"#).unwrap();
        assert_eq!(old, SamplingConfig::temperature(0.5));
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
    }
}
