//! The driver, which owns the model and runs passes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use breakers_core::{
    CallError, Constraint, FinishReason, LanguageModel, SequenceId, TokenId, Usage, Vocabulary,
};

use super::prefixes::{Holder, Prefixes, Start, start_of};
use super::rows::RowBudget;
use crate::{AdaptiveLength, Batch, Config, Decoding, Drafter, Error, Result, TextId, TokenScore};

/// Names a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ticket(pub(super) u64);

/// A request that is ready to run.
pub(super) struct Job {
    /// Whose it is: texts of one tenant never begin with what another one's hold.
    pub(super) tenant: Arc<str>,
    pub(super) prompt: Vec<TokenId>,
    pub(super) config: Config,
    pub(super) stop: Vec<String>,
    pub(super) constraint: Option<Box<dyn Constraint>>,
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
    pub(super) end: Option<Result<FinishReason, CallError>>,
}

impl Event {
    fn failed(error: CallError) -> Self {
        let (tokens, scores, text) = (Vec::new(), Vec::new(), String::new());
        Self { tokens, scores, text, usage: Usage::default(), end: Some(Err(error)) }
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
}

/// What a pass may take.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_rows: usize,
    /// How long it may take while texts are being written.
    pub(super) max_pass: Option<Duration>,
    /// Bytes up to which sequences of ended texts are kept, running ones included.
    pub(super) cache_bytes: usize,
}

/// The model and the running texts.
pub(super) struct Driver<M, D> {
    model: M,
    batch: Batch<D>,
    owners: Vec<Owner>,
    prefixes: Prefixes,
    budget: RowBudget,
    /// Bytes up to which sequences of ended texts are kept, running ones included.
    cache_bytes: usize,
    make_drafter: MakeDrafter<D>,
    /// Drafters of texts that have ended.
    idle: Vec<D>,
    policy: AdaptiveLength,
}

impl<M: LanguageModel, D: Drafter> Driver<M, D> {
    pub(super) fn new(model: M, make_drafter: MakeDrafter<D>) -> Self {
        let (batch, owners, policy) = (Batch::new(1), Vec::new(), AdaptiveLength::new());
        let (prefixes, budget, idle) = (Prefixes::default(), RowBudget::new(), Vec::new());
        Self { model, batch, owners, prefixes, budget, cache_bytes: 0, make_drafter, idle, policy }
    }

    /// The same model with other drafters; running texts are dropped.
    pub(super) fn with_drafter<E: Drafter>(mut self, make_drafter: MakeDrafter<E>) -> Driver<M, E> {
        let owners = std::mem::take(&mut self.owners);
        owners.into_iter().for_each(|owner| self.close(owner.text));
        self.prefixes.clear(&mut self.model);
        Driver::new(self.model, make_drafter)
    }

    /// Number of running texts.
    pub(super) fn len(&self) -> usize {
        self.batch.len()
    }

    /// Forgets a request; nothing happens if it has ended.
    pub(super) fn drop_text(&mut self, ticket: Ticket) {
        if let Some(at) = self.owners.iter().position(|owner| owner.ticket == ticket) {
            let owner = self.owners.remove(at);
            self.end(owner);
        }
    }

    /// Runs one pass, to which new texts are admitted.
    pub(super) fn step(&mut self, admitted: Vec<(Ticket, Job)>, limits: Limits) -> Done {
        let mut done = Done::default();
        self.cache_bytes = limits.cache_bytes;
        let mut admitted = admitted.into_iter();
        while let Some((ticket, job)) = admitted.next() {
            let start = self.start(&job);
            if start == Start::Soon {
                done.refused.push((ticket, job));
                continue;
            }
            match self.open(start) {
                // It waits for another text to end.
                Err(_) if !self.batch.is_empty() => {
                    done.refused.push((ticket, job));
                    done.refused.extend(admitted);
                    break;
                }
                Err(error) => done.events.push((ticket, Event::failed(error.into()))),
                Ok(sequence) => {
                    let tenant = job.tenant.clone();
                    match self.begin(sequence, job) {
                        Ok(text) => self.owners.push(Owner { ticket, text, tenant }),
                        Err(error) => {
                            self.model.close(sequence);
                            done.events.push((ticket, Event::failed(error.into())));
                        }
                    }
                }
            }
        }
        let Limits { max_rows, max_pass, .. } = limits;
        let is_heard = self.batch.texts().any(|(_, text)| text.finish().is_none() && !text.is_in_prompt());
        self.batch.set_max_rows(self.budget.rows(max_rows, max_pass, is_heard));
        let begun = Instant::now();
        let passed = self.batch.pass(&mut self.model);
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
        self.shrink();
        done
    }

    /// What a request can begin with.
    fn start(&self, job: &Job) -> Start {
        if self.cache_bytes == 0 {
            return Start::Empty;
        }
        let running = self.owners.iter().filter_map(|owner| {
            let text = self.batch.get(owner.text)?;
            let is_shareable = self.model.is_shareable(text.sequence());
            let soon = if text.is_in_prompt() { text.tokens() } else { text.held() };
            is_shareable.then(|| Holder {
                tenant: &owner.tenant,
                sequence: text.sequence(),
                tokens: text.held(),
                soon,
            })
        });
        start_of(&job.tenant, &job.prompt, self.prefixes.holders().chain(running))
    }

    /// Opens a sequence for a new text. If there is no room, those that are only kept make some.
    fn open(&mut self, start: Start) -> breakers_core::Result<SequenceId> {
        if let Start::From(source, len) = start {
            self.prefixes.touch(source);
            if let Ok(copy) = self.model.fork(source) {
                if self.model.truncate(copy, len).is_ok() {
                    return Ok(copy);
                }
                // A cache that has evicted tokens cannot go back to any length.
                self.model.close(copy);
            }
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
        let drafter = match self.idle.pop() {
            Some(drafter) => drafter,
            None => (self.make_drafter)()?,
        };
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
        let Some(decoding) = self.batch.get_mut(text) else { return };
        let mut event = match n_tokens {
            Err(error) => Event::failed(error.into()),
            Ok(n) => {
                let output = decoding.output();
                let tokens = output[output.len() - n..].to_vec();
                let scores = decoding.scores();
                let scores = scores[scores.len() - n.min(scores.len())..].to_vec();
                let end = decoding.finish().map(Ok);
                Event { tokens, scores, text: decoding.take_text(), usage: Usage::default(), end }
            }
        };
        event.usage = decoding.usage();
        let (has_ended, is_news) = (event.end.is_some(), !event.tokens.is_empty());
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
        self.idle.push(drafter);
        let (sequence, tokens) = (decoding.sequence(), decoding.held());
        let is_final = self.model.committed(sequence).is_ok_and(|committed| committed == tokens.len());
        // What is not counted would grow without end.
        let is_counted = self.model.held_bytes() > 0;
        if self.cache_bytes > 0 && is_final && is_counted && self.model.is_shareable(sequence) {
            self.prefixes.keep(&mut self.model, &owner.tenant, sequence, tokens.to_vec());
            self.shrink();
        } else {
            self.model.close(sequence);
        }
    }

    /// Gives up kept sequences until all fit.
    fn shrink(&mut self) {
        while self.model.held_bytes() > self.cache_bytes && self.prefixes.evict(&mut self.model) {}
    }

    /// Ends a text and its sequence.
    fn close(&mut self, text: TextId) {
        if let Some((decoding, drafter)) = self.batch.leave(text) {
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
