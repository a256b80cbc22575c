//! The second reference: a sentence encoder in 32-bit floats, where every method and format can be compared.
//!
//! Weights are quantized, decoded and run by the float kernels; this includes formats that have no matrix
//! product of their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use breakers_cli::{Error, Result};
use breakers_core::Embedder;
use breakers_embed::Bert;
use breakers_eval::{Cell, Column, Table};
use breakers_gguf::{Encoding, Format, GroupFormat};
use breakers_model::InputSite;
use breakers_quant::methods::{Gptq, METHODS, Rotated};
use breakers_quant::quantizer::{Quantizer, WeightMatrix};
use breakers_quant::statistics::{Statistics, StatisticsConfig};
use burn::tensor::Device;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// Characters of a passage.
const PASSAGE: usize = 600;

/// The formats that methods are compared in.
const ENCODINGS: [Encoding; 8] = [
    Encoding::Gguf(Format::Q4_0),
    Encoding::Gguf(Format::IQ4_NL),
    Encoding::Gguf(Format::MXFP4),
    Encoding::Groups(GroupFormat::Affine { bits: 4, group: 128 }),
    Encoding::Groups(GroupFormat::Affine { bits: 3, group: 128 }),
    Encoding::Groups(GroupFormat::Affine { bits: 2, group: 64 }),
    Encoding::Groups(GroupFormat::Nf4),
    Encoding::Groups(GroupFormat::NvFp4),
];

/// All methods of the table, and one after a rotation, each with every format that it supports.
fn contestants() -> Vec<(Arc<dyn Quantizer>, Encoding)> {
    let mut methods: Vec<Arc<dyn Quantizer>> = METHODS.iter().map(|entry| (entry.build)()).collect();
    methods.push(Arc::new(Rotated::new(Gptq::default(), 1)));
    let pairs = ENCODINGS.iter().flat_map(|&encoding| methods.iter().map(move |m| (m.clone(), encoding)));
    pairs.filter(|(method, encoding)| method.check(*encoding).is_ok()).collect()
}

/// The matrices of a block, and the activation that they read.
const MATRICES: [(&str, InputSite); 6] = [
    ("attention.self.query", InputSite::Attention),
    ("attention.self.key", InputSite::Attention),
    ("attention.self.value", InputSite::Attention),
    ("attention.output.dense", InputSite::AttentionOut),
    ("intermediate.dense", InputSite::FeedForward),
    ("output.dense", InputSite::FeedForwardOut),
];

struct Matrix {
    name: String,
    values: Vec<f32>,
    n_rows: usize,
    n_cols: usize,
    place: (usize, InputSite),
}

/// The table of all methods on the encoder in a folder. Passages of `text` are compared, those of
/// `calibration` serve for calibration.
pub(crate) fn compare(folder: &Path, text: &str, calibration: &str) -> Result<Table> {
    let reference = Bert::load(folder, &Device::flex())?;
    let passages = passages(text, 200);
    let expected = reference.embed(&passages)?;
    let statistics = collect(&reference, calibration)?;
    let bytes = std::fs::read(folder.join("model.safetensors"))?;
    let weights = SafeTensors::deserialize(&bytes)?;
    let matrices = matrices(&weights)?;
    let work = std::env::temp_dir().join(format!("breakers-quant-{}", std::process::id()));
    std::fs::create_dir_all(work.join("1_Pooling"))?;
    let mut table = Table::new("embeddings", "Sentence embeddings against 32-bit floats");
    for column in [
        Column::new("method"),
        Column::new("bits a weight").decimals(3),
        Column::new("error of outputs").decimals(5),
        Column::new("1 - cosine").decimals(5),
        Column::new("same nearest").unit("%").decimals(1),
        Column::new("made in").unit("s").decimals(2),
    ] {
        table.column(column);
    }
    let done = rows(&mut table, folder, &work, &weights, &matrices, &statistics, &passages, &expected);
    std::fs::remove_dir_all(&work)?;
    done.map(|()| table)
}

