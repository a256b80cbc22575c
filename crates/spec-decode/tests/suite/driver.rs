//! The driver: limits, ends, errors, several texts in one forward pass.

use std::ops::ControlFlow;

use breakers_core::{FinishReason, LanguageModel as _, SamplingConfig, SequenceId, TokenId, Want};
use breakers_spec_decode::{
    Config, Decoding, Draft, DraftLength, DraftRequest, Drafter, Error, ModelDraftConfig, NgramDrafter,
    NoDrafter, Result, Speculator, Stats, speculate,
};

use crate::support::{TreeDrafter, model_drafter, plain, run, run_with};
use crate::toy::{LogitsFn, Rules, Toy, markov, repetitive};

const VOCAB: usize = 30;
const ROOM: usize = 1 << 20;

fn config(max_tokens: usize, length: usize) -> Config {
    Config { max_tokens, draft_length: DraftLength::Fixed(length), ..Config::default() }
}

fn go_on(_: &[TokenId]) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Always proposes the same draft, good or bad.
struct Stubborn(Draft);

impl Drafter for Stubborn {
    fn name(&self) -> &str {
        "stubborn"
    }
    fn start(&mut self, _: &[TokenId]) -> Result<()> {
        Ok(())
    }
    fn propose(&mut self, _: &mut DraftRequest<'_>) -> Result<Draft> {
        Ok(self.0.clone())
    }
}

#[test]
fn an_end_token_inside_of_an_accepted_draft_ends_the_text() {
    let target = markov(VOCAB, 2, 3.0, 5);
    let free = plain(&target, &[1, 2, 3], &config(40, 8), ROOM).0;
    for at in 0..12 {
        // Unless it came up before, the text ends with this token.
        let end = free[at];
        let length = free.iter().position(|&t| t == end).unwrap() + 1;
        let config = Config { end_tokens: Some(vec![end]), ..config(40, 8) };
        let drafter = model_drafter(target.clone(), VOCAB, ModelDraftConfig::default());
        let result = run(&target, VOCAB, ROOM, drafter, &[1, 2, 3], &config);
        assert_eq!((&result.tokens[..], result.finish), (&free[..length], FinishReason::EndOfText));
        // The same through a tree, whose drafter knows nothing of ends.
        let tree = TreeDrafter { logits: target.clone(), width: 1 };
        let result = run(&target, VOCAB, ROOM, tree, &[1, 2, 3], &config);
        assert_eq!((&result.tokens[..], result.finish), (&free[..length], FinishReason::EndOfText));
    }
}

#[test]
fn the_models_own_end_tokens_are_the_default() {
    let target = markov(VOCAB, 2, 3.0, 5);
    let free = plain(&target, &[1, 2, 3], &config(40, 0), ROOM).0;
    let mut model = Toy::new(VOCAB, target);
    model.info.end_tokens = vec![free[5]];
    let result = run_with(&mut model, NoDrafter, &[1, 2, 3], &config(40, 4));
    assert_eq!(result.finish, FinishReason::EndOfText);
    let ignoring = Config { end_tokens: Some(vec![]), ..config(40, 4) };
    assert_eq!(run_with(&mut model, NoDrafter, &[1, 2, 3], &ignoring).tokens, free);
}

#[test]
fn nothing_is_drafted_beyond_the_limits() {
    let target = markov(VOCAB, 2, 3.0, 5);
    // One step after the prompt's may emit all that is left, so that drafts shrink towards the end.
    for (max_tokens, max_context, expected_rows) in
        [(1, ROOM, 0), (2, ROOM, 1), (4, ROOM, 3), (50, 3, 0), (50, 4, 1), (50, 6, 3)]
    {
        let mut model = Toy::new(VOCAB, target.clone());
        model.info.max_context = max_context;
        let drafter = model_drafter(target.clone(), VOCAB, ModelDraftConfig::default());
        let stats = run_with(&mut model, drafter, &[1, 2, 3], &config(max_tokens, 16)).stats;
        assert_eq!(model.n_rows, 3 + expected_rows, "{max_tokens}, {max_context}: {stats:?}");
    }
    let result = run(&target, VOCAB, ROOM, NoDrafter, &[1], &config(0, 4));
    assert_eq!((result.tokens.len(), result.finish), (0, FinishReason::Length));
}

