//! The plain cache: every token's keys and values, in pages that forks share.

use std::ops::Range;
use std::sync::Arc;

use breakers_backend::{cpu, flex};
use burn::tensor::{Device, Tensor};
use burn_flex::{Flex, FlexTensor};
use half::f16;

use crate::attend::{Job, TreeRows};
use crate::ledger::{Ledger, Step};
use crate::page::{PAGE_TOKENS, Page, PageLayout, Stored, copy_token, move_token, write_token};
use crate::{CacheHook, CacheShape, Element, Error, KvCache, Result};

/// The pages of one layer.
#[derive(Clone)]
struct LayerPages {
    layout: PageLayout,
    pages: Vec<Arc<Page>>,
}

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
    layers: Vec<LayerPages>,
    ledger: Ledger,
    hooks: Vec<Box<dyn CacheHook>>,
}

impl PlainCache {
    /// An empty cache on a device.
    ///
    /// # Errors
    /// [`Error::NoLayers`], [`Error::ZeroDimension`].
    pub fn new(shape: CacheShape, element: Element, device: &Device) -> Result<Self> {
        shape.validate()?;
        let layers = shape
            .layers
            .iter()
            .map(|layer| LayerPages { layout: PageLayout::new(layer, element), pages: Vec::new() })
            .collect();
        let ledger = Ledger::new(shape.layers.len(), shape.max_tokens);
        let device = device.clone();
        Ok(Self { shape: Arc::new(shape), element, device, layers, ledger, hooks: Vec::new() })
    }

    /// Type of the stored elements.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Bytes of the pages that other caches hold, too.
    pub fn shared_bytes(&self) -> usize {
        let pages = self.layers.iter().flat_map(|layer| &layer.pages);
        pages.filter(|page| Arc::strong_count(page) > 1).map(|page| page.bytes()).sum()
    }

    /// The tensor's elements, if its shape and device are as expected.
    fn input(&self, name: &'static str, tensor: Tensor<3>, expected: [usize; 3]) -> Result<FlexTensor> {
        let found = tensor.dims();
        if found != expected {
            return Err(Error::TensorShape { tensor: name, expected, found });
        }
        let device = tensor.device();
        let tensor = tensor.try_into_primitive::<Flex>().map_err(|_| Error::Device {
            tensor: name,
            expected: format!("{:?}", self.device),
            found: format!("{device:?}"),
        })?;
        let tensor = flex::contiguous_f32(tensor);
        check_finite(name, flex::as_slice(&tensor), expected[1] * expected[2])?;
        Ok(tensor)
    }

    /// Drops the pages behind the first `len` tokens.
    fn drop_pages(&mut self, len: usize) {
        for layer in &mut self.layers {
            layer.pages.truncate(len.div_ceil(PAGE_TOKENS));
        }
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
        let page_lists: usize =
            self.layers.iter().map(|layer| layer.pages.capacity() * size_of::<Arc<Page>>()).sum();
        let pages = self.layers.iter().flat_map(|layer| &layer.pages);
        page_lists + pages.map(|page| page.bytes()).sum::<usize>()
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
        let n_rows = step.n_rows;
        let shape = &self.shape.layers[layer];
        if !scale.is_finite() {
            return Err(Error::NotFinite { tensor: "scale", row: 0, value: scale });
        }
        let n_heads = q.dims()[1];
        if n_heads == 0 || !n_heads.is_multiple_of(shape.n_kv_heads) {
            return Err(Error::HeadCount { n_heads, n_kv_heads: shape.n_kv_heads });
        }
        let for_hooks = (!self.hooks.is_empty()).then(|| (q.clone(), k.clone(), v.clone()));
        let stored = [n_rows, shape.n_kv_heads, shape.head_dim];
        let q = self.input("q", q, [n_rows, n_heads, shape.head_dim])?;
        let k = self.input("k", k, stored)?;
        let v = self.input("v", v, stored)?;

        let first = self.ledger.len();
        let spans = spans(step, first, shape.window);
        let pages = &mut self.layers[layer];
        match self.element {
            Element::F16 => pages.append::<f16>(first, flex::as_slice(&k), flex::as_slice(&v)),
            Element::F32 => pages.append::<f32>(first, flex::as_slice(&k), flex::as_slice(&v)),
        }
        let job = Job {
            layout: pages.layout,
            pages: &pages.pages,
            q: flex::as_slice(&q),
            n_heads,
            scale,
            spans: &spans,
            tree: step.tree.as_ref().map(|tree| TreeRows { prefix: first, paths: &tree.paths }),
        };
        let out = job.run(cpu::isa());
        let out = flex::from_vec(out, [n_rows, n_heads * shape.head_dim]);

        if let Some((q, k, v)) = for_hooks {
            let positions: Vec<usize> = step.depths.iter().map(|depth| first + depth).collect();
            for hook in &mut self.hooks {
                hook.appended(layer, &q, &k, &v, &positions);
            }
        }
        self.ledger.layer_done();
        Ok(Tensor::from_primitive::<Flex>(out))
    }

