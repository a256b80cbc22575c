//! The plain cache: every token's keys and values, in pages that forks share.

use std::sync::Arc;

use breakers_backend::{device, flex};
use breakers_cpu as cpu;
use burn::tensor::{Device, Tensor};
use burn_flex::Flex;

use crate::attention::flex::job::Job;
use crate::cache::ledger::Ledger;
use crate::checks::{self, HostRows, require};
use crate::pages::device::DevicePages;
use crate::pages::layer::LayerPages;
use crate::{CacheHook, CacheShape, Element, KvCache, Result, Visible};

/// A cache that keeps every token's keys and values as they are.
///
/// # Memory
/// 2 · head_dim · n_kv_heads elements a token and layer, in pages of 64 tokens (head_dim rounded up to 16 for
/// values). Forks share pages until one of them writes to a page.
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
pub struct PlainCache {
    shape: Arc<CacheShape>,
    element: Element,
    device: Device,
    layers: Vec<Layer>,
    ledger: Ledger,
    hooks: Vec<Box<dyn CacheHook>>,
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
    /// [`Error::UnsupportedElement`](crate::Error::UnsupportedElement) if the device cannot store elements of this type.
    pub fn new(shape: CacheShape, element: Element, device: &Device) -> Result<Self> {
        require(device)?;
        let on_host = device::is_cpu(device);
        Self::with_storage(shape, element, device, on_host)
    }

    /// An empty cache whose storage is pages in the host's memory, or tensors on the device.
    fn with_storage(shape: CacheShape, element: Element, device: &Device, on_host: bool) -> Result<Self> {
        shape.validate()?;
        let layer = |layer| match on_host {
            true => Ok(Layer::Host(LayerPages::new(layer, element))),
            false => DevicePages::new(layer, shape.max_tokens, element, device).map(Layer::Device),
        };
        let layers = shape.layers.iter().map(layer).collect::<Result<_>>()?;
        let ledger = Ledger::new(shape.layers.len(), shape.max_tokens);
        let device = device.clone();
        Ok(Self { shape: Arc::new(shape), element, device, layers, ledger, hooks: Vec::new() })
    }

    /// Type of the stored elements.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Bytes of the pages that other caches hold, too. On a GPU, whose storage is one piece a layer, 0.
    pub fn shared_bytes(&self) -> usize {
        let shared = |layer: &Layer| match layer {
            Layer::Host(pages) => pages.shared_bytes(),
            Layer::Device(_) => 0,
        };
        self.layers.iter().map(shared).sum()
    }

    /// Gives back the storage behind the first `len` tokens.
    fn shrink(&mut self, len: usize) {
        for layer in &mut self.layers {
            match layer {
                Layer::Host(pages) => pages.truncate(len),
                Layer::Device(pages) => pages.truncate(len),
            }
        }
    }
}

impl Layer {
    /// Appends the tokens behind the first `first` ones and attends.
    fn attend(
        &mut self,
        first: usize,
        q: Tensor<3>,
        k: Tensor<3>,
        v: Tensor<3>,
        visible: &Visible,
        scale: f32,
    ) -> Result<Tensor<2>> {
        let pages = match self {
            Self::Host(pages) => pages,
            Self::Device(pages) => return pages.attend(first, q, k, v, visible, scale),
        };
        let [n_rows, n_heads, head_dim] = q.dims();
        let rows = HostRows::new(q, k, v)?;
        let [q, k, v] = rows.slices();
        let isa = cpu::isa();
        // What is written before an error is found stands behind the cache's end.
        pages.append(isa, first, k, v).map_err(|bad| rows.not_finite(bad))?;
        let (layout, pages) = (pages.layout, &pages.pages);
        let job = Job { layout, pages, q, n_heads, scale, visible, packed: None };
        let out = job.run(isa).map_err(|row| rows.not_finite((0, row)))?;
        Ok(Tensor::from_primitive::<Flex>(flex::from_vec(out, [n_rows, n_heads * head_dim])))
    }
}

