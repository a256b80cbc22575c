//! The plain cache: every token's keys and values, in pages that forks share.

use std::borrow::Cow;

use breakers_backend::device;
use breakers_core::{Snapshot, SnapshotBytes};
use breakers_cpu as cpu;
use burn::tensor::{Device, Tensor};

use super::driver::{Cache, HostCall, Layers, Storage};
use super::ledger::Step;
use crate::attention::flex::job::Job;
use crate::checks::require;
use crate::pages::device::DevicePages;
use crate::pages::layer::{BadRow, LayerPages};
use crate::pages::meter::PageMeter;
use crate::pages::page::PAGE_TOKENS;
use crate::pages::saved::{self, SavedPages};
use crate::{CacheShape, Element, Error, Result, attention};

/// A cache that keeps every token's keys and values unchanged.
///
/// # Memory
/// 2 · head_dim · n_kv_heads elements per token and layer, in pages of 64 tokens (head_dim rounded up to 16
/// for values). Forks share pages until one of them writes to a page.
///
/// # Example
/// ```
/// use breakers_kv_cache::{CacheShape, Element, KvCache, LayerShape, PlainCache};
/// use burn::tensor::{Device, Distribution, Tensor};
///
/// # fn main() -> Result<(), breakers_kv_cache::Error> {
/// let device = Device::flex();
/// // One layer of 2 key-value heads, which 4 query heads share.
/// let shape = CacheShape::uniform(1, LayerShape::new(2, 64), 1024);
/// let mut cache = PlainCache::new(shape, Element::F16, &device)?;
///
/// let random = |heads| Tensor::<3>::random([5, heads, 64], Distribution::Default, &device);
/// cache.begin(5, None)?;
/// let out = cache.attend(0, random(4), random(2), random(2), 0.125)?;
/// cache.end()?;
/// assert_eq!(out.dims(), [5, 256]);
/// assert_eq!((cache.len(), cache.committed()), (5, 0));
/// cache.commit(5)?;
/// # Ok(())
/// # }
/// ```
pub type PlainCache = Cache<PlainStorage>;

/// The layers of a [`PlainCache`].
#[derive(Clone)]
pub struct PlainStorage {
    element: Element,
    layers: Vec<Layer>,
    windows: Vec<Option<usize>>,
    meter: PageMeter,
}

/// Where a layer's keys and values are.
#[derive(Clone)]
#[allow(clippy::large_enum_variant)] // A cache has a few dozen of them; their size does not matter.
enum Layer {
    Host(LayerPages),
    Device(DevicePages),
}

impl PlainCache {
    /// An empty cache on a device.
    ///
    /// # Errors
    /// [`Error::NoLayers`](crate::Error::NoLayers), [`Error::ZeroDimension`](crate::Error::ZeroDimension),
    /// [`Error::UnsupportedDevice`](crate::Error::UnsupportedDevice), and
    /// [`Error::UnsupportedElement`](crate::Error::UnsupportedElement) if the device cannot store elements of
    /// this type.
    pub fn new(shape: CacheShape, element: Element, device: &Device) -> Result<Self> {
        require(device)?;
        let on_host = device::is_cpu(device);
        Self::stored(shape, element, device, on_host)
    }

    /// An empty cache whose storage is pages in the host's memory, or tensors on the device.
    fn stored(shape: CacheShape, element: Element, device: &Device, on_host: bool) -> Result<Self> {
        shape.validate()?;
        let meter = PageMeter::default();
        let layer = |layer| match on_host {
            true => Ok(Layer::Host(LayerPages::new(layer, element, &meter))),
            false => DevicePages::new(layer, shape.max_tokens, element, device, &meter).map(Layer::Device),
        };
        let layers = shape.layers.iter().map(layer).collect::<Result<_>>()?;
        let windows = shape.layers.iter().map(|layer| layer.window).collect();
        Ok(Self::with_storage(shape, device, PlainStorage { element, layers, windows, meter }))
    }

    /// Type of the stored elements.
    pub fn element(&self) -> Element {
        self.storage.element
    }
}

impl Layers for PlainStorage {
    fn is_on_host(&self) -> bool {
        matches!(self.layers[..], [Layer::Host(_), ..])
    }