    fn end(&mut self) -> Result<()> {
        self.ledger.end()
    }

    fn abort(&mut self) {
        if self.ledger.abort() {
            self.drop_pages(self.ledger.len());
            self.hooks.iter_mut().for_each(|hook| hook.aborted());
        }
    }

    fn retain(&mut self, rows: &[usize]) -> Result<()> {
        self.ledger.check_retain(rows)?;
        let first = self.ledger.committed();
        for (kept, &row) in rows.iter().enumerate().filter(|(kept, row)| kept != *row) {
            for layer in &mut self.layers {
                match self.element {
                    Element::F16 => layer.move_token::<f16>(first + row, first + kept),
                    Element::F32 => layer.move_token::<f32>(first + row, first + kept),
                }
            }
        }
        self.ledger.retained(rows.len());
        self.drop_pages(self.ledger.len());
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
        self.drop_pages(len);
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

impl LayerPages {
    /// Writes the keys and values `[n_rows, n_kv_heads, head_dim]` to the slots from `first` on.
    fn append<E: Stored>(&mut self, first: usize, k: &[f32], v: &[f32]) {
        let layout = self.layout;
        let row = layout.n_kv_heads * layout.head_dim;
        for (i, (k, v)) in k.chunks_exact(row).zip(v.chunks_exact(row)).enumerate() {
            let slot = first + i;
            if slot / PAGE_TOKENS >= self.pages.len() {
                self.pages.push(Arc::new(Page::zeroed(&layout)));
            }
            let page = Arc::make_mut(&mut self.pages[slot / PAGE_TOKENS]);
            let heads = k.chunks_exact(layout.head_dim).zip(v.chunks_exact(layout.head_dim));
            for (head, (key, value)) in heads.enumerate() {
                let region = page.region_mut::<E>(&layout, head);
                write_token(&layout, region, slot % PAGE_TOKENS, key, value);
            }
        }
    }

    /// Copies a token to another slot.
    fn move_token<E: Stored>(&mut self, from: usize, to: usize) {
        let layout = self.layout;
        let (from_page, to_page) = (from / PAGE_TOKENS, to / PAGE_TOKENS);
        let other = (from_page != to_page).then(|| Arc::clone(&self.pages[from_page]));
        let target = Arc::make_mut(&mut self.pages[to_page]);
        let (from, to) = (from % PAGE_TOKENS, to % PAGE_TOKENS);
        for head in 0..layout.n_kv_heads {
            let target = target.region_mut::<E>(&layout, head);
            match &other {
                Some(source) => copy_token(&layout, source.region::<E>(&layout, head), from, target, to),
                None => move_token(&layout, target, from, to),
            }
        }
    }
}

/// For each row of a step the slots that it sees, its path taken as a chain.
fn spans(step: &Step, first: usize, window: Option<usize>) -> Vec<Range<usize>> {
    let span = |depth: &usize| {
        let end = first + depth + 1;
        window.map_or(0, |window| end.saturating_sub(window))..end
    };
    step.depths.iter().map(span).collect()
}

fn check_finite(tensor: &'static str, values: &[f32], row: usize) -> Result<()> {
    // No early exit within a block, so that the scan vectorizes.
    let bad = |block: &[f32]| block.iter().fold(false, |bad, x| bad | !x.is_finite());
    match values.chunks(256).position(bad) {
        None => Ok(()),
        Some(block) => {
            let at = values[block * 256..].iter().position(|x| !x.is_finite()).unwrap_or(0) + block * 256;
            Err(Error::NotFinite { tensor, row: at / row, value: values[at] })
        }
    }
}
