//! The quantized cache: packed pages for final tokens, plain pages for tokens that may still be taken back.

#[cfg(feature = "cube")]
pub(crate) mod device;
mod storage;

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::Arc;

use breakers_core::StepError;
use breakers_cpu as cpu;
use breakers_cpu::hadamard::Rotation;
use burn::tensor::{Device, Tensor};

use self::storage::{LayerStorage, Place};
use super::driver::{Cache, HostCall, Layers, Storage};
use super::ledger::Step;
use crate::attention::flex::job::Job;
use crate::checks::require;
use crate::coders::{CODERS, Coder, CodingKind, PackedCoding};
use crate::pages::layer::BadRow;
use crate::pages::meter::PageMeter;
use crate::pages::packed::PackedFormat;
use crate::pages::packed::bytes::BytesFormat;
use crate::pages::packed::layer::{Format, PackedLayer, Packing};
use crate::pages::page::PAGE_TOKENS;
use crate::pages::source::PageSource;
use crate::{CacheShape, Error, LayerShape, Result, Visible};

/// How a cache is compressed. Compressions with a name, such as `water-4`, can be parsed.
///
/// # Example
/// ```
/// use breakers_kv_cache::Compression;
/// use breakers_kv_cache::coders::{CODERS, KiviConfig};
///
/// let compression: Compression = "kivi-4".parse()?;
/// assert_eq!(compression.coder.name(), "kivi-4");
/// let other = Compression { window: 256, ..Compression::new(KiviConfig::paper(3)) };
/// assert_eq!(other.coder.name(), "kivi-3");
/// assert!(CODERS.iter().all(|entry| entry.name.parse::<Compression>().is_ok()));
/// # Ok::<(), breakers_kv_cache::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Compression {
    /// How keys and values are coded.
    pub coder: Arc<dyn Coder>,
    /// How many of the first tokens stay exact: they often get much attention, and their keys are unlike all
    /// others.
    pub exact_tokens: usize,
    /// How many of the newest tokens at least stay exact, rounded up to whole pages of 64 tokens. Tokens
    /// after the last page boundary always stay exact.
    pub window: usize,
    /// Layers that are not compressed.
    pub plain_layers: Vec<usize>,
}

impl Compression {
    /// A method with four exact tokens at the beginning and no window.
    pub fn new(coder: impl Coder + 'static) -> Self {
        Self { coder: Arc::new(coder), exact_tokens: 4, window: 0, plain_layers: Vec::new() }
    }

    /// Fails for a plain layer that is not there.
    pub(crate) fn check_plain_layers(&self, n_layers: usize) -> Result<()> {
        if let Some(&requested) = self.plain_layers.iter().find(|layer| **layer >= n_layers) {
            return Err(StepError::OutOfRange { what: "plain layers", requested, available: n_layers }.into());
        }
        Ok(())
    }

    /// Whole pages before a row's own page that stay plain.
    pub(crate) fn lag(&self) -> Result<usize> {
        if self.exact_tokens >= PAGE_TOKENS {
            return Err(Error::ExactTokens { most: PAGE_TOKENS - 1, found: self.exact_tokens });
        }
        Ok(self.window.max(self.coder.window()).div_ceil(PAGE_TOKENS))
    }
}

impl FromStr for Compression {
    type Err = Error;

    /// # Errors
    /// [`Error::UnknownCompression`], which lists the names of [`CODERS`].
    fn from_str(name: &str) -> Result<Self> {
        let found = CODERS.iter().find(|entry| entry.name == name).map(|entry| (entry.build)());
        found.ok_or_else(|| {
            let known: Vec<&str> = CODERS.iter().map(|entry| entry.name).collect();
            Error::UnknownCompression { name: name.to_owned(), known: known.join(", ") }
        })
    }
}

