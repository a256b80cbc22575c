//! The course of a job: embeddings, blocks, head, file.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use breakers_quant::quantizer::{Encoding, QuantizedMatrix, Quantizer, WeightMatrix};
use breakers_quant::quantizers::{GptqFactor, RoundToNearest};
use breakers_quant::statistics::{InputObserver, InputSite, SiteStatistics, Statistics, StatisticsConfig};
use breakers_quant::{Format, gguf};

use super::fold::HiddenRotation;
use super::parts::Parts;
use super::tables;
use super::{Doing, Method, Plan, Progress, QuantizeOptions, QuantizeReport, TensorReport, parts_folder};
use crate::Error;
use crate::walk::BlockWalk;

/// Rows of inputs that errors are reported on.
pub(super) const REPORT_ROWS: usize = 256;
/// The largest square of a row of inputs in the statistics, as a multiple of its window's median.
pub(super) const ROW_LIMIT: f32 = 4.0;

pub(super) const EMBEDDINGS: &str = "token_embd.weight";
pub(super) const HEAD: &str = "output.weight";
pub(super) const LAST_NORM: &str = "output_norm.weight";

pub(super) fn run(
    source: &Path,
    out: &Path,
    plan: &Plan,
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<QuantizeReport, Error> {
    let start = Instant::now();
    let file = gguf::File::open(source)?;
    let windows = options.windows()?;
    let n_tokens = windows.len() * options.window;
    let walk = BlockWalk::new(&file, windows)?;
    if options.rotation.is_some() && walk.has_post_norms() {
        let reason = "its norms stand behind the matrices that add to the hidden states".to_owned();
        return Err(Error::Unfoldable { reason });
    }
    let rotation = options.rotation.map(|seed| HiddenRotation::new(walk.width(), seed)).transpose()?;
    let parts = Parts::open(parts_folder(out), &fingerprint(&file, plan, options))?;
    let mut report = QuantizeReport { n_tokens, ..QuantizeReport::default() };
    let tied = options.tie && tables::can_tie(&file, options, &mut report.notes)?;
    let steps = file.tensors().filter(|view| view.shape().len() == 2).count() + 2 * walk.n_blocks();
    let mut job =
        Job { file: &file, plan, options, rotation, tied, parts, walk, report, done: 0, steps, progress };
    job.embeddings()?;
    for block in 0..job.walk.n_blocks() {
        job.block(block)?;
    }
    job.head()?;
    job.write(out)?;
    let Job { mut report, parts, .. } = job;
    parts.remove()?;
    let order: BTreeMap<&str, usize> = file.tensors().enumerate().map(|(i, view)| (view.name(), i)).collect();
    report.tensors.sort_by_key(|tensor| order.get(&*tensor.name).copied());
    report.bytes = std::fs::metadata(out).map_err(|source| Error::Io { path: out.to_owned(), source })?.len();
    report.total = start.elapsed();
    Ok(report)
}

/// What a job's finished tensors depend on.
fn fingerprint(file: &gguf::File, plan: &Plan, options: &QuantizeOptions) -> String {
    // FNV-1a over the weights' beginnings and ends, and the tokens; the rest is spelled out.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut eat = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    for view in file.tensors() {
        eat(view.name().as_bytes());
        let (bytes, n) = (view.bytes(), view.bytes().len().min(1 << 16));
        eat(&bytes[..n]);
        eat(&bytes[bytes.len() - n..]);
    }
    options.tokens.iter().for_each(|token| eat(&token.to_le_bytes()));
    let QuantizeOptions { method, rotation, tie, window, .. } = options;
    let formats: Vec<String> = plan.iter().map(|(name, format)| format!("{name}={format}")).collect();
    let n_bytes = file.len_bytes();
    format!("2 {hash:016x} {n_bytes} {method:?} {rotation:?} {tie} {window} {}", formats.join(","))
}

pub(super) struct Job<'a> {
    pub(super) file: &'a gguf::File,
    pub(super) plan: &'a Plan,
    pub(super) options: &'a QuantizeOptions,
    pub(super) rotation: Option<HiddenRotation>,
    /// The head's table is that of the embeddings too.
    pub(super) tied: bool,
    pub(super) parts: Parts,
    pub(super) walk: BlockWalk,
    pub(super) report: QuantizeReport,
    done: usize,
    steps: usize,
    progress: &'a mut dyn FnMut(Progress),
}

/// A matrix on its way.
pub(super) struct Matrix {
    pub(super) name: String,
    pub(super) values: Vec<f32>,
    pub(super) n_rows: usize,
    pub(super) n_cols: usize,
}

