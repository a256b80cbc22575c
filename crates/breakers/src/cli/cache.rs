//! Key-value caches by name.

use breakers_kv_cache as kv_cache;
use breakers_kv_cache::{
    CacheShape, CacheSpec, Compression, Element, EvictingCache, Eviction, KvCache, PlainCache, QuantizedCache,
};
use breakers_model::{Model, Runner};
use burn::tensor::Device;

use super::{Error, Result};

/// The flag that chooses a cache.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CacheArgs {
    /// Key-value cache: f16, f32, compressed (water-4, turbo-4, kivi-4, …) or, on the CPU, with fewer tokens (snapkv-25
    /// keeps a quarter). An unknown name lists all of them.
    #[arg(long, value_name = "NAME", default_value = "f16")]
    pub cache: String,
}

/// A way to store keys and values.
#[derive(Clone)]
pub enum CacheKind {
    /// As they are.
    Plain(Element),
    /// In fewer bits.
    Compressed(Compression),
    /// Fewer tokens.
    Pressed(Eviction),
}

impl CacheArgs {
    /// A runner whose sequences use the cache.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown name, or a cache that the model or its device does not allow.
    pub fn runner(&self, model: &Model) -> Result<Runner> {
        CacheKind::named(&self.cache)?.runner(model)
    }
}

impl CacheKind {
    /// The cache of this name: `f16`, `f32`, a compression ([`Compression::presets`]), or a press with the percentage
    /// of tokens that it keeps, `snapkv-25`, alone or with a compression behind it, `snapkv-25+water-4`.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown name.
    pub fn named(name: &str) -> Result<Self> {
        let spec = name
            .to_ascii_lowercase()
            .parse::<CacheSpec>()
            .map_err(|e| Error::Usage(format!("--cache: {e}")))?;
        Ok(match spec.kind().clone() {
            kv_cache::CacheKind::Plain(element) => Self::Plain(element),
            kv_cache::CacheKind::Quantized(compression) => Self::Compressed(compression),
            kv_cache::CacheKind::Evicting(eviction) => Self::Pressed(eviction),
            _ => return Err(Error::Usage(format!("--cache: {name} is not known here"))),
        })
    }

    /// An empty cache.
    ///
    /// # Errors
    /// The cache's own.
    pub fn make(&self, shape: &CacheShape, device: &Device) -> breakers_kv_cache::Result<Box<dyn KvCache>> {
        Ok(match self {
            Self::Plain(element) => Box::new(PlainCache::new(shape.clone(), *element, device)?),
            Self::Compressed(compression) => {
                Box::new(QuantizedCache::new(shape.clone(), compression, device)?)
            }
            Self::Pressed(eviction) => Box::new(EvictingCache::new(shape.clone(), eviction.clone(), device)?),
        })
    }

    /// A runner whose sequences use the cache.
    ///
    /// # Errors
    /// [`Error::Usage`] if the model or its device does not allow it.
    pub fn runner(&self, model: &Model) -> Result<Runner> {
        let (kind, device) = (self.clone(), model.device().clone());
        self.make(&model.cache_shape(), &device).map_err(|e| Error::Usage(format!("--cache: {e}")))?;
        Ok(model.runner().with_cache(move |shape| kind.make(shape, &device)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use breakers_kv_cache::Budget;
    use breakers_kv_cache::presses::PRESSES;

    #[test]
    fn names_are_known_or_listed() {
        assert!(matches!(CacheKind::named("f32"), Ok(CacheKind::Plain(Element::F32))));
        for (name, compression) in Compression::presets() {
            let Ok(CacheKind::Compressed(found)) = CacheKind::named(name) else { panic!("{name}") };
            assert_eq!(found, compression);
        }
        for press in PRESSES {
            let name = format!("{}-12.5+q8_0", press.name);
            let Ok(CacheKind::Pressed(found)) = CacheKind::named(&name) else { panic!("{name}") };
            assert_eq!(found.budget, Budget::Fraction(0.125));
            assert!(found.compression.is_some());
        }
        for (name, mentioned) in [
            ("water-99", "kivi-4"),
            ("snapkv", "snapkv-25"),
            ("snapkv-x", "percentage"),
            ("tova-5+water-99", "f16"),
        ] {
            let Err(Error::Usage(message)) = CacheKind::named(name) else { panic!("{name}") };
            assert!(message.contains(mentioned), "{name}: {message}");
        }
    }
}
