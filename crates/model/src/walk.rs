//! A text through a model, one block at a time, for code that changes the weights on the way.
//!
//! # Memory
//! The hidden states of all tokens, 4 bytes × width × tokens, and the weights of one block. Data that an
//! observer collects is not included.

use std::sync::Arc;

use breakers_core::{BoxError, TokenId};
use breakers_cpu::hadamard::Rotation;
use breakers_gguf as gguf;
use breakers_gguf::MatrixFile;
use breakers_kv_cache::{Visible, attention};
use breakers_linear::{QuantizedEmbedding, QuantizedLinear};
use burn::tensor::{Device, Tensor, TensorData};

use crate::Error;
use crate::arch;
use crate::arch::block::{Block, norm};
use crate::arch::decoder::finish_logits;
use crate::arch::spec::{DecoderSpec, FeedForwardSpec};
use crate::arch::tensors::{Weights, check_tensors, rope_divisors};
use crate::ops::RopeTable;
use crate::{InputObserver, InputSite};

/// Hidden states of a text between two blocks of a causal model, on the CPU.
///
/// # Example
/// ```no_run
/// use breakers_core::BoxError;
/// use breakers_gguf as gguf;
/// use breakers_model::walk::BlockWalk;
/// use breakers_model::{InputObserver, InputSite};
///
/// /// Prints the largest input of each place.
/// struct Largest;
///
/// impl InputObserver for Largest {
///     fn observe(&mut self, site: InputSite, rows: &[f32], _: usize) -> Result<(), BoxError> {
///         println!("{site:?}: {}", rows.iter().fold(0.0f32, |most, x| most.max(x.abs())));
///         Ok(())
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let file = gguf::File::open("model.gguf")?;
/// let mut walk = BlockWalk::new(&file, vec![vec![1, 2, 3, 4]])?;
/// for block in 0..walk.n_blocks() {
///     walk.run(&file, block, None, Some(&mut Largest), true, &mut |_| ())?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct BlockWalk {
    spec: DecoderSpec,
    /// For each window its hidden states, `[tokens, width]`.
    hidden: Vec<Vec<f32>>,
    rope_divisors: Vec<f32>,
    matrices: Option<Arc<MatrixFile>>,
    device: Device,
}

impl BlockWalk {
    /// Looks up the embeddings of the windows' tokens. Windows do not see each other.
    ///
    /// # Errors
    /// [`Error::Gguf`] for a file that lacks the embeddings, [`Error::Linear`] for a token without one; those
    /// of the hyperparameters; [`Error::WindowLength`] for a window that is empty or longer than the model's
    /// context; [`Error::Hyperparameter`] for a model with experts, whose inputs cannot be observed yet.
    pub fn new(file: &gguf::File, windows: Vec<Vec<TokenId>>) -> Result<Self, Error> {
        Self::with_matrices(file, None, windows)
    }

    /// As [`new`](Self::new), for a model with a file of replacement matrices.
    ///
    /// # Errors
    /// As [`new`](Self::new), and those of a matrix of that file that does not fit.
    pub fn with_matrices(
        file: &gguf::File,
        matrices: Option<Arc<MatrixFile>>,
        windows: Vec<Vec<TokenId>>,
    ) -> Result<Self, Error> {
        let device = Device::flex();
        let spec = arch::decoder_spec(file)?;
        check_tensors(file, &spec)?;
        refuse_experts(&spec)?;
        let weights = Weights { file, store: matrices.as_deref(), device: &device };
        let table = match weights.stored_table("token_embd.weight")? {
            Some(table) => QuantizedEmbedding::from_quantized(&table)?,
            None => QuantizedEmbedding::new(file.require("token_embd.weight")?, &device)?,
        };
        let mut hidden = Vec::with_capacity(windows.len());
        for window in &windows {
            if window.is_empty() || window.len() > spec.max_context {
                return Err(Error::WindowLength { limit: spec.max_context, found: window.len() });
            }
            let mut x = to_vec(table.lookup(window, &device)?)?;
            x.iter_mut().for_each(|x| *x *= spec.embedding_scale);
            hidden.push(x);
        }
        let rope_divisors = rope_divisors(file, &spec)?;
        Ok(Self { spec, hidden, rope_divisors, matrices, device })
    }

    /// Blocks of the model.
    pub fn n_blocks(&self) -> usize {
        self.spec.layers.len()
    }

    /// Width of the hidden states.
    pub fn width(&self) -> usize {
        self.spec.width
    }

    /// Windows of text.
    pub fn n_windows(&self) -> usize {
        self.hidden.len()
    }

    /// Whether the outputs of attention and feed-forward are normalized before they are added, which keeps
    /// rotations of the hidden states from being folded into the weights.
    pub fn has_post_norms(&self) -> bool {
        self.spec.layers.iter().any(|layer| layer.post_norms)
    }

    /// Query heads for each key and value head, in the block that has the most.
    pub fn queries_per_key(&self) -> usize {
        self.spec.layers.iter().map(|layer| layer.n_heads / layer.n_kv_heads).max().unwrap_or(1)
    }

