//! Exact losslessness: all outcomes of the random choices are walked through and their
//! probabilities added up.

use std::collections::BTreeMap;

use breakers_core::{Distribution, Sampler, SamplingConfig, TokenId};
use breakers_spec_decode::verify::{acceptance, by_draw, by_rejection, residual};
use breakers_spec_decode::{Chance, Draft, DraftRequest, Drafter, ModelDraftConfig, Proposal};
use proptest::prelude::*;

use crate::support::model_drafter;
use crate::toy::{LogitsFn, markov, perturbed};

const TOLERANCE: f64 = 1e-12;

/// Makes each random choice in every way, one after the other.
#[derive(Default)]
struct Walk {
    choices: Vec<(usize, usize)>,
    at: usize,
    probability: f64,
}

impl Walk {
    fn choose(&mut self, probabilities: &[f64]) -> usize {
        if self.at == self.choices.len() {
            self.choices.push((0, probabilities.len()));
        }
        let (choice, n_options) = self.choices[self.at];
        assert_eq!(n_options, probabilities.len(), "the walk does not repeat itself");
        self.at += 1;
        self.probability *= probabilities[choice];
        choice
    }

    /// The probability of each result of `experiment`.
    fn all(mut experiment: impl FnMut(&mut Walk) -> Vec<TokenId>) -> BTreeMap<Vec<TokenId>, f64> {
        let mut results = BTreeMap::new();
        let mut walk = Walk::default();
        loop {
            (walk.at, walk.probability) = (0, 1.0);
            let result = experiment(&mut walk);
            *results.entry(result).or_insert(0.0) += walk.probability;
            while let Some((choice, n_options)) = walk.choices.pop() {
                if choice + 1 < n_options {
                    walk.choices.push((choice + 1, n_options));
                    break;
                }
            }
            if walk.choices.is_empty() {
                return results;
            }
        }
    }
}

impl Chance for Walk {
    fn accept(&mut self, probability: f64) -> bool {
        assert!((0.0..=1.0).contains(&probability));
        match probability {
            // The other outcome cannot happen.
            1.0 => true,
            0.0 => false,
            p => self.choose(&[p, 1.0 - p]) == 0,
        }
    }
    fn draw(&mut self, distribution: &Distribution) -> TokenId {
        let entries = distribution.entries();
        let probabilities: Vec<f64> = entries.iter().map(|e| e.1).collect();
        entries[self.choose(&probabilities)].0
    }
}

/// A distribution over the next token as a function of those before it.
type Model<'a> = &'a dyn Fn(&[TokenId]) -> Distribution;
type OwnedModel = Box<dyn Fn(&[TokenId]) -> Distribution>;

/// All texts of `n` tokens and their probabilities.
fn texts(model: Model<'_>, n: usize) -> BTreeMap<Vec<TokenId>, f64> {
    let mut all = BTreeMap::from([(Vec::new(), 1.0)]);
    for _ in 0..n {
        let mut longer = BTreeMap::new();
        for (text, probability) in all {
            for &(token, p) in model(&text).entries() {
                longer.insert([&text[..], &[token]].concat(), probability * p);
            }
        }
        all = longer;
    }
    all
}

fn deviation(a: &BTreeMap<Vec<TokenId>, f64>, b: &BTreeMap<Vec<TokenId>, f64>) -> f64 {
    a.keys()
        .chain(b.keys())
        .map(|k| (a.get(k).unwrap_or(&0.0) - b.get(k).unwrap_or(&0.0)).abs())
        .fold(0.0, f64::max)
}

/// Completes what verification gave to `n` tokens by plain sampling.
fn complete(mut text: Vec<TokenId>, n: usize, model: Model<'_>, walk: &mut Walk) -> Vec<TokenId> {
    while text.len() < n {
        text.push(walk.draw(&model(&text)));
    }
    text.truncate(n);
    text
}

fn path_tokens(draft: &Draft, path: &[usize]) -> Vec<TokenId> {
    path.iter().map(|&row| draft.tokens()[row]).collect()
}

/// What one verified draft followed by plain sampling gives.
fn speculate(walk: &mut Walk, draft: &Draft, model: Model<'_>, n: usize) -> Vec<TokenId> {
    let target = |path: &[usize]| Ok(model(&path_tokens(draft, path)));
    let verdict = match draft.proposals() {
        Some(proposals) => by_rejection(draft, proposals, target, walk).unwrap(),
        None => by_draw(draft, |path| Ok(walk.draw(&model(&path_tokens(draft, path))))).unwrap(),
    };
    let mut text = path_tokens(draft, &verdict.path);
    text.push(verdict.next);
    complete(text, n, model, walk)
}

