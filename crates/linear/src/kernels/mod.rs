//! The matrix product over tiles of packed weights: what the formats have in common, and the choice of a
//! kernel.
//!
//! # Layout
//! Sixteen output rows make a tile. Within a tile, blocks of 32 columns follow each other; in a block, the
//! *codes* (the unsigned integers that a format stores) of four consecutive columns of one row make a group
//! of four bytes, and the groups of the sixteen rows lie side by side in 64 bytes. So one 512-bit register
//! holds four columns of sixteen rows, and one dot-product instruction adds them to sixteen 32-bit sums,
//! against four activation bytes that are the same for all rows.
//!
//! Codes of fewer than eight bits share these 64-byte words: see [`code_bits`] for the bits. Scales are
//! stored separately from the codes, also with sixteen rows side by side: see [`Scales`].
//!
//! # Order of arithmetic
//! Each (row, output) has one `f32` accumulator, and blocks are added in ascending order by the same
//! operations in every kernel: a block's integer dot product is exact, so that results do not depend on the
//! instruction set, on the number of rows in a call, or on the number of threads. With `i` the dot product of
//! a block (codes less their offset), `d` the weights' scale, `m` their minimum, `a` the activations' scale
//! and `s` their scaled sum:
//! - one scale per block: `acc = fma(i, d * a, acc)`, then, if there are minima, `acc = fma(m, s, acc)`;
//! - a scale per half of a block: `t = i0 * d0; t = fma(i1, d1, t)`, with minima `t = fma(-m0, -s0, t)` and
//!   `t = fma(-m1, -s1, t)` with `s0`, `s1` the integer sums; `acc = fma(t, a, acc)`.

/// Unrolls the body for each of the first `$n_rows` rows, with the row as a constant. Otherwise the compiler
/// would make a loop and keep the sums in memory.
#[cfg(target_arch = "x86_64")]
macro_rules! each_row {
    ($n_rows:ident, $row:ident => $body:block) => {
        each_row!(@ $n_rows, $row, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $n_rows:ident, $row:ident, $body:block, $($index:literal)*) => {{$(
        if $index < $n_rows {
            let $row: usize = $index;
            $body
        }
    )*}};
}
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod code_bits;
mod float;
pub(crate) mod group;
mod scalar;

use breakers_cpu::{
    Isa,
    activations::{PANEL_ROWS, Panel},
};
use breakers_gguf::{Format, IQ4_NL_LEVELS, MXFP4_LEVELS};

use group::with_group_codes;
pub(crate) use scalar::decode_block;

/// 2^8 makes a half of the bits of E4M3; the shift of a tile is taken off at once.
#[cfg(target_arch = "x86_64")]
const E4M3_REBIAS: f32 = 256.0 * crate::repack::E4M3_SHIFT;

/// Output rows that lie interleaved.
pub(crate) const TILE: usize = 16;
/// Columns in a block.
pub(crate) const BLOCK: usize = 32;

/// The layout of a tile's scales in memory; each line holds sixteen rows side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// Per block: half-precision scales.
    Half,
    /// Per block: half-precision scales, half-precision minima.
    HalfMin,
    /// Per block: exponents of powers of two, one byte.
    Exponent,
    /// Per 8 blocks: half-precision factors of the scales, then of the minima; then per block: byte scales,
    /// byte minima, both unsigned.
    ByteMin,
    /// Per 8 blocks: half-precision factors; then per half block: signed byte scales.
    HalvesByte,
    /// Per 8 blocks: half-precision factors of the scales, then of the minima; then per half block: a byte
    /// with the scale in its low four bits and the minimum in its high ones.
    HalvesNibbleMin,
    /// Half-precision scales, each for this many blocks. For one block it is [`Half`](Self::Half).
    HalfOf(usize),
    /// Half-precision scales and minima, each for this many blocks.
    HalfMinOf(usize),
    /// Per 8 blocks (or what remains of a row): half-precision factors; then per half block: scales in E4M3,
    /// 2^10 times as large as they count.
    HalvesE4M3,
}

impl Scales {
    /// Blocks whose scales lie together.
    pub(crate) const fn blocks(self) -> usize {
        match self {
            Scales::Half | Scales::HalfMin | Scales::Exponent => 1,
            Scales::ByteMin | Scales::HalvesByte | Scales::HalvesNibbleMin | Scales::HalvesE4M3 => 8,
            Scales::HalfOf(blocks) | Scales::HalfMinOf(blocks) => blocks,
        }
    }