/// How the matrices of one place are quantized.
pub(super) enum Ready {
    Plain,
    Weighted(Statistics),
    Feedback(Box<GptqFactor>, Statistics),
}

impl Job<'_> {
    fn tell(&mut self, doing: Doing) {
        (self.progress)(Progress { done: self.done, steps: self.steps, doing });
    }

    pub(super) fn step(&mut self) {
        self.done += 1;
        self.tell(Doing::Quantizing);
    }

    /// The format of a matrix in the output.
    pub(super) fn target(&self, view: &gguf::TensorView<'_>) -> Format {
        self.plan.format(view.name()).unwrap_or(view.format())
    }

    /// Whether a matrix of a block is taken over as it is.
    fn is_kept(&self, view: &gguf::TensorView<'_>) -> bool {
        let changed = self.rotation.is_some() || matches!(self.options.method, Method::Awq(_));
        !changed && self.target(view) == view.format()
    }

    fn block(&mut self, block: usize) -> Result<(), Error> {
        let prefix = format!("blk.{block}.");
        let file = self.file;
        let views: Vec<_> = file.tensors().filter(|view| view.name().starts_with(&prefix)).collect();
        let n_matrices = views.iter().filter(|view| view.shape().len() == 2).count();
        let there = views.iter().all(|view| {
            n_bytes(view, self.stored_format(view)).is_ok_and(|n| self.parts.has(view.name(), n))
        });
        if there {
            self.report.resumed += views.len();
            self.done += n_matrices + 1;
        } else {
            let statistics = self.collect(block, &views)?;
            self.done += 1;
            self.quantize_block(&prefix, &views, statistics)?;
        }
        self.advance(block, &views)?;
        self.done += 1;
        views.iter().for_each(|view| view.advise_done());
        Ok(())
    }

    /// The format that a tensor has in the output; vectors keep theirs, and are floats.
    pub(super) fn stored_format(&self, view: &gguf::TensorView<'_>) -> Format {
        if view.shape().len() == 2 { self.target(view) } else { Format::F32 }
    }

    /// Feeds the text to the block with its original weights.
    fn collect(
        &mut self,
        block: usize,
        views: &[gguf::TensorView<'_>],
    ) -> Result<BTreeMap<InputSite, Statistics>, Error> {
        if !self.options.method.needs_text() {
            return Ok(BTreeMap::new());
        }
        let sites: Vec<InputSite> = InputSite::ALL
            .into_iter()
            .filter(|site| {
                let of_site = |view: &&gguf::TensorView<'_>| {
                    site.matrices().iter().any(|name| view.name().ends_with(name))
                };
                views.iter().filter(of_site).any(|view| !self.is_kept(view))
            })
            .collect();
        let row_limit = Some(ROW_LIMIT);
        let config = match self.options.method {
            Method::Gptq(_) => {
                StatisticsConfig { hessian: true, sample_rows: REPORT_ROWS, row_limit, ..Default::default() }
            }
            Method::Awq(config) => StatisticsConfig {
                sample_rows: config.sample_rows.max(REPORT_ROWS),
                row_limit,
                ..Default::default()
            },
            _ => StatisticsConfig { sample_rows: REPORT_ROWS, row_limit, ..Default::default() },
        };
        let mut observer = Timed { inner: SiteStatistics::of(&sites, config), time: Duration::default() };
        if !sites.is_empty() {
            self.read(block, None, Some(&mut observer), false)?;
        }
        self.report.observing += observer.time;
        Ok(sites.into_iter().filter_map(|site| Some((site, observer.inner.take(site)?))).collect())
    }

    fn read(
        &mut self,
        block: usize,
        changed: Option<&gguf::File>,
        observer: Option<&mut dyn InputObserver>,
        advance: bool,
    ) -> Result<(), Error> {
        let start = Instant::now();
        let (done, steps) = (self.done, self.steps);
        let progress = &mut *self.progress;
        let mut tell = |windows| progress(Progress { done, steps, doing: Doing::Reading { block, windows } });
        // The original weights are those of hidden states that are not rotated, the new ones of rotated ones.
        let rotation = changed.and(self.rotation.as_ref()).map(|r| &r.rotation);
        self.walk.run(changed.unwrap_or(self.file), block, rotation, observer, advance, &mut tell)?;
        self.report.reading += start.elapsed();
        Ok(())
    }

    /// Leads the text through the block's new weights.
    fn advance(&mut self, block: usize, views: &[gguf::TensorView<'_>]) -> Result<(), Error> {
        if self.walk.n_windows() == 0 {
            return Ok(());
        }
        let mut writer = gguf::Writer::new();
        for view in views {
            writer.declare(view.name(), self.stored_format(view), view.shape())?;
        }
        let mut sink = writer.write_to(Vec::new())?;
        for view in views {
            sink.write(view.name(), &self.part(view, self.stored_format(view))?)?;
        }
        let changed = gguf::File::from_bytes(sink.finish()?)?;
        self.read(block, Some(&changed), None, true)
    }

    fn part(&self, view: &gguf::TensorView<'_>, format: Format) -> Result<Vec<u8>, Error> {
        let found = self.parts.read(view.name(), n_bytes(view, format)?)?;
        found.ok_or_else(|| Error::MissingTensor { name: view.name().to_owned() })
    }

    fn quantize_block(
        &mut self,
        prefix: &str,
        views: &[gguf::TensorView<'_>],
        mut statistics: BTreeMap<InputSite, Statistics>,
    ) -> Result<(), Error> {
        let start = Instant::now();
        let name = |suffix: &str| format!("{prefix}{suffix}");
        let mut vectors: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        let mut matrices: BTreeMap<String, Matrix> = BTreeMap::new();
        for view in views {
            if view.shape().len() != 2 {
                vectors.insert(view.name().to_owned(), view.to_f32());
            } else if !self.is_kept(view) {
                let (n_rows, n_cols) = (view.n_rows(), view.n_cols());
                let matrix = Matrix { name: view.name().to_owned(), values: view.to_f32(), n_rows, n_cols };
                matrices.insert(view.name().to_owned(), matrix);
            }
        }
        if let Some(rotation) = &self.rotation {
            for (site, norm) in
                [(InputSite::Attention, "attn_norm.weight"), (InputSite::FeedForward, "ffn_norm.weight")]
            {
                let weights = require(&mut vectors, &name(norm))?;
                for suffix in site.matrices() {
                    rotation.reader(&mut require(&mut matrices, &name(suffix))?.values, weights)?;
                }
                if let Some(found) = statistics.get_mut(&site) {
                    *found = rotation.statistics(found, weights)?;
                }
                weights.fill(1.0);
            }
            for suffix in ["attn_output.weight", "ffn_down.weight"] {
                let matrix = require(&mut matrices, &name(suffix))?;
                rotation.writer(&mut matrix.values, matrix.n_cols)?;
            }
        }
        if let Method::Awq(config) = self.options.method {
            self.fold_factors(prefix, config, &mut matrices, &mut vectors, &mut statistics)?;
        }
        for site in InputSite::ALL {
            let names: Vec<String> = site.matrices().iter().map(|suffix| name(suffix)).collect();
            if !names.iter().any(|name| matrices.contains_key(name)) {
                continue;
            }
            let ready = self.ready(statistics.remove(&site))?;
            for name in names {
                if let Some(matrix) = matrices.remove(&name) {
                    self.matrix(matrix, &ready)?;
                    self.step();
                }
            }
        }
        // What no place reads, or what is taken over.
        for view in views {
            if view.shape().len() != 2 {
                let values = vectors.remove(view.name()).unwrap_or_else(|| view.to_f32());
                let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                self.parts.write(view.name(), &bytes)?;
            } else if self.is_kept(view) {
                self.parts.write(view.name(), view.bytes())?;
                self.report.tensors.push(kept(view));
                self.step();
            } else if let Some(matrix) = matrices.remove(view.name()) {
                self.matrix(matrix, &Ready::Plain)?;
                self.step();
            }
        }
        self.report.quantizing += start.elapsed();
        Ok(())
    }

    pub(super) fn ready(&self, statistics: Option<Statistics>) -> Result<Ready, Error> {
        Ok(match (self.options.method, statistics) {
            (Method::Gptq(config), Some(mut statistics)) => {
                let factor = Box::new(GptqFactor::new(&statistics, config)?);
                statistics.drop_hessian();
                Ready::Feedback(factor, statistics)
            }
            (Method::RoundToNearest { weighted: true } | Method::Awq(_), Some(statistics)) => {
                Ready::Weighted(statistics)
            }
            _ => Ready::Plain,
        })
    }

    /// Quantizes a matrix of a block and keeps its bytes.
    fn matrix(&mut self, matrix: Matrix, ready: &Ready) -> Result<(), Error> {
        let format = self.plan.format(&matrix.name).unwrap_or(Format::F32);
        let quantized = choose(&matrix.name, &matrix.values, matrix.n_rows, matrix.n_cols, format, ready)?;
        self.parts.write(&matrix.name, quantized.blocks().unwrap_or_default())?;
        let from = self.file.require(&matrix.name)?.format();
        let found = quantized.report();
        self.report.tensors.push(TensorReport {
            name: matrix.name,
            from,
            to: format,
            kept: false,
            weight_error: found.weight_error,
            output_error: found.output_error,
            damping: found.damping,
        });
        Ok(())
    }

    /// Puts the file together.
    fn write(&mut self, out: &Path) -> Result<(), Error> {
        self.tell(Doing::Writing);
        let mut metadata = self.file.metadata().clone();
        // Its number names one of llama.cpp's own mixtures.
        metadata.remove("general.file_type");
        let mut writer = gguf::Writer::with_metadata(metadata);
        writer.insert("breakers.quantize.method", self.options.method.name())?;
        if let Some(seed) = self.options.rotation {
            writer.insert("breakers.quantize.rotation_seed", seed)?;
        }
        let file = self.file;
        let format = |view: &gguf::TensorView<'_>| match view.name() {
            "rope_freqs.weight" => view.format(),
            EMBEDDINGS if self.tied => self.plan.format(HEAD).unwrap_or(view.format()),
            _ => self.stored_format(view),
        };
        let is_written = |view: &gguf::TensorView<'_>| !(self.tied && view.name() == HEAD);
        let untied = self.rotation.is_some() && file.tensor(HEAD).is_none();
        for view in file.tensors().filter(is_written) {
            writer.declare(view.name(), format(&view), view.shape())?;
        }
        if untied {
            let view = file.require(EMBEDDINGS)?;
            writer.declare(HEAD, format(&view), view.shape())?;
        }
        let mut sink = writer.create(out)?;
        for view in file.tensors().filter(is_written) {
            let found = self.parts.read(view.name(), n_bytes(&view, format(&view))?)?;
            // What no step has touched is taken over.
            match found {
                Some(bytes) => sink.write(view.name(), &bytes)?,
                None if format(&view) == view.format() => sink.write(view.name(), view.bytes())?,
                None => {
                    let bytes: Vec<u8> = view.to_f32().iter().flat_map(|x| x.to_le_bytes()).collect();
                    sink.write(view.name(), &bytes)?;
                }
            }
        }
        if untied {
            let view = file.require(EMBEDDINGS)?;
            let bytes = self.parts.read(HEAD, n_bytes(&view, format(&view))?)?;
            sink.write(HEAD, &bytes.unwrap_or_default())?;
        }
        Ok(sink.finish()?)
    }
}

