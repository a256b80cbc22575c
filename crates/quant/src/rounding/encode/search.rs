//! Scales of a group of weights: those with the least weighted squared error among some candidates, each
//! fitted to the codes that it leads to.

use crate::rounding::inverse;
use breakers_gguf::Levels;

/// Candidates on either side of the range that the weights span, in tenths of a step.
const REACH: i32 = 9;

/// The scale whose levels come nearest to `x` under the weights `w`.
///
/// The largest magnitude is put near the least and near the largest level; for the codes that follow, the
/// best scale is that of least squares, Σwxl / Σwl².
#[inline(always)]
pub(crate) fn scale<const N: usize>(x: &[f32; N], w: &[f32; N], levels: Levels) -> f32 {
    let mut extreme = 0.0f32;
    for &x in x {
        if x.abs() > extreme.abs() {
            extreme = x;
        }
    }
    if extreme == 0.0 {
        return 0.0;
    }
    let (least, most) = levels.range();
    // Steps are one apart; a table's candidates move by as much relative to its range.
    let step = 0.1
        * match levels {
            Levels::Steps { .. } => 1.0,
            Levels::Table(table) => (most - least) / table.len() as f32,
        };
    let (mut best, mut best_gain) = (0.0, 0.0);
    let (mut codes, mut found, mut scaled) = ([0u8; N], [0.0f32; N], [0.0f32; N]);
    for end in [least, most] {
        if end == 0.0 {
            continue;
        }
        for candidate in -REACH..=REACH {
            let inverse = (end + step * candidate as f32) / extreme;
            for i in 0..N {
                scaled[i] = x[i] * inverse;
            }
            levels.nearest(&scaled, &mut codes, &mut found);
            let (xl, ll) = moments(x, w, &found);
            // The amount by which the fit reduces Σwx².
            let gain = xl * xl / ll;
            if ll > 0.0 && gain > best_gain {
                (best, best_gain) = (xl / ll, gain);
            }
        }
    }
    best
}

/// Σwxl and Σwl².
#[inline(always)]
fn moments<const N: usize>(x: &[f32; N], w: &[f32; N], levels: &[f32; N]) -> (f32, f32) {
    let (mut xl, mut ll) = ([0.0f32; 16], [0.0f32; 16]);
    for i in 0..N {
        let wl = w[i] * levels[i];
        xl[i % 16] += wl * x[i];
        ll[i % 16] += wl * levels[i];
    }
    (xl.iter().sum(), ll.iter().sum())
}

/// Scale and offset of levels `0..=most`, with an offset of at most zero if `negative`.
///
/// The weights' range, and ranges a little shorter or longer, are divided into steps; for the codes that
/// follow, scale and offset are those of weighted least squares, and once more for the codes that these lead
/// to.
#[inline(always)]
pub(crate) fn scale_and_offset<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    most: f32,
    negative: bool,
) -> (f32, f32) {
    let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
    for &x in x {
        low = low.min(x);
        high = high.max(x);
    }
    if negative {
        low = low.min(0.0);
    }
    if high <= low {
        return if negative { (0.0, low) } else { (0.0, low.min(high)) };
    }
    let mut best = ((high - low) / most, low);
    let mut best_error = error(x, w, best.0, best.1, most);
    for candidate in -REACH..=REACH {
        let inverse = (most + 0.1 * candidate as f32) / (high - low);
        let (mut scale, mut offset) = (1.0 / inverse, low);
        for _ in 0..2 {
            (scale, offset) = fit(x, w, scale, offset, most, negative);
            let found = error(x, w, scale, offset, most);
            if found < best_error {
                (best, best_error) = ((scale, offset), found);
            }
        }
    }
    best
}

/// Least squares for the codes that a scale and an offset lead to.
#[inline(always)]
fn fit<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    scale: f32,
    offset: f32,
    most: f32,
    negative: bool,
) -> (f32, f32) {
    let inverse = inverse(scale);
    let mut sums = [[0.0f32; 16]; 5];
    for i in 0..N {
        let level = ((x[i] - offset) * inverse).round_ties_even().max(0.0).min(most);
        let lane = i % 16;
        sums[0][lane] += w[i];
        sums[1][lane] += w[i] * level;
        sums[2][lane] += w[i] * level * level;
        sums[3][lane] += w[i] * x[i];
        sums[4][lane] += w[i] * x[i] * level;
    }
    let [w0, l, ll, x0, xl] = sums.map(|sums| sums.iter().sum::<f32>());
    let determinant = w0 * ll - l * l;
    if determinant.is_nan() || determinant <= 1e-7 * w0 * ll {
        return (scale, offset);
    }
    let (fitted, base) = ((w0 * xl - l * x0) / determinant, (ll * x0 - l * xl) / determinant);
    if negative && base > 0.0 {
        return (xl / ll, 0.0);
    }
    (fitted, base)
}

/// The weighted squared error of the nearest codes.
#[inline(always)]
pub(crate) fn error<const N: usize>(x: &[f32; N], w: &[f32; N], scale: f32, offset: f32, most: f32) -> f32 {
    error_of(x, w, scale, offset, Levels::Steps { least: 0, n: most as u16 + 1 })
}

/// As [`error`], for any levels.
#[inline(always)]
pub(crate) fn error_of<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    scale: f32,
    offset: f32,
    levels: Levels,
) -> f32 {
    let inverse = inverse(scale);
    let (mut scaled, mut codes, mut found) = ([0.0f32; N], [0u8; N], [0.0f32; N]);
    for i in 0..N {
        scaled[i] = (x[i] - offset) * inverse;
    }
    levels.nearest(&scaled, &mut codes, &mut found);
    let mut sums = [0.0f32; 16];
    for i in 0..N {
        let difference = scale * found[i] + offset - x[i];
        sums[i % 16] += w[i] * difference * difference;
    }
    sums.iter().sum()
}
