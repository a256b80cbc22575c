//! The compressed cache: packed pages for what is final, plain ones for what may still be taken back.

use breakers_core::StepError;
use std::sync::Arc;

use breakers_cpu as cpu;
use breakers_cpu::hadamard::Rotation;
use burn::tensor::{Device, Tensor};

use crate::attention::flex::job::{Job, Packed};
use crate::cache::ledger::Ledger;
use crate::checks::{self, require};
use crate::coders::{Coders, Method};
use crate::pages::layer::BadRow;
use crate::pages::packed::PackedFormat;
use crate::pages::packed::layer::{PackedLayer, Packing};
use crate::pages::page::{LANES, PAGE_TOKENS};
use crate::{CacheHook, CacheShape, Error, KvCache, LayerShape, Result, Visible};

#[cfg(feature = "cube")]
pub(crate) mod device;
mod presets;
mod storage;

use storage::Storage;

/// How a cache is compressed.
#[derive(Clone, Debug, PartialEq)]
pub struct Compression {
    /// How keys and values are coded.
    pub method: Method,
    /// First tokens of the sequence that stay as they are: attention often rests on them, with keys unlike
    /// all others.
    pub exact_tokens: usize,
    /// Newest tokens that stay as they are, at least; it is rounded up to whole pages of 64 tokens. What is
    /// newer than the last page boundary always does.
    pub window: usize,
    /// Layers that are not compressed.
    pub plain_layers: Vec<usize>,
}

impl Compression {
    /// A method with four exact tokens at the beginning and no window.
    pub fn new(method: Method) -> Self {
        Self { method, exact_tokens: 4, window: 0, plain_layers: Vec::new() }
    }

    /// Whole pages that stay plain behind a row's own.
    pub(crate) fn lag(&self) -> Result<usize> {
        if self.exact_tokens >= PAGE_TOKENS {
            return Err(Error::ExactTokens { most: PAGE_TOKENS - 1, found: self.exact_tokens });
        }
        Ok(self.window.max(self.method.window()).div_ceil(PAGE_TOKENS))
    }
}

/// A cache whose final tokens are kept in a few bits an element.
///
/// Rows see tokens of their own page of 64 (and of the window before it) as 16-bit floats, all earlier ones
/// compressed: by position alone, so that decoding, speculation and prompts in chunks of any size give the
/// same bits. Pages are compressed when the first row that needs them so arrives, and the plain page is given
/// back when its tokens are final.
///
/// # Truncation
/// Back to any provisional token; among final tokens, without a window, back to any page boundary. In between
/// [`StepError::TruncateEvicted`](breakers_core::StepError::TruncateEvicted): what a row of an unfinished
/// page sees plain is gone.
///
/// # Memory
/// See the method. Beside it, up to 63 tokens (and the window) as 16-bit floats.
///
/// # GPUs
/// Pages are coded by the CPU: once in 64 tokens it reads them back. A NaN in keys or values is found then,
/// by [`attend`](KvCache::attend) or [`commit`](KvCache::commit), and the row of [`Error::NotFinite`] is the
/// token's place in the sequence; in queries it is not found. Resident bytes may be those of up to seven
/// pages more.
///
/// # Example
/// ```
/// use breakers_kv_cache::{CacheShape, QuantizedCache, Compression, KvCache, LayerShape};
/// use burn::tensor::{Device, Distribution, Tensor};
///
/// # fn main() -> Result<(), breakers_kv_cache::Error> {
/// let device = Device::flex();
/// let shape = CacheShape::uniform(1, LayerShape::new(2, 64), 4096);
/// let mut cache = QuantizedCache::new(shape, &Compression::named("water-4")?, &device)?;
/// let random = |heads| Tensor::<3>::random([1024, heads, 64], Distribution::Default, &device);
/// cache.begin(1024, None)?;
/// cache.attend(0, random(4), random(2), random(2), 0.125)?;
/// cache.end()?;
/// cache.commit(1024)?;
/// let plain = 1024 * 2 * 2 * 64 * 2;
/// assert!(cache.bytes() * 3 < plain);
/// # Ok(())
/// # }
/// ```
pub struct QuantizedCache {
    shape: Arc<CacheShape>,
    device: Device,
    layers: Vec<Storage>,
    ledger: Ledger,
    hooks: Vec<Box<dyn CacheHook>>,
}

