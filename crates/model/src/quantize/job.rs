//! The course of a job: embeddings, blocks, head, file.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use breakers_cpu::hadamard::Rotation;
use breakers_gguf as gguf;
use breakers_gguf::{Encoding, Format, GroupFormat, QuantizedMatrix, matrix_file};
use breakers_quant::quantizer::{Quantized, Quantizer, WeightMatrix};
use breakers_quant::quantizers::{GptqFactor, Hqq, HqqConfig, RoundToNearest};
use breakers_quant::statistics::{InputObserver, InputSite, SiteStatistics, Statistics, StatisticsConfig};

use super::fold::HiddenRotation;
use super::parts::{Parts, Shape};
use super::tables;
use super::{
    Doing, Method, Plan, Progress, QuantizeOptions, QuantizeReport, Rotate, TensorReport, parts_folder,
};
use crate::Error;
use crate::walk::BlockWalk;

/// Rows of inputs that errors are reported on.
pub(super) const REPORT_ROWS: usize = 256;
/// The largest square of a row of inputs in the statistics, as a multiple of its window's median.
pub(super) const ROW_LIMIT: f32 = 4.0;

/// Biases that no change of weights is folded into.
const FIXED_BIASES: [&str; 4] = ["attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"];

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
    let as_store = matrix_file::is_named(out);
    suited(&file, plan, options.method, as_store)?;
    let windows = options.windows()?;
    let n_tokens = windows.len() * options.window;
    let walk = BlockWalk::new(&file, windows)?;
    // These stand in the basis, or behind the scale, that the weights beside them are given.
    let changes_basis =
        matches!(options.rotation, Some(Rotate::Folded { .. })) || matches!(options.method, Method::Awq(_));
    let fixed = file.tensors().find(|view| {
        let of_block = view.name().strip_prefix("blk.").and_then(|name| name.split_once('.'));
        of_block.is_some_and(|(_, part)| FIXED_BIASES.contains(&part))
    });
    if let Some(view) = fixed.filter(|_| changes_basis) {
        let reason =
            format!("{} would have to change with the weights, which is not implemented", view.name());
        return Err(Error::Unfoldable { reason });
    }
    let (rotation, online) = match options.rotation {
        None => (None, None),
        Some(Rotate::Folded { seed }) if !walk.has_post_norms() => {
            (Some(HiddenRotation::new(walk.width(), seed)?), None)
        }
        Some(Rotate::Folded { seed } | Rotate::Online { seed }) if as_store => (None, Some(seed)),
        Some(_) => {
            let reason = "layers would have to rotate their inputs, which GGUF cannot say; a name that ends in .safetensors can";
            return Err(Error::Unfoldable { reason: reason.to_owned() });
        }
    };
    let parts = Parts::open(parts_folder(out), &fingerprint(&file, plan, options))?;
    let mut report = QuantizeReport { n_tokens, notes: plan.notes(), ..QuantizeReport::default() };
    let tied = options.tie && tables::can_tie(&file, options, as_store, &mut report.notes)?;
    let steps = file.tensors().filter(|view| view.shape().len() == 2).count() + 2 * walk.n_blocks();
    let mut job = Job {
        file: &file,
        plan,
        options,
        rotation,
        online,
        tied,
        parts,
        walk,
        report,
        done: 0,
        steps,
        progress,
    };
    job.embeddings()?;
    for block in 0..job.walk.n_blocks() {
        job.block(block)?;
    }
    job.head()?;
    match as_store {
        true => job.write_store(out)?,
        false => job.write_gguf(out)?,
    }
    let Job { mut report, parts, .. } = job;
    parts.remove()?;
    let order: BTreeMap<&str, usize> = file.tensors().enumerate().map(|(i, view)| (view.name(), i)).collect();
    report.tensors.sort_by_key(|tensor| order.get(&*tensor.name).copied());
    report.bytes = std::fs::metadata(out).map_err(|source| Error::Io { path: out.to_owned(), source })?.len();
    report.total = start.elapsed();
    Ok(report)
}

