//! Needles in a haystack for several caches: caches that differ only in their press share the reading of a
//! text.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use breakers_cli::{Bar, Result, runner_over};
use breakers_core::{LanguageModel, Step, TokenId, Want};
use breakers_eval::needle::{Needle, NeedleConfig, found_by, needles, said};
use breakers_kv_cache::presses::{HeadBudgets, HeadView, LayerBudgets, LayerView, Press};
use breakers_kv_cache::{CacheKind, Eviction};
use breakers_model::Model;
use breakers_tokenizer::EncodeOptions;

/// Hides numbers in the text and asks each cache for them.
pub(crate) fn measure(
    model: &Model,
    caches: &[CacheKind],
    text: &[TokenId],
    config: &NeedleConfig,
) -> Result<Vec<Needle>> {
    let plain = EncodeOptions { add_special: false, parse_special: false };
    let bar = Bar::new(config.n_texts(), "needles");
    let mut done = 0;
    needles(
        config,
        text,
        |text| Ok(model.tokenizer().encode(text, plain)?),
        |prompt, answer| answers(model, caches, prompt, answer),
        |length, depth| {
            bar.doing(&format!("{length} tokens, needle at {depth} %"));
            bar.done(done);
            done += 1;
        },
    )
}

/// For each cache, the part of `answer` that the model gives by itself after `prompt`, token by token.
fn answers(model: &Model, caches: &[CacheKind], prompt: &[TokenId], answer: &[TokenId]) -> Result<Vec<f64>> {
    let together = Together::of(caches);
    let mut found = vec![0.0; caches.len()];
    for (at, cache) in caches.iter().enumerate() {
        if together.as_ref().is_none_or(|together| !together.members.contains(&at)) {
            found[at] = found_by(&mut runner_over(cache, model)?, prompt, answer)?;
        }
    }
    if let Some(together) = together {
        // The last token is fed after the press: the token after it is the first prediction over the tokens
        // that are left.
        let (prompt, question) = prompt.split_at(prompt.len() - 1);
        let mut runner = runner_over(&CacheKind::Evicting(together.eviction.clone()), model)?;
        let sequence = runner.open()?;
        runner.forward(&mut [Step::last(sequence, prompt.to_vec(), Want::Nothing)])?;
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

/// Caches that differ only in their press: a prompt is read once for all of them.
struct Together {
    /// A cache whose press stands for each of theirs in turn.
    eviction: Eviction,
    /// The indices of these caches.
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
            CacheKind::Evicting(eviction) if plain(eviction) => Some((at, eviction)),
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

/// A press that can be switched between several.
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
        // A press sees no more queries than it has asked for.
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