/// A cache that stores final tokens in a few bits per element.
///
/// Rows see the tokens of their own page of 64 (and of the window before it) as 16-bit floats, and all
/// earlier tokens compressed. This depends only on positions, so decoding, speculation and prompts in chunks
/// of any size give the same bits. A page is compressed when the first row arrives that needs it compressed,
/// and its plain form is freed when its tokens are final.
///
/// # Truncation
/// Possible back to any provisional token and, among final tokens and without a window, back to any page
/// boundary. In between it fails with
/// [`StepError::TruncateEvicted`](breakers_core::StepError::TruncateEvicted): the plain tokens that a row of
/// an unfinished page sees are gone.
///
/// # Memory
/// See the method. In addition, up to 63 tokens (and the window) are kept as 16-bit floats.
///
/// # GPUs
/// Pages are coded by the CPU, which reads them back once every 64 tokens. Only then is a NaN in keys or
/// values found, by [`attend`](crate::KvCache::attend) or [`commit`](crate::KvCache::commit), and the row in
/// [`Error::NotFinite`] is the token's place in the sequence. A NaN in queries is not found. There may be up
/// to seven more pages in memory.
///
/// # Example
/// ```
/// use breakers_kv_cache::{CacheShape, QuantizedCache, Compression, KvCache, LayerShape};
/// use burn::tensor::{Device, Distribution, Tensor};
///
/// # fn main() -> Result<(), breakers_kv_cache::Error> {
/// let device = Device::flex();
/// let shape = CacheShape::uniform(1, LayerShape::new(2, 64), 4096);
/// let mut cache = QuantizedCache::new(shape, &"water-4".parse::<Compression>()?, &device)?;
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
pub type QuantizedCache = Cache<QuantizedStorage>;

/// The layers of a [`QuantizedCache`].
#[derive(Clone)]
pub struct QuantizedStorage {
    layers: Vec<LayerStorage>,
    meter: PageMeter,
}

/// Whole pages that a layer keeps plain if it is never packed.
pub(crate) const NEVER: usize = usize::MAX;

#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) pages: PackedLayer,
    turns: Arc<Turns>,
}

/// The transforms of queries, keys and values before attention, and of the result.
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
    /// two from 16 to 256 with a method of this crate; [`Error::BitWidth`], [`Error::GroupSize`] and
    /// [`Error::ExactTokens`] for impossible settings;
    /// [`StepError::OutOfRange`](breakers_core::StepError::OutOfRange) for a plain layer that does not exist;
    /// [`Error::CoderDevice`] for a method from another crate on a GPU; [`Error::UnsupportedDevice`], and
    /// [`Error::UnsupportedElement`] for a GPU without 16-bit floats.
    pub fn new(shape: CacheShape, compression: &Compression, device: &Device) -> Result<Self> {
        require(device)?;
        shape.validate()?;
        let lag = compression.lag()?;
        let n_layers = shape.layers.len();
        compression.check_plain_layers(n_layers)?;
        let meter = PageMeter::default();
        let mut layers: Vec<LayerStorage> = Vec::with_capacity(n_layers);
        for (at, layer) in shape.layers.iter().enumerate() {
            let lag = if compression.plain_layers.contains(&at) { NEVER } else { lag };
            layers.push(match layers.iter().find_map(|made| made.like(layer, lag)) {
                Some(made) => made,
                None => LayerStorage::new(
                    layer,
                    compression,
                    lag,
                    Place { max_tokens: shape.max_tokens, device, meter: &meter },
                )?,
            });
        }
        Ok(Self::with_storage(shape, device, QuantizedStorage { layers, meter }))
    }
}

/// Rows `[n_rows, n_heads, head_dim]` with every head rotated.
fn turn<'a>(rotation: Option<&Rotation>, rows: Cow<'a, [f32]>) -> Cow<'a, [f32]> {
    let Some(rotation) = rotation else { return rows };
    let mut rows = rows.into_owned();
    // The rows are whole heads, whose width the rotation was made for.
    let turned = rotation.forward(&mut rows);
    debug_assert!(turned.is_ok());
    rows.into()
}

