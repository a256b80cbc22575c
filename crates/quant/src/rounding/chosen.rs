//! The choice of scales, which precedes the choice of codes.

use super::encode::{Blocks, floats_to_bytes};
use super::grid::{Grid, LANES};
use crate::{
    Result,
    quantizer::{RangeChoice, WeightMatrix},
};
use breakers_cpu::{self as cpu, per_isa, pool};
use breakers_gguf::{Encoding, Format, GroupFormat, GroupMatrix, GroupScales, QuantizedMatrix};

/// Scales that have been chosen, before any codes.
pub(crate) struct Chosen {
    scales: ChosenScales,
}

enum ChosenScales {
    Floats(Format),
    Blocks(Format, Blocks),
    Groups(GroupFormat, GroupScales, Grid),
}

impl Chosen {
    /// Chooses scales for weights whose rows must fit the encoding.
    pub(crate) fn new(
        encoding: Encoding,
        values: &[f32],
        n_cols: usize,
        importance: Option<&[f32]>,
        range: RangeChoice,
    ) -> Result<Self> {
        encoding.check(n_cols)?;
        let scales = match encoding {
            Encoding::Gguf(format) => match Blocks::choose(format, values, n_cols, importance) {
                Some(blocks) => ChosenScales::Blocks(format, blocks),
                None => ChosenScales::Floats(format),
            },
            Encoding::Groups(format) => {
                return Ok(Self::of_groups(
                    format,
                    values,
                    n_cols,
                    &group_ranges(format, values, n_cols, importance, range),
                ));
            }
        };
        Ok(Self { scales })
    }

    /// With the given scales and offsets of groups, `[row][group]`.
    pub(crate) fn of_groups(
        format: GroupFormat,
        values: &[f32],
        n_cols: usize,
        wanted: &[(f32, f32)],
    ) -> Self {
        let scales = GroupScales::store(format, wanted);
        let grid = Grid::of_groups(format, values.len() / n_cols, n_cols, &scales);
        Self { scales: ChosenScales::Groups(format, scales, grid) }
    }

    /// Packs codes `[n_rows, n_cols]`, none of them for floats.
    pub(crate) fn pack(&self, weights: &WeightMatrix<'_>, codes: &[u8]) -> Result<QuantizedMatrix> {
        let (n_rows, n_cols) = (weights.n_rows(), weights.n_cols());
        Ok(match &self.scales {
            ChosenScales::Floats(format) => {
                let bytes = floats_to_bytes(*format, weights.values());
                QuantizedMatrix::from_bytes(*format, n_rows, n_cols, bytes)?
            }
            ChosenScales::Blocks(format, blocks) => {
                QuantizedMatrix::from_bytes(*format, n_rows, n_cols, blocks.pack(codes))?
            }
            ChosenScales::Groups(format, scales, _) => {
                let groups = GroupMatrix::new(*format, n_rows, n_cols, scales.clone(), codes)?;
                QuantizedMatrix::from_groups(groups)
            }
        })
    }

    /// The values that may be chosen; nothing for floats.
    pub(crate) fn grid(&self) -> Option<&Grid> {
        match &self.scales {
            ChosenScales::Floats(_) => None,
            ChosenScales::Blocks(_, blocks) => Some(&blocks.grid),
            ChosenScales::Groups(_, _, grid) => Some(grid),
        }
    }

    /// The nearest codes.
    pub(crate) fn nearest(&self, values: &[f32]) -> Vec<u8> {
        self.grid().map_or_else(Vec::new, |grid| grid.nearest(values))
    }

    /// The values of the nearest codes.
    pub(crate) fn rounded(&self, values: &[f32]) -> Vec<f32> {
        match self.grid() {
            Some(grid) => grid.values(&grid.nearest(values)),
            None => values.to_vec(),
        }
    }
}

/// Scale and offset of each group.
pub(crate) fn group_ranges(
    format: GroupFormat,
    values: &[f32],
    n_cols: usize,
    importance: Option<&[f32]>,
    range: RangeChoice,
) -> Vec<(f32, f32)> {
    let group = format.group();
    let groups = n_cols / group;
    let isa = cpu::isa();
    let mut out = vec![(0.0, 0.0); values.len() / group];
    pool::parallel_chunks_mut(&mut out, LANES, |start, out| {
        for (i, out) in out.iter_mut().enumerate() {
            let at = start + i;
            let x = &values[at * group..(at + 1) * group];
            let w = importance.map(|w| &w[at % groups * group..][..group]);
            *out = per_isa!(isa, || group_range(format, x, w, range));
        }
    });
    out
}

#[inline(always)]
fn group_range(format: GroupFormat, x: &[f32], w: Option<&[f32]>, range: RangeChoice) -> (f32, f32) {
    let levels = format.levels();
    let (least, most) = levels.range();
    let (low, high) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |a, &x| (a.0.min(x), a.1.max(x)));
    let affine = matches!(format, GroupFormat::Affine { .. });
    let whole = match format {
        GroupFormat::Affine { .. } => ((high - low) / most, low),
        _ => (low.abs().max(high.abs()) / most.max(-least), 0.0),
    };
    if range == RangeChoice::Extremes || whole.0 == 0.0 {
        return whole;
    }
    let error = |(scale, offset): (f32, f32)| {
        let (mut sum, inverse) = (0.0f64, 1.0 / scale);
        for (part, x) in x.chunks(LANES).enumerate() {
            let (mut scaled, mut codes, mut found) = ([0.0; LANES], [0; LANES], [0.0; LANES]);
            for (to, &x) in scaled.iter_mut().zip(x) {
                *to = (x - offset) * inverse;
            }
            levels.nearest(&scaled, &mut codes, &mut found);
            let mut squares = 0.0f32;
            for i in 0..x.len() {
                let difference = scale * found[i] + offset - x[i];
                squares += w.map_or(1.0, |w| w[part * LANES + i]) * difference * difference;
            }
            sum += f64::from(squares);
        }
        sum
    };
    let mut best = (error(whole), whole);
    for step in 1..=16 {
        let shrink = 1.0 - 0.04 * step as f32;
        // The range shrinks around its middle.
        let candidate = (
            whole.0 * shrink,
            whole.1 + 0.5 * (1.0 - shrink) * (whole.0 * most) * f32::from(u8::from(affine)),
        );
        let found = error(candidate);
        if found < best.0 {
            best = (found, candidate);
        }
    }
    best.1
}
