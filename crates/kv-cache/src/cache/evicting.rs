//! The cache that evicts tokens: every head keeps its own selection.

mod head;

use std::sync::Arc;

use breakers_backend::device;
use breakers_core::StepError;
use burn::tensor::{Device, Tensor};

use self::head::{Head, Positions, best, group_queries};
use super::driver::{Cache, HostCall, Layers, Storage};
use super::ledger::Step;
use super::quantized::{Layer, QueryHeads, Seen};
use crate::attention::flex::job::Job;
use crate::checks::require;
use crate::pages::layer::BadRow;
use crate::pages::meter::PageMeter;
use crate::pages::page::PAGE_TOKENS;
use crate::presses::{HeadBudgets, LayerBudgets, LayerView, Press};
use crate::{CacheShape, Compression, Error, LayerShape, Result};

/// How many tokens to keep.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// A fraction of the tokens, above 0 and at most 1.
    Fraction(f64),
    /// A number of tokens.
    Tokens(usize),
}

/// When and how tokens are evicted.
#[derive(Clone)]
pub struct Eviction {
    /// Decides which tokens may be evicted.
    pub press: Arc<dyn Press>,
    /// How many tokens to keep, on average over layers and heads.
    pub budget: Budget,
    /// How the budget is divided among layers.
    pub layers: LayerBudgets,
    /// How a layer's share is divided among its heads.
    pub heads: HeadBudgets,
    /// Evict again after this many tokens; `None`: evict only once, after the prompt.
    pub every: Option<usize>,
    /// How the remaining tokens are coded.
    pub compression: Option<Compression>,
}

impl Eviction {
    /// Evicts once, with equal budgets, and keeps the rest as 16-bit floats.
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
        let least = self.press.window().saturating_add(1);
        match self.budget {
            Budget::Tokens(tokens) if tokens < least => Err(Error::Budget { least, found: tokens }),
            Budget::Fraction(found) if !(found > 0.0 && found <= 1.0) => Err(Error::BudgetFraction { found }),
            _ if self.every.is_some() && self.compression.is_some() => Err(Error::RepeatedEviction),
            _ => Ok(()),
        }
    }
}

/// A cache in which each head keeps only the tokens that a press scores highest.
///
/// Tokens are evicted when they become final: once, at the first commit with more tokens than the press keeps
/// in any case, or again whenever [`Eviction::every`] more have become final. A prompt that is fed in one
/// piece is read in full before that, as in kvpress. What rows see depends on when tokens were committed.
/// Speculation commits the same tokens as plain decoding, so its rows see the same, as long as no eviction
/// falls into a step.
///
/// Layers with a sliding window keep all their tokens.
///
/// # Memory
/// Pages of 64 tokens for each head: a quarter of the tokens takes a quarter of the bytes, plus up to a page
/// per head and a bit for each position. Until the last eviction, the cache also holds all tokens as 16-bit
/// floats (in addition to their codes, with a compression) and the queries that the press looks at.
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
pub type EvictingCache = Cache<EvictingStorage>;

/// The layers of an [`EvictingCache`].
#[derive(Clone)]
pub struct EvictingStorage {
    eviction: Arc<Eviction>,
    shapes: Arc<Vec<LayerShape>>,
    layers: Vec<EvictingLayer>,
    /// Tokens that the press has looked at.
    pressed: usize,
    meter: PageMeter,
}

#[derive(Clone)]
struct EvictingLayer {
    heads: Vec<Head>,
    /// The last queries, `[rows, n_heads, head_dim]`, as the pages hold keys.
    queries: Vec<f32>,
    n_heads: usize,
    scale: f32,
}

