//! Threads and the hand-over of jobs between them.
//!
//! A job is a closure and a number of tasks. Its caller writes both into the slot and then raises
//! `unclaimed`. A thread claims a task by decrementing `unclaimed`; a positive old value is a claim and gives
//! the task's index. A thread that holds a claim keeps the job alive, since the caller waits for `unfinished`
//! to reach zero; a thread without a claim never looks at the slot. So a worker may be arbitrarily late.

use super::MAX_THREADS;
use crate::{Error, Result};
use std::{
    any::Any,
    cell::{Cell, UnsafeCell},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{
            AtomicBool, AtomicIsize, AtomicU8, AtomicUsize,
            Ordering::{Acquire, Relaxed, SeqCst},
        },
    },
    thread::Thread,
    time::{Duration, Instant},
};

/// How long a worker without work spins, and then how long it yields before it sleeps. Waking it takes 40 µs
/// or more, so spinning for a little longer than that is the best bet.
const SPIN: Duration = Duration::from_micros(50);
const YIELD: Duration = Duration::from_micros(100);
/// The same for a caller that waits for the last tasks of other threads.
const CALLER_SPIN: Duration = Duration::from_micros(30);
const CALLER_YIELD: Duration = Duration::from_micros(500);
/// Polls between two looks at the clock.
const POLLS: u32 = 32;

