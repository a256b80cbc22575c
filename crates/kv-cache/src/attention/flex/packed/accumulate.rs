//! The loop that reads codes: bytes times integer factors, added up in registers.
//!
//! Scores are sums over channels of a query's elements times levels, outputs are sums over slots of weights
//! times levels: the same loop. Factors were rounded to integers ([`super::factors`]) and levels are bytes,
//! so sums are exact: their bits depend neither on the order nor on the instruction set. For 64 codes the
//! loop needs only a shift and a mask, a look-up if codes do not stand for themselves, and one or two
//! multiply instructions for each row. It also prefetches the next data.

use breakers_cpu::Isa;

use crate::pages::packed::TABLE;
use crate::pages::packed::run::{Place, QUAD, Run};
use crate::pages::page::LANES;
use breakers_cpu::simd::{self, Kernel, Quad, Simd};

/// Rows of a tile at most.
pub(crate) const ROWS: usize = 6;

/// How many of `left` rows to process together; [`accumulate`] accepts that number.
pub(crate) fn tile_rows(isa: Isa, left: usize) -> usize {
    let most = rows(isa);
    match left {
        _ if left <= most && left != 5 => left,
        // Tiles of equal size, since a single row keeps few of the execution units busy.
        5 | 6 => 3.min(most),
        7 | 8 => 4.min(most),
        _ => most,
    }
}

/// Where sums come from and go to.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    /// Lanes of the first block.
    pub(crate) words: *const u32,
    /// Words from one block of lanes to the next.
    pub(crate) stride: usize,
    pub(crate) n_blocks: usize,
    /// The first row's factors of the first four codes.
    pub(crate) factors: *const Quad,
    /// Quads from one row's factors to the next one's.
    pub(crate) factor_stride: usize,
    /// Planes of the factors, 1 or 2.
    pub(crate) planes: usize,
    /// Sums of the first row, [`LANES`] for each block.
    pub(crate) out: *mut i32,
    pub(crate) out_stride: usize,
    /// Whether the sums start from zero, or from the values in `out`.
    pub(crate) is_new: bool,
    /// As `words`, for the data that is read next; need not be valid.
    pub(crate) next: *const u32,
}

/// The codes that are read.
#[derive(Clone, Copy)]
pub(crate) struct Codes<'a> {
    pub(crate) places: &'a [Place],
    table: &'a [u8; TABLE],
    kind: usize,
}

/// Codes of four bits, two to a byte.
const NIBBLES: usize = 0;
/// Codes of up to four bits.
const LEVELS: usize = 1;
/// Codes of five bits.
const WIDE_LEVELS: usize = 2;
/// Codes of any width, which stand for themselves.
const NUMBERS: usize = 3;

/// A table of codes that stand for themselves.
const IDENTITY: &[u8; TABLE] = &{
    let mut table = [0; TABLE];
    let mut code = 0;
    while code < TABLE {
        table[code] = code as u8;
        code += 1;
    }
    table
};

impl<'a> Codes<'a> {
    pub(crate) fn of(run: &'a Run, tables: &'a [[u8; TABLE]]) -> Self {
        let table = run.table.and_then(|table| tables.get(usize::from(table)));
        let kind = match run.width {
            4 if run.is_nibbles => NIBBLES,
            ..5 => LEVELS,
            5 if table.is_some() => WIDE_LEVELS,
            _ => NUMBERS,
        };
        Self { places: &run.places, table: table.unwrap_or(IDENTITY), kind }
    }

    pub(crate) fn numbers(places: &'a [Place]) -> Self {
        Self { places, table: IDENTITY, kind: NUMBERS }
    }
}

