//! The plain cache as a state machine: what is provisional, final, shared and refused.

use crate::common::{Heads, Random, Tokens, bits, heads, random_parents};
use breakers_core::StepError;
use breakers_kv_cache::{CacheShape, Element, Error, KvCache, LayerShape, PlainCache};
use burn::tensor::{Device, Tensor};
use proptest::prelude::*;

const HEADS: Heads = heads(4, 2, 16);

fn cache(n_layers: usize, max_tokens: usize) -> PlainCache {
    let shape = CacheShape::uniform(n_layers, HEADS.layer(), max_tokens);
    PlainCache::new(shape, Element::F16, &Device::flex()).unwrap()
}

/// One more token: tells apart caches that hold different tokens.
fn probe(cache: &dyn KvCache) -> Vec<u32> {
    bits(&Tokens::random(HEADS, 1, 99).feed(&mut *cache.fork().unwrap(), None))
}

/// The probe of a fresh cache that was fed exactly these tokens.
fn probe_of(tokens: &Tokens) -> Vec<u32> {
    let mut fresh = HEADS.cache(Element::F16);
    if tokens.n > 0 {
        tokens.feed(&mut fresh, None);
    }
    probe(&fresh)
}

#[test]
fn tokens_are_provisional_until_committed() {
    let tokens = Tokens::random(HEADS, 10, 1);
    let mut cache = cache(1, 100);
    tokens.feed(&mut cache, None);
    assert_eq!((cache.len(), cache.committed()), (10, 0));
    cache.commit(4).unwrap();
    assert_eq!((cache.len(), cache.committed()), (10, 4));
    let out_of_range =
        |what, requested, available| Err(Error::Step(StepError::OutOfRange { what, requested, available }));
    assert_eq!(cache.commit(7), out_of_range("commit", 7, 6));
    cache.truncate(7).unwrap();
    assert_eq!(probe(&cache), probe_of(&tokens.range(0..7)));
    cache.truncate(2).unwrap();
    assert_eq!((cache.len(), cache.committed()), (2, 2));
    assert_eq!(probe(&cache), probe_of(&tokens.range(0..2)));
    assert_eq!(cache.truncate(3), out_of_range("truncate", 3, 2));
}

#[test]
fn positions_count_ancestors() {
    let mut cache = cache(1, 100);
    Tokens::random(HEADS, 5, 1).feed(&mut cache, None);
    assert_eq!(cache.begin(3, None).unwrap(), [5, 6, 7]);
    cache.abort();
    let tree = [None, Some(0), Some(0), Some(2), None];
    assert_eq!(cache.begin(5, Some(&tree)).unwrap(), [5, 6, 6, 7, 5]);
    cache.abort();
    let wrong = cache.begin(4, Some(&tree));
    assert_eq!(wrong, Err(StepError::RowCount { what: "parents", expected: 4, found: 5 }.into()));
}

#[test]
fn steps_go_through_all_layers_in_order() {
    let mut cache = cache(2, 100);
    let attend = |cache: &mut PlainCache, layer: usize| {
        let [q, k, v] = Tokens::random(HEADS, 2, 1).tensors();
        cache.attend(layer, q, k, v, 1.0).map(|out| out.dims())
    };
    assert_eq!(attend(&mut cache, 0), Err(Error::NoStep { operation: "attend" }));
    assert_eq!(cache.end(), Err(Error::NoStep { operation: "end" }));
    assert_eq!(cache.begin(0, None), Err(StepError::Empty.into()));
    cache.begin(2, None).unwrap();
    assert_eq!(attend(&mut cache, 1), Err(Error::LayerOrder { expected: 0, found: 1 }));
    assert_eq!(attend(&mut cache, 0), Ok([2, 64]));
    assert_eq!(attend(&mut cache, 0), Err(Error::LayerOrder { expected: 1, found: 0 }));
    assert_eq!(cache.end(), Err(Error::StepIncomplete { expected: 2, found: 1 }));
    for (operation, result) in [
        ("begin", cache.begin(1, None).map(|_| ())),
        ("retain", cache.retain(&[])),
        ("commit", cache.commit(0)),
        ("truncate", cache.truncate(0)),
        ("fork", cache.fork().map(|_| ())),
    ] {
        assert_eq!(result, Err(Error::StepOpen { operation }));
    }
    assert_eq!(attend(&mut cache, 1), Ok([2, 64]));
    assert_eq!(attend(&mut cache, 2), Err(Error::LayerOrder { expected: 2, found: 2 }));
    assert_eq!(cache.len(), 0);
    cache.end().unwrap();
    assert_eq!(cache.len(), 2);
}

