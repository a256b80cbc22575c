//! Exponentials of numbers that are zero or negative.
//!
//! eˣ = 2ⁿ·eʳ with x = n·ln 2 + r and |r| ≤ ln 2 / 2: a Taylor polynomial gives eʳ, exponent bits give 2ⁿ.
//! There are no branches and no calls, so that the compiler vectorizes a loop over them on every processor,
//! and no fused operations, so that the bits are the same on every processor.

/// Numbers that are processed together, so that the compiler can vectorize.
pub(super) const LANES: usize = 16;

/// Compiles a function for several register widths; a call uses the widest that the processor has. Nothing is
/// fused and the order of sums is fixed, so all of them give the same bits.
macro_rules! widest {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) -> $out:ty $body:block) => {
        $(#[$doc])*
        pub(super) fn $name($($arg: $type),*) -> $out {
            #[inline(always)]
            fn any($($arg: $type),*) -> $out $body
            #[cfg(target_arch = "x86_64")]
            {
                use std::arch::is_x86_feature_detected as has;
                #[target_feature(enable = "avx512f,avx512dq,avx512vl")]
                fn avx512($($arg: $type),*) -> $out {
                    any($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) -> $out {
                    any($($arg),*)
                }
                if has!("avx512f") && has!("avx512dq") && has!("avx512vl") {
                    // SAFETY: the processor has these instructions.
                    return unsafe { avx512($($arg),*) };
                }
                if has!("avx2") {
                    // SAFETY: the processor has these instructions.
                    return unsafe { avx2($($arg),*) };
                }
            }
            any($($arg),*)
        }
    };
}
pub(super) use widest;

/// eˣ for x ≤ 0, within 2 units in the last place, and 0 below −87. NaN stays NaN.
#[inline(always)]
pub(super) fn exp_nonpositive(x: f32) -> f32 {
    /// 1.5·2²³: adding this to a number and subtracting it again rounds the number to an integer. In between,
    /// the low bits hold that integer.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first of which has few enough bits that its product with n is exact.
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { p * power }
}

/// eˣ for x ≤ 0, within 2 units in the last place, and 0 below −708. NaN stays NaN.
#[inline(always)]
pub(super) fn exp_nonpositive_f64(x: f64) -> f64 {
    /// 1.5·2⁵², as above.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// ln 2, its upper 32 bits: exact in products with integers below 2²¹.
    const LN_2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
    /// The rest of ln 2.
    const LN_2_LOW: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = 1.0 / 6_227_020_800.0;
    for c in [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * r + c;
    }
    let power = f64::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(1023) << 52);
    if x < -708.0 { 0.0 } else { p * power }
}

widest! {
    /// Σ exp((logit − max)·scale). Exponentials have the precision of `f32`, their sum that of `f64`.
    fn sum_exp(logits: &[f32], max: f32, scale: f32) -> f64 {
        let weight = |l: f32| exp_nonpositive((l - max) * scale) as f64;
        let (chunks, rest) = logits.as_chunks::<LANES>();
        let mut lanes = [0.0f64; LANES];
        for chunk in chunks {
            for (lane, &l) in lanes.iter_mut().zip(chunk) {
                *lane += weight(l);
            }
        }
        let rest: f64 = rest.iter().map(|&l| weight(l)).sum();
        lanes.iter().sum::<f64>() + rest
    }
}

widest! {
    /// Appends exp((logit − max)·scale) of each logit.
    fn append_exp(weights: &mut Vec<f64>, logits: &[f32], max: f64, scale: f64) -> () {
        let weight = |l: f32| exp_nonpositive_f64((f64::from(l) - max) * scale);
        let (chunks, rest) = logits.as_chunks::<LANES>();
        for chunk in chunks {
            let mut block = [0.0; LANES];
            for (weight_of, &l) in block.iter_mut().zip(chunk) {
                *weight_of = weight(l);
            }
            weights.extend_from_slice(&block);
        }
        weights.extend(rest.iter().map(|&l| weight(l)));
    }
}

widest! {
    /// Σ numbers, in an order that the compiler can vectorize.
    fn sum(numbers: &[f64]) -> f64 {
        sum_of_few(numbers)
    }
}

/// [`sum`] without choosing an instruction set, which would take longer than adding up a few numbers.
#[inline(always)]
pub(super) fn sum_of_few(numbers: &[f64]) -> f64 {
    let (chunks, rest) = numbers.as_chunks::<LANES>();
    let mut lanes = [0.0f64; LANES];
    for chunk in chunks {
        for (lane, &number) in lanes.iter_mut().zip(chunk) {
            *lane += number;
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().sum::<f64>()
}

widest! {
    /// Multiplies numbers by a factor.
    fn scale(numbers: &mut [f64], factor: f64) -> () {
        numbers.iter_mut().for_each(|number| *number *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_of_f32_are_exact_to_the_last_bits() {
        let mut worst = 0.0f64;
        for i in 0..=870_000 {
            let x = i as f32 * -1e-4;
            let want = (x as f64).exp();
            worst = worst.max((exp_nonpositive(x) as f64 / want - 1.0).abs());
        }
        assert!(worst < 2.0 * f32::EPSILON as f64, "{worst}");
        assert_eq!([exp_nonpositive(0.0), exp_nonpositive(f32::NEG_INFINITY)], [1.0, 0.0]);
        assert!(exp_nonpositive(f32::NAN).is_nan());
    }

    #[test]
    fn exponentials_of_f64_are_exact_to_the_last_bits() {
        let mut worst = 0.0f64;
        for i in 0..=708_000 {
            let x = i as f64 * -1e-3 + 1e-9 * (i % 7) as f64 - 6e-9;
            let x = x.max(-708.0);
            worst = worst.max((exp_nonpositive_f64(x) / x.exp() - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::EPSILON, "{worst:e}");
        assert_eq!([exp_nonpositive_f64(0.0), exp_nonpositive_f64(-0.0)], [1.0, 1.0]);
        assert_eq!([exp_nonpositive_f64(-1e9), exp_nonpositive_f64(f64::NEG_INFINITY)], [0.0, 0.0]);
        assert_eq!(exp_nonpositive_f64(f64::MIN), 0.0);
        assert!(exp_nonpositive_f64(f64::NAN).is_nan());
    }

    /// [`widest`] relies on this: code for wide registers gives the same bits as code for narrow ones.
    #[test]
    fn bits_do_not_depend_on_the_width_of_registers() {
        let logits: Vec<f32> =
            (0..1003u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 * -1e-6).collect();
        let (mut found, max) = (Vec::new(), 0.0f32);
        append_exp(&mut found, &logits, 0.25, 1.5);
        let one_by_one = logits.iter().map(|&l| exp_nonpositive_f64((f64::from(l) - 0.25) * 1.5));
        assert!(found.iter().map(|w| w.to_bits()).eq(one_by_one.map(f64::to_bits)));
        let mut lanes = [0.0; LANES];
        for chunk in logits.as_chunks::<LANES>().0 {
            lanes
                .iter_mut()
                .zip(chunk)
                .for_each(|(lane, &l)| *lane += f64::from(exp_nonpositive((l - max) * 0.7)));
        }
        let rest = logits.as_chunks::<LANES>().1.iter().map(|&l| f64::from(exp_nonpositive((l - max) * 0.7)));
        let expected = lanes.iter().sum::<f64>() + rest.sum::<f64>();
        assert_eq!(sum_exp(&logits, max, 0.7).to_bits(), expected.to_bits());
    }
}
