//! A causal transformer according to a file's hyperparameters: a table with a row for each layer.
//!
//! An architecture's module fills the table, and the decoder reads nothing else. A row may ask for something
//! that no kernel computes yet; [`DecoderSpec::check`] refuses such a file and names the key.

use breakers_gguf as gguf;

use super::keys;
use crate::Error;
use crate::ops::{Activation, HeadLayout, RopeStyle};

/// Everything about a causal transformer that its weights do not say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DecoderSpec {
    /// The name in `general.architecture`.
    pub(crate) architecture: &'static str,
    /// Width of the hidden state.
    pub(crate) width: usize,
    pub(crate) max_context: usize,
    pub(crate) norm_eps: f32,
    /// Factor on the embeddings.
    pub(crate) embedding_scale: f32,
    /// Logits are limited to this distance from 0: `cap · tanh(logit / cap)`.
    pub(crate) logit_cap: Option<f32>,
    pub(crate) layers: Vec<LayerSpec>,
}

/// One layer: attention and feed-forward.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LayerSpec {
    /// Query heads.
    pub(crate) n_heads: usize,
    /// Key heads, and as many value heads.
    pub(crate) n_kv_heads: usize,
    /// Coordinates of a head of queries and keys.
    pub(crate) key_dim: usize,
    /// Coordinates of a head of values.
    pub(crate) value_dim: usize,
    /// How many keys back a token sees, including its own.
    pub(crate) window: Option<usize>,
    /// Factor on query · key.
    pub(crate) attention_scale: f32,
    /// Scores are limited to this distance from 0, as logits are.
    pub(crate) score_cap: Option<f32>,
    /// Whether each head has an extra score in the softmax's denominator, which takes weight from all keys.
    pub(crate) sinks: bool,
    pub(crate) keys_values: KeysValues,
    pub(crate) rope: RopeSpec,
    /// Whether the projections of queries, keys and values must have biases. If they are optional, the file
    /// decides.
    pub(crate) qkv_bias: bool,
    /// Whether query and key heads are normalized.
    pub(crate) head_norms: bool,
    /// Whether the outputs of attention and feed-forward are normalized before they are added.
    pub(crate) post_norms: bool,
    pub(crate) activation: Activation,
    pub(crate) feed_forward: FeedForwardSpec,
}

/// Whose keys and values a layer's queries see.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum KeysValues {
    /// The layer's own.
    Own,
    /// Those of an earlier layer; this one projects none.
    OfLayer(usize),
}

/// How a layer rotates queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RopeSpec {
    pub(crate) style: RopeStyle,
    /// Coordinates of a head that are rotated.
    pub(crate) n_rotated: usize,
    pub(crate) base: f32,
    /// Factor on the positions (1 / the file's linear scaling factor).
    pub(crate) scale: f32,
    /// Whether the frequencies are divided by the file's `rope_freqs.weight`.
    pub(crate) has_divisors: bool,
}

/// The part of a layer after attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FeedForwardSpec {
    /// One gated feed-forward layer of this width.
    Dense { width: usize },
    /// Several, of which a router chooses some for each row.
    Experts(ExpertsSpec),
}

/// The experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ExpertsSpec {
    pub(crate) n_experts: usize,
    /// Experts of a row.
    pub(crate) n_used: usize,
    /// Width of one expert.
    pub(crate) width: usize,
    /// Whether the weights of a row's experts are divided by their sum.
    pub(crate) normalized: bool,
}

impl LayerSpec {
    /// Columns of all query heads.
    pub(crate) fn q_width(&self) -> usize {
        self.n_heads * self.key_dim
    }

    /// Columns of all key heads, and of all value heads.
    pub(crate) fn kv_width(&self) -> usize {
        self.n_kv_heads * self.key_dim
    }

    /// How the joint projection is laid out.
    pub(crate) fn heads(&self, norm_eps: f32) -> HeadLayout {
        HeadLayout {
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.key_dim,
            rope: self.rope.style,
            norm_eps,
        }
    }
}

