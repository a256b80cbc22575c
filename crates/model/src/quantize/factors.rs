//! AWQ's factors in a whole block.

use std::collections::BTreeMap;

use breakers_gguf::{Encoding, Format};
use breakers_quant::quantizer::WeightMatrix;
use breakers_quant::quantizers::{Awq, AwqConfig};
use breakers_quant::statistics::{InputSite, Statistics};

use super::fold::{divide_rows, scale_columns};
use super::job::{Job, Matrix, require};
use crate::Error;

impl Job<'_> {
    /// AWQ's factors: onto the columns of the matrices, off the norms or the rows of the matrices before.
    pub(super) fn fold_factors(
        &mut self,
        prefix: &str,
        config: AwqConfig,
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
                let note = "awq: several query heads share a value head, so that the output projection is not scaled";
                if !self.report.notes.iter().any(|found| found == note) {
                    self.report.notes.push(note.to_owned());
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
            let weights = WeightMatrix::new(&together, together.len() / n_cols.max(1), n_cols)
                .map_err(Error::in_tensor(&name(site.matrices()[0])))?;
            let (factors, _) = Awq::new(encoding, config).search(&weights, found)?;
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