#[test]
fn aborted_steps_leave_nothing() {
    let tokens = Tokens::random(HEADS, 100, 3);
    let mut cache = cache(1, 1000);
    tokens.range(0..60).feed(&mut cache, None);
    let (bytes, before) = (cache.bytes(), probe(&cache));
    cache.abort();
    cache.begin(40, None).unwrap();
    let [q, k, v] = tokens.range(60..100).tensors();
    cache.attend(0, q, k, v, 1.0).unwrap();
    assert!(cache.bytes() > bytes);
    cache.abort();
    assert_eq!(cache.len(), 60);
    assert_eq!(cache.bytes(), bytes);
    assert_eq!(probe(&cache), before);
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let mut cache = cache(1, 10);
    assert_eq!(cache.begin(11, None), Err(StepError::ContextFull { needed: 11, limit: 10 }.into()));
    assert_eq!(
        cache.begin(usize::MAX, None),
        Err(StepError::ContextFull { needed: usize::MAX, limit: 10 }.into())
    );
    let parents = Err(StepError::InvalidParent { row: 1, parent: 1 }.into());
    assert_eq!(cache.begin(2, Some(&[None, Some(1)])), parents);
    cache.begin(2, None).unwrap();
    let tensor = |shape: [usize; 3]| Tensor::<3>::ones(shape, &Device::flex());
    let shape = |tensor, expected, found| Some(Error::TensorShape { tensor, expected, found });
    let (q, kv) = ([2, 4, 16], [2, 2, 16]);
    for (q, k, v, want) in [
        ([3, 4, 16], kv, kv, shape("q", q, [3, 4, 16])),
        ([2, 4, 8], kv, kv, shape("q", q, [2, 4, 8])),
        ([2, 3, 16], kv, kv, Some(Error::HeadCount { n_heads: 3, n_kv_heads: 2 })),
        ([2, 0, 16], kv, kv, Some(Error::HeadCount { n_heads: 0, n_kv_heads: 2 })),
        (q, [2, 1, 16], kv, shape("k", kv, [2, 1, 16])),
        (q, kv, [0, 2, 16], shape("v", kv, [0, 2, 16])),
        (q, kv, kv, None),
    ] {
        assert_eq!(cache.attend(0, tensor(q), tensor(k), tensor(v), 1.0).err(), want);
    }
}

#[test]
fn values_that_are_not_finite_are_refused() {
    for (tensor, row, value) in [("q", 1, f32::NAN), ("k", 2, f32::INFINITY), ("v", 0, f32::NEG_INFINITY)] {
        let tokens = Tokens::random(HEADS, 3, 5);
        let mut cache = cache(1, 10);
        tokens.range(0..1).feed(&mut cache, None);
        let mut bad = tokens.clone();
        let values = match tensor {
            "q" => &mut bad.q,
            "k" => &mut bad.k,
            _ => &mut bad.v,
        };
        let width = values.len() / 3;
        values[row * width + width - 1] = value;
        cache.begin(3, None).unwrap();
        let [q, k, v] = bad.tensors();
        match cache.attend(0, q, k, v, 1.0) {
            Err(Error::NotFinite { tensor: t, row: r, value: x }) => {
                assert_eq!((t, r, x.to_bits()), (tensor, row, value.to_bits()));
            }
            other => panic!("{tensor}: {:?}", other.map(|out| out.dims())),
        }
        // The layer can be called again, or the step taken back.
        let [q, k, v] = tokens.tensors();
        assert!(cache.attend(0, q, k, v, f32::NAN).is_err());
        cache.abort();
        assert_eq!(probe(&cache), probe_of(&tokens.range(0..1)));
    }
}

