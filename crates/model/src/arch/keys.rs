//! Which of a file's architecture keys are read, and what happens to the others.
//!
//! A key `<architecture>.*` says how the model computes, so ignoring one would silently give other numbers.
//! Each key is read, or has a value that changes nothing, or is known not to matter; otherwise the file is
//! refused, and the error names the key.

use breakers_gguf::{Metadata, Value};

use crate::Error;

/// Read by every causal architecture.
const READ: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.shared_kv_layers",
    "attention.sliding_window",
    "attention.value_length",
    "attn_logit_softcapping",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "final_logit_softcapping",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.type",
];

/// Read if there are windows.
pub(super) const READ_WITH_WINDOWS: &[&str] = &["attention.sliding_window_pattern", "rope.freq_base_swa"];

/// Read if there are experts.
pub(super) const READ_WITH_EXPERTS: &[&str] =
    &["expert_count", "expert_feed_forward_length", "expert_used_count", "expert_weights_norm"];
/// A router that turns scores into weights by a softmax.
const SOFTMAX: f64 = 1.0;

/// Keys that do not affect the computation: sizes that follow from tensors, notes of converters, norms of
/// another kind, how embeddings are pooled, the context length in training.
const HARMLESS: &[&str] = &[
    "attention.layer_norm_epsilon",
    "pooling_type",
    "rope.scaling.finetuned",
    "rope.scaling.orig_ctx_len",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
    "vocab_size",
];

/// Keys about images and sounds, which are not part of the text model.
const OF_OTHER_TOWERS: &[&str] = &["mm.", "vision.", "audio."];

/// Keys with the one value that changes nothing.
const NEUTRAL: &[(&str, f64)] = &[
    ("attention.causal", 1.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("embedding_length_per_layer_input", 0.0),
    ("embedding_scale", 1.0),
    ("expert_count", 0.0),
    ("expert_gating_func", SOFTMAX),
    ("expert_group_count", 0.0),
    ("expert_shared_count", 0.0),
    ("expert_used_count", 0.0),
    ("expert_weights_scale", 1.0),
    ("leading_dense_block_count", 0.0),
    ("logit_scale", 1.0),
    ("nextn_predict_layers", 0.0),
    ("residual_scale", 1.0),
    ("rope.scaling.attn_factor", 1.0),
    ("rope.scaling.yarn_log_multiplier", 0.0),
    ("swin_norm", 0.0),
    ("use_parallel_residual", 0.0),
];

/// Fails for a key of the architecture that is not read and may matter.
///
/// # Errors
/// [`Error::UnreadKeys`] with all of them.
pub(super) fn check(architecture: &str, metadata: &Metadata, also_read: &[&str]) -> Result<(), Error> {
    let prefix = format!("{architecture}.");
    let mut unread = Vec::new();
    for (key, value) in metadata.iter() {
        let Some(name) = key.strip_prefix(&prefix) else { continue };
        let known = READ.contains(&name)
            || also_read.contains(&name)
            || HARMLESS.contains(&name)
            || OF_OTHER_TOWERS.iter().any(|tower| name.starts_with(tower));
        let neutral = NEUTRAL.iter().any(|&(neutral, at)| neutral == name && number(value) == Some(at));
        if !known && !neutral {
            unread.push(key.to_owned());
        }
    }
    if unread.is_empty() { Ok(()) } else { Err(Error::UnreadKeys { names: unread }) }
}

/// A number or a boolean.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::F32(number) => Some(f64::from(*number)),
        Value::F64(number) => Some(*number),
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        other => other.as_integer().map(|number| number as f64),
    }
}

/// A count for each block: one number for all, or an array of one for each.
///
/// # Errors
/// [`Error::Hyperparameter`] for an array of another length; those for a value of another type.
pub(super) fn per_layer(
    metadata: &Metadata,
    key: &str,
    n_layers: usize,
) -> Result<Option<Vec<usize>>, Error> {
    let Some(Value::Array(_)) = metadata.get(key) else {
        return Ok(metadata.u32(key)?.map(|number| vec![number as usize; n_layers]));
    };
    let numbers = metadata.u32s(key)?.unwrap_or_default();
    if numbers.len() == n_layers {
        return Ok(Some(numbers.iter().map(|&number| number as usize).collect()));
    }
    Err(Error::Hyperparameter {
        name: key.to_owned(),
        expected: format!("one number, or {n_layers} of them"),
        found: format!("{numbers:?}"),
    })
}

/// The factor on positions. Unless the file says otherwise, scaling is linear with a factor of 1; 0 means
/// none. `rope.scale_linear` is the factor's older name.
///
/// # Errors
/// [`Error::Hyperparameter`] for another kind of scaling; those for a value of another type.
pub(super) fn position_scale(architecture: &str, metadata: &Metadata) -> Result<f32, Error> {
    let key = |suffix: &str| format!("{architecture}.{suffix}");
    let factor = match float(metadata, &key("rope.scaling.factor"))? {
        Some(factor) => Some(factor),
        None => float(metadata, &key("rope.scale_linear"))?,
    };
    match metadata.str(&key("rope.scaling.type"))?.unwrap_or("linear") {
        "none" => Ok(1.0),
        "linear" => Ok(factor.filter(|factor| *factor != 0.0).map_or(1.0, |factor| 1.0 / factor)),
        other => Err(Error::Hyperparameter {
            name: key("rope.scaling.type"),
            expected: "none or linear".to_owned(),
            found: other.to_owned(),
        }),
    }
}

/// A float, which some files write as an integer.
///
/// # Errors
/// That of a value of another type.
pub(super) fn float(metadata: &Metadata, key: &str) -> Result<Option<f32>, Error> {
    match metadata.get(key).and_then(Value::as_integer) {
        Some(number) => Ok(Some(number as f32)),
        None => Ok(metadata.f32(key)?),
    }
}

/// Whether each block's attention has the window. The key holds either a period, in which the last block sees
/// everything, or a flag for each block.
///
/// # Errors
/// [`Error::Hyperparameter`] for an array of another length; those for a value of another type.
pub(super) fn windowed(
    metadata: &Metadata,
    key: &str,
    default_period: usize,
    n_layers: usize,
) -> Result<Vec<bool>, Error> {
    let flags: Vec<bool> = match metadata.get(key) {
        Some(Value::Array(breakers_gguf::Array::Bool(flags))) => flags.clone(),
        Some(Value::Array(_)) => {
            metadata.u32s(key)?.unwrap_or_default().iter().map(|&flag| flag != 0).collect()
        }
        _ => {
            let period = metadata.u32(key)?.map_or(default_period, |period| period as usize);
            (0..n_layers).map(|i| period == 0 || i % period < period - 1).collect()
        }
    };
    if flags.len() == n_layers {
        return Ok(flags);
    }
    Err(Error::Hyperparameter {
        name: key.to_owned(),
        expected: format!("a period, or {n_layers} flags"),
        found: format!("{} flags", flags.len()),
    })
}
