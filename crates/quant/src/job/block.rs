//! A block: its text, its statistics, its matrices.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use breakers_core::BoxError;
use breakers_gguf as gguf;
use breakers_gguf::{Format, QuantizedMatrix};
use breakers_model::{InputObserver, InputSite};

use super::matrix::{Matrix, Prepared, file_of, kept, require, statistics_config, vector};
use super::run::Job;
use super::{Progress, Stage, TensorReport};
use crate::Error;
use crate::statistics::{SiteStatistics, Statistics};

impl Job<'_> {
    /// Whether a matrix of a block is kept unchanged.
    fn is_kept(&self, view: &gguf::TensorView<'_>) -> bool {
        let changed = self.options.rotation.is_some() || self.options.quantizer.folding().is_some();
        !changed && self.target(view) == view.format().into()
    }

    /// Quantizes a block, or uses what an interrupted run has left of it, and runs the text through it.
    pub(super) fn block(&mut self, block: usize) -> Result<(), Error> {
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

    /// Feeds the text to the block with its original weights.
    fn collect(
        &mut self,
        block: usize,
        views: &[gguf::TensorView<'_>],
    ) -> Result<BTreeMap<InputSite, Statistics>, Error> {
        let Some(needs) = self.options.quantizer.needs() else { return Ok(BTreeMap::new()) };
        let sites: Vec<InputSite> = InputSite::ALL
            .into_iter()
            .filter(|site| {
                let of_site = |view: &&gguf::TensorView<'_>| {
                    site.matrices().iter().any(|name| view.name().ends_with(name))
                };
                views.iter().filter(of_site).any(|view| !self.is_kept(view))
            })
            .collect();
        let mut observer =
            Timed { inner: SiteStatistics::of(&sites, statistics_config(needs)), time: Duration::default() };
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
        let mut tell = |windows| progress(Progress { done, steps, stage: Stage::Reading { block, windows } });
        // The original weights are for hidden states that are not rotated, the new ones for rotated ones.
        let rotation = changed.and(self.rotation.as_ref()).map(|r| &r.rotation);
        self.walk.run(changed.unwrap_or(self.file), block, rotation, observer, advance, &mut tell)?;
        self.report.reading += start.elapsed();
        Ok(())
    }

    /// Runs the text through the block's new weights.
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
        if let Some(folding) = self.options.quantizer.folding() {
            self.fold_factors(prefix, folding, &mut matrices, &mut vectors, &mut statistics)?;
        }
        for site in InputSite::ALL {
            let names: Vec<String> = site.matrices().iter().map(|suffix| name(suffix)).collect();
            if !names.iter().any(|name| matrices.contains_key(name)) {
                continue;
            }
            let n_cols = names.iter().find_map(|name| matrices.get(name)).map_or(0, |matrix| matrix.n_cols);
            let prepared = self.prepared(statistics.remove(&site), n_cols)?;
            for name in names {
                if let Some(matrix) = matrices.remove(&name) {
                    self.matrix(matrix, &prepared)?;
                    self.step();
                }
            }
        }
        // Matrices that belong to no place, or that are kept unchanged.
        for view in views {
            if view.shape().len() != 2 {
                let values = vectors.remove(view.name()).unwrap_or_else(|| view.to_f32());
                self.parts.write(view.name(), &vector(&values)?)?;
            } else if self.is_kept(view) {
                self.parts.write(view.name(), &QuantizedMatrix::from_gguf(view))?;
                self.report.tensors.push(kept(view));
                self.step();
            } else if let Some(matrix) = matrices.remove(view.name()) {
                self.matrix(matrix, &Prepared::PLAIN)?;
                self.step();
            }
        }
        self.report.quantizing += start.elapsed();
        Ok(())
    }

    /// Quantizes a matrix of a block and keeps its bytes.
    fn matrix(&mut self, matrix: Matrix, prepared: &Prepared<'_>) -> Result<(), Error> {
        let encoding = self.plan.encoding(&matrix.name).unwrap_or(Format::F32.into());
        let quantized =
            self.choose(&matrix.name, matrix.values, matrix.n_rows, matrix.n_cols, encoding, prepared)?;
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
}

/// An observer whose time is measured.
struct Timed {
    inner: SiteStatistics,
    time: Duration,
}

impl InputObserver for Timed {
    fn observe(&mut self, site: InputSite, rows: &[f32], n_cols: usize) -> Result<(), BoxError> {
        let start = Instant::now();
        let seen = self.inner.observe(site, rows, n_cols);
        self.time += start.elapsed();
        seen
    }
}
