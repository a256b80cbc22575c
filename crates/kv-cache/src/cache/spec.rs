//! Caches by name.

use std::fmt::{self, Display};
use std::str::FromStr;

use burn::tensor::Device;

use super::evicting::{Budget, EvictingCache, Eviction};
use super::plain::PlainCache;
use super::quantized::{Compression, QuantizedCache};
use crate::coders::CODERS;
use crate::presses::PRESSES;
use crate::{CacheShape, Element, Error, KvCache, Result};

/// A cache chosen by name.
///
/// | name | cache |
/// |---|---|
/// | `f16`, `f32` | [`PlainCache`] of these elements |
/// | `water-4`, `kivi-2`, … | [`QuantizedCache`]: the names of [`CODERS`] |
/// | `snapkv-25`, … | [`EvictingCache`]: a press of [`PRESSES`] that keeps 25 % of the tokens |
/// | `snapkv-25+water-4` | both |
///
/// # Example
/// ```
/// use breakers_kv_cache::{CacheShape, CacheSpec, KvCache, LayerShape};
/// use burn::tensor::Device;
///
/// # fn main() -> Result<(), breakers_kv_cache::Error> {
/// let spec: CacheSpec = "snapkv-25+water-4".parse()?;
/// assert_eq!(spec.to_string(), "snapkv-25+water-4");
/// let cache = spec.make(&CacheShape::uniform(1, LayerShape::new(2, 64), 4096), &Device::flex())?;
/// assert!(cache.is_empty());
/// assert!("snapkv-250".parse::<CacheSpec>().is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct CacheSpec {
    name: String,
    kind: CacheKind,
}

/// The kind of a cache, with its settings.
#[derive(Clone)]
#[non_exhaustive]
pub enum CacheKind {
    /// Every token as it is.
    Plain(Element),
    /// Every token, in fewer bits.
    Quantized(Compression),
    /// Fewer tokens, in fewer bits too if the eviction says so.
    Evicting(Eviction),
}

impl CacheKind {
    /// An empty cache.
    ///
    /// # Errors
    /// Those of the cache's own constructor.
    pub fn make(&self, shape: &CacheShape, device: &Device) -> Result<Box<dyn KvCache>> {
        let shape = shape.clone();
        Ok(match self {
            Self::Plain(element) => Box::new(PlainCache::new(shape, *element, device)?),
            Self::Quantized(compression) => Box::new(QuantizedCache::new(shape, compression, device)?),
            Self::Evicting(eviction) => Box::new(EvictingCache::new(shape, eviction.clone(), device)?),
        })
    }
}

impl CacheSpec {
    /// The kind of cache, with its settings.
    pub fn kind(&self) -> &CacheKind {
        &self.kind
    }

    /// An empty cache.
    ///
    /// # Errors
    /// Those of the cache's own constructor.
    pub fn make(&self, shape: &CacheShape, device: &Device) -> Result<Box<dyn KvCache>> {
        self.kind.make(shape, device)
    }

    /// All names; for presses, those that keep a quarter of the tokens.
    pub fn names() -> Vec<String> {
        let plain = ["f16", "f32"].map(str::to_owned);
        let coded = CODERS.iter().map(|coder| coder.name.to_owned());
        let pressed = PRESSES.iter().map(|press| format!("{}-25", press.name));
        plain.into_iter().chain(coded).chain(pressed).collect()
    }
}

impl Default for CacheSpec {
    /// `f16`.
    fn default() -> Self {
        Self { name: "f16".to_owned(), kind: CacheKind::Plain(Element::F16) }
    }
}

impl Display for CacheSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for CacheSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheSpec({})", self.name)
    }
}

impl FromStr for CacheSpec {
    type Err = Error;

    /// # Errors
    /// [`Error::UnknownCompression`], which lists all names, and [`Error::Percentage`].
    fn from_str(name: &str) -> Result<Self> {
        let named = |name: &str| {
            let unknown = |_| {
                let known = format!("{}, snapkv-25+water-4", Self::names().join(", "));
                Error::UnknownCompression { name: name.to_owned(), known }
            };
            name.parse::<Compression>().map_err(unknown)
        };
        let (first, compression) = match name.split_once('+') {
            Some((press, compression)) => (press, Some(compression)),
            None => (name, None),
        };
        let press = first.rsplit_once('-').and_then(|(press, percent)| {
            PRESSES.iter().find(|entry| entry.name == press).map(|entry| (entry, percent))
        });
        let kind = match (name, press) {
            ("f16", _) => CacheKind::Plain(Element::F16),
            ("f32", _) => CacheKind::Plain(Element::F32),
            (_, None) => CacheKind::Quantized(named(name)?),
            (_, Some((entry, text))) => {
                let percent = text.parse::<f64>().ok().filter(|percent| *percent > 0.0 && *percent <= 100.0);
                let wrong = || Error::Percentage { name: name.to_owned(), found: text.to_owned() };
                let mut eviction = (entry.build)(Budget::Fraction(percent.ok_or_else(wrong)? / 100.0));
                eviction.compression = compression.map(named).transpose()?;
                CacheKind::Evicting(eviction)
            }
        };
        Ok(Self { name: name.to_owned(), kind })
    }
}
