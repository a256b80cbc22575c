//! What every cache reports about forks: the bytes of pages, each counted once, and whether a fork may serve
//! another text. And what is written down of a cache.

use std::sync::Arc;

use breakers_core::SnapshotBytes;
use breakers_kv_cache::{CacheKind, CacheShape, CacheSpec, Error, KvCache};
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

/// Bytes that begin at a cache line, as those of a mapped file do, or one byte behind it.
struct Lines(Vec<u8>, usize, usize);

fn lines(bytes: &[u8], shift: usize) -> SnapshotBytes {
    let mut room = vec![0; bytes.len() + 128];
    let at = room.as_ptr().align_offset(64) + shift;
    room[at..][..bytes.len()].copy_from_slice(bytes);
    Arc::new(Lines(room, at, bytes.len()))
}

impl AsRef<[u8]> for Lines {
    fn as_ref(&self) -> &[u8] {
        &self.0[self.1..][..self.2]
    }
}

#[test]
fn a_cache_goes_on_from_what_was_written_of_it() {
    let tokens = Tokens::random(HEADS, 400, 7);
    for (name, _, mut cache) in caches() {
        let is_plain = name == "f16" || name == "f32";
        assert_eq!(cache.snapshot_kind().is_some(), is_plain, "{name}");
        if !is_plain {
            assert!(matches!(cache.snapshot(), Err(Error::NoSnapshot)), "{name}");
            assert!(matches!(cache.restore(&lines(&[], 0), 0, 0), Err(Error::NoSnapshot)), "{name}");
            continue;
        }
        tokens.range(0..300).feed(&mut *cache, None);
        cache.commit(290).unwrap();
        let snapshot = cache.snapshot().unwrap();
        // What comes later is not in it.
        tokens.range(300..310).feed(&mut *cache, None);
        cache.truncate(200).unwrap();
        tokens.range(310..400).feed(&mut *cache, None);
        let mut bytes = Vec::new();
        snapshot.pieces(&mut |piece| bytes.extend_from_slice(piece));
        let shared = lines(&bytes, 0);
        let spec: CacheSpec = name.parse().unwrap();
        let empty = || spec.make(cache.shape(), &Device::flex()).unwrap();
        for len in [290, 289, 256, 64, 1] {
            let mut restored = empty();
            restored.restore(&shared, 290, len).unwrap();
            assert_eq!((restored.len(), restored.committed()), (len, len), "{name}");
            let meter = restored.page_meter().unwrap();
            assert_eq!(meter.bytes(), bytes.len() / 5 * len.div_ceil(64), "{name}");
            let mut expected = empty();
            tokens.range(0..len).feed(&mut *expected, None);
            let mut fork = restored.fork().unwrap();
            let next = tokens.range(len..len + 70);
            let want = next.feed(&mut *expected, None);
            assert_eq!(next.feed(&mut *restored, None), want, "{name} at {len}");
            assert_eq!(next.feed(&mut *fork, None), want, "{name} at {len}: a fork");
        }
        // They have written to pages of their own.
        assert_eq!((*shared).as_ref(), bytes, "{name}");
        let wrong = |bytes: &[u8], shift, n, len| empty().restore(&lines(bytes, shift), n, len).unwrap_err();
        assert!(matches!(wrong(&bytes[64..], 0, 290, 9), Error::SnapshotBytes { .. }), "{name}");
        assert!(matches!(wrong(&bytes, 0, 400, 9), Error::SnapshotBytes { .. }), "{name}");
        assert!(matches!(wrong(&bytes, 0, usize::MAX, 9), Error::SnapshotBytes { .. }), "{name}");
        assert!(matches!(wrong(&bytes, 1, 290, 9), Error::SnapshotBytes { .. }), "{name}: not aligned");
        assert!(matches!(wrong(&bytes, 0, 290, 291), Error::Step(_)), "{name}");
        assert!(matches!(cache.restore(&shared, 290, 9), Err(Error::NoSnapshot)), "{name}: not empty");
    }
}