    /// Bytes of [`blocks`](Self::blocks) blocks of one tile.
    pub(crate) const fn bytes(self) -> usize {
        TILE * match self {
            Scales::Half | Scales::HalfOf(_) => 2,
            Scales::HalfMin | Scales::HalfMinOf(_) => 4,
            Scales::Exponent => 1,
            Scales::ByteMin => 4 + 8 * 2,
            Scales::HalvesByte | Scales::HalvesE4M3 => 2 + 16,
            Scales::HalvesNibbleMin => 4 + 16,
        }
    }

    /// Whether each half of a block has its own scale.
    pub(crate) const fn per_half(self) -> bool {
        matches!(self, Scales::HalvesByte | Scales::HalvesNibbleMin | Scales::HalvesE4M3)
    }

    /// Whether there are minima.
    pub(crate) const fn has_min(self) -> bool {
        matches!(self, Scales::HalfMin | Scales::HalfMinOf(_) | Scales::ByteMin | Scales::HalvesNibbleMin)
    }
}

/// What a kernel needs to know about a format of integer codes. Every item is a constant, so that kernels are
/// compiled for each format.
pub(crate) trait Codes {
    /// Bits of a code.
    const BITS: usize;
    /// What is subtracted from a code is `2^OFFSET_SHIFT`; negative means nothing.
    const OFFSET_SHIFT: i32;
    /// Codes are looked up here first; the entries are levels plus the offset.
    const TABLE: Option<[u8; 16]>;
    /// Where the scales lie.
    const SCALES: Scales;

    /// What is subtracted from a code.
    const OFFSET: i32 = if Self::OFFSET_SHIFT < 0 { 0 } else { 1 << Self::OFFSET_SHIFT };
    /// Bytes of a block of codes of one tile.
    const BLOCK_BYTES: usize = TILE * BLOCK / 8 * Self::BITS;
}

macro_rules! codes {
    ($($name:ident: $bits:literal bits, offset 2^$shift:literal, $table:expr, $scales:ident;)*) => {$(
        #[doc = concat!("[`Format::", stringify!($name), "`]")]
        #[allow(non_camel_case_types)] // the formats' names
        pub(crate) struct $name;
        impl Codes for $name {
            const BITS: usize = $bits;
            const OFFSET_SHIFT: i32 = $shift;
            const TABLE: Option<[u8; 16]> = $table;
            const SCALES: Scales = Scales::$scales;
        }
    )*};
}

codes! {
    Q4_0: 4 bits, offset 2^3, None, Half;
    Q4_1: 4 bits, offset 2^-1, None, HalfMin;
    Q5_0: 5 bits, offset 2^4, None, Half;
    Q5_1: 5 bits, offset 2^-1, None, HalfMin;
    Q8_0: 8 bits, offset 2^7, None, Half;
    Q2_K: 2 bits, offset 2^-1, None, HalvesNibbleMin;
    Q3_K: 3 bits, offset 2^2, None, HalvesByte;
    Q4_K: 4 bits, offset 2^-1, None, ByteMin;
    Q5_K: 5 bits, offset 2^-1, None, ByteMin;
    Q6_K: 6 bits, offset 2^5, None, HalvesByte;
    IQ4_NL: 4 bits, offset 2^7, Some(table(IQ4_NL_LEVELS, 128)), Half;
    MXFP4: 4 bits, offset 2^4, Some(table(MXFP4_LEVELS, 16)), Exponent;
}

const fn table(levels: [i8; 16], offset: i16) -> [u8; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (levels[i] as i16 + offset) as u8;
        i += 1;
    }
    table
}

/// Calls a generic function with the type that stands for a format of integer codes; `$other` for floats.
macro_rules! with_codes {
    ($format:expr, $codes:ident => $body:expr, else $other:expr) => {
        match $format {
            ::breakers_gguf::Format::Q4_0 => {
                type $codes = $crate::kernels::Q4_0;
                $body
            }
            ::breakers_gguf::Format::Q4_1 => {
                type $codes = $crate::kernels::Q4_1;
                $body
            }
            ::breakers_gguf::Format::Q5_0 => {
                type $codes = $crate::kernels::Q5_0;
                $body
            }
            ::breakers_gguf::Format::Q5_1 => {
                type $codes = $crate::kernels::Q5_1;
                $body
            }
            ::breakers_gguf::Format::Q8_0 => {
                type $codes = $crate::kernels::Q8_0;
                $body
            }
            ::breakers_gguf::Format::Q2_K => {
                type $codes = $crate::kernels::Q2_K;
                $body
            }
            ::breakers_gguf::Format::Q3_K => {
                type $codes = $crate::kernels::Q3_K;
                $body
            }
            ::breakers_gguf::Format::Q4_K => {
                type $codes = $crate::kernels::Q4_K;
                $body
            }
            ::breakers_gguf::Format::Q5_K => {
                type $codes = $crate::kernels::Q5_K;
                $body
            }
            ::breakers_gguf::Format::Q6_K => {
                type $codes = $crate::kernels::Q6_K;
                $body
            }
            ::breakers_gguf::Format::IQ4_NL => {
                type $codes = $crate::kernels::IQ4_NL;
                $body
            }
            ::breakers_gguf::Format::MXFP4 => {
                type $codes = $crate::kernels::MXFP4;
                $body
            }
            ::breakers_gguf::Format::F32 | ::breakers_gguf::Format::F16 | ::breakers_gguf::Format::BF16 => {
                $other
            }
        }
    };
}
pub(crate) use with_codes;

