//! One layer of a quantized cache on a GPU.
//!
//! Which pages a row sees packed, and when plain pages are freed, is the same as on the CPU
//! ([`layer`](crate::pages::packed::layer)). New tokens are rotated and kept on the device as 16-bit floats.
//! To pack a page, the host reads its 64 tokens, codes them as for the CPU, and sends the words. So each
//! token is read back once, and packed pages never are.

#[cfg(test)]
mod tests;

use breakers_core::StepError;
use std::sync::Arc;

use breakers_backend::device::max_buffer_bytes;
use breakers_cpu::pool;
use burn::tensor::{DType, Device, Tensor, f16};

use crate::attention::cube::packed::launch::{Job, turn};
use crate::coders::Coder;
use crate::pages::meter::{Lease, PageMeter};
use crate::pages::packed::device::packing::Packing;
use crate::pages::packed::device::tail::{Tail, select};
use crate::pages::packed::device::words::Words;
use crate::pages::packed::layer::check_truncate;
use crate::pages::page::PAGE_TOKENS;
use crate::{Element, Error, LayerShape, Result};

/// Keys and values of one layer. Clones share what is on the device until one of them writes.
#[derive(Clone)]
pub(crate) struct DeviceLayer {
    packing: Arc<Packing>,
    device: Device,
    window: Option<usize>,
    tail: Tail,
    words: Words,
    /// Leading pages whose plain form is freed.
    n_dropped: usize,
    /// Leading pages that no later row's window reaches.
    n_evicted: usize,
    /// The first page's queries, rotated, `[slots, n_heads, head_dim]`, where they tell how much a channel
    /// matters.
    queries: Option<Tensor<3>>,
    /// The weights computed from them: `[n_kv_heads, head_dim]`.
    weights: Option<Arc<Vec<f32>>>,
    meter: PageMeter,
    lease: Option<Arc<Lease>>,
}

fn turn_by(x: Tensor<3>, matrix: &Option<Tensor<2>>) -> Result<Tensor<3>> {
    match matrix {
        Some(matrix) => turn(x, matrix),
        None => Ok(x),
    }
}

impl DeviceLayer {
    /// # Errors
    /// Those of the method; [`Error::CoderDevice`], [`Error::UnsupportedElement`], and
    /// [`StepError::ContextFull`](breakers_core::StepError::ContextFull) if no page fits a buffer.
    pub(crate) fn new(
        shape: &LayerShape,
        coder: &dyn Coder,
        n_exact: usize,
        lag: usize,
        device: &Device,
        meter: &PageMeter,
    ) -> Result<Self> {
        if !device.supports_dtype(DType::F16) {
            let element = Element::F16;
            return Err(Error::UnsupportedElement { element, device: format!("{device:?}") });
        }
        let packing = Packing::new(shape, coder, n_exact, lag, device)?;
        Ok(Self::with(Arc::new(packing), shape, device, meter))
    }

    /// An empty layer that shares all tables with this one.
    pub(crate) fn like(&self, shape: &LayerShape) -> Self {
        Self::with(Arc::clone(&self.packing), shape, &self.device, &self.meter)
    }

    fn with(packing: Arc<Packing>, shape: &LayerShape, device: &Device, meter: &PageMeter) -> Self {
        let token_bytes = packing.n_kv_heads.saturating_mul(packing.head_dim * size_of::<f16>());
        let limit = (max_buffer_bytes(device) / token_bytes.max(1)).saturating_sub(packing.n_exact);
        let window_pages = shape.window.map(|window| window.div_ceil(PAGE_TOKENS));
        Self {
            tail: Tail::new(packing.n_kv_heads, packing.head_dim, packing.n_exact, limit, device),
            words: Words::new(packing.page_words(), window_pages, device),
            packing,
            device: device.clone(),
            window: shape.window,
            n_dropped: 0,
            n_evicted: 0,
            queries: None,
            weights: None,
            meter: meter.clone(),
            lease: None,
        }
    }

    /// Whether a layer of another shape can share this one's tables.
    pub(crate) fn fits(&self, shape: &LayerShape) -> bool {
        (self.packing.n_kv_heads, self.packing.head_dim) == (shape.n_kv_heads, shape.head_dim)
    }