    fn stage<'a>(
        &'a mut self,
        layer: usize,
        step: &Step,
        call: HostCall<'a>,
        jobs: &mut Vec<Job<'a>>,
    ) -> Result<(), BadRow> {
        let Layer::Host(pages) = &mut self.layers[layer] else { return Ok(()) };
        pages.append(cpu::isa(), step.first, call.k, call.v)?;
        jobs.push(Job {
            source: Box::new(&*pages),
            q: call.q.into(),
            sketch: Cow::default(),
            n_heads: call.n_heads,
            scale: call.scale,
            visible: step.visible(self.windows[layer]),
            turned: None,
            out_row: 0,
            out_column: 0,
        });
        Ok(())
    }

    fn attend_on_device(
        &mut self,
        layer: usize,
        step: &Step,
        [q, k, v]: [Tensor<3>; 3],
        scale: f32,
    ) -> Result<Tensor<2>> {
        let Layer::Device(pages) = &mut self.layers[layer] else {
            return Err(Error::UnsupportedDevice { device: format!("{:?}", q.device()) });
        };
        let [k, v] = pages.append(step.first, k, v)?;
        attention(q, k, v, &step.visible(self.windows[layer]), scale)
    }
}

impl Storage for PlainStorage {
    fn bytes(&self) -> usize {
        let bytes = |layer: &Layer| match layer {
            Layer::Host(pages) => pages.bytes(),
            Layer::Device(pages) => pages.bytes(),
        };
        self.layers.iter().map(bytes).sum()
    }

    fn shared_bytes(&self) -> usize {
        let shared = |layer: &Layer| match layer {
            Layer::Host(pages) => pages.shared_bytes(),
            Layer::Device(_) => 0,
        };
        self.layers.iter().map(shared).sum()
    }

    fn bytes_per_token(&self) -> f64 {
        let bytes = |layer: &Layer| match layer {
            Layer::Host(pages) => pages.layout.page_bytes() as f64 / PAGE_TOKENS as f64,
            Layer::Device(pages) => pages.token_bytes() as f64,
        };
        self.layers.iter().map(bytes).sum()
    }

    fn meter(&self) -> &PageMeter {
        &self.meter
    }

    fn retain(&mut self, first: usize, rows: &[usize], _len: usize) {
        for layer in &mut self.layers {
            match layer {
                Layer::Host(pages) => pages.retain(first, rows),
                Layer::Device(pages) => pages.retain(first, rows),
            }
        }
    }

    fn commit(&mut self, _committed: usize, _len: usize) -> Result<()> {
        Ok(())
    }

    fn check_truncate(&self, _len: usize, _committed: usize) -> Result<()> {
        Ok(())
    }

    fn truncate(&mut self, len: usize, _before: usize) {
        for layer in &mut self.layers {
            match layer {
                Layer::Host(pages) => pages.truncate(len),
                Layer::Device(pages) => pages.truncate(len),
            }
        }
    }

    fn snapshot_kind(&self) -> Option<String> {
        self.is_on_host().then(|| saved::kind(self.element))
    }

    fn snapshot(&self, len: usize) -> Result<Box<dyn Snapshot>> {
        let mut all = Vec::new();
        for layer in &self.layers {
            let Layer::Host(pages) = layer else { return Err(Error::NoSnapshot) };
            all.extend(pages.pages[..len.div_ceil(PAGE_TOKENS)].iter().cloned());
        }
        Ok(Box::new(SavedPages(all)))
    }

