//! Architectures: what distinguishes one family of models from another, one file each.
//!
//! A causal architecture is a function from the file's hyperparameters to a [`DecoderSpec`], a table with a
//! row for each layer; the block itself is in [`block`]. To add an architecture, write such a file and list
//! it in [`ARCHITECTURES`].

pub(crate) mod block;
pub(crate) mod decoder;
mod feed_forward;
mod gemma3;
mod keys;
mod llama;
mod qwen2;
mod qwen3;
pub(crate) mod spec;
pub(crate) mod tensors;

use breakers_gguf as gguf;

use self::spec::DecoderSpec;
use crate::Error;

/// Reads the table of one architecture.
type ReadSpec = fn(&gguf::File) -> Result<DecoderSpec, Error>;

/// All causal architectures, by the name in `general.architecture`.
const ARCHITECTURES: [(&str, ReadSpec); 5] = [
    ("llama", llama::spec),
    ("qwen2", qwen2::spec),
    ("qwen3", qwen3::spec),
    ("qwen3moe", qwen3::spec_of_experts),
    ("gemma3", gemma3::spec),
];

/// Their names.
const KNOWN: [&str; ARCHITECTURES.len()] = {
    let mut names = [""; ARCHITECTURES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = ARCHITECTURES[i].0;
        i += 1;
    }
    names
};

/// Reads the hyperparameters of a causal model.
///
/// # Errors
/// [`Error::UnknownArchitecture`], and those of missing, impossible or unsupported hyperparameters.
pub(crate) fn decoder_spec(file: &gguf::File) -> Result<DecoderSpec, Error> {
    let name = file.metadata().require_str("general.architecture")?;
    let Some((_, read)) = ARCHITECTURES.iter().find(|(known, _)| *known == name) else {
        return Err(Error::UnknownArchitecture { found: name.to_owned(), known: &KNOWN });
    };
    let spec = read(file)?;
    spec.check()?;
    Ok(spec)
}
