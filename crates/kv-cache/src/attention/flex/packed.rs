//! Attention over packed pages: a tile of query rows against one head's codes.
//!
//! Queries and weights are rounded to integers, row by row ([`factors`]), so that sums over codes are exact.
//! Everything computed from them, and the softmax, is also separate for each row. So no result depends on how
//! rows and slots are grouped into tiles. A channel's step is multiplied into the query, and its low end into
//! a constant of the page; a slot's scale is multiplied into its score or its weight. So
//! [`accumulate`](accumulate::accumulate) adds up bytes just as they are stored in the page.

mod accumulate;
mod factors;
mod keys;
pub(crate) mod queries;
mod tile;
mod values;

use std::mem::MaybeUninit;

use breakers_cpu::Isa;
use half::f16;

use self::accumulate::{Codes, ROWS, Sums, accumulate, tile_rows};
use self::keys::{Combine, Prepare};
use self::queries::Queries;
use self::tile::{Head, Scratch, Tile};
use self::values::{AddValues, PrepareValues, ScaleWeights, Values, Weigh};
use crate::attention::flex::page::{Rows, Span};
use crate::pages::packed::run::{Place, QUAD};
use crate::pages::packed::{
    MAX_CODED, MAX_HEAD_DIM, PackedFormat, PackedPage, ValueRun, WIDTH_BITS, places_of,
};
use crate::pages::page::{LANES, PAGE_BLOCKS, PAGE_TOKENS};
use crate::pages::source::Next;
use breakers_cpu::simd::{self, Kernel, Simd};

/// Lets `spans.len()` rows attend to one head of a packed page, and prefetches the next data meanwhile.
///
/// `queries` are used only if the format does not change them from page to page.
///
/// # Safety
/// - the processor has the instructions of `isa`
/// - the page is of the format and not evicted
/// - `rows` and `queries` have as many rows as `spans`
pub(crate) unsafe fn attend_page(
    isa: Isa,
    format: &PackedFormat,
    (page, head): (&PackedPage, usize),
    next: Next,
    rows: Rows,
    queries: Queries,
    spans: &[Span],
) {
    let region = page.region(format, head);
    let mut places = [const { MaybeUninit::<Place>::uninit() }; MAX_HEAD_DIM / QUAD];
    let n_adaptive = if format.key_runs.is_empty() { format.keys.n_coded() } else { 0 };
    let at = format.key_meta.widths * size_of::<f16>();
    let (order, rest) = bytemuck::cast_slice::<u32, u8>(region)[at..].split_at(n_adaptive);
    let places =
        fill_places(&rest[..(n_adaptive / QUAD).div_ceil(8 / WIDTH_BITS)], &mut places[..n_adaptive / QUAD]);
    let words = region.as_ptr();
    let exact = page.exact(format.n_kv_heads, head);
    // Prefetches codes while those of this page are read.
    simd::dispatch(isa, Fetch { format, next });
    let mut values = MaybeUninit::<Values>::uninit();
    // SAFETY: the region is one of the format.
    let values = unsafe {
        simd::dispatch(isa, PrepareValues { format, halves: words.cast(), to: values.as_mut_ptr() });
        &*values.as_ptr()
    };
    let mut head =
        Head { format, words, halves: words.cast(), exact, order, places, values, next: next.region };
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let mut start = 0;
    while start < spans.len() {
        let n_rows = tile_rows(isa, spans.len() - start);
        // SAFETY: the caller's promises; n_rows rows from `start` on exist.
        unsafe {
            let spans = &spans[start..start + n_rows];
            let tile = Tile { isa, head, rows: rows.skip(start), queries: queries.skip(start), spans };
            tile.attend(scratch.as_mut_ptr());
        }
        start += n_rows;
        // Only one tile prefetches; the others would fetch the same data again.
        head.next = words;
    }
}

/// Prefetches the numbers stored next to a region's codes.
struct Fetch<'a> {
    format: &'a PackedFormat,
    next: Next,
}

impl Kernel for Fetch<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let numbers = self.format.numbers();
        // SAFETY: the caller has the instructions; addresses need not be valid.
        unsafe {
            S::prefetch(self.next.page.cast());
            for word in numbers.step_by(LANES) {
                S::prefetch(self.next.region.wrapping_add(word).cast());
            }
        }
    }
}

/// The places of a page's quads, from their widths, which are stored two to a byte. Quads of width zero have
/// none.
fn fill_places<'a>(widths: &[u8], places: &'a mut [MaybeUninit<Place>]) -> &'a [Place] {
    let widths =
        widths.iter().flat_map(|byte| [byte & 0xF, byte >> WIDTH_BITS]).take_while(|&width| width > 0);
    let mut n = 0;
    for (to, place) in places.iter_mut().zip(places_of(widths)) {
        to.write(place);
        n += 1;
    }
    // SAFETY: the first n were written.
    unsafe { std::slice::from_raw_parts(places.as_ptr().cast(), n) }
}

