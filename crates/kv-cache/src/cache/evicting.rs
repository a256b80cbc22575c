//! The cache that lets tokens go: every head keeps its own.

mod head;

use breakers_core::StepError;
use std::sync::Arc;

use breakers_backend::{device, flex};
use breakers_cpu as cpu;
use burn::tensor::{Device, Tensor};
use burn_flex::Flex;

use self::head::{Head, Positions, best, group_queries};
use crate::cache::ledger::Ledger;
use crate::cache::quantized::{Layer, NEVER};
use crate::checks::{self, HostRows, require};
use crate::coders::Method;
use crate::pages::layer::BadRow;
use crate::pages::page::PAGE_TOKENS;
use crate::presses::{HeadBudgets, LayerBudgets, LayerView, Press};
use crate::{CacheHook, CacheShape, Compression, Error, KvCache, LayerShape, Result};

/// How many tokens stay.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// A fraction of the tokens, above 0 and at most 1.
    Fraction(f64),
    /// A number of tokens.
    Tokens(usize),
}

/// When and how tokens are let go.
#[derive(Clone)]
pub struct Eviction {
    /// Tells which tokens may go.
    pub press: Arc<dyn Press>,
    /// How many stay, on average over layers and heads.
    pub budget: Budget,
    /// How that is shared out to layers.
    pub layers: LayerBudgets,
    /// How a layer's share is shared out to its heads.
    pub heads: HeadBudgets,
    /// Tokens after which tokens are let go again; `None`: only once, after the prompt.
    pub every: Option<usize>,
    /// How the tokens that stay are coded.
    pub compression: Option<Compression>,
}

impl Eviction {
    /// Once, with equal budgets, the rest as 16-bit floats.
    pub fn new(press: impl Press + 'static, budget: Budget) -> Self {
        let (layers, heads) = (LayerBudgets::Uniform, HeadBudgets::Uniform);
        Self { press: Arc::new(press), budget, layers, heads, every: None, compression: None }
    }

    /// Tokens to keep of `n`; `None` if that is less than the press keeps in any case.
    fn budget(&self, n: usize) -> Option<usize> {
        let budget = match self.budget {
            Budget::Fraction(fraction) => (fraction * n as f64).round() as usize,
            Budget::Tokens(tokens) => tokens,
        };
        (budget > self.press.window()).then_some(budget)
    }

    fn validate(&self) -> Result<()> {
        let least = self.press.window() + 1;
        match self.budget {
            Budget::Tokens(tokens) if tokens < least => Err(Error::Budget { least, found: tokens }),
            Budget::Fraction(found) if !(found > 0.0 && found <= 1.0) => Err(Error::BudgetFraction { found }),
            _ if self.every.is_some() && self.compression.is_some() => Err(Error::RepeatedEviction),
            _ => Ok(()),
        }
    }
}

/// A cache that keeps, of each head's tokens, those that a press finds worth it.
///
/// Tokens are let go when they become final: once, at the first commit that leaves more than the press keeps
/// in any case, or again whenever [`Eviction::every`] more have become final. A prompt in one piece is read
/// in full before, as in kvpress. What rows see depends on when tokens were committed; speculation that
/// commits what plain decoding would have, token for token, sees the same as long as no eviction falls into a
/// step.
///
/// Layers with a sliding window keep all their tokens.
///
/// # Memory
/// Pages of 64 tokens for each head: a quarter of the tokens takes a quarter of the bytes, up to a page a head, and a
/// bit for each position. Until tokens are let go for the last time, all tokens as 16-bit floats (beside their codes, with
/// a compression) and the queries that the press looks at.
///
/// # Example
/// ```
/// use breakers_kv_cache::presses::SnapKv;
/// use breakers_kv_cache::{Budget, CacheShape, Eviction, KvCache, LayerShape, EvictingCache};
/// use burn::tensor::{Device, Distribution, Tensor};
///
/// # fn main() -> Result<(), breakers_kv_cache::Error> {
/// let device = Device::flex();
/// let shape = CacheShape::uniform(1, LayerShape::new(2, 64), 4096);
/// let eviction = Eviction::new(SnapKv::default(), Budget::Fraction(0.25));
/// let mut cache = EvictingCache::new(shape, eviction, &device)?;
/// let random = |heads| Tensor::<3>::random([1024, heads, 64], Distribution::Default, &device);
/// cache.begin(1024, None)?;
/// cache.attend(0, random(4), random(2), random(2), 0.125)?;
/// cache.end()?;
/// cache.commit(1024)?;
/// assert_eq!((cache.len(), cache.kept(0, 0).len()), (1024, 256));
/// # Ok(())
/// # }
/// ```
pub struct EvictingCache {
    shape: Arc<CacheShape>,
    device: Device,
    eviction: Arc<Eviction>,
    layers: Vec<PressedLayer>,
    ledger: Ledger,
    /// Tokens that had to stand the press.
    pressed: usize,
    hooks: Vec<Box<dyn CacheHook>>,
}

