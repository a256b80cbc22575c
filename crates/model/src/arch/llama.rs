//! Llama and its many descendants (arXiv 2302.13971), SmolLM2 among them, and Mixtral (arXiv 2401.04088),
//! whose files differ only in that there are experts.
//!
//! Converters permute the projections of queries and keys, so files of this architecture rotate neighboring
//! coordinates.

use breakers_gguf as gguf;

use super::keys;
use super::spec::DecoderSpec;
use crate::Error;
use crate::ops::RopeStyle;

pub(super) fn spec(file: &gguf::File) -> Result<DecoderSpec, Error> {
    keys::check("llama", file.metadata(), keys::READ_WITH_EXPERTS)?;
    // Mixtral takes the softmax over the experts that it has chosen.
    let spec = DecoderSpec::common("llama", file)?.with_experts(file.metadata(), true)?;
    Ok(spec.with_layers(|layer| layer.rope.style = RopeStyle::Interleaved))
}