impl Layer {
    /// A layer, or a head of one.
    pub(crate) fn new(
        shape: &LayerShape,
        coder: &dyn Coder,
        n_exact: usize,
        lag: usize,
        meter: &PageMeter,
    ) -> Result<Self> {
        let LayerShape { n_kv_heads, head_dim, .. } = *shape;
        let mut turns = Turns::default();
        let (format, weighs_channels) = match coder.coding(head_dim)?.0 {
            CodingKind::Packed(coding) => {
                let PackedCoding { keys, values, key_rotation, value_rotation, sketch, weighs_channels } =
                    coding;
                turns = Turns { keys: key_rotation, values: value_rotation, sketch };
                let (key_format, value_format) = (keys.format().clone(), values.format().clone());
                let format = PackedFormat::new(n_kv_heads, head_dim, key_format, value_format);
                (Format::Packed { format, keys, values }, weighs_channels)
            }
            CodingKind::Pages(keys, values) => {
                (Format::Bytes(BytesFormat::new(n_kv_heads, head_dim, keys, values)), false)
            }
        };
        let packing = Packing { format, lag, n_exact, weighs_channels };
        Ok(Self { pages: PackedLayer::new(shape, Arc::new(packing), meter), turns: Arc::new(turns) })
    }

    /// A layer, or a head of one, that is never packed.
    pub(crate) fn plain(shape: &LayerShape, meter: &PageMeter) -> Self {
        let packing = Packing { format: Format::Plain, lag: NEVER, n_exact: 0, weighs_channels: false };
        Self { pages: PackedLayer::new(shape, Arc::new(packing), meter), turns: Arc::default() }
    }

    /// An empty layer that shares all tables with this one.
    pub(crate) fn like(&self, shape: &LayerShape) -> Self {
        Self {
            pages: PackedLayer::new(shape, Arc::clone(&self.pages.packing), self.pages.plain.meter()),
            turns: Arc::clone(&self.turns),
        }
    }

    /// Transforms queries or keys to the form in which pages hold keys.
    pub(crate) fn turn_keys<'a>(&self, rows: &'a [f32]) -> Cow<'a, [f32]> {
        turn(self.turns.keys.as_ref(), rows.into())
    }

    /// Appends the tokens after the first `first` ones and adds their attention to the jobs.
    pub(crate) fn stage<'a>(
        &'a mut self,
        first: usize,
        [q, k, v]: [Cow<'a, [f32]>; 3],
        heads: QueryHeads,
        seen: &Seen<'_>,
        jobs: &mut Vec<Job<'a>>,
    ) -> Result<(), BadRow> {
        let (keys, values) = (self.turns.keys.as_ref(), self.turns.values.as_ref());
        let (q, k, v) = (turn(keys, q), turn(keys, k), turn(values, v));
        // Pages that a step packed before it failed hold what is overwritten now.
        self.pages.forget(first);
        self.pages.plain.append(cpu::isa(), first, &k, &v)?;
        self.pages.note_queries(first, &q, heads.n_heads, seen.paths.is_some());
        let end = first + seen.depths.iter().max().map_or(0, |depth| depth + 1);
        let sketch = self.project(&q);
        let (window, turned) = (self.pages.window, self.turns.values.as_ref());
        let job = |source: Box<dyn PageSource + 'a>, q, sketch, visible| {
            let QueryHeads { n_heads, scale, out_column } = heads;
            Job { source, q, sketch, n_heads, scale, visible, turned, out_row: 0, out_column }
        };
        let paths = seen.paths.filter(|_| self.pages.n_packed_for(end - 1) * PAGE_TOKENS > first);
        let Some(paths) = paths else {
            self.pages.pack(end);
            let visible = match seen.visible {
                Some(visible) => Arc::clone(visible),
                None => Arc::new(Visible::step(first, seen.depths, seen.paths, window)),
            };
            jobs.push(job(Box::new(&self.pages), q, sketch.into(), visible));
            return Ok(());
        };
        // Each row sees its own path as a chain.
        let part = |rows: &[f32], row: usize| -> Vec<f32> {
            let width = rows.len() / paths.len();
            rows[row * width..][..width].to_vec()
        };
        for (row, pages) in self.pages.pack_paths(first, end, paths).into_iter().enumerate() {
            let own = Arc::new(vec![paths[row].clone()]);
            let visible = Arc::new(Visible::step(first, &[paths[row].len() - 1], Some(&own), window));
            let mut job = job(Box::new(pages), part(&q, row).into(), part(&sketch, row).into(), visible);
            job.out_row = row;
            jobs.push(job);
        }
        Ok(())
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

    /// Bytes of a final token.
    pub(crate) fn bytes_per_token(&self) -> f64 {
        let page = match self.pages.packing.lag {
            NEVER => self.pages.plain.layout.page_bytes(),
            _ => self.pages.packing.page_bytes(),
        };
        page as f64 / PAGE_TOKENS as f64
    }
}

