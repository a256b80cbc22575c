//! Constrained texts end in time, whatever drafts.

use std::collections::{BTreeSet, HashMap};

use breakers_core::{FinishReason, SamplingConfig, TokenId};
use breakers_spec_decode::{AtLimit, Config, DraftLength, Error, ModelDraftConfig, NgramDrafter, NoDrafter};

use crate::language::{Job, Language, VOCAB, job, plain, run};
use crate::support::model_drafter;
use crate::toy::{Toy, markov};

#[test]
fn texts_end_in_time() {
    let shortest = Language::default().shortest(100).unwrap().len();
    let target = markov(VOCAB, 2, 3.0, 9);
    for sampling in [SamplingConfig::greedy(), SamplingConfig::temperature(1.5)] {
        for max_tokens in shortest + 1..shortest + 40 {
            for draft_length in
                [DraftLength::Fixed(0), DraftLength::Fixed(5), DraftLength::Adaptive { max: 9 }]
            {
                let mut job = job(max_tokens, draft_length, sampling.clone());
                job.config.seed = max_tokens as u64;
                let mut model = Toy::new(VOCAB, target.clone());
                let result = run(&mut model, NgramDrafter::default(), &job).unwrap();
                assert_eq!(result.finish, FinishReason::EndOfText, "{max_tokens} tokens");
                assert_eq!((result.tokens, result.finish), plain(&target, &job), "{max_tokens} tokens");
                // The context is a limit like any other.
                let mut model = Toy::new(VOCAB, target.clone());
                model.info.max_context = job.prompt.len() + max_tokens - 1;
                let unlimited = Config { max_tokens: 10_000, ..job.config.clone() };
                let open =
                    Job { config: unlimited, prompt: job.prompt.clone(), language: job.language.clone() };
                let result = run(&mut model, NgramDrafter::default(), &open).unwrap();
                assert_eq!((result.tokens, result.finish), plain(&target, &job), "context for {max_tokens}");
            }
        }
    }
    // Less than that is an error before anything is fed, or a text that breaks off.
    for max_tokens in 1..=shortest {
        let mut job = job(max_tokens, DraftLength::Fixed(2), SamplingConfig::greedy());
        let mut model = Toy::new(VOCAB, target.clone());
        match run(&mut model, NoDrafter, &job) {
            Err(Error::TooFewTokens { minimum, limit }) => {
                assert_eq!((minimum, limit), (shortest + 1, max_tokens));
            }
            other => panic!("{max_tokens} tokens: {other:?}"),
        }
        assert_eq!(model.n_forwards, 0);
        job.config.at_limit = AtLimit::Cut;
        let result = run(&mut model, NoDrafter, &job).unwrap();
        assert_eq!((result.tokens.len(), result.finish), (max_tokens, FinishReason::Length));
        assert_eq!(result.tokens, plain(&target, &job).0);
    }
}

#[test]
fn a_drafter_that_samples_leaves_the_distribution_of_plain_masked_decoding() {
    let (target, guess) = (markov(VOCAB, 2, 1.0, 5), markov(VOCAB, 2, 1.5, 8));
    let count = |drafts: bool| {
        let mut counts: HashMap<Vec<TokenId>, f64> = HashMap::new();
        let mut rejected = 0;
        for seed in 0..6000 {
            let length = if drafts { DraftLength::Fixed(3) } else { DraftLength::Fixed(0) };
            let mut job = job(21, length, SamplingConfig { top_k: 3, ..SamplingConfig::temperature(1.0) });
            job.config.seed = seed;
            let mut model = Toy::new(VOCAB, target.clone());
            let result = match drafts {
                true => {
                    run(&mut model, model_drafter(guess.clone(), VOCAB, ModelDraftConfig::default()), &job)
                }
                false => run(&mut model, NoDrafter, &job),
            };
            let result = result.unwrap();
            assert_eq!(result.finish, FinishReason::EndOfText);
            rejected += result.stats.drafted - result.stats.accepted;
            *counts.entry(result.tokens[..3].to_vec()).or_default() += 1.0;
            // Where the limit leads.
            let end = result.tokens[result.tokens.len().saturating_sub(3)..].to_vec();
            *counts.entry([vec![99], end].concat()).or_default() += 1.0;
        }
        (counts, rejected)
    };
    let ((plain, _), (drafted, rejected)) = (count(false), count(true));
    assert!(rejected > 1000, "{rejected}");
    // Two samples: the sum of (a - b)^2 / (a + b) is chi-squared; five deviations above its mean.
    let keys: BTreeSet<&Vec<TokenId>> = plain.keys().chain(drafted.keys()).collect();
    let at = |counts: &HashMap<Vec<TokenId>, f64>, key| counts.get(key).copied().unwrap_or(0.0);
    let mut chi = 0.0;
    let mut cells = 0.0f64;
    for key in keys {
        let (a, b) = (at(&plain, key), at(&drafted, key));
        if a + b >= 10.0 {
            chi += (a - b).powi(2) / (a + b);
            cells += 1.0;
        }
    }
    assert!(cells > 20.0, "{cells}");
    assert!(chi < cells + 5.0 * (2.0 * cells).sqrt(), "{chi} for {cells} kinds of text");
}
