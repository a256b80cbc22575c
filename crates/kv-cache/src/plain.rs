//! The plain cache: every token's keys and values, in pages that forks share.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use breakers_backend::cpu::{self, Isa};
use breakers_backend::{flex, pool};
use burn::tensor::{Device, Tensor};
use burn_flex::{Flex, FlexTensor};
use half::f16;

use crate::attend::{Job, TreeRows};
use crate::ledger::{Ledger, Step};
use crate::page::{PAGE_TOKENS, Page, PageLayout, Stored, copy_token, move_token, write_token};
use crate::simd::{self, Kernel, Simd};
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
        Ok(flex::contiguous_f32(tensor))
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
        let isa = cpu::isa();
        let not_finite = |tensor, values: &FlexTensor, row: usize| {
            let values = flex::as_slice(values);
            let values = &values[values.len() / n_rows * row..][..values.len() / n_rows];
            values.iter().find(|x| !x.is_finite()).map(|&value| Error::NotFinite { tensor, row, value })
        };
        if let Err(row) = pages.append(isa, first, flex::as_slice(&k), flex::as_slice(&v)) {
            // What was written stands behind the cache's end.
            let error = not_finite("k", &k, row).or_else(|| not_finite("v", &v, row));
            return Err(error.unwrap_or(Error::NotFinite { tensor: "k", row, value: f32::NAN }));
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
        let out = job.run(isa).map_err(|row| {
            not_finite("q", &q, row).unwrap_or(Error::NotFinite { tensor: "q", row, value: f32::NAN })
        })?;
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
    /// Writes the keys and values `[n_rows, n_kv_heads, head_dim]` to the slots from `first` on; fails with a
    /// row that holds a NaN or an infinity.
    fn append(&mut self, isa: Isa, first: usize, k: &[f32], v: &[f32]) -> Result<(), usize> {
        let layout = self.layout;
        let width = layout.n_kv_heads * layout.head_dim;
        let end = first + k.len() / width;
        while self.pages.len() * PAGE_TOKENS < end {
            self.pages.push(Arc::new(Page::zeroed(&layout)));
        }
        let first_page = first / PAGE_TOKENS;
        let bad_row = AtomicUsize::new(usize::MAX);
        let write = |at: usize, page: &mut Arc<Page>| {
            let start = (first_page + at) * PAGE_TOKENS;
            let slots = first.max(start) - start..end.min(start + PAGE_TOKENS) - start;
            let row = start + slots.start - first;
            let rows = row * width..(row + slots.len()) * width;
            let write =
                WriteTokens { layout, page: Arc::make_mut(page), slots, k: &k[rows.clone()], v: &v[rows] };
            if let Err(bad) = simd::dispatch(isa, write) {
                bad_row.fetch_min(row + bad, Ordering::Relaxed);
            }
        };
        let pages = &mut self.pages[first_page..];
        match pages {
            [page] => write(0, page),
            pages => pool::parallel_chunks_mut(pages, 1, |at, page| write(at, &mut page[0])),
        }
        match bad_row.into_inner() {
            usize::MAX => Ok(()),
            row => Err(row),
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

/// Writes tokens `[n_rows, n_kv_heads, head_dim]` into one page; fails with a row that holds a NaN or an
/// infinity.
struct WriteTokens<'a> {
    layout: PageLayout,
    page: &'a mut Page,
    slots: Range<usize>,
    k: &'a [f32],
    v: &'a [f32],
}

impl WriteTokens<'_> {
    /// # Safety
    /// `S`'s instructions are there.
    #[inline(always)]
    unsafe fn run_as<S: Simd, E: Stored>(self) -> Result<(), usize> {
        let head_dim = self.layout.head_dim;
        let width = self.layout.n_kv_heads * head_dim;
        let mut result = Ok(());
        for head in 0..self.layout.n_kv_heads {
            let region = self.page.region_mut::<E>(&self.layout, head);
            for (row, slot) in self.slots.clone().enumerate() {
                let at = row * width + head * head_dim;
                let (key, value) = (&self.k[at..][..head_dim], &self.v[at..][..head_dim]);
                // SAFETY: the caller's promise.
                if !unsafe { write_token::<S, E>(&self.layout, region, slot, key, value) } {
                    result = Err(row.min(result.err().unwrap_or(row)));
                }
            }
        }
        result
    }
}

impl Kernel for WriteTokens<'_> {
    type Output = Result<(), usize>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        // SAFETY: the caller's promise.
        unsafe {
            match self.layout.element {
                Element::F16 => self.run_as::<S, f16>(),
                Element::F32 => self.run_as::<S, f32>(),
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
