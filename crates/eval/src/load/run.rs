//! Sending requests when they are planned.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::endpoint::{agent, ask};
use super::{Arrivals, LoadPrompt, Record, Target};
use crate::{BootstrapConfig, Error, Result};

/// The stack of a thread that waits for an answer.
const STACK: usize = 128 << 10;

/// How load is put on endpoints.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LoadConfig {
    /// When requests come.
    pub arrivals: Arrivals,
    /// Requests to each endpoint, over all rounds.
    pub n_requests: usize,
    /// Rounds, in each of which all endpoints get their share of the requests, one after the other; the
    /// next round begins with the next endpoint.
    pub rounds: usize,
    /// Requests to each endpoint before the first round that are not counted.
    pub warmup: usize,
    /// Tokens of an answer at most, where a prompt does not say.
    pub max_tokens: usize,
    /// The time for a request, from sending it to the end of its answer.
    pub timeout: Duration,
    /// Open requests at most. Further ones are sent late, and counted from their planned moment.
    pub max_open: usize,
    /// Seed of the arrivals.
    pub seed: u64,
    /// How intervals are found.
    pub bootstrap: BootstrapConfig,
}

impl LoadConfig {
    /// One round without warm-up, answers of at most 128 tokens, two minutes for each, 512 at a time.
    pub fn new(arrivals: Arrivals, n_requests: usize) -> Self {
        Self {
            arrivals,
            n_requests,
            rounds: 1,
            warmup: 0,
            max_tokens: 128,
            timeout: Duration::from_secs(120),
            max_open: 512,
            seed: 0,
            bootstrap: BootstrapConfig::default(),
        }
    }

    fn validate(&self, targets: &[Target], prompts: &[LoadPrompt]) -> Result<()> {
        let at_least_one = [
            ("n_requests", self.n_requests),
            ("rounds", self.rounds),
            ("max_tokens", self.max_tokens),
            ("max_open", self.max_open),
            ("targets", targets.len()),
            ("prompts", prompts.len()),
        ];
        for (name, found) in at_least_one {
            if found == 0 {
                return Err(Error::Parameter { name, found: 0.0, expected: "at least 1" });
            }
        }
        if self.max_open > 4096 {
            let found = self.max_open as f64;
            return Err(Error::Parameter { name: "max_open", found, expected: "at most 4,096 threads" });
        }
        if self.rounds > self.n_requests {
            let (name, found) = ("rounds", self.rounds as f64);
            return Err(Error::Parameter { name, found, expected: "at most as many as requests" });
        }
        if self.timeout.is_zero() {
            return Err(Error::Parameter { name: "timeout", found: 0.0, expected: "more than 0" });
        }
        Ok(())
    }
}

/// What one endpoint did under load.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Run {
    /// The endpoint.
    pub target: Target,
    /// Its requests, in the order of the plan.
    pub records: Vec<Record>,
    /// Seconds from the start of a round to its last answer, over all rounds.
    pub duration: f64,
    /// The processor time that this program used meanwhile, as a share of all processors; `None` where
    /// the system does not tell. A program that does other things at the same time counts them, too.
    pub client_cpu: Option<f64>,
    /// Whether requests had a plan; a closed loop has none.
    pub is_planned: bool,
}