/// The tokens that each key-value head of a layer keeps, as indices into the tokens that it holds.
type Chosen = Vec<Vec<usize>>;

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
        if let Some(compression) = &eviction.compression {
            compression.check_plain_layers(shape.layers.len())?;
        }
        let meter = PageMeter::default();
        let mut layers = Vec::new();
        for (at, layer) in shape.layers.iter().enumerate() {
            let one = LayerShape { n_kv_heads: 1, ..layer.clone() };
            let compression = eviction.compression.as_ref().filter(|c| !c.plain_layers.contains(&at));
            let head = match compression {
                Some(compression) => {
                    let lag = compression.lag()?;
                    Layer::new(&one, &*compression.coder, compression.exact_tokens, lag, &meter)?
                }
                None => Layer::plain(&one, &meter),
            };
            let head = Head { layer: head, kept: Positions::default() };
            let heads = vec![head; layer.n_kv_heads];
            layers.push(EvictingLayer { heads, queries: Vec::new(), n_heads: 0, scale: 1.0 });
        }
        let shapes = Arc::new(shape.layers.clone());
        let storage = EvictingStorage { eviction: Arc::new(eviction), shapes, layers, pressed: 0, meter };
        Ok(Self::with_storage(shape, device, storage))
    }

    /// Positions of the tokens that a head of a layer keeps, ascending; none for a head that does not exist.
    pub fn kept(&self, layer: usize, head: usize) -> Vec<usize> {
        let storage = &self.storage;
        let Some(head) = storage.layers.get(layer).and_then(|layer| layer.heads.get(head)) else {
            return Vec::new();
        };
        head.kept.iter().chain(storage.pressed..crate::KvCache::len(self)).collect()
    }
}

impl EvictingStorage {
    /// Last queries that are kept of final tokens.
    fn n_queries(&self) -> usize {
        let weighs = self.layers.iter().any(|layer| layer.heads[0].layer.pages.packing.weighs_channels);
        self.eviction.press.n_queries().max(if weighs { PAGE_TOKENS } else { 0 })
    }

    /// Whether there may still be an eviction.
    fn may_press(&self) -> bool {
        let lets_go = !matches!(self.eviction.budget, Budget::Fraction(fraction) if fraction >= 1.0);
        lets_go && (self.pressed == 0 || self.eviction.every.is_some())
    }

    /// Whether a layer's queries are kept for a press.
    fn keeps_queries(&self, layer: usize) -> bool {
        self.may_press() && self.n_queries() > 0 && self.shapes[layer].window.is_none()
    }

    fn truncate_heads(&mut self, len: usize) {
        let pressed = self.pressed;
        for head in self.layers.iter_mut().flat_map(|layer| &mut layer.heads) {
            head.layer.pages.truncate(head.kept.len() + len - pressed);
        }
    }

    /// What the press keeps of the first `committed` tokens, of `len`, if it is due; none of a layer with a
    /// window, all of whose tokens stay.
    fn choose(&self, committed: usize, len: usize) -> Result<Option<Vec<Option<Chosen>>>> {
        let due = match self.eviction.every {
            Some(every) => committed >= self.pressed + every,
            None => self.pressed == 0,
        };
        let Some(budget) = self.eviction.budget(committed).filter(|budget| due && *budget < committed) else {
            return Ok(None);
        };
        let press = &self.eviction.press;
        let n_layers = self.layers.len();
        let mut all = Vec::with_capacity(n_layers);
        for (at, layer) in self.layers.iter().enumerate() {
            if self.shapes[at].window.is_some() {
                all.push(None);
                continue;
            }
            let view = layer.view(self.pressed, committed, len);
            let scores = press.scores(&view);
            let expected: Vec<usize> = view.heads.iter().map(|head| head.positions.len()).collect();
            let found: Vec<usize> = scores.iter().map(Vec::len).collect();
            if found != expected {
                return Err(Error::PressScores { press: press.name(), expected, found });
            }
            let mean = self.eviction.layers.of(at, n_layers, budget, committed).max(press.window());
            let budgets = self.eviction.heads.of(&scores, mean);
            all.push(Some(scores.iter().zip(budgets).map(|(scores, n)| best(scores, n)).collect()));
        }
        Ok(Some(all))
    }

