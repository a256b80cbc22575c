//! Gemma 3 (arXiv 2503.19786, section 2): five layers with a sliding window, then a global one; norms on
//! query and key heads and behind each sublayer; embeddings scaled by √width.
//!
//! The local layers rotate with base 10,000 and are never scaled; the file gives the global layers' base.
//! Norm weights in GGUF files hold the +1 already.

use breakers_gguf::Metadata;

use super::{DecoderSpec, LayerSpec};
use crate::Error;
use crate::ops::Activation;

/// One layer in so many is global.
const PATTERN: usize = 6;
const LOCAL_BASE: f32 = 10_000.0;
/// Blocks of the 27B model, the only one whose attention is scaled by width / heads instead of head size.
const LAYERS_27B: usize = 62;

pub(super) fn spec(metadata: &Metadata) -> Result<DecoderSpec, Error> {
    let common = DecoderSpec::common("gemma3", metadata)?;
    let window = metadata.require_u32("gemma3.attention.sliding_window")? as usize;
    let layers: Vec<LayerSpec> = common
        .layers
        .iter()
        .enumerate()
        .map(|(i, global)| match (i + 1) % PATTERN {
            0 => *global,
            _ => LayerSpec { rope_base: LOCAL_BASE, rope_scale: 1.0, window: Some(window) },
        })
        .collect();
    let attention_scale = if layers.len() == LAYERS_27B {
        1.0 / ((common.width / common.n_heads.max(1)) as f32).sqrt()
    } else {
        common.attention_scale
    };
    Ok(DecoderSpec {
        embedding_scale: (common.width as f32).sqrt(),
        attention_scale,
        activation: Activation::GeluTanh,
        head_norms: true,
        post_norms: true,
        layers,
        ..common
    })
}
