//! The expected gain of speculation, in closed form.

/// Expected tokens per step when each of γ draft tokens is accepted with probability α independently:
/// (1 − α^(γ+1))/(1 − α).
///
/// # Source
/// Leviathan et al. (arXiv 2211.17192), equation 1.
///
/// # Example
/// ```
/// use breakers_spec_decode::theory::expected_tokens;
/// assert_eq!(expected_tokens(0.5, 2), 1.75);
/// assert_eq!(expected_tokens(1.0, 4), 5.0);
/// ```
pub fn expected_tokens(alpha: f64, gamma: usize) -> f64 {
    // Horner's scheme of 1 + α + … + α^γ: exact at α = 1, where the quotient is not.
    (0..gamma).fold(1.0, |sum, _| 1.0 + alpha * sum)
}

/// Expected speed-up over plain decoding if verifying γ + 1 rows takes as long as a plain step, and drafting
/// one token takes `c` plain steps: (1 − α^(γ+1))/((1 − α)(γc + 1)).
///
/// # Source
/// Leviathan et al. (arXiv 2211.17192), theorem 3.8.
///
/// # Example
/// ```
/// use breakers_spec_decode::theory::speedup_expected;
/// // 80 % accepted, 4 tokens at a twentieth of a step each.
/// assert!((speedup_expected(0.8, 4, 0.05) - 2.8013).abs() < 1e-4);
/// ```
pub fn speedup_expected(alpha: f64, gamma: usize, c: f64) -> f64 {
    speedup_measured(alpha, gamma, gamma as f64 * c, 1.0)
}

/// The same with measured costs, both in plain steps: `draft` for all γ tokens together, `verify` for the
/// step over γ + 1 rows, which on a CPU takes longer than one over a single row.
pub fn speedup_measured(alpha: f64, gamma: usize, draft: f64, verify: f64) -> f64 {
    expected_tokens(alpha, gamma) / (draft + verify)
}

/// The draft length up to `max_gamma` with the largest expected speed-up, and that speed-up. Length 0,
/// plain decoding, is a candidate. `draft(γ)` and `verify(γ + 1)` are costs in plain steps.
///
/// # Example
/// ```
/// use breakers_spec_decode::theory::best_length;
/// // Drafting at half a step per token with 40 % acceptance loses.
/// let (length, speedup) = best_length(0.4, 8, |n| 0.5 * n as f64, |_| 1.0);
/// assert_eq!((length, speedup), (0, 1.0));
/// ```
pub fn best_length(
    alpha: f64,
    max_gamma: usize,
    draft: impl Fn(usize) -> f64,
    verify: impl Fn(usize) -> f64,
) -> (usize, f64) {
    let mut best = (0, 1.0);
    for gamma in 1..=max_gamma {
        let speedup = speedup_measured(alpha, gamma, draft(gamma), verify(gamma + 1));
        if speedup > best.1 {
            best = (gamma, speedup);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_to_the_closed_form() {
        for alpha in [0.0, 0.1, 0.5, 0.8, 0.95] {
            for gamma in [0, 1, 2, 5, 16] {
                for c in [0.0, 0.05, 0.5] {
                    let expected = (1.0 - f64::powi(alpha, gamma as i32 + 1)) / (1.0 - alpha);
                    assert!((expected_tokens(alpha, gamma) - expected).abs() < 1e-12);
                    let speedup = expected / (gamma as f64 * c + 1.0);
                    assert!((speedup_expected(alpha, gamma, c) - speedup).abs() < 1e-12);
                }
            }
        }
        assert_eq!(expected_tokens(1.0, 16), 17.0);
    }

    #[test]
    fn the_best_length_grows_with_acceptance_and_shrinks_with_cost() {
        let best =
            |alpha, c: f64| best_length(alpha, 16, |n| c * n as f64, |rows| 0.95 + 0.05 * rows as f64).0;
        assert!(best(0.5, 0.1) < best(0.9, 0.1));
        assert!(best(0.9, 0.3) < best(0.9, 0.1));
        assert_eq!(best(0.3, 0.5), 0);
        assert_eq!(best(1.0, 0.0), 16);
    }
}
