//! The large tables at both ends of a model: embeddings and head.

use std::time::Instant;

use breakers_gguf as gguf;
use breakers_gguf::{Encoding, QuantizedMatrix};

use super::matrix::{Prepared, kept, shape, statistics_config, vector};
use super::run::{EMBEDDINGS, HEAD, Job, LAST_NORM};
use super::{QuantizeOptions, Rotate, TensorReport};
use crate::Error;
use crate::statistics::Statistics;

/// Rows that are quantized at a time.
const SLAB_ROWS: usize = 8192;

/// The largest squared difference, relative to their squares, of two tables that count as the same. Rounding
/// normally distributed numbers to four bits loses .01.
const SAME_TABLE: f64 = 0.02;
/// Rows that tables are compared on.
const COMPARED_ROWS: usize = 1024;

/// Whether embeddings and head can be one table; if not, a note says why.
pub(super) fn can_tie(
    file: &gguf::File,
    options: &QuantizeOptions,
    as_store: bool,
    notes: &mut Vec<String>,
) -> Result<bool, Error> {
    if as_store {
        notes.push("tie: a file of what differs from the source saves nothing by it".to_owned());
        return Ok(false);
    }
    let (embeddings, Some(head)) = (file.require(EMBEDDINGS)?, file.tensor(HEAD)) else {
        return Ok(false);
    };
    if matches!(options.rotation, Some(Rotate::Folded { .. })) {
        notes.push(
            "tie: a rotation takes the last norm into the head, so that both tables are written".to_owned(),
        );
        return Ok(false);
    }
    if embeddings.shape() != head.shape() {
        notes.push("tie: embeddings and head have different shapes, so that both are written".to_owned());
        return Ok(false);
    }
    let (mut wrong, mut all) = (0.0f64, 0.0f64);
    let n_cols = head.n_cols();
    let (mut a, mut b) = (vec![0.0f32; n_cols], vec![0.0f32; n_cols]);
    for row in (0..head.n_rows()).step_by((head.n_rows() / COMPARED_ROWS).max(1)) {
        for (view, out) in [(&embeddings, &mut a), (&head, &mut b)] {
            view.format().decode_row(view.row(row).unwrap_or_default(), out)?;
        }
        for (a, b) in a.iter().zip(&b) {
            wrong += f64::from(a - b).powi(2);
            all += f64::from(*b).powi(2);
        }
    }
    // Written so that NaN never matches.
    let same = wrong <= SAME_TABLE * all;
    if !same {
        notes.push(format!(
            "tie: embeddings and head differ by {:.3} of their squares, so that both are written",
            wrong / all
        ));
    }
    Ok(same)
}

impl Job<'_> {
    /// Quantizes the head, with statistics of its inputs.
    pub(super) fn head(&mut self) -> Result<(), Error> {
        let file = self.file;
        let norm = file.require(LAST_NORM)?.to_f32();
        let written: Vec<f32> = if self.rotation.is_some() { vec![1.0; norm.len()] } else { norm.clone() };
        self.parts.write(LAST_NORM, &vector(&written)?)?;
        if self.tied {
            self.step();
            return Ok(());
        }
        let Some(view) = file.tensor(HEAD) else {
            if self.rotation.is_some() {
                let note = "rotation: embeddings and head were one, and are two now";
                self.report.notes.push(note.to_owned());
                return self.table_as(&file.require(EMBEDDINGS)?, HEAD, Some(&norm), &Prepared::PLAIN);
            }
            return Ok(());
        };
        let mut prepared = Prepared::PLAIN;
        if self.walk.n_windows() > 0
            && !(self.rotation.is_none() && self.target(&view) == view.format().into())
        {
            let start = Instant::now();
            let needs = self.rounding.needs().unwrap_or_default();
            let mut statistics = Statistics::new(self.walk.width(), statistics_config(needs));
            self.walk.head_inputs(file, |rows| Ok(statistics.observe(rows)?))?;
            statistics.finish();
            if let Some(rotation) = &self.rotation {
                statistics = rotation.statistics(&statistics, &norm)?;
            }
            self.report.observing += start.elapsed();
            self.report.reading += start.elapsed();
            prepared = self.prepared_as_is(Some(statistics))?;
        }
        self.table_as(&view, HEAD, Some(&norm), &prepared)
    }

    /// Quantizes the table of embeddings; if both are one table, it comes from the head, whose format is the
    /// finer one.
    pub(super) fn embeddings(&mut self) -> Result<(), Error> {
        let view = self.file.require(if self.tied { HEAD } else { EMBEDDINGS })?;
        self.table_as(&view, EMBEDDINGS, None, &Prepared::PLAIN)
    }

    fn table_as(
        &mut self,
        view: &gguf::TensorView<'_>,
        name: &str,
        norm: Option<&[f32]>,
        prepared: &Prepared<'_>,
    ) -> Result<(), Error> {
        let start = Instant::now();
        let encoding = self.target(view);
        if self.parts.has(name, shape(view, encoding))? {
            self.report.resumed += 1;
        } else if self.rotation.is_none() && encoding == view.format().into() {
            // Under its own name it is copied when the file is assembled.
            if name != view.name() {
                self.parts.write(name, &QuantizedMatrix::from_gguf(view))?;
            }
            self.report.tensors.push(kept(view));
        } else {
            let (n_rows, n_cols) = (view.n_rows(), view.n_cols());
            let row_bytes = view.bytes().len() / n_rows;
            // Groups may have scales of scales, which all rows share.
            let slab_rows = if matches!(encoding, Encoding::Gguf(_)) { SLAB_ROWS } else { n_rows };
            let mut blocks = Vec::new();
            if let Encoding::Gguf(_) = encoding {
                blocks.reserve_exact(encoding.matrix_bytes(n_rows, n_cols)?);
            }
            let mut groups = None;
            let (mut wrong, mut of_outputs, mut damping) = (0.0, None, None);
            for source in view.bytes().chunks(slab_rows * row_bytes) {
                let n_slab = source.len() / row_bytes;
                let mut values = vec![0.0; n_slab * n_cols];
                view.format().decode_row(source, &mut values)?;
                match (&self.rotation, norm) {
                    (Some(rotation), Some(norm)) => rotation.reader(&mut values, norm)?,
                    (Some(rotation), None) => rotation.rows(&mut values)?,
                    _ => {}
                }
                let quantized = self.choose(name, values, n_slab, n_cols, encoding, prepared)?;
                let share = n_slab as f64 / n_rows as f64;
                let found = quantized.report;
                wrong += share * found.weight_error;
                of_outputs = found.output_error.map(|error| of_outputs.unwrap_or(0.0) + share * error);
                damping = found.damping;
                match quantized.matrix.blocks() {
                    Some(bytes) => blocks.extend_from_slice(bytes),
                    None => groups = Some(quantized.matrix),
                }
            }
            let table = match (encoding, groups) {
                (Encoding::Gguf(format), _) => QuantizedMatrix::from_bytes(format, n_rows, n_cols, blocks)?,
                (_, Some(groups)) => groups,
                (_, None) => return Err(Error::MissingTensor { name: name.to_owned() }),
            };
            self.parts.write(name, &table)?;
            self.report.tensors.push(TensorReport {
                name: name.to_owned(),
                from: view.format(),
                to: encoding,
                kept: false,
                weight_error: wrong,
                output_error: of_outputs,
                damping,
            });
        }
        view.advise_done();
        self.report.quantizing += start.elapsed();
        self.step();
        Ok(())
    }
}
