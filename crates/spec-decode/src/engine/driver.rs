//! The driver, which owns the model and runs passes.

use std::sync::Arc;

use breakers_core::{CallError, Constraint, FinishReason, LanguageModel, TokenId, Usage, Vocabulary};

use crate::{AdaptiveLength, Batch, Config, Decoding, Drafter, Error, Result, TextId, TokenScore};

/// Names a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ticket(pub(super) u64);

/// A request that is ready to run.
pub(super) struct Job {
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
    /// Requests for which the model has no room at present.
    pub(super) refused: Vec<(Ticket, Job)>,
}

type MakeDrafter<D> = Box<dyn FnMut() -> Result<D> + Send>;

/// The model and the running texts.
pub(super) struct Driver<M, D> {
    model: M,
    batch: Batch<D>,
    owners: Vec<(Ticket, TextId)>,
    make_drafter: MakeDrafter<D>,
    /// Drafters of texts that have ended.
    idle: Vec<D>,
    policy: AdaptiveLength,
}

impl<M: LanguageModel, D: Drafter> Driver<M, D> {
    pub(super) fn new(model: M, make_drafter: MakeDrafter<D>) -> Self {
        let (batch, owners, policy) = (Batch::new(1), Vec::new(), AdaptiveLength::new());
        Self { model, batch, owners, make_drafter, idle: Vec::new(), policy }
    }

    /// The same model with other drafters; running texts are dropped.
    pub(super) fn with_drafter<E: Drafter>(mut self, make_drafter: MakeDrafter<E>) -> Driver<M, E> {
        let owners = std::mem::take(&mut self.owners);
        owners.into_iter().for_each(|(_, text)| self.close(text));
        Driver::new(self.model, make_drafter)
    }

    /// Number of running texts.
    pub(super) fn len(&self) -> usize {
        self.batch.len()
    }

    /// Forgets a request; nothing happens if it has ended.
    pub(super) fn drop_text(&mut self, ticket: Ticket) {
        if let Some(at) = self.owners.iter().position(|owner| owner.0 == ticket) {
            let (_, text) = self.owners.remove(at);
            self.close(text);
        }
    }

    /// Runs one pass, to which new texts are admitted.
    pub(super) fn step(&mut self, admitted: Vec<(Ticket, Job)>, max_rows: usize) -> Done {
        let mut done = Done::default();
        self.batch.set_max_rows(max_rows);
        let mut admitted = admitted.into_iter();
        while let Some((ticket, job)) = admitted.next() {
            match self.model.open() {
                // It waits for another text to end.
                Err(_) if !self.batch.is_empty() => {
                    done.refused.push((ticket, job));
                    done.refused.extend(admitted);
                    break;
                }
                Err(error) => done.events.push((ticket, Event::failed(error.into()))),
                Ok(sequence) => match self.begin(sequence, job) {
                    Ok(text) => self.owners.push((ticket, text)),
                    Err(error) => {
                        self.model.close(sequence);
                        done.events.push((ticket, Event::failed(error.into())));
                    }
                },
            }
        }
        match self.batch.pass(&mut self.model) {
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
                for (ticket, text) in std::mem::take(&mut self.owners) {
                    self.close(text);
                    done.events.push((ticket, Event::failed(error.clone())));
                }
            }
        }
        done
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
        let Some(&(ticket, _)) = self.owners.iter().find(|owner| owner.1 == text) else { return };
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
            self.owners.retain(|owner| owner.1 != text);
            self.close(text);
        }
        if has_ended || is_news {
            done.events.push((ticket, event));
        }
    }

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
