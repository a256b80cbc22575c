use crate::{Error, Result};

/// Keys and values of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// Number of key-value heads; the query heads are a multiple of it.
    pub n_kv_heads: usize,
    /// Elements of one head's key, and of its value.
    pub head_dim: usize,
    /// Sliding window, in tokens: a token at position p sees the positions above p − window, itself
    /// included. `None`: it sees all before it.
    pub window: Option<usize>,
}

impl LayerShape {
    /// A layer whose tokens see all before them.
    pub fn new(n_kv_heads: usize, head_dim: usize) -> Self {
        Self { n_kv_heads, head_dim, window: None }
    }

    /// The same layer with a sliding window of `window` tokens.
    pub fn with_window(self, window: usize) -> Self {
        Self { window: Some(window), ..self }
    }
}

/// What a cache holds: its layers, and how many tokens at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// The layers in the order in which a forward pass runs through them.
    pub layers: Vec<LayerShape>,
    /// Tokens that the cache may hold, provisional ones included. Memory is allocated as tokens arrive.
    pub max_tokens: usize,
}

impl CacheShape {
    /// A cache of equal layers.
    pub fn uniform(n_layers: usize, layer: LayerShape, max_tokens: usize) -> Self {
        Self { layers: vec![layer; n_layers], max_tokens }
    }

    /// Checks that every dimension is at least 1.
    ///
    /// # Errors
    /// [`Error::NoLayers`], [`Error::ZeroDimension`].
    pub fn validate(&self) -> Result<()> {
        if self.layers.is_empty() {
            return Err(Error::NoLayers);
        }
        for (layer, shape) in self.layers.iter().enumerate() {
            for (field, value) in [
                ("n_kv_heads", shape.n_kv_heads),
                ("head_dim", shape.head_dim),
                ("window", shape.window.unwrap_or(1)),
            ] {
                if value == 0 {
                    return Err(Error::ZeroDimension { layer, field });
                }
            }
        }
        Ok(())
    }
}

/// Type of the stored keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Element {
    /// 16-bit IEEE floats, rounded to nearest even; magnitudes beyond 65,504 become 65,504.
    #[default]
    F16,
    /// 32-bit IEEE floats: keys and values unchanged.
    F32,
}

impl Element {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}