/// Draws a draft from a model; `stop(token probabilities so far)` ends it early.
fn draw_chain(walk: &mut Walk, model: Model<'_>, length: usize, stop: impl Fn(f64) -> bool) -> Draft {
    let (mut tokens, mut proposals) = (Vec::new(), Vec::new());
    while tokens.len() < length {
        let q = model(&tokens);
        let token = walk.draw(&q);
        tokens.push(token);
        let probability = q.probability(token);
        proposals.push(q);
        if stop(probability) {
            break;
        }
    }
    Draft::chain(tokens).with_proposals(proposals)
}

fn sampled(logits: LogitsFn, sampling: SamplingConfig) -> impl Fn(&[TokenId]) -> Distribution {
    move |text| sampling.distribution(&logits(text), text).unwrap()
}

fn distribution(weights: &[f64]) -> Distribution {
    Distribution::from_weights(weights.iter().enumerate().map(|(i, &w)| (i as TokenId, w))).unwrap()
}

proptest! {
    /// min(p, q) + (1 − α)·residual ≡ p.
    #[test]
    fn identity_of_one_step(
        p in prop::collection::vec(prop_oneof![Just(0.0), 0.01f64..1.0], 6),
        q in prop::collection::vec(prop_oneof![Just(0.0), 0.01f64..1.0], 6),
    ) {
        prop_assume!(p.iter().sum::<f64>() > 0.0 && q.iter().sum::<f64>() > 0.0);
        let (p, q) = (distribution(&p), distribution(&q));
        let alpha = acceptance(&p, &q);
        let rest = residual(&p, &q);
        for token in 0..6 {
            let kept = p.probability(token).min(q.probability(token));
            let replaced = rest.as_ref().map_or(0.0, |r| (1.0 - alpha) * r.probability(token));
            prop_assert!((kept + replaced - p.probability(token)).abs() < TOLERANCE);
        }
    }

    /// The same through the function itself, which also shows that α is the probability of acceptance.
    #[test]
    fn acceptance_is_alpha(p in prop::collection::vec(0.0f64..1.0, 4), q in prop::collection::vec(0.01f64..1.0, 4)) {
        prop_assume!(p.iter().sum::<f64>() > 0.0);
        let (p, q) = (distribution(&p), distribution(&q));
        let all = Walk::all(|walk| {
            let draft = draw_chain(walk, &|_| q.clone(), 1, |_| false);
            let verdict = by_rejection(&draft, draft.proposals().unwrap(), |_| Ok(p.clone()), walk).unwrap();
            vec![verdict.path.len() as TokenId]
        });
        prop_assert!((all.get(&vec![1]).unwrap_or(&0.0) - acceptance(&p, &q)).abs() < TOLERANCE);
    }
}

/// Pairs of a target and a draft model that range from equal to disjoint, over 3 tokens.
fn pairs() -> Vec<(String, OwnedModel, OwnedModel)> {
    let target = markov(3, 2, 2.0, 1);
    let plain = SamplingConfig::temperature(1.0);
    let cut = SamplingConfig { top_k: 2, repetition_penalty: 1.5, ..SamplingConfig::temperature(0.7) };
    let mut pairs: Vec<(String, OwnedModel, OwnedModel)> = Vec::new();
    for (name, p, q) in [("plain", &plain, &plain), ("cut", &cut, &cut), ("cut target", &cut, &plain)] {
        for (amount, seed) in [(0.0, 0), (1.0, 2), (6.0, 3)] {
            let draft = perturbed(target.clone(), amount, seed);
            pairs.push((
                format!("{name}, noise {amount}"),
                Box::new(sampled(target.clone(), p.clone())),
                Box::new(sampled(draft, q.clone())),
            ));
        }
    }
    let disjoint = |text: &[TokenId]| {
        distribution(if text.len().is_multiple_of(2) { &[0.5, 0.5, 0.0] } else { &[0.0, 0.3, 0.7] })
    };
    pairs.push(("disjoint".into(), Box::new(disjoint), Box::new(|_| Distribution::certain(2))));
    pairs
}

#[test]
fn chains_of_draws_are_lossless() {
    for (name, p, q) in pairs() {
        for length in 0..=3 {
            let n = length + 1;
            let found = Walk::all(|walk| {
                let draft = draw_chain(walk, &q, length, |_| false);
                speculate(walk, &draft, &p, n)
            });
            let deviation = deviation(&found, &texts(&p, n));
            assert!(deviation < TOLERANCE, "{name}, length {length}: off by {deviation}");
        }
    }
}