impl Tile<'_> {
    /// # Safety
    /// As [`attend_page`]; there are at most [`tile_rows`] rows.
    unsafe fn attend(self, scratch: *mut Scratch) {
        if self.spans.iter().all(|span| span.from.max(0) >= span.to.min(PAGE_TOKENS as i32)) {
            return;
        }
        // SAFETY: the caller's promises.
        unsafe {
            self.score(scratch);
            simd::dispatch(self.isa, Weigh { tile: self, scratch });
            self.sum_values(scratch);
        }
    }

    /// Scores, into the rows' weights.
    ///
    /// # Safety
    /// As [`Self::attend`].
    unsafe fn score(self, scratch: *mut Scratch) {
        let Head { format, words, next, places, .. } = self.head;
        let keys = &format.keys;
        let n_sets = keys.n_sets().max(1);
        let n_blocks = PAGE_BLOCKS / n_sets;
        let stride = format.key_words * LANES;
        for set in 0..n_sets {
            // SAFETY: the caller's promises; runs lie in the lanes, a block's lanes in the region, and
            // after them the values' ones.
            unsafe {
                let (factors, factor_stride) = if self.queries.exist() {
                    self.queries.quads()
                } else {
                    self.prepare(set, scratch);
                    ((&raw const (*scratch).quads).cast(), MAX_CODED / QUAD)
                };
                let first = set * n_blocks;
                let sums = Sums {
                    words: words.add(first * stride),
                    stride,
                    n_blocks,
                    factors,
                    factor_stride,
                    planes: keys.query_planes(),
                    out: (&raw mut (*scratch).sums).cast(),
                    out_stride: PAGE_TOKENS,
                    is_new: true,
                    next: next.wrapping_add(first * stride),
                };
                let n_rows = self.spans.len();
                for (g, group) in keys.groups.iter().enumerate() {
                    if format.key_runs.is_empty() {
                        accumulate(self.isa, n_rows, sums, Codes::numbers(places));
                    }
                    let runs =
                        format.key_runs.iter().filter(|run| (group.from..group.to).contains(&run.from));
                    for (at, run) in runs.enumerate() {
                        let sums =
                            Sums { is_new: at == 0, factors: sums.factors.add(run.from / QUAD), ..sums };
                        accumulate(self.isa, n_rows, sums, Codes::of(run, &keys.tables));
                    }
                    simd::dispatch(self.isa, Combine { tile: self, set, group: g, scratch });
                }
            }
        }
    }

    /// Queries of one set of channels' steps.
    ///
    /// # Safety
    /// As [`Self::attend`].
    unsafe fn prepare(self, set: usize, scratch: *mut Scratch) {
        let tile = self;
        match self.spans.len() {
            1 => simd::dispatch(self.isa, Prepare::<1> { tile, set, scratch }),
            2 => simd::dispatch(self.isa, Prepare::<2> { tile, set, scratch }),
            3 => simd::dispatch(self.isa, Prepare::<3> { tile, set, scratch }),
            4 => simd::dispatch(self.isa, Prepare::<4> { tile, set, scratch }),
            _ => simd::dispatch(self.isa, Prepare::<ROWS> { tile, set, scratch }),
        }
    }

    /// Adds the weighted values to the rows' sums.
    ///
    /// # Safety
    /// As [`Self::attend`], behind [`Weigh`].
    unsafe fn sum_values(self, scratch: *mut Scratch) {
        let Head { format, words, next, .. } = self.head;
        let values = &format.values;
        let mut runs = format.value_runs.iter();
        for (g, group) in values.groups.iter().enumerate() {
            // SAFETY: the caller's promises; each element's run lies in the region, and after
            // all of them scales.
            unsafe {
                simd::dispatch(self.isa, ScaleWeights { tile: self, group: g, scratch });
                let mut dim = group.from;
                for ValueRun { n_blocks, first, n_words, run } in runs.by_ref() {
                    let sums = Sums {
                        words: words.add(*first),
                        stride: n_words * LANES,
                        n_blocks: *n_blocks,
                        factors: (&raw const (*scratch).quads).cast(),
                        factor_stride: MAX_CODED / QUAD,
                        planes: 2,
                        out: (&raw mut (*scratch).sums).cast::<i32>().add(dim),
                        out_stride: MAX_HEAD_DIM,
                        is_new: true,
                        next: next.wrapping_add(*first),
                    };
                    accumulate(self.isa, self.spans.len(), sums, Codes::of(run, &values.tables));
                    dim += n_blocks * LANES;
                    if dim == group.to {
                        break;
                    }
                }
                simd::dispatch(self.isa, AddValues { tile: self, group: g, scratch });
            }
        }
    }
}

const _: () = assert!(PAGE_TOKENS <= MAX_HEAD_DIM && MAX_CODED <= 512);
