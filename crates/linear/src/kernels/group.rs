//! Tiles of our own formats: the same codes as those of GGUF's, with scales for as many
//! columns as share them.
//!
//! | format | codes in the tile | scales |
//! |---|---|---|
//! | `int2` to `int4` | as they are | half precision, for 1, 2 or 4 blocks, with offsets |
//! | `sym2` to `sym4` | one more, so that what is subtracted is a power of two | the same without offsets |
//! | `int5` to `int8` | as they are, of seven bits in eight | half precision for each block, with offsets |
//! | `sym5` to `sym8` | so much more that the middle is a power of two, of seven bits in eight | the same without offsets |
//! | NF4 | levels in 127ths | half precision, for 2 blocks |
//! | NVFP4 | levels doubled | a half-precision factor for 8 blocks, E4M3 for each half block |
//!
//! Larger groups repeat their scales. NF4's levels have an error of at most 1/254 of a group's largest
//! weight, just as activations have one of 1/254 of a block's largest value. Scales of NF4 and NVFP4 are
//! rounded to half precision. Everything else is exact.

use super::{Codes, Scales};
use crate::{Error, Result};
use breakers_gguf::{E2M1_LEVELS, GroupFormat, NF4_LEVELS};

/// Most blocks of 32 columns that share a scale in a tile.
const MOST_BLOCKS: usize = 4;

/// The layout of a [`GroupFormat`] in a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupLayout {
    Affine2(Span),
    Affine3(Span),
    Affine4(Span),
    Affine5,
    Affine6,
    Affine8,
    Symmetric2(Span),
    Symmetric3(Span),
    Symmetric4(Span),
    Symmetric5,
    Symmetric6,
    Symmetric8,
    Nf4,
    NvFp4,
}

/// Blocks of 32 columns that share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span {
    One,
    Two,
    Four,
}

impl GroupLayout {
    /// The layout of a format whose groups divide rows of `n_cols` columns.
    ///
    /// # Errors
    /// [`Error::NoProduct`] for groups or rows that are not whole blocks of 32 columns (16 in
    /// NVFP4's groups).
    pub(crate) fn of(format: GroupFormat, n_cols: usize) -> Result<Self> {
        let refused = || Error::NoProduct { format: format.name(), n_cols };
        if !n_cols.is_multiple_of(super::BLOCK) {
            return Err(refused());
        }
        let span = |group: usize| {
            let n_blocks = group / super::BLOCK;
            match group.is_multiple_of(super::BLOCK) {
                true if n_blocks.is_multiple_of(MOST_BLOCKS) => Ok(Span::Four),
                true if n_blocks.is_multiple_of(2) => Ok(Span::Two),
                true => Ok(Span::One),
                false => Err(refused()),
            }
        };
        let span = match format {
            GroupFormat::Affine { group, .. } | GroupFormat::Symmetric { group, .. } => span(group)?,
            GroupFormat::Nf4 => Span::Two,
            GroupFormat::NvFp4 => Span::One,
        };
        Ok(match format {
            GroupFormat::Affine { bits: 2, .. } => GroupLayout::Affine2(span),
            GroupFormat::Affine { bits: 3, .. } => GroupLayout::Affine3(span),
            GroupFormat::Affine { bits: 4, .. } => GroupLayout::Affine4(span),
            GroupFormat::Affine { bits: 5, .. } => GroupLayout::Affine5,
            GroupFormat::Affine { bits: 6, .. } => GroupLayout::Affine6,
            GroupFormat::Affine { .. } => GroupLayout::Affine8,
            GroupFormat::Symmetric { bits: 2, .. } => GroupLayout::Symmetric2(span),
            GroupFormat::Symmetric { bits: 3, .. } => GroupLayout::Symmetric3(span),
            GroupFormat::Symmetric { bits: 4, .. } => GroupLayout::Symmetric4(span),
            GroupFormat::Symmetric { bits: 5, .. } => GroupLayout::Symmetric5,
            GroupFormat::Symmetric { bits: 6, .. } => GroupLayout::Symmetric6,
            GroupFormat::Symmetric { .. } => GroupLayout::Symmetric8,
            GroupFormat::Nf4 => GroupLayout::Nf4,
            GroupFormat::NvFp4 => GroupLayout::NvFp4,
        })
    }
}

