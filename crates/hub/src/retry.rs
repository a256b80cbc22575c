//! When to retry a failed fetch: one rule for all sources.
//!
//! A permanent error ends the fetch. After any other error it is retried a limited number of times, with
//! pauses that double, as long as something arrived that shows that the network works.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// How often to retry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retry {
    max_retries: u32,
}

impl Retry {
    /// For a package, which starts from the beginning each time.
    pub(crate) const PACKAGE: Self = Self { max_retries: 1 };
    /// For a file that resumes where it broke off.
    #[cfg(feature = "hf")]
    pub(crate) const TRANSFER: Self = Self { max_retries: 20 };

    /// Runs `attempt` until it succeeds or there is no point in trying again: `helped` tells whether
    /// something arrived, `is_wanted` whether the caller is still waiting. Each of them receives `state`.
    ///
    /// # Errors
    /// The last attempt's.
    pub(crate) fn run<S, T>(
        self,
        state: &mut S,
        mut attempt: impl FnMut(&mut S) -> Result<T>,
        mut helped: impl FnMut(&mut S, &Error) -> bool,
        mut is_wanted: impl FnMut(&mut S) -> bool,
    ) -> Result<T> {
        let mut pause = FIRST_PAUSE;
        for _ in 0..self.max_retries {
            match attempt(state) {
                Err(error) if error.is_transient() && helped(state, &error) => {
                    let begun = Instant::now();
                    while begun.elapsed() < pause {
                        if !is_wanted(state) {
                            return Err(error);
                        }
                        thread::sleep(POLL.min(pause));
                    }
                    pause = (2 * pause).min(LONGEST_PAUSE);
                }
                result => return result,
            }
        }
        attempt(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken() -> Error {
        Error::ToolFailed { command: "c".to_owned(), status: "1".to_owned(), stderr_tail: String::new() }
    }

    /// Attempts made, and whether one succeeded, when the first `n_failures` fail.
    fn run(n_failures: usize, error: fn() -> Error, helped: bool, wanted: bool) -> (usize, bool) {
        let mut n = 0;
        let retry = Retry { max_retries: 2 };
        let attempt = |n: &mut usize| {
            *n += 1;
            if *n > n_failures { Ok(()) } else { Err(error()) }
        };
        let result = retry.run(&mut n, attempt, |_, _| helped, |_| wanted);
        (n, result.is_ok())
    }

    #[test]
    fn what_may_heal_is_tried_again() {
        let size = || Error::SizeMismatch { what: "f".to_owned(), expected: 1, found: 2 };
        let cases = [
            (run(0, broken, true, true), (1, true)),
            (run(1, broken, true, true), (2, true)),
            (run(2, broken, true, true), (3, true)),
            (run(3, broken, true, true), (3, false)),
            // Nothing arrived, nobody is waiting, or the error is permanent.
            (run(1, broken, false, true), (1, false)),
            (run(1, broken, true, false), (1, false)),
            (run(1, size, true, true), (1, false)),
        ];
        for (i, (found, expected)) in cases.into_iter().enumerate() {
            assert_eq!(found, expected, "case {i}");
        }
    }
}
