//! A model with its sequences: the [`LanguageModel`] that higher layers use.

use std::collections::BTreeMap;
use std::sync::Arc;

use breakers_backend::device;
use breakers_core::{
    Error as CoreError, LanguageModel, LayerTap, ModelInfo, Output, Result as CoreResult, RowOutput,
    SequenceId, Snapshot, SnapshotBytes, Step, StepError, TokenLogprob, TokenMask, Want, argmax,
    argmax_within, top_k,
};
use breakers_kv_cache::{CacheShape, KvCache, PageMeter, PlainCache, Segment};
use breakers_linear::OutputTiles;
use burn::tensor::Tensor;

use crate::ops::best::{MAX_K, MAX_VOCAB, best};
use crate::stages::{PassPart, Stage, Stages};
use crate::{Error, Model};

/// Rows whose logits are computed at a time. This bounds the memory for a large vocabulary.
const HEAD_ROWS: usize = 32;

/// A head computes single tiles if these are less than this share of all: one part in so many.
const SPARSE_PARTS: usize = 2;

/// Makes the cache of a new sequence.
pub type CacheFactory = dyn Fn(&CacheShape) -> Result<Box<dyn KvCache>, breakers_kv_cache::Error> + Send;

/// Sequences over one set of weights.
///
/// Several runners may share a [`Model`]; each has its own sequences. Logits of a row have the same bits
/// whatever else is in the call, however its prefix was fed, and for any number of threads.
///
/// # Cost
/// A step of `n` rows reads the weights once for every
/// [`LoadOptions::rows_per_pass`](crate::LoadOptions::rows_per_pass) rows. The head is computed only for rows
/// that have an output. On the CPU it is computed only for tokens that the rows' masks ([`Step::masks`])
/// allow, in tiles of 16, if all rows that are computed together have masks and these leave less than half of
/// the tiles.
pub struct Runner {
    model: Model,
    sequences: BTreeMap<SequenceId, Box<dyn KvCache>>,
    next: u64,
    cache: Box<CacheFactory>,
    /// The layers that are in other processes.
    stages: Stages,
}

/// Makes the plain caches that a model's options ask for.
pub(crate) fn plain_cache(model: &Model) -> Box<CacheFactory> {
    let (element, device) = (model.options().cache_element, model.device().clone());
    Box::new(move |shape: &CacheShape| -> Result<Box<dyn KvCache>, breakers_kv_cache::Error> {
        Ok(Box::new(PlainCache::new(shape.clone(), element, &device)?))
    })
}

/// Bytes of the pages that caches hold. A page that several of them share is counted once.
pub(crate) fn page_bytes<'a>(caches: impl Iterator<Item = &'a dyn KvCache>) -> usize {
    let mut meters: Vec<&PageMeter> = Vec::new();
    let mut unmetered = 0;
    for cache in caches {
        match cache.page_meter() {
            Some(meter) if meters.iter().any(|known| known.is_same(meter)) => {}
            Some(meter) => meters.push(meter),
            None => unmetered += cache.bytes(),
        }
    }
    unmetered + meters.into_iter().map(PageMeter::bytes).sum::<usize>()
}

/// A range of one step's rows that is computed in one pass.
struct Part {
    step: usize,
    rows: std::ops::Range<usize>,
}

impl Runner {
    pub(crate) fn new(model: Model) -> Self {
        let cache = plain_cache(&model);
        Self { model, sequences: BTreeMap::new(), next: 0, cache, stages: Stages::default() }
    }

    /// A runner whose sequences use another cache, such as a quantized one.
    ///
    /// # Example
    /// ```no_run
    /// use breakers_kv_cache::CacheSpec;
    /// use breakers_model::{LoadOptions, Model};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let model = Model::load("model.gguf", &LoadOptions::default())?;
    /// let device = model.device().clone();
    /// let spec: CacheSpec = "water-4".parse()?;
    /// let runner = model.runner().with_cache(move |shape| spec.make(shape, &device));
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_cache(
        mut self,
        cache: impl Fn(&CacheShape) -> Result<Box<dyn KvCache>, breakers_kv_cache::Error> + Send + 'static,
    ) -> Self {
        self.cache = Box::new(cache);
        self
    }

