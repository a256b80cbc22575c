use super::*;
use crate as cpu;
use half::f16;

/// Everything that an instruction set computes from some inputs, as bits.
struct Everything<'a>(&'a [f32; LANES], &'a [f32; LANES]);

impl Kernel for Everything<'_> {
    type Output = Vec<u32>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Vec<u32> {
        // SAFETY: the caller has the instructions.
        unsafe { everything::<S>(self.0, self.1) }
    }
}

#[inline(always)]
unsafe fn everything<S: Simd>(a: &[f32; LANES], b: &[f32; LANES]) -> Vec<u32> {
    let halves = b.map(f16::from_f32);
    let mut bits = Vec::new();
    // SAFETY: the caller has the instructions; all arrays have LANES elements.
    unsafe {
        let (x, y) = (S::load(a.as_ptr()), S::load(b.as_ptr()));
        let negative = S::sub(S::splat(-0.0), S::mul(x, x));
        let mut results = vec![
            S::add(x, y),
            S::sub(x, y),
            S::mul(x, y),
            S::div(x, y),
            S::fma(x, y, S::splat(0.3)),
            S::max(x, y),
            S::widen(halves.as_ptr()),
            S::widen(b.as_ptr()),
            S::exp2(negative),
            S::exp2(S::mul(negative, S::splat(40.0))),
            S::exp2(S::splat(f32::NEG_INFINITY)),
        ];
        let [low, high] = [a, b].map(|x| x.map(|x| x.to_bits().wrapping_mul(0x9e37_79b9)));
        let table: [u8; TABLE] = std::array::from_fn(|i| low[i % LANES].to_le_bytes()[i / LANES]);
        let (table, words) = (S::table(table.as_ptr()), S::words(low.as_ptr()));
        let mut integers = vec![S::add_words(words, S::words(high.as_ptr()))];
        for shift in [0, 1, 3, 7] {
            let by = S::splat_word(shift);
            let both = S::or(S::shift_right(words, by), S::shift_left(S::words(high.as_ptr()), by));
            integers.push(both);
            let nibbles = S::and(both, S::splat_word(0x0f0f_0f0f));
            integers.push(S::look_up::<4>(table, nibbles));
            integers.push(S::look_up::<5>(table, S::and(both, S::splat_word(0x1f1f_1f1f))));
            integers.push(products::<S, 1>(x, LARGEST_BYTE / 8.0, nibbles));
            integers.push(products::<S, 1>(x, LARGEST_BYTE / 8.0, both));
            integers.push(products::<S, 2>(x, LARGEST / 8.0, both));
        }
        for integers in integers {
            results.push(S::float(integers));
            let mut lanes = [0; LANES];
            S::store_words(lanes.as_mut_ptr(), integers);
            bits.extend(lanes);
        }
        let many: [f32; 16 * LANES] = std::array::from_fn(|i| a[i % LANES] + (i / LANES) as f32);
        for n in [1, 2, 4, 6, 16] {
            let n = n * LANES;
            let order: [u8; LANES] = std::array::from_fn(|i| ((i * 41 + 7) % n) as u8);
            results.push(S::pick(many.as_ptr(), n, S::indices(order.as_ptr())));
        }
        for large in [1.0, 1e3, 1e4] {
            let (mut halves, mut singles) = ([f16::ZERO; LANES], [0.0f32; LANES]);
            S::narrow(halves.as_mut_ptr(), S::mul(x, S::splat(large)));
            S::narrow(singles.as_mut_ptr(), S::mul(y, S::splat(large)));
            bits.extend(halves.map(|h| h.to_bits() as u32));
            bits.extend(singles.map(f32::to_bits));
        }
        for from in -3..20 {
            for to in -3..20 {
                results.push(S::mask(x, from, to));
            }
        }
        for result in results {
            let mut lanes = [0.0; LANES];
            S::store(lanes.as_mut_ptr(), result);
            bits.extend(lanes.map(f32::to_bits));
        }
        bits.extend([S::reduce_max(x).to_bits(), S::reduce_add(x).to_bits()]);
    }
    bits
}

/// Products of bytes with numbers below 8, which were rounded to integers.
#[inline(always)]
unsafe fn products<S: Simd, const PLANES: usize>(x: S::V, factor: f32, bytes: S::W) -> S::W {
    let mut quads = [Quad::default(); LANES / 4];
    // SAFETY: the caller has the instructions; sixteen factors are four quads.
    unsafe {
        S::pack::<PLANES>(S::round(S::mul(x, S::splat(factor))), quads.as_mut_ptr());
        let mut sum = S::no_sum();
        for quad in &quads {
            sum = S::dot::<PLANES>(sum, S::bytes(bytes), S::factors(quad));
        }
        S::total::<PLANES>(sum)
    }
}

#[test]
fn products_are_those_of_integers() {
    let factors: [f32; LANES] = std::array::from_fn(|i| [LARGEST, -LARGEST, 64.0, -4_321.0][i % 4]);
    let words: [u32; LANES] = std::array::from_fn(|i| 0xff80_01ff_u32.rotate_left(i as u32));
    struct Products<'a>(&'a [f32; LANES], &'a [u32; LANES]);
    impl Kernel for Products<'_> {
        type Output = [u32; LANES];

        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> Self::Output {
            let mut lanes = [0; LANES];
            // SAFETY: the caller has the instructions; all arrays have LANES elements.
            unsafe {
                let sums = products::<S, 2>(S::load(self.0.as_ptr()), 1.0, S::words(self.1.as_ptr()));
                S::store_words(lanes.as_mut_ptr(), sums);
            }
            lanes
        }
    }
    for isa in cpu::available() {
        for (lane, sum) in dispatch(isa, Products(&factors, &words)).into_iter().enumerate() {
            let bytes = words[lane].to_le_bytes();
            let expected: i32 =
                factors.iter().enumerate().map(|(i, f)| *f as i32 * i32::from(bytes[i % 4])).sum();
            assert_eq!(sum as i32, expected, "{isa}, lane {lane}");
        }
    }
}

#[test]
fn instruction_sets_agree_to_the_bit() {
    let mut random = crate::random::SplitMix64::new(1);
    let mut next = || 8.0 * random.next_symmetric();
    for _ in 0..200 {
        let a: [f32; LANES] = std::array::from_fn(|_| next());
        let b: [f32; LANES] = std::array::from_fn(|_| next() * 1e-3);
        let want = dispatch(Isa::Scalar, Everything(&a, &b));
        for isa in cpu::available() {
            let got = dispatch(isa, Everything(&a, &b));
            assert!(got == want, "{isa}");
        }
    }
}

#[test]
fn exp2_is_within_one_ulp() {
    let mut worst = 0.0f64;
    for i in 0..=2_000_000 {
        let x = -126.0 * i as f32 / 2_000_000.0;
        let want = (x as f64).exp2();
        let ulp = f32::from_bits(1 + (want as f32).to_bits()) as f64 - want as f32 as f64;
        worst = worst.max((exp2(x) as f64 - want).abs() / ulp);
    }
    assert!(worst <= 1.0, "{worst} ulp");
    assert_eq!(exp2(0.0), 1.0);
    assert_eq!(exp2(-126.5), 0.0);
    assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
}