/// Whole pages that a layer keeps plain if it is never packed.
pub(crate) const NEVER: usize = usize::MAX;

#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) pages: PackedLayer,
    turns: Arc<Turns>,
}

/// What is done to queries, keys and values before they meet, and to the result.
#[derive(Default)]
pub(crate) struct Turns {
    keys: Option<Rotation>,
    values: Option<Rotation>,
    sketch: Vec<f32>,
}

impl QuantizedCache {
    /// An empty cache on a device.
    ///
    /// # Errors
    /// [`Error::NoLayers`], [`Error::ZeroDimension`]; [`Error::HeadWidth`] for heads that are not a power of
    /// two from 16 to 256; [`Error::BitWidth`], [`Error::GroupSize`] and [`Error::ExactTokens`] for
    /// impossible settings; [`StepError::OutOfRange`](breakers_core::StepError::OutOfRange) for a plain layer
    /// that is not there; [`Error::UnsupportedDevice`], and [`Error::UnsupportedElement`] for a GPU without
    /// 16-bit floats.
    pub fn new(shape: CacheShape, compression: &Compression, device: &Device) -> Result<Self> {
        require(device)?;
        shape.validate()?;
        let lag = compression.lag()?;
        let n_layers = shape.layers.len();
        if let Some(&requested) = compression.plain_layers.iter().find(|layer| **layer >= n_layers) {
            return Err(StepError::OutOfRange { what: "plain layers", requested, available: n_layers }.into());
        }
        let mut layers: Vec<Storage> = Vec::with_capacity(n_layers);
        for (at, layer) in shape.layers.iter().enumerate() {
            let lag = if compression.plain_layers.contains(&at) { NEVER } else { lag };
            layers.push(match layers.iter().find_map(|made| made.like(layer, lag)) {
                Some(made) => made,
                None => Storage::new(layer, compression, lag, (shape.max_tokens, device))?,
            });
        }
        let ledger = Ledger::new(n_layers, shape.max_tokens);
        Ok(Self { shape: Arc::new(shape), device: device.clone(), layers, ledger, hooks: Vec::new() })
    }

    /// Bytes of the pages that other caches hold, too. On a GPU 0: it does not tell.
    pub fn shared_bytes(&self) -> usize {
        self.layers.iter().map(Storage::shared_bytes).sum()
    }
}

/// Rows `[n_rows, n_heads, head_dim]` with every head rotated.
fn turn(rotation: &Option<Rotation>, rows: &[f32]) -> Vec<f32> {
    let mut rows = rows.to_vec();
    if let Some(rotation) = rotation {
        // The rows are whole heads, whose width the rotation was made for.
        let turned = rotation.forward(&mut rows);
        debug_assert!(turned.is_ok());
    }
    rows
}

impl Layer {
    /// A layer, or a head of one.
    pub(crate) fn new(shape: &LayerShape, method: &Method, n_exact: usize, lag: usize) -> Result<Self> {
        // The tables of a layer that is never packed are never read.
        let head_dim = if lag == NEVER { LANES } else { shape.head_dim };
        let coders = method.coders(head_dim)?;
        let Coders { keys, values, key_rotation, value_rotation, sketch, weighs_channels } = coders;
        let (key_format, value_format) = (keys.format().clone(), values.format().clone());
        let format = PackedFormat::new(shape.n_kv_heads, head_dim, key_format, value_format, n_exact);
        let turns = match lag {
            NEVER => Turns::default(),
            _ => Turns { keys: key_rotation, values: value_rotation, sketch },
        };
        let weighs_channels = weighs_channels && lag != NEVER;
        let packing = Packing { format, keys, values, lag, weighs_channels };
        Ok(Self { pages: PackedLayer::new(shape, Arc::new(packing)), turns: Arc::new(turns) })
    }