impl DecoderSpec {
    /// The part that all architectures have in common, with the values of a plain pre-norm transformer.
    pub(super) fn common(architecture: &'static str, file: &gguf::File) -> Result<Self, Error> {
        let metadata = file.metadata();
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
        let per_layer = |suffix: &str| keys::per_layer(metadata, &key(suffix), n_layers);
        let required = |suffix: &str| -> Result<Vec<usize>, Error> {
            // The error names the key.
            per_layer(suffix)?.map_or_else(|| Ok(vec![number(suffix)?; n_layers]), Ok)
        };
        let width = number("embedding_length")?;
        let n_heads = required("attention.head_count")?;
        let n_kv_heads = per_layer("attention.head_count_kv")?.unwrap_or_else(|| n_heads.clone());
        let feed_forward = required("feed_forward_length")?;
        let (key_dim, value_dim) = (optional("attention.key_length")?, optional("attention.value_length")?);
        let rotated = optional("rope.dimension_count")?;
        let positive = |suffix: &str| -> Result<Option<f32>, Error> {
            Ok(keys::float(metadata, &key(suffix))?.filter(|value| *value != 0.0))
        };
        let attention_scale = positive("attention.scale")?;
        let score_cap = positive("attn_logit_softcapping")?;
        let window = optional("attention.sliding_window")?.filter(|window| *window > 0);
        let n_shared = optional("attention.shared_kv_layers")?.unwrap_or(0);
        let base = keys::float(metadata, &key("rope.freq_base"))?.unwrap_or(10_000.0);
        let scale = keys::position_scale(architecture, metadata)?;
        let has_divisors = file.tensor("rope_freqs.weight").is_some();
        let layer = |i: usize| {
            let key_dim = key_dim.unwrap_or(width / n_heads[i].max(1));
            LayerSpec {
                n_heads: n_heads[i],
                n_kv_heads: n_kv_heads[i],
                key_dim,
                value_dim: value_dim.unwrap_or(key_dim),
                window,
                attention_scale: attention_scale.unwrap_or(1.0 / (key_dim as f32).sqrt()),
                score_cap,
                sinks: file.tensor(&format!("blk.{i}.attn_sinks.weight")).is_some(),
                keys_values: match n_layers.saturating_sub(n_shared) {
                    n_own if i < n_own => KeysValues::Own,
                    n_own => KeysValues::OfLayer(n_own.saturating_sub(1)),
                },
                rope: RopeSpec {
                    style: RopeStyle::Halves,
                    n_rotated: rotated.unwrap_or(key_dim),
                    base,
                    scale,
                    has_divisors,
                },
                qkv_bias: false,
                head_norms: false,
                post_norms: false,
                activation: Activation::Silu,
                feed_forward: FeedForwardSpec::Dense { width: feed_forward[i] },
            }
        };
        Ok(Self {
            architecture,
            width,
            max_context: number("context_length")?,
            norm_eps: metadata.require_f32(&key("attention.layer_norm_rms_epsilon"))?,
            embedding_scale: 1.0,
            logit_cap: positive("final_logit_softcapping")?,
            layers: (0..n_layers).map(layer).collect(),
        })
    }

    /// The same model with every layer changed.
    pub(super) fn with_layers(mut self, change: impl Fn(&mut LayerSpec)) -> Self {
        self.layers.iter_mut().for_each(change);
        self
    }

    /// Gives all layers experts, if the file has any, with a softmax over all of them, as in Mixtral and
    /// Qwen3. Their width comes from its own key or, without one, from that of the dense layer.
    ///
    /// # Errors
    /// Those of the experts' keys.
    pub(super) fn with_experts(self, metadata: &gguf::Metadata, normalized: bool) -> Result<Self, Error> {
        let key = |suffix: &str| format!("{}.{suffix}", self.architecture);
        let n_experts = metadata.u32(&key("expert_count"))?.unwrap_or(0) as usize;
        if n_experts == 0 {
            return Ok(self);
        }
        let n_used = metadata.u32(&key("expert_used_count"))?.unwrap_or(0) as usize;
        if n_used == 0 || n_used > n_experts {
            return Err(Error::Hyperparameter {
                name: key("expert_used_count"),
                expected: format!("1 to the {n_experts} of {}", key("expert_count")),
                found: n_used.to_string(),
            });
        }
        let normalized = metadata.bool(&key("expert_weights_norm"))?.unwrap_or(normalized);
        let own = metadata.u32(&key("expert_feed_forward_length"))?.map(|width| width as usize);
        Ok(self.with_layers(|layer| {
            if let FeedForwardSpec::Dense { width } = layer.feed_forward {
                let width = own.unwrap_or(width);
                let experts = ExpertsSpec { n_experts, n_used, width, normalized };
                layer.feed_forward = FeedForwardSpec::Experts(experts);
            }
        }))
    }

