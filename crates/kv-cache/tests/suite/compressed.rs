//! Quantized caches: every method goes through the same tests.

use crate::common::{Heads, Random, Tokens, bits, heads, path_to, random_parents};
use crate::own_coder::Bytes;
use breakers_core::StepError;
use breakers_cpu::{self as cpu, pool};
use breakers_kv_cache::coders::{
    BlockConfig, CODERS, Estimator, KiviConfig, TurboConfig, WaterFillingConfig,
};
use breakers_kv_cache::{
    CacheShape, Compression, Element, Error, KvCache, LayerShape, PlainCache, QuantizedCache,
};
use burn::tensor::{Device, Tensor, f16};

const SHAPES: [Heads; 5] =
    [heads(9, 3, 64), heads(4, 1, 256), heads(12, 2, 128), heads(2, 2, 16), heads(4, 1, 64).window(100)];

/// Every method of the table, and some that have no name.
fn methods() -> Vec<(&'static str, Compression)> {
    let mut methods: Vec<_> = CODERS.iter().map(|entry| (entry.name, (entry.build)())).collect();
    let with_window = Compression { window: 65, ..methods[0].1.clone() };
    methods.push(("q8_0 with a window", with_window));
    methods.push(("a coder of somebody else's", Compression::new(Bytes)));
    methods
}

fn make(heads: Heads, compression: &Compression) -> QuantizedCache {
    let shape = CacheShape::uniform(1, heads.layer(), 1 << 20);
    QuantizedCache::new(shape, compression, &Device::flex()).unwrap()
}

/// Calls `check` with every method, on shapes by turns.
fn for_all(check: impl Fn(&str, Heads, &Compression)) {
    for (at, (name, compression)) in methods().iter().enumerate() {
        check(name, SHAPES[at % SHAPES.len()], compression);
    }
}

fn feed_in_steps(tokens: &Tokens, cache: &mut dyn KvCache, sizes: &[usize], commit: bool) -> Vec<u32> {
    let mut out = Vec::new();
    let mut sizes = sizes.iter().cycle();
    let mut from = 0;
    while from < tokens.n {
        let to = tokens.n.min(from + sizes.next().unwrap());
        out.extend(bits(&tokens.range(from..to).feed(cache, None)));
        if commit {
            cache.commit(to - from).unwrap();
        }
        from = to;
    }
    out
}

#[test]
fn steps_of_any_size_give_the_same_bits() {
    for_all(|name, heads, compression| {
        let tokens = Tokens::random(heads, 330, 11);
        let want = feed_in_steps(&tokens, &mut make(heads, compression), &[330], false);
        for (sizes, commit) in
            [(&[1][..], true), (&[100, 29, 1], true), (&[64], true), (&[1], false), (&[130, 1], false)]
        {
            let got = feed_in_steps(&tokens, &mut make(heads, compression), sizes, commit);
            assert!(got == want, "{name} {heads:?} {sizes:?} {commit}");
        }
    });
}

#[test]
fn instruction_sets_and_threads_give_the_same_bits() {
    for_all(|name, heads, compression| {
        let tokens = Tokens::random(heads, 270, 13);
        let run = |isa| {
            let run = || feed_in_steps(&tokens, &mut make(heads, compression), &[256, 13, 1], true);
            cpu::with_isa(isa, run).unwrap()
        };
        let want = run(cpu::Isa::Scalar);
        for isa in cpu::available() {
            assert!(run(isa) == want, "{name} {heads:?} {isa}");
        }
    });
    for name in ["water-4", "turbo-prod-4"] {
        let heads = heads(9, 3, 64);
        let compression = name.parse::<Compression>().unwrap();
        let tokens = Tokens::random(heads, 1500, 17);
        let run = |threads| {
            pool::set_threads(threads).unwrap();
            feed_in_steps(&tokens, &mut make(heads, &compression), &[1480, 1, 8, 11], true)
        };
        let want = run(1);
        for threads in [2, 3] {
            assert!(run(threads) == want, "{name} {threads} threads");
        }
    }
}

