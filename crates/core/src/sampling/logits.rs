//! Rows of logits: arg-max, top k, log-probabilities.

use super::SamplingError;
use super::exp::{LANES, exp_nonpositive_f64, sum_exp, widest};
use super::select::{Tokens, bound_of_largest};
use crate::{TokenId, TokenLogprob, TokenMask};

/// Checks that tokens can be chosen by these logits, and returns the largest.
pub(super) fn check(logits: &[f32]) -> Result<f32, SamplingError> {
    let (max, any_bad) = largest_and_bad(logits);
    if any_bad || max == f32::NEG_INFINITY {
        let at = logits.iter().position(|&l| is_bad(l)).unwrap_or(0);
        let value = *logits.get(at).ok_or(SamplingError::Empty)?;
        return Err(SamplingError::NotFinite { token: at as TokenId, value });
    }
    Ok(max)
}

widest! {
    /// The largest logit (−∞ if there is none), and whether any is NaN or +∞. A NaN is never the largest.
    fn largest_and_bad(logits: &[f32]) -> (f32, bool) {
        let (chunks, rest) = logits.as_chunks::<LANES>();
        let mut max = [f32::NEG_INFINITY; LANES];
        let mut bad = [0u32; LANES];
        for chunk in chunks {
            for ((max, bad), &l) in max.iter_mut().zip(&mut bad).zip(chunk) {
                *max = if l > *max { l } else { *max };
                *bad |= is_bad(l) as u32;
            }
        }
        for (&l, (max, bad)) in rest.iter().zip(max.iter_mut().zip(&mut bad)) {
            *max = if l > *max { l } else { *max };
            *bad |= is_bad(l) as u32;
        }
        (max.iter().copied().fold(f32::NEG_INFINITY, f32::max), bad != [0; LANES])
    }
}

/// NaN or +∞.
#[inline(always)]
fn is_bad(logit: f32) -> bool {
    logit.is_nan() || logit == f32::INFINITY
}

/// The largest number, or −∞ if there is none. NaNs do not count.
pub(super) fn largest_of(logits: &[f32]) -> f32 {
    largest_and_bad(logits).0
}

/// The index of the largest logit; among equal ones, the lowest.
///
/// # Errors
/// [`SamplingError::Empty`]; [`SamplingError::NotFinite`] for a NaN or +∞, and if all are −∞.
pub fn argmax(logits: &[f32]) -> Result<TokenId, SamplingError> {
    let max = check(logits)?;
    let holds_it = |chunk: &&[f32]| chunk.iter().fold(false, |any, &l| any | (l == max));
    let found = logits.chunks(16 * LANES).enumerate().find(|(_, chunk)| holds_it(chunk));
    let (chunk_idx, chunk) = found.unwrap_or((0, logits));
    let within = chunk.iter().position(|&l| l == max).unwrap_or(0);
    Ok((chunk_idx * 16 * LANES + within) as TokenId)
}

/// The index of the largest logit among the tokens of a mask; of equal ones the lowest. No other logit is
/// looked at, so that it is the token that a greedy draw under the mask takes, for a fraction of the work
/// where the mask is sparse.
///
/// # Errors
/// [`SamplingError::NotFinite`] for a NaN or +∞ in the mask; [`SamplingError::NothingAllowed`] if no token of
/// the mask has a finite logit.
///
/// # Example
/// ```
/// use breakers_core::{TokenMask, argmax_within};
/// let mask = TokenMask::of(4, [1, 2]);
/// assert_eq!(argmax_within(&[9.0, 1.0, 2.0, 9.0], &mask)?, 2);
/// # Ok::<(), breakers_core::SamplingError>(())
/// ```
pub fn argmax_within(logits: &[f32], mask: &TokenMask) -> Result<TokenId, SamplingError> {
    const BITS: usize = u32::BITS as usize;
    let mut best: Option<(TokenId, f32)> = None;
    for ((chunk, &word), first) in logits.chunks(BITS).zip(mask.words()).zip((0..).step_by(BITS)) {
        let mut left = word;
        while left != 0 {
            let bit = left.trailing_zeros();
            left &= left - 1;
            let Some(&logit) = chunk.get(bit as usize) else { break };
            let token = first + bit;
            if is_bad(logit) {
                return Err(SamplingError::NotFinite { token, value: logit });
            }
            if best.map_or(logit > f32::NEG_INFINITY, |(_, most)| logit > most) {
                best = Some((token, logit));
            }
        }
    }
    let nothing = || SamplingError::NothingAllowed { allowed: mask.count(), vocab_size: logits.len() };
    best.map(|(token, _)| token).ok_or_else(nothing)
}

