//! Elementary functions that give the same bits on every instruction set.
//!
//! The functions are written in plain Rust over single numbers, with explicit fused multiply-adds, so that a
//! loop over them vectorizes inside [`per_isa!`](crate::per_isa!) and rounds the same way in scalar, AVX2 and
//! AVX-512 code.

/// eˣ, within 2 units in the last place. Below −87.3 the result is 0, and above 88.7 it is e^88.7.
///
/// Range reduction x = n·ln 2 + r, |r| ≤ ln 2 / 2 (ln 2 in two parts), then the Taylor polynomial of degree
/// 7, whose remainder on that interval is below 2⁻²⁷, and a scaling by the exponent bits.
///
/// # Example
/// ```
/// assert_eq!(breakers_cpu::math::exp(0.0), 1.0);
/// assert_eq!(breakers_cpu::math::exp(f32::NEG_INFINITY), 0.0);
/// ```
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // 1.5·2²³: adding it rounds to an integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > 88.7 { 88.7 } else { x };
    let clamped = if clamped < -87.3 { -87.3 } else { clamped };
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_HIGH, clamped);
    let r = n.mul_add(-LN2_LOW, r);
    let mut p = 1.0 / 5040.0;
    p = r.mul_add(p, 1.0 / 720.0);
    p = r.mul_add(p, 1.0 / 120.0);
    p = r.mul_add(p, 1.0 / 24.0);
    p = r.mul_add(p, 1.0 / 6.0);
    p = r.mul_add(p, 0.5);
    p = r.mul_add(p, 1.0);
    p = r.mul_add(p, 1.0);
    // n is in −126..=128; two factors keep each power of two in range.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    let y = p * power(half) * power(n - half);
    if x < -87.3 { 0.0 } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::per_isa;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0.0f64;
        for i in -872_000..=887_000 {
            let x = i as f32 * 1e-4;
            let want = (x as f64).exp();
            let ulp = (f32::from_bits((want as f32).to_bits() + 1) - want as f32) as f64;
            worst = worst.max((exp(x) as f64 - want).abs() / ulp);
        }
        assert!(worst <= 2.0, "{worst} ulp");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(-1000.0), 0.0);
        assert!(exp(1000.0).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn every_isa_gives_the_same_bits() {
        let x: Vec<f32> = (0..1001).map(|i| (i as f32 - 500.0) * 0.17).collect();
        let run = |isa| -> Vec<u32> { per_isa!(isa, || x.iter().map(|&x| exp(x).to_bits()).collect()) };
        for isa in crate::available() {
            assert_eq!(run(isa), run(Isa::Scalar), "{isa}");
        }
    }
}
