//! The text layer: whole characters, stop strings, log-probabilities, ids that no text has.

use std::sync::Arc;

use breakers_core::{
    FinishReason, LanguageModel as _, SamplingConfig, TokenId, Utf8Stream, Vocabulary, log_softmax, top_k,
};
use breakers_spec_decode::{
    Config, Decoding, DraftLength, Drafter, ModelDraftConfig, NgramDrafter, NoDrafter, Speculator,
};

use crate::support::{TreeDrafter, model_drafter, plain};
use crate::toy::{LogitsFn, Toy, markov, repetitive};

/// Each token is two bytes, so that characters of three bytes are split; the last two are control tokens.
pub(crate) struct Pairs(Vec<Vec<u8>>);

const VOCAB: usize = 30;

impl Pairs {
    pub(crate) fn new() -> Self {
        let text = "ab€cd€e\u{1f600}fghij€klmno€pqrst€uvwxyz0123456789".as_bytes();
        Self((0..VOCAB).map(|i| text[2 * i % 40..][..2].to_vec()).collect())
    }

    fn text(&self, tokens: &[TokenId]) -> String {
        let bytes: Vec<&[u8]> =
            tokens.iter().filter(|t| !self.is_control(**t)).map(|t| &self.0[*t as usize][..]).collect();
        String::from_utf8_lossy(&bytes.concat()).into_owned()
    }
}

impl Vocabulary for Pairs {
    fn n_tokens(&self) -> usize {
        self.0.len()
    }
    fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        self.0.get(token as usize).map(Vec::as_slice)
    }
    fn is_control(&self, token: TokenId) -> bool {
        token as usize + 2 >= self.0.len()
    }
    fn end_tokens(&self) -> &[TokenId] {
        &[VOCAB as TokenId - 1]
    }
    fn begin_token(&self) -> Option<TokenId> {
        None
    }
}

fn config(draft: usize) -> Config {
    Config {
        max_tokens: 60,
        end_tokens: Some(vec![VOCAB as TokenId - 1]),
        draft_length: DraftLength::Fixed(draft),
        ..Config::default()
    }
}