#[test]
fn a_row_of_a_tree_has_the_bits_of_its_chain() {
    for_all(|name, heads, compression| {
        let mut random = Random::new(random_seed(name));
        // Among them trees that reach over a page's end, the first one's too.
        for prefix in [0, 60, 64, 125] {
            let n_rows = 6 + random.below(10);
            let parents = random_parents(&mut random, n_rows);
            let tokens = Tokens::random(heads, prefix + n_rows + 1, 23);
            let start = || {
                let mut cache = make(heads, compression);
                if prefix > 0 {
                    tokens.range(0..prefix).feed(&mut cache, None);
                }
                cache.commit(prefix).unwrap();
                cache
            };
            let mut tree = start();
            let rows = tokens.range(prefix..prefix + n_rows);
            let out = bits(&rows.feed(&mut tree, Some(&parents)));
            let width = heads.n_heads * heads.head_dim;
            for row in (0..n_rows).step_by(3).chain([n_rows - 1]) {
                let path = path_to(&parents, row);
                let mut chain = start();
                let want = bits(&rows.pick(&path).feed(&mut chain, None));
                let (got, want) = (&out[row * width..][..width], &want[(path.len() - 1) * width..]);
                assert!(got == want, "{name} {heads:?} prefix {prefix} {parents:?} row {row}");

                let mut kept = tree.fork().unwrap();
                kept.retain(&path).unwrap();
                let next = tokens.range(prefix + n_rows..tokens.n);
                let want = bits(&next.feed(&mut chain, None));
                assert!(bits(&next.feed(&mut *kept, None)) == want, "{name} {heads:?} after {path:?}");
            }
        }
    });
}

fn random_seed(name: &str) -> u64 {
    name.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()))
}

#[test]
fn forks_and_truncation_leave_no_trace() {
    for_all(|name, heads, compression| {
        let tokens = Tokens::random(heads, 400, 29);
        let mut cache = make(heads, compression);
        tokens.range(0..200).feed(&mut cache, None);
        cache.commit(190).unwrap();
        let mut fork = cache.fork().unwrap();
        // Rejected tokens that went over two page ends.
        let wrong = Tokens::random(heads, 150, 31);
        wrong.feed(&mut *fork, None);
        fork.truncate(195).unwrap();
        cache.truncate(195).unwrap();
        let mut fresh = make(heads, compression);
        tokens.range(0..195).feed(&mut fresh, None);
        let rest = tokens.range(195..400);
        let want = bits(&rest.feed(&mut fresh, None));
        assert!(bits(&rest.feed(&mut *fork, None)) == want, "{name} {heads:?}: fork");
        assert!(bits(&rest.feed(&mut cache, None)) == want, "{name} {heads:?}: original");
        // An aborted step.
        fork.truncate(250).unwrap();
        fork.begin(100, None).unwrap();
        let [q, k, v] = wrong.range(0..100).tensors();
        fork.attend(0, q, k, v, heads.scale()).unwrap();
        fork.abort();
        let mut fresh = make(heads, compression);
        tokens.range(0..250).feed(&mut fresh, None);
        let rest = tokens.range(250..400);
        assert!(bits(&rest.feed(&mut *fork, None)) == bits(&rest.feed(&mut fresh, None)), "{name}: aborted");
        fork.truncate(0).unwrap();
        assert!(fork.bytes() < 10_000, "{name}: {} bytes", fork.bytes());
    });
}

#[test]
fn final_tokens_can_be_taken_back_to_a_page_boundary() {
    let heads = heads(4, 2, 64);
    let tokens = Tokens::random(heads, 300, 37);
    let compression = "water-4".parse::<Compression>().unwrap();
    let mut cache = make(heads, &compression);
    tokens.feed(&mut cache, None);
    cache.commit(300).unwrap();
    for (len, evicted_from) in [(255, 192), (100, 64), (1, 0)] {
        assert_eq!(
            cache.truncate(len),
            Err(StepError::TruncateEvicted { requested: len, evicted_from }.into())
        );
    }
    assert!(matches!(cache.truncate(301), Err(Error::Step(StepError::OutOfRange { .. }))));
    for len in [290, 256, 128, 64, 0] {
        cache.truncate(len).unwrap();
        assert_eq!((cache.len(), cache.committed()), (len, len));
        let mut fork = cache.fork().unwrap();
        let got = bits(&tokens.range(len..300).feed(&mut *fork, None));
        let mut fresh = make(heads, &compression);
        if len > 0 {
            tokens.range(0..len).feed(&mut fresh, None);
        }
        assert!(got == bits(&tokens.range(len..300).feed(&mut fresh, None)), "{len}");
    }
}

