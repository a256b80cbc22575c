//! The loop that reads codes: levels times factors, added up in registers.
//!
//! Scores are sums over channels of a query's elements times levels, outputs are sums over slots of weights times
//! levels: the same loop. It does no more for 16 codes than a shift and a look-up (or a mask and a conversion) and a
//! fused multiply-add for each row, and it fetches what is read next. Each lane's sum is one chain in the order of the
//! codes, however many rows and blocks go together.

use breakers_backend::cpu::Isa;

use super::run::{CHUNK, Run, n_words};
use super::{Place, TABLE};
use crate::page::LANES;
use crate::simd::{self, Kernel, Simd};

/// Rows of a tile at most.
pub(super) const ROWS: usize = 6;

/// Rows that go together, of `left` ones: [`accumulate`] takes as many.
pub(super) fn tile_rows(isa: Isa, left: usize) -> usize {
    let most = match isa {
        Isa::Avx512 => 6,
        Isa::Scalar => 1,
        _ => 4,
    };
    match left {
        _ if left <= most && left != 5 => left,
        // Even tiles, since a row alone keeps few of the units busy.
        5 | 6 => 3.min(most),
        7 | 8 => 4.min(most),
        _ => most,
    }
}

/// Where sums come from and go to.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    /// Lanes of the first block; a run's words are counted from here.
    pub(super) words: *const u32,
    /// Words from one block of lanes to the next.
    pub(super) stride: usize,
    pub(super) n_blocks: usize,
    /// The first row's factor of the first code.
    pub(super) factors: *const f32,
    /// Factors from one row to the next.
    pub(super) factor_stride: usize,
    /// Sums of the first row, [`LANES`] for each block.
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// Whether the sums begin here, or go on from what `out` holds.
    pub(super) is_new: bool,
    /// As `words`, of what is read next; need not be valid.
    pub(super) next: *const u32,
}

/// The codes that are read.
#[derive(Clone, Copy)]
pub(super) enum Codes<'a> {
    Run(&'a Run, &'a [[f32; TABLE]]),
    Places(&'a [Place]),
}

/// Codes that stand for themselves.
const NUMBERS: usize = 0;
/// Codes of up to four bits that stand in a table.
const LEVELS: usize = 1;
/// Codes of five bits that stand in a table.
const WIDE_LEVELS: usize = 2;
/// Codes of any width at any place, which stand for themselves.
const PLACES: usize = 3;

/// Adds up `n_rows` rows, 1 to 4 or 6, at most as many as [`tile_rows`] says.
///
/// # Safety
/// - the processor has the instructions of `isa`
/// - `sums` points to the rows' factors, one for each code, to room for their sums, and to all of the codes' words,
///   for [`Codes::Places`] a word more
pub(super) unsafe fn accumulate(isa: Isa, n_rows: usize, sums: Sums, codes: Codes<'_>) {
    match codes {
        Codes::Places(_) => with_rows::<PLACES>(isa, n_rows, sums, codes),
        Codes::Run(Run { table: None, .. }, _) => with_rows::<NUMBERS>(isa, n_rows, sums, codes),
        Codes::Run(Run { width: 0..5, .. }, _) => with_rows::<LEVELS>(isa, n_rows, sums, codes),
        Codes::Run(..) => with_rows::<WIDE_LEVELS>(isa, n_rows, sums, codes),
    }
}

fn with_rows<const KIND: usize>(isa: Isa, n_rows: usize, sums: Sums, codes: Codes<'_>) {
    // A function of its own for each tile: compilers take long for large ones.
    match n_rows {
        1 => simd::dispatch(isa, Accumulate::<KIND, 1> { sums, codes }),
        2 => simd::dispatch(isa, Accumulate::<KIND, 2> { sums, codes }),
        3 => simd::dispatch(isa, Accumulate::<KIND, 3> { sums, codes }),
        4 => simd::dispatch(isa, Accumulate::<KIND, 4> { sums, codes }),
        _ => simd::dispatch(isa, Accumulate::<KIND, ROWS> { sums, codes }),
    }
}

/// Sums of `R` rows.
struct Accumulate<'a, const KIND: usize, const R: usize> {
    sums: Sums,
    codes: Codes<'a>,
}

/// Whether an instruction set has tiles of `R` rows: the others need not be compiled.
struct Tile<S, const R: usize>(S);

impl<S: Simd, const R: usize> Tile<S, R> {
    const EXISTS: bool = R <= S::PACKED_ROWS;
    const FOUR_BLOCKS: bool = R * 4 <= S::PACKED_SUMS;
    const TWO_BLOCKS: bool = R * 2 <= S::PACKED_SUMS;
}

impl<const KIND: usize, const R: usize> Kernel for Accumulate<'_, KIND, R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        if Tile::<S, R>::EXISTS {
            let mut block = 0;
            while block < self.sums.n_blocks {
                let left = self.sums.n_blocks - block;
                // SAFETY: the caller's promises, which were those of `accumulate`.
                unsafe {
                    block += if Tile::<S, R>::FOUR_BLOCKS && left >= 4 {
                        self.blocks::<S, 4>(block)
                    } else if Tile::<S, R>::TWO_BLOCKS && left >= 2 {
                        self.blocks::<S, 2>(block)
                    } else {
                        self.blocks::<S, 1>(block)
                    };
                }
            }
        }
    }
}

