//! The dispatcher: runs lines of batches and jobs in slots that nobody waits for.
//!
//! Which lines have results is in the database alone. What this holds in memory is a guess at what to run
//! next; if the process is killed, lines that were running have no result and run again, and nothing else
//! does.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use breakers_core::Usage;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::Instant;

use super::Batches;
use super::endpoint::{self, Endpoint, Origin, Parsed};
use super::input::{self, InputLimits, LineError};
use super::store::{BatchRow, Ending, JobRow, Pending, Status, Store, StoreError};
use crate::api_error::ApiError;
use crate::spool;
use crate::state::{Phase, Slot, State};

/// Time between looks at the spool folder and at what has expired.
const LOOK_TIME: Duration = Duration::from_secs(1);
/// Time between removals of what is too old.
const SWEEP_TIME: Duration = Duration::from_secs(600);
/// Lines that are taken from a batch at a time, so that batches take turns.
const CHUNK: usize = 64;
/// Lines in flight for each slot, those included that wait until they are tried again.
const IN_FLIGHT: usize = 4;
/// The longest pause before a line is tried again, or before the disk is.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Runs until the server stops. What runs then is given up.
pub(crate) async fn dispatch(state: Arc<State>) {
    let Some(batches) = state.batches.clone() else { return };
    let mut phase = state.phase.subscribe();
    let dispatcher = Dispatcher::new(state, batches);
    tokio::select! {
        () = dispatcher.run() => {}
        _ = phase.wait_for(|phase| *phase != Phase::Serving) => {}
    }
}

/// Something to run.
enum Work {
    Line(Arc<BatchRow>, Pending),
    Job(JobRow),
}

