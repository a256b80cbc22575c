//! The driver of all caches: the order of calls, the checks, and what is undone when something fails.
//!
//! A [`Storage`] keeps keys and values. [`Cache`] does the bookkeeping, and calls the storage only with valid
//! arguments.

use std::sync::Arc;

use breakers_backend::flex;
use breakers_core::{Snapshot, SnapshotBytes};
use breakers_cpu as cpu;
use burn::tensor::{Device, Tensor};
use burn_flex::Flex;

use super::ledger::{Ledger, Step};
use crate::attention::flex::job::Job;
use crate::attention::flex::schedule;
use crate::checks::{self, HostRows};
use crate::pages::layer::BadRow;
use crate::pages::meter::PageMeter;
use crate::{CacheShape, Error, KvCache, LayerShape, Result, SegmentError};

/// A cache of one sequence, with one of several storages: [`PlainCache`](crate::PlainCache),
/// [`QuantizedCache`](crate::QuantizedCache), [`EvictingCache`](crate::EvictingCache).
pub struct Cache<S> {
    shape: Arc<CacheShape>,
    device: Device,
    ledger: Ledger,
    pub(crate) storage: S,
}

/// Queries `[n_rows, n_heads, head_dim]`, keys and values `[n_rows, n_kv_heads, head_dim]` of
/// one layer's step.
#[derive(Clone, Copy)]
pub(crate) struct HostCall<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    pub(crate) n_heads: usize,
    pub(crate) scale: f32,
}

/// The layers of a storage, as attention sees them.
pub(crate) trait Layers: Send {
    /// Whether they are in the host's memory, so that [`stage`](Self::stage) is called, or else
    /// [`attend_on_device`](Self::attend_on_device).
    fn is_on_host(&self) -> bool;

    /// Appends the step's keys and values and adds the attention that is to be computed. Fails if a row of
    /// keys or values is not finite; anything written by then is past the end of the sequence.
    fn stage<'a>(
        &'a mut self,
        layer: usize,
        step: &Step,
        call: HostCall<'a>,
        jobs: &mut Vec<Job<'a>>,
    ) -> Result<(), BadRow>;

    /// Notes that a layer's attention succeeded.
    fn attended(&mut self, _layer: usize, _call: HostCall<'_>) {}

    /// Appends the step's keys and values and attends.
    ///
    /// # Errors
    /// As [`KvCache::attend`].
    fn attend_on_device(
        &mut self,
        layer: usize,
        step: &Step,
        tensors: [Tensor<3>; 3],
        scale: f32,
    ) -> Result<Tensor<2>>;
}

/// How a cache stores its tokens.
pub(crate) trait Storage: Layers + Clone + 'static {
    /// Bytes kept resident.
    fn bytes(&self) -> usize;

    /// Bytes of the pages that other caches hold as well.
    fn shared_bytes(&self) -> usize;

    /// See [`KvCache::bytes_per_token`].
    fn bytes_per_token(&self) -> f64;

    fn meter(&self) -> &PageMeter;

    /// See [`KvCache::shareable`].
    fn shareable(&self) -> bool {
        true
    }

    /// Undoes an open step, leaving the first `step.first` tokens.
    fn abort(&mut self, step: &Step) {
        self.truncate(step.first, step.first);
    }

    /// Moves the tokens `first + row` for each of `rows`, which ascend, to the places from `first` on, of
    /// `len` in all. [`truncate`](Self::truncate) follows.
    fn retain(&mut self, first: usize, rows: &[usize], len: usize);

    /// Called once the first `committed` tokens, of `len`, are final. If it fails, nothing has changed that a
    /// row could see.
    fn commit(&mut self, committed: usize, len: usize) -> Result<()>;

    /// Fails unless the sequence, of which the first `committed` tokens are final, can be shortened to `len`.
    fn check_truncate(&self, len: usize, committed: usize) -> Result<()>;

    /// Drops the tokens after the first `len`, of `before`.
    fn truncate(&mut self, len: usize, before: usize);

    /// See [`KvCache::snapshot_kind`].
    fn snapshot_kind(&self) -> Option<String> {
        None
    }

    /// The pages of the first `len` tokens.
    fn snapshot(&self, _len: usize) -> Result<Box<dyn Snapshot>> {
        Err(Error::NoSnapshot)
    }

    /// Fills an empty storage with `len` of a snapshot's tokens.
    fn restore(&mut self, _bytes: &SnapshotBytes, _n_tokens: usize, _len: usize) -> Result<()> {
        Err(Error::NoSnapshot)
    }
}

/// The next layer of a cache's open step.
pub struct Lane<'a> {
    shape: &'a LayerShape,
    device: &'a Device,
    layer: usize,
    step: &'a mut Step,
    layers: &'a mut dyn Layers,
}

impl<S> Cache<S> {
    pub(crate) fn with_storage(shape: CacheShape, device: &Device, storage: S) -> Self {
        let ledger = Ledger::new(&shape);
        Self { shape: Arc::new(shape), device: device.clone(), ledger, storage }
    }
}

