//! Key-value caches by name.

use breakers_kv_cache::presses::{
    ExpectedAttention, H2o, HeadBudgets, KeyDiff, Knorm, LayerBudgets, RandomPress, SnapKv, StreamingLlm,
    Tova,
};
use breakers_kv_cache::{
    Budget, CacheShape, Compression, Element, EvictingCache, Eviction, KvCache, PlainCache, QuantizedCache,
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

/// Presses by name.
const PRESSES: [&str; 10] =
    ["snapkv", "adakv", "pyramidkv", "streaming", "h2o", "tova", "knorm", "keydiff", "expected", "random"];

impl CacheKind {
    /// The cache of this name: `f16`, `f32`, a compression ([`Compression::presets`]), or a press with the percentage
    /// of tokens that it keeps, `snapkv-25`, alone or with a compression behind it, `snapkv-25+water-4`.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown name.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "f16" => return Ok(Self::Plain(Element::F16)),
            "f32" => return Ok(Self::Plain(Element::F32)),
            _ => {}
        }
        let (press, compression) = match name.split_once('+') {
            Some((press, compression)) => (press, Some(compression)),
            None => (name, None),
        };
        let named = |name: &str| {
            Compression::named(name).map_err(|e| {
                let presses = PRESSES.map(|press| format!("{press}-25")).join(", ");
                Error::Usage(format!("--cache: {e}, f16, f32, {presses}, snapkv-25+water-4"))
            })
        };
        let Some((press, percent)) = press.rsplit_once('-').filter(|parts| PRESSES.contains(&parts.0)) else {
            return named(name).map(Self::Compressed);
        };
        let percent: f64 = percent
            .parse()
            .map_err(|_| Error::Usage(format!("--cache {name}: {percent} is no percentage")))?;
        let mut eviction = eviction(press, Budget::Fraction(percent / 100.0));
        eviction.compression = compression.map(named).transpose()?;
        Ok(Self::Pressed(eviction))
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

fn eviction(press: &str, budget: Budget) -> Eviction {
    match press {
        "streaming" => Eviction::new(StreamingLlm::default(), budget),
        "h2o" => Eviction::new(H2o::default(), budget),
        "tova" => Eviction::new(Tova, budget),
        "knorm" => Eviction::new(Knorm, budget),
        "keydiff" => Eviction::new(KeyDiff, budget),
        "expected" => Eviction::new(ExpectedAttention::default(), budget),
        "random" => Eviction::new(RandomPress::default(), budget),
        press => {
            let mut eviction = Eviction::new(SnapKv::default(), budget);
            match press {
                "adakv" => eviction.heads = HeadBudgets::Adaptive { safeguard: 0.2 },
                "pyramidkv" => eviction.layers = LayerBudgets::Pyramid { steepness: 20.0 },
                _ => {}
            }
            eviction
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_or_listed() {
        assert!(matches!(CacheKind::named("f32"), Ok(CacheKind::Plain(Element::F32))));
        for (name, compression) in Compression::presets() {
            let Ok(CacheKind::Compressed(found)) = CacheKind::named(name) else { panic!("{name}") };
            assert_eq!(found, compression);
        }
        for press in PRESSES {
            let name = format!("{press}-12.5+q8_0");
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
