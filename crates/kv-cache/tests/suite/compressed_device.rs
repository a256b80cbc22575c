//! Compressed caches on GPUs: a row's bits depend on nothing but what it sees, and memory is freed.
//!
//! That results are what the codes stand for is tested beside the kernels, with the CPU's.

use crate::common::{Heads, Random, Tokens, bits, heads, path_to, random_parents};
use crate::own_coder::Bytes;
use breakers_backend::device::{self, Kind};
use breakers_backend::harness;
use breakers_core::StepError;
use breakers_kv_cache::presses::Tova;
use breakers_kv_cache::{
    Budget, CacheShape, Compression, Element, Error, EvictingCache, Eviction, KvCache, LayerShape,
    PlainCache, QuantizedCache,
};
use burn::tensor::{Device, Tensor, TensorData};

/// One of each kind of format, some on layers with windows.
const CACHES: [(&str, Heads); 5] = [
    ("turbo-4", heads(3, 1, 64)),
    ("water-4", heads(4, 2, 32)),
    ("turbo-prod-3", heads(2, 2, 16)),
    ("kivi-4", heads(2, 1, 64)),
    ("water-3", heads(4, 1, 64).window(100)),
];

/// GPUs of this build and machine; at least one if one has to be there.
fn gpus() -> Vec<Device> {
    let found = device::available().into_iter().filter(|found| found.kind != Kind::Flex);
    let gpus: Vec<Device> = found.map(|found| device::open(&found.name).unwrap()).collect();
    let required = std::env::var("BREAKERS_REQUIRE_DEVICES").unwrap_or_default();
    assert!(!gpus.is_empty() || required.is_empty(), "no GPU for {required}");
    if gpus.is_empty() {
        eprintln!("skipped: no GPU");
    }
    gpus
}

fn make(name: &str, heads: Heads, device: &Device) -> QuantizedCache {
    let shape = CacheShape::uniform(1, heads.layer(), 1 << 20);
    QuantizedCache::new(shape, &name.parse::<Compression>().unwrap(), device).unwrap()
}

fn tensors(tokens: &Tokens, device: &Device) -> [Tensor<3>; 3] {
    let Heads { n_heads, n_kv_heads, head_dim, .. } = tokens.heads;
    [(&tokens.q, n_heads), (&tokens.k, n_kv_heads), (&tokens.v, n_kv_heads)].map(|(x, n_heads)| {
        Tensor::from_data(TensorData::new(x.clone(), [tokens.n, n_heads, head_dim]), device)
    })
}

fn feed(
    cache: &mut dyn KvCache,
    device: &Device,
    tokens: &Tokens,
    parents: Option<&[Option<usize>]>,
) -> Vec<u32> {
    cache.begin(tokens.n, parents).unwrap();
    let mut out = Vec::new();
    for layer in 0..cache.shape().layers.len() {
        let [q, k, v] = tensors(tokens, device);
        out = bits(&harness::values(cache.attend(layer, q, k, v, tokens.heads.scale()).unwrap()));
    }
    cache.end().unwrap();
    out
}

#[test]
fn steps_of_any_size_give_the_same_bits() {
    for (device, (name, heads)) in gpus().iter().flat_map(|device| CACHES.map(|cache| (device, cache))) {
        let tokens = Tokens::random(heads, 200, 11);
        let run = |sizes: &[usize], commit: bool| {
            let (mut cache, mut out, mut from) = (make(name, heads, device), Vec::new(), 0);
            for n in sizes.iter().cycle() {
                let to = tokens.n.min(from + n);
                out.extend(feed(&mut cache, device, &tokens.range(from..to), None));
                if commit {
                    cache.commit(to - from).unwrap();
                }
                from = to;
                if from == tokens.n {
                    return out;
                }
            }
            out
        };
        let want = run(&[200], false);
        for (sizes, commit) in
            [(&[100, 29, 1][..], true), (&[64], true), (&[9, 17], true), (&[150, 3], false)]
        {
            assert!(run(sizes, commit) == want, "{name} {heads:?} {sizes:?} {commit}");
        }
    }
}

