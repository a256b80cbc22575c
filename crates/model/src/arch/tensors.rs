//! Tensors of a file, by name and with their shapes checked.

use breakers_gguf as gguf;
use breakers_gguf::{MatrixFile, QuantizedMatrix};
use breakers_linear::QuantizedLinear;
use burn::tensor::{Device, Tensor, TensorData};

use super::spec::{DecoderSpec, FeedForwardSpec};
use crate::Error;

/// Reads tensors and checks their shapes.
pub(crate) struct Weights<'a> {
    pub(crate) file: &'a gguf::File,
    /// Tensors that replace those of the file.
    pub(crate) store: Option<&'a MatrixFile>,
    pub(crate) device: &'a Device,
}

/// Fails for a file with tensors that a model of this kind does not use.
///
/// # Errors
/// [`Error::UnreadTensors`] with their names.
pub(crate) fn check_tensors(file: &gguf::File, spec: &DecoderSpec) -> Result<(), Error> {
    let is_read = |name: &str| {
        let Some((block, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            return matches!(
                name,
                "token_embd.weight" | "output.weight" | "output_norm.weight" | "rope_freqs.weight"
            );
        };
        let layer = block.parse::<usize>().ok().filter(|i| i.to_string() == block);
        let Some(layer) = layer.and_then(|i| spec.layers.get(i)) else { return false };
        let has_experts = matches!(layer.feed_forward, FeedForwardSpec::Experts(_));
        match part {
            "attn_norm.weight" | "attn_q.weight" | "attn_k.weight" | "attn_v.weight" => true,
            "attn_output.weight" | "ffn_norm.weight" => true,
            "attn_q.bias" | "attn_k.bias" | "attn_v.bias" | "attn_output.bias" => true,
            "attn_q_norm.weight" | "attn_k_norm.weight" => layer.head_norms,
            "post_attention_norm.weight" | "post_ffw_norm.weight" => layer.post_norms,
            "ffn_gate.weight" | "ffn_up.weight" | "ffn_down.weight" => !has_experts,
            "ffn_gate.bias" | "ffn_up.bias" | "ffn_down.bias" => !has_experts,
            "ffn_gate_inp.weight" => has_experts,
            "ffn_gate_exps.weight" | "ffn_up_exps.weight" | "ffn_down_exps.weight" => has_experts,
            // Angles that old converters wrote in addition to the hyperparameters that determine them.
            "attn_rot_embd.inv_freq" | "attn_rot_embd" => true,
            _ => false,
        }
    };
    let unread: Vec<String> =
        file.tensors().map(|view| view.name().to_owned()).filter(|name| !is_read(name)).collect();
    if unread.is_empty() {
        return Ok(());
    }
    Err(Error::UnreadTensors { architecture: spec.architecture, n_blocks: spec.layers.len(), names: unread })
}

/// The divisors of the rotation's frequencies, which layers with the same number of rotated coordinates
/// share; empty where the file has none.
///
/// # Errors
/// [`Error::TensorShape`].
pub(crate) fn rope_divisors(file: &gguf::File, spec: &DecoderSpec) -> Result<Vec<f32>, Error> {
    let Some(view) = file.tensor("rope_freqs.weight") else { return Ok(Vec::new()) };
    for layer in spec.layers.iter().filter(|layer| layer.rope.has_divisors) {
        expect_shape(&view, &[layer.rope.n_rotated / 2])?;
    }
    Ok(view.to_f32())
}

impl Weights<'_> {
    /// Whether the file, or the file of replacements, has a tensor.
    pub(super) fn has(&self, name: &str) -> bool {
        self.file.tensor(name).is_some() || self.store.is_some_and(|store| store.contains(name))
    }

    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Tensor<1>, Error> {
        let values = match self.store.filter(|store| store.contains(name)) {
            Some(store) => checked(store.matrix(name)?, name, [1, len])?.to_f32(),
            None => {
                let view = self.file.require(name)?;
                expect_shape(&view, &[len])?;
                view.to_f32()
            }
        };
        Ok(Tensor::from_data(TensorData::new(values, [len]), self.device))
    }

    /// A vector that the file may lack.
    pub(super) fn optional_vector(&self, name: &str, len: usize) -> Result<Option<Tensor<1>>, Error> {
        self.has(name).then(|| self.vector(name, len)).transpose()
    }

    /// The biases of matrices whose outputs are side by side, given as (name, length). `None` if the file has
    /// none of them, and zeros for those that are missing.
    pub(super) fn joint_bias(&self, parts: &[(String, usize)]) -> Result<Option<Tensor<1>>, Error> {
        if !parts.iter().any(|(name, _)| self.has(name)) {
            return Ok(None);
        }
        let part = |(name, len): &(String, usize)| {
            Ok(self.optional_vector(name, *len)?.unwrap_or_else(|| Tensor::zeros([*len], self.device)))
        };
        Ok(Some(Tensor::cat(parts.iter().map(part).collect::<Result<_, Error>>()?, 0)))
    }

    /// The embeddings or the head, if the file of replacements has them.
    pub(crate) fn stored_table(&self, name: &str) -> Result<Option<QuantizedMatrix>, Error> {
        Ok(self.store.filter(|store| store.contains(name)).map(|store| store.matrix(name)).transpose()?)
    }

    /// One product with several matrices, given as (name, rows).
    pub(super) fn linear(&self, parts: &[(&str, usize)], n_cols: usize) -> Result<QuantizedLinear, Error> {
        let views = parts
            .iter()
            .map(|&(name, n_rows)| {
                let view = self.file.require(name)?;
                expect_shape(&view, &[n_rows, n_cols])?;
                Ok(view)
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let Some(store) = self.store.filter(|store| parts.iter().any(|(name, _)| store.contains(name)))
        else {
            return Ok(QuantizedLinear::new(views, self.device)?);
        };
        let matrices = parts.iter().zip(&views).map(|(&(name, n_rows), view)| {
            if !store.contains(name) {
                return Ok(QuantizedMatrix::from_gguf(view));
            }
            checked(store.matrix(name)?, name, [n_rows, n_cols])
        });
        let matrices = matrices.collect::<Result<Vec<_>, Error>>()?;
        QuantizedLinear::from_quantized(&matrices, self.device).map_err(Error::in_tensor(parts[0].0))
    }

    /// The matrices of all experts, one stack of `[n_experts, n_rows, n_cols]`.
    ///
    /// # Errors
    /// [`Error::TensorShape`], also for a stack that a file of matrices should replace, because such files
    /// hold single matrices.
    pub(super) fn stack(
        &self,
        name: &str,
        [n_experts, n_rows, n_cols]: [usize; 3],
    ) -> Result<Vec<gguf::TensorView<'_>>, Error> {
        let expected = [n_experts, n_rows, n_cols];
        if let Some(found) = self.store.and_then(|store| store.shape(name)) {
            let (name, expected) = (name.to_owned(), expected.to_vec());
            return Err(Error::TensorShape { name, expected, found: found.to_vec() });
        }
        let view = self.file.require(name)?;
        expect_shape(&view, &expected)?;
        Ok((0..n_experts).filter_map(|expert| view.slab(expert)).collect())
    }
}

pub(super) fn checked(
    matrix: QuantizedMatrix,
    name: &str,
    expected: [usize; 2],
) -> Result<QuantizedMatrix, Error> {
    let found = [matrix.n_rows(), matrix.n_cols()];
    if found == expected {
        return Ok(matrix);
    }
    Err(Error::TensorShape { name: name.to_owned(), expected: expected.into(), found: found.into() })
}

pub(super) fn expect_shape(view: &gguf::TensorView<'_>, expected: &[usize]) -> Result<(), Error> {
    if view.shape() == expected {
        return Ok(());
    }
    Err(Error::TensorShape {
        name: view.name().to_owned(),
        expected: expected.to_vec(),
        found: view.shape().to_vec(),
    })
}