    /// A runner whose other layers are in other processes. `cache` is the name of its sequences' cache, which
    /// has to be theirs too. It has no sequences yet.
    ///
    /// Hidden states after layers that are not here cannot be had, nor snapshots of sequences.
    ///
    /// # Errors
    /// [`Error::Stage`] and [`Error::Layers`] if the stages do not have the model's other layers, each once,
    /// or run another model or other settings.
    pub fn with_stages(mut self, stages: Vec<Stage>, cache: &str) -> Result<Self, Error> {
        self.stages = Stages::new(stages, &self.model, cache)?;
        self.sequences.clear();
        Ok(self)
    }

    /// The model underneath.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Bytes of the pages that the sequences hold. A page that several of them share is counted once.
    pub fn page_bytes(&self) -> usize {
        page_bytes(self.sequences.values().map(|cache| &**cache))
    }

    /// Bytes that the sequences' caches hold. Shared pages count for each sequence.
    pub fn cache_bytes(&self) -> usize {
        self.sequences.values().map(|c| c.bytes()).sum()
    }

    fn cache(&self, sequence: SequenceId) -> CoreResult<&dyn KvCache> {
        self.sequences.get(&sequence).map(|c| &**c).ok_or(CoreError::UnknownSequence { sequence })
    }

    fn cache_mut(&mut self, sequence: SequenceId) -> CoreResult<&mut Box<dyn KvCache>> {
        self.sequences.get_mut(&sequence).ok_or(CoreError::UnknownSequence { sequence })
    }

    fn snapshot_error(&self, error: breakers_kv_cache::Error) -> CoreError {
        match error {
            breakers_kv_cache::Error::NoSnapshot => self.no_snapshots(),
            error => Error::from(error).into(),
        }
    }

    fn validate(&self, steps: &[Step]) -> CoreResult<()> {
        let at_step = |i: usize| move |error: CoreError| error.at_step(i, steps[i].sequence);
        (0..steps.len()).try_for_each(|i| self.validate_step(steps, i).map_err(at_step(i)))
    }

    fn validate_step(&self, steps: &[Step], i: usize) -> CoreResult<()> {
        let (info, step) = (self.model.info(), &steps[i]);
        step.validate(info.vocab_size)?;
        let len = self.cache(step.sequence)?.len();
        if steps[..i].iter().any(|s| s.sequence == step.sequence) {
            return Err(CoreError::DuplicateSequence { sequence: step.sequence });
        }
        let needed = len + step.tokens.len();
        if needed > info.max_context {
            return Err(StepError::ContextFull { needed, limit: info.max_context }.into());
        }
        for tap in &step.taps {
            if let LayerTap::AfterBlock(i) = *tap
                && i >= self.model.layers().end
            {
                let (requested, available) = (i, self.model.layers().end);
                let what = "block of a hidden-state tap";
                return Err(StepError::OutOfRange { what, requested, available }.into());
            }
        }
        Ok(())
    }

    /// Divides the rows into passes. A tree stays whole, since its rows refer to each other.
    fn passes(&self, steps: &[Step]) -> Vec<Vec<Part>> {
        let most = self.model.options().rows_per_pass.max(1);
        let mut passes = vec![Vec::new()];
        let mut room = most;
        for (at, step) in steps.iter().enumerate() {
            let n = step.tokens.len();
            let mut from = 0;
            while from < n {
                let take = if step.parents.is_some() { n } else { (n - from).min(room.max(1)) };
                if take > room && room < most {
                    passes.push(Vec::new());
                    room = most;
                    continue;
                }
                passes
                    .last_mut()
                    .expect("one pass at least")
                    .push(Part { step: at, rows: from..from + take });
                from += take;
                room = room.saturating_sub(take);
            }
        }
        passes
    }

