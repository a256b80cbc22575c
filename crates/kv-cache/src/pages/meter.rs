//! Counts the bytes of pages, each page once however many caches share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the bytes of the pages of a cache and of all its forks, each page once.
///
/// A page counts from its creation until the last cache drops it. Clones are the same meter.
///
/// # Example
/// ```
/// use breakers_kv_cache::{CacheShape, Element, KvCache, LayerShape, PlainCache};
/// use burn::tensor::{Device, Tensor};
///
/// # fn main() -> Result<(), breakers_kv_cache::Error> {
/// let device = Device::flex();
/// let shape = CacheShape::uniform(1, LayerShape::new(1, 64), 128);
/// let mut cache = PlainCache::new(shape, Element::F16, &device)?;
/// let ones = Tensor::<3>::ones([64, 1, 64], &device);
/// cache.begin(64, None)?;
/// cache.attend(0, ones.clone(), ones.clone(), ones, 0.125)?;
/// cache.end()?;
/// let fork = cache.fork()?;
/// let meter = cache.page_meter().unwrap();
/// assert!(meter.is_same(fork.page_meter().unwrap()));
/// assert_eq!(meter.bytes(), 64 * 2 * 64 * 2);
/// assert!(cache.bytes() + fork.bytes() >= 2 * meter.bytes());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct PageMeter(Arc<AtomicUsize>);

impl PageMeter {
    /// Bytes of all pages.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether both count the same pages.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Counts `bytes` until the lease is dropped.
    pub(crate) fn lease(&self, bytes: usize) -> Lease {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Lease { meter: self.clone(), bytes }
    }
}

/// Bytes that a meter counts.
#[derive(Debug)]
pub(crate) struct Lease {
    meter: PageMeter,
    bytes: usize,
}

impl Lease {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Clone for Lease {
    /// A lease for a copy of the counted memory.
    fn clone(&self) -> Self {
        self.meter.lease(self.bytes)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.meter.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
