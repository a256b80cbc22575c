//! What every cache reports about forks: the bytes of pages, each counted once, and whether a fork may serve
//! another text.

use breakers_kv_cache::{CacheKind, CacheShape, CacheSpec, KvCache};
use burn::tensor::Device;

use crate::common::{Heads, Tokens, heads};

const HEADS: Heads = heads(4, 2, 64);

/// All caches that have a name, and one that evicts from packed pages: name, whether it evicts, cache.
fn caches() -> Vec<(String, bool, Box<dyn KvCache>)> {
    let names = CacheSpec::names().into_iter().chain(["snapkv-25+water-4".to_owned()]);
    let cache = |name: String| {
        let spec: CacheSpec = name.parse().unwrap();
        let shape = CacheShape::uniform(1, HEADS.layer(), 1000);
        let evicts = matches!(spec.kind(), CacheKind::Evicting(_));
        (name, evicts, spec.make(&shape, &Device::flex()).unwrap())
    };
    names.map(cache).collect()
}

#[test]
fn pages_of_every_cache_are_counted_once() {
    let tokens = Tokens::random(HEADS, 400, 3);
    for (name, _, mut cache) in caches() {
        let meter = cache.page_meter().unwrap_or_else(|| panic!("{name} counts nothing")).clone();
        assert_eq!(meter.bytes(), 0, "{name}");
        tokens.range(0..300).feed(&mut *cache, None);
        cache.commit(300).unwrap();
        let alone = meter.bytes();
        assert!(alone > 0 && alone <= cache.bytes(), "{name}: {alone} of {} bytes", cache.bytes());
        let mut fork = cache.fork().unwrap();
        assert!(fork.page_meter().is_some_and(|other| other.is_same(&meter)), "{name}");
        assert_eq!(meter.bytes(), alone, "{name}: a fork that has written nothing");
        tokens.range(300..301).feed(&mut *fork, None);
        let both = meter.bytes();
        assert!(both > alone && both < 2 * alone, "{name}: {alone}, then {both}");
        drop(fork);
        assert_eq!(meter.bytes(), alone, "{name}: the fork's own pages are gone");
        let fork = cache.fork().unwrap();
        drop(cache);
        assert_eq!(meter.bytes(), alone, "{name}: the fork holds all of them");
        drop(fork);
        assert_eq!(meter.bytes(), 0, "{name}");
    }
}

#[test]
fn a_prefix_may_be_shared_until_tokens_were_let_go() {
    let tokens = Tokens::random(HEADS, 400, 5);
    for (name, evicts, mut cache) in caches() {
        assert!(cache.shareable(), "{name}: empty");
        tokens.range(0..300).feed(&mut *cache, None);
        assert!(cache.shareable(), "{name}: nothing is final");
        cache.commit(300).unwrap();
        assert_eq!(cache.shareable(), !evicts, "{name}");
        assert_eq!(cache.fork().unwrap().shareable(), !evicts, "{name}: a fork");
        cache.truncate(0).unwrap();
        assert!(cache.shareable(), "{name}: empty again");
    }
}
