use breakers_cpu::simd::{self, Kernel, LANES, Simd};

/// Registers of partial sums: with several, an addition need not wait for the one before it.
const REGISTERS: usize = 4;
/// What is added up: the sums of register `i`, lane `j` are those of the numbers `64 k + 16 i + j`, on every
/// path; the whole registers behind the last 64 numbers go on with register 0, and what is less than a
/// register is added to the last one.
type Sums = [[f32; LANES]; REGISTERS];

/// The inner product.
///
/// # Shapes
/// - `a`, `b`: `[n]`
///
/// # Panics
/// If the lengths differ.
///
/// # Example
/// ```
/// use breakers_retrieval::distance::{dot, l2, norm_squared};
///
/// let (a, b) = ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]);
/// assert_eq!((dot(&a, &b), l2(&a, &b), norm_squared(&a)), (32.0, 27.0, 14.0));
/// ```
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    fold::<false>(a, b)
}

/// The squared Euclidean distance.
///
/// # Shapes
/// - `a`, `b`: `[n]`
///
/// # Panics
/// If the lengths differ.
pub fn l2(a: &[f32], b: &[f32]) -> f32 {
    fold::<true>(a, b)
}

/// The squared length.
pub fn norm_squared(a: &[f32]) -> f32 {
    dot(a, a)
}

/// The squared length in 64 bits, in partial sums, so that an addition need not wait for the one before it.
pub(crate) fn length_squared(vector: &[f32]) -> f64 {
    let mut sums = [0.0f64; 16];
    let (chunks, rest) = vector.as_chunks::<16>();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
}

/// The sum of products, or of squared differences.
#[inline]
fn fold<const DIFFERENCES: bool>(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let (registers_a, tail_a) = a.as_chunks::<LANES>();
    let (registers_b, tail_b) = b.as_chunks::<LANES>();
    let mut sums = simd::dispatch(breakers_cpu::isa(), Fold::<DIFFERENCES>(registers_a, registers_b));
    for (lane, (a, b)) in tail_a.iter().zip(tail_b).enumerate() {
        sums[REGISTERS - 1][lane] = step::<DIFFERENCES>(*a, *b, sums[REGISTERS - 1][lane]);
    }
    let mut lanes: [f32; LANES] =
        std::array::from_fn(|lane| (sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane]));
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// One more product, or squared difference.
#[inline(always)]
fn step<const DIFFERENCES: bool>(a: f32, b: f32, sum: f32) -> f32 {
    if DIFFERENCES { (a - b).mul_add(a - b, sum) } else { a.mul_add(b, sum) }
}

/// Adds up whole registers: named ones, because of a loop over lanes the compiler makes single numbers in
/// some programs and not in others.
struct Fold<'a, const DIFFERENCES: bool>(&'a [[f32; LANES]], &'a [[f32; LANES]]);

impl<const DIFFERENCES: bool> Kernel for Fold<'_, DIFFERENCES> {
    type Output = Sums;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Sums {
        let n = self.0.len().min(self.1.len());
        let (a, b) = (self.0.as_ptr(), self.1.as_ptr());
        let whole = n / REGISTERS * REGISTERS;
        let mut out = [[0.0; LANES]; REGISTERS];
        // SAFETY: the caller has the instructions; both have `n` registers, and each of `out`
        // has sixteen numbers.
        unsafe {
            let mut sums = [S::splat(0.0); REGISTERS];
            for first in (0..whole).step_by(REGISTERS) {
                sums[0] = one_more::<S, DIFFERENCES>(a.add(first), b.add(first), sums[0]);
                sums[1] = one_more::<S, DIFFERENCES>(a.add(first + 1), b.add(first + 1), sums[1]);
                sums[2] = one_more::<S, DIFFERENCES>(a.add(first + 2), b.add(first + 2), sums[2]);
                sums[3] = one_more::<S, DIFFERENCES>(a.add(first + 3), b.add(first + 3), sums[3]);
            }
            for at in whole..n {
                sums[at - whole] = one_more::<S, DIFFERENCES>(a.add(at), b.add(at), sums[at - whole]);
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                S::store(out.as_mut_ptr(), sum);
            }
        }
        out
    }
}

/// [`step`] of a register.
///
/// # Safety
/// - The processor has `S`'s instructions.
/// - Both pointers are valid.
#[inline(always)]
unsafe fn one_more<S: Simd, const DIFFERENCES: bool>(
    a: *const [f32; LANES],
    b: *const [f32; LANES],
    sum: S::V,
) -> S::V {
    // SAFETY: the caller's promises.
    unsafe {
        let (a, b) = (S::load(a.cast()), S::load(b.cast()));
        let (a, b) = if DIFFERENCES { (S::sub(a, b), S::sub(a, b)) } else { (a, b) };
        S::fma(a, b, sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use breakers_cpu::{self as cpu, Isa};
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
