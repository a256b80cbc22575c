//! Writes a model's file with its matrices in smaller formats: a GGUF file for this crate and for llama.cpp
//! or, for formats that GGUF does not have, a file of the matrices that differ from the source
//! ([`breakers_gguf::matrix_file`]), which [`LoadOptions::matrices`](breakers_model::LoadOptions::matrices)
//! puts in their place.
//!
//! Blocks are processed one after the other: a text is fed to the block with its original weights, the new
//! weights are chosen by the statistics of the inputs, and the text continues through the new weights, so
//! that later blocks see the inputs that they will have later.
//!
//! # Memory
//! With `n` tokens of text, width `d` and the widest input `f` (that of the down projection): 4nd bytes of
//! hidden states; with Hessians 4(f² + 3d²) bytes to collect, and 6f² while the largest is factored; one
//! block of weights, a few times its number of weights in bytes. Qwen2.5-1.5B with 32,768 tokens: 0.2, 0.35,
//! 0.48 and 0.3 GB, 1.33 GB in all, in addition to the mapped file.
//!
//! # Interruptions
//! Each finished tensor is stored in a folder next to the output, `NAME.parts`. If the same job is started
//! again, it uses what is there; a different job clears the folder. The output appears only once it is
//! complete.
//!
//! # Source
//! Block by block, with the errors of earlier blocks in the inputs: Frantar et al., arXiv 2210.17323,
//! section 4. Rotations folded into the weights: Ashkboos et al., "QuaRot", arXiv 2404.00456, section 4,
//! stage 1a. Factors folded into norms and earlier matrices: Lin et al., "AWQ", arXiv 2306.00978, and its
//! code.

mod block;
mod factors;
mod fold;
mod matrix;
mod parts;
mod plan;
mod run;
mod sensitivity;
mod spec;
mod tables;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use breakers_core::TokenId;
use breakers_gguf::{Encoding, Format};

use crate::Error;
use crate::quantizer::Quantizer;

pub use plan::Plan;
pub use sensitivity::{Choice, Sensitivities};
pub use spec::{Formats, JobSpec};

/// A Hadamard rotation with random signs; equal seeds give equal rotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rotate {
    /// A rotation of the hidden states, folded into all matrices. If there are norms after the matrices, as
    /// in Gemma, it cannot be folded, and each matrix's inputs are rotated instead.
    Folded {
        /// Seed of the signs.
        seed: u64,
    },
    /// A rotation of each matrix's inputs, including those of the down projection, which the layers apply as
    /// they run. GGUF files cannot express this.
    Online {
        /// Seed of the signs.
        seed: u64,
    },
}

/// A job for [`quantize`].
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// How to choose the weights of the blocks and the head: a method of this crate or your own. Embeddings,
    /// which are looked up and not multiplied, are rounded to the nearest values, and so is a head without
    /// statistics.
    pub quantizer: Arc<dyn Quantizer>,
    /// A rotation to apply before the method, if any.
    pub rotation: Option<Rotate>,
    /// If embeddings and head are the same numbers except for rounding, write only one table, in the head's
    /// format; the bytes of the other are better spent on the blocks. If they differ, or are rotated, both
    /// are written, and a note says so.
    pub tie: bool,
    /// The text to calibrate with.
    pub tokens: Vec<TokenId>,
    /// Tokens per context; a remainder of the text is dropped.
    pub window: usize,
    /// The fewest tokens for a method that needs a text.
    pub min_tokens: usize,
}

impl QuantizeOptions {
    /// A job without a rotation or tied tables, with windows of 512 tokens.
    pub fn new(quantizer: Arc<dyn Quantizer>, tokens: Vec<TokenId>) -> Self {
        Self { quantizer, rotation: None, tie: false, tokens, window: 512, min_tokens: 2048 }
    }

    /// The text in windows; empty for a method that needs no text.
    fn windows(&self) -> Result<Vec<Vec<TokenId>>, Error> {
        if self.quantizer.needs().is_none() {
            return Ok(Vec::new());
        }
        let windows: Vec<Vec<TokenId>> =
            self.tokens.chunks_exact(self.window.max(1)).map(<[TokenId]>::to_vec).collect();
        let found = windows.len() * self.window;
        if windows.is_empty() || found < self.min_tokens {
            return Err(Error::TooLittleText { expected: self.min_tokens.max(self.window), found });
        }
        Ok(windows)
    }
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Steps done: a block counts as two, each of its matrices as one, and the embeddings and the head as one
    /// each. While sensitivities are measured, the number of matrices done.
    pub done: usize,
    /// Steps in all.
    pub steps: usize,
    /// The current stage.
    pub stage: Stage,
}

/// A stage of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Each matrix is rounded on its own, to see what the model loses ([`Sensitivities::measure`]).
    Measuring,
    /// The text runs through a block.
    Reading {
        /// The block.
        block: usize,
        /// Windows of text done.
        windows: usize,
    },
    /// Weights are chosen.
    Quantizing,
    /// The file is assembled.
    Writing,
}

/// The result for a matrix.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TensorReport {
    /// The tensor.
    pub name: String,
    /// Its format in the source.
    pub from: Format,
    /// Its format in the output.
    pub to: Encoding,
    /// Whether the bytes were copied because the format is the same.
    pub kept: bool,
    /// The squared error of its weights over their squares.
    pub weight_error: f64,
    /// The squared error of its outputs on calibration inputs, over their squares.
    pub output_error: Option<f64>,
    /// The Hessian's damping, if one was factored.
    pub damping: Option<f32>,
}

/// The result of a job.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct QuantizeReport {
    /// All matrices, in the order of the file. Those from an interrupted run have no errors.
    pub tensors: Vec<TensorReport>,
    /// Tokens of text that were used.
    pub n_tokens: usize,
    /// Bytes of the output.
    pub bytes: u64,
    /// Time for feeding the text, including statistics.
    pub reading: Duration,
    /// The part of it for statistics, mostly Hessians.
    pub observing: Duration,
    /// Time for choosing weights.
    pub quantizing: Duration,
    /// The total time.
    pub total: Duration,
    /// How many tensors came from an interrupted run.
    pub resumed: usize,
    /// What was done differently from what was requested, and why.
    pub notes: Vec<String>,
}

/// Writes `out` with the matrices of `source` in the formats of the plan: if its name ends in `.safetensors`,
/// a file of what differs from the source; otherwise a complete GGUF file.
///
/// # Errors
/// [`Error::NotOfGguf`] for a GGUF file with a format of our own, [`Error::Tensor`] with an
/// [`Error::Unsuited`] for a method that cannot choose weights of a format, with an [`Error::NotFinite`] for
/// weights that are not finite and with an [`Error::WrongMatrix`] for a quantizer that gives another matrix
/// than it was asked for, [`Error::Gguf`] and [`Error::Model`] for a damaged source, [`Error::TooLittleText`]
/// for a method that needs more, [`Error::Unfoldable`] for a rotation of a model that allows none,
/// [`Error::Io`] when the disk fails.
pub fn quantize(
    source: impl AsRef<Path>,
    out: impl AsRef<Path>,
    plan: &Plan,
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<QuantizeReport, Error> {
    run::run(source.as_ref(), out.as_ref(), plan, options, progress)
}

/// The folder that holds the finished tensors of an output.
pub fn parts_folder(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".parts");
    out.with_file_name(name)
}
