//! Every drafter at every length gives the tokens of plain greedy decoding.

use breakers_core::{SamplingConfig, TokenId};
use breakers_spec_decode::{
    Config, Continuation, DraftLength, Drafter, ModelDraftConfig, NgramConfig, NgramDrafter, NoDrafter,
};
use proptest::prelude::*;

use crate::support::{RandomDrafter, TreeDrafter, model_drafter, plain, run};
use crate::toy::{LogitsFn, markov, perturbed, repetitive};

const VOCAB: usize = 40;
const ROOM: usize = 1 << 20;

/// Targets whose texts suit a drafter well, somewhat and not at all.
fn targets() -> Vec<(&'static str, LogitsFn)> {
    vec![
        ("repetitive", repetitive(VOCAB, 3)),
        ("markov-1", markov(VOCAB, 1, 3.0, 5)),
        // Depends on so much that nothing ever repeats.
        ("markov-30", markov(VOCAB, 30, 3.0, 6)),
    ]
}

/// Name and constructor, given the target.
type MakeDrafter = (&'static str, fn(&LogitsFn) -> Box<dyn Drafter>);

fn ngram(continuation: Continuation, min_match: usize) -> Box<dyn Drafter> {
    Box::new(NgramDrafter::new(NgramConfig { min_match, continuation }))
}

fn draft_model(logits: LogitsFn, min_probability: f32) -> Box<dyn Drafter> {
    Box::new(model_drafter(logits, VOCAB, ModelDraftConfig { min_probability, ..Default::default() }))
}

fn drafters() -> Vec<MakeDrafter> {
    vec![
        ("none", |_| Box::new(NoDrafter)),
        ("n-gram, recent", |_| ngram(Continuation::MostRecent, 2)),
        ("n-gram, frequent", |_| ngram(Continuation::MostFrequent, 1)),
        ("draft model, identical", |target| draft_model(target.clone(), 0.0)),
        ("draft model, similar", |target| draft_model(perturbed(target.clone(), 0.4, 1), 0.1)),
        ("draft model, unrelated", |_| draft_model(markov(VOCAB, 2, 3.0, 99), 0.0)),
        ("tree", |target| Box::new(TreeDrafter { logits: perturbed(target.clone(), 0.6, 2), width: 2 })),
        ("random", |_| Box::new(RandomDrafter::new(VOCAB, 8))),
    ]
}

#[test]
fn no_mismatch_in_20_000_tokens_per_drafter() {
    const TOKENS: usize = 430;
    let prompt: Vec<TokenId> = (0..25).collect();
    for (name, make) in drafters() {
        let (mut n_tokens, mut n_accepted) = (0, 0);
        for (target_name, target) in targets() {
            let config = Config { max_tokens: TOKENS, ..Config::default() };
            let (expected, _) = plain(&target, &prompt, &config, ROOM);
            let lengths = (1..=16).map(DraftLength::Fixed).chain([DraftLength::Adaptive { max: 16 }]);
            for draft_length in lengths {
                let config = Config { draft_length, ..config.clone() };
                let result = run(&target, VOCAB, ROOM, make(&target), &prompt, &config);
                let mismatches = result.tokens.iter().zip(&expected).filter(|(a, b)| a != b).count();
                assert_eq!(mismatches, 0, "{name} on {target_name}, {draft_length:?}");
                assert_eq!(result.tokens.len(), TOKENS);
                n_tokens += result.tokens.len();
                n_accepted += result.stats.accepted;
            }
        }
        assert!(n_tokens >= 20_000, "{name}: only {n_tokens} tokens");
        // A drafter that is never right would prove nothing.
        assert!(name == "none" || n_accepted > 200, "{name}: {n_accepted} accepted");
    }
}

#[test]
fn an_identical_draft_model_is_always_right() {
    let target = markov(VOCAB, 3, 3.0, 5);
    for length in [1, 3, 7] {
        let config = Config {
            max_tokens: 1 + 10 * (length + 1),
            draft_length: DraftLength::Fixed(length),
            ..Config::default()
        };
        let drafter = model_drafter(target.clone(), VOCAB, ModelDraftConfig::default());
        let stats = run(&target, VOCAB, ROOM, drafter, &[1, 2, 3], &config).stats;
        assert_eq!((stats.steps, stats.tokens_per_step(), stats.alpha()), (10, (length + 1) as f64, 1.0));
    }
}

fn any_draft_length() -> impl Strategy<Value = DraftLength> {
    prop_oneof![
        (0usize..20).prop_map(DraftLength::Fixed),
        (0usize..20).prop_map(|max| DraftLength::Adaptive { max })
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Any prompt, limits, end tokens and penalty: tokens and the reason of the end are those of plain
    /// decoding.
    #[test]
    fn any_request(
        prompt in prop::collection::vec(0..VOCAB as u32, 1..30),
        max_tokens in 0usize..60,
        extra_context in 0usize..80,
        end_tokens in prop::collection::vec(0..VOCAB as u32, 0..3),
        draft_length in any_draft_length(),
        target in 0usize..3,
        drafter in 0usize..8,
        penalty in prop_oneof![Just(1.0f32), Just(1.3f32)],
    ) {
        let (_, target) = targets().swap_remove(target);
        let (name, make) = drafters()[drafter];
        let max_context = prompt.len() + extra_context;
        let config = Config {
            max_tokens,
            sampling: SamplingConfig { repetition_penalty: penalty, ..SamplingConfig::greedy() },
            end_tokens: Some(end_tokens),
            draft_length,
            ..Config::default()
        };
        let expected = plain(&target, &prompt, &config, max_context);
        let result = run(&target, VOCAB, max_context, make(&target), &prompt, &config);
        prop_assert_eq!((result.tokens, result.finish), expected, "{}", name);
    }
}