    fn pass(&mut self, steps: &mut [Step], parts: &[Part]) -> Result<(), Error> {
        // The caches are taken out of the map during the pass, so that several can be borrowed at once.
        let mut caches: Vec<Box<dyn KvCache>> =
            parts.iter().filter_map(|p| self.sequences.remove(&steps[p.step].sequence)).collect();
        let result = run(&self.model, steps, parts, &mut caches, &mut self.stages);
        for (part, mut cache) in parts.iter().zip(caches) {
            if result.is_err() {
                cache.abort();
            }
            self.sequences.insert(steps[part.step].sequence, cache);
        }
        result
    }
}

fn run(
    model: &Model,
    steps: &mut [Step],
    parts: &[Part],
    caches: &mut [Box<dyn KvCache>],
    stages: &mut Stages,
) -> Result<(), Error> {
    let decoder = model.decoder();
    let (mut tokens, mut positions) = (Vec::new(), Vec::new());
    // Rows whose final hidden state is needed, as (row of the pass, step, row of the step).
    let mut kept: Vec<(usize, usize, usize)> = Vec::new();
    let mut blocks: Vec<usize> = Vec::new();
    for (part, cache) in parts.iter().zip(caches.iter_mut()) {
        let step = &steps[part.step];
        let parents = step.parents.as_deref();
        let at_step = |error: breakers_kv_cache::Error| Error::from(error).at_step(part.step);
        positions.extend(cache.begin(part.rows.len(), parents).map_err(at_step)?);
        let all = step.taps.contains(&LayerTap::Final);
        for row in part.rows.clone() {
            if all || step.want(row) != Want::Nothing {
                kept.push((tokens.len(), part.step, row));
            }
            tokens.push(step.tokens[row]);
        }
        for tap in &step.taps {
            if let LayerTap::AfterBlock(i) = *tap
                && !blocks.contains(&i)
            {
                blocks.push(i);
            }
        }
    }
    let mut segments: Vec<Segment<'_>> = caches
        .iter_mut()
        .zip(parts)
        .map(|(cache, part)| Segment { cache: &mut **cache, n_rows: part.rows.len() })
        .collect();
    let kept_rows: Vec<usize> = kept.iter().map(|k| k.0).collect();
    let of_stages = |part: &Part| {
        let Step { sequence, parents, .. } = &steps[part.step];
        PassPart { sequence: sequence.0, n_rows: part.rows.len(), parents: parents.clone() }
    };
    let beyond: Vec<_> = parts.iter().filter(|_| !stages.is_empty()).map(of_stages).collect();
    let mut beyond = |x: Tensor<2>| stages.pass(&beyond, &kept_rows, x);
    let hidden = decoder.forward(&tokens, &positions, &mut segments, &kept_rows, &blocks, &mut beyond);
    // The decoder counts segments.
    let hidden = hidden.map_err(|error| match error {
        Error::AtStep { step: segment, source } => source.at_step(parts[segment].step),
        error => error,
    })?;
    let last = match &hidden.last {
        Some(last) => answer(model, steps, &kept, last.clone())?,
        None => Vec::new(),
    };
    let tapped = hidden.taps.into_iter().map(to_vec).collect::<Result<Vec<_>, _>>()?;
    let width = decoder.spec.width;
    let mut row_of_pass = 0;
    for part in parts {
        let step = &mut steps[part.step];
        let taps = step.taps.clone();
        for row in part.rows.clone() {
            step.outputs[row].hidden = taps
                .iter()
                .map(|tap| match tap {
                    LayerTap::AfterBlock(i) => {
                        let at = blocks.iter().position(|b| b == i).expect("every tapped block was listed");
                        tapped[at][row_of_pass * width..(row_of_pass + 1) * width].to_vec()
                    }
                    _ => {
                        let at =
                            kept_rows.binary_search(&row_of_pass).expect("all rows of the step were kept");
                        last[at * width..(at + 1) * width].to_vec()
                    }
                })
                .collect();
            row_of_pass += 1;
        }
    }
    caches.iter_mut().try_for_each(|c| c.end())?;
    Ok(())
}

