//! The driver, which owns the model and runs passes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use breakers_core::{
    CallError, Constraint, FinishReason, LanguageModel, ModelLoad, Priority, PromptProgress, SequenceId,
    TokenId, Usage, Vocabulary,
};

use super::prefixes::{Holder, Prefixes, Start, WORTH_WAITING, start_of};
use super::rows::RowBudget;
use super::saved::PrefixFiles;
use crate::predicted::PredictedDrafter;
use crate::{AdaptiveLength, Batch, Config, Decoding, Drafter, Error, Result, TextId, TokenScore};

/// Names a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Ticket(pub(super) u64);

/// A request that is ready to run.
pub(super) struct Job {
    /// Whose it is: texts of one tenant never begin with what another one's hold.
    pub(super) tenant: Arc<str>,
    pub(super) priority: Priority,
    /// Others that were admitted before it, though they came later.
    pub(super) n_overtaken: usize,
    pub(super) prompt: Vec<TokenId>,
    pub(super) config: Config,
    pub(super) stop: Vec<String>,
    pub(super) constraint: Option<Box<dyn Constraint>>,
    /// What the answer will probably be.
    pub(super) prediction: Option<Vec<TokenId>>,
    /// Whether the text spells control tokens.
    pub(super) has_controls: bool,
    pub(super) vocabulary: Arc<dyn Vocabulary>,
}

/// A piece of news about a request.
pub(super) struct Event {
    pub(super) tokens: Vec<TokenId>,
    pub(super) scores: Vec<TokenScore>,
    pub(super) text: String,
    pub(super) usage: Usage,
    /// How far the prompt has been read, as long as there is nothing else to tell.
    pub(super) progress: Option<PromptProgress>,
    pub(super) end: Option<Result<FinishReason, CallError>>,
}

impl Event {
    fn failed(error: CallError) -> Self {
        Self { end: Some(Err(error)), ..Self::nothing() }
    }

    /// A request still waits, or its prompt is being read.
    pub(super) fn progress(progress: PromptProgress) -> Self {
        Self { progress: Some(progress), ..Self::nothing() }
    }

    fn nothing() -> Self {
        let (tokens, scores, text) = (Vec::new(), Vec::new(), String::new());
        Self { tokens, scores, text, usage: Usage::default(), progress: None, end: None }
    }
}

/// The results of one pass.
#[derive(Default)]
pub(super) struct Done {
    pub(super) events: Vec<(Ticket, Event)>,
    /// Requests that have to wait: the model has no room for them at present, or another text is reading
    /// what they begin with.
    pub(super) refused: Vec<(Ticket, Job)>,
}

type MakeDrafter<D> = Box<dyn FnMut() -> Result<D> + Send>;

/// A running text, and who waits for it.
struct Owner {
    ticket: Ticket,
    text: TextId,
    tenant: Arc<str>,
    priority: Priority,
    /// Others that were admitted while it was paused.
    n_overtaken: usize,
}

/// A text without a sequence, and who waits for it.
struct Paused<D> {
    ticket: Ticket,
    tenant: Arc<str>,
    priority: Priority,
    n_overtaken: usize,
    /// How many texts had left for good when it paused.
    n_left: u64,
    decoding: Decoding,
    drafter: PredictedDrafter<D>,
}

/// What a pass may take.
#[derive(Clone, Copy, Default)]
pub(super) struct Limits {
    /// Texts that run at a time.
    pub(super) max_texts: usize,
    pub(super) max_rows: usize,
    /// How long it may take while texts are being written.
    pub(super) max_pass: Option<Duration>,
    /// Bytes up to which sequences of ended texts are kept, running ones included.
    pub(super) cache_bytes: usize,
    /// Bytes that all sequences may take.
    pub(super) max_bytes: Option<usize>,
}

/// Texts that are let by while a text that nobody waits for does not run.
const PATIENCE: usize = 32;
/// Tokens of which the bytes are counted to know what one takes.
const ENOUGH: usize = 256;

