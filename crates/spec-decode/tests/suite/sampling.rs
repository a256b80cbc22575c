//! Sampling through the whole driver: the same tokens where the drafter makes no draws, the same
//! distribution where it does.

use std::collections::BTreeMap;

use breakers_core::{SamplingConfig, TokenId};
use breakers_spec_decode::{
    Config, DraftLength, Drafter, ModelDraftConfig, NgramConfig, NgramDrafter, NoDrafter, Proposal,
    Speculator,
};

use crate::support::{RandomDrafter, TreeDrafter, model_drafter, plain, run};
use crate::toy::{LogitsFn, Toy, markov, perturbed, repetitive};

const ROOM: usize = 1 << 20;

fn samplings() -> Vec<SamplingConfig> {
    vec![
        SamplingConfig::temperature(1.0),
        SamplingConfig { top_k: 8, top_p: 0.9, ..SamplingConfig::temperature(0.6) },
        SamplingConfig { min_p: 0.1, repetition_penalty: 1.2, ..SamplingConfig::temperature(0.8) },
    ]
}

#[test]
fn drafters_without_draws_give_the_tokens_of_the_seed() {
    const VOCAB: usize = 30;
    type Make = fn(&LogitsFn) -> Box<dyn Drafter>;
    let drafters: [(&str, Make); 5] = [
        ("none", |_| Box::new(NoDrafter)),
        ("n-gram", |_| Box::new(NgramDrafter::new(NgramConfig::paper()))),
        ("tree", |target| Box::new(TreeDrafter { logits: perturbed(target.clone(), 0.3, 2), width: 2 })),
        ("random", |_| Box::new(RandomDrafter::new(VOCAB, 8))),
        ("draft model", |target| {
            let config = ModelDraftConfig { proposal: Proposal::MostLikely, ..Default::default() };
            Box::new(model_drafter(perturbed(target.clone(), 0.3, 1), VOCAB, config))
        }),
    ];
    let prompt: Vec<TokenId> = (0..10).collect();
    for target in [repetitive(VOCAB, 3), markov(VOCAB, 2, 4.0, 5)] {
        for (i, sampling) in samplings().into_iter().enumerate() {
            for (name, make) in &drafters {
                for draft_length in
                    [DraftLength::Fixed(1), DraftLength::Fixed(5), DraftLength::Adaptive { max: 9 }]
                {
                    let config = Config {
                        max_tokens: 150,
                        sampling: sampling.clone(),
                        seed: 100 + i as u64,
                        end_tokens: Some(vec![]),
                        draft_length,
                        ..Config::default()
                    };
                    let (expected, _) = plain(&target, &prompt, &config, ROOM);
                    let result = run(&target, VOCAB, ROOM, make(&target), &prompt, &config);
                    assert_eq!(result.tokens, expected, "{name}, {draft_length:?}, {sampling:?}");
                }
            }
        }
    }
}

#[test]
fn sampled_drafts_of_fixed_length_repeat_with_the_seed() {
    let target = markov(20, 2, 3.0, 5);
    let of = |seed| {
        let drafter = model_drafter(perturbed(target.clone(), 1.0, 1), 20, ModelDraftConfig::default());
        let config = Config {
            max_tokens: 60,
            sampling: SamplingConfig::temperature(1.0),
            seed,
            draft_length: DraftLength::Fixed(4),
            ..Config::default()
        };
        run(&target, 20, ROOM, drafter, &[1], &config).tokens
    };
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
}

type Counts = BTreeMap<Vec<TokenId>, f64>;

/// Probabilities of all texts of `n` tokens, straight from the definition.
fn exact(logits: &LogitsFn, prompt: &[TokenId], sampling: &SamplingConfig, n: usize) -> Counts {
    let mut all = Counts::from([(Vec::new(), 1.0)]);
    for _ in 0..n {
        let mut longer = Counts::new();
        for (text, probability) in all {
            let context = [prompt, &text[..]].concat();
            for &(token, p) in sampling.distribution(&logits(&context), &context).unwrap().entries() {
                longer.insert([&text[..], &[token]].concat(), probability * p);
            }
        }
        all = longer;
    }
    all
}

/// Texts of `n` tokens, as often as they come up with `n_runs` seeds.
fn sample(
    logits: &LogitsFn,
    drafter: impl Drafter,
    prompt: &[TokenId],
    sampling: &SamplingConfig,
    n: usize,
    n_runs: u64,
) -> Counts {
    let mut model = Toy::new(3, logits.clone());
    let mut speculator = Speculator::new(drafter);
    let mut counts = Counts::new();
    for seed in 0..n_runs {
        let config = Config {
            max_tokens: n,
            sampling: sampling.clone(),
            seed,
            draft_length: DraftLength::Fixed(3),
            ..Config::default()
        };
        let text = speculator
            .generate(&mut model, prompt, &config, |_| std::ops::ControlFlow::Continue(()))
            .unwrap()
            .tokens;
        *counts.entry(text).or_insert(0.0) += 1.0;
    }
    counts
}