/// Puts load on endpoints, in turn. `on_record` sees each request when it has ended.
///
/// # Errors
/// [`Error::Parameter`]; [`Error::Thread`] if the system has no more threads. Requests that fail are no
/// errors: they are counted.
pub fn run(
    targets: &[Target],
    prompts: &[LoadPrompt],
    config: &LoadConfig,
    on_record: &mut (dyn FnMut(&Record) + Send),
) -> Result<Vec<Run>> {
    config.validate(targets, prompts)?;
    let plan = config.arrivals.plan(config.n_requests, config.seed)?;
    let on_record = Mutex::new(on_record);
    let mut runs: Vec<Run> = targets
        .iter()
        .map(|target| Run {
            target: target.clone(),
            records: Vec::with_capacity(config.n_requests),
            duration: 0.0,
            client_cpu: None,
            is_planned: plan.is_some(),
        })
        .collect();
    let agents: Vec<_> =
        targets.iter().map(|target| agent(&target.url, config.timeout, config.max_open)).collect();
    for (target, agent) in targets.iter().zip(&agents) {
        for i in 0..config.warmup {
            // From the end, so that nothing is warm that is measured first.
            let prompt = &prompts[prompts.len() - 1 - i % prompts.len()];
            ask(agent, target, prompt, config.max_tokens, Instant::now(), None);
        }
    }
    let mut cpu: Vec<Option<f64>> = vec![Some(0.0); targets.len()];
    for round in 0..config.rounds {
        let share = |i: usize| config.n_requests * i / config.rounds;
        let (from, to) = (share(round), share(round + 1));
        let times = plan.as_ref().map(|plan| {
            let zero = if from == 0 { 0.0 } else { plan[from - 1] };
            plan[from..to].iter().map(|time| time - zero).collect::<Vec<f64>>()
        });
        for k in 0..targets.len() {
            let t = (k + round) % targets.len();
            let requests: Vec<&LoadPrompt> = (from..to).map(|i| &prompts[i % prompts.len()]).collect();
            let before = cpu_seconds();
            let one = |i: usize, start: Instant, planned: Option<f64>| {
                let record = ask(&agents[t], &targets[t], requests[i], config.max_tokens, start, planned);
                (on_record.lock().unwrap_or_else(PoisonError::into_inner))(&record);
                record
            };
            let start = Instant::now();
            let records = match (&times, &config.arrivals) {
                (Some(times), _) => open_loop(times, config.max_open, start, &one)?,
                (None, Arrivals::ClosedLoop { users }) => {
                    closed_loop(requests.len(), (*users).min(config.max_open), start, &one)?
                }
                (None, _) => Vec::new(),
            };
            let last = records.iter().map(|record| record.end).fold(0.0, f64::max);
            runs[t].duration += last;
            runs[t].records.extend(records);
            cpu[t] = match (cpu[t], before, cpu_seconds()) {
                (Some(sum), Some(before), Some(after)) => Some(sum + after - before),
                _ => None,
            };
        }
    }
    let n_cpus = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    for (run, cpu) in runs.iter_mut().zip(cpu) {
        run.client_cpu = cpu.filter(|_| run.duration > 0.0).map(|cpu| cpu / (run.duration * n_cpus));
    }
    Ok(runs)
}

type Ask<'a> = dyn Fn(usize, Instant, Option<f64>) -> Record + Sync + 'a;

/// Sends each request at its moment, whatever has become of the others.
fn open_loop(times: &[f64], max_open: usize, start: Instant, one: &Ask<'_>) -> Result<Vec<Record>> {
    let done: Mutex<Vec<Option<Record>>> = Mutex::new(vec![None; times.len()]);
    let open = (Mutex::new(0usize), Condvar::new());
    std::thread::scope(|scope| {
        for (i, &time) in times.iter().enumerate() {
            let at = Duration::from_secs_f64(time);
            std::thread::sleep(at.saturating_sub(start.elapsed()));
            let mut n = open.0.lock().unwrap_or_else(PoisonError::into_inner);
            while *n >= max_open {
                n = open.1.wait(n).unwrap_or_else(PoisonError::into_inner);
            }
            *n += 1;
            drop(n);
            let (done, open) = (&done, &open);
            let work = move || {
                let record = one(i, start, Some(time));
                done.lock().unwrap_or_else(PoisonError::into_inner)[i] = Some(record);
                *open.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
                open.1.notify_one();
            };
            std::thread::Builder::new()
                .stack_size(STACK)
                .spawn_scoped(scope, work)
                .map_err(|source| Error::Thread { source })?;
        }
        Ok::<(), Error>(())
    })?;
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(done.into_iter().flatten().collect())
}

/// Lets users ask one after the other until all requests are sent.
fn closed_loop(n: usize, users: usize, start: Instant, one: &Ask<'_>) -> Result<Vec<Record>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Record>>> = Mutex::new(vec![None; n]);
    std::thread::scope(|scope| {
        for _ in 0..users.min(n) {
            let (next, done) = (&next, &done);
            let work = move || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= n {
                        break;
                    }
                    let record = one(i, start, None);
                    done.lock().unwrap_or_else(PoisonError::into_inner)[i] = Some(record);
                }
            };
            std::thread::Builder::new()
                .stack_size(STACK)
                .spawn_scoped(scope, work)
                .map_err(|source| Error::Thread { source })?;
        }
        Ok::<(), Error>(())
    })?;
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(done.into_iter().flatten().collect())
}

/// Processor time of this program so far.
#[cfg(unix)]
fn cpu_seconds() -> Option<f64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Some(time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9)
}

#[cfg(not(unix))]
fn cpu_seconds() -> Option<f64> {
    None
}
