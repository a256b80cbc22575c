//! Whether a server can be used, after what its checks and requests have shown. No clock and no chance of its
//! own: both are given.

use std::time::Duration;

/// How a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Condition {
    /// It answers.
    Healthy,
    /// It failed once or some requests failed: it is asked only where no healthy one is, and checked at once.
    Suspect,
    /// It failed again: it is asked nothing until a check passes.
    Down,
    /// It was down, or has just been added, and is being checked.
    Probing,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Suspect, Self::Down, Self::Probing];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Probing => "probing",
        }
    }

    /// Whether requests may go there.
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Healthy | Self::Suspect)
    }
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Times between checks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rhythm {
    /// From check to check of a server that is well.
    pub(super) interval: Duration,
    /// What a first failure costs; each further one costs twice as much.
    pub(super) backoff: Duration,
    /// The most that failures cost.
    pub(super) max_backoff: Duration,
}

impl Rhythm {
    /// How long the `n`th failure in a row keeps a server out: between half and all of the doubled time, so
    /// that several fronts do not check in step.
    ///
    /// # Units
    /// `chance`: from 0 to 1.
    fn wait(&self, n: u32, chance: f64) -> Duration {
        let doubled = self.backoff.saturating_mul(1 << n.saturating_sub(1).min(20));
        doubled.min(self.max_backoff).mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
    }
}

/// What is known of a server.
#[derive(Clone, Debug)]
pub(super) struct Health {
    condition: Condition,
    /// Requests that failed since it was last well.
    n_signs: u32,
    /// Checks that failed in a row.
    n_failed: u32,
    /// When the next check is due.
    check_at: Duration,
    /// Suspicion by requests lasts at least so long, whatever checks say.
    suspect_until: Duration,
    /// It asked for no requests until then.
    busy_until: Duration,
}

/// The most that a server's own `retry-after` is believed.
const MAX_BUSY: Duration = Duration::from_secs(60);

