//! Qwen2 and Qwen2.5 (arXiv 2407.10671): Llama's block with biases on queries, keys and values.

use breakers_gguf as gguf;

use super::keys;
use super::spec::DecoderSpec;
use crate::Error;

pub(super) fn spec(file: &gguf::File) -> Result<DecoderSpec, Error> {
    keys::check("qwen2", file.metadata(), &[])?;
    Ok(DecoderSpec::common("qwen2", file)?.with_layers(|layer| layer.qkv_bias = true))
}