/// Adds up `n_rows` rows, 1 to 4 or 6, at most as many as [`tile_rows`] says.
///
/// # Safety
/// - the processor has the instructions of `isa`
/// - `sums` points to the rows' factors, one for each code, to room for their sums, and to all of the
///   codes' words and one more
/// - factors of one plane meet codes of four bits at most
pub(crate) unsafe fn accumulate(isa: Isa, n_rows: usize, sums: Sums, codes: Codes<'_>) {
    match (codes.kind, sums.planes) {
        (NIBBLES, 1) => with_rows::<NIBBLES, 1>(isa, n_rows, sums, codes),
        (NIBBLES, _) => with_rows::<NIBBLES, 2>(isa, n_rows, sums, codes),
        (LEVELS, 1) => with_rows::<LEVELS, 1>(isa, n_rows, sums, codes),
        (LEVELS, _) => with_rows::<LEVELS, 2>(isa, n_rows, sums, codes),
        (WIDE_LEVELS, _) => with_rows::<WIDE_LEVELS, 2>(isa, n_rows, sums, codes),
        _ => with_rows::<NUMBERS, 2>(isa, n_rows, sums, codes),
    }
}

fn with_rows<const KIND: usize, const PLANES: usize>(isa: Isa, n_rows: usize, sums: Sums, codes: Codes<'_>) {
    // A separate function for each tile size, because compilers take long for large functions.
    match n_rows {
        1 => simd::dispatch(isa, Accumulate::<KIND, PLANES, 1> { sums, codes }),
        2 => simd::dispatch(isa, Accumulate::<KIND, PLANES, 2> { sums, codes }),
        3 => simd::dispatch(isa, Accumulate::<KIND, PLANES, 3> { sums, codes }),
        4 => simd::dispatch(isa, Accumulate::<KIND, PLANES, 4> { sums, codes }),
        _ => simd::dispatch(isa, Accumulate::<KIND, PLANES, ROWS> { sums, codes }),
    }
}

/// Query rows that are processed together, 1, 4 or 6.
const fn rows(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => ROWS,
        Isa::Avx2 | Isa::Neon => 4,
        _ => 1,
    }
}

/// How many sums to compute together, counting a factor's planes separately; codes need registers too.
const fn sums(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 24,
        Isa::Avx2 | Isa::Neon => 3,
        _ => 1,
    }
}

// The tables are those that registers look up.
const _: () = assert!(TABLE == simd::TABLE);

/// Sums of `R` rows.
struct Accumulate<'a, const KIND: usize, const PLANES: usize, const R: usize> {
    sums: Sums,
    codes: Codes<'a>,
}

/// Whether an instruction set has tiles of `R` rows: the others need not be compiled.
struct Tile<S, const PLANES: usize, const R: usize>(S);

impl<S: Simd, const PLANES: usize, const R: usize> Tile<S, PLANES, R> {
    const SUMS: usize = if S::HAS_PLANES { R * PLANES } else { R };
    const EXISTS: bool = R <= rows(S::ISA);
    const FOUR_BLOCKS: bool = Self::SUMS * 4 <= sums(S::ISA);
    const TWO_BLOCKS: bool = Self::SUMS * 2 <= sums(S::ISA);
}

impl<const KIND: usize, const PLANES: usize, const R: usize> Kernel for Accumulate<'_, KIND, PLANES, R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        if Tile::<S, PLANES, R>::EXISTS {
            let mut block = 0;
            while block < self.sums.n_blocks {
                let left = self.sums.n_blocks - block;
                // SAFETY: the caller's promises, which were those of `accumulate`.
                unsafe {
                    block += if Tile::<S, PLANES, R>::FOUR_BLOCKS && left >= 4 {
                        self.blocks::<S, 4>(block)
                    } else if Tile::<S, PLANES, R>::TWO_BLOCKS && left >= 2 {
                        self.blocks::<S, 2>(block)
                    } else {
                        self.blocks::<S, 1>(block)
                    };
                }
            }
        }
    }
}