    fn restore(&mut self, bytes: &SnapshotBytes, n_tokens: usize, len: usize) -> Result<()> {
        let host = |layer| match layer {
            &mut Layer::Host(ref mut pages) => Some(pages),
            Layer::Device(_) => None,
        };
        let layers: Option<Vec<&mut LayerPages>> = self.layers.iter_mut().map(host).collect();
        saved::restore(&mut layers.ok_or(Error::NoSnapshot)?, bytes, n_tokens, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KvCache, LayerShape};
    use breakers_backend::harness::{Inputs, Operation, Outputs, Tolerance};
    use burn::tensor::{Distribution, TensorData};

    /// The storage for GPUs, tested on the CPU, where its results must have the same bits as those of pages.
    #[test]
    fn tensors_on_the_device_hold_what_pages_hold() {
        let device = Device::flex();
        let layer = LayerShape::new(2, 24);
        let shape = CacheShape { layers: vec![layer.clone(), layer.with_window(40)], max_tokens: 200 };
        for element in [Element::F16, Element::F32] {
            let cache = |on_host| {
                let cache = PlainCache::stored(shape.clone(), element, &device, on_host).unwrap();
                Box::new(cache) as Box<dyn KvCache>
            };
            let mut caches = [cache(true), cache(false)];
            let step =
                |caches: &mut [Box<dyn KvCache>; 2], n_rows: usize, parents: Option<&[Option<usize>]>| {
                    for cache in caches.iter_mut() {
                        cache.begin(n_rows, parents).unwrap();
                    }
                    for layer in 0..2 {
                        let random = |n_heads| {
                            let spread = Distribution::Normal(0.0, 1.0);
                            Tensor::<3>::random([n_rows, n_heads, 24], spread, &device)
                        };
                        let (q, k, v) = (random(6), random(2), random(2));
                        let mut attend = |i: usize| -> TensorData {
                            let (q, k, v) = (q.clone(), k.clone(), v.clone());
                            caches[i].attend(layer, q, k, v, 0.3).unwrap().into_data()
                        };
                        assert_eq!(attend(0), attend(1));
                    }
                    for cache in caches {
                        cache.end().unwrap();
                    }
                };
            step(&mut caches, 70, None);
            step(&mut caches, 1, None);
            let tree = [None, Some(0), Some(0), Some(2), None];
            step(&mut caches, 5, Some(&tree));
            caches.iter_mut().for_each(|cache| cache.commit(30).unwrap());
            let kept: Vec<usize> = (0..41).chain([41, 43, 44]).collect();
            caches.iter_mut().for_each(|cache| cache.retain(&kept).unwrap());
            let mut forks = [caches[0].fork().unwrap(), caches[1].fork().unwrap()];
            step(&mut forks, 100, None);
            step(&mut caches, 3, None);
            caches.iter_mut().for_each(|cache| cache.truncate(10).unwrap());
            step(&mut caches, 2, None);
            step(&mut forks, 1, None);
            let elements = caches[1].bytes() / element.bytes();
            assert!(elements >= 2 * 2 * 2 * 24 * 12 && caches[1].bytes() < caches[0].bytes() * 4);
            caches[1].truncate(0).unwrap();
            assert_eq!(caches[1].bytes(), 0);
        }
    }

    /// Growing, trees, forks and truncation, on every device as on the CPU.
    #[test]
    fn every_device_holds_what_the_cpu_holds() {
        let tolerance = Tolerance::new("keys and values may round to sixteen bits in another way", 1e-3, 0.0);
        let run = |element: &Element, from: &mut Inputs| {
            let layer = LayerShape::new(2, 24);
            let shape = CacheShape { layers: vec![layer.clone(), layer.with_window(40)], max_tokens: 200 };
            let mut cache: Box<dyn KvCache> =
                Box::new(PlainCache::new(shape, *element, from.device()).unwrap());
            let mut outputs = Outputs::default();
            let mut step =
                |cache: &mut Box<dyn KvCache>, n_rows: usize, parents: Option<&[Option<usize>]>| {
                    cache.begin(n_rows, parents).unwrap();
                    for layer in 0..2 {
                        let [q, k, v] = [6, 2, 2].map(|n_heads| from.tensor([n_rows, n_heads, 24]));
                        let out = cache.attend(layer, q, k, v, 0.9).unwrap();
                        outputs = std::mem::take(&mut outputs).and(out);
                    }
                    cache.end().unwrap();
                };
            step(&mut cache, 70, None);
            step(&mut cache, 1, None);
            step(&mut cache, 5, Some(&[None, Some(0), Some(0), Some(2), None]));
            cache.commit(30).unwrap();
            let kept: Vec<usize> = (0..41).chain([41, 43, 44]).collect();
            cache.retain(&kept).unwrap();
            let mut fork = cache.fork().unwrap();
            step(&mut fork, 90, None);
            step(&mut cache, 3, None);
            cache.truncate(10).unwrap();
            step(&mut cache, 2, None);
            step(&mut fork, 1, None);
            outputs
        };
        Operation {
            name: "cache",
            cases: &[Element::F32, Element::F16],
            cpu: Tolerance::EXACT,
            gpu: tolerance,
            same_bits: true,
            reference: &run,
            kernel: &run,
        }
        .check();
    }
}
