//! A needle in a haystack: a fact at some depth of a long text, asked for at its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use breakers::cli::{Bar, CacheKind, Result};
use breakers_core::{LanguageModel, SequenceId, Step, TokenId, Want};
use breakers_eval::{BootstrapConfig, Estimate, stats};
use breakers_kv_cache::Eviction;
use breakers_kv_cache::presses::{HeadBudgets, HeadView, LayerBudgets, LayerView, Press};
use breakers_model::tokenizer::EncodeOptions;
use breakers_model::{Model, Runner};

/// One text of one length with the needle at one depth.
#[derive(Clone, Debug)]
pub(crate) struct Needle {
    pub(crate) length: usize,
    /// Where the needle stands, in percent of the length.
    pub(crate) depth: usize,
    /// For each cache and fact: the part of the answer's tokens that the model finds likeliest, in their places.
    pub(crate) found: Vec<Vec<f64>>,
}

impl Needle {
    /// What a cache found of all facts.
    pub(crate) fn part(&self, cache: usize) -> f64 {
        self.found[cache].iter().sum::<f64>() / self.found[cache].len().max(1) as f64
    }
}

/// By how much a cache finds more than another one, needle by needle.
pub(crate) fn advantage(needles: &[Needle], cache: usize, other: usize) -> Result<Estimate> {
    let both = needles.iter().flat_map(|needle| needle.found[cache].iter().zip(&needle.found[other]));
    let differences: Vec<f64> = both.map(|(a, b)| 100.0 * (a - b)).collect();
    let mean = |values: &mut [f64]| values.iter().sum::<f64>() / values.len() as f64;
    Ok(stats::bootstrap(&differences, mean, &BootstrapConfig::default())?)
}

/// Things that are hidden, and what is hidden about them.
const FACTS: [(&str, &str); 6] = [
    ("lighthouse", "48213"),
    ("railway", "90574"),
    ("harbor", "37618"),
    ("archive", "65029"),
    ("bakery", "12846"),
    ("museum", "83951"),
];

/// Hides a number in the text at each of `depths`, `n_facts` times, and asks each cache for it.
pub(crate) fn measure(
    model: &Model,
    caches: &[CacheKind],
    text: &[TokenId],
    lengths: &[usize],
    depths: &[usize],
    n_facts: usize,
) -> Result<Vec<Needle>> {
    let plain = EncodeOptions { add_special: false, parse_special: false };
    let mut needles = Vec::new();
    let facts = &FACTS[..n_facts.clamp(1, FACTS.len())];
    let bar = Bar::new(lengths.len() * depths.len() * facts.len(), "needles");
    for &length in lengths {
        for &depth in depths {
            bar.doing(&format!("{length} tokens, needle at {depth} %"));
            let mut found = vec![Vec::new(); caches.len()];
            for (at, (place, number)) in facts.iter().enumerate() {
                let needle = format!("\n\nThe secret number of the {place} is {number}.\n\n");
                let question = format!(
                    "\n\nQuestion: What is the secret number of the {place}?\nAnswer: The secret number of the {place} is"
                );
                let needle = model.tokenizer().encode(&needle, plain)?;
                let question = model.tokenizer().encode(&question, plain)?;
                let answer = model.tokenizer().encode(&format!(" {number}"), plain)?;
                let n_text = length.saturating_sub(needle.len() + question.len() + answer.len());
                // Another stretch of the text for each fact.
                let haystack: Vec<TokenId> =
                    text.iter().cycle().skip(at * 331).take(n_text).copied().collect();
                let split = n_text * depth / 100;
                let mut tokens = haystack[..split].to_vec();
                tokens.extend(&needle);
                tokens.extend(&haystack[split..]);
                tokens.extend(&question);
                for (part, found) in answers(model, caches, &tokens, &answer)?.into_iter().zip(&mut found) {
                    found.push(part);
                }
                bar.step();
            }
            needles.push(Needle { length, depth, found });
        }
    }
    Ok(needles)
}

