//! The course of a job: embeddings, blocks, head, file.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use breakers_gguf as gguf;
use breakers_gguf::{Encoding, Format, matrix_file};
use breakers_model::walk::BlockWalk;

use super::fold::HiddenRotation;
use super::matrix::{shape, vector};
use super::parts::{Parts, Shape};
use super::tables;
use super::{Plan, Progress, QuantizeOptions, QuantizeReport, Rotate, Stage, parts_folder};
use crate::Error;
use crate::quantizer::Quantizer;

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
    suited(&file, plan, &*options.quantizer, as_store)?;
    let windows = options.windows()?;
    let n_tokens = windows.len() * options.window;
    let walk = BlockWalk::new(&file, windows)?;
    // These are in the basis, or after the scale, that the neighboring weights get.
    let folding = options.quantizer.folding();
    let changes_basis = matches!(options.rotation, Some(Rotate::Folded { .. })) || folding.is_some();
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
        rounding: folding.map_or(&*options.quantizer, |folding| folding.rounding()),
        as_store,
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
fn suited(file: &gguf::File, plan: &Plan, quantizer: &dyn Quantizer, as_store: bool) -> Result<(), Error> {
    for view in file.tensors().filter(|view| view.shape().len() == 2) {
        let Some(encoding) = plan.encoding(view.name()) else { continue };
        if !as_store && matches!(encoding, Encoding::Groups(_)) {
            return Err(Error::NotOfGguf { name: view.name().to_owned(), encoding });
        }
        if encoding != view.format().into() {
            quantizer.check(encoding).map_err(Error::in_tensor(view.name()))?;
        }
        encoding.check(view.n_cols()).map_err(Error::in_tensor(view.name()))?;
    }
    Ok(())
}

/// A description of everything that a job's finished tensors depend on.
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
    let QuantizeOptions { quantizer, rotation, tie, window, .. } = options;
    let formats: Vec<String> = plan.iter().map(|(name, format)| format!("{name}={format}")).collect();
    let n_bytes = file.len_bytes();
    format!("4 {hash:016x} {n_bytes} {quantizer:?} {rotation:?} {tie} {window} {}", formats.join(","))
}

pub(super) struct Job<'a> {
    pub(super) file: &'a gguf::File,
    pub(super) plan: &'a Plan,
    pub(super) options: &'a QuantizeOptions,
    /// The quantizer that rounds matrices: the method itself, or the one that follows its factors.
    pub(super) rounding: &'a dyn Quantizer,
    /// The output is a file of what differs from the source.
    pub(super) as_store: bool,
    pub(super) rotation: Option<HiddenRotation>,
    /// Seed of the rotation of each matrix's inputs.
    pub(super) online: Option<u64>,
    /// The head's table is that of the embeddings too.
    pub(super) tied: bool,
    pub(super) parts: Parts,
    pub(super) walk: BlockWalk,
    pub(super) report: QuantizeReport,
    pub(super) done: usize,
    pub(super) steps: usize,
    pub(super) progress: &'a mut dyn FnMut(Progress),
}

impl Job<'_> {
    fn tell(&mut self, stage: Stage) {
        (self.progress)(Progress { done: self.done, steps: self.steps, stage });
    }

    pub(super) fn step(&mut self) {
        self.done += 1;
        self.tell(Stage::Quantizing);
    }

    /// The format of a matrix in the output.
    pub(super) fn target(&self, view: &gguf::TensorView<'_>) -> Encoding {
        self.plan.encoding(view.name()).unwrap_or(view.format().into())
    }

    /// The format and shape that a tensor has in the output; vectors are floats.
    pub(super) fn stored(&self, view: &gguf::TensorView<'_>) -> Shape {
        shape(view, if view.shape().len() == 2 { self.target(view) } else { Format::F32.into() })
    }

    /// Puts a GGUF file together.
    fn write_gguf(&mut self, out: &Path) -> Result<(), Error> {
        self.tell(Stage::Writing);
        let mut metadata = self.file.metadata().clone();
        // Its value stands for one of llama.cpp's own mixtures of formats.
        metadata.remove("general.file_type");
        let mut writer = gguf::Writer::with_metadata(metadata);
        writer.insert("breakers.quantize.method", self.options.quantizer.name())?;
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
                // Tensors that no step has changed are copied.
                None if expected.0 == view.format().into() => sink.write(name, view.bytes())?,
                None => sink.write(name, vector(&view.to_f32())?.blocks().unwrap_or_default())?,
            }
        }
        Ok(sink.finish()?)
    }

    /// Puts together what differs from the source.
    fn write_store(&mut self, out: &Path) -> Result<(), Error> {
        self.tell(Stage::Writing);
        let mut stores = Vec::new();
        for view in self.file.tensors() {
            let expected = self.written(&view);
            let Some(found) = self.parts.store(view.name(), expected)? else { continue };
            // Only small tensors, or those kept in their format, can have the same bytes.
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

    /// The embeddings, if they were also the head and a rotation has separated the two.
    fn new_head(&self) -> Result<Option<gguf::TensorView<'_>>, Error> {
        let parted = self.rotation.is_some() && self.file.tensor(HEAD).is_none();
        Ok(parted.then(|| self.file.require(EMBEDDINGS)).transpose()?)
    }
}