impl KvCache for PlainCache {
    fn shape(&self) -> &CacheShape {
        &self.shape
    }

    fn len(&self) -> usize {
        self.ledger.len()
    }

    fn committed(&self) -> usize {
        self.ledger.committed()
    }

    fn bytes(&self) -> usize {
        let bytes = |layer: &Layer| match layer {
            Layer::Host(pages) => pages.bytes(),
            Layer::Device(pages) => pages.bytes(),
        };
        self.layers.iter().map(bytes).sum()
    }

    fn begin(&mut self, n_rows: usize, parents: Option<&[Option<usize>]>) -> Result<()> {
        self.ledger.begin(n_rows, parents)
    }

    fn attend(
        &mut self,
        layer: usize,
        q: Tensor<3>,
        k: Tensor<3>,
        v: Tensor<3>,
        scale: f32,
    ) -> Result<Tensor<2>> {
        let step = self.ledger.layer(layer)?;
        let shape = &self.shape.layers[layer];
        checks::check(step.n_rows, shape, &self.device, [&q, &k, &v], scale)?;
        let first = self.ledger.len();
        let paths = step.tree.as_ref().map(|tree| &tree.paths);
        let visible = Visible::step(first, &step.depths, paths, shape.window);
        let for_hooks = (!self.hooks.is_empty()).then(|| [q.clone(), k.clone(), v.clone()]);
        let out = self.layers[layer].attend(first, q, k, v, &visible, scale)?;
        if let Some(tensors) = for_hooks {
            checks::show(&mut self.hooks, layer, &tensors, first, &step.depths);
        }
        self.ledger.layer_done();
        Ok(out)
    }

    fn end(&mut self) -> Result<()> {
        self.ledger.end()
    }

    fn abort(&mut self) {
        if self.ledger.abort() {
            self.shrink(self.ledger.len());
            self.hooks.iter_mut().for_each(|hook| hook.aborted());
        }
    }

    fn retain(&mut self, rows: &[usize]) -> Result<()> {
        self.ledger.check_retain(rows)?;
        let first = self.ledger.committed();
        for layer in &mut self.layers {
            match layer {
                Layer::Host(pages) => pages.retain(first, rows),
                Layer::Device(pages) => pages.retain(first, rows),
            }
        }
        self.ledger.retained(rows.len());
        self.shrink(self.ledger.len());
        self.hooks.iter_mut().for_each(|hook| hook.retained(rows));
        Ok(())
    }

    fn commit(&mut self, n_tokens: usize) -> Result<()> {
        self.ledger.commit(n_tokens)?;
        self.hooks.iter_mut().for_each(|hook| hook.committed(n_tokens));
        Ok(())
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.ledger.check_truncate(len)?;
        self.ledger.truncated(len);
        self.shrink(len);
        self.hooks.iter_mut().for_each(|hook| hook.truncated(len));
        Ok(())
    }

    fn fork(&self) -> Result<Box<dyn KvCache>> {
        self.ledger.closed("fork")?;
        Ok(Box::new(Self {
            shape: Arc::clone(&self.shape),
            element: self.element,
            device: self.device.clone(),
            layers: self.layers.clone(),
            ledger: self.ledger.clone(),
            hooks: Vec::new(),
        }))
    }

    fn add_hook(&mut self, hook: Box<dyn CacheHook>) {
        self.hooks.push(hook);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LayerShape;
    use breakers_backend::harness::{Inputs, Operation, Outputs, Tolerance};
    use burn::tensor::{Distribution, TensorData};

    /// The storage for GPUs, tried on the CPU, where its results must have the bits of the pages'.
    #[test]
    fn tensors_on_the_device_hold_what_pages_hold() {
        let device = Device::flex();
        let layer = LayerShape::new(2, 24);
        let shape = CacheShape { layers: vec![layer.clone(), layer.with_window(40)], max_tokens: 200 };
        for element in [Element::F16, Element::F32] {
            let cache = |on_host| {
                let cache = PlainCache::with_storage(shape.clone(), element, &device, on_host).unwrap();
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
