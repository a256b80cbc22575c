use super::{team::Team, *};
use proptest::prelude::*;
use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::ThreadId,
    time::{Duration, Instant},
};

/// Runs the tasks on the team and checks that each ran exactly once.
fn check_each_once(team: &Team, n_tasks: usize) {
    let counts: Vec<_> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
    team.run(n_tasks, &|i| {
        counts[i].fetch_add(1, Ordering::Relaxed);
    });
    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{n_tasks} tasks");
}

/// The threads that take part in a job whose first tasks wait for as many threads as the team has.
///
/// However late a worker is scheduled, the tasks wait for it, up to a limit that is only reached if a worker
/// never comes. A thread too many would show up in the result as well.
fn participants(team: &Team) -> HashSet<ThreadId> {
    let threads = Mutex::new(HashSet::new());
    let deadline = Instant::now() + Duration::from_secs(30);
    team.run(team.threads() * 4, &|_| {
        threads.lock().unwrap().insert(std::thread::current().id());
        while threads.lock().unwrap().len() < team.threads() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(100));
        }
    });
    threads.into_inner().unwrap()
}

#[test]
fn every_task_runs_once() {
    for threads in [1, 2, 3, 8] {
        let team = Team::new(threads);
        for n_tasks in [0, 1, 2, 3, 7, 64, 1000] {
            for _ in 0..50 {
                check_each_once(&team, n_tasks);
            }
        }
    }
}

#[test]
fn many_short_jobs_in_a_row() {
    let team = Team::new(4);
    let sum = AtomicUsize::new(0);
    for job in 0..100_000 {
        team.run(2 + job % 5, &|_| {
            sum.fetch_add(1, Ordering::Relaxed);
        });
    }
    assert_eq!(sum.into_inner(), 100_000 * 4);
}

#[test]
fn the_number_of_threads_is_obeyed() {
    let team = Team::new(3);
    for threads in [3, 1, 2, 6, 1, 4] {
        team.set_threads(threads).unwrap();
        assert_eq!(team.threads(), threads);
        let taking_part = participants(&team);
        assert!(taking_part.contains(&std::thread::current().id()));
        assert_eq!(taking_part.len(), threads, "of {threads}");
    }
}

#[test]
fn one_thread_is_the_caller() {
    let team = Team::new(1);
    let caller = std::thread::current().id();
    team.run(100, &|_| assert_eq!(std::thread::current().id(), caller));
}

#[test]
fn nested_jobs_run_on_the_thread_of_the_task() {
    let team = Team::new(3);
    let inner_tasks = AtomicUsize::new(0);
    team.run(8, &|_| {
        let outer = std::thread::current().id();
        team.run(5, &|_| {
            assert_eq!(std::thread::current().id(), outer);
            inner_tasks.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(team.set_threads(2), Err(Error::PoolInUse));
    });
    assert_eq!(inner_tasks.into_inner(), 40);
    assert_eq!(team.threads(), 3);
}

#[test]
fn several_callers_at_once() {
    let team = Team::new(2);
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                for n_tasks in 0..500 {
                    check_each_once(&team, n_tasks);
                }
            });
        }
        scope.spawn(|| {
            for n in 0..200 {
                team.set_threads(1 + n % 4).unwrap();
            }
        });
    });
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
    for threads in [1, 2, 4] {
        let team = Team::new(threads);
        for n_tasks in [1, 2, 100] {
            for bad in [0, n_tasks / 2, n_tasks - 1] {
                let result = catch_unwind(AssertUnwindSafe(|| {
                    team.run(n_tasks, &|i| {
                        if i == bad {
                            std::panic::panic_any(i);
                        }
                    });
                }));
                assert_eq!(result.unwrap_err().downcast_ref::<usize>(), Some(&bad));
                check_each_once(&team, 10);
            }
        }
    }
}

#[test]
fn all_tasks_panicking_is_one_panic() {
    let team = Team::new(4);
    for _ in 0..100 {
        let result = catch_unwind(AssertUnwindSafe(|| team.run(50, &|_| std::panic::panic_any(()))));
        assert!(result.is_err());
    }
    check_each_once(&team, 50);
}