impl<const KIND: usize, const PLANES: usize, const R: usize> Accumulate<'_, KIND, PLANES, R> {
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
            let words = self.sums.words.add(first * stride);
            let next = self.sums.next.wrapping_add(first * stride);
            let mut sums = [[S::no_sum(); B]; R];
            if KIND == NIBBLES {
                self.add_nibbles::<S, B>(words, next, &mut sums);
            } else {
                self.add_places::<S, B>(words, next, &mut sums);
            }
            for r in 0..R {
                for b in 0..B {
                    let at = out.add(r * out_stride + b * LANES).cast();
                    let mut total = S::total::<PLANES>(sums[r][b]);
                    if !self.sums.is_new {
                        total = S::add_words(total, S::words(at));
                    }
                    S::store_words(at, total);
                }
            }
        }
        B
    }

    /// # Safety
    /// As [`Self::blocks`], whose first block's words and successor these are.
    #[inline(always)]
    unsafe fn add_nibbles<S: Simd, const B: usize>(
        &self,
        words: *const u32,
        next: *const u32,
        sums: &mut [[S::Sum; B]; R],
    ) {
        let stride = self.sums.stride;
        let Some(first) = self.codes.places.first() else { return };
        // SAFETY: the caller's promises.
        unsafe {
            let table = S::table(self.codes.table.as_ptr());
            let (low, four) = (S::splat_word(0x0f0f_0f0f), S::splat_word(4));
            let first = first.word as usize;
            for word in 0..self.codes.places.len() / 2 {
                let at = first + word * LANES;
                let mut codes = [low; B];
                for b in 0..B {
                    codes[b] = S::words(words.add(b * stride + at));
                    S::prefetch(next.wrapping_add(b * stride + at).cast());
                }
                let factors = self.sums.factors.add(2 * word);
                for half in 0..2 {
                    let mut bytes = [low; B];
                    for b in 0..B {
                        let nibbles = if half == 0 { codes[b] } else { S::shift_right(codes[b], four) };
                        bytes[b] = S::look_up::<4>(table, S::and(nibbles, low));
                    }
                    self.add_quad::<S, B>(bytes, factors.add(half), sums);
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::add_nibbles`].
    #[inline(always)]
    unsafe fn add_places<S: Simd, const B: usize>(
        &self,
        words: *const u32,
        next: *const u32,
        sums: &mut [[S::Sum; B]; R],
    ) {
        let Sums { stride, factors, .. } = self.sums;
        // SAFETY: the caller's promises.
        unsafe {
            let table = S::table(self.codes.table.as_ptr());
            for (quad, place) in self.codes.places.iter().enumerate() {
                let at = place.word as usize;
                let (right, left) = (S::splat_word(place.right), S::splat_word(place.left));
                let (low, high) = (S::splat_word(place.low), S::splat_word(place.high));
                let mut bytes = [low; B];
                for b in 0..B {
                    let words = words.add(b * stride + at);
                    S::prefetch(next.wrapping_add(b * stride + at).cast());
                    let first = S::and(S::shift_right(S::words(words), right), low);
                    let second = S::and(S::shift_left(S::words(words.add(LANES)), left), high);
                    let codes = S::or(first, second);
                    bytes[b] = match KIND {
                        LEVELS => S::look_up::<4>(table, codes),
                        WIDE_LEVELS => S::look_up::<5>(table, codes),
                        _ => codes,
                    };
                }
                self.add_quad::<S, B>(bytes, factors.add(quad), sums);
            }
        }
    }

    /// Adds the products of four codes in each lane with the rows' factors.
    ///
    /// # Safety
    /// As [`Self::blocks`].
    #[inline(always)]
    unsafe fn add_quad<S: Simd, const B: usize>(
        &self,
        bytes: [S::W; B],
        factors: *const Quad,
        sums: &mut [[S::Sum; B]; R],
    ) {
        // SAFETY: the caller's promises.
        unsafe {
            // Not a closure, which might be compiled without the instructions.
            let mut ready = [S::bytes(bytes[0]); B];
            for b in 1..B {
                ready[b] = S::bytes(bytes[b]);
            }
            for r in 0..R {
                let factors = S::factors(factors.add(r * self.sums.factor_stride));
                for b in 0..B {
                    sums[r][b] = S::dot::<PLANES>(sums[r][b], ready[b], factors);
                }
            }
        }
    }
}

const _: () = assert!(QUAD == 4);