/// The number that is added to a format's codes in a tile of `C`: the zero of symmetric formats is at the
/// middle level, that of tiles at the offset that the kernels subtract.
pub(crate) fn code_offset<C: Codes>(format: GroupFormat) -> u8 {
    match format {
        GroupFormat::Symmetric { bits, .. } => (C::OFFSET - ((1 << (bits - 1)) - 1)) as u8,
        _ => 0,
    }
}

/// Integers with scale and offset for `SPAN` blocks.
pub(crate) struct Affine<const BITS: usize, const SPAN: usize>;

impl<const BITS: usize, const SPAN: usize> Codes for Affine<BITS, SPAN> {
    const BITS: usize = BITS;
    const OFFSET_SHIFT: i32 = -1;
    const TABLE: Option<[u8; 16]> = None;
    const SCALES: Scales = Scales::HalfMinOf(SPAN);
}

/// Integers around zero with a scale for `SPAN` blocks.
pub(crate) struct Symmetric<const BITS: usize, const SPAN: usize>;

impl<const BITS: usize, const SPAN: usize> Codes for Symmetric<BITS, SPAN> {
    const BITS: usize = BITS;
    const OFFSET_SHIFT: i32 = BITS as i32 - 1;
    const TABLE: Option<[u8; 16]> = None;
    const SCALES: Scales = Scales::HalfOf(SPAN);
}

/// The factor that turns NF4's levels into integers.
pub(crate) const NF4_STEPS: f32 = 127.0;

/// Quantiles of the normal distribution.
pub(crate) struct Nf4;

impl Codes for Nf4 {
    const BITS: usize = 4;
    const OFFSET_SHIFT: i32 = 7;
    const TABLE: Option<[u8; 16]> = Some(scaled(&NF4_LEVELS, NF4_STEPS, 128));
    const SCALES: Scales = Scales::HalfOf(2);
}

/// The factor that turns E2M1's levels into integers.
pub(crate) const E2M1_STEPS: f32 = 2.0;

/// E2M1 with a scale for each half block.
pub(crate) struct NvFp4;

impl Codes for NvFp4 {
    const BITS: usize = 4;
    const OFFSET_SHIFT: i32 = 4;
    const TABLE: Option<[u8; 16]> = Some(scaled(&E2M1_LEVELS, E2M1_STEPS, 16));
    const SCALES: Scales = Scales::HalvesE4M3;
}

/// Levels as the nearest integers, plus the offset.
const fn scaled(levels: &[f32], steps: f32, offset: i32) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < levels.len() {
        let level = levels[i] * steps;
        let rounded = if level < 0.0 { -((0.5 - level) as i32) } else { (level + 0.5) as i32 };
        out[i] = (rounded + offset) as u8;
        i += 1;
    }
    out
}

