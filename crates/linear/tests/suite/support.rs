//! Inputs that several tests share.

use breakers_cpu::random::SplitMix64;
use breakers_gguf::{GroupFormat, GroupMatrix, GroupScales, QuantizedMatrix};

/// A small generator, so that inputs are the same everywhere.
pub(crate) struct Random(SplitMix64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    pub(crate) fn next(&mut self) -> u32 {
        (self.0.next() >> 32) as u32
    }

    /// In -1..1.
    pub(crate) fn float(&mut self) -> f32 {
        self.0.next_symmetric()
    }
}

/// Weights rounded to the nearest level of each group, between its least and its largest one.
pub(crate) fn rounded(format: GroupFormat, values: &[f32], n_rows: usize, n_cols: usize) -> QuantizedMatrix {
    let (levels, group) = (format.levels(), format.group());
    let (least, most) = levels.range();
    let range = |x: &[f32]| {
        let (low, high) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |a, &x| (a.0.min(x), a.1.max(x)));
        match format {
            GroupFormat::Affine { .. } => ((high - low) / most, low),
            _ => (low.abs().max(high.abs()) / most.max(-least), 0.0),
        }
    };
    let wanted: Vec<(f32, f32)> = values.chunks_exact(group).map(range).collect();
    let scales = GroupScales::store(format, &wanted);
    let codes: Vec<u8> = values
        .iter()
        .enumerate()
        .map(|(i, x)| {
            let (scale, offset) = scales.value(i / group);
            let (mut code, mut level) = ([0], [0.0]);
            let scaled = if scale == 0.0 { 0.0 } else { (x - offset) / scale };
            levels.nearest(&[scaled], &mut code, &mut level);
            code[0]
        })
        .collect();
    let matrix = GroupMatrix::new(format, n_rows, n_cols, scales, &codes);
    QuantizedMatrix::from_groups(matrix.expect("codes and scales of the format"))
}
