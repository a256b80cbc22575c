//! Factors on the inputs, such as AWQ's, in a whole block.

use std::collections::BTreeMap;

use breakers_gguf::{Encoding, Format};
use breakers_model::InputSite;

use super::fold::{divide_rows, scale_columns};
use super::matrix::{Matrix, require};
use super::run::Job;
use crate::Error;
use crate::quantizer::{Folding, WeightMatrix};
use crate::statistics::Statistics;

impl Job<'_> {
    /// Multiplies a method's factors into the columns of the matrices, and divides the norms, or the rows of
    /// the matrices before them, by the factors.
    pub(super) fn fold_factors(
        &mut self,
        prefix: &str,
        folding: &dyn Folding,
        matrices: &mut BTreeMap<String, Matrix>,
        vectors: &mut BTreeMap<String, Vec<f32>>,
        statistics: &mut BTreeMap<InputSite, Statistics>,
    ) -> Result<(), Error> {
        let name = |suffix: &str| format!("{prefix}{suffix}");
        let has_head_bias = vectors.contains_key(&name("attn_v.bias"));
        for (site, before) in [
            (InputSite::Attention, "attn_norm.weight"),
            (InputSite::AttentionOut, "attn_v.weight"),
            (InputSite::FeedForward, "ffn_norm.weight"),
            (InputSite::FeedForwardOut, "ffn_up.weight"),
        ] {
            if site == InputSite::AttentionOut && self.walk.queries_per_key() != 1 {
                let note = format!(
                    "{}: several query heads share a value head, so that the output projection is not scaled",
                    self.options.quantizer.name()
                );
                if !self.report.notes.contains(&note) {
                    self.report.notes.push(note);
                }
                continue;
            }
            let Some(found) = statistics.get_mut(&site) else { continue };
            let mut together = Vec::new();
            let mut n_cols = 0;
            let mut encoding = Encoding::Gguf(Format::Q4_0);
            for suffix in site.matrices() {
                let matrix = require(matrices, &name(suffix))?;
                together.extend_from_slice(&matrix.values);
                n_cols = matrix.n_cols;
                encoding = self.plan.encoding(&matrix.name).unwrap_or(encoding);
            }
            let first = name(site.matrices()[0]);
            let weights = WeightMatrix::new(&together, together.len() / n_cols.max(1), n_cols)
                .map_err(Error::in_tensor(&first))?;
            let factors = folding.factors(&weights, encoding, found).map_err(Error::in_tensor(&first))?;
            check(&factors, n_cols).map_err(Error::in_tensor(&first))?;
            for suffix in site.matrices() {
                scale_columns(&mut require(matrices, &name(suffix))?.values, &factors);
            }
            *found = found.transformed(|rows| {
                for row in rows.chunks_exact_mut(factors.len()) {
                    row.iter_mut().zip(&factors).for_each(|(x, factor)| *x /= factor);
                }
                Ok(())
            })?;
            if let Some(norm) = vectors.get_mut(&name(before)) {
                norm.iter_mut().zip(&factors).for_each(|(x, factor)| *x /= factor);
            } else {
                let matrix = require(matrices, &name(before))?;
                divide_rows(&mut matrix.values, &factors, matrix.n_cols);
                if site == InputSite::AttentionOut && has_head_bias {
                    let bias = require(vectors, &name("attn_v.bias"))?;
                    bias.iter_mut().zip(&factors).for_each(|(x, factor)| *x /= factor);
                }
            }
        }
        Ok(())
    }
}

/// Checks that there is a usable divisor for each column.
fn check(factors: &[f32], n_cols: usize) -> Result<(), Error> {
    if factors.len() != n_cols {
        return Err(Error::Columns { expected: n_cols, found: factors.len() });
    }
    match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
        Some(&found) => Err(Error::Setting { what: "a factor on a column (finite, above 0)", found }),
        None => Ok(()),
    }
}