    /// Evicts the tokens that were not chosen.
    fn press(&mut self, chosen: &[Option<Chosen>], committed: usize, len: usize) {
        let pressed = self.pressed;
        for ((layer, shape), chosen) in self.layers.iter_mut().zip(&*self.shapes).zip(chosen) {
            let Some(chosen) = chosen else {
                // The tokens count as having been looked at.
                layer.heads.iter_mut().for_each(|head| head.kept.extend(pressed..committed));
                continue;
            };
            let LayerView { heads: views, queries, n_heads, .. } = layer.view(pressed, committed, len);
            let one = LayerShape { n_kv_heads: 1, ..shape.clone() };
            let group = n_heads / views.len();
            let queries: Vec<Vec<f32>> = (0..views.len())
                .map(|head| group_queries(queries, n_heads * shape.head_dim, head, group * shape.head_dim))
                .collect();
            for (((head, view), chosen), queries) in
                layer.heads.iter_mut().zip(&views).zip(chosen).zip(&queries)
            {
                head.keep(&one, view, chosen, len - committed, (queries, group));
            }
        }
        self.pressed = committed;
    }
}

impl EvictingLayer {
    /// Elements of a token's queries.
    fn width(&self) -> usize {
        self.n_heads * self.heads[0].layer.pages.plain.layout.head_dim
    }

    /// The first `committed` tokens, of `len`; before `pressed`, only those that were kept.
    fn view(&self, pressed: usize, committed: usize, len: usize) -> LayerView<'_> {
        let n = self.queries.len().saturating_sub((len - committed) * self.width());
        LayerView {
            head_dim: self.heads[0].layer.pages.plain.layout.head_dim,
            n_heads: self.n_heads,
            scale: self.scale,
            heads: self.heads.iter().map(|head| head.view(pressed, committed)).collect(),
            queries: &self.queries[..n],
            last_position: committed.saturating_sub(1),
        }
    }

    /// Drops the queries of the last `n_rows` tokens.
    fn cut_queries(&mut self, n_rows: usize) {
        let cut = n_rows * self.width();
        self.queries.truncate(self.queries.len().saturating_sub(cut));
    }
}

impl Layers for EvictingStorage {
    fn is_on_host(&self) -> bool {
        true
    }

    fn stage<'a>(
        &'a mut self,
        layer: usize,
        step: &Step,
        call: HostCall<'a>,
        jobs: &mut Vec<Job<'a>>,
    ) -> Result<(), BadRow> {
        let pressed = self.pressed;
        let layer = &mut self.layers[layer];
        (layer.n_heads, layer.scale) = (call.n_heads, call.scale);
        let n_kv_heads = layer.heads.len();
        let dim = call.k.len() / step.n_rows / n_kv_heads;
        let group = call.n_heads / n_kv_heads;
        let part = |rows: &[f32], head: usize, width: usize| -> Vec<f32> {
            rows.chunks_exact(n_kv_heads * width)
                .flat_map(|row| &row[head * width..][..width])
                .copied()
                .collect()
        };
        let seen = Seen { depths: &step.depths, paths: step.paths(), visible: None };
        for (at, head) in layer.heads.iter_mut().enumerate() {
            let rows = [part(call.q, at, group * dim), part(call.k, at, dim), part(call.v, at, dim)];
            let slot = head.slot(step.first, pressed);
            let heads = QueryHeads { n_heads: group, scale: call.scale, out_column: at * group * dim };
            head.layer.stage(slot, rows.map(Into::into), heads, &seen, jobs)?;
        }
        Ok(())
    }

    fn attended(&mut self, layer: usize, call: HostCall<'_>) {
        if self.keeps_queries(layer) {
            let layer = &mut self.layers[layer];
            let turned = layer.heads[0].layer.turn_keys(call.q);
            layer.queries.extend_from_slice(&turned);
        }
    }

    fn attend_on_device(
        &mut self,
        _layer: usize,
        _step: &Step,
        [q, ..]: [Tensor<3>; 3],
        _scale: f32,
    ) -> Result<Tensor<2>> {
        Err(Error::EvictionDevice { device: format!("{:?}", q.device()) })
    }
}