/// Fails for formats that the method or the file cannot have, before any work is done.
fn suited(file: &gguf::File, plan: &Plan, method: Method, as_store: bool) -> Result<(), Error> {
    for view in file.tensors().filter(|view| view.shape().len() == 2) {
        let Some(encoding) = plan.encoding(view.name()) else { continue };
        let name = || view.name().to_owned();
        if !as_store && matches!(encoding, Encoding::Groups(_)) {
            return Err(Error::NotOfGguf { name: name(), encoding });
        }
        let has_offsets = matches!(encoding, Encoding::Groups(GroupFormat::Affine { .. }));
        if matches!(method, Method::Hqq(_)) && !has_offsets && encoding != view.format().into() {
            return Err(Error::Unsuited { name: name(), method: method.name(), encoding });
        }
        encoding.check(view.n_cols()).map_err(Error::in_tensor(view.name()))?;
    }
    Ok(())
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
    format!("3 {hash:016x} {n_bytes} {method:?} {rotation:?} {tie} {window} {}", formats.join(","))
}

pub(super) struct Job<'a> {
    pub(super) file: &'a gguf::File,
    pub(super) plan: &'a Plan,
    pub(super) options: &'a QuantizeOptions,
    pub(super) rotation: Option<HiddenRotation>,
    /// Seed of the rotation of each matrix's inputs.
    online: Option<u64>,
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
pub(super) struct Ready {
    way: Way,
    /// What their inputs, and the statistics of these, are rotated by.
    online: Option<(Rotation, u64)>,
}

enum Way {
    Plain,
    Weighted(Statistics),
    Feedback(Box<GptqFactor>, Statistics),
    Offsets(HqqConfig),
}

impl Ready {
    /// Without statistics.
    pub(super) const PLAIN: Self = Self { way: Way::Plain, online: None };
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
    pub(super) fn target(&self, view: &gguf::TensorView<'_>) -> Encoding {
        self.plan.encoding(view.name()).unwrap_or(view.format().into())
    }

    /// Whether a matrix of a block is taken over as it is.
    fn is_kept(&self, view: &gguf::TensorView<'_>) -> bool {
        let changed = self.options.rotation.is_some() || matches!(self.options.method, Method::Awq(_));
        !changed && self.target(view) == view.format().into()
    }

