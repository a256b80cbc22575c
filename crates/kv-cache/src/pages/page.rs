//! Pages: the keys and values of [`PAGE_TOKENS`] consecutive slots of one layer.
//!
//! A page holds one region after the other for the layer's key-value heads; a region is laid out for kernels
//! that read it once from front to back, 16 lanes at a time:
//! - keys: for each 16 slots one block `[head_dim][16]`, so that a register holds one element of 16 keys and
//!   scores build up without sums across lanes;
//! - values: for each 64 elements of the head one panel `[PAGE_TOKENS][64]` (the last panel narrower, a
//!   multiple of 16), so that a register holds 16 elements of one value.
//!
//! # Memory
//! `PAGE_TOKENS · n_kv_heads · (head_dim + head_dim rounded up to 16)` elements.

use std::sync::Arc;

use breakers_core::SnapshotBytes;
use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

use super::meter::{Lease, PageMeter};
use crate::{Element, LayerShape};
use breakers_cpu::simd::{self, Simd, Stored};

/// Slots of a page. Pages begin at multiples of it.
pub(crate) const PAGE_TOKENS: usize = 64;
/// Slots of a block of keys: a register holds one element of each.
pub(crate) const LANES: usize = simd::LANES;
/// Blocks of keys in a page.
pub(crate) const PAGE_BLOCKS: usize = PAGE_TOKENS / LANES;
/// Elements of a value that one panel holds.
pub(crate) const PANEL: usize = 64;

/// A cache line: makes the page's storage aligned.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

/// The layout of the pages of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageLayout {
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    /// `head_dim` rounded up to [`LANES`].
    pub(crate) padded_dim: usize,
    pub(crate) element: Element,
}

impl PageLayout {
    pub(crate) fn new(layer: &LayerShape, element: Element) -> Self {
        let padded_dim = layer.head_dim.next_multiple_of(LANES);
        Self { n_kv_heads: layer.n_kv_heads, head_dim: layer.head_dim, padded_dim, element }
    }

    /// Elements of one head's region.
    pub(crate) fn region_elements(&self) -> usize {
        PAGE_TOKENS * (self.head_dim + self.padded_dim)
    }

    pub(crate) fn page_bytes(&self) -> usize {
        self.n_kv_heads * self.region_elements() * self.element.bytes()
    }

    /// Index of a key's element in a head's region.
    #[inline(always)]
    pub(crate) fn key_index(&self, slot: usize, dim: usize) -> usize {
        (slot / LANES * self.head_dim + dim) * LANES + slot % LANES
    }

    /// Index of a value's element in a head's region; elements up to the next multiple of [`LANES`] follow.
    #[inline(always)]
    pub(crate) fn value_index(&self, slot: usize, dim: usize) -> usize {
        let panel = dim / PANEL * PANEL;
        let width = PANEL.min(self.padded_dim - panel);
        PAGE_TOKENS * (self.head_dim + panel) + slot * width + (dim - panel)
    }
}

/// The storage of one page.
pub(crate) struct Page {
    storage: Storage,
    lease: Option<Lease>,
}

enum Storage {
    Heap(Box<[Line]>),
    /// A part of what others own, which is read and never written: from this byte on, so many.
    Foreign(SnapshotBytes, usize, usize),
    /// A separate mapping, which is returned to the system as soon as the page is dropped.
    Apart(MmapMut),
}

/// Smaller pages are not mapped on their own: these are whole pages of the system.
const LEAST_APART: usize = 32 << 10;

impl Page {
    pub(crate) fn zeroed(layout: &PageLayout, meter: &PageMeter) -> Self {
        let n_lines = layout.page_bytes().div_ceil(size_of::<Line>());
        Self::new(Storage::Heap(vec![Line::zeroed(); n_lines].into_boxed_slice()), meter)
    }

    fn new(storage: Storage, meter: &PageMeter) -> Self {
        let lease = Some(meter.lease(storage.bytes().len()));
        Self { storage, lease }
    }

    /// A page that will be dropped before its neighbors: on the heap it would leave a hole that other sizes
    /// do not fill well.
    pub(crate) fn zeroed_apart(layout: &PageLayout, meter: &PageMeter) -> Self {
        let n_bytes = layout.page_bytes();
        let map = (n_bytes >= LEAST_APART).then(|| MmapMut::map_anon(n_bytes));
        match map {
            Some(Ok(map)) => Self::new(Storage::Apart(map), meter),
            _ => Self::zeroed(layout, meter),
        }
    }