#[allow(private_bounds)] // Storages are this crate's own.
impl<S: Storage> Cache<S> {
    /// Bytes of the pages that other caches hold as well. On a GPU it is 0, because the storage does not
    /// report it.
    pub fn shared_bytes(&self) -> usize {
        self.storage.shared_bytes()
    }
}

impl<S: Storage> KvCache for Cache<S> {
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
        self.storage.bytes()
    }

    fn bytes_per_token(&self) -> f64 {
        self.storage.bytes_per_token()
    }

    fn page_meter(&self) -> Option<&PageMeter> {
        Some(self.storage.meter())
    }

    fn shareable(&self) -> bool {
        self.storage.shareable()
    }

    fn begin(&mut self, n_rows: usize, parents: Option<&[Option<usize>]>) -> Result<Vec<usize>> {
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
        let (shape, device) = (&self.shape.layers[layer], &self.device);
        if self.storage.is_on_host() {
            let lane = Lane { shape, device, layer, step, layers: &mut self.storage };
            return attend_lanes(&mut [lane], [q, k, v], scale).map_err(|error| error.source);
        }
        checks::check(step.n_rows, shape, device, [&q, &k, &v], scale)?;
        let out = self.storage.attend_on_device(layer, step, [q, k, v], scale)?;
        step.n_layers += 1;
        Ok(out)
    }

    fn end(&mut self) -> Result<()> {
        self.ledger.end()
    }

    fn abort(&mut self) {
        if let Some(step) = self.ledger.abort() {
            self.storage.abort(&step);
        }
    }

    fn retain(&mut self, rows: &[usize]) -> Result<()> {
        self.ledger.check_retain(rows)?;
        let before = self.ledger.len();
        self.storage.retain(self.ledger.committed(), rows, before);
        self.ledger.retained(rows.len());
        self.storage.truncate(self.ledger.len(), before);
        Ok(())
    }

    fn commit(&mut self, n_tokens: usize) -> Result<()> {
        self.ledger.check_commit(n_tokens)?;
        self.storage.commit(self.ledger.committed() + n_tokens, self.ledger.len())?;
        self.ledger.commit(n_tokens);
        Ok(())
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.ledger.check_truncate(len)?;
        self.storage.check_truncate(len, self.ledger.committed())?;
        self.storage.truncate(len, self.ledger.len());
        self.ledger.truncated(len);
        Ok(())
    }

    fn fork(&self) -> Result<Box<dyn KvCache>> {
        self.ledger.closed("fork")?;
        Ok(Box::new(Self {
            shape: Arc::clone(&self.shape),
            device: self.device.clone(),
            ledger: self.ledger.clone(),
            storage: self.storage.clone(),
        }))
    }

    fn snapshot_kind(&self) -> Option<String> {
        self.storage.snapshot_kind()
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        self.ledger.closed("snapshot")?;
        self.storage.snapshot(self.ledger.committed())
    }

    fn restore(&mut self, bytes: &SnapshotBytes, n_tokens: usize, len: usize) -> Result<()> {
        if self.ledger.len() > 0 {
            return Err(Error::NoSnapshot);
        }
        self.ledger.check_restore(n_tokens, len)?;
        self.storage.restore(bytes, n_tokens, len)?;
        self.ledger.restored(len);
        Ok(())
    }

    fn lane(&mut self, layer: usize) -> Result<Option<Lane<'_>>> {
        let step = self.ledger.layer(layer)?;
        if !self.storage.is_on_host() {
            return Ok(None);
        }
        let (shape, device) = (&self.shape.layers[layer], &self.device);
        Ok(Some(Lane { shape, device, layer, step, layers: &mut self.storage }))
    }
}

/// One sequence's part of [`attend_many`].
pub struct Segment<'a> {
    /// The sequence's cache, whose step is open.
    pub cache: &'a mut dyn KvCache,
    /// Rows of the step.
    pub n_rows: usize,
}