/// Bits of an element of final, whole pages by the method's formula: keys and values.
fn formula(name: &str, dim: f64) -> [f64; 2] {
    let rows = 64.0;
    let kivi = |bits: f64| [bits + 1.0, bits + 32.0 / 32f64.min(dim)];
    // Fractions come in steps of 16 channels.
    let codebook = |bits: f64| bits.floor() + (bits.fract() * dim / 16.0).round() * 16.0 / dim;
    let turbo = |bits: f64| [codebook(bits) + 16.0 / dim; 2];
    // A sketch has a length of its own.
    let prod = |bits: f64| [bits + 32.0 / dim, bits + 16.0 / dim];
    let kvarn = |bits: [f64; 2]| bits.map(|bits| bits + 32.0 / rows + 16.0 / dim);
    let water = |key_bits: f64, value_bits: f64| {
        let key_bits = (key_bits * dim / 32.0).round() * 32.0 / dim;
        [key_bits + 41.0 / rows, codebook(value_bits) + 16.0 / dim]
    };
    match name {
        "q8_0" | "q8_0 with a window" => [8.0 + 16.0 / 32f64.min(dim); 2],
        "q4_0" | "q4_0-rotated" => [4.0 + 16.0 / 32f64.min(dim); 2],
        "kivi-4" => kivi(4.0),
        "kivi-2" => kivi(2.0),
        "turbo-mse-4" | "turbo-4" => turbo(4.0),
        "turbo-mse-3" | "turbo-3" => turbo(3.0),
        "turbo-prod-4" => prod(4.0),
        "turbo-prod-3" => prod(3.0),
        "turbo-5" => turbo(5.0),
        "turbo-3.5" => turbo(3.5),
        "turbo-2" => turbo(2.0),
        "kvarn-4" => kvarn([4.0, 4.0]),
        "kvarn-4-2" => kvarn([4.0, 2.0]),
        "water-5" => water(4.5, 4.0),
        "water-4" => water(3.5, 3.0),
        "water-3" => water(3.0, 2.0),
        "water-2" => water(2.0, 1.0),
        "a coder of somebody else's" => [8.0 + 32.0 / (rows * dim); 2],
        other => panic!("{other} has no formula"),
    }
}

#[test]
fn memory_is_what_the_formula_says() {
    for (name, compression) in methods() {
        for (heads, n) in [(heads(2, 2, 64), 8192), (heads(1, 1, 256), 2048), (heads(2, 2, 128), 2048)] {
            let mut cache = make(heads, &compression);
            for at in (0..n).step_by(256) {
                Tokens::random(heads, 256, at as u64).feed(&mut cache, None);
                cache.commit(256).unwrap();
            }
            let dim = heads.head_dim as f64;
            let [keys, values] = formula(name, dim);
            let window = compression.window.max(if name.starts_with("kivi") { 128 } else { 0 });
            let n_plain = window.next_multiple_of(64) as f64 + compression.exact_tokens as f64;
            let n_packed = n as f64 - window.next_multiple_of(64) as f64;
            let elements = dim * heads.n_kv_heads as f64;
            let expected = elements * (n_packed * (keys + values) / 8.0 + n_plain * 4.0);
            let off = cache.bytes() as f64 / expected - 1.0;
            assert!(off.abs() < 0.05, "{name} {heads:?}: {} bytes for {expected}, {off}", cache.bytes());
        }
    }
}

/// Attention in f64 of the last row over these keys and values.
pub(crate) fn reference(tokens: &Tokens, keys: &[f64], values: &[f64]) -> Vec<f64> {
    let Heads { n_heads, n_kv_heads, head_dim, .. } = tokens.heads;
    let row = tokens.n - 1;
    let mut out = Vec::new();
    for head in 0..n_heads {
        let kv = head / (n_heads / n_kv_heads);
        let q = &tokens.q[(row * n_heads + head) * head_dim..][..head_dim];
        let at = |i: usize| (i * n_kv_heads + kv) * head_dim;
        let scores: Vec<f64> = (0..tokens.n)
            .map(|i| {
                let dot: f64 = q.iter().zip(&keys[at(i)..]).map(|(q, k)| f64::from(*q) * k).sum();
                dot * f64::from(tokens.heads.scale())
            })
            .collect();
        let max = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for dim in 0..head_dim {
            out.push((0..tokens.n).map(|i| weights[i] * values[at(i) + dim]).sum::<f64>() / sum);
        }
    }
    out
}

