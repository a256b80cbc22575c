//! Architectures: what distinguishes one family of models from another, one file each.
//!
//! A causal architecture is a function from the file's hyperparameters to a [`DecoderSpec`]; the block
//! itself stands in [`decoder`]. To add one, write such a file and name it in [`decoder_spec`]. BERT, which sees a
//! whole text at once, has its own block.

#[cfg(feature = "bert")]
pub(crate) mod bert;
pub(crate) mod decoder;
mod gemma3;
mod keys;
mod llama;
mod qwen2;

use breakers_gguf::Metadata;

use crate::Error;
use crate::ops::{Activation, RopeStyle};

/// Everything about a causal transformer that its weights do not say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DecoderSpec {
    /// The name in `general.architecture`.
    pub(crate) architecture: &'static str,
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Width of the hidden state.
    pub(crate) width: usize,
    pub(crate) feed_forward: usize,
    pub(crate) max_context: usize,
    pub(crate) norm_eps: f32,
    /// Factor on the embeddings.
    pub(crate) embedding_scale: f32,
    /// Factor on query · key.
    pub(crate) attention_scale: f32,
    pub(crate) activation: Activation,
    pub(crate) rope: RopeStyle,
    /// Coordinates of a head that are rotated.
    pub(crate) n_rotated: usize,
    /// Whether the projections of queries, keys and values must have biases. Where they may, the file says it.
    pub(crate) qkv_bias: bool,
    /// Logits are squashed to this far from 0: `cap · tanh(logit / cap)`.
    pub(crate) logit_cap: Option<f32>,
    /// Whether query and key heads are normalized.
    pub(crate) head_norms: bool,
    /// Whether the outputs of attention and feed-forward are normalized before they are added.
    pub(crate) post_norms: bool,
    pub(crate) layers: Vec<LayerSpec>,
}

/// What may differ between the blocks of one model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LayerSpec {
    pub(crate) rope_base: f32,
    /// Factor on the positions (1 / the file's linear scaling factor).
    pub(crate) rope_scale: f32,
    /// Keys at most this far back are seen, the token's own counted.
    pub(crate) window: Option<usize>,
}

/// Reads the hyperparameters of a causal model.
///
/// # Errors
/// [`Error::UnknownArchitecture`], and those of missing or impossible hyperparameters.
pub(crate) fn decoder_spec(metadata: &Metadata) -> Result<DecoderSpec, Error> {
    let name = metadata.require_str("general.architecture")?;
    let spec = match name {
        "llama" => llama::spec(metadata)?,
        "qwen2" => qwen2::spec(metadata)?,
        "gemma3" => gemma3::spec(metadata)?,
        _ => {
            return Err(Error::UnknownArchitecture {
                found: name.to_owned(),
                known: &["llama", "qwen2", "gemma3"],
            });
        }
    };
    spec.check()?;
    Ok(spec)
}