#[derive(Clone)]
struct PressedLayer {
    heads: Vec<Head>,
    /// The last queries, `[rows, n_heads, head_dim]`, as the pages hold keys.
    queries: Vec<f32>,
    n_heads: usize,
    scale: f32,
}

impl EvictingCache {
    /// An empty cache on the CPU.
    ///
    /// # Errors
    /// [`Error::NoLayers`], [`Error::ZeroDimension`]; [`Error::Budget`] for a budget below the press's
    /// window, [`Error::BudgetFraction`], [`Error::RepeatedEviction`]; with a compression its errors
    /// ([`QuantizedCache::new`](crate::QuantizedCache::new)); [`Error::UnsupportedDevice`],
    /// [`Error::EvictionDevice`].
    pub fn new(shape: CacheShape, eviction: Eviction, device: &Device) -> Result<Self> {
        require(device)?;
        shape.validate()?;
        eviction.validate()?;
        if !device::is_cpu(device) {
            return Err(Error::EvictionDevice { device: format!("{device:?}") });
        }
        let mut layers = Vec::new();
        for (at, layer) in shape.layers.iter().enumerate() {
            let one = LayerShape { n_kv_heads: 1, ..layer.clone() };
            let compression = eviction.compression.as_ref().filter(|c| !c.plain_layers.contains(&at));
            let head = match compression {
                Some(compression) => {
                    let lag = compression.lag()?;
                    Layer::new(&one, &compression.method, compression.exact_tokens, lag)?
                }
                None => Layer::new(&one, &Method::Q8_0, 0, NEVER)?,
            };
            let head = Head { layer: head, kept: Positions::default() };
            let heads = vec![head; layer.n_kv_heads];
            layers.push(PressedLayer { heads, queries: Vec::new(), n_heads: 0, scale: 1.0 });
        }
        let ledger = Ledger::new(shape.layers.len(), shape.max_tokens);
        Ok(Self {
            shape: Arc::new(shape),
            device: device.clone(),
            eviction: Arc::new(eviction),
            layers,
            ledger,
            pressed: 0,
            hooks: Vec::new(),
        })
    }

    /// Positions of the tokens that a head of a layer keeps, ascending; none for a head that is not there.
    pub fn kept(&self, layer: usize, head: usize) -> Vec<usize> {
        let Some(head) = self.layers.get(layer).and_then(|layer| layer.heads.get(head)) else {
            return Vec::new();
        };
        head.kept.iter().chain(self.pressed..self.ledger.len()).collect()
    }

    /// Last queries that are kept of final tokens.
    fn n_queries(&self) -> usize {
        let weighs =
            self.layers.first().is_some_and(|layer| layer.heads[0].layer.pages.packing.weighs_channels);
        self.eviction.press.n_queries().max(if weighs { PAGE_TOKENS } else { 0 })
    }

    /// Whether a press may still come.
    fn may_press(&self) -> bool {
        let lets_go = !matches!(self.eviction.budget, Budget::Fraction(fraction) if fraction >= 1.0);
        lets_go && (self.pressed == 0 || self.eviction.every.is_some())
    }

    /// Drops the queries behind the first `len` tokens, of `before`.
    fn cut_queries(&mut self, before: usize, len: usize) {
        for layer in &mut self.layers {
            let width = layer.n_heads * layer.heads[0].layer.pages.plain.layout.head_dim;
            let cut = (before - len) * width;
            layer.queries.truncate(layer.queries.len().saturating_sub(cut));
        }
    }

    fn truncate_heads(&mut self, len: usize) {
        let pressed = self.pressed;
        for head in self.layers.iter_mut().flat_map(|layer| &mut layer.heads) {
            head.layer.pages.truncate(head.kept.len() + len - pressed);
        }
    }