    /// A page without storage, for slots that are not read anymore.
    pub(crate) fn empty() -> Self {
        Self { storage: Storage::Heap(Box::default()), lease: None }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.storage().len()
    }

    pub(crate) fn storage(&self) -> &[u8] {
        self.storage.bytes()
    }

    /// Bytes of every page of a layout, however it is allocated.
    pub(crate) fn stored_bytes(layout: &PageLayout) -> usize {
        layout.page_bytes().next_multiple_of(size_of::<Line>())
    }

    /// A page that lies in other bytes from `at` on; `None` if it does not, or not aligned.
    pub(crate) fn read(
        bytes: &SnapshotBytes,
        at: usize,
        layout: &PageLayout,
        meter: &PageMeter,
    ) -> Option<Self> {
        let n_bytes = Self::stored_bytes(layout);
        let part = (**bytes).as_ref().get(at..)?.get(..n_bytes)?;
        let is_aligned = part.as_ptr().addr().is_multiple_of(align_of::<Line>());
        is_aligned.then(|| Self::new(Storage::Foreign(Arc::clone(bytes), at, n_bytes), meter))
    }

    pub(crate) fn region<E: Stored>(&self, layout: &PageLayout, head: usize) -> &[E] {
        debug_assert_eq!(E::IS_HALF, layout.element == Element::F16);
        let n = layout.region_elements();
        &bytemuck::cast_slice(self.storage())[head * n..][..n]
    }

    pub(crate) fn region_mut<E: Stored>(&mut self, layout: &PageLayout, head: usize) -> &mut [E] {
        debug_assert_eq!(E::IS_HALF, layout.element == Element::F16);
        let n = layout.region_elements();
        if let Storage::Foreign(..) = self.storage {
            self.storage = Storage::Heap(bytemuck::cast_slice(self.storage()).into());
        }
        let storage: &mut [u8] = match &mut self.storage {
            Storage::Heap(lines) => bytemuck::cast_slice_mut(lines),
            Storage::Apart(map) => map,
            Storage::Foreign(..) => &mut [],
        };
        &mut bytemuck::cast_slice_mut(storage)[head * n..][..n]
    }
}

impl Clone for Page {
    fn clone(&self) -> Self {
        let apart = match &self.storage {
            Storage::Heap(_) | Storage::Foreign(..) => None,
            Storage::Apart(map) => MmapMut::map_anon(map.len()).ok(),
        };
        let storage = match apart {
            Some(mut copy) => {
                copy.copy_from_slice(self.storage());
                Storage::Apart(copy)
            }
            // Mappings are aligned, too.
            None => Storage::Heap(bytemuck::cast_slice(self.storage()).into()),
        };
        Self { storage, lease: self.lease.clone() }
    }
}

impl Storage {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Heap(lines) => bytemuck::cast_slice(lines),
            Self::Apart(map) => map,
            Self::Foreign(bytes, at, n_bytes) => &(**bytes).as_ref()[*at..][..*n_bytes],
        }
    }
}

/// Writes one token's key and value into a head's region, and returns whether all elements were finite.
///
/// # Safety
/// `S`'s instructions are there.
#[inline(always)]
pub(crate) unsafe fn write_token<S: Simd, E: Stored>(
    layout: &PageLayout,
    region: &mut [E],
    slot: usize,
    key: &[f32],
    value: &[f32],
) -> bool {
    let head_dim = layout.head_dim;
    assert!(key.len() == head_dim && value.len() == head_dim && slot < PAGE_TOKENS);
    assert!(region.len() == layout.region_elements());
    // SAFETY: the caller's promise. Sixteen elements of the inputs are read only where there are as many;
    // those of a slot's value have room up to the next multiple of LANES.
    unsafe {
        // Zero times a finite number is zero; otherwise it is NaN.
        let zero = S::splat(0.0);
        let mut check = zero;
        for dim in (0..head_dim).step_by(LANES) {
            let left = head_dim - dim;
            let (k, v) = if left >= LANES {
                (S::load(key.as_ptr().add(dim)), S::load(value.as_ptr().add(dim)))
            } else {
                let mut last = [[0.0f32; LANES]; 2];
                last[0][..left].copy_from_slice(&key[dim..]);
                last[1][..left].copy_from_slice(&value[dim..]);
                (S::load(last[0].as_ptr()), S::load(last[1].as_ptr()))
            };
            check = S::fma(k, zero, S::fma(v, zero, check));
            S::narrow(region.as_mut_ptr().add(layout.value_index(slot, dim)), v);
            let mut narrow = [E::zeroed(); LANES];
            S::narrow(narrow.as_mut_ptr(), k);
            let keys = region[layout.key_index(slot, dim)..].iter_mut().step_by(LANES);
            for (lane, &x) in keys.zip(&narrow[..left.min(LANES)]) {
                *lane = x;
            }
        }
        S::reduce_add(check) == 0.0
    }
}

