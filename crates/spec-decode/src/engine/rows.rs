//! How many rows a pass may have, so that texts that are being written do not wait for long.

use std::time::Duration;

/// The fewest rows that are left to prompts, or they would never be read.
const LEAST: usize = 8;

/// Rows of a pass, from how long passes took.
///
/// A pass reads prompts in what rows the running texts leave. How long a row takes depends on the model, on
/// the machine and on how much has been read, so it is followed: a pass that took too long makes the next
/// ones smaller at once, and one that was full and quick makes them a little larger.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RowBudget {
    rows: usize,
}

impl RowBudget {
    pub(super) fn new() -> Self {
        Self { rows: LEAST * 4 }
    }

    /// Rows of the next pass, at most `most`. `is_heard`: somebody waits for the next piece of a text; if
    /// not, a long pass keeps nobody waiting.
    pub(super) fn rows(&self, most: usize, limit: Option<Duration>, is_heard: bool) -> usize {
        if limit.is_none() || !is_heard { most } else { self.rows.min(most) }
    }

    /// Takes note of a pass.
    pub(super) fn note(&mut self, n_rows: usize, took: Duration, limit: Option<Duration>, most: usize) {
        let Some(limit) = limit.filter(|limit| !limit.is_zero()) else { return };
        let share = took.as_secs_f64() / limit.as_secs_f64();
        if share > 1.0 {
            let fitting = (n_rows as f64 / share * 0.9) as usize;
            self.rows = self.rows.min(fitting).max(LEAST);
        } else if share < 0.8 && n_rows >= self.rows {
            self.rows = (self.rows + self.rows / 4).clamp(LEAST, most.max(LEAST));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_come_to_take_what_they_may() {
        const LIMIT: Option<Duration> = Some(Duration::from_millis(80));
        for micros_per_row in [100, 700, 2_800, 30_000] {
            let mut budget = RowBudget::new();
            let took = |rows: usize| Duration::from_micros(5_000 + rows as u64 * micros_per_row);
            let mut passes = Vec::new();
            for _ in 0..40 {
                let rows = budget.rows(512, LIMIT, true);
                passes.push(rows);
                budget.note(rows, took(rows), LIMIT, 512);
            }
            let settled = &passes[20..];
            let fits = |rows: usize| took(rows) <= LIMIT.unwrap();
            // Too long at most where a larger pass was tried, by a quarter.
            assert!(
                settled.iter().all(|&rows| rows == LEAST || fits(rows * 4 / 5)),
                "{micros_per_row}: {passes:?}"
            );
            assert!(
                settled.iter().all(|&rows| rows == 512 || !fits(rows * 2) || rows == LEAST),
                "{passes:?}"
            );
        }
    }

    #[test]
    fn nobody_who_waits_means_no_limit() {
        let mut budget = RowBudget::new();
        let limit = Some(Duration::from_millis(1));
        budget.note(100, Duration::from_secs(1), limit, 512);
        assert_eq!(budget.rows(512, limit, true), LEAST);
        assert_eq!((budget.rows(512, limit, false), budget.rows(512, None, true)), (512, 512));
        // More texts than rows: each has one anyway.
        assert_eq!(budget.rows(4, limit, true), 4);
    }
}