    pub(crate) fn bytes(&self) -> usize {
        let queries = self.queries.as_ref().map_or(0, |queries| queries.shape().num_elements());
        let weights = self.weights.as_ref().map_or(0, |weights| weights.len());
        self.tail.bytes() + self.words.bytes() + (queries + weights) * size_of::<f32>()
    }

    /// Bytes of a final token.
    pub(crate) fn bytes_per_token(&self) -> f64 {
        (self.packing.page_words() * size_of::<u32>()) as f64 / PAGE_TOKENS as f64
    }

    /// Makes the meter count the current storage. A fork is counted separately once it has written.
    fn count(&mut self) {
        let bytes = self.bytes();
        if !self.lease.as_ref().is_some_and(|lease| lease.bytes() == bytes && Arc::strong_count(lease) == 1) {
            self.lease = (bytes > 0).then(|| Arc::new(self.meter.lease(bytes)));
        }
    }

    /// Pages that a row at `position` sees packed.
    fn n_packed_for(&self, position: usize) -> usize {
        (position / PAGE_TOKENS).saturating_sub(self.packing.lag)
    }

    /// Appends the tokens after the first `first` ones and attends.
    ///
    /// # Errors
    /// [`StepError::ContextFull`](breakers_core::StepError::ContextFull) where the device has no larger
    /// buffers, [`Error::NotFinite`] where a page that is to be packed holds a NaN.
    pub(crate) fn attend(
        &mut self,
        first: usize,
        [q, k, v]: [Tensor<3>; 3],
        depths: &[usize],
        paths: Option<&[Vec<usize>]>,
        scale: f32,
    ) -> Result<Tensor<2>> {
        let packing = Arc::clone(&self.packing);
        let coded = packing.turn_queries.as_ref().map(|matrix| turn(q.clone(), matrix)).transpose()?;
        let q = turn_by(q, &packing.turn_keys)?;
        let k = turn_by(k, &packing.turn_keys)?;
        let v = turn_by(v, &packing.turn_values)?;
        let coded = coded.unwrap_or_else(|| q.clone());
        self.tail.append(first, k.clone(), v.clone())?;
        self.note_queries(first, &q, paths.is_some());
        self.count();
        let end = first + depths.iter().max().map_or(0, |depth| depth + 1);
        let out = match paths {
            // A page that some of the rows see packed holds other tokens for each of them.
            Some(paths) if self.n_packed_for(end - 1) * PAGE_TOKENS > first => {
                self.attend_paths(first, [q, coded, k, v], paths, scale)?
            }
            _ => {
                self.pack(end)?;
                let ends: Vec<usize> = depths.iter().map(|depth| first + depth + 1).collect();
                self.run(q, coded, &ends, paths.map(|paths| (first, paths)), scale)?
            }
        };
        match &packing.turn_outputs {
            None => Ok(out),
            Some(_) => {
                let [n_rows, width] = out.dims();
                let heads = out.reshape([n_rows, width / packing.head_dim, packing.head_dim]);
                Ok(turn_by(heads, &packing.turn_outputs)?.reshape([n_rows, width]))
            }
        }
    }

    /// Attention of rows that end at `ends`.
    fn run(
        &self,
        q: Tensor<3>,
        coded: Tensor<3>,
        ends: &[usize],
        paths: Option<(usize, &[Vec<usize>])>,
        scale: f32,
    ) -> Result<Tensor<2>> {
        let packing = &*self.packing;
        let rows: Vec<[usize; 3]> = ends
            .iter()
            .map(|&end| {
                let first = self.window.map_or(0, |window| end.saturating_sub(window));
                [first, self.n_packed_for(end - 1) * PAGE_TOKENS, end]
            })
            .collect();
        let Some(tail) = self.tail.stored() else {
            return Err(StepError::OutOfRange { what: "attend", requested: rows.len(), available: 0 }.into());
        };
        let job = Job {
            spec: packing.format.spec,
            n_kv_heads: packing.n_kv_heads,
            meta: &packing.meta,
            tables: &packing.tables,
            pieces: self.words.pieces().collect(),
            tail,
            base: self.tail.base(),
            n_exact: packing.n_exact,
            q,
            coded,
            rows: &rows,
            paths,
            scale,
        };
        job.run()
    }

