use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Clocks and random numbers of a server. Tests replace them, so that bodies and waits can be foreseen.
pub trait Environment: Send + Sync {
    /// Seconds since the beginning of 1970 (UTC).
    fn unix_time(&self) -> u64;

    /// Time since a fixed moment. It never goes back.
    fn elapsed(&self) -> Duration;

    /// A random number, for names of answers and requests.
    fn random(&self) -> u64;
}

/// The clocks of the system.
#[derive(Debug)]
pub struct SystemEnvironment {
    start: Instant,
    state: RandomState,
    n: AtomicU64,
}

impl Default for SystemEnvironment {
    fn default() -> Self {
        Self { start: Instant::now(), state: RandomState::new(), n: AtomicU64::new(0) }
    }
}

impl Environment for SystemEnvironment {
    fn unix_time(&self) -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn random(&self) -> u64 {
        // The keys of the standard library's hash maps are drawn by the operating system.
        self.state.hash_one(self.n.fetch_add(1, Ordering::Relaxed))
    }
}

/// A new name that begins with `prefix`.
pub(crate) fn new_id(environment: &dyn Environment, prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", environment.random(), environment.random())
}
