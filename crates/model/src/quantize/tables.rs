//! The large tables at both ends of a model: embeddings and head.

use std::time::Instant;

use breakers_quant::gguf;
use breakers_quant::statistics::{Statistics, StatisticsConfig};

use super::job::{EMBEDDINGS, HEAD, Job, LAST_NORM, REPORT_ROWS, Ready, choose, kept, n_bytes};
use super::{Method, TensorReport};
use crate::Error;

/// Rows that are quantized at a time.
const SLAB_ROWS: usize = 8192;

impl Job<'_> {
    /// The inputs of the head, and what they make of it.
    pub(super) fn head(&mut self) -> Result<(), Error> {
        let file = self.file;
        let norm = file.require(LAST_NORM)?.to_f32();
        let written: Vec<f32> = if self.rotation.is_some() { vec![1.0; norm.len()] } else { norm.clone() };
        self.parts.write(LAST_NORM, &written.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
        let Some(view) = file.tensor(HEAD) else {
            if self.rotation.is_some() {
                let note = "rotation: embeddings and head were one, and are two now";
                self.report.notes.push(note.to_owned());
                return self.table_as(&file.require(EMBEDDINGS)?, HEAD, Some(&norm), &Ready::Plain);
            }
            return Ok(());
        };
        let mut ready = Ready::Plain;
        if self.walk.n_windows() > 0 && !(self.rotation.is_none() && self.target(&view) == view.format()) {
            let start = Instant::now();
            let hessian = matches!(self.options.method, Method::Gptq(_));
            let config = StatisticsConfig { hessian, sample_rows: REPORT_ROWS, ..Default::default() };
            let mut statistics = Statistics::new(self.walk.width(), config);
            self.walk.head_inputs(file, |rows| Ok(statistics.observe(rows)?))?;
            statistics.finish();
            if let Some(rotation) = &self.rotation {
                statistics = rotation.statistics(&statistics, &norm)?;
            }
            self.report.observing += start.elapsed();
            self.report.reading += start.elapsed();
            ready = match self.options.method {
                Method::Awq(_) => Ready::Weighted(statistics),
                _ => self.ready(Some(statistics))?,
            };
        }
        self.table_as(&view, HEAD, Some(&norm), &ready)
    }

    /// A table with many rows: the embeddings.
    pub(super) fn table(&mut self, name: &str, norm: Option<&[f32]>) -> Result<(), Error> {
        let view = self.file.require(name)?;
        self.table_as(&view, name, norm, &Ready::Plain)
    }

    fn table_as(
        &mut self,
        view: &gguf::TensorView<'_>,
        name: &str,
        norm: Option<&[f32]>,
        ready: &Ready,
    ) -> Result<(), Error> {
        let start = Instant::now();
        let format = self.target(view);
        if self.parts.has(name, n_bytes(view, format)?) {
            self.report.resumed += 1;
        } else if self.rotation.is_none() && format == view.format() {
            self.parts.write(name, view.bytes())?;
            self.report.tensors.push(kept(view));
        } else {
            let (n_cols, row_bytes) = (view.n_cols(), view.bytes().len() / view.n_rows());
            let mut bytes = Vec::with_capacity(n_bytes(view, format)?);
            let (mut wrong, mut of_outputs, mut damping) = (0.0, None, None);
            for source in view.bytes().chunks(SLAB_ROWS * row_bytes) {
                let n_rows = source.len() / row_bytes;
                let mut values = vec![0.0; n_rows * n_cols];
                view.format().decode_row(source, &mut values)?;
                match (&self.rotation, norm) {
                    (Some(rotation), Some(norm)) => rotation.reader(&mut values, norm)?,
                    (Some(rotation), None) => rotation.rows(&mut values)?,
                    _ => {}
                }
                let quantized = choose(name, &values, n_rows, n_cols, format, ready)?;
                bytes.extend_from_slice(quantized.blocks().unwrap_or_default());
                let share = n_rows as f64 / view.n_rows() as f64;
                let found = quantized.report();
                wrong += share * found.weight_error;
                of_outputs = found.output_error.map(|error| of_outputs.unwrap_or(0.0) + share * error);
                damping = found.damping;
            }
            self.parts.write(name, &bytes)?;
            self.report.tensors.push(TensorReport {
                name: name.to_owned(),
                from: view.format(),
                to: format,
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