/// ln Σ exp(logits). Exponentials have the precision of `f32`, their sum that of `f64`. It is finite exactly
/// if no logit is NaN or +∞ and at least one is finite.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = largest_of(logits);
    if max.is_infinite() {
        let any_nan = logits.iter().any(|l| l.is_nan());
        return if any_nan { f64::NAN } else { f64::from(max) };
    }
    f64::from(max) + sum_exp(logits, max, 1.0).ln()
}

/// Log-probabilities `[vocab]` of logits `[vocab]`, in nats.
pub fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let z = log_sum_exp(logits);
    logits.iter().map(|&l| (f64::from(l) - z) as f32).collect()
}

/// Log-probability of a token under the softmax of logits `[vocab]`, in nats; −∞ for an excluded one.
///
/// # Errors
/// [`SamplingError::Empty`], [`SamplingError::NotFinite`], [`SamplingError::InvalidToken`].
///
/// # Example
/// ```
/// let logprob = breakers_core::log_probability(&[0.0, 0.0], 1)?;
/// assert_eq!(logprob, 0.5f64.ln());
/// assert!(breakers_core::log_probability(&[0.0, 0.0], 2).is_err());
/// # Ok::<(), breakers_core::SamplingError>(())
/// ```
pub fn log_probability(logits: &[f32], token: TokenId) -> Result<f64, SamplingError> {
    log_probability_given(logits, token, log_sum_exp(logits))
}

/// [`log_probability`] , given the logarithm of the sum.
fn log_probability_given(logits: &[f32], token: TokenId, z: f64) -> Result<f64, SamplingError> {
    if !z.is_finite() {
        check(logits)?;
    }
    let vocab_size = logits.len();
    let logit = logits.get(token as usize).ok_or(SamplingError::InvalidToken { token, vocab_size })?;
    Ok(f64::from(*logit) - z)
}

/// KL(p ‖ q) of the softmaxes of two rows of logits `[vocab]`, in nats: the cost of coding by `q` when `p` is
/// true. Never below zero; +∞ where `q` excludes a token that `p` does not.
///
/// # Errors
/// [`SamplingError::Length`] for rows of different lengths, [`SamplingError::Empty`],
/// [`SamplingError::NotFinite`].
///
/// # Example
/// ```
/// let (p, q) = ([0.0, 1.0], [5.0, 6.0]);
/// assert!(breakers_core::kullback_leibler(&p, &q)? < 1e-6);
/// # Ok::<(), breakers_core::SamplingError>(())
/// ```
pub fn kullback_leibler(p: &[f32], q: &[f32]) -> Result<f64, SamplingError> {
    if p.len() != q.len() {
        return Err(SamplingError::Length { expected: p.len(), found: q.len() });
    }
    let (zp, zq) = (log_sum_exp(p), log_sum_exp(q));
    for (z, row) in [(zp, p), (zq, q)] {
        if !z.is_finite() {
            check(row)?;
        }
    }
    Ok(divergence_given(p, zp, q, zq).max(0.0))
}

widest! {
    /// [`kullback_leibler`] , given the logarithms of the sums.
    fn divergence_given(p: &[f32], zp: f64, q: &[f32], zq: f64) -> f64 {
        let term = |p: f32, q: f32| {
            let log_p = f64::from(p) - zp;
            let term = exp_nonpositive_f64(log_p) * (log_p - (f64::from(q) - zq));
            // Terms too small for a float's exponent add nothing.
            if log_p > -80.0 { term } else { 0.0 }
        };
        let ((p_chunks, p_rest), (q_chunks, q_rest)) = (p.as_chunks::<LANES>(), q.as_chunks::<LANES>());
        let mut lanes = [0.0f64; LANES];
        for (p, q) in p_chunks.iter().zip(q_chunks) {
            for (lane, (&p, &q)) in lanes.iter_mut().zip(p.iter().zip(q)) {
                *lane += term(p, q);
            }
        }
        let rest: f64 = p_rest.iter().zip(q_rest).map(|(&p, &q)| term(p, q)).sum();
        lanes.iter().sum::<f64>() + rest
    }
}