/// Attention of one layer over many sequences in one call. Each row attends to its own sequence.
///
/// The result has the same bits as [`KvCache::attend`] on each sequence separately. But all of them share the
/// threads, so a batch of short steps costs about as much as one step with the same number of rows.
///
/// # Shapes
/// - `q`: `[n_rows, n_heads, head_dim]`, the segments' rows one after the other
/// - `k`, `v`: `[n_rows, n_kv_heads, head_dim]`, likewise
/// - result: `[n_rows, n_heads * head_dim]`
///
/// # Errors
/// As [`KvCache::attend`], naming the segment at fault. After an error, abort all steps.
///
/// # Example
/// ```
/// use breakers_kv_cache::{CacheShape, Element, KvCache, LayerShape, PlainCache, Segment, attend_many};
/// use burn::tensor::{Device, Distribution, Tensor};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Device::flex();
/// let shape = CacheShape::uniform(1, LayerShape::new(1, 64), 1024);
/// let random = |heads| Tensor::<3>::random([3, heads, 64], Distribution::Default, &device);
/// let (q, k, v) = (random(2), random(1), random(1));
/// let mut first = PlainCache::new(shape.clone(), Element::F16, &device)?;
/// let mut second = PlainCache::new(shape, Element::F16, &device)?;
/// first.begin(1, None)?;
/// second.begin(2, None)?;
/// let mut segments =
///     [Segment { cache: &mut first, n_rows: 1 }, Segment { cache: &mut second, n_rows: 2 }];
/// let out = attend_many(&mut segments, 0, q, k, v, 0.125)?;
/// assert_eq!(out.dims(), [3, 2 * 64]);
/// first.end()?;
/// second.end()?;
/// assert_eq!((first.len(), second.len()), (1, 2));
/// # Ok(())
/// # }
/// ```
pub fn attend_many(
    segments: &mut [Segment<'_>],
    layer: usize,
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    scale: f32,
) -> Result<Tensor<2>, SegmentError> {
    let of = |segment: usize| move |source: Error| SegmentError { segment, source };
    if let [only] = segments {
        return only.cache.attend(layer, q, k, v, scale).map_err(of(0));
    }
    let n_rows: usize = segments.iter().map(|segment| segment.n_rows).sum();
    for (tensor, values) in [("q", &q), ("k", &k), ("v", &v)] {
        let found = values.dims();
        if found[0] != n_rows || n_rows == 0 {
            let expected = [n_rows, found[1], found[2]];
            return Err(of(0)(Error::TensorShape { tensor, expected, found }));
        }
    }
    let mut all_on_host = true;
    for (i, segment) in segments.iter_mut().enumerate() {
        let lane = segment.cache.lane(layer).map_err(of(i))?;
        all_on_host &= lane.is_some_and(|lane| lane.step.n_rows == segment.n_rows);
    }
    if all_on_host {
        let mut lanes = Vec::with_capacity(segments.len());
        for (i, segment) in segments.iter_mut().enumerate() {
            lanes.extend(segment.cache.lane(layer).map_err(of(i))?);
        }
        return attend_lanes(&mut lanes, [q, k, v], scale);
    }
    let mut parts = Vec::with_capacity(segments.len());
    let mut first = 0;
    for (i, Segment { cache, n_rows }) in segments.iter_mut().enumerate() {
        let part = |tensor: &Tensor<3>| tensor.clone().narrow(0, first, *n_rows);
        parts.push(cache.attend(layer, part(&q), part(&k), part(&v), scale).map_err(of(i))?);
        first += *n_rows;
    }
    Ok(Tensor::cat(parts, 0))
}

/// Attention of the layers of several caches in the host's memory.
fn attend_lanes(
    lanes: &mut [Lane<'_>],
    tensors: [Tensor<3>; 3],
    scale: f32,
) -> Result<Tensor<2>, SegmentError> {
    let of = |segment: usize| move |source: Error| SegmentError { segment, source };
    let n_rows = lanes.iter().map(|lane| lane.step.n_rows).sum();
    for (i, lane) in lanes.iter().enumerate() {
        checks::check(n_rows, lane.shape, lane.device, tensors.each_ref(), scale).map_err(of(i))?;
    }
    let [_, n_heads, head_dim] = tensors[0].dims();
    let [q, k, v] = tensors;
    let rows = HostRows::new(q, k, v).map_err(of(0))?;
    let [q, k, v] = rows.slices();
    // The rows of a lane after the first `first`.
    let part = |first: usize, lane: &Lane<'_>| {
        let of =
            |x: &'_ [f32], width: usize| first * width..first * width + lane.step.n_rows * x.len() / n_rows;
        let (q_width, width) = (n_heads * head_dim, k.len() / n_rows);
        let (q, k, v) = (&q[of(q, q_width)], &k[of(k, width)], &v[of(v, width)]);
        HostCall { q, k, v, n_heads, scale }
    };
    let mut jobs = Vec::with_capacity(lanes.len());
    let mut first = 0;
    // Rows up to each lane's last one.
    let mut ends = Vec::with_capacity(lanes.len());
    for (i, lane) in lanes.iter_mut().enumerate() {
        let (call, n_before) = (part(first, lane), jobs.len());
        let staged = lane.layers.stage(lane.layer, lane.step, call, &mut jobs);
        staged.map_err(|bad| of(i)(rows.not_finite_behind(first, bad)))?;
        jobs[n_before..].iter_mut().for_each(|job| job.out_row += first);
        first += lane.step.n_rows;
        ends.push(first);
    }
    let size = [n_rows, n_heads * head_dim];
    let out = schedule::run(cpu::isa(), &jobs, size).map_err(|row| {
        let lane = ends.partition_point(|end| *end <= row);
        let first = lane.checked_sub(1).map_or(0, |before| ends[before]);
        of(lane)(rows.not_finite_behind(first, (0, row - first)))
    })?;
    drop(jobs);
    first = 0;
    for lane in lanes {
        let call = part(first, lane);
        lane.layers.attended(lane.layer, call);
        first += lane.step.n_rows;
        lane.step.n_layers += 1;
    }
    Ok(Tensor::from_primitive::<Flex>(flex::from_vec(out, size)))
}
