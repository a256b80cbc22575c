//! Qwen3 (arXiv 2505.09388): Llama's block with norms on query and key heads, whose size is not width /
//! heads; and its models with experts, which divide the weights of the chosen experts by their sum.

use breakers_gguf as gguf;

use super::keys;
use super::spec::DecoderSpec;
use crate::Error;

pub(super) fn spec(file: &gguf::File) -> Result<DecoderSpec, Error> {
    keys::check("qwen3", file.metadata(), &[])?;
    Ok(DecoderSpec::common("qwen3", file)?.with_layers(|layer| layer.head_norms = true))
}

pub(super) fn spec_of_experts(file: &gguf::File) -> Result<DecoderSpec, Error> {
    keys::check("qwen3moe", file.metadata(), keys::READ_WITH_EXPERTS)?;
    let spec = DecoderSpec::common("qwen3moe", file)?.with_experts(file.metadata(), true)?;
    Ok(spec.with_layers(|layer| layer.head_norms = true))
}