thread_local! {
    /// Whether this thread is running a task, in which case further jobs run inline.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// A value alone on its cache lines (two, because processors fetch them in pairs).
#[repr(align(128))]
struct Padded<T>(T);

/// The closure of a job, with its type erased.
#[derive(Clone, Copy)]
struct Slot {
    closure: *const (),
    call: unsafe fn(*const (), usize),
    n_tasks: usize,
}

unsafe fn call<F: Fn(usize) + Sync>(closure: *const (), index: usize) {
    // SAFETY: `Team::run` stores `call::<F>` beside a pointer to an `F` that it keeps alive.
    unsafe { (*closure.cast::<F>())(index) }
}

unsafe fn nothing(_: *const (), _: usize) {}

/// What a thread without work looks at, on one cache line.
struct Job {
    /// Tasks that nobody has claimed; zero or negative between jobs.
    unclaimed: AtomicIsize,
    slot: UnsafeCell<Slot>,
}

struct Shared {
    job: Padded<Job>,
    /// Claimed or unclaimed tasks that have not returned.
    unfinished: Padded<AtomicUsize>,
    /// Threads that may work, the caller included.
    limit: Padded<AtomicUsize>,
    /// Held by the caller of the running job. Only `set_threads` waits for it; all others try once.
    caller: AtomicBool,
    /// Threads that have been started, the caller included. Written by the holder of `caller`.
    started: AtomicUsize,
    /// The caller sleeps until `unfinished` is zero.
    caller_sleeps: AtomicBool,
    caller_lock: Mutex<()>,
    caller_wakes: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    shutdown: AtomicBool,
    workers: Box<[Worker]>,
}

// SAFETY: everything but the slot is atomic or locked. The slot is written only by the holder of `caller`
// while no claim exists, and read only by holders of a claim, ordered by `unclaimed` and `unfinished`. The
// closure that it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: the pointers in the slot are never used after the job, so nothing is tied to a thread.
unsafe impl Send for Shared {}

/// A worker's state: `AWAKE` looks for tasks, `ASLEEP` takes none, `CALLED` has been told to wake up.
const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const CALLED: u8 = 2;

#[repr(align(128))]
struct Worker {
    state: AtomicU8,
    thread: OnceLock<Thread>,
}

/// A caller and its workers.
pub(super) struct Team {
    shared: Arc<Shared>,
}

impl Team {
    /// A team of `threads` threads, the caller included. Workers are started when they are first needed.
    pub(super) fn new(threads: usize) -> Self {
        let worker = || Worker { state: AtomicU8::new(ASLEEP), thread: OnceLock::new() };
        let slot = Slot { closure: ptr::null(), call: nothing, n_tasks: 0 };
        let shared = Shared {
            job: Padded(Job { unclaimed: AtomicIsize::new(0), slot: UnsafeCell::new(slot) }),
            unfinished: Padded(AtomicUsize::new(0)),
            limit: Padded(AtomicUsize::new(threads)),
            caller: AtomicBool::new(false),
            started: AtomicUsize::new(1),
            caller_sleeps: AtomicBool::new(false),
            caller_lock: Mutex::new(()),
            caller_wakes: Condvar::new(),
            panic: Mutex::new(None),
            shutdown: AtomicBool::new(false),
            workers: (1..MAX_THREADS).map(|_| worker()).collect(),
        };
        Self { shared: Arc::new(shared) }
    }

    #[inline]
    pub(super) fn threads(&self) -> usize {
        self.shared.limit.0.load(Relaxed)
    }

    pub(super) fn set_threads(&self, n: usize) -> Result<()> {
        if IN_TASK.get() {
            return Err(Error::PoolInUse);
        }
        let caller = loop {
            match CallerGuard::try_new(&self.shared) {
                Some(guard) => break guard,
                None => std::thread::yield_now(),
            }
        };
        self.start_workers(n)?;
        self.shared.limit.0.store(n, SeqCst);
        // A worker beyond the new number that is still awake will go to sleep soon: no job can keep it.
        for worker in
            self.shared.workers.iter().skip(n - 1).take_while(|worker| worker.thread.get().is_some())
        {
            while worker.state.load(SeqCst) != ASLEEP {
                std::thread::yield_now();
            }
        }
        drop(caller);
        Ok(())
    }

    /// Starts workers up to `n` threads. The holder of `caller` calls it.
    fn start_workers(&self, n: usize) -> Result<()> {
        for index in self.shared.started.load(Relaxed)..n {
            let shared = Arc::clone(&self.shared);
            let handle = std::thread::Builder::new()
                .name(format!("breakers-{index}"))
                .spawn(move || shared.worker_loop(index))
                .map_err(|error| Error::ThreadSpawn { requested: n, index, reason: error.to_string() })?;
            // The slot is free: only this method fills it, once per index.
            let _ = self.shared.workers[index - 1].thread.set(handle.thread().clone());
            self.shared.started.store(index + 1, Relaxed);
        }
        Ok(())
    }

    #[inline]
    pub(super) fn run<F: Fn(usize) + Sync>(&self, n_tasks: usize, task: &F) {
        if self.threads() > 1
            && n_tasks > 1
            && !IN_TASK.get()
            && let Some(_caller) = CallerGuard::try_new(&self.shared)
        {
            let slot = Slot { closure: ptr::from_ref(task).cast(), call: call::<F>, n_tasks };
            self.run_slot(slot);
        } else {
            (0..n_tasks).for_each(task);
        }
    }

    /// Runs a job. The holder of `caller` calls it, and keeps the closure alive.
    fn run_slot(&self, slot: Slot) {
        let shared = &*self.shared;
        let limit = shared.limit.0.load(Relaxed);
        if shared.started.load(Relaxed) < limit
            && let Err(error) = self.start_workers(limit)
        {
            tracing::warn!("working with fewer threads: {error}");
            shared.limit.0.store(shared.started.load(Relaxed), SeqCst);
        }
        // SAFETY: no claim exists, so nobody reads the slot.
        unsafe { *shared.job.0.slot.get() = slot };
        shared.unfinished.0.store(slot.n_tasks, Relaxed);
        // This store comes before `wake` reads the workers' states; `doze` does the two in the opposite
        // order.
        shared.job.0.unclaimed.store(slot.n_tasks as isize, SeqCst);
        shared.wake();
        IN_TASK.set(true);
        shared.work();
        shared.wait();
        IN_TASK.set(false);
        if let Some(payload) = lock(&shared.panic).take() {
            resume_unwind(payload);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, SeqCst);
        for worker in &self.shared.workers {
            let Some(thread) = worker.thread.get() else { break };
            worker.state.store(CALLED, SeqCst);
            thread.unpark();
        }
    }
}

/// The right to publish jobs.
struct CallerGuard<'a>(&'a Shared);

impl<'a> CallerGuard<'a> {
    #[inline]
    fn try_new(shared: &'a Shared) -> Option<Self> {
        shared.caller.compare_exchange(false, true, Acquire, Relaxed).is_ok().then(|| Self(shared))
    }
}