/// The output of one text: tokens, text in pieces, reason of its end.
fn run<D: Drafter>(
    target: &LogitsFn,
    drafter: D,
    config: &Config,
    stop: &[&str],
) -> (Vec<TokenId>, Vec<String>, FinishReason) {
    let mut model = Toy::new(VOCAB, target.clone());
    let sequence = model.open().unwrap();
    let text = Decoding::new(&model, sequence, &[1, 2, 3], config).unwrap();
    let mut text = text.with_text(Arc::new(Pairs::new()), stop);
    let mut pieces = Vec::new();
    Speculator::new(drafter)
        .drive(&mut model, &mut text, |text, _| {
            pieces.push(text.take_text());
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    let output = text.output();
    let held = [&[1, 2, 3], &output[..output.len() - 1]].concat();
    assert_eq!(model.tokens(sequence), held, "the sequence is not the text without its last token");
    let result = text.into_result();
    (result.tokens, pieces, result.finish)
}

/// The same model, which never chooses a control token.
fn without_control(logits: LogitsFn) -> LogitsFn {
    Arc::new(move |context| {
        let mut logits = logits(context);
        logits[VOCAB - 2..].fill(f32::NEG_INFINITY);
        logits
    })
}

#[test]
fn texts_end_before_stop_strings_whatever_drafts() {
    let vocabulary = Pairs::new();
    for target in [without_control(repetitive(VOCAB, 3)), without_control(markov(VOCAB, 2, 3.0, 8))] {
        let (tokens, _) = plain(&target, &[1, 2, 3], &config(0), 1 << 20);
        let whole = vocabulary.text(&tokens);
        let characters: Vec<(usize, char)> = whole.char_indices().collect();
        let mut n_stopped = 0;
        // Every run of one to three characters of the text as a stop string, and one that never comes.
        for at in (0..characters.len()).step_by(5) {
            for n in [1, 2, 3, 500] {
                let stop: String = match n {
                    500 => "€€€€".to_owned(),
                    n => characters[at..].iter().take(n).map(|c| c.1).collect(),
                };
                let expected = whole.find(&stop).map_or(&whole[..], |at| &whole[..at]);
                // The token with which the stop string is complete is the last one.
                let (mut characters, mut so_far) = (Utf8Stream::default(), String::new());
                let n_tokens = tokens.iter().position(|token| {
                    so_far += characters.push(&vocabulary.0[*token as usize]);
                    so_far.contains(&stop)
                });
                let n_tokens = n_tokens.map(|last| last + 1);
                let tree = TreeDrafter { logits: target.clone(), width: 2 };
                let draft = model_drafter(target.clone(), VOCAB, ModelDraftConfig::default());
                let runs = [
                    run(&target, NoDrafter, &config(0), &["", &stop]),
                    run(&target, NgramDrafter::default(), &config(7), &[&stop]),
                    run(&target, tree, &config(9), &[&stop, "€€€€€"]),
                    run(&target, draft, &config(4), &[&stop]),
                ];
                for (i, (found, pieces, finish)) in runs.into_iter().enumerate() {
                    assert_eq!(pieces.concat(), expected, "run {i} until {stop:?}");
                    if let Some(n) = n_tokens {
                        assert_eq!(
                            (&found[..], finish),
                            (&tokens[..n], FinishReason::Stop),
                            "run {i} until {stop:?}"
                        );
                        n_stopped += 1;
                    } else {
                        assert_eq!(found, tokens, "run {i} until {stop:?}");
                        // Bytes left over at the end may be the last character of a stop string.
                        assert!(
                            finish == FinishReason::Length || whole.contains(&stop),
                            "run {i}: {finish:?}"
                        );
                    }
                }
            }
        }
        assert!(n_stopped > 50, "{n_stopped}");
    }
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    let target = markov(VOCAB, 2, 2.0, 8);
    for sampling in [
        SamplingConfig::greedy(),
        SamplingConfig { top_k: 5, repetition_penalty: 1.2, ..SamplingConfig::temperature(0.7) },
    ] {
        for n_top in [0, 3] {
            for draft in [0, 6] {
                let config = Config {
                    top_logprobs: Some(n_top),
                    sampling: sampling.clone(),
                    seed: 4,
                    ..config(draft)
                };
                let mut model = Toy::new(VOCAB, target.clone());
                let tree = TreeDrafter { logits: target.clone(), width: 2 };
                let mut speculator = Speculator::new(tree);
                let found = speculator
                    .generate(&mut model, &[1, 2, 3], &config, |_| std::ops::ControlFlow::Continue(()));
                let found = found.unwrap();
                assert_eq!(found.tokens, plain(&target, &[1, 2, 3], &config, 1 << 20).0);
                assert_eq!(found.scores.len(), found.tokens.len());
                let mut text = vec![1, 2, 3];
                for (token, score) in found.tokens.iter().zip(&found.scores) {
                    let logits = target(&text);
                    assert_eq!(score.logprob, log_softmax(&logits)[*token as usize]);
                    assert_eq!(score.top, top_k(&logits, n_top).unwrap());
                    text.push(*token);
                }
                assert!(draft == 0 || found.stats.accepted > 5);
            }
        }
    }
}

#[test]
fn rows_that_pad_the_vocabulary_are_never_chosen() {
    // The most likely token of every place is one that the vocabulary does not have.
    let inner = markov(VOCAB, 2, 2.0, 8);
    let padded: LogitsFn = std::sync::Arc::new(move |context| {
        let mut logits = inner(context);
        logits.extend([50.0; 7]);
        logits
    });
    let inner = markov(VOCAB, 2, 2.0, 8);
    for (sampling, draft) in [(SamplingConfig::greedy(), 0), (SamplingConfig::temperature(1.0), 5)] {
        let config = Config { sampling, ..config(draft) };
        let mut model = Toy::new(VOCAB + 7, padded.clone());
        let sequence = model.open().unwrap();
        let text = Decoding::new(&model, sequence, &[1, 2, 3], &config).unwrap();
        let mut text = text.with_text::<&str>(Arc::new(Pairs::new()), &[]);
        let mut speculator = Speculator::new(TreeDrafter { logits: padded.clone(), width: 3 });
        if draft > 0 {
            // A drafter that proposes such an id gets an error.
            let error = speculator.drive(&mut model, &mut text, |_, _| std::ops::ControlFlow::Continue(()));
            assert!(matches!(error, Err(breakers_spec_decode::Error::DraftToken { .. })), "{error:?}");
            continue;
        }
        speculator.drive(&mut model, &mut text, |_, _| std::ops::ControlFlow::Continue(())).unwrap();
        assert_eq!(text.output(), plain(&inner, &[1, 2, 3], &config, 1 << 20).0);
    }
}

#[test]
fn prompts_in_chunks_are_prompts() {
    let target = repetitive(VOCAB, 3);
    let prompt: Vec<TokenId> = (0..50).map(|i| 1 + i % 9).collect();
    for max_rows in [1, 7, 49, 50, 51] {
        let mut model = Toy::new(VOCAB, target.clone());
        let sequence = model.open().unwrap();
        let mut text = Decoding::new(&model, sequence, &prompt, &config(4)).unwrap();
        let mut drafter = NgramDrafter::default();
        let mut chunks = Vec::new();
        while let Some(step) = text.plan(&mut drafter, max_rows).unwrap() {
            assert!(step.tokens.len() <= max_rows);
            let in_prompt = text.is_in_prompt();
            let mut steps = [step];
            model.forward(&mut steps).unwrap();
            let new = text.absorb(&mut model, &mut drafter, &steps[0], 0.0).unwrap().len();
            if in_prompt {
                chunks.push(new);
            }
        }
        let n_chunks = 50usize.div_ceil(max_rows);
        assert_eq!(chunks, [vec![0; n_chunks - 1], vec![1]].concat(), "{max_rows} rows");
        assert_eq!(text.output(), plain(&target, &prompt, &config(0), 1 << 20).0, "{max_rows} rows");
        let usage = text.usage();
        assert_eq!((usage.prompt, usage.cached_prompt, usage.completion), (50, 0, 60));
        assert_eq!((text.stats().prompts, text.stats().prompt_tokens), (1, 50));
    }
}
