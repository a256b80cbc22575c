//! What a fork and join costs, compared with rayon in the same run.
//!
//! `cargo bench -p breakers-cpu --bench pool [-- THREADS]`, by default with 2 threads. Each case alternates
//! between the two pools, so that both see the same machine, and reports medians and minima. For tasks of a
//! few microseconds, the cost is the time beyond that of a single task, since all threads run theirs at the
//! same time.

#![allow(clippy::print_stdout)] // It prints a report.

use breakers_cpu::pool;
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// Forks and joins per timing, and timings per case.
const BATCH: u32 = 200;
const SAMPLES: usize = 300;

fn main() {
    // Cargo passes `--bench`.
    let threads = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(2);
    pool::set_threads(threads).expect("a number of threads that the pool can have");
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of rayon's");

    println!("{threads} threads; microseconds for a fork and a join, median (minimum)");
    println!("{:28} {:>16} {:>16} {:>8}", "case", "breakers", "rayon", "ratio");
    for task_micros in [0, 2, 5, 20] {
        let rounds = rounds_in(Duration::from_micros(task_micros));
        let task = |_: usize| work(rounds);
        let alone = Samples::take(|| (0..BATCH).for_each(|_| work(rounds)));
        let [ours, theirs] =
            Samples::take_in_turns([&|| (0..BATCH).for_each(|_| pool::parallel_for(threads, task)), &|| {
                rayon.install(|| (0..BATCH).for_each(|_| rayon_for(threads, &task)))
            }]);
        report(&format!("{threads} tasks of {task_micros} µs"), ours.beyond(&alone), theirs.beyond(&alone));
    }
    // After a pause the workers sleep.
    let pause = || std::thread::sleep(Duration::from_millis(2));
    let rounds = rounds_in(Duration::from_micros(100));
    let task = |_: usize| work(rounds);
    let alone = Samples::take_each(30, pause, || work(rounds));
    let ours = Samples::take_each(30, pause, || pool::parallel_for(threads, task));
    let theirs = Samples::take_each(30, pause, || rayon.install(|| rayon_for(threads, &task)));
    report(&format!("{threads} tasks of 100 µs, cold"), ours.beyond(&alone), theirs.beyond(&alone));
}

/// Rayon's cheapest way of running a few tasks: joins, from within its pool.
fn rayon_for(n_tasks: usize, task: &(impl Fn(usize) + Sync)) {
    fn halves(start: usize, end: usize, task: &(impl Fn(usize) + Sync)) {
        if end - start == 1 {
            task(start);
        } else {
            let middle = start.midpoint(end);
            rayon::join(|| halves(start, middle, task), || halves(middle, end, task));
        }
    }
    halves(0, n_tasks, task);
}

fn report(case: &str, ours: Samples, theirs: Samples) {
    let cell = |samples: &Samples| format!("{:.2} ({:.2})", samples.median(), samples.minimum());
    let ratio = theirs.median() / ours.median();
    println!("{case:28} {:>16} {:>16} {ratio:>7.1}x", cell(&ours), cell(&theirs));
}

/// Work that takes the same time on every thread and touches no memory.
fn work(rounds: u64) {
    let mut x = rounds;
    for _ in 0..rounds {
        x = black_box(x.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    }
    black_box(x);
}

/// Rounds of [`work`] that take about this long.
fn rounds_in(duration: Duration) -> u64 {
    const PROBE: u64 = 1_000_000;
    let probe = || {
        let start = Instant::now();
        work(PROBE);
        start.elapsed()
    };
    let fastest = (0..5).map(|_| probe()).min().unwrap_or_default();
    (PROBE as f64 * duration.as_secs_f64() / fastest.as_secs_f64()) as u64
}

/// Times of one fork and join, in microseconds, sorted.
struct Samples(Vec<f64>);

impl Samples {
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    fn take(batch: impl Fn()) -> Self {
        let [samples] = Self::take_in_turns([&batch]);
        samples
    }

    fn take_in_turns<const N: usize>(batches: [&dyn Fn(); N]) -> [Self; N] {
        let mut times = [const { Vec::new() }; N];
        for sample in 0..SAMPLES + 10 {
            for (times, batch) in times.iter_mut().zip(batches) {
                let start = Instant::now();
                batch();
                // The first ones wake threads and fill caches.
                if sample >= 10 {
                    times.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(BATCH));
                }
            }
        }
        times.map(Self::of)
    }

    fn take_each(n: usize, before: impl Fn(), timed: impl Fn()) -> Self {
        let time = |_| {
            before();
            let start = Instant::now();
            timed();
            start.elapsed().as_secs_f64() * 1e6
        };
        Self::of((0..n).map(time).collect())
    }

    /// The samples minus the fastest of the others.
    fn beyond(&self, other: &Self) -> Self {
        Self(self.0.iter().map(|time| time - other.minimum()).collect())
    }

    fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    fn minimum(&self) -> f64 {
        self.0[0]
    }
}