/// Copies one token from a region to another one.
pub(crate) fn copy_token<E: Stored>(
    layout: &PageLayout,
    from: &[E],
    from_slot: usize,
    to: &mut [E],
    to_slot: usize,
) {
    let source = from[layout.key_index(from_slot, 0)..].iter().step_by(LANES);
    let target = to[layout.key_index(to_slot, 0)..].iter_mut().step_by(LANES);
    for (target, source) in target.zip(source).take(layout.head_dim) {
        *target = *source;
    }
    for dim in (0..layout.padded_dim).step_by(PANEL) {
        let width = PANEL.min(layout.padded_dim - dim);
        let source = layout.value_index(from_slot, dim);
        let target = layout.value_index(to_slot, dim);
        to[target..][..width].copy_from_slice(&from[source..][..width]);
    }
}

/// Copies one token to another slot of the same region.
pub(crate) fn move_token<E: Stored>(layout: &PageLayout, region: &mut [E], from_slot: usize, to_slot: usize) {
    let (source, target) = (layout.key_index(from_slot, 0), layout.key_index(to_slot, 0));
    for at in (0..layout.head_dim * LANES).step_by(LANES) {
        region[target + at] = region[source + at];
    }
    for dim in (0..layout.padded_dim).step_by(PANEL) {
        let width = PANEL.min(layout.padded_dim - dim);
        let source = layout.value_index(from_slot, dim);
        region.copy_within(source..source + width, layout.value_index(to_slot, dim));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use breakers_cpu::simd::Scalar;
    use half::f16;

    #[test]
    fn every_element_has_its_own_place() {
        for head_dim in [1, 15, 16, 40, 64, 80, 128, 200] {
            let layout = PageLayout::new(&LayerShape::new(2, head_dim), Element::F32);
            let mut seen = vec![false; layout.region_elements()];
            for slot in 0..PAGE_TOKENS {
                let keys = (0..head_dim).map(|dim| layout.key_index(slot, dim));
                let values = (0..layout.padded_dim).map(|dim| layout.value_index(slot, dim));
                for index in keys.chain(values) {
                    assert!(!std::mem::replace(&mut seen[index], true), "{head_dim}: {slot}, {index}");
                }
            }
            assert!(seen.iter().all(|&s| s), "{head_dim}");
        }
    }

    #[test]
    fn tokens_are_copied_whole() {
        let layout = PageLayout::new(&LayerShape::new(1, 80), Element::F16);
        let key: Vec<f32> = (0..80).map(|i| i as f32 * 0.5).collect();
        let value: Vec<f32> = (0..80).map(|i| -(i as f32)).collect();
        let meter = PageMeter::default();
        let (mut a, mut b) = (Page::zeroed(&layout, &meter), Page::zeroed(&layout, &meter));
        // SAFETY: plain Rust runs everywhere.
        let finite =
            unsafe { write_token::<Scalar, f16>(&layout, a.region_mut(&layout, 0), 5, &key, &value) };
        assert!(finite);
        copy_token::<f16>(&layout, a.region(&layout, 0), 5, b.region_mut(&layout, 0), 49);
        move_token::<f16>(&layout, b.region_mut(&layout, 0), 49, 3);
        let region = b.region::<f16>(&layout, 0);
        for slot in [49, 3] {
            for dim in 0..80 {
                assert_eq!(region[layout.key_index(slot, dim)].to_f32(), key[dim]);
                assert_eq!(region[layout.value_index(slot, dim)].to_f32(), value[dim]);
            }
        }
    }

    #[test]
    fn large_values_stay_finite() {
        for (x, want) in [(1e9, 65_504.0), (-1e9, -65_504.0), (65_519.0, 65_504.0), (1.0, 1.0)] {
            assert_eq!(<f16 as Stored>::from_f32(x).to_f32(), want);
        }
        assert_eq!(<f32 as Stored>::from_f32(1e9), 1e9);
    }
}
