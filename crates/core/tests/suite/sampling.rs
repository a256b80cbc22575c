//! The sampler against its plain reference: the same tokens are left, with the same probabilities, and the
//! same uniform number draws the same token.

use breakers_core::{Sampler, SamplingConfig, TokenId, TokenMask, log_softmax, token_score, top_k};
use proptest::prelude::*;

use crate::reference::{self, Noise, Shape, row};

/// Checks one distribution against the reference.
///
/// Where rounding may decide whether one more token is kept, the two may differ by that token; elsewhere the
/// tokens are the same and their probabilities agree to 1e-12.
fn check(config: &SamplingConfig, logits: &[f32], history: &[TokenId]) {
    let expected = reference::distribution(config, logits, history);
    let found = config.distribution(logits, history).unwrap();
    // Probabilities below the range of normal numbers are not kept; what stands near its end may be.
    let likely =
        |entries: &[(TokenId, f64)]| entries.iter().copied().filter(|e| e.1 > 1e-300).collect::<Vec<_>>();
    let tokens = |entries: &[(TokenId, f64)]| entries.iter().map(|e| e.0).collect::<Vec<_>>();
    let (kept, expected) = (likely(found.entries()), likely(&expected));
    assert_eq!(tokens(&kept), tokens(&expected), "{config:?}");
    for (&(token, p), &(_, want)) in kept.iter().zip(&expected) {
        assert!((p / want - 1.0).abs() < 1e-12, "{config:?}, token {token}: {p} for {want}");
    }
    let mut noise = Noise(1);
    let draws = |u: f64| assert_eq!(found.at(u), reference::at(&expected, u), "{config:?}, {u}");
    (0..20).for_each(|_| draws(noise.uniform()));
    [0.0, 1.0 - 1e-9].into_iter().for_each(draws);
    // The sampler draws what the distribution says.
    let (mut sampler, mut other) = (Sampler::new(config.clone(), 5), Sampler::new(config.clone(), 5));
    for _ in 0..5 {
        assert_eq!(sampler.sample(logits, history).unwrap(), other.draw(&found), "{config:?}");
    }
}

fn filters() -> Vec<SamplingConfig> {
    let mut all = Vec::new();
    for temperature in [0.3, 1.0, 2.5] {
        for top_k in [0, 1, 40, 700] {
            for top_p in [1.0, 0.999_999_9, 0.95, 0.5, 0.0] {
                for min_p in [0.0, 1e-6, 0.1, 1.0] {
                    all.push(SamplingConfig {
                        top_k,
                        top_p,
                        min_p,
                        ..SamplingConfig::temperature(temperature)
                    });
                }
            }
        }
    }
    all
}

#[test]
fn large_rows_are_those_of_the_reference() {
    for shape in [Shape::Text, Shape::Bell, Shape::Flat] {
        for (vocab, seed) in [(5000, 1), (49_152, 2)] {
            let logits = row(shape, vocab, seed);
            for config in filters().iter().step_by(if vocab > 5000 { 7 } else { 1 }) {
                check(config, &logits, &[]);
            }
        }
    }
}

#[test]
fn the_largest_vocabularies_are_those_of_the_reference() {
    for (shape, vocab) in [(Shape::Text, 151_936), (Shape::Text, 262_144), (Shape::Bell, 262_144)] {
        let logits = row(shape, vocab, 3);
        check(&SamplingConfig { top_p: 0.95, ..SamplingConfig::temperature(1.0) }, &logits, &[]);
        check(&SamplingConfig::temperature(1.0), &logits, &[]);
    }
}

/// At a low temperature the least likely tokens stand about the end of the normal numbers.
#[test]
fn tokens_of_no_weight_are_left_out() {
    for exponent in [-700.0f32, -706.0, -708.0, -710.0, -745.0, -1000.0] {
        let config = SamplingConfig::temperature(0.0625);
        let mut logits = vec![0.0; 20];
        logits[1] = exponent * 0.0625;
        check(&config, &logits, &[]);
        let held = config.distribution(&logits, &[]).unwrap().entries().iter().any(|e| e.0 == 1);
        assert_eq!(held, f64::from(exponent).exp() >= f64::MIN_POSITIVE, "{exponent}");
    }
}