#[test]
fn stopping_after_an_unlikely_token_is_lossless_and_dropping_it_is_not() {
    let (_, p, q) = pairs().swap_remove(1);
    let stopped = Walk::all(|walk| {
        let draft = draw_chain(walk, &q, 3, |probability| probability < 0.4);
        speculate(walk, &draft, &p, 3)
    });
    assert!(deviation(&stopped, &texts(&p, 3)) < TOLERANCE);
    let dropped = Walk::all(|walk| {
        let mut draft = draw_chain(walk, &q, 3, |probability| probability < 0.4);
        let last = draft.len() - 1;
        if draft.proposals().unwrap()[last].probability(draft.tokens()[last]) < 0.4 {
            draft.truncate(last);
        }
        speculate(walk, &draft, &p, 3)
    });
    assert!(deviation(&dropped, &texts(&p, 3)) > 0.01, "the enumeration would not notice a biased rule");
}

#[test]
fn trees_of_draws_are_lossless() {
    for (name, p, q) in pairs() {
        // Two independent draws at the root, two below the first of them, one below the second.
        let found = Walk::all(|walk| {
            let mut tokens = Vec::new();
            let mut proposals = Vec::new();
            let parents = vec![None, None, Some(0), Some(0), Some(1)];
            for parent in &parents {
                let prefix: Vec<TokenId> = parent.map(|row: usize| tokens[row]).into_iter().collect();
                let proposal = q(&prefix);
                tokens.push(walk.draw(&proposal));
                proposals.push(proposal);
            }
            speculate(walk, &Draft::tree(tokens, parents).with_proposals(proposals), &p, 3)
        });
        let deviation = deviation(&found, &texts(&p, 3));
        assert!(deviation < TOLERANCE, "{name}: off by {deviation}");
    }
}

#[test]
fn chosen_tokens_are_lossless() {
    let drafts = [
        Draft::none(),
        Draft::chain(vec![0]),
        Draft::chain(vec![2, 2, 1]),
        Draft::tree(vec![0, 1, 2, 2, 0], vec![None, None, Some(0), Some(1), Some(3)]),
        // Siblings may be equal.
        Draft::tree(vec![1, 1, 0], vec![None, None, Some(1)]),
    ];
    for (name, p, _) in pairs() {
        for draft in &drafts {
            let found = Walk::all(|walk| speculate(walk, draft, &p, 4));
            let deviation = deviation(&found, &texts(&p, 4));
            assert!(deviation < TOLERANCE, "{name}, {draft:?}: off by {deviation}");
        }
    }
}

/// The draft model's own draws, its handling of settings and history included.
#[test]
fn the_draft_model_drafter_is_lossless() {
    let target = markov(3, 2, 2.0, 1);
    let draft = perturbed(target.clone(), 1.5, 4);
    let samplings = [
        SamplingConfig::temperature(1.0),
        SamplingConfig { repetition_penalty: 1.4, top_p: 0.9, ..SamplingConfig::temperature(0.8) },
    ];
    let prompt: Vec<TokenId> = vec![1, 0];
    for sampling in samplings {
        let p = |text: &[TokenId]| {
            let text = [&prompt[..], text].concat();
            sampling.distribution(&target(&text), &text).unwrap()
        };
        for proposal in [Proposal::Sampled, Proposal::MostLikely] {
            for min_probability in [0.0, 0.5] {
                let mut n_drawn = 0;
                let found = Walk::all(|walk| {
                    let config = ModelDraftConfig { proposal, min_probability };
                    let mut drafter = model_drafter(draft.clone(), 3, config);
                    drafter.start(&prompt[..1]).unwrap();
                    let mut request = DraftRequest::new(&prompt, 2, &sampling, walk);
                    request.vocab_size = 3;
                    let draft = drafter.propose(&mut request).unwrap();
                    n_drawn += draft.proposals().map_or(0, <[Distribution]>::len);
                    speculate(walk, &draft, &p, 3)
                });
                let deviation = deviation(&found, &texts(&p, 3));
                assert!(deviation < TOLERANCE, "{sampling:?}, {proposal:?}: off by {deviation}");
                assert_eq!(n_drawn > 0, proposal == Proposal::Sampled);
            }
        }
    }
}

#[test]
fn an_impossible_proposal_is_an_error() {
    let mut sampler = Sampler::new(SamplingConfig::temperature(1.0), 0);
    let p = distribution(&[0.5, 0.5]);
    let draft = Draft::chain(vec![1]);
    let check = |proposals: &[Distribution], expected: &str, sampler: &mut Sampler| {
        let error = by_rejection(&draft, proposals, |_| Ok(p.clone()), sampler).unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{error:?}");
    };
    check(&[Distribution::certain(0)], "ImpossibleProposal", &mut sampler);
    check(&[], "DraftShape", &mut sampler);
}
