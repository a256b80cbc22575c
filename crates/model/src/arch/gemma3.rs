//! Gemma 3 (arXiv 2503.19786, section 2): five layers with a sliding window, then a global one; norms on
//! query and key heads and behind each sublayer; embeddings scaled by √width.
//!
//! The local layers rotate with base 10,000 unless the file says another, and are never scaled; a file without a window
//! has global layers alone.
//! Norm weights in GGUF files hold the +1 already.

use breakers_gguf::Metadata;

use super::{DecoderSpec, LayerSpec, keys};
use crate::Error;
use crate::ops::Activation;

/// One layer in so many is global, where the file does not say it.
const PATTERN: usize = 6;
/// Base of the local layers, where the file does not say it.
const LOCAL_BASE: f32 = 10_000.0;
/// Blocks of the 27B model, the only one whose attention is scaled by width / heads instead of head size.
const LAYERS_27B: usize = 62;

pub(super) fn spec(metadata: &Metadata) -> Result<DecoderSpec, Error> {
    let common = DecoderSpec::common("gemma3", metadata)?;
    keys::check("gemma3", metadata, keys::READ_WITH_WINDOWS)?;
    let n_layers = common.layers.len();
    let pattern = "gemma3.attention.sliding_window_pattern";
    let windowed = keys::windowed(metadata, pattern, PATTERN, n_layers)?;
    let local_base = keys::float(metadata, "gemma3.rope.freq_base_swa")?.unwrap_or(LOCAL_BASE);
    let layers: Vec<LayerSpec> = common
        .layers
        .iter()
        .zip(windowed)
        .map(|(layer, windowed)| match layer.window {
            Some(_) if windowed => LayerSpec { rope_base: local_base, rope_scale: 1.0, ..*layer },
            _ => LayerSpec { window: None, ..*layer },
        })
        .collect();
    let attention_scale = if metadata.get("gemma3.attention.scale").is_none() && layers.len() == LAYERS_27B {
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