/// How likely a token is under the softmax of logits `[vocab]`, and the `n_top` most likely tokens. The sum
/// of the exponentials is computed once for all of them.
///
/// # Errors
/// Those of [`log_probability`] and [`top_k`].
///
/// # Example
/// ```
/// let score = breakers_core::token_score(&[0.0, 0.0, f32::NEG_INFINITY], 1, 2)?;
/// assert_eq!((score.logprob, score.top.len()), (0.5f32.ln(), 2));
/// # Ok::<(), breakers_core::SamplingError>(())
/// ```
pub fn token_score(logits: &[f32], token: TokenId, n_top: usize) -> Result<TokenScore, SamplingError> {
    let z = log_sum_exp(logits);
    let logprob = log_probability_given(logits, token, z)? as f32;
    Ok(TokenScore { logprob, top: top_k_given(logits, n_top, z) })
}

/// How likely a token was.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TokenScore {
    /// Natural logarithm of its probability under the model's full softmax, before penalties, biases, mask
    /// and temperature.
    pub logprob: f32,
    /// The most likely tokens in its place under the same softmax, best first.
    pub top: Vec<TokenLogprob>,
}

impl TokenScore {
    /// A score from its parts.
    pub fn new(logprob: f32, top: Vec<TokenLogprob>) -> Self {
        Self { logprob, top }
    }
}

/// Up to this many tokens, the best are found by insertion instead of selection.
const SMALL_K: usize = 16;

/// The `k` most likely tokens with their log-probabilities, best first, equal ones by ascending id.
///
/// # Errors
/// [`SamplingError`] for NaN or +∞ logits.
pub fn top_k(logits: &[f32], k: usize) -> Result<Vec<TokenLogprob>, SamplingError> {
    check(logits)?;
    Ok(top_k_given(logits, k, log_sum_exp(logits)))
}