    fn press(&mut self) {
        let committed = self.ledger.committed();
        let due = match self.eviction.every {
            Some(every) => committed >= self.pressed + every,
            None => self.pressed == 0,
        };
        let Some(budget) = self.eviction.budget(committed).filter(|budget| due && *budget < committed) else {
            return;
        };
        let provisional = self.ledger.len() - committed;
        let (n_layers, pressed) = (self.layers.len(), self.pressed);
        for (at, layer) in self.layers.iter_mut().enumerate() {
            let shape = &self.shape.layers[at];
            if shape.window.is_some() {
                // All tokens stay: they count as having stood the press.
                layer.heads.iter_mut().for_each(|head| head.kept.extend(pressed..committed));
                continue;
            }
            let width = layer.n_heads * shape.head_dim;
            let queries = layer.queries.len().saturating_sub(provisional * width);
            let heads = layer.heads.iter().map(|head| head.view(pressed, committed)).collect();
            let view = LayerView {
                head_dim: shape.head_dim,
                n_heads: layer.n_heads,
                scale: layer.scale,
                heads,
                queries: &layer.queries[..queries],
                last_position: committed.saturating_sub(1),
            };
            let scores = self.eviction.press.scores(&view);
            let mean =
                self.eviction.layers.of(at, n_layers, budget, committed).max(self.eviction.press.window());
            let budgets = self.eviction.heads.of(&scores, mean);
            let one = LayerShape { n_kv_heads: 1, ..shape.clone() };
            for (index, head) in layer.heads.iter_mut().enumerate() {
                let chosen = best(&scores[index], budgets[index]);
                let queries = group_queries(&view, index);
                let queries = (queries.as_slice(), view.n_heads / view.heads.len());
                head.keep(&one, &view.heads[index], &chosen, (committed, provisional), queries);
            }
        }
        self.pressed = committed;
    }
}

impl PressedLayer {
    /// Appends the tokens behind the first `first` ones, of which `pressed` stood the press, and attends.
    fn attend(
        &mut self,
        (first, pressed): (usize, usize),
        [q, k, v]: [&[f32]; 3],
        depths: &[usize],
        paths: Option<&Arc<Vec<Vec<usize>>>>,
    ) -> Result<Vec<f32>, BadRow> {
        let (n_rows, n_kv_heads) = (depths.len(), self.heads.len());
        let dim = k.len() / n_rows / n_kv_heads;
        let group = self.n_heads / n_kv_heads;
        let part = |rows: &[f32], head: usize, width: usize| -> Vec<f32> {
            rows.chunks_exact(n_kv_heads * width)
                .flat_map(|row| &row[head * width..][..width])
                .copied()
                .collect()
        };
        let mut out = vec![0.0; q.len()];
        for (at, head) in self.heads.iter_mut().enumerate() {
            let (q, k, v) = (part(q, at, group * dim), part(k, at, dim), part(v, at, dim));
            let slot = head.slot(first, pressed);
            let result = head.layer.attend(slot, [&q, &k, &v], group, depths, paths, self.scale)?;
            let width = group * dim;
            for (row, result) in out.chunks_exact_mut(n_kv_heads * width).zip(result.chunks_exact(width)) {
                row[at * width..][..width].copy_from_slice(result);
            }
        }
        Ok(out)
    }
}

impl KvCache for EvictingCache {
    fn shape(&self) -> &CacheShape {
        &self.shape
    }

    fn len(&self) -> usize {
        self.ledger.len()
    }

    fn committed(&self) -> usize {
        self.ledger.committed()
    }

    fn bytes(&self) -> usize {
        let layer = |layer: &PressedLayer| {
            let heads = layer.heads.iter();
            let heads = heads.map(|h| h.layer.pages.bytes() + h.kept.bytes());
            heads.sum::<usize>() + layer.queries.capacity() * size_of::<f32>()
        };
        self.layers.iter().map(layer).sum()
    }

    fn begin(&mut self, n_rows: usize, parents: Option<&[Option<usize>]>) -> Result<()> {
        self.ledger.begin(n_rows, parents)
    }

    fn attend(
        &mut self,
        layer: usize,
        q: Tensor<3>,
        k: Tensor<3>,
        v: Tensor<3>,
        scale: f32,
    ) -> Result<Tensor<2>> {
        let step = self.ledger.layer(layer)?;
        let shape = &self.shape.layers[layer];
        let n_heads = checks::check(step.n_rows, shape, &self.device, [&q, &k, &v], scale)?;
        let first = self.ledger.len();
        let paths = step.tree.as_ref().map(|tree| &tree.paths);
        let for_hooks = (!self.hooks.is_empty()).then(|| [q.clone(), k.clone(), v.clone()]);
        let rows = HostRows::new(q, k, v)?;
        let size = [step.n_rows, n_heads * shape.head_dim];
        let keeps_queries = self.may_press() && self.n_queries() > 0 && shape.window.is_none();
        let pressed = &mut self.layers[layer];
        (pressed.n_heads, pressed.scale) = (n_heads, scale);
        let out = pressed
            .attend((first, self.pressed), rows.slices(), &step.depths, paths)
            .map_err(|bad| rows.not_finite(bad))?;
        if keeps_queries {
            let turned = pressed.heads[0].layer.turn_keys(rows.slices()[0]);
            pressed.queries.extend(turned);
        }
        if let Some(tensors) = for_hooks {
            checks::show(&mut self.hooks, layer, &tensors, first, &step.depths);
        }
        self.ledger.layer_done();
        Ok(Tensor::from_primitive::<Flex>(flex::from_vec(out, size)))
    }