/// The query heads of a call, and where their results go.
#[derive(Clone, Copy)]
pub(crate) struct QueryHeads {
    pub(crate) n_heads: usize,
    pub(crate) scale: f32,
    /// Element of the result's rows that the first head writes to.
    pub(crate) out_column: usize,
}

/// What the rows of a step see.
pub(crate) struct Seen<'a> {
    pub(crate) depths: &'a [usize],
    pub(crate) paths: Option<&'a Arc<Vec<Vec<usize>>>>,
    /// The same, if it is known already.
    pub(crate) visible: Option<&'a Arc<Visible>>,
}

impl Layers for QuantizedStorage {
    fn is_on_host(&self) -> bool {
        matches!(self.layers[..], [LayerStorage::Host(_), ..])
    }

    fn stage<'a>(
        &'a mut self,
        layer: usize,
        step: &Step,
        call: HostCall<'a>,
        jobs: &mut Vec<Job<'a>>,
    ) -> Result<(), BadRow> {
        #[cfg_attr(not(feature = "cube"), expect(irrefutable_let_patterns))]
        let LayerStorage::Host(layer) = &mut self.layers[layer] else { return Ok(()) };
        let HostCall { q, k, v, n_heads, scale } = call;
        let visible = step.visible(layer.pages.window);
        let seen = Seen { depths: &step.depths, paths: step.paths(), visible: Some(&visible) };
        let heads = QueryHeads { n_heads, scale, out_column: 0 };
        layer.stage(step.first, [q, k, v].map(Cow::from), heads, &seen, jobs)
    }

    fn attend_on_device(
        &mut self,
        layer: usize,
        step: &Step,
        tensors: [Tensor<3>; 3],
        scale: f32,
    ) -> Result<Tensor<2>> {
        self.layers[layer].attend_on_device(step, tensors, scale)
    }
}

impl Storage for QuantizedStorage {
    fn bytes(&self) -> usize {
        self.layers.iter().map(LayerStorage::bytes).sum()
    }

    fn shared_bytes(&self) -> usize {
        self.layers.iter().map(LayerStorage::shared_bytes).sum()
    }

    fn bytes_per_token(&self) -> f64 {
        self.layers.iter().map(LayerStorage::bytes_per_token).sum()
    }

    fn meter(&self) -> &PageMeter {
        &self.meter
    }

    fn retain(&mut self, first: usize, rows: &[usize], _len: usize) {
        self.layers.iter_mut().for_each(|layer| layer.retain(first, rows));
    }

    fn commit(&mut self, committed: usize, len: usize) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.pack(committed))?;
        self.layers.iter_mut().for_each(|layer| layer.release(committed, len));
        Ok(())
    }

    fn check_truncate(&self, len: usize, committed: usize) -> Result<()> {
        if len < committed {
            self.layers.iter().try_for_each(|layer| layer.check_truncate(len))?;
        }
        Ok(())
    }

    fn truncate(&mut self, len: usize, _before: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(len));
    }
}
