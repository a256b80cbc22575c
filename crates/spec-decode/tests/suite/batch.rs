//! Several texts at a time: each is the same as if it were generated alone.

use std::ops::ControlFlow;

use breakers_core::{FinishReason, SamplingConfig, TokenId};
use breakers_spec_decode::{
    BatchSpeculator, Config, DraftLength, Drafter, Error, ModelDraftConfig, NgramDrafter, NoDrafter,
    Speculated, Stats,
};

use crate::support::{RandomDrafter, TreeDrafter, model_drafter, plain};
use crate::toy::{LogitsFn, Rules, Toy, markov, repetitive};

const VOCAB: usize = 24;

fn prompts(n: usize) -> Vec<Vec<TokenId>> {
    (1..=n as TokenId).map(|n| (0..3 * n).map(|i| i % VOCAB as TokenId).collect()).collect()
}

/// Generates all texts and checks what holds for every batch.
fn run<D: Drafter>(
    target: &LogitsFn,
    make: impl FnMut() -> Result<D, Error> + 'static,
    prompts: &[Vec<TokenId>],
    config: &Config,
) -> Vec<Speculated> {
    let mut model = Toy::new(VOCAB, target.clone());
    let borrowed: Vec<&[TokenId]> = prompts.iter().map(Vec::as_slice).collect();
    let mut pieces = vec![Vec::new(); prompts.len()];
    let mut speculator = BatchSpeculator::new(make);
    // Twice, so that drafters and experience are used again.
    for _ in 0..2 {
        pieces.iter_mut().for_each(Vec::clear);
        model.n_rows = 0;
        let texts = speculator
            .generate(&mut model, &borrowed, config, |text, tokens| {
                assert!(!tokens.is_empty());
                pieces[text].extend_from_slice(tokens);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(model.n_open(), 0);
        assert_eq!(texts.len(), prompts.len());
        let mut sum = Stats::default();
        for ((text, prompt), pieces) in texts.iter().zip(prompts).zip(&pieces) {
            let (tokens, finish) = plain(target, prompt, config, 1 << 20);
            assert_eq!((&text.tokens, text.finish), (&tokens, finish));
            assert_eq!(*pieces, tokens);
            sum.merge(&text.stats);
        }
        assert_eq!(model.n_rows, sum.prompt_tokens + sum.steps + sum.drafted);
        if prompts.is_empty() {
            return texts;
        }
    }
    let texts = speculator.generate(&mut model, &borrowed, config, |_, _| ControlFlow::Continue(()));
    texts.unwrap()
}

#[test]
fn each_text_is_the_one_it_would_be_alone() {
    let lengths = [DraftLength::Fixed(0), DraftLength::Fixed(5), DraftLength::Adaptive { max: 8 }];
    let samplings = [SamplingConfig::greedy(), SamplingConfig::temperature(0.8)];
    for (sampling, draft_length) in samplings.iter().flat_map(|s| lengths.map(|l| (s, l))) {
        let ends = Some(vec![5]);
        let config = Config {
            max_tokens: 60,
            sampling: sampling.clone(),
            draft_length,
            end_tokens: ends,
            ..Config::default()
        };
        for n in [0, 1, 2, 5] {
            let target = repetitive(VOCAB, 3);
            run(&target, || Ok(NgramDrafter::default()), &prompts(n), &config);
            run(&target, || Ok(NoDrafter), &prompts(n), &config);
            let mut seed = 0;
            let random = move || {
                seed += 1;
                Ok(RandomDrafter::new(VOCAB, seed))
            };
            run(&target, random, &prompts(n), &config);
        }
        let target = markov(VOCAB, 1, 2.0, 9);
        let logits = target.clone();
        run(&target, move || Ok(TreeDrafter { logits: logits.clone(), width: 2 }), &prompts(3), &config);
    }
    // A draft model: greedy, as its own samples change the tokens drawn, though not their distribution.
    let (target, draft) = (markov(VOCAB, 1, 2.0, 9), markov(VOCAB, 1, 1.5, 9));
    let make = move || Ok(model_drafter(draft.clone(), VOCAB, ModelDraftConfig::default()));
    run(&target, make, &prompts(4), &Config { max_tokens: 60, ..Config::default() });
}

#[test]
fn drafts_save_passes_in_a_batch() {
    let target = repetitive(VOCAB, 3);
    let config = Config { max_tokens: 200, draft_length: DraftLength::Fixed(6), ..Config::default() };
    let passes = |length| {
        let mut model = Toy::new(VOCAB, target.clone());
        let config = Config { draft_length: DraftLength::Fixed(length), ..config.clone() };
        let prompts = prompts(4);
        let prompts: Vec<&[TokenId]> = prompts.iter().map(Vec::as_slice).collect();
        let mut speculator = BatchSpeculator::new(|| Ok(NgramDrafter::default()));
        speculator.generate(&mut model, &prompts, &config, |_, _| ControlFlow::Continue(())).unwrap();
        model.n_forwards
    };
    assert_eq!(passes(0), 200);
    assert!(passes(6) < 120, "{}", passes(6));
}

#[test]
fn one_text_ends_and_the_others_go_on() {
    let target = repetitive(VOCAB, 3);
    let mut model = Toy::new(VOCAB, target.clone());
    let prompts = prompts(3);
    let borrowed: Vec<&[TokenId]> = prompts.iter().map(Vec::as_slice).collect();
    let config = Config { max_tokens: 80, ..Config::default() };
    let mut speculator = BatchSpeculator::new(|| Ok(NgramDrafter::default()));
    let texts = speculator
        .generate(&mut model, &borrowed, &config, |text, _| match text {
            1 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
        .unwrap();
    for (i, text) in texts.iter().enumerate() {
        let expected = plain(&target, &prompts[i], &config, 1 << 20).0;
        let (n, finish) = if i == 1 { (1, FinishReason::Cancelled) } else { (80, FinishReason::Length) };
        assert_eq!((&text.tokens[..], text.finish), (&expected[..n], finish));
    }
}

#[test]
fn an_error_leaves_no_sequence_behind() {
    let check = |fail_at: Option<usize>, prompts: &[&[TokenId]], n_drafters: usize| {
        let mut model = Toy::new(VOCAB, repetitive(VOCAB, 3));
        model.rules = Rules::Trait;
        model.fail_at = fail_at;
        let mut left = n_drafters;
        let make = move || match left.checked_sub(1) {
            Some(n) => {
                left = n;
                Ok(NgramDrafter::default())
            }
            None => Err(Error::EmptyPrompt),
        };
        let config = Config { max_tokens: 50, ..Config::default() };
        let result = BatchSpeculator::new(make)
            .generate(&mut model, prompts, &config, |_, _| ControlFlow::Continue(()));
        assert_eq!(model.n_open(), 0);
        result.unwrap_err()
    };
    let two: [&[TokenId]; 2] = [&[1, 2], &[3]];
    for pass in [0, 1, 7] {
        assert!(matches!(check(Some(pass), &two, 2), Error::Target(_)), "pass {pass}");
    }
    assert!(matches!(check(None, &[&[1, 2], &[]], 2), Error::EmptyPrompt));
    assert!(matches!(check(None, &two, 1), Error::EmptyPrompt));
}