impl Storage for EvictingStorage {
    fn bytes(&self) -> usize {
        let layer = |layer: &EvictingLayer| {
            let heads = layer.heads.iter();
            let heads = heads.map(|h| h.layer.pages.bytes() + h.kept.bytes());
            heads.sum::<usize>() + layer.queries.capacity() * size_of::<f32>()
        };
        self.layers.iter().map(layer).sum()
    }

    fn shared_bytes(&self) -> usize {
        self.layers.iter().flat_map(|layer| &layer.heads).map(|head| head.layer.pages.shared_bytes()).sum()
    }

    fn bytes_per_token(&self) -> f64 {
        self.layers.iter().flat_map(|layer| &layer.heads).map(|head| head.layer.bytes_per_token()).sum()
    }

    fn meter(&self) -> &PageMeter {
        &self.meter
    }

    /// What the press kept depends on where the prompt ended.
    fn shareable(&self) -> bool {
        self.pressed == 0
    }

    fn abort(&mut self, step: &Step) {
        // Layers that the step did not reach have no queries of it.
        for layer in 0..step.n_layers {
            if self.keeps_queries(layer) {
                self.layers[layer].cut_queries(step.n_rows);
            }
        }
        self.truncate_heads(step.first);
    }

    fn retain(&mut self, first: usize, rows: &[usize], len: usize) {
        let pressed = self.pressed;
        for layer in &mut self.layers {
            for head in &mut layer.heads {
                let slot = head.slot(first, pressed);
                head.layer.pages.retain(slot, rows);
            }
            let width = layer.width();
            if let Some(start) = layer.queries.len().checked_sub((len - first) * width) {
                for (kept, row) in rows.iter().enumerate() {
                    let from = start + row * width;
                    layer.queries.copy_within(from..from + width, start + kept * width);
                }
            }
        }
    }

    fn commit(&mut self, committed: usize, len: usize) -> Result<()> {
        if let Some(chosen) = self.choose(committed, len)? {
            self.press(&chosen, committed, len);
        }
        let (may_press, pressed) = (self.may_press(), self.pressed);
        let n_queries = if may_press { self.n_queries().saturating_add(len - committed) } else { 0 };
        for (layer, shape) in self.layers.iter_mut().zip(&*self.shapes) {
            // A press reads the plain pages, so they are kept in addition to the packed ones until the
            // eviction. Layers with a window are never pressed.
            if !may_press || shape.window.is_some() {
                for head in &mut layer.heads {
                    let slots = head.slot(committed, pressed);
                    head.layer.pages.release(slots);
                }
            }
            let keep = n_queries.saturating_mul(layer.width());
            let surplus = layer.queries.len().saturating_sub(keep);
            if surplus > 0 {
                layer.queries = layer.queries[surplus..].to_vec();
            }
        }
        Ok(())
    }

    fn check_truncate(&self, len: usize, committed: usize) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        if len < self.pressed {
            return Err(StepError::TruncateEvicted { requested: len, evicted_from: 0 }.into());
        }
        if len < committed {
            for head in self.layers.iter().flat_map(|layer| &layer.heads) {
                head.layer.pages.check_truncate(head.slot(len, self.pressed))?;
            }
        }
        Ok(())
    }

    fn truncate(&mut self, len: usize, before: usize) {
        if len == 0 {
            self.pressed = 0;
            for layer in &mut self.layers {
                layer.queries = Vec::new();
                layer.heads.iter_mut().for_each(|head| head.kept = Positions::default());
            }
        } else {
            self.layers.iter_mut().for_each(|layer| layer.cut_queries(before - len));
        }
        self.truncate_heads(len);
    }
}