fn any_config() -> impl Strategy<Value = SamplingConfig> {
    let top_p = prop_oneof![Just(1.0f32), 0f32..1.0];
    let min_p = prop_oneof![Just(0.0f32), 0f32..0.5];
    (
        (0.05f32..4.0, prop_oneof![Just(0usize), 1usize..60], top_p, min_p),
        (
            0.5f32..3.0,
            -1f32..1.0,
            -1f32..1.0,
            0usize..30,
            prop::collection::btree_map(0u32..20, -5f32..5.0, 0..4),
        ),
    )
        .prop_map(
            |((temperature, top_k, top_p, min_p), (repetition, frequency, presence, window, bias))| {
                SamplingConfig {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    repetition_penalty: repetition,
                    frequency_penalty: frequency,
                    presence_penalty: presence,
                    repetition_window: window,
                    logit_bias: bias,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn all_settings_are_those_of_the_reference(
        config in any_config(),
        logits in prop::collection::vec(prop_oneof![9 => -20f32..20.0, 1 => Just(f32::NEG_INFINITY)], 20..300),
        history in prop::collection::vec(0u32..320, 0..50),
    ) {
        prop_assume!(logits.iter().any(|l| l.is_finite()));
        // A difference of one rounding in a penalty is one in the logit; the filters must not see it.
        let changed = SamplingConfig { repetition_penalty: 2.0, frequency_penalty: 0.5, ..config.clone() };
        let logits: Vec<f32> = logits.iter().map(|l| (l * 16.0).round() / 16.0).collect();
        let round = |x: f32| (x * 16.0).round() / 16.0;
        let changed = SamplingConfig {
            presence_penalty: round(changed.presence_penalty),
            logit_bias: changed.logit_bias.iter().map(|(t, b)| (*t, round(*b))).collect(),
            ..changed
        };
        check(&changed, &logits, &history);
        let filters = SamplingConfig {
            repetition_penalty: 1.0, frequency_penalty: 0.0, presence_penalty: 0.0,
            logit_bias: Default::default(), ..config
        };
        check(&filters, &logits, &history);
    }

    /// A mask is −∞ in the logits.
    #[test]
    fn a_mask_is_minus_infinity(
        config in any_config(), greedy: bool,
        row in prop::collection::vec((-20f32..20.0, any::<bool>()), 20..300),
        history in prop::collection::vec(0u32..320, 0..50),
    ) {
        prop_assume!(row.iter().any(|r| r.1));
        let config = if greedy { SamplingConfig { temperature: 0.0, ..config } } else { config };
        let logits: Vec<f32> = row.iter().map(|r| r.0).collect();
        let masked: Vec<f32> = row.iter().map(|r| if r.1 { r.0 } else { f32::NEG_INFINITY }).collect();
        let allowed = (0..row.len() as TokenId).filter(|&id| row[id as usize].1);
        let mask = TokenMask::of(row.len(), allowed);
        let expected = config.distribution(&masked, &history).unwrap();
        prop_assert_eq!(&config.distribution_within(&logits, &history, Some(&mask)).unwrap(), &expected);
        let (mut sampler, mut other) = (Sampler::new(config.clone(), 5), Sampler::new(config, 5));
        let drawn = sampler.sample_within(&logits, &history, Some(&mask)).unwrap();
        prop_assert_eq!(drawn, other.sample(&masked, &history).unwrap());
        let score = token_score(&logits, drawn, 3).unwrap();
        prop_assert_eq!(score.logprob, log_softmax(&logits)[drawn as usize]);
        prop_assert_eq!(score.top, top_k(&logits, 3).unwrap());
    }
}

/// The value that χ² exceeds once in 1000 times (Wilson and Hilferty's approximation).
fn critical(freedom: usize) -> f64 {
    const Z: f64 = 3.0902;
    let k = 2.0 / (9.0 * freedom as f64);
    freedom as f64 * (1.0 - k + Z * k.sqrt()).powi(3)
}

#[test]
fn draws_follow_the_reference_distribution() {
    const DRAWS: usize = 100_000;
    let logits: Vec<f32> = row(Shape::Bell, 300, 4).iter().map(|l| l / 2.0).collect();
    let history = [3, 5, 3, 280];
    let base = SamplingConfig::temperature(1.0);
    let configs = [
        base.clone(),
        SamplingConfig { top_p: 0.95, ..base.clone() },
        SamplingConfig { top_k: 30, top_p: 0.9, temperature: 1.3, ..base.clone() },
        SamplingConfig { min_p: 0.05, frequency_penalty: 1.0, presence_penalty: 0.5, ..base.clone() },
        SamplingConfig { top_p: 0.8, repetition_penalty: 1.5, logit_bias: [(7, 4.0)].into(), ..base },
    ];
    let chi_square = |counts: &[usize], expected: &reference::Entries| {
        let (mut sum, mut cells, mut rest) = (0.0, 0, (0.0, 0.0));
        for &(token, p) in expected {
            let (found, expected) = (counts[token as usize] as f64, p * DRAWS as f64);
            if expected < 5.0 {
                rest = (rest.0 + found, rest.1 + expected);
            } else {
                sum += (found - expected).powi(2) / expected;
                cells += 1;
            }
        }
        if rest.1 > 0.0 {
            sum += (rest.0 - rest.1).powi(2) / rest.1;
            cells += 1;
        }
        (sum, critical(cells - 1))
    };
    let mut of_others = Vec::new();
    for (seed, config) in configs.iter().enumerate() {
        let expected = reference::distribution(config, &logits, &history);
        let mut sampler = Sampler::new(config.clone(), seed as u64);
        let mut counts = vec![0; logits.len()];
        (0..DRAWS).for_each(|_| counts[sampler.sample(&logits, &history).unwrap() as usize] += 1);
        let n_possible: usize = expected.iter().map(|e| counts[e.0 as usize]).sum();
        assert_eq!(n_possible, DRAWS, "{config:?}: a token that cannot come up");
        let (found, limit) = chi_square(&counts, &expected);
        assert!(found < limit, "{config:?}: χ² {found:.1} of at most {limit:.1}");
        of_others.push(counts);
    }
    // The test tells the settings apart.
    let expected = reference::distribution(&configs[1], &logits, &history);
    let (found, limit) = chi_square(&of_others[3], &expected);
    assert!(found > 2.0 * limit, "χ² {found:.1}");
}