#[test]
fn a_row_of_a_tree_has_the_bits_of_its_chain() {
    for (device, (name, heads)) in gpus().iter().flat_map(|device| CACHES.map(|cache| (device, cache))) {
        let mut random = Random::new(name.bytes().map(u64::from).sum());
        // One tree reaches over a page's end, the first one's for methods that weigh channels.
        for prefix in [60, 70] {
            let n_rows = 6 + random.below(4);
            let parents = match prefix {
                60 => (0..n_rows).map(|row: usize| row.checked_sub(1 + row % 2)).collect(),
                _ => random_parents(&mut random, n_rows),
            };
            let tokens = Tokens::random(heads, prefix + n_rows + 1, 23);
            let start = || {
                let mut cache = make(name, heads, device);
                feed(&mut cache, device, &tokens.range(0..prefix), None);
                cache.commit(prefix).unwrap();
                cache
            };
            let mut tree = start();
            let rows = tokens.range(prefix..prefix + n_rows);
            let out = feed(&mut tree, device, &rows, Some(&parents));
            let width = heads.n_heads * heads.head_dim;
            for row in [n_rows / 2, n_rows - 1] {
                let path = path_to(&parents, row);
                let mut chain = start();
                let want = feed(&mut chain, device, &rows.pick(&path), None);
                let (got, want) = (&out[row * width..][..width], &want[(path.len() - 1) * width..]);
                assert!(got == want, "{name} {heads:?} prefix {prefix} {parents:?} row {row}");

                let mut kept = tree.fork().unwrap();
                kept.retain(&path).unwrap();
                let next = tokens.range(prefix + n_rows..tokens.n);
                let want = feed(&mut chain, device, &next, None);
                assert!(feed(&mut *kept, device, &next, None) == want, "{name} {heads:?} after {path:?}");
            }
        }
    }
}

#[test]
fn forks_and_truncation_leave_no_trace() {
    for (device, (name, heads)) in gpus().iter().flat_map(|device| CACHES.map(|cache| (device, cache))) {
        let tokens = Tokens::random(heads, 270, 29);
        let mut cache = make(name, heads, device);
        feed(&mut cache, device, &tokens.range(0..140), None);
        cache.commit(130).unwrap();
        let mut fork = cache.fork().unwrap();
        // Rejected tokens that went over a page's end.
        let wrong = Tokens::random(heads, 80, 31);
        feed(&mut *fork, device, &wrong, None);
        fork.truncate(135).unwrap();
        cache.truncate(135).unwrap();
        let mut fresh = make(name, heads, device);
        feed(&mut fresh, device, &tokens.range(0..135), None);
        let rest = tokens.range(135..270);
        let want = feed(&mut fresh, device, &rest, None);
        assert!(feed(&mut *fork, device, &rest, None) == want, "{name} {heads:?}: fork");
        assert!(feed(&mut cache, device, &rest, None) == want, "{name} {heads:?}: original");
        // An aborted step.
        fork.truncate(180).unwrap();
        fork.begin(80, None).unwrap();
        let [q, k, v] = tensors(&wrong, device);
        fork.attend(0, q, k, v, heads.scale()).unwrap();
        fork.abort();
        let got = feed(&mut *fork, device, &tokens.range(180..270), None);
        let width = heads.n_heads * heads.head_dim;
        assert!(got == want[45 * width..], "{name} {heads:?}: aborted");
        // Final tokens, back to a page's boundary.
        fork.commit(fork.len() - fork.committed()).unwrap();
        if heads.window.is_none() && !name.starts_with("kivi") {
            assert!(matches!(
                fork.truncate(150),
                Err(Error::Step(StepError::TruncateEvicted { requested: 150, .. }))
            ));
            fork.truncate(128).unwrap();
            let got = feed(&mut *fork, device, &tokens.range(128..135), None);
            let mut fresh = make(name, heads, device);
            feed(&mut fresh, device, &tokens.range(0..128), None);
            assert!(got == feed(&mut fresh, device, &tokens.range(128..135), None), "{name}: page boundary");
        }
        fork.truncate(0).unwrap();
        assert_eq!(fork.bytes(), 0, "{name}");
    }
}