impl Work {
    fn owner(&self) -> Owner {
        match self {
            Self::Line(batch, _) => Owner::Batch(batch.n),
            Self::Job(job) => Owner::Job(job.ticket.clone()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Owner {
    Batch(i64),
    Job(String),
}

/// A batch whose lines run.
struct Open {
    batch: Arc<BatchRow>,
    /// The rank of the last line that was taken.
    after: Option<u64>,
    /// No line is left to take.
    is_drained: bool,
}

struct Dispatcher {
    state: Arc<State>,
    batches: Arc<Batches>,
    reserve: usize,
    queue: VecDeque<Work>,
    running: JoinSet<()>,
    /// What each running task works for, and how it is stopped.
    tasks: HashMap<Id, (Owner, AbortHandle)>,
    open: BTreeMap<i64, Open>,
    /// The batch from which lines were taken last.
    last: i64,
    /// Checks of files and writing of results, with the batches that they are for.
    chores: JoinSet<i64>,
    busy: HashSet<i64>,
    /// Jobs that are queued or run.
    jobs: HashSet<String>,
    /// How many jobs had no answer at the last look.
    n_jobs: usize,
    /// When the jobs that wait begin.
    jobs_at: Option<Instant>,
    swept: Option<Instant>,
    /// Whether the database may say something new.
    is_stale: bool,
}

impl Dispatcher {
    fn new(state: Arc<State>, batches: Arc<Batches>) -> Self {
        let reserve = batches.config.reserve_of(state.config.limits.max_texts);
        Self {
            state,
            batches,
            reserve,
            queue: VecDeque::new(),
            running: JoinSet::new(),
            tasks: HashMap::new(),
            open: BTreeMap::new(),
            last: 0,
            chores: JoinSet::new(),
            busy: HashSet::new(),
            jobs: HashSet::new(),
            n_jobs: 0,
            jobs_at: None,
            swept: None,
            is_stale: true,
        }
    }

    async fn run(mut self) {
        let max_running = IN_FLIGHT * self.state.config.limits.max_texts;
        let mut look = Instant::now();
        loop {
            if self.is_stale {
                look = Instant::now() + LOOK_TIME;
                if let Err(error) = self.look().await {
                    tracing::error!(%error, "batches: the disk failed");
                    tokio::time::sleep(LOOK_TIME).await;
                }
            }
            if self.queue.is_empty()
                && let Err(error) = self.refill().await
            {
                tracing::error!(%error, "batches: the disk failed");
            }
            let has_work = !self.queue.is_empty() && self.running.len() < max_running;
            let wake = self.jobs_at.map_or(look, |at| at.min(look));
            let slots = Arc::clone(&self.state.slots);
            tokio::select! {
                biased;
                Some(ended) = self.running.join_next_with_id() => self.ended(ended.map(|(id, ())| id)),
                Some(ended) = self.chores.join_next() => {
                    match ended {
                        Ok(n) => drop(self.busy.remove(&n)),
                        // Which one it was is not known; all are looked at again.
                        Err(_) => self.busy.clear(),
                    }
                    self.is_stale = true;
                }
                () = self.batches.wake.notified() => self.is_stale = true,
                () = tokio::time::sleep_until(wake) => self.is_stale = true,
                slot = slots.acquire_spare(self.reserve), if has_work => self.launch(slot),
            }
        }
    }

    /// Finds out what there is to do.
    async fn look(&mut self) -> Result<(), StoreError> {
        self.is_stale = false;
        let now = self.state.environment.unix_time();
        if self.swept.is_none_or(|at| at.elapsed() >= SWEEP_TIME) {
            self.swept = Some(Instant::now());
            self.batches.on_disk(move |store| store.sweep(now)).await?;
        }
        self.collect_spool().await?;
        self.take_jobs().await?;
        let rows = self.batches.on_disk(|store| store.open_batches()).await?;
        self.show(&rows);
        self.open.retain(|n, _| rows.iter().any(|row| row.n == *n));
        for row in rows {
            if self.busy.contains(&row.n) {
                continue;
            }
            let ending = match row.status {
                Status::Validating => {
                    // One at a time: each is in memory as a whole.
                    if self.busy.is_empty() {
                        self.validate(row);
                    }
                    continue;
                }
                Status::Cancelling => Ending::Cancelled,
                Status::Finalizing => row.ending().unwrap_or(Ending::Completed),
                _ if row.is_done() => Ending::Completed,
                _ if now >= row.expires => Ending::Expired,
                _ => {
                    let new = || Open { batch: Arc::new(row.clone()), after: None, is_drained: false };
                    self.open.entry(row.n).or_insert_with(new);
                    continue;
                }
            };
            self.stop(row.n);
            self.finish(row, ending);
        }
        self.restart_lost_lines();
        Ok(())
    }

    /// Says in the metrics what there is to do.
    fn show(&self, rows: &[BatchRow]) {
        let statuses = [Status::Validating, Status::InProgress, Status::Finalizing, Status::Cancelling];
        let count = |status| rows.iter().filter(|row| row.status == status).count() as i64;
        let n_lines = rows.iter().map(|row| row.total - (row.n_good + row.n_bad)).sum();
        let batches = statuses.map(|status| (status.name(), count(status)));
        self.state.metrics.batches.show(&batches, n_lines, self.n_jobs);
    }

    /// A batch without lines that run or wait, and without all results, is taken from its beginning again: a
    /// task has been lost.
    fn restart_lost_lines(&mut self) {
        let active: HashSet<Owner> = self.queue.iter().map(Work::owner).collect();
        let is_active = |n: i64| {
            let owner = Owner::Batch(n);
            active.contains(&owner) || self.tasks.values().any(|(other, _)| *other == owner)
        };
        for (n, open) in &mut self.open {
            if open.is_drained && !is_active(*n) {
                (open.after, open.is_drained) = (None, false);
            }
        }
    }

    /// Takes in the jobs of the spool folder.
    async fn collect_spool(&self) -> Result<(), StoreError> {
        let state = Arc::clone(&self.state);
        self.batches.on_disk(move |store| collect_spool(&state, store)).await
    }

    /// Lets jobs wait for each other, then queues them before all else, those together that begin alike.
    async fn take_jobs(&mut self) -> Result<(), StoreError> {
        let mut jobs = self.batches.on_disk(|store| store.open_jobs()).await?;
        self.n_jobs = jobs.len();
        jobs.retain(|job| !self.jobs.contains(&job.ticket));
        if jobs.is_empty() {
            self.jobs_at = None;
            return Ok(());
        }
        let at = *self.jobs_at.get_or_insert_with(|| Instant::now() + self.batches.config.grace);
        if Instant::now() < at {
            return Ok(());
        }
        self.jobs_at = None;
        jobs.sort_by_cached_key(|job| {
            Endpoint::of(&job.endpoint).map(|endpoint| input::order_of(endpoint, &job.request)).ok()
        });
        self.jobs.extend(jobs.iter().map(|job| job.ticket.clone()));
        // Behind jobs that are queued already, before lines of batches.
        let at = self.queue.iter().take_while(|work| matches!(work, Work::Job(_))).count();
        let lines = self.queue.split_off(at);
        self.queue.extend(jobs.into_iter().map(Work::Job));
        self.queue.extend(lines);
        Ok(())
    }

    /// Takes the next lines of a batch; batches take turns.
    async fn refill(&mut self) -> Result<(), StoreError> {
        let next = |after: i64, open: &BTreeMap<i64, Open>| {
            let mut later = open.range(after + 1..);
            later.find(|(_, open)| !open.is_drained).map(|(n, _)| *n)
        };
        while let Some(n) = next(self.last, &self.open).or_else(|| next(0, &self.open)) {
            self.last = n;
            let Some(open) = self.open.get_mut(&n) else { return Ok(()) };
            let after = open.after;
            let lines = self.batches.on_disk(move |store| store.pending(n, after, CHUNK)).await?;
            open.is_drained = lines.len() < CHUNK;
            open.after = lines.last().map_or(after, |line| Some(line.rank));
            let batch = Arc::clone(&open.batch);
            self.queue.extend(lines.into_iter().map(|line| Work::Line(Arc::clone(&batch), line)));
            if !self.queue.is_empty() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn launch(&mut self, slot: Slot) {
        let Some(work) = self.queue.pop_front() else { return };
        let owner = work.owner();
        let runner = Runner { state: Arc::clone(&self.state), batches: Arc::clone(&self.batches) };
        let reserve = self.reserve;
        let handle = self.running.spawn(async move { runner.run(work, slot, reserve).await });
        self.tasks.insert(handle.id(), (owner, handle));
    }

    fn ended(&mut self, ended: Result<Id, tokio::task::JoinError>) {
        let id = ended.unwrap_or_else(|error| error.id());
        let Some((owner, _)) = self.tasks.remove(&id) else { return };
        match owner {
            Owner::Job(ticket) => {
                self.jobs.remove(&ticket);
                self.batches.job_ended.notify_waiters();
            }
            Owner::Batch(n) => {
                // The last line of a batch is followed by its end.
                let is_last = self.open.get(&n).is_some_and(|open| open.is_drained)
                    && !self.tasks.values().any(|(other, _)| *other == Owner::Batch(n));
                self.is_stale |= is_last;
            }
        }
    }

    /// Gives up what runs and waits for a batch.
    fn stop(&mut self, n: i64) {
        self.open.remove(&n);
        self.queue.retain(|work| work.owner() != Owner::Batch(n));
        for (_, handle) in self.tasks.values().filter(|(owner, _)| *owner == Owner::Batch(n)) {
            handle.abort();
        }
    }

    fn validate(&mut self, batch: BatchRow) {
        let n = batch.n;
        self.busy.insert(n);
        let (state, batches) = (Arc::clone(&self.state), Arc::clone(&self.batches));
        self.chores.spawn(async move {
            let now = state.environment.unix_time();
            let checked = batches.on_disk(move |store| {
                let result = check_input(&state, store, &batch)?;
                store.validated(n, result, now)
            });
            report(checked.await, n).await
        });
    }

    fn finish(&mut self, batch: BatchRow, ending: Ending) {
        let n = batch.n;
        self.busy.insert(n);
        let (state, batches) = (Arc::clone(&self.state), Arc::clone(&self.batches));
        self.chores.spawn(async move {
            let now = state.environment.unix_time();
            let finished = batches.on_disk(move |store| {
                store.finish_batch(&batch, ending, now)?;
                tracing::info!(batch = %batch.id, ending = ?ending, "a batch ended");
                Ok(())
            });
            report(finished.await, n).await
        });
    }
}

/// Says what went wrong. It is tried again, but not at once.
async fn report(result: Result<(), StoreError>, n: i64) -> i64 {
    if let Err(error) = result {
        tracing::error!(%error, "batches: the disk failed");
        tokio::time::sleep(LOOK_TIME).await;
    }
    n
}

/// Reads and checks the file of a batch.
fn check_input(
    state: &State,
    store: &Store,
    batch: &BatchRow,
) -> Result<Result<Vec<input::Line>, Vec<LineError>>, StoreError> {
    let failed = |code: &str, message: String| {
        Ok(Err(vec![LineError { code: code.to_owned(), message, param: None, line: None }]))
    };
    let Ok(endpoint) = Endpoint::of(&batch.endpoint) else {
        return failed("invalid_endpoint", format!("there is no route {}", batch.endpoint));
    };
    let mut bytes = Vec::new();
    let mut file = store.open_file(&batch.input)?;
    file.read_to_end(&mut bytes).map_err(|source| StoreError::Io {
        action: "read the file",
        path: batch.input.clone().into(),
        source,
    })?;
    let limits = &state.config.limits;
    let lines = state.batches.as_ref().map_or(0, |batches| batches.config.lines);
    let limits = InputLimits { lines, line_bytes: limits.body_bytes, json_depth: limits.json_depth };
    let allowed: Option<Vec<String>> =
        batch.models.as_ref().map(|models| serde_json::from_str(models).unwrap_or_default());
    let chat: HashSet<String> = state.chat_models().into_iter().map(|(id, ..)| id).collect();
    let has_model = |model: &str| {
        let is_there = chat.contains(model) || state.embedders.contains_key(model);
        is_there && allowed.as_ref().is_none_or(|allowed| allowed.iter().any(|other| other == model))
    };
    Ok(input::read(&bytes, endpoint, &limits, &has_model))
}

/// Takes in the jobs of the spool folder. Those that cannot be read are put aside, where their owner finds
/// them.
fn collect_spool(state: &State, store: &Store) -> Result<(), StoreError> {
    let folder = store.spool();
    let io = |action, path: &std::path::Path| {
        let path = path.to_owned();
        move |source| StoreError::Io { action, path, source }
    };
    for entry in std::fs::read_dir(&folder).map_err(io("read the folder", &folder))?.flatten() {
        let name = entry.file_name();
        let Some(ticket) = name.to_str().and_then(|name| name.strip_suffix(spool::ENDING)) else { continue };
        if breakers_files::is_temporary(entry.path()) {
            continue;
        }
        let job = match read_job(state, &entry.path(), ticket) {
            Ok(job) => job,
            Err(message) => {
                tracing::warn!(file = %entry.path().display(), message, "a job in the spool folder is refused");
                let aside = entry.path().with_extension("refused");
                std::fs::rename(entry.path(), &aside).map_err(io("put aside", &entry.path()))?;
                continue;
            }
        };
        match store.add_job(&job) {
            Ok(_) => {}
            // It stays until there is room.
            Err(StoreError::Refused(error)) if error.retry_after.is_some() => return Ok(()),
            Err(StoreError::Refused(error)) => {
                tracing::warn!(ticket, message = error.message, "a job in the spool folder is refused");
                let aside = entry.path().with_extension("refused");
                std::fs::rename(entry.path(), &aside).map_err(io("put aside", &entry.path()))?;
                continue;
            }
            Err(error) => return Err(error),
        }
        // Only now: it is in the database.
        std::fs::remove_file(entry.path()).map_err(io("remove", &entry.path()))?;
    }
    Ok(())
}

fn read_job(state: &State, path: &std::path::Path, ticket: &str) -> Result<JobRow, String> {
    if !spool::is_ticket(ticket) {
        return Err("its name is no ticket".to_owned());
    }
    let limit = state.config.limits.body_bytes as u64;
    let file = breakers_files::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > limit {
        return Err(format!("it has more than {limit} bytes"));
    }
    let job: spool::JobDocument = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if job.ticket != ticket {
        return Err("its name is not its ticket".to_owned());
    }
    let endpoint = Endpoint::of(&job.endpoint).map_err(|error| error.message)?;
    // What is wrong with the request is its answer, as it would be by HTTP.
    let checked = Parsed::read(state, endpoint, job.body.get().as_bytes());
    let answer = checked.err().map(|error| (error.status.as_u16(), error.to_json()));
    Ok(JobRow {
        ticket: job.ticket,
        tenant: None,
        endpoint: job.endpoint,
        request: job.body.get().to_owned(),
        created: state.environment.unix_time(),
        answer,
    })
}

/// Runs one line or job to its result.
struct Runner {
    state: Arc<State>,
    batches: Arc<Batches>,
}

impl Runner {
    async fn run(&self, work: Work, slot: Slot, reserve: usize) {
        let (endpoint, origin, tenant, body) = match &work {
            Work::Line(batch, line) => {
                let origin = Origin::line(&batch.id, line.line, batch.created);
                let (input, start, length) = (batch.input.clone(), line.start, line.length);
                let read = self.batches.on_disk(move |store| read_line(store, &input, start, length)).await;
                let body = match read {
                    Ok(body) => body,
                    Err(error) => {
                        // Its batch finds out that it has no result, and takes it again.
                        tracing::error!(%error, "batches: the disk failed");
                        return tokio::time::sleep(LOOK_TIME).await;
                    }
                };
                (&batch.endpoint, origin, &*batch.tenant, body)
            }
            Work::Job(job) => {
                let origin = Origin::job(&job.ticket, job.created);
                let tenant = job.tenant.as_deref().unwrap_or_default();
                (&job.endpoint, origin, tenant, job.request.clone().into_bytes())
            }
        };
        let answer = match Endpoint::of(endpoint) {
            Ok(endpoint) => self.answer(endpoint, &body, &origin, tenant, slot, reserve).await,
            Err(error) => Err(error),
        };
        let (status, body, usage) = match answer {
            Ok((body, usage)) => (200, body, usage),
            Err(error) => (error.status.as_u16(), error.to_json(), Usage::default()),
        };
        let body = Arc::new(body);
        let mut pause = Duration::from_millis(100);
        loop {
            let (body, now) = (Arc::clone(&body), self.state.environment.unix_time());
            let written = match &work {
                Work::Line(batch, line) => {
                    let (n, line) = (batch.n, line.line);
                    self.batches.on_disk(move |store| store.end_line(n, line, status, &body, &usage)).await
                }
                Work::Job(job) => {
                    let ticket = job.ticket.clone();
                    self.batches.on_disk(move |store| store.end_job(&ticket, status, &body, now)).await
                }
            };
            let Err(error) = written else {
                return self.state.metrics.batches.end(matches!(work, Work::Line(..)), status < 400);
            };
            // The answer is kept until there is room for it.
            tracing::error!(%error, "batches: a result could not be written");
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// Asks the model, again if it fails or is busy.
    async fn answer(
        &self,
        endpoint: Endpoint,
        body: &[u8],
        origin: &Origin,
        tenant: &str,
        slot: Slot,
        reserve: usize,
    ) -> Result<(String, Usage), ApiError> {
        let mut slot = Some(slot);
        let mut pause = Duration::from_millis(200);
        let mut n_failures = 0;
        loop {
            let slot = match slot.take() {
                Some(slot) => slot,
                None => self.state.slots.acquire_spare(reserve).await,
            };
            let error = match endpoint::answer(&self.state, endpoint, body, origin, tenant, slot).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let is_busy = matches!(error.status.as_u16(), 429 | 503);
            n_failures += u32::from(!is_busy);
            let may_heal = is_busy || error.status.is_server_error() || error.status.as_u16() == 408;
            if !may_heal || error.is_final || n_failures >= self.batches.config.attempts {
                return Err(error);
            }
            self.state.metrics.batches.retry();
            tokio::time::sleep(error.retry_after.unwrap_or(pause).min(LONGEST_PAUSE)).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }
}

/// The body of a line's request.
fn read_line(store: &Store, input: &str, start: u64, length: u64) -> Result<Vec<u8>, StoreError> {
    let mut file = store.open_file(input)?;
    let mut bytes = Vec::new();
    let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.take(length).read_to_end(&mut bytes));
    match read {
        Ok(n) if n as u64 == length => Ok(bytes),
        read => {
            let source = read.err().unwrap_or_else(|| std::io::ErrorKind::UnexpectedEof.into());
            Err(StoreError::Io { action: "read the file", path: input.into(), source })
        }
    }
}
