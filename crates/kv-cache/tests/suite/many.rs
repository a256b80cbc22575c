//! Attention over many sequences in one call: the bits of each sequence by itself, for every cache.

use crate::common::{Heads, Random, Tokens, bits, heads, random_parents};
use breakers_cpu::pool;
use breakers_kv_cache::presses::SnapKv;
use breakers_kv_cache::{
    Budget, CacheShape, Compression, Element, Error, EvictingCache, Eviction, KvCache, PlainCache,
    QuantizedCache, Segment, SegmentError, attend_many,
};
use burn::tensor::{Device, Tensor};

const HEADS: Heads = heads(6, 2, 64);

fn make(kind: &str) -> Box<dyn KvCache> {
    let (shape, device) = (CacheShape::uniform(1, HEADS.layer(), 1 << 20), Device::flex());
    match kind {
        "f16" => Box::new(PlainCache::new(shape, Element::F16, &device).unwrap()),
        "f32" => Box::new(PlainCache::new(shape, Element::F32, &device).unwrap()),
        "snapkv" | "snapkv+water-4" => {
            let mut eviction = Eviction::new(SnapKv::default(), Budget::Fraction(0.5));
            if kind != "snapkv" {
                eviction.compression = Some("water-4".parse::<Compression>().unwrap());
            }
            Box::new(EvictingCache::new(shape, eviction, &device).unwrap())
        }
        name => {
            let compression = name.parse::<Compression>().unwrap();
            Box::new(QuantizedCache::new(shape, &compression, &device).unwrap())
        }
    }
}

/// Queries, keys and values of several parts, one after the other.
fn joined(parts: &[Tokens]) -> [Tensor<3>; 3] {
    let all: Vec<[Tensor<3>; 3]> = parts.iter().map(Tokens::tensors).collect();
    [0, 1, 2].map(|i| Tensor::cat(all.iter().map(|tensors| tensors[i].clone()).collect(), 0))
}

#[test]
fn many_sequences_at_once_have_the_bits_of_each_alone() {
    let kinds = ["f16", "water-4", "turbo-prod-4", "kivi-2", "snapkv", "snapkv+water-4", "f32"];
    // Tokens before, and rows of the step; the last one is long enough to be cut by chunks on
    // several threads.
    let lengths = [(0, 3), (62, 5), (130, 1), (300, 1), (65, 70), (128, 2), (1500, 1)];
    for threads in [1, 3] {
        pool::set_threads(threads).unwrap();
        let mut random = Random::new(5);
        let mut alone: Vec<Box<dyn KvCache>> = Vec::new();
        let mut together: Vec<Box<dyn KvCache>> = Vec::new();
        let (mut parts, mut trees, mut want) = (Vec::new(), Vec::new(), Vec::new());
        for (at, (kind, (n_before, n_rows))) in kinds.iter().zip(lengths).enumerate() {
            let mut cache = make(kind);
            if n_before > 0 {
                Tokens::random(HEADS, n_before, at as u64).feed(&mut *cache, None);
                cache.commit(n_before).unwrap();
            }
            together.push(cache.fork().unwrap());
            alone.push(cache);
            parts.push(Tokens::random(HEADS, n_rows, 90 + at as u64));
            trees.push((at % 2 == 1).then(|| random_parents(&mut random, n_rows)));
        }
        for ((cache, part), tree) in alone.iter_mut().zip(&parts).zip(&trees) {
            want.extend(bits(&part.feed(&mut **cache, tree.as_deref())));
        }
        for ((cache, part), tree) in together.iter_mut().zip(&parts).zip(&trees) {
            cache.begin(part.n, tree.as_deref()).unwrap();
        }
        let [q, k, v] = joined(&parts);
        let mut segments: Vec<Segment<'_>> = together
            .iter_mut()
            .zip(&parts)
            .map(|(cache, part)| Segment { cache: &mut **cache, n_rows: part.n })
            .collect();
        let out = attend_many(&mut segments, 0, q, k, v, HEADS.scale()).unwrap();
        assert!(bits(&out.into_data().try_to_vec::<f32>().unwrap()) == want, "{threads} threads");
        for (cache, alone) in together.iter_mut().zip(&mut alone) {
            cache.end().unwrap();
            assert_eq!(cache.len(), alone.len());
            let next = Tokens::random(HEADS, 1, 7);
            if cache.len() - cache.committed() == 1 {
                assert!(bits(&next.feed(&mut **cache, None)) == bits(&next.feed(&mut **alone, None)));
            }
        }
    }
}

#[test]
fn an_error_names_the_sequence_and_its_own_row() {
    for (at, name) in ["q", "k", "v"].into_iter().enumerate() {
        let mut caches = [make("f16"), make("water-4"), make("snapkv")];
        let mut parts = [2, 4, 3].map(|n| Tokens::random(HEADS, n, 1));
        let bad = &mut parts[1];
        [&mut bad.q, &mut bad.k, &mut bad.v][at][3 * 64 * [6, 2, 2][at] + 7] = f32::NAN;
        for (cache, part) in caches.iter_mut().zip(&parts) {
            cache.begin(part.n, None).unwrap();
        }
        let call = |caches: &mut [Box<dyn KvCache>; 3], n_rows: [usize; 3], layer| {
            let [q, k, v] = joined(&parts);
            let segments = caches.iter_mut().zip(n_rows);
            let mut segments: Vec<_> =
                segments.map(|(cache, n_rows)| Segment { cache: &mut **cache, n_rows }).collect();
            attend_many(&mut segments, layer, q, k, v, 0.1).map(|out| out.dims())
        };
        let SegmentError { segment, source } = call(&mut caches, [2, 4, 3], 0).unwrap_err();
        assert_eq!(segment, 1);
        assert!(matches!(source, Error::NotFinite { tensor, row: 3, .. } if tensor == name), "{source}");
        let order = call(&mut caches, [2, 4, 3], 1).unwrap_err();
        assert_eq!(order, SegmentError { segment: 0, source: Error::LayerOrder { expected: 0, found: 1 } });
        let shape = call(&mut caches, [2, 4, 4], 0).unwrap_err();
        assert!(matches!(shape.source, Error::TensorShape { tensor: "q", expected: [10, 6, 64], .. }));
        for cache in &mut caches {
            cache.abort();
            assert_eq!(cache.len(), 0);
        }
    }
}