/// For each cache the part of `answer` that the model gives by itself behind `prompt`, token by token.
fn answers(model: &Model, caches: &[CacheKind], prompt: &[TokenId], answer: &[TokenId]) -> Result<Vec<f64>> {
    // The last token comes behind the press: what follows it is the first thing said over what is left.
    let (prompt, question) = prompt.split_at(prompt.len() - 1);
    let together = Together::of(caches);
    let mut found = vec![0.0; caches.len()];
    for (at, cache) in caches.iter().enumerate() {
        if together.as_ref().is_none_or(|together| !together.members.contains(&at)) {
            let mut runner = cache.runner(model)?;
            let sequence = read(&mut runner, prompt)?;
            runner.commit(sequence, prompt.len())?;
            found[at] = said(&mut runner, sequence, question, answer)?;
        }
    }
    if let Some(together) = together {
        let mut runner = CacheKind::Pressed(together.eviction.clone()).runner(model)?;
        let sequence = read(&mut runner, prompt)?;
        for (press, &at) in together.members.iter().enumerate() {
            let fork = runner.fork(sequence)?;
            together.press.store(press, Ordering::Relaxed);
            runner.commit(fork, prompt.len())?;
            found[at] = said(&mut runner, fork, question, answer)?;
            runner.close(fork);
        }
    }
    Ok(found)
}

fn read(runner: &mut Runner, prompt: &[TokenId]) -> Result<SequenceId> {
    let sequence = runner.open()?;
    runner.forward(&mut [Step::last(sequence, prompt.to_vec(), Want::Nothing)])?;
    Ok(sequence)
}

/// The part of `answer` that the model would say itself, each token behind those before it.
fn said(runner: &mut Runner, sequence: SequenceId, question: &[TokenId], answer: &[TokenId]) -> Result<f64> {
    let mut n_right = 0;
    for (next, token) in question.iter().chain(answer).zip(answer) {
        let mut steps = [Step::last(sequence, vec![*next], Want::ArgMax)];
        runner.forward(&mut steps)?;
        let best = steps[0].outputs.last().and_then(|row| row.output.best());
        n_right += usize::from(best == Some(*token));
    }
    Ok(n_right as f64 / answer.len().max(1) as f64)
}

/// Presses that differ in nothing else: a prompt is read once for all of them.
struct Together {
    /// Whose press is one after the other of theirs.
    eviction: Eviction,
    /// Which caches they are.
    members: Vec<usize>,
    press: Arc<AtomicUsize>,
}

impl Together {
    fn of(caches: &[CacheKind]) -> Option<Self> {
        let plain = |eviction: &Eviction| {
            (&eviction.layers, &eviction.heads) == (&LayerBudgets::Uniform, &HeadBudgets::Uniform)
                && eviction.compression.is_none()
                && eviction.every.is_none()
        };
        let pressed = caches.iter().enumerate().filter_map(|(at, cache)| match cache {
            CacheKind::Pressed(eviction) if plain(eviction) => Some((at, eviction)),
            _ => None,
        });
        let (_, first) = pressed.clone().next()?;
        let (members, presses): (Vec<_>, Vec<_>) = pressed
            .filter(|(_, eviction)| eviction.budget == first.budget)
            .map(|(at, eviction)| (at, Arc::clone(&eviction.press)))
            .unzip();
        let press = Arc::new(AtomicUsize::new(0));
        let eviction =
            Eviction { press: Arc::new(OneOf { presses, at: Arc::clone(&press) }), ..first.clone() };
        Some(Self { eviction, members, press })
    }
}

/// One of several presses, which may change.
struct OneOf {
    presses: Vec<Arc<dyn Press>>,
    at: Arc<AtomicUsize>,
}

impl OneOf {
    fn most(&self, of: impl Fn(&dyn Press) -> usize) -> usize {
        self.presses.iter().map(|press| of(&**press)).max().unwrap_or(0)
    }
}

impl Press for OneOf {
    fn name(&self) -> String {
        let names: Vec<String> = self.presses.iter().map(|press| press.name()).collect();
        format!("one of {}", names.join(", "))
    }

    fn n_queries(&self) -> usize {
        self.most(|press| press.n_queries())
    }

    fn window(&self) -> usize {
        self.most(|press| press.window())
    }

    fn scores(&self, layer: &LayerView<'_>) -> Vec<Vec<f32>> {
        let Some(press) = self.presses.get(self.at.load(Ordering::Relaxed)) else { return Vec::new() };
        // It sees no more queries than it has asked for.
        let n = press.n_queries().min(layer.n_queries()) * layer.n_heads * layer.head_dim;
        let copy = |head: &HeadView| HeadView {
            keys: head.keys.clone(),
            values: head.values.clone(),
            positions: head.positions.clone(),
        };
        press.scores(&LayerView {
            heads: layer.heads.iter().map(copy).collect(),
            queries: &layer.queries[layer.queries.len() - n..],
            ..*layer
        })
    }
}