/// Fills the outputs of the kept rows; returns their hidden states if a step taps them.
fn answer(
    model: &Model,
    steps: &mut [Step],
    kept: &[(usize, usize, usize)],
    hidden: Tensor<2>,
) -> Result<Vec<f32>, Error> {
    let tapped = kept.iter().any(|&(_, step, _)| steps[step].taps.contains(&LayerTap::Final));
    let wanted: Vec<(usize, &(usize, usize, usize))> =
        kept.iter().enumerate().filter(|(_, k)| steps[k.1].want(k.2) != Want::Nothing).collect();
    let mut answers = Vec::with_capacity(wanted.len());
    let mut from = 0;
    while from < wanted.len() {
        // Runs of neighboring rows, so that a slice is enough.
        let mut to = from + 1;
        while to < wanted.len() && to - from < HEAD_ROWS && wanted[to].0 == wanted[to - 1].0 + 1 {
            to += 1;
        }
        let rows = hidden.clone().narrow(0, wanted[from].0, to - from);
        let wants: Vec<Asked> = wanted[from..to].iter().map(|(_, k)| Asked::of(&steps[k.1], k.2)).collect();
        let failed = |(row, error): (Option<usize>, Error)| match row {
            Some(row) => error.at_step(wanted[from + row].1.1),
            None => error,
        };
        answers.extend(outputs(model, rows, &wants).map_err(failed)?);
        from = to;
    }
    let places: Vec<(usize, usize)> = wanted.iter().map(|(_, k)| (k.1, k.2)).collect();
    for ((step, row), output) in places.into_iter().zip(answers) {
        steps[step].outputs[row].output = output;
    }
    if tapped { to_vec(hidden) } else { Ok(Vec::new()) }
}

/// What is wanted of a row.
#[derive(Clone)]
struct Asked {
    want: Want,
    /// What the next token is chosen from, where that matters to the answer.
    mask: Option<Arc<TokenMask>>,
}

impl Asked {
    fn of(step: &Step, row: usize) -> Self {
        let want = step.want(row);
        // Log-probabilities are of the whole vocabulary.
        let is_masked = matches!(want, Want::ArgMax | Want::Logits);
        Self { want, mask: step.mask(row).filter(|_| is_masked).cloned() }
    }
}

/// The tiles of the head that rows need, if these are few.
fn sparse_tiles(asked: &[Asked], vocab_size: usize) -> Option<OutputTiles> {
    let mut masks = asked.iter().map(|asked| asked.mask.as_deref());
    let mut union = masks.next()??.clone();
    for mask in masks {
        union |= mask?;
    }
    // Masks may be of different lengths; the union reaches as far as the first.
    let is_whole = asked.iter().flat_map(|asked| &asked.mask).all(|mask| mask.n_tokens() <= union.n_tokens());
    let tiles = OutputTiles::from_words(union.words().iter().copied());
    let n_all = vocab_size.div_ceil(OutputTiles::WIDTH);
    (is_whole && tiles.n_tiles() * SPARSE_PARTS < n_all).then_some(tiles)
}

/// The output of each row `[n, width]`. An error names the row that caused it, if there is one.
fn outputs(model: &Model, hidden: Tensor<2>, asked: &[Asked]) -> Result<Vec<Output>, (Option<usize>, Error)> {
    let (vocab_size, is_cpu) = (model.info().vocab_size, device::is_cpu(model.device()));
    let tiles = if is_cpu { sparse_tiles(asked, vocab_size) } else { None };
    let logits = model.decoder().logits(hidden, tiles.as_ref()).map_err(|error| (None, error))?;
    let _span = tracing::trace_span!("choice").entered();
    if !is_cpu && vocab_size <= MAX_VOCAB {
        return outputs_on_device(logits, asked);
    }
    let logits = to_vec(logits).map_err(|error| (None, error))?;
    let rows = logits.chunks_exact(vocab_size).zip(asked).enumerate();
    rows.map(|(i, (row, asked))| output(row, asked).map_err(|error| (Some(i), error))).collect()
}

