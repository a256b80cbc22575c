//! The part of a block after attention: one gated feed-forward layer, or experts, of which a router chooses
//! some for each row.
//!
//! # Source
//! Gated layers: Shazeer, arXiv 2002.05202. Experts: Shazeer et al., arXiv 1701.06538, without the noise and
//! the losses, which are for training; the softmax over all experts and the sum of the chosen ones are those
//! of Mixtral, arXiv 2401.04088, section 2.1 (a softmax over the chosen ones is the same numbers).

use breakers_cpu::math;
use breakers_linear::QuantizedLinear;
use burn::tensor::{Device, Int, Tensor, TensorData};
use tracing::trace_span;

use super::block::{Observe, biased};
use super::spec::{ExpertsSpec, FeedForwardSpec, LayerSpec};
use super::tensors::Weights;
use crate::ops::{Activation, gated_activation};
use crate::{Error, InputSite};

/// A block's feed-forward part.
pub(super) enum FeedForward {
    Dense(Box<Dense>),
    Experts(Experts),
}

/// `down(act(gate x) · up x)`, with biases where the file has them.
pub(super) struct Dense {
    gate_up: QuantizedLinear,
    gate_up_bias: Option<Tensor<1>>,
    down: QuantizedLinear,
    down_bias: Option<Tensor<1>>,
}

/// Experts and their router.
///
/// # Cost
/// The router's scores are read back from a device, once for each layer. An expert runs once for all rows
/// that chose it.
pub(super) struct Experts {
    spec: ExpertsSpec,
    router: QuantizedLinear,
    experts: Vec<Expert>,
}

/// One of them.
struct Expert {
    gate_up: QuantizedLinear,
    down: QuantizedLinear,
}

/// The matrix products of one row.
pub(super) struct Products<'a> {
    pub(super) router: Option<&'a QuantizedLinear>,
    pub(super) gate_up: Vec<&'a QuantizedLinear>,
    pub(super) down: Vec<&'a QuantizedLinear>,
}

impl FeedForward {
    pub(super) fn load(
        weights: &Weights<'_>,
        layer: &LayerSpec,
        width: usize,
        i: usize,
    ) -> Result<Self, Error> {
        match layer.feed_forward {
            FeedForwardSpec::Dense { width: inner } => {
                let dense = Dense::load(weights, i, width, inner)?;
                Ok(Self::Dense(Box::new(dense)))
            }
            FeedForwardSpec::Experts(spec) => Experts::load(weights, i, width, spec).map(Self::Experts),
        }
    }

    /// # Shapes
    /// `x`: `[n_rows, width]`, normalized; the result has the same.
    pub(super) fn forward(
        &self,
        x: Tensor<2>,
        activation: Activation,
        observe: &mut Observe<'_>,
    ) -> Result<Tensor<2>, Error> {
        match self {
            Self::Dense(dense) => dense.forward(x, activation, observe),
            Self::Experts(experts) => experts.forward(x, activation),
        }
    }

    /// Bytes of packed weights.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.gate_up.bytes() + dense.down.bytes(),
            Self::Experts(Experts { router, experts, .. }) => {
                let expert = |expert: &Expert| expert.gate_up.bytes() + expert.down.bytes();
                router.bytes() + experts.iter().map(expert).sum::<usize>()
            }
        }
    }

    /// The products of one row: of experts, as many as a row has.
    pub(super) fn products(&self) -> Products<'_> {
        match self {
            Self::Dense(dense) => {
                Products { router: None, gate_up: vec![&dense.gate_up], down: vec![&dense.down] }
            }
            Self::Experts(Experts { spec, router, experts }) => {
                let used = experts.iter().take(spec.n_used);
                let (gate_up, down) = used.map(|expert| (&expert.gate_up, &expert.down)).unzip();
                Products { router: Some(router), gate_up, down }
            }
        }
    }
}

impl Dense {
    fn load(weights: &Weights<'_>, i: usize, width: usize, inner: usize) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{i}.{part}");
        Ok(Self {
            gate_up: weights
                .linear(&[(&name("ffn_gate.weight"), inner), (&name("ffn_up.weight"), inner)], width)?,
            gate_up_bias: weights
                .joint_bias(&[(name("ffn_gate.bias"), inner), (name("ffn_up.bias"), inner)])?,
            down: weights.linear(&[(&name("ffn_down.weight"), width)], inner)?,
            down_bias: weights.optional_vector(&name("ffn_down.bias"), width)?,
        })
    }

    fn forward(
        &self,
        x: Tensor<2>,
        activation: Activation,
        observe: &mut Observe<'_>,
    ) -> Result<Tensor<2>, Error> {
        observe(InputSite::FeedForward, &x)?;
        let gate_up = trace_span!("gate_up").in_scope(|| self.gate_up.forward(x));
        let gate_up = biased(gate_up, &self.gate_up_bias);
        let activated = trace_span!("activation").in_scope(|| gated_activation(gate_up, activation));
        observe(InputSite::FeedForwardOut, &activated)?;
        let out = trace_span!("down").in_scope(|| self.down.forward(activated));
        Ok(biased(out, &self.down_bias))
    }
}

