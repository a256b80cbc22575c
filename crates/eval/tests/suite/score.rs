use breakers_core::{Error as CoreError, SamplingError, StepError, TokenId, log_softmax};
use breakers_eval::divergence::divergence;
use breakers_eval::score::{perplexity, score};
use breakers_eval::{Error, Result};

use crate::toy::Toy;

const VOCAB: usize = 11;

/// Logits that depend on the last two tokens.
fn logits(held: &[TokenId]) -> Vec<f32> {
    let seed: u32 = held.iter().rev().take(2).fold(7, |seed, &t| seed.wrapping_mul(31).wrapping_add(t));
    (0..VOCAB as u32)
        .map(|i| (seed.wrapping_mul(2_654_435_761).wrapping_add(i * 97) >> 7) as f32 % 5.0)
        .collect()
}

fn text(n: usize) -> Vec<TokenId> {
    (0..n as u32).map(|i| i * i % VOCAB as u32).collect()
}

#[test]
fn scores_are_those_of_the_softmax_however_many_rows_are_fed() {
    let text = text(40);
    let (prompt, rest) = text.split_at(3);
    for n_rows in [0, 1, 2, 7, 128] {
        let mut model = Toy::new(VOCAB, logits);
        let scored = score(&mut model, prompt, rest, n_rows, 2).unwrap();
        assert_eq!((scored.len(), model.n_open()), (rest.len(), 0));
        for (i, s) in scored.iter().enumerate() {
            let expected = log_softmax(&logits(&text[..3 + i]));
            assert_eq!((s.token, s.logprob), (rest[i], expected[rest[i] as usize]));
            assert!(s.top.len() == 2 && s.top[0].logprob >= s.top[1].logprob);
        }
    }
    assert!(score(&mut Toy::new(VOCAB, logits), prompt, &[], 1, 2).unwrap().is_empty());
}

#[test]
fn perplexity_counts_the_second_half_of_each_window() {
    let text = text(50);
    let (context, bos) = (16, Some(9));
    let mut calls = Vec::new();
    let mut model = Toy::new(VOCAB, logits);
    let found = perplexity(&mut model, &text, context, bos, |done, all| calls.push((done, all))).unwrap();
    let (mut sum, mut n) = (0.0, 0);
    for window in text.chunks_exact(context) {
        let window: Vec<TokenId> = [&[9], &window[1..]].concat();
        for at in context / 2 + 1..context {
            sum -= f64::from(log_softmax(&logits(&window[..at]))[window[at] as usize]);
            n += 1;
        }
    }
    assert_eq!((found.n_tokens, &calls[..]), (n, &[(1, 3), (2, 3), (3, 3)][..]));
    assert!((found.nll - sum / n as f64).abs() < 1e-6);
    assert_eq!(found.perplexity, found.nll.exp());
    // A model that knows nothing.
    let uniform = perplexity(&mut Toy::constant(vec![0.0; VOCAB]), &text, 8, None, |_, _| ()).unwrap();
    assert!((uniform.perplexity - VOCAB as f64).abs() < 1e-5);
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let text = text(40);
    let found =
        divergence(&mut Toy::new(VOCAB, logits), &mut Toy::new(VOCAB, logits), &text, 20, None, |_, _| ());
    let found = found.unwrap();
    assert_eq!((found.mean_kl(), found.top_agreement(), found.kl.len()), (0.0, 1.0, 18));
    let plain = perplexity(&mut Toy::new(VOCAB, logits), &text, 20, None, |_, _| ()).unwrap();
    assert_eq!([found.nll, found.reference_nll], [plain.nll; 2]);
    let mut even = Toy::constant(vec![0.0; VOCAB]);
    let other = divergence(&mut Toy::new(VOCAB, logits), &mut even, &text, 20, None, |_, _| ()).unwrap();
    assert!(other.mean_kl() > 0.1 && other.top_agreement() < 1.0);
    assert!((other.perplexity() - VOCAB as f64).abs() < 1e-5);
}

