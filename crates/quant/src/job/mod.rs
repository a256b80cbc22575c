//! A model's file with its matrices in smaller formats: GGUF for this crate and for llama.cpp, or, for
//! formats that GGUF lacks, a file of what differs from the source ([`breakers_gguf::matrix_file`]), which
//! [`LoadOptions::matrices`](breakers_model::LoadOptions::matrices) lays over it.
//!
//! Blocks are taken one after the other: a text is fed to the block with its original weights, the statistics
//! of its inputs choose the new ones, and the text goes on through those, so that later blocks see what they
//! will see.
//!
//! # Memory
//! With `n` tokens of text, width `d` and the widest input `f` (that of the down projection): 4nd bytes of
//! hidden states; with Hessians 4(f² + 3d²) bytes to collect, and 6f² while the largest is factored; one
//! block of weights, a few times its number of weights in bytes. Qwen2.5-1.5B with 32,768 tokens: 0.2, 0.35,
//! 0.48 and 0.3 GB, 1.33 GB in all beside the mapped file.
//!
//! # Interruptions
//! Each finished tensor goes to a folder beside the output, `NAME.parts`. The same job, begun again, takes
//! what is there; another one clears the folder. The output appears whole, when all is done.
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

/// A Hadamard rotation with random signs; equal seeds give equal ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rotate {
    /// Of the hidden states, folded into all matrices. Where norms stand behind the matrices, as Gemma's do,
    /// they cannot be folded, and each matrix's inputs are rotated instead.
    Folded {
        /// Seed of the signs.
        seed: u64,
    },
    /// Of each matrix's inputs, those of the down projection too, which layers rotate as they run. GGUF
    /// cannot say that.
    Online {
        /// Seed of the signs.
        seed: u64,
    },
}

/// A job for [`quantize`].
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// How the weights of the blocks and the head are chosen: a method of this crate or one's own.
    /// Embeddings, which are looked up and not multiplied, are rounded to the nearest values, as is a head
    /// without statistics.
    pub quantizer: Arc<dyn Quantizer>,
    /// A rotation ahead of the method, `None` for none.
    pub rotation: Option<Rotate>,
    /// Write one table where embeddings and head are the same numbers but for rounding, in the head's format:
    /// the other one's bytes are worth more in the blocks. Where they are not, or are rotated, both are
    /// written, and a note says so.
    pub tie: bool,
    /// The text to calibrate with.
    pub tokens: Vec<TokenId>,
    /// Tokens that are read in one context; a remainder of the text is dropped.
    pub window: usize,
    /// Fewest tokens that a method which needs a text is content with.
    pub min_tokens: usize,
}

impl QuantizeOptions {
    /// A job without a rotation or tied tables, with windows of 512 tokens.
    pub fn new(quantizer: Arc<dyn Quantizer>, tokens: Vec<TokenId>) -> Self {
        Self { quantizer, rotation: None, tie: false, tokens, window: 512, min_tokens: 2048 }
    }

    /// The text in windows; none for a method that needs no text.
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
    /// Steps done: a block takes two and its matrices one each, the embeddings and the head one each. While a
    /// plan is measured, matrices done.
    pub done: usize,
    /// Steps in all.
    pub steps: usize,
    /// What is being done.
    pub stage: Stage,
}

/// What a job is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Each matrix is rounded alone, to see what the model loses by it ([`Sensitivities::measure`]).
    Measuring,
    /// The text passes through a block.
    Reading {
        /// The block.
        block: usize,
        /// Windows of text done.
        windows: usize,
    },
    /// Weights are chosen.
    Quantizing,
    /// The file is put together.
    Writing,
}

/// What became of a matrix.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TensorReport {
    /// The tensor.
    pub name: String,
    /// Its format in the source.
    pub from: Format,
    /// Its format in the output.
    pub to: Encoding,
    /// Whether the bytes were taken over, since the format is the same.
    pub kept: bool,
    /// The squared error of its weights over their squares.
    pub weight_error: f64,
    /// The squared error of its outputs on calibration inputs, over their squares.
    pub output_error: Option<f64>,
    /// The Hessian's damping, where one was factored.
    pub damping: Option<f32>,
}

/// What a job did.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct QuantizeReport {
    /// All matrices, in the order of the file. Those found from an interrupted run have no errors.
    pub tensors: Vec<TensorReport>,
    /// Tokens of text that were used.
    pub n_tokens: usize,
    /// Bytes of the output.
    pub bytes: u64,
    /// Feeding the text, statistics included.
    pub reading: Duration,
    /// The statistics' part of it: Hessians above all.
    pub observing: Duration,
    /// Choosing weights.
    pub quantizing: Duration,
    /// All of it.
    pub total: Duration,
    /// Tensors that were found from an interrupted run.
    pub resumed: usize,
    /// What was done otherwise than asked for, and why.
    pub notes: Vec<String>,
}

/// Writes `out` with the matrices of `source` in the formats of the plan: a file of what differs from the
/// source if its name ends in `.safetensors`, otherwise a GGUF file of its own.
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

/// The folder where finished tensors of an output wait.
pub fn parts_folder(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".parts");
    out.with_file_name(name)
}