    /// Attention of a tree's rows, some of which see packed pages with tokens of the tree. Those pages differ
    /// from row to row, so these rows are processed one by one, each over its own path as a chain; the others
    /// are processed together.
    fn attend_paths(
        &mut self,
        first: usize,
        [q, coded, k, v]: [Tensor<3>; 4],
        paths: &[Vec<usize>],
        scale: f32,
    ) -> Result<Tensor<2>> {
        // Pages before the tree are the same for all, and the chains below share them.
        self.pack_pages(first / PAGE_TOKENS)?;
        let end = |row: usize| first + paths[row].len();
        let sees_itself_packed = |row: &usize| self.n_packed_for(end(*row) - 1) * PAGE_TOKENS > first;
        let (alone, together): (Vec<usize>, Vec<usize>) = (0..paths.len()).partition(sees_itself_packed);
        let mut out = Vec::with_capacity(alone.len() + 1);
        if !together.is_empty() {
            let ends: Vec<usize> = together.iter().map(|row| end(*row)).collect();
            let own: Vec<Vec<usize>> = together.iter().map(|row| paths[*row].clone()).collect();
            let [q, coded] = [&q, &coded].map(|x| select(x.clone(), &together));
            out.push(self.run(q, coded, &ends, Some((first, &own)), scale)?);
        }
        for &row in &alone {
            let path = &paths[row];
            let mut chain = self.clone();
            chain.truncate(first);
            chain.tail.append(first, select(k.clone(), path), select(v.clone(), path))?;
            chain.note_queries(first, &select(q.clone(), path), false);
            chain.pack(end(row))?;
            let own = |x: &Tensor<3>| x.clone().narrow(0, row, 1);
            out.push(chain.run(own(&q), own(&coded), &[end(row)], None, scale)?);
        }
        let mut places = vec![0; paths.len()];
        for (place, row) in together.iter().chain(&alone).enumerate() {
            places[*row] = place;
        }
        Ok(select(Tensor::cat(out, 0), &places))
    }

    /// Notes the queries of the slots from `first` on, as far as they count: those of the first page, and of
    /// a tree all that may move there.
    fn note_queries(&mut self, first: usize, q: &Tensor<3>, is_tree: bool) {
        if !self.packing.weighs_channels || first >= PAGE_TOKENS || self.weights.is_some() {
            return;
        }
        let [n_rows, n_heads, head_dim] = q.dims();
        let n_noted = if is_tree { n_rows } else { n_rows.min(PAGE_TOKENS - first) };
        let n_slots = PAGE_TOKENS.max(first + n_noted);
        let old = self.queries.take();
        let target = match old {
            Some(old) if old.dims()[0] >= n_slots => old,
            old => {
                let new = Tensor::<3>::zeros([n_slots, n_heads, head_dim], &self.device);
                match old {
                    Some(old) => {
                        let n = old.dims()[0];
                        new.slice_assign([0..n, 0..n_heads, 0..head_dim], old)
                    }
                    None => new,
                }
            }
        };
        let rows = q.clone().cast(DType::F32).narrow(0, 0, n_noted);
        self.queries = Some(target.slice_assign([first..first + n_noted, 0..n_heads, 0..head_dim], rows));
    }

    /// How much each channel of the keys matters, by the first page's queries.
    fn weigh(&self) -> Vec<f32> {
        let Packing { n_kv_heads, head_dim, n_exact, .. } = *self.packing;
        let mut weights = vec![0.0f32; n_kv_heads * head_dim];
        if let Some(queries) = &self.queries {
            let n_heads = queries.dims()[1];
            let group = n_heads / n_kv_heads;
            // The device is as it was when it took the numbers.
            let data = queries.clone().narrow(0, 0, PAGE_TOKENS).into_data();
            let q: Vec<f32> = data.try_into_vec().unwrap_or_default();
            for q in q.chunks_exact(n_heads * head_dim).skip(n_exact) {
                for (q, weights) in q.chunks_exact(group * head_dim).zip(weights.chunks_exact_mut(head_dim)) {
                    for channel in 0..head_dim {
                        let squares = q[channel..].iter().step_by(head_dim);
                        weights[channel] += squares.fold(0.0f32, |sum, q| q.mul_add(*q, sum));
                    }
                }
            }
        }
        // Without any query, all channels matter equally.
        if weights.iter().all(|weight| *weight == 0.0) {
            weights.fill(1.0);
        }
        weights
    }

