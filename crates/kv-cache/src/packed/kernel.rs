//! Attention over packed pages: a tile of query rows against one head's codes.
//!
//! Queries and weights become integers, row by row ([`factors`](super::factors)), so that sums over codes are exact; what
//! is made of these, and the softmax, is a row's own as well. So neither depends on how rows and slots are put into
//! tiles. A channel's step goes into the query, its low end into a constant of the page; a slot's scale goes into its
//! score, or its weight: what [`accumulate`](super::accumulate) adds up are bytes as they stand in the page.

use std::mem::MaybeUninit;

use breakers_backend::cpu::Isa;
use half::f16;

use super::accumulate::{Codes, ROWS, Sums, accumulate, tile_rows};
use super::factors::Rounded;
use super::keys::{Combine, Prepare};
use super::layer::Next;
use super::queries::Queries;
use super::run::{Place, QUAD};
use super::values::{AddValues, PrepareValues, ScaleWeights, Values, Weigh};
use super::{MAX_CODED, MAX_GROUPS, MAX_HEAD_DIM, PackedFormat, PackedPage, ValueRun, WIDTH_BITS, places_of};
use crate::kernel::{Rows, Span};
use crate::page::{LANES, PAGE_BLOCKS, PAGE_TOKENS};
use crate::simd::{self, Kernel, Quad, Simd};

/// One head's region of a packed page, and what all tiles need of it.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) format: &'a PackedFormat,
    pub(super) words: *const u32,
    pub(super) halves: *const f16,
    pub(super) exact: &'a [f16],
    /// Of an adaptive format: the channels in their order, and where their quads stand.
    pub(super) order: &'a [u8],
    pub(super) places: &'a [Place],
    pub(super) values: &'a Values,
    /// The region that is read next.
    pub(super) next: *const u32,
}

/// What a tile works with, `[ROWS, …]` each. Nothing is read that was not written before.
#[repr(align(64))]
pub(super) struct Scratch {
    /// Queries' elements times the channels' steps.
    pub(super) factors: [f32; ROWS * MAX_CODED],
    /// Factors as integers.
    pub(super) quads: [Quad; ROWS * MAX_CODED / QUAD],
    /// What comes out of the codes: scores, then values.
    pub(super) sums: [i32; ROWS * MAX_HEAD_DIM],
    /// What the integers of a query stand for, of each group of channels.
    pub(super) rounded: [Rounded; ROWS * MAX_GROUPS],
    /// Sums of the query times the channels' low ends.
    pub(super) low: [f32; ROWS],
    /// What the integers of the weights stand for.
    pub(super) weights: [Rounded; ROWS],
    /// Sums of the weights times the slots' offsets.
    pub(super) offset: [f32; ROWS],
    /// What this page's sums are multiplied by.
    pub(super) share: [f32; ROWS],
    /// What the sums so far are multiplied by.
    pub(super) rescale: [f32; ROWS],
    /// Weights of the exact slots.
    pub(super) exact: [f32; ROWS * PAGE_TOKENS],
}

/// Lets `spans.len()` rows attend to one head of a packed page, and fetches what is read next meanwhile.
///
/// `queries` are read only where the format does not change them from page to page.
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
    let exact = page.exact(format, head);
    // Codes are fetched while those of this page are read.
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
        // One tile fetches ahead; the others would fetch the same again.
        head.next = words;
    }
}

/// Fetches the numbers beside a region's codes.
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

/// Places of quads whose widths, two to a byte, stand in a page; of those that have one.
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

/// Some rows against one head's region.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) isa: Isa,
    pub(super) head: Head<'a>,
    pub(super) rows: Rows,
    pub(super) queries: Queries,
    pub(super) spans: &'a [Span],
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
            // SAFETY: the caller's promises; runs lie in the lanes, a block's lanes in the region, and behind them
            // the values' ones.
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
            // SAFETY: the caller's promises; each element's run lies in the region, and behind all of them scales.
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
