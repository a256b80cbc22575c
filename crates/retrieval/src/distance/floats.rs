use breakers_backend::{cpu, math::per_isa};

/// Numbers in a register of the widest path.
const LANES: usize = 16;
/// Registers of partial sums, so that one addition need not wait for the one before it.
const REGISTERS: usize = 4;
const BLOCK: usize = LANES * REGISTERS;

/// The inner product.
///
/// # Shapes
/// - `a`, `b`: `[n]`
///
/// # Panics
/// If the lengths differ.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    per_isa!(cpu::isa(), || fold::<false>(a, b))
}

/// The squared Euclidean distance.
///
/// # Shapes
/// - `a`, `b`: `[n]`
///
/// # Panics
/// If the lengths differ.
pub fn l2(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    per_isa!(cpu::isa(), || fold::<true>(a, b))
}

/// The squared length.
pub fn norm_squared(a: &[f32]) -> f32 {
    dot(a, a)
}

/// One more product, or squared difference. No closure: those are not compiled with the wider instructions.
#[inline(always)]
fn step<const DIFFERENCES: bool>(a: f32, b: f32, sum: f32) -> f32 {
    if DIFFERENCES { (a - b).mul_add(a - b, sum) } else { a.mul_add(b, sum) }
}

#[inline(always)]
fn fold<const DIFFERENCES: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [[0.0f32; LANES]; REGISTERS];
    let (blocks_a, rest_a) = a.as_chunks::<BLOCK>();
    let (blocks_b, rest_b) = b.as_chunks::<BLOCK>();
    for (a, b) in blocks_a.iter().zip(blocks_b) {
        for register in 0..REGISTERS {
            for lane in 0..LANES {
                let at = register * LANES + lane;
                sums[register][lane] = step::<DIFFERENCES>(a[at], b[at], sums[register][lane]);
            }
        }
    }
    let (lanes_a, tail_a) = rest_a.as_chunks::<LANES>();
    let (lanes_b, tail_b) = rest_b.as_chunks::<LANES>();
    for (register, (a, b)) in lanes_a.iter().zip(lanes_b).enumerate() {
        for lane in 0..LANES {
            sums[register][lane] = step::<DIFFERENCES>(a[lane], b[lane], sums[register][lane]);
        }
    }
    for (lane, (a, b)) in tail_a.iter().zip(tail_b).enumerate() {
        sums[REGISTERS - 1][lane] = step::<DIFFERENCES>(*a, *b, sums[REGISTERS - 1][lane]);
    }
    let mut lanes = [0.0f32; LANES];
    for lane in 0..LANES {
        lanes[lane] = (sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane]);
    }
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use breakers_backend::cpu::Isa;
    use rand::{RngExt as _, SeedableRng as _};

    #[test]
    fn floats_agree_with_sums_in_64_bits_and_with_themselves_on_every_path() {
        let mut random = rand::rngs::StdRng::seed_from_u64(1);
        for n in (0..200).chain([384, 1000, 1536]) {
            let mut draw = || -> Vec<f32> { (0..n).map(|_| random.random_range(-1.0..1.0)).collect() };
            let (a, b) = (draw(), draw());
            let pairs = || a.iter().zip(&b).map(|(&a, &b)| (f64::from(a), f64::from(b)));
            let (exact_dot, size): (f64, f64) =
                (pairs().map(|(a, b)| a * b).sum(), pairs().map(|(a, b)| (a * b).abs()).sum());
            let exact_l2: f64 = pairs().map(|(a, b)| (a - b) * (a - b)).sum();
            let reference = cpu::with_isa(Isa::Scalar, || (dot(&a, &b), l2(&a, &b))).unwrap();
            // Partial sums are at most n / 64 + 1 + 6 additions deep.
            let bound = (n as f64 / 64.0 + 8.0) * f64::from(f32::EPSILON);
            assert!((f64::from(reference.0) - exact_dot).abs() <= bound * size, "dot of {n}");
            assert!((f64::from(reference.1) - exact_l2).abs() <= 2.0 * bound * exact_l2, "l2 of {n}");
            for isa in cpu::available() {
                let found = cpu::with_isa(isa, || (dot(&a, &b), l2(&a, &b))).unwrap();
                assert_eq!(found, reference, "{isa}, {n} numbers");
            }
        }
    }
}