    fn block(&mut self, block: usize) -> Result<(), Error> {
        let prefix = format!("blk.{block}.");
        let file = self.file;
        let views: Vec<_> = file.tensors().filter(|view| view.name().starts_with(&prefix)).collect();
        let n_matrices = views.iter().filter(|view| view.shape().len() == 2).count();
        let mut there = true;
        for view in &views {
            there = there && self.parts.has(view.name(), self.stored(view))?;
        }
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

    /// The format and shape that a tensor has in the output; vectors are floats.
    fn stored(&self, view: &gguf::TensorView<'_>) -> Shape {
        shape(view, if view.shape().len() == 2 { self.target(view) } else { Format::F32.into() })
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
        let tensors: Result<Vec<_>, Error> = views.iter().map(|view| Ok((view, self.part(view)?))).collect();
        let changed = file_of(&tensors?)?;
        self.read(block, Some(&changed), None, true)
    }

    fn part(&self, view: &gguf::TensorView<'_>) -> Result<QuantizedMatrix, Error> {
        let found = self.parts.read(view.name(), self.stored(view))?;
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
            let n_cols = names.iter().find_map(|name| matrices.get(name)).map_or(0, |matrix| matrix.n_cols);
            let ready = self.ready(statistics.remove(&site), n_cols)?;
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
                self.parts.write(view.name(), &vector(&values)?)?;
            } else if self.is_kept(view) {
                self.parts.write(view.name(), &QuantizedMatrix::from_gguf(view))?;
                self.report.tensors.push(kept(view));
                self.step();
            } else if let Some(matrix) = matrices.remove(view.name()) {
                self.matrix(matrix, &Ready::PLAIN)?;
                self.step();
            }
        }
        self.report.quantizing += start.elapsed();
        Ok(())
    }

    /// What the matrices of a place in a block get.
    fn ready(&self, statistics: Option<Statistics>, n_cols: usize) -> Result<Ready, Error> {
        let Some(seed) = self.online else { return self.ready_as_is(statistics) };
        let rotation = Rotation::random(n_cols, seed).map_err(breakers_quant::Error::from)?;
        let rotate = |rows: &mut [f32]| Ok(rotation.forward(rows)?);
        let statistics = statistics.map(|found| found.transformed(rotate)).transpose()?;
        Ok(Ready { online: Some((rotation, seed)), ..self.ready_as_is(statistics)? })
    }

    pub(super) fn ready_as_is(&self, statistics: Option<Statistics>) -> Result<Ready, Error> {
        let way = match (self.options.method, statistics) {
            (Method::Gptq(config), Some(mut statistics)) => {
                let factor = Box::new(GptqFactor::new(&statistics, config)?);
                statistics.drop_hessian();
                Way::Feedback(factor, statistics)
            }
            (Method::RoundToNearest { weighted: true } | Method::Awq(_), Some(statistics)) => {
                Way::Weighted(statistics)
            }
            (Method::Hqq(config), _) => Way::Offsets(config),
            _ => Way::Plain,
        };
        Ok(Ready { way, online: None })
    }

    /// Quantizes a matrix of a block and keeps its bytes.
    fn matrix(&mut self, matrix: Matrix, ready: &Ready) -> Result<(), Error> {
        let encoding = self.plan.encoding(&matrix.name).unwrap_or(Format::F32.into());
        let quantized = choose(&matrix.name, matrix.values, matrix.n_rows, matrix.n_cols, encoding, ready)?;
        self.parts.write(&matrix.name, &quantized.matrix)?;
        let from = self.file.require(&matrix.name)?.format();
        let found = quantized.report;
        self.report.tensors.push(TensorReport {
            name: matrix.name,
            from,
            to: encoding,
            kept: false,
            weight_error: found.weight_error,
            output_error: found.output_error,
            damping: found.damping,
        });
        Ok(())
    }

    /// Puts a GGUF file together.
    fn write_gguf(&mut self, out: &Path) -> Result<(), Error> {
        self.tell(Doing::Writing);
        let mut metadata = self.file.metadata().clone();
        // Its number names one of llama.cpp's own mixtures.
        metadata.remove("general.file_type");
        let mut writer = gguf::Writer::with_metadata(metadata);
        writer.insert("breakers.quantize.method", self.options.method.name())?;
        if let Some(Rotate::Folded { seed }) = self.options.rotation {
            writer.insert("breakers.quantize.rotation_seed", seed)?;
        }
        let file = self.file;
        let mut tensors = Vec::new();
        for view in file.tensors().filter(|view| !(self.tied && view.name() == HEAD)) {
            tensors.push((view.name(), self.written(&view), view));
        }
        if let Some(view) = self.new_head()? {
            tensors.push((HEAD, shape(&view, self.target(&view)), view));
        }
        for (name, (encoding, _), view) in &tensors {
            let Encoding::Gguf(format) = *encoding else {
                return Err(Error::NotOfGguf { name: (*name).to_owned(), encoding: *encoding });
            };
            writer.declare(name, format, view.shape())?;
        }
        let mut sink = writer.create(out)?;
        for (name, expected, view) in tensors {
            match self.parts.read(name, expected)? {
                Some(found) => sink.write(name, found.blocks().unwrap_or_default())?,
                // What no step has touched is taken over.
                None if expected.0 == view.format().into() => sink.write(name, view.bytes())?,
                None => sink.write(name, vector(&view.to_f32())?.blocks().unwrap_or_default())?,
            }
        }
        Ok(sink.finish()?)
    }

    /// Puts together what differs from the source.
    fn write_store(&mut self, out: &Path) -> Result<(), Error> {
        self.tell(Doing::Writing);
        let mut stores = Vec::new();
        for view in self.file.tensors() {
            let expected = self.written(&view);
            let Some(found) = self.parts.store(view.name(), expected)? else { continue };
            // Only what is small, or was taken over in its own format, can be the same bytes.
            let may_be_same = expected.0 == view.format().into();
            if !may_be_same || found.matrix(view.name())?.blocks() != Some(view.bytes()) {
                stores.push(found);
            }
        }
        if let Some(view) = self.new_head()? {
            stores.extend(self.parts.store(HEAD, shape(&view, self.target(&view)))?);
        }
        Ok(matrix_file::join(out, &stores)?)
    }

    /// The format and shape of a tensor in the output.
    fn written(&self, view: &gguf::TensorView<'_>) -> Shape {
        match view.name() {
            "rope_freqs.weight" => shape(view, view.format().into()),
            EMBEDDINGS if self.tied => shape(view, self.plan.encoding(HEAD).unwrap_or(view.format().into())),
            _ => self.stored(view),
        }
    }

    /// The embeddings, if they were the head too and a rotation has parted the two.
    fn new_head(&self) -> Result<Option<gguf::TensorView<'_>>, Error> {
        let parted = self.rotation.is_some() && self.file.tensor(HEAD).is_none();
        Ok(parted.then(|| self.file.require(EMBEDDINGS)).transpose()?)
    }
}