    /// Packs what rows at positions before `end` may see packed.
    ///
    /// # Errors
    /// [`Error::NotFinite`], whose row is a place in the sequence then.
    pub(crate) fn pack(&mut self, end: usize) -> Result<()> {
        self.pack_pages(self.n_packed_for(end.saturating_sub(1)))
    }

    /// Packs pages until there are `want`.
    fn pack_pages(&mut self, want: usize) -> Result<()> {
        let have = self.words.len();
        if have >= want {
            return Ok(());
        }
        let packing = Arc::clone(&self.packing);
        if have == 0 && packing.weighs_channels && self.weights.is_none() {
            self.weights = Some(Arc::new(self.weigh()));
        }
        let slots = have * PAGE_TOKENS..want * PAGE_TOKENS;
        let tokens = self.tail.read(slots.clone());
        packing.check(&tokens, slots)?;
        let mut words = vec![0u32; (want - have) * packing.page_words()];
        let (size, n_pages) = (packing.format.spec.region_words, want - have);
        let weights = self.weights.as_ref().map(|weights| weights.as_slice());
        pool::parallel_chunks_mut(&mut words, size, |start, region| {
            let at = start / size;
            let (page, head) = (at / packing.n_kv_heads, at % packing.n_kv_heads);
            let n_exact = if have + page == 0 { packing.n_exact } else { 0 };
            packing.code(
                region,
                [&tokens, &tokens[tokens.len() / 2..]],
                (page, n_pages),
                head,
                n_exact,
                weights,
            );
        });
        self.words.push(words);
        Ok(())
    }

    /// Frees what no row after the first `committed` tokens needs, of `len` in all.
    pub(crate) fn release(&mut self, committed: usize, len: usize) {
        let n_dropped = self.n_packed_for(committed).min(self.words.len());
        if n_dropped > self.n_dropped {
            self.tail.release(n_dropped * PAGE_TOKENS, len);
            self.n_dropped = n_dropped;
            self.queries = None;
        }
        if let Some(window) = self.window {
            let n_evicted = ((committed + 1).saturating_sub(window) / PAGE_TOKENS).min(self.n_dropped);
            self.n_evicted = self.n_evicted.max(n_evicted);
            self.words.evict(self.n_evicted);
        }
        self.count();
    }

    /// Fails unless the layer can be shortened to `len` tokens.
    pub(crate) fn check_truncate(&self, len: usize) -> Result<()> {
        check_truncate(len, self.n_packed_for(len), self.window, self.n_dropped, self.n_evicted)
    }

    /// Drops the tokens after the first `len`, as far as there are any.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.forget(len);
        self.tail.truncate(len, self.n_dropped * PAGE_TOKENS);
        if len == 0 {
            self.queries = None;
        }
        self.count();
    }

    /// Drops what was made of tokens after the first `len`, which changed.
    fn forget(&mut self, len: usize) {
        self.words.truncate(len / PAGE_TOKENS);
        self.n_dropped = self.n_dropped.min(self.words.len());
        self.n_evicted = self.n_evicted.min(self.words.len());
        if self.words.len() == 0 {
            self.weights = None;
        }
    }

    /// Moves the tokens `first + row` for each of `rows`, which ascend, to the slots from `first` on.
    pub(crate) fn retain(&mut self, first: usize, rows: &[usize]) {
        let moved = rows.iter().enumerate().position(|(kept, row)| kept != *row).unwrap_or(rows.len());
        self.tail.retain(first, rows);
        if let Some(queries) = self.queries.take() {
            let [n_slots, n_heads, head_dim] = queries.dims();
            let from: Vec<usize> =
                rows[moved..].iter().map(|row| first + row).filter(|at| *at < n_slots).collect();
            let to = first + moved..first + moved + from.len();
            self.queries = Some(match from.is_empty() {
                true => queries,
                false => {
                    let rows = select(queries.clone(), &from);
                    queries.slice_assign([to, 0..n_heads, 0..head_dim], rows)
                }
            });
        }
        self.forget(first + moved);
    }
}
