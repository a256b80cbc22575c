//! Gemma 3 (arXiv 2503.19786, section 2): five layers with a sliding window, then a global one; norms on
//! query and key heads and after each sublayer; embeddings scaled by √width.
//!
//! The local layers rotate with base 10,000 unless the file says otherwise, and are never scaled. A file
//! without a window has only global layers. Norm weights in GGUF files already include the +1.

use breakers_gguf as gguf;

use super::keys;
use super::spec::DecoderSpec;
use crate::Error;
use crate::ops::Activation;

/// One layer in this many is global, unless the file says otherwise.
const PATTERN: usize = 6;
/// Base of the local layers, unless the file says otherwise.
const LOCAL_BASE: f32 = 10_000.0;
/// Blocks of the 27B model, the only one whose attention is scaled by width / heads instead of head size.
const LAYERS_27B: usize = 62;

pub(super) fn spec(file: &gguf::File) -> Result<DecoderSpec, Error> {
    let metadata = file.metadata();
    let mut spec = DecoderSpec::common("gemma3", file)?;
    keys::check("gemma3", metadata, keys::READ_WITH_WINDOWS)?;
    let (n_layers, width) = (spec.layers.len(), spec.width);
    let pattern = "gemma3.attention.sliding_window_pattern";
    let windowed = keys::windowed(metadata, pattern, PATTERN, n_layers)?;
    let local_base = keys::float(metadata, "gemma3.rope.freq_base_swa")?.unwrap_or(LOCAL_BASE);
    let is_27b = metadata.get("gemma3.attention.scale").is_none() && n_layers == LAYERS_27B;
    for (layer, windowed) in spec.layers.iter_mut().zip(windowed) {
        if windowed && layer.window.is_some() {
            (layer.rope.base, layer.rope.scale) = (local_base, 1.0);
        } else {
            layer.window = None;
        }
        if is_27b {
            layer.attention_scale = 1.0 / ((width / layer.n_heads.max(1)) as f32).sqrt();
        }
        layer.activation = Activation::GeluTanh;
        layer.head_norms = true;
        layer.post_norms = true;
    }
    spec.embedding_scale = (width as f32).sqrt();
    Ok(spec)
}