#[test]
fn memory_is_freed() {
    for device in gpus() {
        for (name, bits, n_plain) in [
            // There is room for a page of tokens to come, or KIVI's window.
            ("turbo-4", 4.0 + 16.0 / 64.0, 0),
            ("water-4", (3.5 + 41.0 / 64.0 + 3.0 + 16.0 / 64.0) / 2.0, 0),
            ("kivi-2", 3.0, 128),
        ] {
            let (heads, n_packed) = (heads(1, 1, 64), 2048);
            let mut cache = make(name, heads, &device);
            for n in [512, 512, 512, 512, n_plain].into_iter().filter(|n| *n > 0) {
                feed(&mut cache, &device, &Tokens::random(heads, n, n as u64), None);
                cache.commit(n).unwrap();
            }
            let n_plain = n_plain.max(64) as f64;
            let expected = 2.0 * 64.0 * (f64::from(n_packed) * bits / 8.0 + n_plain * 2.0);
            let off = cache.bytes() as f64 / expected - 1.0;
            assert!(off.abs() < 0.05, "{name}: {} bytes for {expected}, {off}", cache.bytes());
        }
        let heads = heads(1, 1, 64).window(128);
        let (mut cache, mut most) = (make("water-4", heads, &device), 0);
        for at in 0..20 {
            feed(&mut cache, &device, &Tokens::random(heads, 100, at), None);
            cache.commit(100).unwrap();
            most = most.max(cache.bytes());
        }
        // Two pieces of eight packed pages, and two pages of plain tokens.
        assert!(most < 16 * 64 * 64 + 2 * 64 * 2 * 64 * 2 + 4000, "{most}");
        assert!(matches!(cache.truncate(1024), Err(Error::Step(StepError::TruncateEvicted { .. }))));
    }
}

#[test]
fn bad_input_is_refused() {
    for device in gpus() {
        let heads = heads(2, 1, 64);
        for (at, name) in ["k", "v"].into_iter().enumerate() {
            let mut tokens = Tokens::random(heads, 60, 43);
            [&mut tokens.k, &mut tokens.v][at][30 * 64 + 5] = f32::NAN;
            let mut cache = make("water-4", heads, &device);
            feed(&mut cache, &device, &tokens, None);
            // The page is packed for the first row behind it.
            let next = Tokens::random(heads, 5, 44);
            cache.begin(5, None).unwrap();
            let [q, k, v] = tensors(&next, &device);
            let found = cache.attend(0, q, k, v, 0.1);
            // Some shaders take a NaN for a number.
            if let Err(error) = found.map(|_| ()) {
                assert!(
                    matches!(error, Error::NotFinite { tensor, row: 30, .. } if tensor == name),
                    "{error}"
                );
                cache.abort();
                assert_eq!(cache.len(), 60);
            }
        }
        let mut cache = make("turbo-4", heads, &device);
        cache.begin(1, None).unwrap();
        let [q, k, v] = tensors(&Tokens::random(heads, 1, 1), &Device::flex());
        assert!(matches!(cache.attend(0, q, k, v, 0.1), Err(Error::Device { .. })));
        let shape = CacheShape::uniform(1, LayerShape::new(1, 80), 100);
        let refused =
            QuantizedCache::new(shape, &"turbo-4".parse::<Compression>().unwrap(), &device).map(|_| ());
        assert_eq!(refused, Err(Error::HeadWidth { expected: "a power of two from 16 to 256", found: 80 }));
        let shape = CacheShape::uniform(1, heads.layer(), 100);
        let refused = QuantizedCache::new(shape, &Compression::new(Bytes), &device).map(|_| ());
        assert!(matches!(&refused, Err(Error::CoderDevice { coder, .. }) if coder == "bytes"), "{refused:?}");
        let eviction = Eviction::new(Tova, Budget::Fraction(0.5));
        let pressed = EvictingCache::new(CacheShape::uniform(1, heads.layer(), 100), eviction, &device);
        assert!(matches!(pressed.map(|_| ()), Err(Error::EvictionDevice { .. })));
    }
}

#[test]
fn plain_layers_have_the_bits_of_the_plain_cache() {
    for device in gpus() {
        let heads = heads(4, 2, 64);
        let tokens = Tokens::random(heads, 150, 47);
        let shape = || CacheShape::uniform(2, heads.layer(), 1000);
        let compression = Compression { plain_layers: vec![1], .."turbo-2".parse::<Compression>().unwrap() };
        let mut cache = QuantizedCache::new(shape(), &compression, &device).unwrap();
        let mut plain = PlainCache::new(shape(), Element::F16, &device).unwrap();
        // The last layer's rows are what is compared.
        assert!(feed(&mut cache, &device, &tokens, None) == feed(&mut plain, &device, &tokens, None));
        cache.commit(150).unwrap();
        assert!(cache.bytes() < plain.bytes());
    }
}