/// Chooses the weights of a matrix.
pub(super) fn choose(
    name: &str,
    values: &[f32],
    n_rows: usize,
    n_cols: usize,
    format: Format,
    ready: &Ready,
) -> Result<QuantizedMatrix, Error> {
    let in_tensor = |source| Error::Tensor { name: name.to_owned(), source };
    let weights = WeightMatrix::new(values, n_rows, n_cols).map_err(in_tensor)?;
    let encoding = Encoding::Gguf(format);
    let nearest = RoundToNearest::new(encoding);
    match ready {
        Ready::Plain => nearest.quantize(&weights, None),
        Ready::Weighted(statistics) => nearest.quantize(&weights, Some(statistics)),
        Ready::Feedback(factor, statistics) => factor.quantize(&weights, encoding, Some(statistics)),
    }
    .map_err(in_tensor)
}

pub(super) fn kept(view: &gguf::TensorView<'_>) -> TensorReport {
    TensorReport {
        name: view.name().to_owned(),
        from: view.format(),
        to: view.format(),
        kept: true,
        weight_error: 0.0,
        output_error: None,
        damping: None,
    }
}

pub(super) fn n_bytes(view: &gguf::TensorView<'_>, format: Format) -> Result<usize, Error> {
    Ok(format.row_bytes(view.n_cols())?.saturating_mul(view.n_rows()))
}

pub(super) fn require<'a, T>(found: &'a mut BTreeMap<String, T>, name: &str) -> Result<&'a mut T, Error> {
    found.get_mut(name).ok_or_else(|| Error::MissingTensor { name: name.to_owned() })
}

/// An observer whose time is taken.
struct Timed {
    inner: SiteStatistics,
    time: Duration,
}

impl InputObserver for Timed {
    fn observe(&mut self, site: InputSite, rows: &[f32], n_cols: usize) -> breakers_quant::Result<()> {
        let start = Instant::now();
        let seen = self.inner.observe(site, rows, n_cols);
        self.time += start.elapsed();
        seen
    }
}