/// All functions that look up logits by ids from the caller.
fn all_of(make: &dyn Fn() -> Toy, tokens: &[TokenId], bos: Option<TokenId>) -> Vec<Result<()>> {
    let even = || Toy::constant(vec![0.0; VOCAB]);
    vec![
        perplexity(&mut make(), tokens, 8, bos, |_, _| ()).map(|_| ()),
        divergence(&mut make(), &mut even(), tokens, 8, bos, |_, _| ()).map(|_| ()),
        divergence(&mut even(), &mut make(), tokens, 8, bos, |_, _| ()).map(|_| ()),
    ]
}

#[test]
fn a_token_outside_of_the_vocabulary_is_an_error_wherever_it_stands() {
    let is_it = |result: Result<()>, expected: TokenId| match result {
        Err(Error::Model(CoreError::InvalidToken { token, vocab_size: VOCAB })) => {
            assert_eq!(token, expected)
        }
        other => panic!("{other:?}"),
    };
    for bad in [VOCAB as TokenId, TokenId::MAX] {
        for at in [0, 3, 7] {
            let mut tokens = text(8);
            tokens[at] = bad;
            let (prompt, rest) = tokens.split_at(2);
            is_it(score(&mut Toy::new(VOCAB, logits), prompt, rest, 4, 1).map(|_| ()), bad);
            all_of(&|| Toy::new(VOCAB, logits), &tokens, None).into_iter().for_each(|r| is_it(r, bad));
        }
        all_of(&|| Toy::new(VOCAB, logits), &text(8), Some(bad)).into_iter().for_each(|r| is_it(r, bad));
    }
}

#[test]
fn logits_that_are_no_prediction_are_an_error() {
    for bad in [f32::NAN, f32::INFINITY] {
        let model = move || {
            let mut row = vec![0.0; VOCAB];
            row[5] = bad;
            Toy::constant(row)
        };
        let is_it = |result: Result<()>| match result {
            Err(Error::Model(CoreError::Sampling(SamplingError::NotFinite { token: 5, .. }))) => {}
            other => panic!("{other:?}"),
        };
        is_it(score(&mut model(), &[0], &[1], 1, 0).map(|_| ()));
        all_of(&model, &text(8), None).into_iter().for_each(is_it);
    }
    let none = || Toy::constant(vec![f32::NEG_INFINITY; VOCAB]);
    assert!(score(&mut none(), &[0], &[1], 1, 1).is_err());
    assert!(all_of(&none, &text(8), None).into_iter().all(|result| result.is_err()));
    // A token that the model excludes has a score of −∞, but the text then has no perplexity.
    let without = || {
        let mut row = vec![0.0; VOCAB];
        row[4] = f32::NEG_INFINITY;
        Toy::constant(row)
    };
    assert_eq!(score(&mut without(), &[0], &[4], 1, 0).unwrap()[0].logprob, f32::NEG_INFINITY);
    for result in all_of(&without, &[4; 8], None) {
        assert!(matches!(result, Err(Error::Impossible { token: 4 })), "{result:?}");
    }
}

#[test]
fn texts_and_windows_that_are_too_short_are_refused() {
    let range = |result: Result<()>| {
        assert!(
            matches!(result, Err(Error::Model(CoreError::Step(StepError::OutOfRange { .. })))),
            "{result:?}"
        );
    };
    for (n, context) in [(7, 8), (0, 8), (20, 3), (0, 0)] {
        range(perplexity(&mut Toy::new(VOCAB, logits), &text(n), context, None, |_, _| ()).map(|_| ()));
        let mut two = [Toy::new(VOCAB, logits), Toy::new(VOCAB, logits)];
        let [a, b] = &mut two;
        range(divergence(a, b, &text(n), context, None, |_, _| ()).map(|_| ()));
    }
    let mut other = Toy::constant(vec![0.0; VOCAB + 1]);
    range(divergence(&mut Toy::new(VOCAB, logits), &mut other, &text(8), 8, None, |_, _| ()).map(|_| ()));
    let empty = score(&mut other, &[], &[1], 1, 1);
    assert!(matches!(empty, Err(Error::Model(CoreError::Step(StepError::Empty)))));
}
