//! Matrices of a model in formats that GGUF lacks, as a file beside the model's own.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use breakers_quant::gguf;
use breakers_quant::quantizer::{Encoding, QuantizedMatrix, Quantizer, WeightMatrix};
use breakers_quant::quantizers::{GptqFactor, RoundToNearest};
use breakers_quant::statistics::{InputSite, SiteStatistics, StatisticsConfig};
use breakers_quant::{Format, store};

use super::job::{REPORT_ROWS, ROW_LIMIT};
use super::plan::fitting_groups;
use super::{Method, QuantizeOptions, QuantizeReport};
use crate::Error;
use crate::walk::BlockWalk;

/// Writes `out`, a file of the matrices of all blocks of `source` in one encoding, which
/// [`LoadOptions::matrices`](crate::LoadOptions::matrices) loads in their place. Vectors, embeddings and head stay those of the
/// source. Where groups do not divide rows, halves or quarters of them do (a note says so). `progress` is told (blocks done,
/// blocks in all); the report lists no tensors.
///
/// # Memory
/// That of [`quantize`](super::quantize), and the new matrices.
///
/// # Errors
/// [`Error::Unfoldable`] for AWQ and rotations, which change what stands between the matrices and so the whole file; otherwise
/// as [`quantize`](super::quantize).
pub fn quantize_matrices(
    source: impl AsRef<Path>,
    out: impl AsRef<Path>,
    encoding: Encoding,
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<QuantizeReport, Error> {
    let start = Instant::now();
    let (source, out) = (source.as_ref(), out.as_ref());
    let file = gguf::File::open(source)?;
    let refused = |what: &str| {
        let reason =
            format!("{what} changes the vectors between the matrices, which this file does not hold");
        Err(Error::Unfoldable { reason })
    };
    match (options.method, options.rotation) {
        (Method::Awq(_), _) => return refused("AWQ"),
        (_, Some(_)) => return refused("a rotation"),
        _ => {}
    }
    let windows = options.windows()?;
    let reads = !windows.is_empty();
    let n_tokens = windows.len() * options.window;
    let mut report = QuantizeReport { n_tokens, ..QuantizeReport::default() };
    let mut walk = BlockWalk::new(&file, windows)?;
    let mut done: BTreeMap<String, QuantizedMatrix> = BTreeMap::new();
    for block in 0..walk.n_blocks() {
        let mut statistics = SiteStatistics::new(StatisticsConfig {
            hessian: matches!(options.method, Method::Gptq(_)),
            sample_rows: REPORT_ROWS,
            row_limit: Some(ROW_LIMIT),
            ..Default::default()
        });
        let now = Instant::now();
        if reads {
            walk.run(&file, block, None, Some(&mut statistics), false, &mut |_| ())?;
        }
        report.reading += now.elapsed();
        let now = Instant::now();
        let mut changed: BTreeMap<String, QuantizedMatrix> = BTreeMap::new();
        for site in InputSite::ALL {
            let found = statistics.take(site);
            let factor = match (options.method, &found) {
                (Method::Gptq(config), Some(found)) => Some(GptqFactor::new(found, config)?),
                _ => None,
            };
            for suffix in site.matrices() {
                let name = format!("blk.{block}.{suffix}");
                let in_tensor = |source| Error::Tensor { name: name.clone(), source };
                let view = file.require(&name)?;
                let values = view.to_f32();
                let weights = WeightMatrix::new(&values, view.n_rows(), view.n_cols()).map_err(in_tensor)?;
                let wanted = encoding;
                let encoding = fitting_groups(wanted, view.n_cols());
                if encoding != wanted {
                    let (found, asked) = (encoding.name(), wanted.name());
                    let note = format!("rows of {} become {found} in place of {asked}", view.n_cols());
                    if !report.notes.contains(&note) {
                        report.notes.push(note);
                    }
                }
                let quantized = match &factor {
                    Some(factor) => factor.quantize(&weights, encoding, found.as_ref()),
                    None => RoundToNearest::new(encoding).quantize(&weights, found.as_ref()),
                };
                changed.insert(name.clone(), quantized.map_err(in_tensor)?);
            }
        }
        report.quantizing += now.elapsed();
        let now = Instant::now();
        if reads {
            let changed = with_matrices(&file, block, &changed)?;
            walk.run(&changed, block, None, None, true, &mut |_| ())?;
        }
        report.reading += now.elapsed();
        done.append(&mut changed);
        progress(block + 1, walk.n_blocks());
    }
    store::write(out, done.iter().map(|(name, matrix)| (&**name, matrix)))?;
    report.bytes = std::fs::metadata(out).map_err(|source| Error::Io { path: out.to_owned(), source })?.len();
    report.total = start.elapsed();
    Ok(report)
}

/// A block of the file with other matrices, in half precision.
fn with_matrices(
    file: &gguf::File,
    block: usize,
    changed: &BTreeMap<String, QuantizedMatrix>,
) -> Result<gguf::File, Error> {
    let prefix = format!("blk.{block}.");
    let views: Vec<_> = file.tensors().filter(|view| view.name().starts_with(&prefix)).collect();
    let mut writer = gguf::Writer::new();
    for view in &views {
        let format = if changed.contains_key(view.name()) { Format::F16 } else { view.format() };
        writer.declare(view.name(), format, view.shape())?;
    }
    let mut sink = writer.write_to(Vec::new())?;
    for view in &views {
        match changed.get(view.name()) {
            Some(matrix) => {
                let values = matrix.to_f32();
                let bytes: Vec<u8> =
                    values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
                sink.write(view.name(), &bytes)?;
            }
            None => sink.write(view.name(), view.bytes())?,
        }
    }
    Ok(gguf::File::from_bytes(sink.finish()?)?)
}
