//! The draft-model drafter's handling of its own model.

use breakers_core::{LanguageModel as _, TokenId};
use breakers_spec_decode::{
    Config, DraftLength, Drafter as _, Error, ModelDraftConfig, ModelDrafter, Speculator,
    TokenizerFingerprint,
};

use crate::support::{fingerprint, model_drafter, plain, run_with};
use crate::toy::{LogitsFn, Rules, Toy, markov, perturbed};

const VOCAB: usize = 30;
const ROOM: usize = 1 << 20;

fn draft_toy(logits: LogitsFn, vocab_size: usize) -> Toy {
    let mut toy = Toy::new(vocab_size, logits);
    toy.rules = Rules::Trait;
    toy
}

fn drafter(model: &mut Toy) -> ModelDrafter<&mut Toy> {
    ModelDrafter::new(model, fingerprint(), fingerprint(), ModelDraftConfig::default()).unwrap()
}

fn config(max_tokens: usize, length: usize) -> Config {
    Config { max_tokens, draft_length: DraftLength::Fixed(length), ..Config::default() }
}

#[test]
fn another_tokenizer_is_refused() {
    let (a, b) =
        (TokenizerFingerprint::from_tokens(["x", "y"]), TokenizerFingerprint::from_tokens(["y", "x"]));
    let result = ModelDrafter::new(Toy::markov(2, 1, 1.0, 0), b, a, ModelDraftConfig::default());
    match result.map(|_| ()) {
        Err(Error::TokenizerMismatch { expected, found }) => assert_eq!((expected, found), (a, b)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_token_is_fed_once_and_rejected_ones_are_taken_back() {
    let target = markov(VOCAB, 2, 3.0, 5);
    for (amount, length) in [(0.0, 4), (0.5, 3), (9.0, 2)] {
        let mut draft = draft_toy(perturbed(target.clone(), amount, 1), VOCAB);
        let mut model = Toy::new(VOCAB, target.clone());
        let stats = run_with(&mut model, drafter(&mut draft), &[1, 2, 3], &config(100, length)).stats;
        // What the sequence gains in accepted tokens plus what was fed and taken back.
        let rejected = stats.drafted - stats.accepted;
        let fed_at_least = 3 + stats.emitted - length - 2;
        let fed_at_most = 3 + stats.emitted + rejected;
        assert!((fed_at_least..=fed_at_most).contains(&draft.n_rows), "{} rows, {stats:?}", draft.n_rows);
        assert_eq!(draft.n_open(), 0, "the sequence outlives the drafter");
    }
}

#[test]
fn steps_without_a_draft_are_caught_up_in_one_pass() {
    let target = markov(VOCAB, 2, 3.0, 5);
    let text: Vec<TokenId> = {
        let prompt = [1, 2, 3];
        [&prompt[..], &plain(&target, &prompt, &config(100, 0), ROOM).0].concat()
    };
    let mut draft = draft_toy(target.clone(), VOCAB);
    let mut drafter = drafter(&mut draft);
    drafter.start(&text[..3]).unwrap();
    let sampling = breakers_core::SamplingConfig::greedy();
    let mut sampler = breakers_core::Sampler::new(sampling.clone(), 0);
    let mut propose = |n: usize| {
        let mut request = breakers_spec_decode::DraftRequest::new(&text[..n], 2, &sampling, &mut sampler);
        drafter.propose(&mut request).unwrap()
    };
    assert_eq!(propose(4).tokens(), &text[4..6]);
    assert_eq!(propose(80).tokens(), &text[80..82]);
    assert_eq!(propose(83).tokens(), &text[83..85]);
    drop(drafter);
    // The prompt; 1 + 1 tokens; 74 to catch up with, 1 + 1; 2 + 1 (the last of each draft is not fed).
    assert_eq!((draft.n_forwards, draft.n_rows), (1 + 2 + 3 + 2, 3 + 2 + (80 - 5 - 1) + 2 + 3));
}

#[test]
fn a_draft_model_with_less_room_stops_drafting_and_nothing_else() {
    let target = markov(VOCAB, 2, 3.0, 5);
    let expected = plain(&target, &[1, 2, 3], &config(60, 4), ROOM).0;
    for max_context in [2, 3, 20] {
        let mut draft = draft_toy(target.clone(), VOCAB);
        draft.info.max_context = max_context;
        let mut model = Toy::new(VOCAB, target.clone());
        let result = run_with(&mut model, drafter(&mut draft), &[1, 2, 3], &config(60, 4));
        assert_eq!(result.tokens, expected);
        assert!(result.stats.accepted + 3 <= max_context + 4, "{max_context}: {:?}", result.stats);
        assert_eq!(result.stats.accepted > 0, max_context == 20);
    }
}

#[test]
fn padded_vocabularies_may_differ() {
    // The larger vocabulary's additional ids are the most likely ones by far.
    let padded = |n: usize, base: LogitsFn| -> LogitsFn {
        std::sync::Arc::new(move |text| {
            let mut logits = base(text);
            logits.resize(n, 99.0);
            logits
        })
    };
    let target = markov(VOCAB, 2, 3.0, 5);
    let expected = plain(&target, &[1, 2, 3], &config(60, 4), ROOM).0;
    let mut larger = draft_toy(padded(VOCAB + 6, target.clone()), VOCAB + 6);
    let mut model = Toy::new(VOCAB, target.clone());
    assert_eq!(run_with(&mut model, drafter(&mut larger), &[1, 2, 3], &config(60, 4)).tokens, expected);

    // The target produces a token that the draft model does not know: nothing can be drafted after it.
    let mut smaller = draft_toy(target.clone(), VOCAB);
    let mut model = Toy::new(VOCAB + 6, padded(VOCAB + 6, target));
    let result = run_with(&mut model, drafter(&mut smaller), &[1, 2, 3], &config(10, 4));
    assert_eq!((result.tokens, result.stats.drafted), (vec![VOCAB as TokenId; 10], 0));
}

#[test]
fn a_new_text_reuses_what_it_shares_with_the_last_one() {
    let target = markov(VOCAB, 2, 3.0, 5);
    let prompt: Vec<TokenId> = (0..20).collect();
    let mut other = prompt.clone();
    other[15] = 0;
    for evicts in [false, true] {
        let mut draft = draft_toy(target.clone(), VOCAB);
        draft.evicts = evicts;
        let mut model = Toy::new(VOCAB, target.clone());
        let mut speculator = Speculator::new(drafter(&mut draft));
        for prompt in [&prompt, &other] {
            let expected = plain(&target, prompt, &config(30, 4), ROOM).0;
            let go_on = |_: &[TokenId]| std::ops::ControlFlow::Continue(());
            let found = speculator.generate(&mut model, prompt, &config(30, 4), go_on).unwrap();
            assert_eq!(found.tokens, expected, "evicts: {evicts}");
            assert!(found.stats.accepted > 20);
        }
        drop(speculator);
        // The sequence already held 15 tokens of the second prompt, unless the cache could not go back.
        let again = if evicts { 20 } else { 5 };
        assert!((20 + again + 50..20 + again + 65).contains(&draft.n_rows), "{} rows", draft.n_rows);
    }
}

#[test]
fn an_error_of_the_draft_model_names_it() {
    let target = markov(VOCAB, 2, 3.0, 5);
    for fail_at in 0..6 {
        let mut drafter_model = draft_toy(target.clone(), VOCAB);
        drafter_model.fail_at = Some(fail_at);
        let mut model = Toy::new(VOCAB, target.clone());
        let sequence = model.open().unwrap();
        let mut text = vec![1, 2, 3];
        let result = Speculator::new(drafter(&mut drafter_model)).continue_sequence(
            &mut model,
            sequence,
            &[1, 2, 3],
            &config(60, 2),
            |tokens| {
                text.extend_from_slice(tokens);
                std::ops::ControlFlow::Continue(())
            },
        );
        assert!(matches!(result, Err(Error::Draft(_))), "{result:?}");
        assert_eq!(model.tokens(sequence), &text[..text.len() - 1]);
        assert_eq!(model.committed(sequence).unwrap(), text.len() - 1);
    }
}

#[test]
fn an_unlikely_token_ends_the_draft() {
    // Uniform: every token has probability 1/30.
    let uniform: LogitsFn = std::sync::Arc::new(|_| vec![0.0; VOCAB]);
    for (min_probability, expected) in [(0.0, 5), (0.03, 5), (0.04, 1)] {
        let mut drafter =
            model_drafter(uniform.clone(), VOCAB, ModelDraftConfig { min_probability, ..Default::default() });
        drafter.start(&[1]).unwrap();
        let sampling = breakers_core::SamplingConfig::greedy();
        let mut sampler = breakers_core::Sampler::new(sampling.clone(), 0);
        let mut request = breakers_spec_decode::DraftRequest::new(&[1, 2], 5, &sampling, &mut sampler);
        assert_eq!(drafter.propose(&mut request).unwrap().len(), expected);
    }
}