fn half(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// Rounds the numbers of a group to levels from the least to the greatest.
fn round_to_nearest(group: &mut [&mut f64], bits: u32) {
    let low = f64::from(half(group.iter().map(|x| **x).fold(f64::MAX, f64::min) as f32));
    let high = group.iter().map(|x| **x).fold(f64::MIN, f64::max);
    let most = f64::from((1u32 << bits) - 1);
    let step = f64::from(half((high as f32 - low as f32) / most as f32));
    for x in group {
        **x = low + step * ((**x - low) / step).round().clamp(0.0, most);
    }
}

#[test]
fn kivi_is_what_its_paper_says() {
    for (bits, seed) in [(4, 1), (2, 2), (3, 3)] {
        for heads in [heads(9, 3, 64), heads(4, 1, 128)] {
            let tokens = Tokens::random(heads, 400, seed);
            let config = KiviConfig::paper(bits);
            let compression = Compression { exact_tokens: 0, ..Compression::new(config) };
            let out = tokens.feed(&mut make(heads, &compression), None);
            let halves = |x: &[f32]| x.iter().map(|x| f64::from(half(*x))).collect::<Vec<_>>();
            let (mut keys, mut values) = (halves(&tokens.k), halves(&tokens.v));
            // The last row stands in the seventh page and sees two pages before it as they
            // are: 256 are rounded.
            let width = heads.n_kv_heads * heads.head_dim;
            for channel in 0..width {
                for group in 0..256 / 32 {
                    let column = keys[group * 32 * width..(group + 1) * 32 * width].iter_mut();
                    let mut column: Vec<&mut f64> = column.skip(channel).step_by(width).collect();
                    round_to_nearest(&mut column, bits);
                }
            }
            for group in values[..256 * width].chunks_exact_mut(32) {
                round_to_nearest(&mut group.iter_mut().collect::<Vec<_>>(), bits);
            }
            let want = reference(&tokens, &keys, &values);
            let got = &out[out.len() - want.len()..];
            let worst = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
            // A number in the middle of two levels may be rounded either way in f32; one in
            // 400 counts little.
            assert!(worst < 2e-3, "{bits} bits, {heads:?}: {worst}");
        }
    }
}

#[test]
fn errors_shrink_with_the_bits() {
    let heads = heads(9, 3, 64);
    let tokens = Tokens::random(heads, 500, 41);
    let exact = tokens.feed(&mut heads.cache(Element::F32), None);
    let error = |name: &str| {
        let out = tokens.feed(&mut make(heads, &name.parse::<Compression>().unwrap()), None);
        let (error, size) = out
            .iter()
            .zip(&exact)
            .fold((0.0, 0.0), |(e, s), (a, b)| (e + f64::from(a - b).powi(2), s + f64::from(*b).powi(2)));
        error / size
    };
    for names in [
        &["q8_0", "q4_0-rotated"][..],
        &["turbo-5", "turbo-4", "turbo-3.5", "turbo-3", "turbo-2"],
        &["turbo-prod-4", "turbo-prod-3"],
        &["turbo-mse-4", "turbo-mse-3"],
        &["kivi-4", "kivi-2"],
        &["kvarn-4", "kvarn-4-2"],
        &["water-5", "water-4", "water-3", "water-2"],
    ] {
        let errors: Vec<f64> = names.iter().map(|name| error(name)).collect();
        assert!(errors.windows(2).all(|pair| pair[0] < 0.8 * pair[1]), "{names:?}: {errors:?}");
    }
    assert!(error("q8_0") < 1e-3 && error("turbo-4") < 0.05 && error("water-4") < 0.05);
}

#[test]
fn bad_input_is_refused() {
    let make = |dim, compression: &Compression| {
        let shape = CacheShape::uniform(2, LayerShape::new(1, dim), 1000);
        QuantizedCache::new(shape, compression, &Device::flex()).map(|_| ())
    };
    let water = "water-4".parse::<Compression>().unwrap();
    for dim in [7, 8, 65, 80, 96, 512] {
        for entry in CODERS {
            let expected = "a power of two from 16 to 256";
            assert_eq!(make(dim, &(entry.build)()), Err(Error::HeadWidth { expected, found: dim }));
        }
    }
    for bits in [0.0, 0.5, 5.5, f64::NAN, f64::INFINITY, -1.0] {
        let compression = Compression::new(TurboConfig { bits, estimator: Estimator::Rescaled });
        assert!(matches!(make(64, &compression), Err(Error::BitWidth { .. })), "{bits}");
        let config = WaterFillingConfig { key_bits: 4.0, value_bits: bits };
        assert!(matches!(make(64, &Compression::new(config)), Err(Error::BitWidth { .. })));
    }
    for bits in [0, 2, 16] {
        let found = make(64, &Compression::new(BlockConfig { bits, rotated: false }));
        let expected = "4 or 8";
        assert_eq!(found, Err(Error::BitWidth { what: "a block format", expected, found: bits.into() }));
    }
    let group = KiviConfig { group: 48, ..KiviConfig::default() };
    let group = make(64, &Compression::new(group));
    assert_eq!(group, Err(Error::GroupSize { expected: "32 or 64", found: 48 }));
    let exact = make(64, &Compression { exact_tokens: 64, ..water.clone() });
    assert_eq!(exact, Err(Error::ExactTokens { most: 63, found: 64 }));
    let layers = make(64, &Compression { plain_layers: vec![2], ..water.clone() });
    assert_eq!(
        layers,
        Err(StepError::OutOfRange { what: "plain layers", requested: 2, available: 2 }.into())
    );
    assert!(matches!("water-99".parse::<Compression>(), Err(Error::UnknownCompression { .. })));

    let heads = heads(2, 1, 64);
    for (at, name) in ["q", "k", "v"].into_iter().enumerate() {
        for bad in [f32::NAN, f32::INFINITY] {
            for (_, compression) in methods() {
                let shape = CacheShape::uniform(1, heads.layer(), 1000);
                let mut cache = QuantizedCache::new(shape, &compression, &Device::flex()).unwrap();
                let mut tokens = Tokens::random(heads, 130, 43);
                [&mut tokens.q, &mut tokens.k, &mut tokens.v][at][70 * 64 * [2, 1, 1][at] + 5] = bad;
                cache.begin(130, None).unwrap();
                let [q, k, v] = tokens.tensors();
                let found = cache.attend(0, q, k, v, 0.1);
                let Err(Error::NotFinite { tensor, row: 70, .. }) = found else { panic!("{found:?}") };
                assert_eq!(tensor, name);
                cache.abort();
                assert_eq!(cache.len(), 0);
            }
        }
    }
    let mut cache =
        QuantizedCache::new(CacheShape::uniform(1, heads.layer(), 10), &water, &Device::flex()).unwrap();
    assert_eq!(cache.begin(0, None), Err(StepError::Empty.into()));
    assert_eq!(cache.begin(11, None), Err(StepError::ContextFull { needed: 11, limit: 10 }.into()));
    assert!(matches!(cache.truncate(1), Err(Error::Step(StepError::OutOfRange { .. }))));
}

#[test]
fn plain_layers_have_the_bits_of_the_plain_cache() {
    let heads = heads(9, 3, 64);
    let tokens = Tokens::random(heads, 300, 47);
    let shape = || CacheShape::uniform(2, heads.layer(), 1000);
    let compression = Compression { plain_layers: vec![1], .."water-2".parse::<Compression>().unwrap() };
    let mut cache = QuantizedCache::new(shape(), &compression, &Device::flex()).unwrap();
    let mut plain = PlainCache::new(shape(), Element::F16, &Device::flex()).unwrap();
    let attend = |cache: &mut dyn KvCache| -> Vec<Tensor<2>> {
        cache.begin(300, None).unwrap();
        let out = (0..2).map(|layer| {
            let [q, k, v] = tokens.tensors();
            cache.attend(layer, q, k, v, heads.scale()).unwrap()
        });
        let out = out.collect();
        cache.end().unwrap();
        cache.commit(300).unwrap();
        out
    };
    let (packed, plain) = (attend(&mut cache), attend(&mut plain));
    assert_ne!(packed[0].to_data(), plain[0].to_data());
    assert_eq!(packed[1].to_data(), plain[1].to_data());
}

#[test]
fn pages_behind_a_window_are_freed() {
    let heads = heads(4, 1, 64).window(128);
    let compression = "water-4".parse::<Compression>().unwrap();
    let mut cache = make(heads, &compression);
    let mut most = 0;
    for at in 0..40 {
        Tokens::random(heads, 100, at).feed(&mut cache, None);
        cache.commit(100).unwrap();
        most = most.max(cache.bytes());
    }
    // Three pages of a window, one that is being filled, and what lists take.
    assert!(most < 4 * 64 * 2 * 64 * 2 + 4000, "{most}");
    assert!(matches!(cache.truncate(1024), Err(Error::Step(StepError::TruncateEvicted { .. }))));
}
