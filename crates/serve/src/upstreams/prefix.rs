//! Which beginnings of requests were sent where.
//!
//! # Source
//! A radix tree of what was sent where, kept by the router from its own history, is sglang-router's idea
//! (SGLang 0.4, December 2024). Here it is a map of hashes of beginnings, each of which continues the hash of
//! the shorter one, as in the block hashes of vLLM's prefix cache: a lookup needs no tree, and memory is
//! bounded by the number of entries. Hashes decide nothing but where a request goes.
//!
//! # Memory
//! At most twice [`Prefixes::new`]'s number of entries, 24 bytes each, with the map about 50.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher as _};

/// Bytes after which a long message is cut. Several engines cache blocks of 16 to 64 tokens.
const PIECE: usize = 512;
/// The most pieces of a request that are looked at. Of longer ones the beginning decides.
const MAX_PIECES: usize = 1024;

/// The hashes of a request's beginnings, the shortest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    hashes: Vec<u64>,
}

impl Chain {
    /// The beginnings of a request whose parts (messages, for example) stand behind each other. `scope` is
    /// what must agree beside the text: model, whose cache it is.
    pub(super) fn new<'a>(scope: &[&[u8]], parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = DefaultHasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.write_usize(bytes.len());
            hasher.write(bytes);
            hasher.finish()
        };
        scope.iter().for_each(|bytes| {
            add(bytes);
        });
        let pieces = parts.into_iter().flat_map(|part| part.chunks(PIECE));
        Self { hashes: pieces.take(MAX_PIECES).map(add).collect() }
    }

    /// What stands for the whole request.
    pub(super) fn key(&self) -> u64 {
        self.hashes.last().copied().unwrap_or_default()
    }
}

/// Who knows a beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// A bit for each server.
    pub(super) servers: u64,
    /// Whether it was a whole request: what goes on from there is the next turn of a conversation, and what
    /// goes on from elsewhere has only begun like others.
    pub(super) is_whole: bool,
}

/// Where beginnings were sent. What was not used for longest is forgotten.
#[derive(Debug)]
pub(super) struct Prefixes {
    /// By the beginning's hash.
    recent: HashMap<u64, Known>,
    /// Those that were recent before; what is used again becomes recent again.
    older: HashMap<u64, Known>,
    max_recent: usize,
}

impl Prefixes {
    pub(super) fn new(max_recent: usize) -> Self {
        Self { recent: HashMap::new(), older: HashMap::new(), max_recent: max_recent.max(1) }
    }

    /// The servers that know each beginning of a request, the shortest first; ends where nobody knows any.
    pub(super) fn find(&self, chain: &Chain) -> Vec<Known> {
        let known = |hash| self.recent.get(hash).or_else(|| self.older.get(hash)).copied();
        chain.hashes.iter().map_while(known).collect()
    }

    /// A request was sent to a server.
    pub(super) fn record(&mut self, chain: &Chain, server: usize) {
        for hash in &chain.hashes {
            if !self.recent.contains_key(hash) {
                if self.recent.len() >= self.max_recent {
                    self.older = std::mem::take(&mut self.recent);
                }
                let before = self.older.remove(hash).unwrap_or_default();
                self.recent.insert(*hash, before);
            }
            if let Some(known) = self.recent.get_mut(hash) {
                known.servers |= 1 << server;
                known.is_whole |= *hash == chain.key();
            }
        }
    }

    /// A server has lost all that it knew.
    pub(super) fn forget(&mut self, server: usize) {
        for map in [&mut self.recent, &mut self.older] {
            map.retain(|_, known| {
                known.servers &= !(1 << server);
                known.servers != 0
            });
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.recent.len() + self.older.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn servers(prefixes: &Prefixes, chain: &Chain) -> Vec<u64> {
        prefixes.find(chain).iter().map(|known| known.servers).collect()
    }

    fn chain(parts: &[&str]) -> Chain {
        Chain::new(&[b"model"], parts.iter().map(|part| part.as_bytes()))
    }

    #[test]
    fn the_next_turn_begins_like_the_last_one() {
        let mut prefixes = Prefixes::new(100);
        prefixes.record(&chain(&["system", "one"]), 2);
        assert_eq!(servers(&prefixes, &chain(&["system", "one", "answer", "two"])), [4, 4]);
        assert_eq!(servers(&prefixes, &chain(&["system", "other"])), [4]);
        assert_eq!(servers(&prefixes, &chain(&["other", "one"])), [] as [u64; 0]);
        prefixes.record(&chain(&["system", "other"]), 0);
        assert_eq!(servers(&prefixes, &chain(&["system", "one"])), [5, 4]);
        let is_whole = |parts: &[&str]| prefixes.find(&chain(parts)).last().map(|known| known.is_whole);
        assert_eq!(is_whole(&["system", "one", "answer", "two"]), Some(true));
        assert_eq!(is_whole(&["system", "a third"]), Some(false));
        prefixes.forget(2);
        assert_eq!(servers(&prefixes, &chain(&["system", "one"])), [1]);
        assert_eq!(prefixes.len(), 2);
    }

    #[test]
    fn scopes_and_borders_of_parts_tell_requests_apart() {
        let of =
            |scope: &[&[u8]], parts: &[&str]| Chain::new(scope, parts.iter().map(|part| part.as_bytes()));
        let one = of(&[b"a", b"b"], &["xy", "z"]);
        for other in [
            of(&[b"ab", b""], &["xy", "z"]),
            of(&[b"a", b"c"], &["xy", "z"]),
            of(&[b"a", b"b"], &["x", "yz"]),
        ] {
            assert_ne!(one.hashes[0], other.hashes[0]);
        }
        let long = "a".repeat(PIECE * 3 + 1);
        assert_eq!(chain(&[&long]).hashes.len(), 4);
        assert_eq!(chain(&[&long]).hashes[..3], chain(&[&long[..PIECE * 3], "b"]).hashes[..3]);
        assert_eq!(chain(&[&"a".repeat(PIECE * 5000)]).hashes.len(), MAX_PIECES);
        assert_eq!(chain(&[]).key(), 0);
    }

    #[test]
    fn what_is_used_stays_and_the_rest_goes() {
        let mut prefixes = Prefixes::new(50);
        for i in 0..1000 {
            prefixes.record(&chain(&["kept"]), 1);
            prefixes.record(&chain(&[&i.to_string()]), 0);
            assert!(prefixes.len() <= 100);
            assert_eq!(servers(&prefixes, &chain(&["kept"])), [2], "{i}");
        }
        assert_eq!(servers(&prefixes, &chain(&["999"])), [1]);
        assert!(servers(&prefixes, &chain(&["500"])).is_empty());
    }

    proptest! {
        /// Against a plain list of all that was sent.
        #[test]
        fn it_finds_what_was_sent(sent in prop::collection::vec((prop::collection::vec(0u8..3, 1..6), 0usize..4), 0..40),
                                  asked in prop::collection::vec(0u8..3, 1..6)) {
            let parts = |turns: &[u8]| -> Chain { Chain::new(&[], turns.chunks(1)) };
            let mut prefixes = Prefixes::new(10_000);
            for (turns, server) in &sent {
                prefixes.record(&parts(turns), *server);
            }
            let expected: Vec<u64> = (1..=asked.len())
                .map(|n| sent.iter().filter(|(turns, _)| turns.starts_with(&asked[..n])).fold(0, |all, (_, s)| all | 1 << s))
                .take_while(|servers| *servers != 0)
                .collect();
            prop_assert_eq!(servers(&prefixes, &parts(&asked)), expected);
        }
    }
}