#[test]
fn greedy_decoding_asks_for_the_arg_max_only() {
    let check = |sampling: SamplingConfig, expected: Want| {
        let mut model = Toy::repetitive(VOCAB, 3);
        let sequence = model.open().unwrap();
        let config = Config { sampling, ..config(60, 4) };
        let mut drafter = NgramDrafter::default();
        let mut decoding = Decoding::new(&model, sequence, &[1, 2, 3], &config).unwrap();
        let mut n_rows = 0;
        while let Some(step) = decoding.plan(&mut drafter, usize::MAX).unwrap() {
            let wants: Vec<Want> = (0..step.tokens.len()).map(|row| step.want(row)).collect();
            if n_rows == 0 {
                assert_eq!(wants, [Want::Nothing, Want::Nothing, expected]);
            } else {
                assert!(wants.iter().all(|w| *w == expected), "{wants:?}");
            }
            n_rows += wants.len();
            let mut steps = [step];
            model.forward(&mut steps).unwrap();
            decoding.absorb(&mut model, &mut drafter, &steps[0], 0.0).unwrap();
        }
        assert!(n_rows > 60);
    };
    check(SamplingConfig::greedy(), Want::ArgMax);
    check(SamplingConfig { repetition_penalty: 1.1, ..SamplingConfig::greedy() }, Want::Logits);
    check(SamplingConfig::temperature(1.0), Want::Logits);
}

#[test]
fn a_text_goes_on_in_its_sequence() {
    let target = repetitive(VOCAB, 3);
    let mut model = Toy::new(VOCAB, target.clone());
    let sequence = model.open().unwrap();
    let mut speculator = Speculator::new(NgramDrafter::default());
    let mut text: Vec<TokenId> = vec![1, 2, 3];
    let mut n_fed = 0;
    for turn in 0..4usize {
        let expected = plain(&target, &text, &config(30, 6), ROOM).0;
        let result =
            speculator.continue_sequence(&mut model, sequence, &text, &config(30, 6), go_on).unwrap();
        assert_eq!(result.tokens, expected, "turn {turn}");
        // Only what the sequence did not hold was fed: the last token of before, and what was added.
        assert_eq!(result.stats.prompt_tokens, [3, 1 + 2][turn.min(1)]);
        n_fed += result.stats.prompt_tokens + result.stats.steps + result.stats.drafted;
        text.extend(result.tokens);
        text.extend([7, 8]);
    }
    assert_eq!(model.n_rows, n_fed);
}