    /// Fails for impossible numbers and for features that are not implemented.
    ///
    /// # Errors
    /// [`Error::Hyperparameter`] with the key's name.
    pub(super) fn check(&self) -> Result<(), Error> {
        let numbers = Numbers { architecture: self.architecture };
        numbers.size("embedding_length", self.width)?;
        if self.max_context == 0 {
            return numbers.wrong("context_length", "at least 1", 0);
        }
        numbers.positive("final_logit_softcapping", self.logit_cap.unwrap_or(1.0))?;
        numbers.positive("attention.layer_norm_rms_epsilon", self.norm_eps)?;
        for (i, layer) in self.layers.iter().enumerate() {
            layer.check(&numbers)?;
            layer.check_implemented(i, &numbers)?;
        }
        Ok(())
    }
}

/// Errors about an architecture's numbers.
struct Numbers {
    architecture: &'static str,
}

impl Numbers {
    fn wrong<T>(
        &self,
        key: &str,
        expected: impl Into<String>,
        found: impl std::fmt::Display,
    ) -> Result<T, Error> {
        let name = format!("{}.{key}", self.architecture);
        Err(Error::Hyperparameter { name, expected: expected.into(), found: found.to_string() })
    }

    fn size(&self, key: &str, value: usize) -> Result<(), Error> {
        if (1..=1 << 20).contains(&value) { Ok(()) } else { self.wrong(key, "1 to 1048576", value) }
    }

    fn positive(&self, key: &str, value: f32) -> Result<(), Error> {
        if value.is_finite() && value > 0.0 { Ok(()) } else { self.wrong(key, "a positive number", value) }
    }
}

impl LayerSpec {
    fn check(&self, numbers: &Numbers) -> Result<(), Error> {
        numbers.size("attention.head_count", self.n_heads)?;
        numbers.size("attention.head_count_kv", self.n_kv_heads)?;
        numbers.size("attention.key_length", self.key_dim)?;
        match self.feed_forward {
            FeedForwardSpec::Dense { width } => numbers.size("feed_forward_length", width)?,
            FeedForwardSpec::Experts(experts) => {
                numbers.size("expert_count", experts.n_experts)?;
                numbers.size("expert_feed_forward_length", experts.width)?;
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let expected = format!("a divisor of the {} query heads", self.n_heads);
            return numbers.wrong("attention.head_count_kv", expected, self.n_kv_heads);
        }
        let RopeSpec { n_rotated, base, scale, .. } = self.rope;
        if n_rotated > self.key_dim || !n_rotated.is_multiple_of(2) {
            let expected = format!("an even number up to the head's {}", self.key_dim);
            return numbers.wrong("rope.dimension_count", expected, n_rotated);
        }
        numbers.positive("attention.scale", self.attention_scale)?;
        numbers.positive("rope.freq_base", base)?;
        if !(scale.is_finite() && scale > 0.0) {
            return numbers.wrong("rope.scaling.factor", "a positive number", 1.0 / scale);
        }
        match self.window {
            Some(0) => numbers.wrong("attention.sliding_window", "at least 1", 0),
            _ => Ok(()),
        }
    }

    /// Fails for features that the table can express but no kernel computes.
    fn check_implemented(&self, layer: usize, numbers: &Numbers) -> Result<(), Error> {
        if self.value_dim != self.key_dim {
            let expected = format!("the key length, {}", self.key_dim);
            return numbers.wrong("attention.value_length", expected, self.value_dim);
        }
        if let Some(cap) = self.score_cap {
            return numbers.wrong("attn_logit_softcapping", "0, since scores cannot be capped yet", cap);
        }
        if let KeysValues::OfLayer(source) = self.keys_values {
            let found = format!("so many that layer {layer} sees the keys of layer {source}");
            let expected = "0, since layers cannot share keys and values yet";
            return numbers.wrong("attention.shared_kv_layers", expected, found);
        }
        if self.sinks {
            return Err(Error::Hyperparameter {
                name: format!("blk.{layer}.attn_sinks.weight"),
                expected: "no such tensor, since attention cannot have sinks yet".to_owned(),
                found: "there".to_owned(),
            });
        }
        Ok(())
    }
}