#[test]
fn workers_sleep_and_wake() {
    let team = Team::new(4);
    for pause in [0, 10, 100, 1000, 20_000] {
        for _ in 0..5 {
            std::thread::sleep(Duration::from_micros(pause));
            check_each_once(&team, 16);
        }
        assert_eq!(participants(&team).len(), 4, "after a pause of {pause} µs");
    }
}

/// CPU time of this process's threads whose names begin with this text.
#[cfg(target_os = "linux")]
fn cpu_time_of(thread_names: &str) -> Duration {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let Ok(stat) = std::fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
        let (name, fields) = stat.split_once('(').unwrap().1.rsplit_once(')').unwrap();
        if name.starts_with(thread_names) {
            ticks +=
                fields.split_whitespace().skip(11).take(2).map(|t| t.parse::<u64>().unwrap()).sum::<u64>();
        }
    }
    Duration::from_millis(ticks * 10)
}

#[test]
#[cfg(target_os = "linux")]
fn idle_workers_use_no_cpu() {
    // A large team, because no other test has a worker with so high a number.
    let team = Team::new(64);
    assert_eq!(participants(&team).len(), 64);
    // On a busy machine it takes a while until all of them get to run and go to sleep.
    let mut used = Vec::new();
    while used.len() < 10 {
        std::thread::sleep(Duration::from_millis(50));
        let before = cpu_time_of("breakers-61");
        std::thread::sleep(Duration::from_millis(300));
        used.push(cpu_time_of("breakers-61") - before);
        if used[used.len() - 1] <= Duration::from_millis(20) {
            return;
        }
    }
    panic!("idle workers used {used:?} in 300 ms each");
}

#[test]
fn a_caller_sleeps_through_a_long_task() {
    let team = Team::new(2);
    let start = Instant::now();
    let both = Barrier::new(2);
    team.run(2, &|i| {
        both.wait();
        std::thread::sleep(Duration::from_millis(if i == 0 { 1 } else { 20 }));
    });
    assert!(start.elapsed() >= Duration::from_millis(20));
    check_each_once(&team, 10);
}

#[test]
fn numbers_of_threads_that_cannot_be() {
    for n in [0, MAX_THREADS + 1, usize::MAX] {
        assert_eq!(set_threads(n), Err(Error::ThreadCount { requested: n, max: MAX_THREADS }));
    }
}

#[test]
fn disjoint_ranges_are_checked_against_the_slice() {
    let mut values = [0u8; 4];
    let shared = DisjointMut::new(&mut values);
    assert_eq!((shared.len(), shared.is_empty()), (4, false));
    #[allow(clippy::reversed_empty_ranges)]
    for range in [0..5, 5..5, 3..2] {
        // SAFETY: the result is dropped at once.
        let result = catch_unwind(AssertUnwindSafe(|| unsafe { shared.slice_mut(range.clone()).len() }));
        assert!(result.is_err(), "{range:?}");
    }
    // SAFETY: no other piece is alive.
    unsafe {
        shared.write(3, 9);
        assert!(shared.slice_mut(4..4).is_empty());
        assert_eq!(shared.slice_mut(2..4), [0, 9]);
    }
}

proptest! {
    #[test]
    fn chunks_cover_the_range(n in 0usize..5000, align in 0usize..70) {
        let seen: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
        parallel_chunks(n, align, |range| {
            assert!(!range.is_empty());
            assert_eq!(range.start % align.max(1), 0);
            assert!(range.end == n || range.end % align.max(1) == 0);
            range.for_each(|i| { seen[i].fetch_add(1, Ordering::Relaxed); });
        });
        prop_assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn mutable_chunks_cover_the_slice(n in 0usize..3000, chunk_len in 0usize..100) {
        let mut out = vec![0; n];
        parallel_chunks_mut(&mut out, chunk_len, |start, chunk| {
            assert!(chunk.len() <= chunk_len.max(1));
            chunk.iter_mut().enumerate().for_each(|(i, v)| *v += start + i + 1);
        });
        prop_assert!(out.iter().enumerate().all(|(i, v)| *v == i + 1));
    }

    #[test]
    fn there_are_no_more_chunks_than_asked_for(n in 0usize..10_000, align in 0usize..100, n_chunks in 1usize..40) {
        let chunk = chunk_len(n, align, n_chunks);
        prop_assert!(chunk > 0 && n.div_ceil(chunk) <= n_chunks);
    }
}