/// The model and the running texts.
pub(super) struct Driver<M, D> {
    model: M,
    batch: Batch<PredictedDrafter<D>>,
    owners: Vec<Owner>,
    prefixes: Prefixes,
    /// Beginnings of texts that outlive the program.
    files: Option<PrefixFiles>,
    budget: RowBudget,
    limits: Limits,
    /// Texts that have begun and left the batch to others.
    paused: Vec<Paused<D>>,
    /// Texts that have left for good.
    n_left: u64,
    /// What a token takes; 0 as long as that is not known.
    bytes_per_token: f64,
    /// What is only counted.
    counts: ModelLoad,
    make_drafter: MakeDrafter<D>,
    /// Drafters of texts that have ended.
    idle: Vec<PredictedDrafter<D>>,
    policy: AdaptiveLength,
}

impl<M: LanguageModel, D: Drafter> Driver<M, D> {
    pub(super) fn new(model: M, make_drafter: MakeDrafter<D>) -> Self {
        let (batch, owners, policy) = (Batch::new(1), Vec::new(), AdaptiveLength::new());
        let (prefixes, budget, idle) = (Prefixes::default(), RowBudget::new(), Vec::new());
        let (limits, paused, bytes_per_token) = (Limits::default(), Vec::new(), 0.0);
        Self {
            model,
            batch,
            owners,
            prefixes,
            files: None,
            budget,
            limits,
            paused,
            n_left: 0,
            bytes_per_token,
            counts: ModelLoad::default(),
            make_drafter,
            idle,
            policy,
        }
    }

    /// The same model with other drafters; running texts are dropped.
    pub(super) fn with_drafter<E: Drafter>(mut self, make_drafter: MakeDrafter<E>) -> Driver<M, E> {
        let owners = std::mem::take(&mut self.owners);
        owners.into_iter().for_each(|owner| self.close(owner.text));
        self.paused.clear();
        self.prefixes.clear(&mut self.model);
        Driver { files: self.files, ..Driver::new(self.model, make_drafter) }
    }

    pub(super) fn model(&self) -> &M {
        &self.model
    }

    /// The same with beginnings of texts in files.
    pub(super) fn with_files(self, files: PrefixFiles) -> Self {
        Self { files: Some(files), ..self }
    }

    /// What goes on, and what has.
    pub(super) fn load(&self) -> ModelLoad {
        let mut load = self.counts;
        let goes_on = self.batch.texts().filter(|(_, text)| text.finish().is_none());
        (load.n_running, load.n_pausing) = (goes_on.count(), self.paused.len());
        (load.n_kept, load.n_evicted) = self.prefixes.counts();
        (load.held_bytes, load.max_bytes) = (self.model.held_bytes(), self.limits.max_bytes);
        (load.n_saved, load.n_restored) = self.files.as_ref().map_or((0, 0), PrefixFiles::counts);
        load
    }

    /// Forgets a request; nothing happens if it has ended.
    pub(super) fn drop_text(&mut self, ticket: Ticket) {
        if let Some(at) = self.owners.iter().position(|owner| owner.ticket == ticket) {
            let owner = self.owners.remove(at);
            self.end(owner);
        } else if let Some(at) = self.paused.iter().position(|paused| paused.ticket == ticket) {
            // It has no sequence.
            self.idle.push(self.paused.remove(at).drafter);
        }
    }