#[test]
fn impossible_shapes_are_refused() {
    let new = |layers: Vec<LayerShape>| {
        PlainCache::new(CacheShape { layers, max_tokens: 1 }, Element::F16, &Device::flex()).err()
    };
    assert_eq!(new(vec![]), Some(Error::NoLayers));
    let zero = |layer, field| Some(Error::ZeroDimension { layer, field });
    assert_eq!(new(vec![LayerShape::new(0, 64)]), zero(0, "n_kv_heads"));
    assert_eq!(new(vec![LayerShape::new(1, 64), LayerShape::new(1, 0)]), zero(1, "head_dim"));
    assert_eq!(new(vec![LayerShape::new(1, 64).with_window(0)]), zero(0, "window"));
}

#[test]
fn trees_are_thinned_out_before_they_go_on() {
    let tokens = Tokens::random(HEADS, 9, 7);
    let mut cache = cache(1, 100);
    tokens.range(0..2).feed(&mut cache, None);
    cache.commit(1).unwrap();
    // Provisional: 0 is the chain's second token; rows 1.. are the tree's.
    let parents = [None, Some(0), None, Some(1), Some(1)];
    tokens.range(2..7).feed(&mut cache, Some(&parents));
    assert_eq!(cache.len(), 7);
    let unresolved = |operation| Err(Error::UnresolvedTree { operation });
    assert_eq!(cache.begin(1, None).map(|_| ()), unresolved("begin"));
    assert_eq!(cache.commit(2), unresolved("commit"));
    let not_a_chain = |row, expected, found| Err(Error::NotAChain { row, expected, found });
    assert_eq!(cache.retain(&[0, 1, 4, 5]), not_a_chain(4, Some(2), Some(1)));
    assert_eq!(cache.retain(&[1]), not_a_chain(1, Some(0), None));
    assert_eq!(cache.retain(&[0, 3, 1]), not_a_chain(1, Some(0), Some(3)));
    assert_eq!(cache.retain(&[0, 0]), not_a_chain(0, None, Some(0)));
    let beyond = Err(StepError::OutOfRange { what: "retain", requested: 6, available: 6 }.into());
    assert_eq!(cache.retain(&[0, 6]), beyond);
    cache.retain(&[0, 1, 2, 5]).unwrap();
    assert_eq!((cache.len(), cache.committed()), (5, 1));
    assert_eq!(probe(&cache), probe_of(&tokens.pick(&[0, 1, 2, 3, 6])));
    cache.commit(4).unwrap();
    // A tree that is cut back to a chain needs no thinning out.
    tokens.range(7..9).feed(&mut cache, Some(&[None, None]));
    assert_eq!(cache.begin(1, None).map(|_| ()), unresolved("begin"));
    cache.truncate(6).unwrap();
    cache.commit(1).unwrap();
    assert_eq!(probe(&cache), probe_of(&tokens.pick(&[0, 1, 2, 3, 6, 7])));
    tokens.range(7..9).feed(&mut cache, Some(&[None, None]));
    cache.retain(&[]).unwrap();
    assert_eq!(cache.len(), 6);
}

#[test]
fn forks_share_pages_and_stay_apart() {
    let tokens = Tokens::random(HEADS, 200, 9);
    let mut cache = cache(1, 1000);
    tokens.range(0..150).feed(&mut cache, None);
    let before = probe(&cache);
    assert_eq!(cache.shared_bytes(), 0);
    let mut fork = cache.fork().unwrap();
    assert_eq!(cache.shared_bytes(), 3 * 64 * 2 * 2 * 2 * 16);
    tokens.range(150..200).feed(&mut *fork, None);
    assert_eq!(probe(&cache), before);
    // Only the page that both write to was copied.
    assert_eq!(cache.shared_bytes(), 2 * 64 * 2 * 2 * 2 * 16);
    let mut other = tokens.range(100..150);
    other.q.rotate_left(1);
    other.feed(&mut cache, None);
    assert_eq!(probe(&*fork), probe_of(&tokens));
    fork.truncate(150).unwrap();
    assert_eq!(probe(&*fork), before);
    drop(cache);
    assert_eq!(probe(&*fork), before);
}