    /// Feeds all windows to a block with the weights in `file`, and calls `progress` after each window. With
    /// `rotation` the weights are those for rotated hidden states. With `advance` the hidden states are
    /// replaced by the block's output; otherwise they stay the same.
    ///
    /// # Errors
    /// [`Error::Gguf`] and [`Error::TensorShape`] for a file without the block's weights,
    /// [`Error::BlockIndex`], [`Error::Observer`].
    pub fn run(
        &mut self,
        file: &gguf::File,
        block_idx: usize,
        rotation: Option<&Rotation>,
        mut observer: Option<&mut dyn InputObserver>,
        advance: bool,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(), Error> {
        let Some(layer) = self.spec.layers.get(block_idx).cloned() else {
            return Err(Error::BlockIndex { n_blocks: self.n_blocks(), found: block_idx });
        };
        let spec = &self.spec;
        let store = self.matrices.as_deref();
        let block = Block::load(&Weights { file, store, device: &self.device }, spec, block_idx)?;
        let mut observe = |site: InputSite, rows: &Tensor<2>| -> Result<(), Error> {
            if let Some(observer) = &mut observer {
                let n_cols = rows.dims()[1];
                observer.observe(site, &to_vec(rows.clone())?, n_cols).map_err(Error::Observer)?;
            }
            Ok(())
        };
        let mut table: Option<(usize, RopeTable)> = None;
        for (i, hidden) in self.hidden.iter_mut().enumerate() {
            let n = hidden.len() / spec.width;
            let table = match table.take() {
                Some(found) if found.0 == n => table.insert(found),
                _ => {
                    let positions: Vec<usize> = (0..n).collect();
                    let made = layer.rope.table(&positions, &self.rope_divisors, &self.device);
                    table.insert((n, made))
                }
            };
            let mut states = hidden.clone();
            if let Some(rotation) = rotation {
                rotation.forward(&mut states).map_err(breakers_linear::Error::from)?;
            }
            let x = Tensor::<2>::from_data(TensorData::new(states, [n, spec.width]), &self.device);
            let heads = block.heads(&x, &table.1, &mut observe)?;
            let visible = Visible::causal(0, n, layer.window);
            let attended = attention(heads.q, heads.k, heads.v, &visible, layer.attention_scale)?;
            let x = block.finish(x, attended, &mut observe)?;
            if advance {
                *hidden = to_vec(x)?;
                if let Some(rotation) = rotation {
                    rotation.inverse(hidden).map_err(breakers_linear::Error::from)?;
                }
            }
            progress(i + 1);
        }
        Ok(())
    }

    /// Calls `see` with the inputs of the head, `[tokens, width]`, one window after the other.
    ///
    /// # Errors
    /// [`Error::Gguf`] and [`Error::TensorShape`] for a file without the last norm, [`Error::Observer`] with
    /// the error of `see`.
    pub fn head_inputs(
        &self,
        file: &gguf::File,
        mut see: impl FnMut(&[f32]) -> Result<(), BoxError>,
    ) -> Result<(), Error> {
        let weights = Weights { file, store: self.matrices.as_deref(), device: &self.device };
        let weight = weights.vector("output_norm.weight", self.spec.width)?;
        for hidden in &self.hidden {
            let n = hidden.len() / self.spec.width;
            let data = TensorData::new(hidden.clone(), [n, self.spec.width]);
            let rows = Tensor::from_data(data, &self.device);
            see(&to_vec(norm(rows, &weight, self.spec.norm_eps))?).map_err(Error::Observer)?;
        }
        Ok(())
    }

    /// The logits of every `every`-th token of each window, the `every`-th first.
    ///
    /// # Errors
    /// [`Error::Gguf`] and [`Error::TensorShape`] for a file without the last norm or a head,
    /// [`Error::Linear`] for a head that cannot be used in a product.
    pub fn logits(&self, file: &gguf::File, every: usize) -> Result<Vec<Vec<f32>>, Error> {
        let every = every.max(1);
        let weights = Weights { file, store: self.matrices.as_deref(), device: &self.device };
        let name = match file.tensor("output.weight") {
            None if weights.stored_table("output.weight")?.is_none() => "token_embd.weight",
            _ => "output.weight",
        };
        let head = match weights.stored_table(name)? {
            Some(table) => QuantizedLinear::from_quantized(&[table], &self.device)?,
            None => QuantizedLinear::new(vec![file.require(name)?], &self.device)?,
        };
        let tokens = file.metadata().strings("tokenizer.ggml.tokens")?;
        let n_tokens = tokens.map_or(head.n_outputs(), |tokens| tokens.len());
        let (width, mut out) = (self.spec.width, Vec::new());
        self.head_inputs(file, |rows| {
            let kept: Vec<f32> =
                rows.chunks_exact(width).skip(every - 1).step_by(every).flatten().copied().collect();
            let n = kept.len() / width;
            if n == 0 {
                return Ok(());
            }
            let x = Tensor::<2>::from_data(TensorData::new(kept, [n, width]), &self.device);
            let logits = finish_logits(head.forward(x), n_tokens, self.spec.logit_cap);
            let n_logits = logits.dims()[1];
            out.extend(to_vec(logits)?.chunks_exact(n_logits).map(<[f32]>::to_vec));
            Ok(())
        })?;
        Ok(out)
    }
}

/// Fails for a model whose feed-forward layers have inputs without an [`InputSite`].
fn refuse_experts(spec: &DecoderSpec) -> Result<(), Error> {
    let experts = spec.layers.iter().find_map(|layer| match layer.feed_forward {
        FeedForwardSpec::Experts(experts) => Some(experts),
        FeedForwardSpec::Dense { .. } => None,
    });
    match experts {
        None => Ok(()),
        Some(experts) => Err(Error::Hyperparameter {
            name: format!("{}.expert_count", spec.architecture),
            expected: "0, since experts cannot be calibrated or quantized yet".to_owned(),
            found: experts.n_experts.to_string(),
        }),
    }
}

fn to_vec(tensor: Tensor<2>) -> Result<Vec<f32>, Error> {
    tensor.into_data().try_into_vec::<f32>().map_err(Error::tensor_data)
}

impl std::fmt::Debug for BlockWalk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockWalk").field("spec", &self.spec).field("windows", &self.hidden.len()).finish()
    }
}
