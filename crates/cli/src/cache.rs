//! Key-value caches by name.

use breakers_kv_cache::{CacheKind, CacheSpec};
use breakers_model::{Model, Runner};

use super::{Error, Result};

/// The flag that chooses a cache.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CacheArgs {
    /// Key-value cache: f16, f32, compressed (water-4, turbo-4, kivi-4, …) or, on the CPU, with fewer
    /// tokens (snapkv-25 keeps a quarter). An unknown name lists all of them.
    #[arg(long, value_name = "NAME", default_value = "f16")]
    pub cache: String,
}

impl CacheArgs {
    /// A runner whose sequences use the cache.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown name, or a cache that the model or its device does not allow.
    pub fn runner(&self, model: &Model) -> Result<Runner> {
        runner_over(&cache_named(&self.cache)?, model)
    }
}

/// The cache with a name that [`CacheSpec`] knows; case does not matter.
///
/// # Errors
/// [`Error::Usage`] for an unknown name.
pub fn cache_named(name: &str) -> Result<CacheKind> {
    let spec: CacheSpec =
        name.to_ascii_lowercase().parse().map_err(|e| Error::Usage(format!("--cache: {e}")))?;
    Ok(spec.kind().clone())
}

/// A runner whose sequences use the cache.
///
/// # Errors
/// [`Error::Usage`] if the model or its device does not allow it.
pub fn runner_over(kind: &CacheKind, model: &Model) -> Result<Runner> {
    let (kind, device) = (kind.clone(), model.device().clone());
    kind.make(&model.cache_shape(), &device).map_err(|e| Error::Usage(format!("--cache: {e}")))?;
    Ok(model.runner().with_cache(move |shape| kind.make(shape, &device)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use breakers_kv_cache::coders::CODERS;
    use breakers_kv_cache::presses::PRESSES;
    use breakers_kv_cache::{Budget, Element};

    #[test]
    fn names_are_known_or_listed() {
        assert!(matches!(cache_named("f32"), Ok(CacheKind::Plain(Element::F32))));
        for coder in CODERS {
            let Ok(CacheKind::Quantized(found)) = cache_named(coder.name) else { panic!("{}", coder.name) };
            assert_eq!(format!("{found:?}"), format!("{:?}", (coder.build)()));
        }
        for press in PRESSES {
            let name = format!("{}-12.5+q8_0", press.name);
            let Ok(CacheKind::Evicting(found)) = cache_named(&name) else { panic!("{name}") };
            assert_eq!(found.budget, Budget::Fraction(0.125));
            assert!(found.compression.is_some());
        }
        for (name, mentioned) in [
            ("water-99", "kivi-4"),
            ("snapkv", "snapkv-25"),
            ("snapkv-x", "percentage"),
            ("tova-5+water-99", "f16"),
        ] {
            let Err(Error::Usage(message)) = cache_named(name) else { panic!("{name}") };
            assert!(message.contains(mentioned), "{name}: {message}");
        }
    }
}