#[test]
fn cancelling_ends_the_text_after_the_step() {
    let target = repetitive(VOCAB, 3);
    let expected = plain(&target, &[1, 2, 3], &config(100, 6), ROOM).0;
    let mut model = Toy::new(VOCAB, target);
    for after in [1, 2, 30, 60] {
        let sequence = model.open().unwrap();
        let mut n = 0;
        let mut drafter = NgramDrafter::default();
        let result = speculate(&mut model, sequence, &[1, 2, 3], &mut drafter, &config(100, 6), |tokens| {
            n += tokens.len();
            if n >= after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
        assert_eq!((result.finish, result.tokens.len()), (FinishReason::Cancelled, n));
        assert_eq!(result.tokens, expected[..n]);
        let held = [&[1, 2, 3], &expected[..n - 1]].concat();
        assert_eq!(model.tokens(sequence), held);
        assert_eq!(model.committed(sequence).unwrap(), held.len());
    }
    // A text that has ended anyway was not cancelled.
    let stop = |_: &[TokenId]| ControlFlow::Break(());
    let result = Speculator::new(NoDrafter).generate(&mut model, &[1], &config(1, 0), stop).unwrap();
    assert_eq!(result.finish, FinishReason::Length);
}

/// Runs until an error and checks that the sequence holds what was handed out; then goes on from there.
fn check_error(model: &mut Toy, drafter: &mut dyn Drafter, config: &Config, expected: &str) {
    let sequence = model.open().unwrap();
    let prompt = [1, 2, 3];
    let mut text = prompt.to_vec();
    let result = speculate(model, sequence, &prompt, drafter, config, |tokens| {
        text.extend_from_slice(tokens);
        ControlFlow::Continue(())
    });
    let error = format!("{:?}", result.unwrap_err());
    assert!(error.starts_with(expected), "{error}, expected {expected}");
    let held = if text.len() == prompt.len() { 0 } else { text.len() - 1 };
    assert_eq!(model.tokens(sequence), &text[..held]);
    assert_eq!(model.committed(sequence).unwrap(), held);
    model.close(sequence);
}

#[test]
fn an_error_leaves_the_sequence_at_the_tokens_handed_out() {
    let target = repetitive(VOCAB, 3);
    for fail_at in [0, 1, 2, 15, 30] {
        for rules in [Rules::Tidy, Rules::GreedyText] {
            let mut model = Toy::new(VOCAB, target.clone());
            (model.fail_at, model.rules) = (Some(fail_at), rules);
            check_error(&mut model, &mut NgramDrafter::default(), &config(200, 6), "Target(Engine");
            check_error(
                &mut Toy::new(VOCAB, target.clone()),
                &mut Stubborn(Draft::chain(vec![1; 7])),
                &config(99, 6),
                "DraftTooLong",
            );
        }
    }
    // Logits that go bad in the middle of a draft, after rows that were fine.
    let broken: LogitsFn =
        std::sync::Arc::new(
            move |text| {
                if text.len() > 40 { vec![f32::NAN; VOCAB] } else { repetitive(VOCAB, 3)(text) }
            },
        );
    let sampling = SamplingConfig { top_k: 1, ..SamplingConfig::temperature(1.0) };
    let config = Config { sampling, ..config(200, 6) };
    check_error(&mut Toy::new(VOCAB, broken.clone()), &mut NgramDrafter::default(), &config, "Sampling");
    let mut tree = TreeDrafter { logits: repetitive(VOCAB, 3), width: 2 };
    check_error(&mut Toy::new(VOCAB, broken), &mut tree, &config, "Sampling");
}

#[test]
fn a_faulty_drafter_is_an_error() {
    use breakers_core::Distribution;
    let certain = vec![Distribution::certain(2)];
    let sampled = Config { sampling: SamplingConfig::temperature(1.0), ..config(20, 4) };
    for (draft, config, expected) in [
        (Draft::chain(vec![1; 5]), config(20, 4), "DraftTooLong"),
        (Draft::chain(vec![VOCAB as TokenId]), config(20, 4), "DraftToken"),
        (Draft::tree(vec![1, 2], vec![None, Some(1)]), config(20, 4), "DraftParent"),
        (Draft::chain(vec![1, 2]).with_proposals(certain.clone()), sampled.clone(), "DraftShape"),
        (Draft::chain(vec![1]).with_proposals(certain), sampled, "ImpossibleProposal"),
    ] {
        check_error(&mut Toy::repetitive(VOCAB, 3), &mut Stubborn(draft), &config, expected);
    }
}

#[test]
fn what_cannot_be_continued_is_refused() {
    let mut model = Toy::repetitive(VOCAB, 3);
    model.info.max_context = 8;
    let open = |model: &mut Toy, tokens: &[TokenId], committed: usize| {
        let sequence = model.open().unwrap();
        if !tokens.is_empty() {
            model
                .forward(&mut [breakers_core::Step::last(sequence, tokens.to_vec(), Want::Nothing)])
                .unwrap();
            model.commit(sequence, committed).unwrap();
        }
        sequence
    };
    let empty = open(&mut model, &[], 0);
    let two = open(&mut model, &[1, 2], 2);
    let provisional = open(&mut model, &[1, 2], 1);
    let hot = Config { sampling: SamplingConfig::temperature(-1.0), ..config(5, 5) };
    let cases: [(SequenceId, &[TokenId], Config, &str); 6] = [
        (empty, &[], config(5, 5), "EmptyPrompt"),
        (two, &[1, 2], config(5, 5), "NothingToFeed { held: 2, prompt: 2 }"),
        (provisional, &[1, 2, 3], config(5, 5), "ProvisionalTokens { committed: 1, held: 2 }"),
        (SequenceId(99), &[1], config(5, 5), "Target(UnknownSequence"),
        (empty, &[1; 9], config(5, 5), "Target(Step(ContextFull { needed: 9, limit: 8 }))"),
        (empty, &[1], hot, "Sampling(Parameter { name: \"temperature\""),
    ];
    for (sequence, prompt, config, expected) in cases {
        let error = Decoding::new(&model, sequence, prompt, &config).unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{error:?}, expected {expected}");
    }
}

#[test]
fn a_step_that_was_not_answered_can_be_repeated() {
    let target = repetitive(VOCAB, 3);
    let mut model = Toy::new(VOCAB, target.clone());
    let sequence = model.open().unwrap();
    let mut drafter = NgramDrafter::default();
    let mut decoding = Decoding::new(&model, sequence, &[1, 2, 3], &config(80, 4)).unwrap();
    while let Some(step) = decoding.plan(&mut drafter, usize::MAX).unwrap() {
        let n = decoding.output().len();
        let mut steps = [step];
        model.forward(&mut steps).unwrap();
        let outputs = std::mem::take(&mut steps[0].outputs);
        let error = decoding.absorb(&mut model, &mut drafter, &steps[0], 0.0).unwrap_err();
        assert!(matches!(error, Error::MissingOutput { .. }), "{error:?}");
        assert_eq!((decoding.output().len(), decoding.finish()), (n, None));
        // The provisional tokens are gone; a second attempt succeeds.
        drop(outputs);
        let Some(step) = decoding.plan(&mut drafter, usize::MAX).unwrap() else { panic!("no step") };
        let mut steps = [step];
        model.forward(&mut steps).unwrap();
        decoding.absorb(&mut model, &mut drafter, &steps[0], 0.0).unwrap();
    }
    assert_eq!(decoding.output(), plain(&target, &[1, 2, 3], &config(80, 4), ROOM).0);
}

#[test]
fn many_texts_share_a_forward_pass() {
    let target = repetitive(VOCAB, 3);
    let mut model = Toy::new(VOCAB, target.clone());
    let prompts: Vec<Vec<TokenId>> = (1..6).map(|n| (0..3 * n).collect()).collect();
    let mut texts: Vec<(Decoding, NgramDrafter)> = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let sequence = model.open().unwrap();
        let decoding = Decoding::new(&model, sequence, prompt, &config(40 + 10 * i, 5)).unwrap();
        texts.push((decoding, NgramDrafter::default()));
    }
    loop {
        let mut steps = Vec::new();
        let mut owners = Vec::new();
        for (i, (decoding, drafter)) in texts.iter_mut().enumerate() {
            if let Some(step) = decoding.plan(drafter, usize::MAX).unwrap() {
                steps.push(step);
                owners.push(i);
            }
        }
        if steps.is_empty() {
            break;
        }
        model.forward(&mut steps).unwrap();
        for (step, i) in steps.iter().zip(owners) {
            let (decoding, drafter) = &mut texts[i];
            decoding.absorb(&mut model, drafter, step, 0.0).unwrap();
        }
    }
    for (i, (decoding, _)) in texts.iter().enumerate() {
        let expected = plain(&target, &prompts[i], &config(40 + 10 * i, 5), ROOM).0;
        assert_eq!(decoding.output(), expected);
    }
}

#[test]
fn statistics_add_up_and_survive_json() {
    let target = repetitive(VOCAB, 3);
    let mut sum = Stats::default();
    let mut runs: Vec<Stats> = Vec::new();
    for length in [0, 2, 6] {
        let result = run(&target, VOCAB, ROOM, NgramDrafter::default(), &[1, 2, 3], &config(100, length));
        sum.merge(&result.stats);
        runs.push(result.stats);
    }
    assert_eq!(sum.emitted, 300);
    assert_eq!((runs[0].tokens_per_step(), runs[0].speculative_steps), (1.0, 0));
    assert!(runs[2].tokens_per_step() > runs[1].tokens_per_step() && runs[1].tokens_per_step() > 1.0);
    assert_eq!(sum.steps, runs.iter().map(|r| r.steps).sum::<usize>());
    let tokens = sum.tokens_per_step() * sum.steps as f64;
    assert!((tokens - 297.0).abs() < 1e-9, "{tokens}");
    let at_one = sum.positions[0];
    assert_eq!(at_one.reached, sum.speculative_steps);
    assert_eq!(at_one.accepted, sum.speculative_steps - sum.accepted_histogram[0]);
    assert!((sum.decode_seconds() * sum.decode_tokens_per_second() - 297.0).abs() < 1e-6);
    assert!(sum.step_seconds(1).is_some() && sum.step_seconds(40).is_none());
    // Times that decimal notation holds exactly.
    (sum.draft_seconds, sum.verify_seconds, sum.plain_seconds, sum.prefill_seconds) = (0.5, 2.25, 1.5, 0.125);
    sum.draft_prefill_seconds = 0.0625;
    sum.rows.iter_mut().for_each(|r| r.seconds = 0.25);
    let json = serde_json::to_string(&sum).unwrap();
    assert_eq!(serde_json::from_str::<Stats>(&json).unwrap(), sum);
}

#[test]
fn adaptive_lengths_follow_what_steps_cost() {
    // Decodes with made-up times; returns seconds and the share of rows that were drafts.
    let decode = |draft_length, cost: fn(usize) -> f64| {
        let mut model = Toy::repetitive(VOCAB, 3);
        model.rules = Rules::GreedyText;
        let sequence = model.open().unwrap();
        let config = Config { draft_length, ..config(1500, 0) };
        let mut drafter = NgramDrafter::default();
        let mut decoding = Decoding::new(&model, sequence, &[1, 2, 3], &config).unwrap();
        let mut seconds = 0.0;
        while let Some(step) = decoding.plan(&mut drafter, usize::MAX).unwrap() {
            let mut steps = [step];
            model.forward(&mut steps).unwrap();
            let cost = cost(steps[0].tokens.len());
            seconds += cost;
            decoding.absorb(&mut model, &mut drafter, &steps[0], cost).unwrap();
        }
        assert_eq!(decoding.output(), plain(&repetitive(VOCAB, 3), &[1, 2, 3], &config, ROOM).0);
        seconds
    };
    let adaptive = DraftLength::Adaptive { max: 16 };
    let plain = DraftLength::Fixed(0);
    for (name, cost) in [
        ("flat", (|rows| 1.0 + 0.02 * rows as f64) as fn(usize) -> f64),
        ("even", |rows| 0.5 + 0.5 * rows as f64),
        ("steep", |rows| rows as f64 * 1.2),
    ] {
        let best = (1..=16).map(|n| decode(DraftLength::Fixed(n), cost)).fold(decode(plain, cost), f64::min);
        let found = decode(adaptive, cost);
        assert!(found < 1.04 * best, "{name}: {found:.1} seconds, the best fixed length takes {best:.1}");
    }
}

#[test]
fn calibration_measures_and_leaves_nothing_behind() {
    let mut model = Toy::repetitive(VOCAB, 3);
    model.rules = Rules::Tidy;
    model.info.max_context = 14;
    let mut speculator = Speculator::new(NgramDrafter::default());
    assert_eq!(speculator.policy().clone().budget(8, false), 0);
    speculator.calibrate(&mut model, &[1, 2, 3], 16).unwrap();
    // 1, 2, 4 and 8 rows, three times each; 16 do not fit into the context.
    assert_eq!((model.n_forwards, model.n_rows, model.n_open()), (1 + 3 * 4, 3 + 3 * 15, 0));
    assert!(speculator.policy().clone().budget(8, false) > 0);
    assert!(matches!(speculator.calibrate(&mut model, &[], 4), Err(Error::EmptyPrompt)));
    assert!(matches!(speculator.calibrate(&mut model, &[1; 15], 4), Err(Error::Target(_))));
    assert_eq!(model.n_open(), 0);
}

/// Penalties look at the whole conversation, whatever of it the sequence held already.
#[test]
fn penalties_look_back_over_earlier_turns() {
    let target = markov(VOCAB, 1, 2.0, 8);
    let greedy = SamplingConfig::greedy;
    for sampling in [
        SamplingConfig { repetition_penalty: 1.6, ..greedy() },
        SamplingConfig { frequency_penalty: 0.7, ..greedy() },
        SamplingConfig { presence_penalty: 1.5, ..greedy() },
        SamplingConfig { repetition_penalty: 1.6, repetition_window: usize::MAX, ..greedy() },
        SamplingConfig { presence_penalty: 1.0, ..SamplingConfig::temperature(0.8) },
    ] {
        for length in [0, 5] {
            let config = Config { sampling: sampling.clone(), ..config(12, length) };
            let mut model = Toy::new(VOCAB, target.clone());
            let sequence = model.open().unwrap();
            let mut speculator = Speculator::new(NgramDrafter::default());
            let (mut text, mut bites): (Vec<TokenId>, bool) = (vec![1, 2, 3], false);
            for turn in 0..4 {
                let expected = plain(&target, &text, &config, ROOM).0;
                let found =
                    speculator.continue_sequence(&mut model, sequence, &text, &config, go_on).unwrap();
                assert_eq!(found.tokens, expected, "turn {turn}, {sampling:?}, drafts of {length}");
                // What a penalty over the newly fed tokens alone would give.
                let from = if turn == 0 { 0 } else { text.len() - 3 };
                let mut sampler = breakers_core::Sampler::new(sampling.clone(), config.seed);
                let mut short = text.clone();
                for _ in 0..expected.len() {
                    let next = sampler.sample(&target(&short), &short[from..]).unwrap();
                    short.push(next);
                }
                bites |= short[text.len()..] != expected[..];
                text.extend(found.tokens);
                text.extend([7, 8]);
            }
            assert!(bites, "the case shows nothing: {sampling:?}");
        }
    }
}