    /// Runs one pass. Of those that wait, in the order in which they came, some are admitted to it.
    pub(super) fn step(&mut self, waiting: Vec<(Ticket, Job)>, limits: Limits) -> Done {
        let mut done = Done::default();
        self.limits = limits;
        self.resume(&mut done);
        self.admit(waiting, &mut done);
        let Limits { max_rows, max_pass, .. } = limits;
        let is_heard = self.batch.texts().any(|(_, text)| text.finish().is_none() && !text.is_reading());
        self.batch.set_max_rows(self.budget.rows(max_rows, max_pass, is_heard));
        let begun = Instant::now();
        let passed = self.batch.pass(&mut self.model);
        self.counts.n_passes += u64::from(self.batch.n_rows() > 0);
        self.counts.n_rows += self.batch.n_rows() as u64;
        if is_heard {
            self.budget.note(self.batch.n_rows(), begun.elapsed(), max_pass, max_rows);
        }
        match passed {
            Ok(progress) => {
                // A text with a limit of zero tokens ends before any pass.
                let idle = self.ended_without_pass(progress.iter().map(|progress| progress.text).collect());
                let progress = progress.into_iter().map(|progress| (progress.text, progress.n_tokens));
                for (text, n_tokens) in progress.chain(idle) {
                    self.report(text, n_tokens, &mut done);
                }
            }
            Err(error) => {
                // The same for all.
                let error = CallError::from(error);
                for owner in std::mem::take(&mut self.owners) {
                    self.close(owner.text);
                    done.events.push((owner.ticket, Event::failed(error.clone())));
                }
            }
        }
        self.relieve();
        self.shrink();
        for Paused { ticket, decoding, .. } in &self.paused {
            let n_prompt = decoding.tokens().len() - decoding.output().len();
            let progress = PromptProgress::new(n_prompt - decoding.n_unread(), n_prompt);
            done.events.push((*ticket, Event::progress(progress)));
        }
        done
    }

