//! Pages whose bytes only their coder can read.
//!
//! A page holds for each key-value head the bytes of its keys, then those of its values. For attention a head
//! is decoded into a plain page's region.

use breakers_cpu::simd::{Simd, Stored};

use super::PackedPage;
use crate::coders::PageCoder;
use crate::pages::page::{PAGE_TOKENS, PageLayout, write_token};

/// How one layer's pages are turned into bytes.
pub(crate) struct BytesFormat {
    n_kv_heads: usize,
    head_dim: usize,
    keys: Box<dyn PageCoder>,
    values: Box<dyn PageCoder>,
    key_bytes: usize,
    value_bytes: usize,
}

impl BytesFormat {
    pub(crate) fn new(
        n_kv_heads: usize,
        head_dim: usize,
        keys: Box<dyn PageCoder>,
        values: Box<dyn PageCoder>,
    ) -> Self {
        let (key_bytes, value_bytes) = (keys.page_bytes(), values.page_bytes());
        Self { n_kv_heads, head_dim, keys, values, key_bytes, value_bytes }
    }

    /// Bytes of a page's storage, exact slots apart.
    pub(crate) fn page_bytes(&self) -> usize {
        self.n_kv_heads * (self.key_bytes + self.value_bytes)
    }

    /// Codes one head's keys and values, `[PAGE_TOKENS, head_dim]` each, of which the first
    /// `n_exact` slots stay exact.
    pub(crate) fn encode(&self, page: &mut PackedPage, head: usize, rows: [&[f32]; 2], n_exact: usize) {
        let size = self.key_bytes + self.value_bytes;
        let (keys, values) = page.raw_mut()[head * size..][..size].split_at_mut(self.key_bytes);
        let [key_rows, value_rows] = rows.map(|rows| &rows[n_exact * self.head_dim..]);
        self.keys.encode(key_rows, keys);
        self.values.encode(value_rows, values);
    }

    /// Writes one head of a page into a plain region.
    ///
    /// # Safety
    /// `S`'s instructions are there.
    #[inline(always)]
    pub(crate) unsafe fn decode<S: Simd, E: Stored>(
        &self,
        page: &PackedPage,
        head: usize,
        layout: &PageLayout,
        region: &mut [E],
    ) {
        let [keys, values] = self.decoded(page, head);
        let rows = keys.chunks_exact(self.head_dim).zip(values.chunks_exact(self.head_dim));
        for (slot, (key, value)) in rows.enumerate() {
            // SAFETY: the caller's promise. A NaN from the coder appears in the result, as in any plain page.
            unsafe { write_token::<S, E>(layout, region, slot, key, value) };
        }
    }

    /// One head's keys and values, `[PAGE_TOKENS, head_dim]` each.
    fn decoded(&self, page: &PackedPage, head: usize) -> [Vec<f32>; 2] {
        let (dim, size) = (self.head_dim, self.key_bytes + self.value_bytes);
        let mut rows = [(); 2].map(|()| vec![0.0f32; PAGE_TOKENS * dim]);
        let exact = page.exact(self.n_kv_heads, head).chunks_exact(2 * dim);
        let n_exact = exact.len();
        for (slot, exact) in exact.enumerate() {
            for (rows, exact) in rows.iter_mut().zip(exact.chunks_exact(dim)) {
                let row = &mut rows[slot * dim..][..dim];
                row.iter_mut().zip(exact).for_each(|(to, from)| *to = from.to_f32());
            }
        }
        let (keys, values) = page.raw()[head * size..][..size].split_at(self.key_bytes);
        self.keys.decode(keys, &mut rows[0][n_exact * dim..]);
        self.values.decode(values, &mut rows[1][n_exact * dim..]);
        rows
    }
}