/// Calls a generic function with the type that stands for a layout: that of a GGUF format where codes
/// and scales are the same.
macro_rules! with_group_codes {
    ($layout:expr, $codes:ident => $body:expr) => {{
        use $crate::kernels::group::{Affine, GroupLayout, Nf4, NvFp4, Span, Symmetric};
        match $layout {
            GroupLayout::Affine2(Span::One) => {
                type $codes = Affine<2, 1>;
                $body
            }
            GroupLayout::Affine2(Span::Two) => {
                type $codes = Affine<2, 2>;
                $body
            }
            GroupLayout::Affine2(Span::Four) => {
                type $codes = Affine<2, 4>;
                $body
            }
            GroupLayout::Affine3(Span::One) => {
                type $codes = Affine<3, 1>;
                $body
            }
            GroupLayout::Affine3(Span::Two) => {
                type $codes = Affine<3, 2>;
                $body
            }
            GroupLayout::Affine3(Span::Four) => {
                type $codes = Affine<3, 4>;
                $body
            }
            GroupLayout::Affine4(Span::One) => {
                type $codes = $crate::kernels::Q4_1;
                $body
            }
            GroupLayout::Affine4(Span::Two) => {
                type $codes = Affine<4, 2>;
                $body
            }
            GroupLayout::Affine4(Span::Four) => {
                type $codes = Affine<4, 4>;
                $body
            }
            GroupLayout::Affine5 => {
                type $codes = $crate::kernels::Q5_1;
                $body
            }
            GroupLayout::Affine6 => {
                type $codes = Affine<6, 1>;
                $body
            }
            GroupLayout::Affine8 => {
                type $codes = Affine<8, 1>;
                $body
            }
            GroupLayout::Symmetric2(Span::One) => {
                type $codes = Symmetric<2, 1>;
                $body
            }
            GroupLayout::Symmetric2(Span::Two) => {
                type $codes = Symmetric<2, 2>;
                $body
            }
            GroupLayout::Symmetric2(Span::Four) => {
                type $codes = Symmetric<2, 4>;
                $body
            }
            GroupLayout::Symmetric3(Span::One) => {
                type $codes = Symmetric<3, 1>;
                $body
            }
            GroupLayout::Symmetric3(Span::Two) => {
                type $codes = Symmetric<3, 2>;
                $body
            }
            GroupLayout::Symmetric3(Span::Four) => {
                type $codes = Symmetric<3, 4>;
                $body
            }
            GroupLayout::Symmetric4(Span::One) => {
                type $codes = $crate::kernels::Q4_0;
                $body
            }
            GroupLayout::Symmetric4(Span::Two) => {
                type $codes = Symmetric<4, 2>;
                $body
            }
            GroupLayout::Symmetric4(Span::Four) => {
                type $codes = Symmetric<4, 4>;
                $body
            }
            GroupLayout::Symmetric5 => {
                type $codes = $crate::kernels::Q5_0;
                $body
            }
            GroupLayout::Symmetric6 => {
                type $codes = Symmetric<6, 1>;
                $body
            }
            GroupLayout::Symmetric8 => {
                type $codes = $crate::kernels::Q8_0;
                $body
            }
            GroupLayout::Nf4 => {
                type $codes = Nf4;
                $body
            }
            GroupLayout::NvFp4 => {
                type $codes = NvFp4;
                $body
            }
        }
    }};
}
pub(crate) use with_group_codes;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_the_levels_in_steps() {
        // Independently: 127 times the quantiles of the QLoRA paper's appendix, rounded by hand.
        let nf4 = [-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127];
        assert_eq!(Nf4::TABLE.map(|table| table.map(|x| i32::from(x) - 128)), Some(nf4));
        // OCP MX 1.0, table 5: magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6.
        let e2m1 = [-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12];
        let found = NvFp4::TABLE.unwrap_or_default().map(|x| i32::from(x) - 16);
        assert_eq!(found[..15], e2m1);
    }

    #[test]
    fn layouts_have_the_widest_span_that_divides_a_group() {
        let affine = |bits, group| GroupLayout::of(GroupFormat::Affine { bits, group }, 768);
        for (group, expected) in
            [(32, Span::One), (64, Span::Two), (96, Span::One), (128, Span::Four), (256, Span::Four)]
        {
            assert_eq!(affine(4, group).unwrap(), GroupLayout::Affine4(expected));
        }
        assert_eq!(affine(7, 64).unwrap(), GroupLayout::Affine8);
        for (bits, group) in [(4, 16), (3, 48), (8, 24)] {
            assert!(matches!(affine(bits, group), Err(Error::NoProduct { n_cols: 768, .. })));
        }
        assert!(matches!(GroupLayout::of(GroupFormat::NvFp4, 48), Err(Error::NoProduct { n_cols: 48, .. })));
    }
}