#[allow(clippy::type_complexity)] // a map of two keys, used once
fn rows(
    table: &mut Table,
    folder: &Path,
    work: &Path,
    weights: &SafeTensors<'_>,
    matrices: &[Matrix],
    statistics: &BTreeMap<(usize, InputSite), Statistics>,
    passages: &[&str],
    expected: &[Vec<f32>],
) -> Result {
    for name in [
        "config.json",
        "tokenizer.json",
        "sentence_bert_config.json",
        "modules.json",
        "1_Pooling/config.json",
    ] {
        if folder.join(name).exists() {
            std::fs::copy(folder.join(name), work.join(name))?;
        }
    }
    for (quantizer, encoding) in contestants() {
        let start = Instant::now();
        let (mut bytes, mut n_weights, mut error) = (0, 0, 0.0);
        let mut changed: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        for matrix in matrices {
            let found = WeightMatrix::new(&matrix.values, matrix.n_rows, matrix.n_cols)?;
            let quantized = quantizer.quantize(&found, encoding, statistics.get(&matrix.place))?;
            bytes += quantized.matrix.bytes();
            n_weights += matrix.values.len();
            error += quantized.report.output_error.unwrap_or(0.0) / matrices.len() as f64;
            changed.insert(
                &matrix.name,
                quantized.matrix.to_f32().iter().flat_map(|x| x.to_le_bytes()).collect(),
            );
        }
        let seconds = start.elapsed().as_secs_f64();
        let views: Vec<(String, TensorView<'_>)> = weights
            .iter()
            .map(|(name, view)| {
                let data = changed.get(name).map_or(view.data(), |bytes| bytes);
                Ok((name.to_owned(), TensorView::new(view.dtype(), view.shape().to_vec(), data)?))
            })
            .collect::<Result<_>>()?;
        std::fs::write(work.join("model.safetensors"), safetensors::serialize(views, None)?)?;
        let found = Bert::load(work, &Device::flex())?.embed(passages)?;
        let cosine = expected.iter().zip(&found).map(|(a, b)| dot(a, b)).sum::<f64>() / found.len() as f64;
        let same = (0..found.len()).filter(|&i| nearest(expected, i) == nearest(&found, i)).count();
        table.row(vec![
            Cell::from(&*format!("{} {encoding}", quantizer.name())),
            Cell::Number(8.0 * bytes as f64 / n_weights as f64),
            Cell::Number(error),
            Cell::Number(1.0 - cosine),
            Cell::Number(100.0 * same as f64 / found.len() as f64),
            Cell::Number(seconds),
        ])?;
    }
    Ok(())
}

fn matrices(weights: &SafeTensors<'_>) -> Result<Vec<Matrix>> {
    let mut out = Vec::new();
    for block in 0.. {
        if weights.tensor(&format!("encoder.layer.{block}.output.dense.weight")).is_err() {
            break;
        }
        for (part, site) in MATRICES {
            let name = format!("encoder.layer.{block}.{part}.weight");
            let view = weights.tensor(&name)?;
            let (&[n_rows, n_cols], Dtype::F32) = (view.shape(), view.dtype()) else {
                return Err(Error::Usage(format!("{name}: a matrix of 32-bit floats is expected")));
            };
            let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            out.push(Matrix { name, values: values.collect(), n_rows, n_cols, place: (block, site) });
        }
    }
    Ok(out)
}

fn collect(bert: &Bert, text: &str) -> Result<BTreeMap<(usize, InputSite), Statistics>> {
    let config = StatisticsConfig { hessian: true, sample_rows: 512, ..Default::default() };
    let mut statistics: BTreeMap<(usize, InputSite), Statistics> = BTreeMap::new();
    bert.observe(&passages(text, 200), &mut |block, site, rows, n_cols| {
        let found = statistics.entry((block, site)).or_insert_with(|| Statistics::new(n_cols, config));
        Ok(found.observe(rows)?)
    })?;
    statistics.values_mut().for_each(Statistics::finish);
    Ok(statistics)
}

/// Pieces of a text.
fn passages(text: &str, most: usize) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text;
    while out.len() < most && !rest.is_empty() {
        let end = rest.char_indices().nth(PASSAGE).map_or(rest.len(), |(at, _)| at);
        let (piece, later) = rest.split_at(end);
        out.push(piece);
        rest = later;
    }
    out
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
}

/// The other passage with the most similar vector.
fn nearest(vectors: &[Vec<f32>], i: usize) -> Option<usize> {
    let others = (0..vectors.len()).filter(|&j| j != i);
    others.max_by(|&a, &b| dot(&vectors[i], &vectors[a]).total_cmp(&dot(&vectors[i], &vectors[b])))
}