impl<const KIND: usize, const R: usize> Accumulate<'_, KIND, R> {
    /// Sums of `B` blocks from `first` on; returns `B`.
    ///
    /// # Safety
    /// As [`accumulate`], with `S`'s instructions; the blocks exist.
    #[inline(always)]
    unsafe fn blocks<S: Simd, const B: usize>(&self, first: usize) -> usize {
        let Sums { stride, out_stride, .. } = self.sums;
        // SAFETY: the caller's promises.
        unsafe {
            let out = self.sums.out.add(first * LANES);
            let mut sums = [[S::splat(0.0); B]; R];
            if !self.sums.is_new {
                for r in 0..R {
                    for b in 0..B {
                        sums[r][b] = S::load(out.add(r * out_stride + b * LANES));
                    }
                }
            }
            let words = self.sums.words.add(first * stride);
            let next = self.sums.next.wrapping_add(first * stride);
            match self.codes {
                Codes::Run(run, tables) => self.add_run::<S, B>(run, tables, words, next, &mut sums),
                Codes::Places(places) => self.add_places::<S, B>(places, words, next, &mut sums),
            }
            for r in 0..R {
                for b in 0..B {
                    S::store(out.add(r * out_stride + b * LANES), sums[r][b]);
                }
            }
        }
        B
    }

    /// # Safety
    /// As [`Self::blocks`], whose first block's words and successor these are.
    #[inline(always)]
    unsafe fn add_run<S: Simd, const B: usize>(
        &self,
        run: &Run,
        tables: &[[f32; TABLE]],
        words: *const u32,
        next: *const u32,
        sums: &mut [[S::V; B]; R],
    ) {
        if KIND == PLACES {
            return;
        }
        let stride = self.sums.stride;
        let per_word = (u32::BITS / run.width) as usize;
        let n_rest = u32::BITS - per_word as u32 * run.width;
        // SAFETY: the caller's promises.
        unsafe {
            // Numbers need no table.
            const NOTHING: &[f32; TABLE] = &[0.0; TABLE];
            let table = run.table.and_then(|table| tables.get(usize::from(table))).unwrap_or(NOTHING);
            let table = S::table(table.as_ptr());
            let (width, mask) = (S::splat_word(run.width), S::splat_word((1 << run.width) - 1));
            let mut factors = self.sums.factors.add(run.from);
            let mut at = run.word * LANES;
            let mut left = run.len;
            while left > 0 {
                let mut n_codes = left.min(CHUNK);
                left -= n_codes;
                let mut rest = [S::splat_word(0); B];
                for word in 0..n_words(n_codes, run.width) as u32 {
                    let mut codes = [S::splat_word(0); B];
                    for b in 0..B {
                        codes[b] = S::words(words.add(b * stride + at));
                        S::prefetch(next.wrapping_add(b * stride + at).cast());
                    }
                    let n = per_word.min(n_codes);
                    n_codes -= n;
                    factors = self.add_word::<S, B>(n, table, [width, mask], &mut codes, factors, sums);
                    if n_rest > 0 {
                        for b in 0..B {
                            rest[b] = S::shift_left_or(codes[b], S::splat_word(word * n_rest), rest[b]);
                        }
                    }
                    at += LANES;
                }
                if n_codes > 0 {
                    factors = self.add_word::<S, B>(n_codes, table, [width, mask], &mut rest, factors, sums);
                }
            }
        }
    }

    /// Adds the `n` lowest codes of a word in each block, and shifts them out; returns the factors behind theirs.
    ///
    /// # Safety
    /// As [`Self::blocks`], with factors for `n` codes.
    #[inline(always)]
    unsafe fn add_word<S: Simd, const B: usize>(
        &self,
        n: usize,
        table: S::Table,
        [width, mask]: [S::W; 2],
        codes: &mut [S::W; B],
        factors: *const f32,
        sums: &mut [[S::V; B]; R],
    ) -> *const f32 {
        // SAFETY: the caller's promises.
        unsafe {
            for i in 0..n {
                let mut level = [S::splat(0.0); B];
                for b in 0..B {
                    level[b] = match KIND {
                        LEVELS => S::look_up::<4>(table, codes[b]),
                        WIDE_LEVELS => S::look_up::<5>(table, codes[b]),
                        _ => S::numbers(codes[b], mask),
                    };
                    codes[b] = S::shift_right(codes[b], width);
                }
                for r in 0..R {
                    let factor = S::splat(*factors.add(r * self.sums.factor_stride + i));
                    for b in 0..B {
                        sums[r][b] = S::fma(factor, level[b], sums[r][b]);
                    }
                }
            }
            factors.add(n)
        }
    }

    /// # Safety
    /// As [`Self::add_run`].
    #[inline(always)]
    unsafe fn add_places<S: Simd, const B: usize>(
        &self,
        places: &[Place],
        words: *const u32,
        next: *const u32,
        sums: &mut [[S::V; B]; R],
    ) {
        if KIND != PLACES {
            return;
        }
        let Sums { stride, factors, factor_stride, .. } = self.sums;
        // SAFETY: the caller's promises.
        unsafe {
            for (i, place) in places.iter().enumerate() {
                let words = words.add(place.word as usize);
                // There are more codes than lines, and the lines of values follow.
                S::prefetch(next.wrapping_add(i * LANES).cast());
                let (right, left) = (S::splat_word(place.right), S::splat_word(place.left));
                let mask = S::splat_word(place.mask);
                let mut level = [S::splat(0.0); B];
                for b in 0..B {
                    let low = S::shift_right(S::words(words.add(b * stride)), right);
                    let both = S::shift_left_or(S::words(words.add(b * stride + LANES)), left, low);
                    level[b] = S::numbers(both, mask);
                }
                for r in 0..R {
                    let factor = S::splat(*factors.add(r * factor_stride + i));
                    for b in 0..B {
                        sums[r][b] = S::fma(factor, level[b], sums[r][b]);
                    }
                }
            }
        }
    }
}
