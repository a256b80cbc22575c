//! The one thread pool of all kernels.
//!
//! A forward pass of a language model forks and joins hundreds of times per token, for pieces of work of a
//! few dozen microseconds. The workers therefore stay awake for a little while after each job and pick up the
//! next one within a fraction of a microsecond. If none comes they sleep, so an idle process uses no CPU.
//!
//! The calling thread works too. Tasks are handed out one at a time by a counter, so a worker that the
//! operating system delays takes none, and the caller never waits for a task that no thread has started.
//!
//! Results must not depend on the pool: a task writes only its own outputs, and any thread may run it.
//!
//! # Cost
//! A fork and join on two awake threads takes well under 2 µs (`cargo bench -p breakers-cpu --bench pool`).
//! The first call after a pause has to wake the workers; that takes some tens of microseconds, during which
//! the caller already works. With one thread a call is a plain loop.
//!
//! # Example
//! ```
//! use breakers_cpu::pool;
//!
//! let mut squares = vec![0u64; 1000];
//! pool::parallel_chunks_mut(&mut squares, 64, |start, chunk| {
//!     for (offset, square) in chunk.iter_mut().enumerate() {
//!         *square = ((start + offset) as u64).pow(2);
//!     }
//! });
//! assert_eq!(squares[999], 998_001);
//! ```

mod disjoint;
mod team;

pub use disjoint::DisjointMut;

use crate::{Error, Result};
use std::{ops::Range, sync::OnceLock};
use team::Team;

/// The most threads that the pool can have, including the caller.
pub const MAX_THREADS: usize = 256;

/// Chunks per thread in [`parallel_chunks`]: several, so that a slow or late thread leaves work to the
/// others.
const CHUNKS_PER_THREAD: usize = 4;

fn team() -> &'static Team {
    static TEAM: OnceLock<Team> = OnceLock::new();
    TEAM.get_or_init(|| Team::new(default_threads()))
}

fn default_threads() -> usize {
    let available = std::thread::available_parallelism().map_or(1, |n| n.get()).min(MAX_THREADS);
    let Ok(text) = std::env::var("BREAKERS_THREADS") else { return available };
    match text.trim().parse() {
        Ok(n) if (1..=MAX_THREADS).contains(&n) => n,
        _ => {
            tracing::warn!("BREAKERS_THREADS={text:?} is ignored: expected a number from 1 to {MAX_THREADS}");
            available
        }
    }
}

/// The number of threads that kernels use, including the caller.
///
/// Unless [`set_threads`] was called, it is the value of the environment variable `BREAKERS_THREADS`, or else
/// the number of hardware threads that the process may use.
pub fn threads() -> usize {
    team().threads()
}

/// Sets the number of threads that kernels use, including the caller; 1 means that no worker runs at all.
///
/// Waits for any running job, and returns once no worker beyond that number takes tasks. It cannot be called
/// from within a task.
///
/// # Errors
/// [`Error::ThreadCount`] for 0 or more than [`MAX_THREADS`]; [`Error::ThreadSpawn`] if the operating system
/// refuses a thread (the pool keeps the number it had); [`Error::PoolInUse`] from within a task.
pub fn set_threads(n: usize) -> Result<()> {
    if !(1..=MAX_THREADS).contains(&n) {
        return Err(Error::ThreadCount { requested: n, max: MAX_THREADS });
    }
    team().set_threads(n)
}

/// Calls `task(i)` once for every `i` in `0..n_tasks`, from up to [`threads`] threads, and returns when all
/// calls have returned.
///
/// Tasks begin in ascending order. Calls from within a task, and calls while another thread uses the pool,
/// run the tasks one after the other on the calling thread.
///
/// # Panics
/// If a task panics. Tasks that have not started are then skipped, and the panic continues in the caller.
pub fn parallel_for(n_tasks: usize, task: impl Fn(usize) + Sync) {
    if n_tasks > 1 {
        team().run(n_tasks, &task);
    } else if n_tasks == 1 {
        task(0);
    }
}

/// Splits `0..n` into contiguous chunks whose lengths are multiples of `align` (the last one may be shorter)
/// and calls `task` once for each, from up to [`threads`] threads.
///
/// The chunks depend on the number of threads, so a task must treat each index independently. An `align` of 0
/// counts as 1.
///
/// # Panics
/// As [`parallel_for`].
pub fn parallel_chunks(n: usize, align: usize, task: impl Fn(Range<usize>) + Sync) {
    let threads = threads();
    let n_chunks = if threads == 1 { 1 } else { threads * CHUNKS_PER_THREAD };
    let chunk = chunk_len(n, align, n_chunks);
    parallel_for(n.div_ceil(chunk), |i| task(i * chunk..n.min((i + 1) * chunk)));
}

/// Length of the chunks of `0..n` in multiples of `align`, at most `n_chunks` of them.
fn chunk_len(n: usize, align: usize, n_chunks: usize) -> usize {
    let align = align.max(1);
    let granules = n.div_ceil(align).max(1);
    granules.div_ceil(n_chunks).saturating_mul(align)
}

/// Splits `out` into chunks of `chunk_len` elements (the last one may be shorter) and calls
/// `task(start, chunk)` once for each, where `start` is the index of the chunk's first element.
///
/// A `chunk_len` of 0 counts as 1.
///
/// # Panics
/// As [`parallel_for`].
pub fn parallel_chunks_mut<T: Send>(out: &mut [T], chunk_len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    let chunk_len = chunk_len.max(1);
    let n = out.len();
    let out = DisjointMut::new(out);
    parallel_for(n.div_ceil(chunk_len), |i| {
        let range = i * chunk_len..n.min((i + 1) * chunk_len);
        // SAFETY: task `i` runs once, and the ranges of different `i` do not overlap.
        task(range.start, unsafe { out.slice_mut(range) });
    });
}

#[cfg(test)]
mod tests;