    /// An empty layer that shares all tables with this one.
    pub(crate) fn like(&self, shape: &LayerShape) -> Self {
        Self {
            pages: PackedLayer::new(shape, Arc::clone(&self.pages.packing)),
            turns: Arc::clone(&self.turns),
        }
    }

    /// Queries, or keys, as the pages hold keys.
    pub(crate) fn turn_keys(&self, rows: &[f32]) -> Vec<f32> {
        turn(&self.turns.keys, rows)
    }

    /// Appends the tokens behind the first `first` ones and attends.
    pub(crate) fn attend(
        &mut self,
        first: usize,
        [q, k, v]: [&[f32]; 3],
        n_heads: usize,
        depths: &[usize],
        paths: Option<&Arc<Vec<Vec<usize>>>>,
        scale: f32,
    ) -> Result<Vec<f32>, BadRow> {
        let isa = cpu::isa();
        let keys = &self.turns.keys;
        let (q_rows, k_rows, v_rows) = (turn(keys, q), turn(keys, k), turn(&self.turns.values, v));
        self.pages.plain.append(isa, first, &k_rows, &v_rows)?;
        self.pages.note_queries(first, &q_rows, n_heads, paths.is_some());
        let end = first + depths.iter().max().map_or(0, |depth| depth + 1);
        let sketch = self.project(&q_rows);
        let bad_query = |row| (0, row);
        let mut out = match paths {
            // A page that some of the rows see packed holds other tokens for each of them.
            Some(paths) if self.pages.n_packed_for(end - 1) * PAGE_TOKENS > first => {
                let parts = [&q_rows, &k_rows, &v_rows].map(|rows| rows.as_slice());
                self.attend_paths(first, parts, &sketch, paths, n_heads, scale).map_err(bad_query)?
            }
            _ => {
                self.pages.pack(isa, end);
                let visible = Visible::step(first, depths, paths, self.pages.window);
                self.run(&q_rows, &sketch, n_heads, scale, &visible).map_err(bad_query)?
            }
        };
        if let Some(rotation) = &self.turns.values {
            // As above.
            let turned = rotation.inverse(&mut out);
            debug_assert!(turned.is_ok());
        }
        Ok(out)
    }

    /// Queries times the sketch's matrix.
    fn project(&self, q: &[f32]) -> Vec<f32> {
        let sketch = &self.turns.sketch;
        if sketch.is_empty() {
            return Vec::new();
        }
        let dim = self.pages.plain.layout.head_dim;
        let mut out = Vec::with_capacity(q.len());
        for q in q.chunks_exact(dim) {
            out.extend(
                sketch.chunks_exact(dim).map(|row| row.iter().zip(q).map(|(a, b)| a * b).sum::<f32>()),
            );
        }
        out
    }

    /// Fails with the first row whose query is not finite.
    fn run(
        &self,
        q: &[f32],
        sketch: &[f32],
        n_heads: usize,
        scale: f32,
        visible: &Visible,
    ) -> Result<Vec<f32>, usize> {
        let plain = &self.pages.plain;
        let isa = cpu::isa();
        let packed = Some(Packed { layer: &self.pages, isa, sketch });
        let job = Job { layout: plain.layout, pages: &plain.pages, q, n_heads, scale, visible, packed };
        job.run(isa)
    }