/// The output for a row of logits on the host.
fn output(logits: &[f32], asked: &Asked) -> Result<Output, Error> {
    Ok(match (asked.want, &asked.mask) {
        (Want::ArgMax, None) => Output::ArgMax(argmax(logits)?),
        (Want::ArgMax, Some(mask)) => Output::ArgMax(argmax_within(logits, mask)?),
        (Want::TopK(k), _) => Output::TopK(top_k(logits, k)?),
        (Want::Logits, None) => {
            // The same check as for the other answers.
            argmax(logits)?;
            Output::Logits(logits.to_vec())
        }
        (Want::Logits, Some(mask)) => {
            argmax_within(logits, mask)?;
            let mut logits = logits.to_vec();
            mask.apply(&mut logits);
            Output::Logits(logits)
        }
        _ => Output::Nothing,
    })
}

/// What is wanted of rows of logits, of which only those leave the device that are wanted whole, or by a
/// mask.
fn outputs_on_device(logits: Tensor<2>, asked: &[Asked]) -> Result<Vec<Output>, (Option<usize>, Error)> {
    let n_best = |asked: &Asked| match (asked.want, &asked.mask) {
        (Want::ArgMax, None) => Some(1),
        (Want::TopK(k), _) if k <= MAX_K => Some(k),
        _ => None,
    };
    let most = asked.iter().filter_map(n_best).max().unwrap_or(0).min(logits.dims()[1]);
    let all = |error| (None, error);
    let found = if most > 0 { to_vec(best(logits.clone(), most)).map_err(all)? } else { Vec::new() };
    if asked.iter().all(|asked| asked.want == Want::Logits) {
        let vocab = logits.dims()[1];
        let rows = to_vec(logits).map_err(all)?;
        let each = rows.chunks_exact(vocab).zip(asked).enumerate();
        return each.map(|(i, (row, asked))| output(row, asked).map_err(|error| (Some(i), error))).collect();
    }
    let each = asked.iter().enumerate().map(|(row, asked)| {
        if let Some(k) = n_best(asked).filter(|k| (1..=most).contains(k)) {
            let (ids, logprobs) = found[row * 2 * most..(row + 1) * 2 * most].split_at(most);
            let (ids, logprobs) = (&ids[..k], &logprobs[..k]);
            // Otherwise the host finds out what is wrong with the logits.
            if ids[0] >= 0.0 && logprobs[0].is_finite() {
                let token = |(&id, &logprob): (&f32, &f32)| TokenLogprob { token: id as u32, logprob };
                return Ok(match asked.want {
                    Want::ArgMax => Output::ArgMax(ids[0] as u32),
                    _ => Output::TopK(ids.iter().zip(logprobs).map(token).collect()),
                });
            }
        }
        let logits = to_vec(logits.clone().narrow(0, row, 1)).map_err(all)?;
        output(&logits, asked).map_err(|error| (Some(row), error))
    });
    each.collect()
}

fn to_vec(tensor: Tensor<2>) -> Result<Vec<f32>, Error> {
    tensor.into_data().try_into_vec::<f32>().map_err(Error::tensor_data)
}

impl LanguageModel for Runner {
    fn info(&self) -> &ModelInfo {
        self.model.info()
    }

    fn open(&mut self) -> CoreResult<SequenceId> {
        let cache = (self.cache)(&self.model.decoder().cache_shape()).map_err(Error::from)?;
        let id = SequenceId(self.next);
        self.next += 1;
        self.stages.open(id)?;
        self.sequences.insert(id, cache);
        Ok(id)
    }

    fn fork(&mut self, sequence: SequenceId) -> CoreResult<SequenceId> {
        let copy = self.cache(sequence)?.fork().map_err(Error::from)?;
        let id = SequenceId(self.next);
        self.next += 1;
        self.stages.fork(sequence, id)?;
        self.sequences.insert(id, copy);
        Ok(id)
    }

    fn close(&mut self, sequence: SequenceId) {
        if self.sequences.remove(&sequence).is_some() {
            self.stages.close(sequence);
        }
    }