impl DecoderSpec {
    /// The part that all architectures spell alike, with the values of a plain pre-norm transformer.
    fn common(architecture: &'static str, metadata: &Metadata) -> Result<Self, Error> {
        let key = |suffix: &str| format!("{architecture}.{suffix}");
        let number =
            |suffix: &str| -> Result<usize, Error> { Ok(metadata.require_u32(&key(suffix))? as usize) };
        let optional = |suffix: &str| -> Result<Option<usize>, Error> {
            Ok(metadata.u32(&key(suffix))?.map(|n| n as usize))
        };
        let n_layers = number("block_count")?;
        if n_layers == 0 || n_layers > 4096 {
            return Err(Error::Hyperparameter {
                name: key("block_count"),
                expected: "1 to 4096".to_owned(),
                found: n_layers.to_string(),
            });
        }
        let per_layer = |suffix: &str| keys::uniform(metadata, &key(suffix), n_layers);
        let required = |suffix: &str| -> Result<usize, Error> {
            // The error names the key.
            per_layer(suffix)?.map_or_else(|| number(suffix), Ok)
        };
        let width = number("embedding_length")?;
        let n_heads = required("attention.head_count")?;
        let head_dim = optional("attention.key_length")?.unwrap_or(width / n_heads.max(1));
        let value_dim = optional("attention.value_length")?.unwrap_or(head_dim);
        if value_dim != head_dim {
            return Err(Error::Hyperparameter {
                name: key("attention.value_length"),
                expected: format!("the key length, {head_dim}"),
                found: value_dim.to_string(),
            });
        }
        // Linear where the file does not say it, by a factor of 1; 0 is none. `rope.scale_linear` is the factor's older
        // name.
        let scaling = metadata.str(&key("rope.scaling.type"))?.unwrap_or("linear");
        let factor = keys::float(metadata, &key("rope.scaling.factor"))?;
        let factor = match factor {
            Some(factor) => Some(factor),
            None => keys::float(metadata, &key("rope.scale_linear"))?,
        };
        let rope_scale = match scaling {
            "none" => 1.0,
            "linear" => factor.filter(|factor| *factor != 0.0).map_or(1.0, |factor| 1.0 / factor),
            other => {
                return Err(Error::Hyperparameter {
                    name: key("rope.scaling.type"),
                    expected: "none or linear".to_owned(),
                    found: other.to_owned(),
                });
            }
        };
        let rope_base = keys::float(metadata, &key("rope.freq_base"))?.unwrap_or(10_000.0);
        let positive = |suffix: &str| -> Result<Option<f32>, Error> {
            Ok(keys::float(metadata, &key(suffix))?.filter(|value| *value != 0.0))
        };
        let scale = positive("attention.scale")?;
        let window = metadata.u32(&key("attention.sliding_window"))?.filter(|window| *window > 0);
        Ok(Self {
            architecture,
            n_heads,
            n_kv_heads: per_layer("attention.head_count_kv")?.unwrap_or(n_heads),
            head_dim,
            width,
            feed_forward: required("feed_forward_length")?,
            max_context: number("context_length")?,
            norm_eps: metadata.require_f32(&key("attention.layer_norm_rms_epsilon"))?,
            embedding_scale: 1.0,
            attention_scale: scale.unwrap_or(1.0 / (head_dim as f32).sqrt()),
            activation: Activation::Silu,
            rope: RopeStyle::Halves,
            n_rotated: optional("rope.dimension_count")?.unwrap_or(head_dim),
            qkv_bias: false,
            head_norms: false,
            post_norms: false,
            logit_cap: positive("final_logit_softcapping")?,
            layers: vec![
                LayerSpec { rope_base, rope_scale, window: window.map(|window| window as usize) };
                n_layers
            ],
        })
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |name: &str, expected: &str, found: String| {
            Err(Error::Hyperparameter {
                name: format!("{}.{name}", self.architecture),
                expected: expected.to_owned(),
                found,
            })
        };
        const MOST: usize = 1 << 20;
        for (name, value) in [
            ("attention.head_count", self.n_heads),
            ("attention.head_count_kv", self.n_kv_heads),
            ("attention.key_length", self.head_dim),
            ("embedding_length", self.width),
            ("feed_forward_length", self.feed_forward),
            ("context_length", self.max_context),
        ] {
            if value == 0 || (name != "context_length" && value > MOST) {
                return wrong(name, "1 to 1048576", value.to_string());
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return wrong(
                "attention.head_count_kv",
                &format!("a divisor of the {} query heads", self.n_heads),
                self.n_kv_heads.to_string(),
            );
        }
        if self.n_rotated > self.head_dim || !self.n_rotated.is_multiple_of(2) {
            return wrong(
                "rope.dimension_count",
                &format!("an even number up to the head's {}", self.head_dim),
                self.n_rotated.to_string(),
            );
        }
        let numbers =
            [("attention.scale", Some(self.attention_scale)), ("final_logit_softcapping", self.logit_cap)];
        for (name, value) in numbers.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            if !(value.is_finite() && value > 0.0) {
                return wrong(name, "a positive number", value.to_string());
            }
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return wrong("attention.layer_norm_rms_epsilon", "a positive number", self.norm_eps.to_string());
        }
        for layer in &self.layers {
            let base = layer.rope_base;
            if !(base.is_finite() && base > 0.0) {
                return wrong("rope.freq_base", "a positive number", base.to_string());
            }
            if !(layer.rope_scale.is_finite() && layer.rope_scale > 0.0) {
                return wrong(
                    "rope.scaling.factor",
                    "a positive number",
                    (1.0 / layer.rope_scale).to_string(),
                );
            }
            if layer.window == Some(0) {
                return wrong("attention.sliding_window", "at least 1", "0".to_owned());
            }
        }
        Ok(())
    }
}
