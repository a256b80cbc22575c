//! Qwen2 and Qwen2.5 (arXiv 2407.10671): Llama's block with biases on queries, keys and values.

use breakers_gguf::Metadata;

use super::DecoderSpec;
use super::keys;
use crate::Error;

pub(super) fn spec(metadata: &Metadata) -> Result<DecoderSpec, Error> {
    keys::check("qwen2", metadata, &[])?;
    Ok(DecoderSpec { qkv_bias: true, ..DecoderSpec::common("qwen2", metadata)? })
}