impl Drop for CallerGuard<'_> {
    fn drop(&mut self) {
        self.0.caller.store(false, std::sync::atomic::Ordering::Release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    #[inline]
    fn has_tasks(&self) -> bool {
        self.job.0.unclaimed.load(Relaxed) > 0
    }

    /// Claims and runs tasks until none is left; returns whether it ran any.
    fn work(&self) -> bool {
        let done = Cell::new(0);
        let result = catch_unwind(AssertUnwindSafe(|| {
            while self.has_tasks() {
                let unclaimed = self.job.0.unclaimed.fetch_sub(1, SeqCst);
                if unclaimed <= 0 {
                    break;
                }
                // SAFETY: the claim keeps the job, and so the slot and the closure, alive.
                let slot = unsafe { *self.job.0.slot.get() };
                // Counted first, so that a task that panics is counted too.
                done.set(done.get() + 1);
                // SAFETY: as above; the index is below `n_tasks` and given out once.
                unsafe { (slot.call)(slot.closure, slot.n_tasks - unclaimed as usize) };
            }
        }));
        let mut finished = done.get();
        let ran = finished > 0;
        if let Err(payload) = result {
            // No thread may start the remaining tasks.
            finished += self.job.0.unclaimed.swap(0, SeqCst).max(0) as usize;
            lock(&self.panic).get_or_insert(payload);
        }
        // The closure must not be touched from here on.
        if finished > 0
            && self.unfinished.0.fetch_sub(finished, SeqCst) == finished
            && self.caller_sleeps.load(SeqCst)
        {
            drop(lock(&self.caller_lock));
            self.caller_wakes.notify_one();
        }
        ran
    }

    /// Waits until every task has returned.
    fn wait(&self) {
        let finished = || self.unfinished.0.load(Acquire) == 0;
        if spin(CALLER_SPIN, CALLER_YIELD, finished) {
            return;
        }
        // This comes before the look at `unfinished`; `work` does the two in the opposite order.
        self.caller_sleeps.store(true, SeqCst);
        let mut guard = lock(&self.caller_lock);
        while self.unfinished.0.load(SeqCst) != 0 {
            guard = self.caller_wakes.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.caller_sleeps.store(false, SeqCst);
    }

    /// Wakes up to two sleeping workers, while there are tasks. Each of them wakes two more, so that
    /// waking many takes a logarithmic number of steps.
    fn wake(&self) {
        let limit = self.limit.0.load(SeqCst);
        let mut woken = 0;
        for worker in &self.workers[..limit - 1] {
            if worker.state.load(SeqCst) == ASLEEP
                && worker.state.compare_exchange(ASLEEP, CALLED, SeqCst, Relaxed).is_ok()
            {
                if let Some(thread) = worker.thread.get() {
                    thread.unpark();
                }
                woken += 1;
                if woken == 2 || !self.has_tasks() {
                    break;
                }
            }
        }
    }

    fn worker_loop(&self, index: usize) {
        IN_TASK.set(true);
        let worker = &self.workers[index - 1];
        while !self.shutdown.load(SeqCst) {
            let awake = self.may_work(index) && worker.state.load(Relaxed) == AWAKE;
            if awake && (self.work() || spin(SPIN, YIELD, || self.has_tasks() || !self.may_work(index))) {
                continue;
            }
            self.doze(index, worker);
        }
    }

    fn may_work(&self, index: usize) -> bool {
        index < self.limit.0.load(Relaxed)
    }

    /// Sleeps until there is work for this worker.
    fn doze(&self, index: usize, worker: &Worker) {
        // This comes before the looks at `unclaimed` and `shutdown`; a caller does the two in the opposite
        // order.
        worker.state.store(ASLEEP, SeqCst);
        let ready = || index < self.limit.0.load(SeqCst) && self.job.0.unclaimed.load(SeqCst) > 0;
        while worker.state.load(SeqCst) == ASLEEP && !self.shutdown.load(SeqCst) {
            if ready() {
                break;
            }
            std::thread::park();
        }
        // This comes before the look at `limit`; `set_threads` does the two in the opposite order.
        let called = worker.state.swap(AWAKE, SeqCst) == CALLED;
        if index >= self.limit.0.load(SeqCst) {
            worker.state.store(ASLEEP, SeqCst);
        } else if called && self.has_tasks() {
            self.wake();
        }
    }
}

/// Polls `condition`, first by spinning and then by yielding; returns false if it did not come true in time.
#[inline]
fn spin(busy: Duration, yielding: Duration, condition: impl Fn() -> bool) -> bool {
    if condition() {
        return true;
    }
    let mut start = None;
    loop {
        for _ in 0..POLLS {
            std::hint::spin_loop();
            if condition() {
                return true;
            }
        }
        let waited = start.get_or_insert_with(Instant::now).elapsed();
        if waited > busy + yielding {
            return false;
        }
        if waited > busy {
            std::thread::yield_now();
        }
    }
}