/// The value that χ² exceeds once in 1000 times (Wilson and Hilferty's approximation).
fn critical(freedom: usize) -> f64 {
    const Z: f64 = 3.0902;
    let k = 2.0 / (9.0 * freedom as f64);
    freedom as f64 * (1.0 - k + Z * k.sqrt()).powi(3)
}

/// χ² of counts against probabilities and the degrees of freedom; texts expected less than 5 times are one.
fn chi_square(counts: &Counts, probabilities: &Counts) -> (f64, usize) {
    let n: f64 = counts.values().sum();
    assert!(counts.keys().all(|text| probabilities.contains_key(text)), "a text that cannot come up");
    let (mut sum, mut cells) = (0.0, 0);
    let (mut rest_expected, mut rest_found) = (0.0, 0.0);
    for (text, p) in probabilities {
        let (expected, found) = (p * n, counts.get(text).copied().unwrap_or(0.0));
        if expected < 5.0 {
            rest_expected += expected;
            rest_found += found;
        } else {
            sum += (found - expected).powi(2) / expected;
            cells += 1;
        }
    }
    if rest_expected > 0.0 {
        sum += (rest_found - rest_expected).powi(2) / rest_expected;
        cells += 1;
    }
    (sum, cells - 1)
}

/// χ² of the hypothesis that two samples of one size come from one distribution.
fn two_samples(a: &Counts, b: &Counts) -> (f64, usize) {
    let texts: std::collections::BTreeSet<&Vec<TokenId>> = a.keys().chain(b.keys()).collect();
    let of = |counts: &Counts, text| counts.get(text).copied().unwrap_or(0.0);
    let (mut sum, mut cells, mut rest) = (0.0, 0usize, (0.0, 0.0));
    for text in texts {
        let (x, y): (f64, f64) = (of(a, text), of(b, text));
        if x + y < 10.0 {
            rest = (rest.0 + x, rest.1 + y);
        } else {
            sum += (x - y).powi(2) / (x + y);
            cells += 1;
        }
    }
    if rest.0 + rest.1 > 0.0 {
        sum += (rest.0 - rest.1).powi(2) / (rest.0 + rest.1);
        cells += 1;
    }
    (sum, cells - 1)
}

#[test]
fn critical_values_are_those_of_the_tables() {
    for (freedom, expected) in [(10, 29.588), (80, 124.839)] {
        let found = critical(freedom);
        assert!((found / expected - 1.0).abs() < 0.01, "{freedom}: {found}");
    }
}

#[test]
fn samples_follow_the_targets_distribution() {
    const TOKENS: usize = 4;
    const RUNS: u64 = 20_000;
    let target = markov(3, 2, 1.5, 21);
    let similar = perturbed(target.clone(), 1.0, 22);
    let unrelated = markov(3, 2, 2.5, 23);
    let prompt = [0, 1, 0, 1];
    let sampled = ModelDraftConfig::default();
    let drafters: Vec<(&str, Box<dyn Drafter>)> = vec![
        ("draft model, identical", Box::new(model_drafter(target.clone(), 3, sampled))),
        ("draft model, similar", Box::new(model_drafter(similar.clone(), 3, sampled))),
        ("draft model, unrelated", Box::new(model_drafter(unrelated, 3, sampled))),
        ("n-gram", Box::new(NgramDrafter::new(NgramConfig::paper()))),
        ("tree", Box::new(TreeDrafter { logits: similar.clone(), width: 2 })),
    ];
    let sampling = SamplingConfig { repetition_penalty: 1.2, ..SamplingConfig::temperature(0.9) };
    let probabilities = exact(&target, &prompt, &sampling, TOKENS);
    let plain = sample(&target, NoDrafter, &prompt, &sampling, TOKENS, RUNS);
    for (name, drafter) in drafters {
        let counts = sample(&target, drafter, &prompt, &sampling, TOKENS, RUNS);
        for (against, (found, freedom)) in
            [("exact", chi_square(&counts, &probabilities)), ("plain", two_samples(&counts, &plain))]
        {
            let limit = critical(freedom);
            assert!(found < limit, "{name} against {against}: χ² {found:.1} of at most {limit:.1}");
        }
    }
    // The test notices when a similar model's tokens are simply believed.
    let believed = sample(&similar, NoDrafter, &prompt, &sampling, TOKENS, RUNS);
    let (found, freedom) = chi_square(&believed, &probabilities);
    assert!(found > 2.0 * critical(freedom), "χ² {found:.1}");
    assert!(two_samples(&believed, &plain).0 > 2.0 * critical(freedom));
}