    /// Admits what waits, as far as there is room: who came first is admitted first, but what nobody waits
    /// for lets a number of others by.
    fn admit(&mut self, waiting: Vec<(Ticket, Job)>, done: &mut Done) {
        let is_patient =
            |(_, job): &(Ticket, Job)| job.priority == Priority::Background && job.n_overtaken < PATIENCE;
        let (patient, first): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_patient);
        let (mut is_full, mut n_overtaking) = (false, 0);
        for (ticket, job) in first.into_iter().chain(patient) {
            let has_room = !is_full && self.has_room(job.priority, job.prompt.len());
            if !has_room {
                is_full = true;
                done.refused.push((ticket, job));
                continue;
            }
            let start = self.start(&job.tenant, &job.prompt);
            if start == Start::Soon {
                done.refused.push((ticket, job));
                continue;
            }
            match self.open(start) {
                // It waits for another text to end.
                Err(_) if !self.batch.is_empty() => {
                    is_full = true;
                    done.refused.push((ticket, job));
                }
                Err(error) => done.events.push((ticket, Event::failed(error.into()))),
                Ok(sequence) => {
                    // What has let enough others by is not interrupted for more of them.
                    let is_urgent = job.n_overtaken >= PATIENCE;
                    let priority = if is_urgent { Priority::Normal } else { job.priority };
                    let (tenant, is_new) = (job.tenant.clone(), job.priority == Priority::Normal);
                    match self.begin(sequence, job) {
                        Ok(text) => {
                            n_overtaking += usize::from(is_new);
                            self.owners.push(Owner { ticket, text, tenant, priority, n_overtaken: 0 });
                        }
                        Err(error) => {
                            self.model.close(sequence);
                            done.events.push((ticket, Event::failed(error.into())));
                        }
                    }
                }
            }
        }
        done.refused.sort_unstable_by_key(|(ticket, _)| *ticket);
        for (_, job) in done.refused.iter_mut().filter(|(_, job)| job.priority == Priority::Background) {
            job.n_overtaken += n_overtaking;
        }
        for paused in &mut self.paused {
            paused.n_overtaken += n_overtaking;
            if paused.n_overtaken >= PATIENCE {
                paused.priority = Priority::Normal;
            }
        }
    }

    /// Whether another text can run that begins with so many tokens. If somebody waits for it, what nobody
    /// waits for makes room.
    fn has_room(&mut self, priority: Priority, n_tokens: usize) -> bool {
        let can_wait = |owner: &Owner| owner.priority == Priority::Background;
        let is_urgent = priority == Priority::Normal;
        while self.batch.len() >= self.limits.max_texts {
            if !is_urgent || !self.pause(can_wait) {
                return false;
            }
        }
        let Some(limit) = self.limits.max_bytes else { return true };
        loop {
            // What they will hold when all have been read.
            let unread = self.batch.texts().map(|(_, text)| text.tokens().len() - text.held().len());
            let wanted = self.bytes_per_token * (unread.sum::<usize>() + n_tokens) as f64;
            if self.model.held_bytes().saturating_add(wanted as usize) <= limit {
                return true;
            }
            let has_given = self.prefixes.evict(&mut self.model) || (is_urgent && self.pause(can_wait));
            if !has_given {
                return self.batch.is_empty();
            }
        }
    }

    /// Takes the latest of certain texts out of the batch; it goes on when there is room. False if there is
    /// none. Only where the model shares sequences is it the same text afterwards.
    fn pause(&mut self, is_one: impl Fn(&Owner) -> bool) -> bool {
        let can_pause = |owner: &&Owner| {
            let text = self.batch.get(owner.text).filter(|text| text.finish().is_none());
            text.is_some_and(|text| self.model.is_shareable(text.sequence())) && is_one(owner)
        };
        let latest = self.owners.iter().filter(can_pause).max_by_key(|owner| owner.ticket);
        let Some(ticket) = latest.map(|owner| owner.ticket) else { return false };
        let Some(at) = self.owners.iter().position(|owner| owner.ticket == ticket) else { return false };
        let Owner { text, tenant, priority, n_overtaken, .. } = self.owners.remove(at);
        let Some((decoding, drafter)) = self.batch.leave(text) else { return false };
        self.keep(&tenant, &decoding);
        self.counts.n_pauses += 1;
        let n_left = self.n_left;
        self.paused.push(Paused { ticket, tenant, priority, n_overtaken, n_left, decoding, drafter });
        true
    }

    /// Lets paused texts go on: those first that somebody waits for, of them the first first. What the others
    /// hold only grows until one of them leaves, so that there is no room for a text before that.
    fn resume(&mut self, done: &mut Done) {
        let first = |paused: &&Paused<D>| (paused.priority == Priority::Background, paused.ticket);
        while let Some(next) = self.paused.iter().min_by_key(first) {
            if next.n_left == self.n_left && !self.batch.is_empty() {
                break;
            }
            let (ticket, priority, n_tokens) = (next.ticket, next.priority, next.decoding.tokens().len());
            if !self.has_room(priority, n_tokens) {
                break;
            }
            let Some(at) = self.paused.iter().position(|paused| paused.ticket == ticket) else { break };
            let Paused { tenant, n_overtaken, n_left, mut decoding, drafter, .. } = self.paused.remove(at);
            let start = match self.start(&tenant, decoding.tokens()) {
                Start::Soon => Start::Empty,
                start => start,
            };
            let moved = self.open(start).and_then(|sequence| {
                let moved = decoding.move_to(&self.model, sequence);
                moved.inspect_err(|_| self.model.close(sequence)).map_err(|error| match error {
                    Error::Target(error) => error,
                    error => breakers_core::Error::Engine(error.into()),
                })
            });
            match moved {
                Ok(()) => {
                    let text = self.batch.join(decoding, drafter);
                    self.owners.push(Owner { ticket, text, tenant, priority, n_overtaken });
                }
                Err(_) if !self.batch.is_empty() => {
                    self.paused.push(Paused {
                        ticket,
                        tenant,
                        priority,
                        n_overtaken,
                        n_left,
                        decoding,
                        drafter,
                    });
                    break;
                }
                Err(error) => {
                    self.idle.push(drafter);
                    done.events.push((ticket, Event::failed(error.into())));
                }
            }
        }
    }

    /// Makes sequences fit into their bytes: those that are only kept go, then the latest texts pause, those
    /// first that nobody waits for. One text runs, whatever it takes.
    fn relieve(&mut self) {
        let n_tokens: usize = self.batch.texts().map(|(_, text)| text.held().len()).sum::<usize>()
            + self.prefixes.holders().map(|holder| holder.tokens.len()).sum::<usize>();
        // Of few tokens, pages that are begun would count for too much.
        if n_tokens >= ENOUGH {
            self.bytes_per_token = self.model.held_bytes() as f64 / n_tokens as f64;
        }
        let Some(limit) = self.limits.max_bytes else { return };
        while self.model.held_bytes() > limit {
            let goes_on = self.batch.texts().filter(|(_, text)| text.finish().is_none()).count();
            if self.prefixes.evict(&mut self.model) {
                continue;
            }
            let has_paused = goes_on > 1
                && (self.pause(|owner| owner.priority == Priority::Background) || self.pause(|_| true));
            if !has_paused {
                break;
            }
        }
    }

    /// What a text can begin with.
    fn start(&self, tenant: &str, tokens: &[TokenId]) -> Start {
        if self.limits.cache_bytes == 0 {
            return Start::Empty;
        }
        let running = self.owners.iter().filter_map(|owner| {
            let text = self.batch.get(owner.text)?;
            let is_shareable = self.model.is_shareable(text.sequence());
            let soon = if text.is_reading() { text.tokens() } else { text.held() };
            is_shareable.then(|| Holder {
                tenant: &owner.tenant,
                sequence: text.sequence(),
                tokens: text.held(),
                soon,
            })
        });
        let start = start_of(tenant, tokens, self.prefixes.holders().chain(running));
        let now = match start {
            Start::From(_, len) => len,
            Start::Empty => 0,
            start => return start,
        };
        match self.files.as_ref().and_then(|files| files.best(tenant, tokens)) {
            Some((file, len)) if len >= now + WORTH_WAITING => Start::Saved(file, len),
            _ => start,
        }
    }

    /// Opens a sequence for a new text. If there is no room, those that are only kept make some.
    fn open(&mut self, start: Start) -> breakers_core::Result<SequenceId> {
        match (start, &mut self.files) {
            (Start::From(source, len), _) => {
                self.prefixes.touch(source);
                if let Ok(copy) = self.model.fork(source) {
                    if self.model.truncate(copy, len).is_ok() {
                        return Ok(copy);
                    }
                    // A cache that has evicted tokens cannot go back to any length.
                    self.model.close(copy);
                }
            }
            (Start::Saved(file, len), Some(files)) => {
                if let Some(sequence) = files.restore(&mut self.model, &file, len) {
                    return Ok(sequence);
                }
            }
            _ => {}
        }
        loop {
            match self.model.open() {
                Err(_) if self.prefixes.evict(&mut self.model) => {}
                result => return result,
            }
        }
    }

    fn begin(&mut self, sequence: breakers_core::SequenceId, job: Job) -> Result<TextId> {
        let text = Decoding::new(&self.model, sequence, &job.prompt, &job.config)?;
        let mut text = text.with_policy(self.policy.clone()).with_text(job.vocabulary, &job.stop);
        if job.has_controls {
            text = text.with_controls();
        }
        if let Some(constraint) = job.constraint {
            text = text.with_constraint(constraint);
        }
        let mut drafter = match self.idle.pop() {
            Some(drafter) => drafter,
            None => PredictedDrafter::new((self.make_drafter)()?),
        };
        drafter.predict(job.prediction);
        Ok(self.batch.join(text, drafter))
    }

    fn ended_without_pass(&self, passed: Vec<TextId>) -> Vec<(TextId, Result<usize>)> {
        let ended = self.batch.texts().filter(|(id, text)| text.finish().is_some() && !passed.contains(id));
        ended.map(|(id, _)| (id, Ok(0))).collect()
    }

    /// Reports news of a text, and removes it if it has ended.
    fn report(&mut self, text: TextId, n_tokens: Result<usize>, done: &mut Done) {
        let Some(at) = self.owners.iter().position(|owner| owner.text == text) else { return };
        let ticket = self.owners[at].ticket;
        let predicted = self.batch.drafter(text).map(PredictedDrafter::counts).unwrap_or_default();
        let Some(decoding) = self.batch.get_mut(text) else { return };
        let mut event = match n_tokens {
            Err(error) => Event::failed(error.into()),
            Ok(n) => {
                let output = decoding.output();
                let tokens = output[output.len() - n..].to_vec();
                let scores = decoding.scores();
                let scores = scores[scores.len() - n.min(scores.len())..].to_vec();
                let end = decoding.finish().map(Ok);
                let text = decoding.take_text();
                let n_unread = decoding.n_unread();
                let n_prompt = decoding.tokens().len() - decoding.output().len();
                let progress =
                    (n == 0 && n_unread > 0).then(|| PromptProgress::new(n_prompt - n_unread, n_prompt));
                Event { tokens, scores, text, usage: Usage::default(), progress, end }
            }
        };
        event.usage = decoding.usage();
        (event.usage.predicted, event.usage.mispredicted) = (predicted.n_accepted, predicted.n_rejected);
        let (has_ended, is_news) =
            (event.end.is_some(), !event.tokens.is_empty() || event.progress.is_some());
        if has_ended {
            self.policy = decoding.policy().clone();
            let owner = self.owners.remove(at);
            match &event.end {
                Some(Err(_)) => self.close(text),
                _ => self.end(owner),
            }
        }
        if has_ended || is_news {
            done.events.push((ticket, event));
        }
    }

    /// Ends a text. Its sequence is kept for others with the same beginning, where that is wanted and the
    /// model allows it.
    fn end(&mut self, owner: Owner) {
        let Some((decoding, drafter)) = self.batch.leave(owner.text) else { return };
        self.n_left += 1;
        self.idle.push(drafter);
        self.keep(&owner.tenant, &decoding);
    }

    /// Keeps the sequence of a text that has left, or closes it.
    fn keep(&mut self, tenant: &Arc<str>, decoding: &Decoding) {
        let (sequence, tokens) = (decoding.sequence(), decoding.held());
        let is_final = self.model.committed(sequence).is_ok_and(|committed| committed == tokens.len());
        // What is not counted would grow without end.
        let is_counted = self.model.held_bytes() > 0;
        if self.limits.cache_bytes > 0 && is_final && is_counted && self.model.is_shareable(sequence) {
            if let Some(files) = &self.files {
                files.offer(&self.model, tenant, sequence, tokens);
            }
            self.prefixes.keep(&mut self.model, tenant, sequence, tokens.to_vec());
            self.shrink();
        } else {
            self.model.close(sequence);
        }
    }

    /// Gives up kept sequences until all fit.
    fn shrink(&mut self) {
        while self.model.held_bytes() > self.limits.cache_bytes && self.prefixes.evict(&mut self.model) {}
    }

    /// Ends a text and its sequence.
    fn close(&mut self, text: TextId) {
        if let Some((decoding, drafter)) = self.batch.leave(text) {
            self.n_left += 1;
            self.model.close(decoding.sequence());
            self.idle.push(drafter);
        }
    }
}

impl From<Error> for CallError {
    /// Errors that a caller can act on keep a kind of their own; the rest become [`CallError::Failed`].
    fn from(error: Error) -> Self {
        match error {
            Error::Target(error) => error.into(),
            Error::Sampling(error) => error.into(),
            Error::Constraint(error) => error.into(),
            Error::EmptyPrompt => CallError::bad_request("prompt", error.to_string()),
            Error::TooFewTokens { .. } => CallError::bad_request("max_tokens", error.to_string()),
            error => CallError::failed(error),
        }
    }
}

#[cfg(test)]
mod tests;