/// A file in memory of tensors with other numbers; those in formats of our own decoded to half precision.
pub(super) fn file_of(tensors: &[(&gguf::TensorView<'_>, QuantizedMatrix)]) -> Result<gguf::File, Error> {
    let mut writer = gguf::Writer::new();
    for (view, tensor) in tensors {
        let format = match tensor.encoding() {
            Encoding::Gguf(format) if tensor.rotation_seed().is_none() => format,
            _ => Format::F16,
        };
        writer.declare(view.name(), format, view.shape())?;
    }
    let mut sink = writer.write_to(Vec::new())?;
    for (view, tensor) in tensors {
        match tensor.blocks() {
            Some(bytes) if tensor.rotation_seed().is_none() => sink.write(view.name(), bytes)?,
            _ => {
                let halves = tensor.to_f32().into_iter().flat_map(|x| half::f16::from_f32(x).to_le_bytes());
                sink.write(view.name(), &halves.collect::<Vec<u8>>())?;
            }
        }
    }
    Ok(gguf::File::from_bytes(sink.finish()?)?)
}

/// A vector as a matrix of one row.
pub(super) fn vector(values: &[f32]) -> Result<QuantizedMatrix, Error> {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    Ok(QuantizedMatrix::from_bytes(Format::F32, 1, values.len(), bytes)?)
}

/// Chooses the weights of a matrix.
pub(super) fn choose(
    name: &str,
    mut values: Vec<f32>,
    n_rows: usize,
    n_cols: usize,
    encoding: Encoding,
    ready: &Ready,
) -> Result<Quantized, Error> {
    // Before a rotation spreads what is no number over the row.
    WeightMatrix::new(&values, n_rows, n_cols).map_err(Error::in_tensor(name))?;
    if let Some((rotation, _)) = &ready.online {
        rotation.forward(&mut values).map_err(breakers_quant::Error::from)?;
    }
    let weights = WeightMatrix::new(&values, n_rows, n_cols).map_err(Error::in_tensor(name))?;
    let nearest = RoundToNearest::new(encoding);
    let quantized = match (&ready.way, encoding) {
        (Way::Weighted(statistics), _) => nearest.quantize(&weights, Some(statistics)),
        (Way::Feedback(factor, statistics), _) => factor.quantize(&weights, encoding, Some(statistics)),
        (Way::Offsets(config), Encoding::Groups(GroupFormat::Affine { bits, group })) => {
            Hqq::new(bits, group, *config).quantize(&weights, None)
        }
        (Way::Plain | Way::Offsets(_), _) => nearest.quantize(&weights, None),
    };
    let mut quantized = quantized.map_err(Error::in_tensor(name))?;
    if let Some((_, seed)) = ready.online {
        let rotated = quantized.matrix.of_rotated_inputs(seed);
        quantized.matrix = rotated.map_err(Error::in_tensor(name))?;
    }
    Ok(quantized)
}

pub(super) fn kept(view: &gguf::TensorView<'_>) -> TensorReport {
    TensorReport {
        name: view.name().to_owned(),
        from: view.format(),
        to: view.format().into(),
        kept: true,
        weight_error: 0.0,
        output_error: None,
        damping: None,
    }
}

pub(super) fn shape(view: &gguf::TensorView<'_>, encoding: Encoding) -> Shape {
    (encoding, [view.n_rows(), view.n_cols()])
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
