//! Llama and its many descendants (arXiv 2302.13971), SmolLM2 among them.
//!
//! Converters permute the projections of queries and keys, so that files of this architecture rotate
//! neighboring coordinates.

use breakers_gguf::Metadata;

use super::DecoderSpec;
use super::keys;
use crate::Error;
use crate::ops::RopeStyle;

pub(super) fn spec(metadata: &Metadata) -> Result<DecoderSpec, Error> {
    keys::check("llama", metadata, &[])?;
    Ok(DecoderSpec { rope: RopeStyle::Interleaved, ..DecoderSpec::common("llama", metadata)? })
}