/// Bytes of a tile: of codes (or of floats), and of scales.
///
/// `n_cols` must be whole blocks of the format.
pub(crate) fn tile_bytes(layout: Layout, n_cols: usize) -> (usize, usize) {
    fn of<C: Codes>(n_cols: usize) -> (usize, usize) {
        let n_blocks = n_cols / BLOCK;
        (n_blocks * C::BLOCK_BYTES, n_blocks.div_ceil(C::SCALES.blocks()) * C::SCALES.bytes())
    }
    match layout {
        Layout::Gguf(format) => {
            with_codes!(format, C => of::<C>(n_cols), else (n_cols * TILE * format.block_bytes(), 0))
        }
        Layout::Group(layout) => with_group_codes!(layout, C => of::<C>(n_cols)),
    }
}

/// The kind of codes in a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Those of a GGUF format, or its floats.
    Gguf(Format),
    /// Those of a format of our own.
    Group(group::GroupLayout),
}

impl Layout {
    /// The GGUF format.
    pub(crate) fn format(self) -> Option<Format> {
        match self {
            Layout::Gguf(format) => Some(format),
            Layout::Group(_) => None,
        }
    }
}

/// One tile of packed weights.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// Codes, or floats.
    pub(crate) codes: &'a [u8],
    /// Scales, empty for floats.
    pub(crate) scales: &'a [u8],
    /// Whether it is in memory and not in a cache; the kernel then prefetches its bytes. Tiles follow each
    /// other in memory, so prefetching at the end of one tile fetches the beginning of the next.
    pub(crate) is_cold: bool,
}

/// How many bytes ahead to prefetch. Data further ahead would only wait in the second-level cache. The
/// processor's own prefetching stops at the end of a page.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 8192;

/// Products of a panel's rows with a tile's rows: `[activation row][weight row]`.
pub(crate) type Outputs = [[f32; TILE]; PANEL_ROWS];

/// Multiplies a panel with a tile. Only the first `panel.n_rows` rows of the outputs are written.
///
/// # Safety
/// - The CPU must have the instructions of the path that the kernel was chosen for.
/// - The tile must be of the format that the kernel was chosen for, and as many blocks long as the panel.
/// - The panel must have the number of rows that the kernel was chosen for.
pub(crate) type CodesKernel = unsafe fn(Tile<'_>, Panel<'_>, &mut Outputs);

/// The kernel for a format of integer codes, an instruction set and a number of rows; none for floats.
pub(crate) fn codes_kernel(layout: Layout, isa: Isa, n_rows: usize) -> Option<CodesKernel> {
    Some(match layout {
        Layout::Gguf(format) => {
            with_codes!(format, C => codes_kernel_of::<C>(isa, n_rows), else return None)
        }
        Layout::Group(layout) => with_group_codes!(layout, C => codes_kernel_of::<C>(isa, n_rows)),
    })
}

fn codes_kernel_of<C: Codes>(isa: Isa, n_rows: usize) -> CodesKernel {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => by_rows!(n_rows, R => avx512::multiply::<C, R>),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => by_rows!(n_rows, R => avx2::multiply::<C, R>),
        _ => scalar::multiply::<C>,
    }
}

/// A kernel compiled for the number of rows, which is at most [`PANEL_ROWS`].
macro_rules! by_rows {
    ($n_rows:expr, $rows:ident => $kernel:expr) => {
        match $n_rows {
            1 => {
                const $rows: usize = 1;
                $kernel
            }
            2 => {
                const $rows: usize = 2;
                $kernel
            }
            3 => {
                const $rows: usize = 3;
                $kernel
            }
            4 => {
                const $rows: usize = 4;
                $kernel
            }
            5 => {
                const $rows: usize = 5;
                $kernel
            }
            6 => {
                const $rows: usize = 6;
                $kernel
            }
            7 => {
                const $rows: usize = 7;
                $kernel
            }
            _ => {
                const $rows: usize = 8;
                $kernel
            }
        }
    };
}
use by_rows;

pub(crate) use float::{FloatKernel, float_kernel};