#[test]
fn bytes_are_those_of_the_pages() {
    for (n_tokens, element, bytes) in [(1, Element::F16, 2), (64, Element::F16, 2), (65, Element::F32, 4)] {
        let shape = CacheShape::uniform(3, HEADS.layer(), 1000);
        let mut cache = PlainCache::new(shape, element, &Device::flex()).unwrap();
        assert_eq!(cache.bytes(), 0);
        Tokens::random(HEADS, n_tokens, 1).feed(&mut cache, None);
        let pages = 3 * n_tokens.div_ceil(64);
        let expected = pages * 64 * 2 * 2 * 16 * bytes;
        // Beside the pages only the lists of them.
        assert!((expected..expected + 3 * 8 * 8).contains(&cache.bytes()), "{}", cache.bytes());
        cache.truncate(0).unwrap();
        assert!(cache.bytes() < 3 * 8 * 8);
    }
}

#[test]
fn pages_are_counted_once_however_many_caches_share_them() {
    let tokens = Tokens::random(HEADS, 200, 3);
    let page = 64 * 2 * 2 * 16 * 2;
    let mut cache = cache(1, 1000);
    let meter = cache.page_meter().unwrap().clone();
    tokens.range(0..150).feed(&mut cache, None);
    assert_eq!(meter.bytes(), 3 * page);
    let mut fork = cache.fork().unwrap();
    assert!(fork.page_meter().unwrap().is_same(&meter));
    assert_eq!(meter.bytes(), 3 * page);
    // A copy of the page that was not full, and a new one.
    tokens.range(150..200).feed(&mut *fork, None);
    assert_eq!(meter.bytes(), 5 * page);
    assert_eq!(cache.bytes_per_token(), 2.0 * 2.0 * 16.0 * 2.0);
    drop(cache);
    assert_eq!(meter.bytes(), 4 * page);
    fork.truncate(64).unwrap();
    assert_eq!(meter.bytes(), page);
    drop(fork);
    assert_eq!(meter.bytes(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whatever is done to a cache, it behaves like a fresh one that was fed the remaining tokens.
    #[test]
    fn any_history_ends_as_its_chain(seed: u64) {
        let mut random = Random::new(seed);
        let pool = Tokens::random(HEADS, 64, seed ^ 1);
        let mut caches: Vec<(Box<dyn KvCache>, Vec<usize>)> =
            vec![(Box::new(HEADS.cache(Element::F16)), Vec::new())];
        for _ in 0..25 {
            let which = random.below(caches.len());
            let n_caches = caches.len();
            let (cache, chain) = &mut caches[which];
            match random.below(7) {
                0 | 1 => {
                    let rows: Vec<usize> = (0..1 + random.below(50)).map(|_| random.below(64)).collect();
                    pool.pick(&rows).feed(&mut **cache, None);
                    chain.extend(rows);
                }
                2 => {
                    let rows: Vec<usize> = (0..1 + random.below(12)).map(|_| random.below(64)).collect();
                    let parents = random_parents(&mut random, rows.len());
                    pool.pick(&rows).feed(&mut **cache, Some(&parents));
                    let provisional = chain.len() - cache.committed();
                    let mut path = Vec::new();
                    let mut row = random.below(rows.len() + 1).checked_sub(1);
                    while let Some(r) = row {
                        path.insert(0, r);
                        row = parents[r];
                    }
                    let kept: Vec<usize> = (0..provisional).chain(path.iter().map(|r| provisional + r)).collect();
                    cache.retain(&kept).unwrap();
                    chain.extend(path.iter().map(|&r| rows[r]));
                }
                3 => {
                    let len = random.below(chain.len() + 1);
                    cache.truncate(len).unwrap();
                    chain.truncate(len);
                }
                4 => cache.commit(random.below(chain.len() - cache.committed() + 1)).unwrap(),
                5 => {
                    cache.begin(3, None).unwrap();
                    let [q, k, v] = pool.range(0..3).tensors();
                    cache.attend(0, q, k, v, 1.0).unwrap();
                    cache.abort();
                }
                _ if n_caches < 3 => {
                    let fork = (cache.fork().unwrap(), chain.clone());
                    caches.push(fork);
                }
                _ => drop(caches.swap_remove(which)),
            }
            if caches.is_empty() {
                break;
            }
        }
        for (cache, chain) in &caches {
            prop_assert_eq!(cache.len(), chain.len());
            prop_assert!(probe(&**cache) == probe_of(&pool.pick(chain)));
        }
    }
}