impl Health {
    /// A server that nothing is known of yet; its check is due.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            condition: Condition::Probing,
            n_signs: 0,
            n_failed: 0,
            check_at: now,
            suspect_until: now,
            busy_until: now,
        }
    }

    pub(super) fn condition(&self) -> Condition {
        self.condition
    }

    /// When the next check is due.
    pub(super) fn check_at(&self) -> Duration {
        self.check_at
    }

    /// How long it wants no requests; zero if it takes some.
    pub(super) fn busy_for(&self, now: Duration) -> Duration {
        self.busy_until.saturating_sub(now)
    }

    /// A check begins.
    pub(super) fn check_begins(&mut self) {
        if self.condition == Condition::Down {
            self.condition = Condition::Probing;
        }
    }

    /// A check passed.
    pub(super) fn check_passed(&mut self, now: Duration, rhythm: &Rhythm, chance: f64) {
        self.n_failed = 0;
        self.check_at = now + rhythm.interval.mul_f64(0.75 + 0.5 * chance.clamp(0.0, 1.0));
        if self.condition == Condition::Suspect && now < self.suspect_until {
            self.check_at = self.check_at.min(self.suspect_until);
        } else {
            self.condition = Condition::Healthy;
        }
    }

    /// A check failed: the first time this is a suspicion, then certain.
    pub(super) fn check_failed(&mut self, now: Duration, rhythm: &Rhythm, chance: f64) {
        self.n_failed = self.n_failed.saturating_add(1);
        if self.condition == Condition::Healthy {
            self.condition = Condition::Suspect;
            self.suspect_until = now;
            self.check_at = now + (rhythm.wait(1, chance) / 4);
        } else {
            self.condition = Condition::Down;
            self.check_at = now + rhythm.wait(self.n_failed, chance);
        }
    }

    /// A request failed in a way that is the server's fault. Requests alone never take a server down: what
    /// fails may be the request, and the last server must not be lost to it.
    pub(super) fn request_failed(&mut self, now: Duration, rhythm: &Rhythm, chance: f64) {
        if !self.condition.is_usable() {
            return;
        }
        if self.condition == Condition::Healthy {
            self.condition = Condition::Suspect;
            self.check_at = now;
        }
        self.n_signs = self.n_signs.saturating_add(1);
        self.suspect_until = now + rhythm.wait(self.n_signs, chance);
    }

    /// A request was answered.
    pub(super) fn request_succeeded(&mut self) {
        if self.condition == Condition::Healthy {
            self.n_signs = 0;
        }
    }

    /// It wants no requests for a while.
    pub(super) fn defer(&mut self, now: Duration, wait: Duration) {
        self.busy_until = self.busy_until.max(now + wait.min(MAX_BUSY));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RHYTHM: Rhythm = Rhythm {
        interval: Duration::from_secs(5),
        backoff: Duration::from_secs(1),
        max_backoff: Duration::from_secs(30),
    };

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn healthy() -> Health {
        let mut health = Health::new(at(0));
        assert_eq!(health.condition(), Condition::Probing);
        health.check_passed(at(0), &RHYTHM, 0.5);
        assert_eq!(health.condition(), Condition::Healthy);
        health
    }

    #[test]
    fn one_failed_check_is_a_suspicion_and_two_are_certain() {
        let mut health = healthy();
        health.check_failed(at(5000), &RHYTHM, 1.0);
        assert_eq!((health.condition(), health.check_at()), (Condition::Suspect, at(5250)));
        health.check_failed(at(5250), &RHYTHM, 1.0);
        assert_eq!((health.condition(), health.check_at()), (Condition::Down, at(7250)));
        for (now, next) in
            [(7250, 4000), (11_250, 8000), (19_250, 16_000), (35_250, 30_000), (65_250, 30_000)]
        {
            health.check_begins();
            assert_eq!(health.condition(), Condition::Probing);
            health.check_failed(at(now), &RHYTHM, 1.0);
            assert_eq!((health.condition(), health.check_at()), (Condition::Down, at(now + next)));
        }
        health.check_begins();
        health.check_passed(at(100_000), &RHYTHM, 0.5);
        assert_eq!((health.condition(), health.check_at()), (Condition::Healthy, at(105_000)));
    }

    #[test]
    fn failed_requests_are_checked_at_once_and_weigh_more_each_time() {
        let mut health = healthy();
        for (n, now, lasts) in [(1, 1000, 1000), (2, 3000, 2000), (3, 8000, 4000)] {
            health.request_failed(at(now), &RHYTHM, 1.0);
            assert_eq!((health.condition(), health.check_at()), (Condition::Suspect, at(now)), "{n}");
            health.check_passed(at(now + 10), &RHYTHM, 0.5);
            assert_eq!((health.condition(), health.check_at()), (Condition::Suspect, at(now + lasts)), "{n}");
            health.check_passed(at(now + lasts), &RHYTHM, 0.5);
            assert_eq!(health.condition(), Condition::Healthy, "{n}");
        }
        health.request_succeeded();
        health.request_failed(at(20_000), &RHYTHM, 1.0);
        health.check_passed(at(21_000), &RHYTHM, 0.5);
        assert_eq!(health.condition(), Condition::Healthy, "an answer in between forgives");
    }

    #[test]
    fn a_busy_server_is_believed_within_bounds() {
        let mut health = healthy();
        health.defer(at(1000), at(2500));
        health.defer(at(1000), at(500));
        assert_eq!((health.busy_for(at(2000)), health.busy_for(at(4000))), (at(1500), at(0)));
        health.defer(at(4000), Duration::MAX);
        assert_eq!(health.busy_for(at(4000)), MAX_BUSY);
        assert_eq!(health.condition(), Condition::Healthy);
    }

    proptest! {
        /// Whatever happened, a check is due within the longest time there is, a server that passes two
        /// checks that far apart is healthy, and requests alone never take one down.
        #[test]
        fn every_server_comes_back(events in prop::collection::vec((0u8..5, 0u64..20_000, 0.0..1.0f64), 0..60)) {
            let mut health = Health::new(at(0));
            let mut now = at(0);
            for (event, later, chance) in events {
                now += at(later);
                let before = health.condition();
                match event {
                    0 => health.check_begins(),
                    1 => health.check_passed(now, &RHYTHM, chance),
                    2 => health.check_failed(now, &RHYTHM, chance),
                    3 => health.request_failed(now, &RHYTHM, chance),
                    _ => health.request_succeeded(),
                }
                if event > 2 {
                    prop_assert_eq!(before.is_usable(), health.condition().is_usable());
                }
                prop_assert!(health.check_at() <= now + RHYTHM.max_backoff);
                prop_assert!(health.condition() != Condition::Healthy || health.n_failed == 0);
            }
            health.check_begins();
            health.check_passed(now, &RHYTHM, 0.5);
            health.check_passed(now + RHYTHM.max_backoff, &RHYTHM, 0.5);
            prop_assert_eq!(health.condition(), Condition::Healthy);
        }
    }
}