    fn end(&mut self) -> Result<()> {
        self.ledger.end()
    }

    fn abort(&mut self) {
        let Ok(step) = self.ledger.step("abort") else { return };
        // Layers that the step did not reach have no queries of it.
        let (n_rows, n_done) = (step.n_rows, step.n_layers);
        for layer in &mut self.layers[..n_done] {
            let width = layer.n_heads * layer.heads[0].layer.pages.plain.layout.head_dim;
            layer.queries.truncate(layer.queries.len().saturating_sub(n_rows * width));
        }
        self.ledger.abort();
        self.truncate_heads(self.ledger.len());
        self.hooks.iter_mut().for_each(|hook| hook.aborted());
    }

    fn retain(&mut self, rows: &[usize]) -> Result<()> {
        self.ledger.check_retain(rows)?;
        let (first, before) = (self.ledger.committed(), self.ledger.len());
        let pressed = self.pressed;
        for layer in &mut self.layers {
            for head in &mut layer.heads {
                let slot = head.slot(first, pressed);
                head.layer.pages.retain(slot, rows);
            }
            let width = layer.n_heads * layer.heads[0].layer.pages.plain.layout.head_dim;
            if let Some(start) = layer.queries.len().checked_sub((before - first) * width) {
                for (kept, row) in rows.iter().enumerate() {
                    let from = start + row * width;
                    layer.queries.copy_within(from..from + width, start + kept * width);
                }
            }
        }
        self.ledger.retained(rows.len());
        self.cut_queries(before, self.ledger.len());
        self.truncate_heads(self.ledger.len());
        self.hooks.iter_mut().for_each(|hook| hook.retained(rows));
        Ok(())
    }

    fn commit(&mut self, n_tokens: usize) -> Result<()> {
        self.ledger.commit(n_tokens)?;
        self.press();
        let (committed, isa, pressed) = (self.ledger.committed(), cpu::isa(), self.pressed);
        let provisional = self.ledger.len() - committed;
        let may_press = self.may_press();
        let n_queries = if may_press { self.n_queries() } else { 0 };
        for (layer, shape) in self.layers.iter_mut().zip(&self.shape.layers) {
            // A press reads the plain pages, so they stay beside the packed ones until it has come. Layers with a
            // window are never pressed.
            if !may_press || shape.window.is_some() {
                for head in &mut layer.heads {
                    let slots = head.slot(committed, pressed);
                    head.layer.pages.release(isa, slots);
                }
            }
            let width = layer.n_heads * layer.heads[0].layer.pages.plain.layout.head_dim;
            let keep = n_queries.saturating_add(provisional).saturating_mul(width);
            let surplus = layer.queries.len().saturating_sub(keep);
            if surplus > 0 {
                layer.queries = layer.queries[surplus..].to_vec();
            }
        }
        self.hooks.iter_mut().for_each(|hook| hook.committed(n_tokens));
        Ok(())
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.ledger.check_truncate(len)?;
        let before = self.ledger.len();
        if len < self.pressed && len > 0 {
            return Err(StepError::TruncateEvicted { requested: len, evicted_from: 0 }.into());
        }
        if len < self.ledger.committed() && len > 0 {
            for head in self.layers.iter().flat_map(|layer| &layer.heads) {
                head.layer.pages.check_truncate(head.slot(len, self.pressed))?;
            }
        }
        self.ledger.truncated(len);
        if len == 0 {
            self.pressed = 0;
            for layer in &mut self.layers {
                layer.queries = Vec::new();
                layer.heads.iter_mut().for_each(|head| head.kept = Positions::default());
            }
        } else {
            self.cut_queries(before, len);
        }
        self.truncate_heads(len);
        self.hooks.iter_mut().for_each(|hook| hook.truncated(len));
        Ok(())
    }

    fn fork(&self) -> Result<Box<dyn KvCache>> {
        self.ledger.closed("fork")?;
        Ok(Box::new(Self {
            shape: Arc::clone(&self.shape),
            device: self.device.clone(),
            eviction: Arc::clone(&self.eviction),
            layers: self.layers.clone(),
            ledger: self.ledger.clone(),
            pressed: self.pressed,
            hooks: Vec::new(),
        }))
    }

    fn add_hook(&mut self, hook: Box<dyn CacheHook>) {
        self.hooks.push(hook);
    }
}
