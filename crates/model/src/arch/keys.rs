//! Which keys of a file's architecture are read, and what becomes of the others.
//!
//! A key `<architecture>.*` says how the model computes, so one that nobody reads would give other numbers without a
//! word. Each has a reader, or a value that changes nothing, or is known not to matter; else the file is refused by its
//! name.

use breakers_gguf::{Metadata, Value};

use crate::Error;

/// Read by every causal architecture.
const READ: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.sliding_window",
    "attention.value_length",
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

/// Read where there are windows.
pub(super) const READ_WITH_WINDOWS: &[&str] = &["attention.sliding_window_pattern", "rope.freq_base_swa"];

/// Keys that do not touch what is computed: sizes that tensors tell, notes of converters, norms of another kind, how
/// embeddings are pooled, how long contexts were in training.
const HARMLESS: &[&str] = &[
    "attention.layer_norm_epsilon",
    "pooling_type",
    "rope.scaling.finetuned",
    "rope.scaling.orig_ctx_len",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
    "vocab_size",
];

/// Keys about images and sounds, whose towers are no part of the text model.
const OF_OTHER_TOWERS: &[&str] = &["mm.", "vision.", "audio."];

/// Keys with the one value that changes nothing.
const NEUTRAL: &[(&str, f64)] = &[
    ("attention.causal", 1.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.shared_kv_layers", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("embedding_length_per_layer_input", 0.0),
    ("embedding_scale", 1.0),
    ("expert_count", 0.0),
    ("expert_used_count", 0.0),
    ("leading_dense_block_count", 0.0),
    ("logit_scale", 1.0),
    ("nextn_predict_layers", 0.0),
    ("residual_scale", 1.0),
    ("rope.scaling.attn_factor", 1.0),
    ("rope.scaling.yarn_log_multiplier", 0.0),
    ("swin_norm", 0.0),
    ("use_parallel_residual", 0.0),
];

/// Fails for a key of the architecture that has no reader and may matter.
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

/// A count that is one number, or an array of one for each block, all equal.
///
/// # Errors
/// [`Error::Hyperparameter`] for blocks that differ or an array of another length; those of a value of another type.
pub(super) fn uniform(metadata: &Metadata, key: &str, n_layers: usize) -> Result<Option<usize>, Error> {
    let Some(Value::Array(_)) = metadata.get(key) else {
        return Ok(metadata.u32(key)?.map(|number| number as usize));
    };
    let numbers = metadata.u32s(key)?.unwrap_or_default();
    match numbers.first() {
        Some(&first) if numbers.len() == n_layers && numbers.iter().all(|&number| number == first) => {
            Ok(Some(first as usize))
        }
        _ => Err(Error::Hyperparameter {
            name: key.to_owned(),
            expected: format!("one number, or {n_layers} equal ones"),
            found: format!("{numbers:?}"),
        }),
    }
}

/// A float that files write as an integer too.
///
/// # Errors
/// That of a value of another type.
pub(super) fn float(metadata: &Metadata, key: &str) -> Result<Option<f32>, Error> {
    match metadata.get(key).and_then(Value::as_integer) {
        Some(number) => Ok(Some(number as f32)),
        None => Ok(metadata.f32(key)?),
    }
}

/// For each block whether its attention has the window. The key holds one period, of which the last block sees all, or a
/// flag for each block.
///
/// # Errors
/// [`Error::Hyperparameter`] for an array of another length; those of a value of another type.
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