    /// Attention of a tree's rows, one by one, each over its own path as a chain.
    fn attend_paths(
        &self,
        first: usize,
        [q, k, v]: [&[f32]; 3],
        sketch: &[f32],
        paths: &[Vec<usize>],
        n_heads: usize,
        scale: f32,
    ) -> Result<Vec<f32>, usize> {
        let isa = cpu::isa();
        let (n_rows, width) = (paths.len(), k.len() / paths.len());
        let mut out = Vec::with_capacity(q.len());
        for (row, path) in paths.iter().enumerate() {
            let mut chain = self.clone();
            chain.pages.truncate(first);
            let pick = |rows: &[f32], width: usize| -> Vec<f32> {
                path.iter().flat_map(|&row| &rows[row * width..][..width]).copied().collect()
            };
            let part = |rows: &[f32]| rows.len() / n_rows;
            // They were found finite when all rows were appended.
            let appended = chain.pages.plain.append(isa, first, &pick(k, width), &pick(v, width));
            appended.map_err(|(_, row)| row)?;
            chain.pages.note_queries(first, &pick(q, part(q)), n_heads, false);
            chain.pages.pack(isa, first + path.len());
            let own = row..row + 1;
            let visible = Visible::causal(first + path.len() - 1, 1, self.pages.window);
            let slice = |rows: &'_ [f32]| rows[own.start * part(rows)..own.end * part(rows)].to_vec();
            let result = chain.run(&slice(q), &slice(sketch), n_heads, scale, &visible);
            out.extend(result.map_err(|_| row)?);
        }
        Ok(out)
    }
}

impl KvCache for QuantizedCache {
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
        self.layers.iter().map(Storage::bytes).sum()
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
        checks::check(step.n_rows, shape, &self.device, [&q, &k, &v], scale)?;
        let first = self.ledger.len();
        let paths = step.tree.as_ref().map(|tree| &tree.paths);
        let for_hooks = (!self.hooks.is_empty()).then(|| [q.clone(), k.clone(), v.clone()]);
        let out = self.layers[layer].attend(first, [q, k, v], &step.depths, paths, scale)?;
        if let Some(tensors) = for_hooks {
            checks::show(&mut self.hooks, layer, &tensors, first, &step.depths);
        }
        self.ledger.layer_done();
        Ok(out)
    }

    fn end(&mut self) -> Result<()> {
        self.ledger.end()
    }

    fn abort(&mut self) {
        if self.ledger.abort() {
            let len = self.ledger.len();
            self.layers.iter_mut().for_each(|layer| layer.truncate(len));
            self.hooks.iter_mut().for_each(|hook| hook.aborted());
        }
    }

    fn retain(&mut self, rows: &[usize]) -> Result<()> {
        self.ledger.check_retain(rows)?;
        let first = self.ledger.committed();
        self.layers.iter_mut().for_each(|layer| layer.retain(first, rows));
        self.ledger.retained(rows.len());
        let len = self.ledger.len();
        self.layers.iter_mut().for_each(|layer| layer.truncate(len));
        self.hooks.iter_mut().for_each(|hook| hook.retained(rows));
        Ok(())
    }

    fn commit(&mut self, n_tokens: usize) -> Result<()> {
        let mut ledger = self.ledger.clone();
        ledger.commit(n_tokens)?;
        let (committed, len) = (ledger.committed(), ledger.len());
        self.layers.iter_mut().try_for_each(|layer| layer.pack(committed))?;
        self.ledger = ledger;
        self.layers.iter_mut().for_each(|layer| layer.release(committed, len));
        self.hooks.iter_mut().for_each(|hook| hook.committed(n_tokens));
        Ok(())
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.ledger.check_truncate(len)?;
        if len < self.ledger.committed() {
            self.layers.iter().try_for_each(|layer| layer.check_truncate(len))?;
        }
        self.ledger.truncated(len);
        self.layers.iter_mut().for_each(|layer| layer.truncate(len));
        self.hooks.iter_mut().for_each(|hook| hook.truncated(len));
        Ok(())
    }

    fn fork(&self) -> Result<Box<dyn KvCache>> {
        self.ledger.closed("fork")?;
        Ok(Box::new(Self {
            shape: Arc::clone(&self.shape),
            device: self.device.clone(),
            layers: self.layers.clone(),
            ledger: self.ledger.clone(),
            hooks: Vec::new(),
        }))
    }

    fn add_hook(&mut self, hook: Box<dyn CacheHook>) {
        self.hooks.push(hook);
    }
}
