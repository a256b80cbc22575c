//! Which server a request goes to. Pure.
//!
//! # Source
//! The bound on the load is that of consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam,
//! arXiv 1608.01350), against the least loaded server instead of the mean, and with an absolute part: where
//! few requests run, a cached beginning is worth more than an even share. Ties are broken by rendezvous
//! hashing (Thaler, Ravishankar 1998), so that fronts without a common memory agree.

use std::hash::{DefaultHasher, Hasher as _};

/// A server that may be asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    /// Lower ones are asked before all others.
    pub(super) rank: Rank,
    /// Requests that it has not answered yet.
    pub(super) outstanding: usize,
    /// What stands for its name.
    pub(super) seed: u64,
}

/// How willingly a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Healthy,
    Suspect,
    /// It wants no requests for a while.
    Busy,
}

/// How much more one server may have to do than another for the sake of what it remembers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    /// Times as many requests as the least loaded server has.
    pub(super) factor: f64,
    /// Or so many more.
    pub(super) slack: usize,
}

impl Bound {
    /// Whether a server may be given one more request. The least loaded one always may.
    fn allows(&self, outstanding: usize, least: usize) -> bool {
        let few = outstanding < least.saturating_add(self.slack.max(1));
        few || (outstanding as f64) < self.factor * least as f64
    }
}

/// How a server was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Way {
    /// It knows more of the request's beginning than any other.
    Hit,
    /// Another one knows more, and is not well or has too much to do.
    Moved,
    /// No server knows the beginning.
    New,
}

impl Way {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Moved => "moved",
            Self::New => "new",
        }
    }
}

/// A server for a request whose beginnings `known` are known by these servers (a bit for each), the shortest
/// first. Servers that must not be asked are `None`. `key` stands for the request.
pub(super) fn choose(
    candidates: &[Option<Candidate>],
    known: &[u64],
    key: u64,
    bound: Bound,
) -> Option<(usize, Way)> {
    let rank = candidates.iter().flatten().map(|candidate| candidate.rank).min()?;
    let pool = || {
        let ranked = move |(i, candidate): (usize, &Option<Candidate>)| {
            candidate.filter(|candidate| candidate.rank == rank).map(|candidate| (i, candidate))
        };
        candidates.iter().enumerate().filter_map(ranked)
    };
    let least = pool().map(|(_, candidate)| candidate.outstanding).min()?;
    // The fewest requests; of equals, the one that the hash puts first.
    let best = |servers: u64, bounded: bool| {
        let fits = |(i, candidate): &(usize, Candidate)| {
            servers >> i & 1 == 1 && (!bounded || bound.allows(candidate.outstanding, least))
        };
        let order = |(_, candidate): &(usize, Candidate)| {
            (candidate.outstanding, std::cmp::Reverse(weight(key, candidate.seed)))
        };
        pool().filter(fits).min_by_key(order).map(|(i, _)| i)
    };
    for (depth, servers) in known.iter().enumerate().rev() {
        if let Some(server) = best(*servers, true) {
            let way = if depth + 1 == known.len() { Way::Hit } else { Way::Moved };
            return Some((server, way));
        }
    }
    let way = if known.is_empty() { Way::New } else { Way::Moved };
    best(u64::MAX, false).map(|server| (server, way))
}

fn weight(key: u64, seed: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(key);
    hasher.write_u64(seed);
    hasher.finish()
}

/// What may be tried again: a share of all requests, and a few more. Without it, an outage would multiply the
/// requests that the remaining servers get.
#[derive(Debug)]
pub(super) struct Budget {
    balance: f64,
    most: f64,
    share: f64,
}

impl Budget {
    pub(super) fn new(most: usize, share: f64) -> Self {
        Self { balance: most as f64, most: most as f64, share }
    }

    /// A request came.
    pub(super) fn earn(&mut self) {
        self.balance = (self.balance + self.share).min(self.most);
    }

