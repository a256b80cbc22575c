//! Which version a request gets.

use sha2::{Digest as _, Sha256};

/// The place, among versions with weights, that a key always gets.
///
/// Weighted rendezvous hashing: each version has a score for the key, and the best one is taken. If a weight
/// changes or a version comes or goes, only those keys move that must; the order of the versions plays no
/// part.
///
/// # Source
/// D. Thaler and C. Ravishankar, "A name-based mapping scheme for rendezvous" (1996); with weights as in C.
/// Schindelhauer and G. Schomaker, "Weighted distributed hash tables" (2005), the logarithmic method.
pub(super) fn draw<'a>(
    alias: &str,
    key: &[u8],
    shares: impl Iterator<Item = (&'a str, u32)>,
) -> Option<usize> {
    let scores = shares.map(|(version, weight)| {
        let hash = Sha256::new()
            .chain_update(alias)
            .chain_update([0])
            .chain_update(version)
            .chain_update([0])
            .chain_update(key)
            .finalize();
        let bits = hash[..8].iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        // Uniform in the open interval from 0 to 1.
        let uniform = ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -uniform.ln() / f64::from(weight)
    });
    scores.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `n` keys each version gets.
    fn counts(shares: &[(&str, u32)], n: u32) -> Vec<f64> {
        let mut counts = vec![0.0; shares.len()];
        for key in 0..n {
            counts[draw("m", &key.to_le_bytes(), shares.iter().copied()).unwrap()] += 1.0;
        }
        counts
    }

    #[test]
    fn versions_get_their_shares() {
        let n = 100_000;
        for shares in [
            &[("a", 1), ("b", 1)][..],
            &[("a", 90), ("b", 10)][..],
            &[("a", 1), ("b", 2), ("c", 3), ("d", 94)][..],
        ] {
            let total: u32 = shares.iter().map(|share| share.1).sum();
            let chi_square: f64 = counts(shares, n)
                .iter()
                .zip(shares)
                .map(|(found, share)| {
                    let expected = f64::from(n) * f64::from(share.1) / f64::from(total);
                    (found - expected).powi(2) / expected
                })
                .sum();
            // The 0.9999 quantile for three degrees of freedom; the keys are fixed, so that this cannot
            // change.
            assert!(chi_square < 21.1, "{shares:?}: {chi_square}");
        }
    }

    #[test]
    fn only_those_move_that_must() {
        let pick = |key: u32, shares: &[(&'static str, u32)]| {
            let place = draw("m", &key.to_le_bytes(), shares.iter().copied()).unwrap();
            shares[place].0
        };
        let (mut moved, mut other_alias) = (0, 0);
        for key in 0..10_000 {
            let before = pick(key, &[("a", 90), ("b", 10)]);
            assert_eq!(before, pick(key, &[("b", 10), ("a", 90)]), "the order plays no part");
            let after = pick(key, &[("a", 80), ("b", 20)]);
            assert!(!(before == "b" && after == "a"), "nobody leaves the version that grows");
            moved += u32::from(before != after);
            let other = draw("n", &key.to_le_bytes(), [("a", 90), ("b", 10)].into_iter()).unwrap();
            other_alias += u32::from((other == 0) != (before == "a"));
        }
        assert!((800..1200).contains(&moved), "{moved}: from 10 to 20 of 100");
        assert!((1500..2100).contains(&other_alias), "{other_alias}: each alias draws for itself");
        assert_eq!(draw("m", b"x", std::iter::empty()), None);
    }
}