/// [`top_k`], given the logarithm of the sum; no logit may be NaN.
fn top_k_given(logits: &[f32], k: usize, z: f64) -> Vec<TokenLogprob> {
    // Adding 0.0 makes −0 and 0 equal.
    let logit = |id: TokenId| logits[id as usize] + 0.0;
    let by_logit = |a: &TokenId, b: &TokenId| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b));
    let k = k.min(logits.len());
    if k == 0 {
        return Vec::new();
    }
    let mut ids: Vec<TokenId>;
    if k <= SMALL_K {
        // Writes nothing as large as the vocabulary.
        ids = Vec::with_capacity(k + 1);
        let mut worst = f32::NEG_INFINITY;
        for (chunk, first) in logits.chunks(LANES).zip((0..).step_by(LANES)) {
            // Nearly all chunks hold no candidate.
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
        let mut tokens = Tokens::default();
        tokens.gather(logits, bound_of_largest(logits, k));
        tokens.keep_heaviest(k as f64, false);
        ids = tokens.ids;
        ids.sort_unstable_by(by_logit);
    }
    let logprob = |token| (f64::from(logits[token as usize]) - z) as f32;
    ids.into_iter().map(|token| TokenLogprob { token, logprob: logprob(token) }).collect()
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
        assert_eq!(argmax(&[-0.0, 0.0]), Ok(0));
        let bad = argmax_within(&[0.0, f32::NAN], &TokenMask::all(2));
        assert!(matches!(bad, Err(SamplingError::NotFinite { token: 1, .. })));
        let mut long = vec![0.0; 3000];
        (long[1700], long[2000]) = (1.0, 1.0);
        assert_eq!(argmax(&long), Ok(1700));
    }

    proptest! {
        #[test]
        fn the_best_of_a_mask_is_the_greedy_draw_under_it(
            logits in prop::collection::vec(prop_oneof![Just(f32::NEG_INFINITY), (-3i8..3).prop_map(f32::from)], 1..90),
            allowed in prop::collection::vec(0u32..100, 0..40), n_tokens in 0usize..100,
        ) {
            use crate::{Sampler, SamplingConfig};
            let mask = TokenMask::of(n_tokens, allowed);
            let found = argmax_within(&logits, &mask);
            let drawn = Sampler::new(SamplingConfig::greedy(), 0).sample_within(&logits, &[], Some(&mask));
            // Rows of which nothing is finite are refused before the mask is looked at.
            if logits.iter().any(|l| l.is_finite()) {
                prop_assert_eq!(&found, &drawn);
            }
            prop_assert_eq!(found.is_ok(), drawn.is_ok());
            // Numbers outside of the mask are not looked at.
            let poisoned: Vec<f32> =
                (0..).zip(&logits).map(|(id, &l)| if mask.is_allowed(id) { l } else { f32::NAN }).collect();
            prop_assert_eq!(argmax_within(&poisoned, &mask), found);
        }
    }

    #[test]
    fn sums_of_nothing_are_zero() {
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 20]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
    }

    #[test]
    fn what_is_not_finite_is_an_error_wherever_it_stands() {
        for n in [1, 15, 16, 17, 40, 1000] {
            for at in [0, n / 2, n - 1] {
                for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
                    let mut row = vec![1.0; n];
                    row[at] = bad;
                    let error = SamplingError::NotFinite { token: at as TokenId, value: bad };
                    let same = |found: SamplingError| assert_eq!(format!("{found}"), format!("{error}"));
                    same(argmax(&row).unwrap_err());
                    same(top_k(&row, 3).unwrap_err());
                    same(top_k(&row, 0).unwrap_err());
                    same(log_probability(&row, 0).unwrap_err());
                    same(kullback_leibler(&row, &vec![0.0; n]).unwrap_err());
                    same(kullback_leibler(&vec![0.0; n], &row).unwrap_err());
                    assert!(!log_sum_exp(&row).is_finite());
                }
            }
            let none = vec![f32::NEG_INFINITY; n];
            let error = SamplingError::NotFinite { token: 0, value: f32::NEG_INFINITY };
            assert_eq!(argmax(&none), Err(error.clone()));
            assert_eq!(top_k(&none, 1), Err(error.clone()));
            assert_eq!(log_probability(&none, 0), Err(error));
        }
        assert_eq!(log_probability(&[], 0), Err(SamplingError::Empty));
        assert_eq!(kullback_leibler(&[], &[]), Err(SamplingError::Empty));
        let short = kullback_leibler(&[0.0, 0.0], &[0.0]);
        assert_eq!(short, Err(SamplingError::Length { expected: 2, found: 1 }));
    }

    #[test]
    fn the_log_probability_of_a_token_is_that_of_the_softmax() {
        let row = [0.5, f32::NEG_INFINITY, -3.0];
        let all = log_softmax(&row);
        for token in 0..3 {
            assert_eq!(log_probability(&row, token).unwrap() as f32, all[token as usize]);
        }
        let beyond = log_probability(&row, 3);
        assert_eq!(beyond, Err(SamplingError::InvalidToken { token: 3, vocab_size: 3 }));
    }

    #[test]
    fn divergences_are_those_of_the_formula() {
        let p = [0.5f32.ln(), 0.25f32.ln(), 0.25f32.ln()];
        let q = [0.25f32.ln() + 3.0, 0.5f32.ln() + 3.0, 0.25f32.ln() + 3.0];
        let expected = 0.5 * 2f64.ln() - 0.25 * 2f64.ln();
        assert!((kullback_leibler(&p, &q).unwrap() - expected).abs() < 1e-6);
        assert_eq!(kullback_leibler(&p, &p), Ok(0.0));
        // Uniform against one that has half of its mass on one token.
        let n = 30_000;
        let mut q = vec![0.0f32; n];
        q[7] = ((n - 1) as f32).ln();
        let expected = -(0.5 * n as f64).ln() / n as f64
            + (n - 1) as f64 / n as f64 * (2.0 * (n - 1) as f64 / n as f64).ln();
        assert!((kullback_leibler(&vec![0.0; n], &q).unwrap() - expected).abs() < 1e-4);
        // Tokens that p excludes cost nothing; tokens that only q excludes make the divergence infinite.
        let half = [0.0, 0.0, f32::NEG_INFINITY];
        assert!((kullback_leibler(&half, &[0.0; 3]).unwrap() - 1.5f64.ln()).abs() < 1e-6);
        assert_eq!(kullback_leibler(&[0.0; 3], &half), Ok(f64::INFINITY));
    }

    proptest! {
        #[test]
        fn log_sum_exp_agrees_with_f64(logits in prop::collection::vec(-90f32..90.0, 1..100)) {
            let max = logits.iter().fold(f64::NEG_INFINITY, |a, &l| a.max(l as f64));
            let want = max + logits.iter().map(|&l| (l as f64 - max).exp()).sum::<f64>().ln();
            prop_assert!((log_sum_exp(&logits) - want).abs() < 3e-7);
            let at = argmax(&logits).unwrap() as usize;
            prop_assert!(logits[..at].iter().all(|&l| l < logits[at]) && logits[at..].iter().all(|&l| l <= logits[at]));
        }

        #[test]
        fn top_k_agrees_with_a_full_sort(
            logits in prop::collection::vec((-20i32..20).prop_map(|l| l as f32 / 4.0), 1..600), k in 0usize..80,
        ) {
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
