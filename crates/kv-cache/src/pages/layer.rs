//! The pages of one layer in the host's memory.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use breakers_cpu::Isa;
use breakers_cpu::pool;
use half::f16;

use super::meter::PageMeter;
use crate::pages::page::{PAGE_TOKENS, Page, PageLayout, copy_token, move_token, write_token};
use crate::{Element, LayerShape};
use breakers_cpu::simd::{self, Kernel, Simd, Stored};

/// Where a NaN or an infinity was found: 0, 1 or 2 for queries, keys or values, and the row.
pub(crate) type BadRow = (usize, usize);

/// Keys and values of one layer, slot by slot. Clones share the pages until one of them writes.
#[derive(Clone)]
pub(crate) struct LayerPages {
    pub(crate) layout: PageLayout,
    pub(crate) pages: Vec<Arc<Page>>,
    meter: PageMeter,
    /// What makes a new page.
    zeroed: fn(&PageLayout, &PageMeter) -> Page,
}

impl LayerPages {
    pub(crate) fn new(layer: &LayerShape, element: Element, meter: &PageMeter) -> Self {
        let (layout, meter) = (PageLayout::new(layer, element), meter.clone());
        Self { layout, pages: Vec::new(), meter, zeroed: Page::zeroed }
    }

    /// Pages that do not stay.
    pub(crate) fn transient(layer: &LayerShape, element: Element, meter: &PageMeter) -> Self {
        Self { zeroed: Page::zeroed_apart, ..Self::new(layer, element, meter) }
    }

    pub(crate) fn meter(&self) -> &PageMeter {
        &self.meter
    }

    pub(crate) fn bytes(&self) -> usize {
        let list = self.pages.capacity() * size_of::<Arc<Page>>();
        list + self.pages.iter().map(|page| page.bytes()).sum::<usize>()
    }

    /// Bytes of the pages that other caches hold, too.
    pub(crate) fn shared_bytes(&self) -> usize {
        self.pages.iter().filter(|page| Arc::strong_count(page) > 1).map(|page| page.bytes()).sum()
    }

    /// Drops the pages after the first `len` slots.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.pages.truncate(len.div_ceil(PAGE_TOKENS));
    }

    /// Moves the tokens `first + row` for each of `rows`, which ascend, to the slots from `first` on.
    pub(crate) fn retain(&mut self, first: usize, rows: &[usize]) {
        for (kept, &row) in rows.iter().enumerate().filter(|(kept, row)| kept != *row) {
            match self.layout.element {
                Element::F16 => self.move_token::<f16>(first + row, first + kept),
                Element::F32 => self.move_token::<f32>(first + row, first + kept),
            }
        }
    }

    /// Writes the keys and values `[n_rows, n_kv_heads, head_dim]` to the slots from `first` on. Fails with
    /// the row that holds a NaN or an infinity; the contents of the slots are then unspecified.
    pub(crate) fn append(&mut self, isa: Isa, first: usize, k: &[f32], v: &[f32]) -> Result<(), BadRow> {
        let layout = self.layout;
        let width = layout.n_kv_heads * layout.head_dim;
        let end = first + k.len() / width;
        while self.pages.len() * PAGE_TOKENS < end {
            self.pages.push(Arc::new((self.zeroed)(&layout, &self.meter)));
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
            row => {
                let in_key = k[row * width..][..width].iter().any(|x| !x.is_finite());
                Err((if in_key { 1 } else { 2 }, row))
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