    fn len(&self, sequence: SequenceId) -> CoreResult<usize> {
        Ok(self.cache(sequence)?.len())
    }

    fn committed(&self, sequence: SequenceId) -> CoreResult<usize> {
        Ok(self.cache(sequence)?.committed())
    }

    fn forward(&mut self, steps: &mut [Step]) -> CoreResult<()> {
        if steps.is_empty() {
            return Ok(());
        }
        self.validate(steps)?;
        let before: Vec<(SequenceId, usize)> = steps
            .iter()
            .map(|s| Ok((s.sequence, self.cache(s.sequence)?.len())))
            .collect::<CoreResult<_>>()?;
        for step in steps.iter_mut() {
            step.outputs = vec![RowOutput::default(); step.tokens.len()];
        }
        for parts in self.passes(steps) {
            if let Err(error) = self.pass(steps, &parts) {
                for (sequence, len) in before {
                    self.cache_mut(sequence)?.truncate(len).map_err(Error::from)?;
                    // If a stage cannot be told, it is lost, and that is the error.
                    let _ = self.stages.truncate(sequence, len);
                }
                steps.iter_mut().for_each(|s| s.outputs.clear());
                return Err(match error {
                    Error::AtStep { step, source } => {
                        CoreError::from(*source).at_step(step, steps[step].sequence)
                    }
                    error => error.into(),
                });
            }
        }
        Ok(())
    }

    fn retain(&mut self, sequence: SequenceId, rows: &[usize]) -> CoreResult<()> {
        self.cache_mut(sequence)?.retain(rows).map_err(Error::from)?;
        Ok(self.stages.retain(sequence, rows)?)
    }

    fn commit(&mut self, sequence: SequenceId, n_tokens: usize) -> CoreResult<()> {
        self.cache_mut(sequence)?.commit(n_tokens).map_err(Error::from)?;
        Ok(self.stages.commit(sequence, n_tokens)?)
    }

    /// Not on GPUs, where the bits of a prompt depend on the chunks that it is fed in.
    fn is_shareable(&self, sequence: SequenceId) -> bool {
        device::is_cpu(self.model.device()) && self.cache(sequence).is_ok_and(|cache| cache.shareable())
    }

    fn held_bytes(&self) -> usize {
        self.page_bytes() + self.stages.held_bytes()
    }

    /// The cache's kind with all that may change a number in it: the shape, the instructions that computed
    /// it, and this crate's version.
    fn snapshot_kind(&self) -> Option<String> {
        // What the stages hold would be missing.
        if !self.stages.is_empty() {
            return None;
        }
        let cache = (self.cache)(&self.model.decoder().cache_shape()).ok()?;
        let (kind, shape) = (cache.snapshot_kind()?, cache.shape());
        let (isa, version) = (breakers_cpu::isa(), env!("CARGO_PKG_VERSION"));
        Some(format!("{kind}; {isa}; version {version}; {shape:?}"))
    }

    fn snapshot(&self, sequence: SequenceId) -> CoreResult<Box<dyn Snapshot>> {
        if !self.stages.is_empty() {
            return Err(self.no_snapshots());
        }
        let snapshot = self.cache(sequence)?.snapshot();
        snapshot.map_err(|error| self.snapshot_error(error))
    }

    fn restore(&mut self, bytes: SnapshotBytes, n_tokens: usize, len: usize) -> CoreResult<SequenceId> {
        if !self.stages.is_empty() {
            return Err(self.no_snapshots());
        }
        let sequence = self.open()?;
        let restored = self.cache_mut(sequence)?.restore(&bytes, n_tokens, len);
        restored.map(|()| sequence).map_err(|error| {
            self.close(sequence);
            self.snapshot_error(error)
        })
    }

    fn truncate(&mut self, sequence: SequenceId, len: usize) -> CoreResult<()> {
        self.cache_mut(sequence)?.truncate(len).map_err(Error::from)?;
        Ok(self.stages.truncate(sequence, len)?)
    }
}