impl Experts {
    fn load(weights: &Weights<'_>, i: usize, width: usize, spec: ExpertsSpec) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{i}.{part}");
        let (n, inner, device) = (spec.n_experts, spec.width, weights.device);
        let gates = weights.stack(&name("ffn_gate_exps.weight"), [n, inner, width])?;
        let ups = weights.stack(&name("ffn_up_exps.weight"), [n, inner, width])?;
        let downs = weights.stack(&name("ffn_down_exps.weight"), [n, width, inner])?;
        let experts = gates.into_iter().zip(ups).zip(downs).map(|((gate, up), down)| {
            let gate_up = QuantizedLinear::new(vec![gate, up], device)?;
            Ok(Expert { gate_up, down: QuantizedLinear::new(vec![down], device)? })
        });
        Ok(Self {
            spec,
            router: weights.linear(&[(&name("ffn_gate_inp.weight"), n)], width)?,
            experts: experts.collect::<Result<_, Error>>()?,
        })
    }

    fn forward(&self, x: Tensor<2>, activation: Activation) -> Result<Tensor<2>, Error> {
        let (n_rows, n_used, device) = (x.dims()[0], self.spec.n_used, x.device());
        if n_rows == 0 {
            return Ok(x);
        }
        let scores = trace_span!("router").in_scope(|| self.router.forward(x.clone()));
        let scores: Vec<f32> = scores.into_data().try_into_vec().map_err(Error::tensor_data)?;
        let chosen: Vec<(usize, f32)> =
            scores.chunks_exact(self.spec.n_experts).flat_map(|scores| choose(scores, &self.spec)).collect();
        // The experts' outputs, one expert after the other, and the position of each (row, rank) among them.
        let mut outputs = Vec::new();
        let mut places = vec![0; chosen.len()];
        let mut n_placed = 0;
        for (i, expert) in self.experts.iter().enumerate() {
            let mine: Vec<usize> = (0..chosen.len()).filter(|at| chosen[*at].0 == i).collect();
            if mine.is_empty() {
                continue;
            }
            let rows = x.clone().select(0, indices(mine.iter().map(|at| at / n_used), &device));
            let gate_up = trace_span!("gate_up").in_scope(|| expert.gate_up.forward(rows));
            let activated = trace_span!("activation").in_scope(|| gated_activation(gate_up, activation));
            outputs.push(trace_span!("down").in_scope(|| expert.down.forward(activated)));
            for at in mine {
                places[at] = n_placed;
                n_placed += 1;
            }
        }
        let outputs = Tensor::cat(outputs, 0);
        // Summed by rank, so that a row's bits do not depend on its neighbors' choices.
        let ranked = (0..n_used).map(|rank| {
            let of_rank = |row: usize| row * n_used + rank;
            let weights: Vec<f32> = (0..n_rows).map(|row| chosen[of_rank(row)].1).collect();
            let weights = Tensor::<2>::from_data(TensorData::new(weights, [n_rows, 1]), &device);
            let rows = (0..n_rows).map(|row| places[of_rank(row)]);
            outputs.clone().select(0, indices(rows, &device)) * weights
        });
        Ok(ranked.reduce(|sum, part| sum + part).unwrap_or(x))
    }
}

fn indices(rows: impl Iterator<Item = usize>, device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.map(|row| row as i32).collect();
    let n = rows.len();
    Tensor::from_data(TensorData::new(rows, [n]), device)
}

/// A row's experts and their weights, largest first; among equal ones, the one with the lower number comes
/// first.
fn choose(scores: &[f32], spec: &ExpertsSpec) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    let largest = scores[order[0]];
    let weight = |expert: usize| math::exp(scores[expert] - largest);
    let used = &order[..spec.n_used];
    let sum: f32 = match spec.normalized {
        true => used.iter().map(|expert| weight(*expert)).sum(),
        false => (0..scores.len()).map(weight).sum(),
    };
    used.iter().map(|&expert| (expert, weight(expert) / sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_experts_are_chosen_and_weighted() {
        let scores = [0.0, 2.0f32.ln(), 3.0f32.ln(), 3.0f32.ln()];
        for (n_used, normalized, expected) in [
            (1, false, &[(2, 3.0 / 9.0)][..]),
            (1, true, &[(2, 1.0)]),
            (3, false, &[(2, 3.0 / 9.0), (3, 3.0 / 9.0), (1, 2.0 / 9.0)]),
            (3, true, &[(2, 3.0 / 8.0), (3, 3.0 / 8.0), (1, 2.0 / 8.0)]),
        ] {
            let spec = ExpertsSpec { n_experts: 4, n_used, width: 1, normalized };
            let found = choose(&scores, &spec);
            assert_eq!(found.len(), n_used);
            for (found, expected) in found.iter().zip(expected) {
                assert_eq!(found.0, expected.0);
                assert!((found.1 - expected.1).abs() < 1e-6, "{found:?}, expected {expected:?}");
            }
        }
    }
}