    /// Whether one may be tried again; counts it.
    pub(super) fn spend(&mut self) -> bool {
        let has = self.balance >= 1.0;
        self.balance -= if has { 1.0 } else { 0.0 };
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUND: Bound = Bound { factor: 1.5, slack: 4 };

    fn healthy(outstanding: usize, seed: u64) -> Option<Candidate> {
        Some(Candidate { rank: Rank::Healthy, outstanding, seed })
    }

    #[test]
    fn memory_decides_within_the_bound() {
        let servers = [healthy(3, 1), healthy(0, 2), healthy(1, 3)];
        assert_eq!(choose(&servers, &[0b111, 0b001], 7, BOUND), Some((0, Way::Hit)));
        let loaded = [healthy(4, 1), healthy(0, 2), healthy(1, 3)];
        assert_eq!(choose(&loaded, &[0b101, 0b001], 7, BOUND), Some((2, Way::Moved)), "knows less");
        assert_eq!(choose(&loaded, &[0b001], 7, BOUND), Some((1, Way::Moved)), "knows nothing");
        assert_eq!(choose(&loaded, &[], 7, BOUND), Some((1, Way::New)));
        let many = [healthy(149, 1), healthy(100, 2)];
        assert_eq!(choose(&many, &[1], 7, BOUND), Some((0, Way::Hit)));
        let many = [healthy(150, 1), healthy(100, 2)];
        assert_eq!(choose(&many, &[1], 7, BOUND), Some((1, Way::Moved)));
    }

    #[test]
    fn the_well_are_asked_before_those_that_know() {
        let mut servers = [healthy(0, 1), healthy(3, 2), None];
        servers[0] = Some(Candidate { rank: Rank::Suspect, outstanding: 0, seed: 1 });
        assert_eq!(choose(&servers, &[0b101], 7, BOUND), Some((1, Way::Moved)));
        servers[1] = Some(Candidate { rank: Rank::Busy, outstanding: 0, seed: 2 });
        assert_eq!(choose(&servers, &[0b110], 7, BOUND), Some((0, Way::Moved)));
        assert_eq!(choose(&[None, None], &[1], 7, BOUND), None);
        assert_eq!(choose(&[], &[], 7, BOUND), None);
    }

    #[test]
    fn ties_are_spread_and_move_only_where_they_must() {
        let four: Vec<_> = (0..4).map(|i| healthy(0, 100 + i)).collect();
        let mut counts = [0; 4];
        for key in 0..4000 {
            let (server, _) = choose(&four, &[], key, BOUND).unwrap();
            counts[server] += 1;
            let mut three = four.clone();
            three[2] = None;
            let (after, _) = choose(&three, &[], key, BOUND).unwrap();
            assert!(server == 2 || after == server);
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }

    #[test]
    fn tries_are_a_share_of_requests() {
        let mut budget = Budget::new(10, 0.2);
        let mut n_spent = 0;
        for _ in 0..1000 {
            budget.earn();
            n_spent += usize::from(budget.spend()) + usize::from(budget.spend());
        }
        assert!((205..=210).contains(&n_spent), "{n_spent}");
    }

    fn candidates() -> impl Strategy<Value = Vec<Option<Candidate>>> {
        let rank = prop_oneof![Just(Rank::Healthy), Just(Rank::Suspect), Just(Rank::Busy)];
        let candidate = (rank, 0usize..40, any::<u64>()).prop_map(|(rank, outstanding, seed)| Candidate {
            rank,
            outstanding,
            seed,
        });
        prop::collection::vec(prop::option::weighted(0.8, candidate), 0..9)
    }

    proptest! {
        #[test]
        fn the_choice_keeps_its_rules(servers in candidates(), known in prop::collection::vec(1u64..512, 0..5),
                                      key in any::<u64>(), factor in 1.0..3.0f64, slack in 0usize..9) {
            let bound = Bound { factor, slack };
            let chosen = choose(&servers, &known, key, bound);
            prop_assert_eq!(chosen.is_some(), servers.iter().any(Option::is_some));
            let Some((chosen, way)) = chosen else { return Ok(()) };
            let candidate = servers[chosen].unwrap();
            let all = || servers.iter().flatten();
            prop_assert!(all().all(|other| candidate.rank <= other.rank));
            let least = all().filter(|other| other.rank == candidate.rank).map(|c| c.outstanding).min().unwrap();
            prop_assert!(bound.allows(candidate.outstanding, least));
            // A server that knows more and may be asked is never passed over.
            let knows = |i: usize| known.iter().rposition(|servers| servers >> i & 1 == 1);
            for (i, other) in servers.iter().enumerate() {
                let Some(other) = other else { continue };
                if other.rank == candidate.rank && bound.allows(other.outstanding, least) {
                    prop_assert!(knows(i) <= knows(chosen), "{} knows more than {}", i, chosen);
                    if knows(i) == knows(chosen) {
                        prop_assert!(candidate.outstanding <= other.outstanding);
                    }
                }
            }
            let expected = match (known.len(), knows(chosen)) {
                (0, _) => Way::New,
                (n, Some(depth)) if depth + 1 == n => Way::Hit,
                _ => Way::Moved,
            };
            prop_assert_eq!(way, expected);
        }
    }
}
