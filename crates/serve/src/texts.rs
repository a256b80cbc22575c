//! Texts that run for requests: each waits for a slot, runs on a thread of its own and hands out its answer.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use breakers_core::{CallError, ChatReply, ChatRequest, Delta, FinishReason, Priority, Usage};
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, watch};

use crate::api_error::ApiError;
use crate::keys::Visit;
use crate::metrics::Stations;
use crate::request::Completion;
use crate::state::{Health, Hosted, Phase, Slot, Slots, State};

/// News of a text.
pub(crate) enum Event {
    /// A piece of a stream. The permit counts its bytes until they are handed on.
    Chunk(Bytes, OwnedSemaphorePermit),
    /// The text of this index has ended.
    End(usize, Result<ChatReply, ApiError>),
}

/// Writes the events of a text that is streamed.
pub(crate) trait Writer: Send {
    /// The events of a new piece of the answer; may be empty.
    fn piece(&mut self, delta: Delta) -> String;

    /// The last events of the text.
    fn end(&mut self, reply: &ChatReply) -> String;
}

/// The texts of a request. When this is dropped, they end.
pub(crate) struct Texts {
    events: mpsc::UnboundedReceiver<Event>,
    /// Closed when nobody reads the stream anymore.
    room: Arc<Semaphore>,
    /// Its receivers see that it is gone.
    _alive: watch::Sender<()>,
}

impl Drop for Texts {
    fn drop(&mut self) {
        // Wakes a thread that waits for room.
        self.room.close();
    }
}

impl Texts {
    /// The next news; `None` if all threads are gone.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    pub(crate) fn poll_next(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Event>> {
        self.events.poll_recv(context)
    }
}

/// Starts the texts of a request. `writer` makes the events of a stream; without it, only the ends of texts
/// are told.
///
/// # Errors
/// 429 if the queue is full.
pub(crate) fn start(
    state: &Arc<State>,
    hosted: &Arc<Hosted>,
    completion: &Completion,
    visit: Option<Arc<Visit>>,
    writer: Option<&(dyn Fn(usize) -> Box<dyn Writer> + Sync)>,
) -> Result<Texts, ApiError> {
    let n = completion.n_choices();
    state.slots.admit(n)?;
    let (sender, events) = mpsc::unbounded_channel();
    let (alive, watched) = watch::channel(());
    let bytes = state.config.limits.stream_bytes;
    let room = Room { free: Arc::new(Semaphore::new(bytes)), bytes };
    for index in 0..n {
        let (request, seed) = completion.choice(index);
        // Nothing that a client sends decides whose it is.
        let tenant = visit.as_ref().map_or("", |visit| visit.tenant()).to_owned();
        let text = Text {
            record: record_of(state, hosted, completion, index, &tenant),
            hosted: Arc::clone(hosted),
            request,
            seed,
            index,
            sender: sender.clone(),
            room: room.clone(),
            alive: watched.clone(),
            phase: state.phase.subscribe(),
            writer: writer.map(|writer| writer(index)),
            tenant,
            can_wait: false,
            visit: visit.clone(),
        };
        tokio::spawn(text.wait(Arc::clone(&state.slots)));
    }
    Ok(Texts { events, room: room.free, _alive: alive })
}

/// The record of a request's text. A request counts once, and so does a prompt, however many texts they have.
fn record_of(
    state: &Arc<State>,
    hosted: &Hosted,
    completion: &Completion,
    index: usize,
    tenant: &str,
) -> Record {
    let record = Record::accept(state, &hosted.name);
    #[cfg(feature = "registry")]
    let record = record.of(tenant, hosted.version.as_deref(), index == 0, index.is_multiple_of(completion.n));
    #[cfg(not(feature = "registry"))]
    let _ = (completion, index, tenant);
    record
}

/// Runs one text of a batch in a slot that it has already. If the future is dropped, the text ends.
#[cfg(feature = "batches")]
pub(crate) async fn run_in(
    slot: Slot,
    state: &Arc<State>,
    hosted: &Arc<Hosted>,
    completion: &Completion,
    index: usize,
    tenant: &str,
) -> Result<ChatReply, ApiError> {
    let (sender, events) = mpsc::unbounded_channel();
    let (alive, watched) = watch::channel(());
    let room = Room { free: Arc::new(Semaphore::new(0)), bytes: 0 };
    let mut texts = Texts { events, room: Arc::clone(&room.free), _alive: alive };
    let (request, seed) = completion.choice(index);
    state.slots.enter_queue();
    let text = Text {
        record: record_of(state, hosted, completion, index, tenant),
        hosted: Arc::clone(hosted),
        request,
        seed,
        index,
        sender,
        room,
        alive: watched,
        phase: state.phase.subscribe(),
        writer: None,
        tenant: tenant.to_owned(),
        can_wait: true,
        visit: None,
    };
    text.begin(slot);
    loop {
        match texts.next().await {
            Some(Event::End(_, result)) => return result,
            Some(Event::Chunk(..)) => {}
            None => return Err(ApiError::failed("an answer is missing")),
        }
    }
}

/// One text on its way.
struct Text {
    record: Record,
    hosted: Arc<Hosted>,
    request: Arc<ChatRequest>,
    seed: Option<u64>,
    index: usize,
    sender: mpsc::UnboundedSender<Event>,
    room: Room,
    alive: watch::Receiver<()>,
    phase: watch::Receiver<Phase>,
    writer: Option<Box<dyn Writer>>,
    tenant: String,
    /// Whether nobody waits for it.
    can_wait: bool,
    visit: Option<Arc<Visit>>,
}

impl Text {
    /// Waits for a slot and runs.
    async fn wait(mut self, slots: Arc<Slots>) {
        let slot = tokio::select! {
            slot = slots.acquire(self.request.priority) => slot,
            // The only news of this channel is that its sender is gone.
            _ = self.alive.changed() => return self.record.end("cancelled_waiting"),
            _ = self.phase.wait_for(|phase| *phase == Phase::Ending) => {
                let _ = self.sender.send(Event::End(self.index, Err(ApiError::stopping())));
                return self.record.end("cancelled_waiting");
            }
        };
        self.begin(slot);
    }

    /// Runs on a thread of its own.
    fn begin(mut self, slot: Slot) {
        self.record.start();
        tokio::task::spawn_blocking(move || {
            let _slot = slot;
            self.run();
        });
    }

    /// Whether the answer is still wanted.
    fn is_wanted(alive: &watch::Receiver<()>, phase: &watch::Receiver<Phase>) -> bool {
        alive.has_changed().is_ok() && *phase.borrow() != Phase::Ending
    }

    fn run(self) {
        let Self { mut record, hosted, request, seed, index, sender, room, alive, phase, .. } = self;
        let Self { mut writer, tenant, can_wait, visit, .. } = self;
        // Tells the reader if the model panics.
        let teller = Teller { sender, index, is_told: false };
        if !Self::is_wanted(&alive, &phase) {
            record.end("cancelled_waiting");
            return teller.tell(Err(ApiError::stopping()));
        }
        let mut request = Arc::unwrap_or_clone(request);
        request.seed = seed;
        if can_wait {
            request.priority = Priority::Background;
        }
        let result = hosted.model.chat_as(&tenant, &request, &mut |delta| {
            if !matches!(delta, Delta::Progress(_)) {
                record.piece();
            }
            if !Self::is_wanted(&alive, &phase) {
                return ControlFlow::Break(());
            }
            let Some(writer) = &mut writer else { return ControlFlow::Continue(()) };
            room.send(&teller.sender, writer.piece(delta))
        });
        if let Ok(reply) = &result {
            record.usage = reply.usage;
            if let Some(visit) = &visit {
                visit.charge(reply.usage.total());
            }
        }
        let outcome = match &result {
            Ok(reply) => match reply.finish {
                FinishReason::EndOfText | FinishReason::Stop => "stop",
                FinishReason::Length | FinishReason::ContextFull => "length",
                FinishReason::ToolCalls => "tool_calls",
                FinishReason::ContentFilter => "content_filter",
                _ if record.times.first.is_none() => "cancelled_prompt",
                _ => "cancelled",
            },
            Err(CallError::Failed(_)) => {
                hosted.set_health(Health::Bad);
                "failed"
            }
            Err(
                CallError::BadRequest { .. }
                | CallError::Unsupported { .. }
                | CallError::ContextTooLong { .. },
            ) => "refused",
            Err(_) => "failed",
        };
        // What is wrong with a request is for its client to know; it must not fill the server's log.
        if let (Err(error), "failed") = (&result, outcome) {
            tracing::warn!(model = %record.model, index, %error, "a text failed");
        }
        #[cfg(feature = "registry")]
        if let (Ok(reply), Some(shadow)) = (&result, &hosted.shadow) {
            shadow.ask(&record.state, &tenant, request, reply);
        }
        record.end(outcome);
        let result = match result {
            Ok(reply) if reply.finish == FinishReason::Cancelled => Err(ApiError::stopping()),
            Ok(reply) => {
                if hosted.health() == Health::Bad {
                    hosted.set_health(Health::Good);
                }
                if let Some(writer) = &mut writer {
                    let _ = room.send(&teller.sender, writer.end(&reply));
                }
                Ok(reply)
            }
            Err(error) => Err(error.into()),
        };
        teller.tell(result);
    }
}

/// The bytes of a stream that may wait for its client.
#[derive(Clone)]
struct Room {
    free: Arc<Semaphore>,
    bytes: usize,
}

impl Room {
    /// Sends a piece of a stream. If the client is slow, this waits until there is room.
    fn send(&self, sender: &mpsc::UnboundedSender<Event>, piece: String) -> ControlFlow<()> {
        if piece.is_empty() {
            return ControlFlow::Continue(());
        }
        // A piece that is larger than the room waits until all of it is free.
        let bytes = u32::try_from(piece.len().min(self.bytes)).unwrap_or(u32::MAX);
        let permit = match Arc::clone(&self.free).try_acquire_many_owned(bytes) {
            Ok(permit) => permit,
            Err(TryAcquireError::Closed) => return ControlFlow::Break(()),
            Err(TryAcquireError::NoPermits) => {
                match Handle::current().block_on(Arc::clone(&self.free).acquire_many_owned(bytes)) {
                    Ok(permit) => permit,
                    Err(_) => return ControlFlow::Break(()),
                }
            }
        };
        match sender.send(Event::Chunk(Bytes::from(piece), permit)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

/// Sends the end of a text exactly once.
struct Teller {
    sender: mpsc::UnboundedSender<Event>,
    index: usize,
    is_told: bool,
}

impl Teller {
    fn tell(mut self, result: Result<ChatReply, ApiError>) {
        self.is_told = true;
        let _ = self.sender.send(Event::End(self.index, result));
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        if !self.is_told {
            let error = ApiError::failed("the model panicked");
            let _ = self.sender.send(Event::End(self.index, Err(error)));
        }
    }
}

/// What is counted of a text. It ends exactly once, also if its thread panics.
pub(crate) struct Record {
    state: Arc<State>,
    model: String,
    accepted: Duration,
    is_running: bool,
    is_ended: bool,
    times: Stations,
    pub(crate) usage: Usage,
    #[cfg(feature = "registry")]
    account: Option<Account>,
}

/// To whom a text is counted.
#[cfg(feature = "registry")]
struct Account {
    tenant: String,
    version: String,
    /// Whether it is the first text of its request, and of its prompt.
    firsts: [bool; 2],
}

impl Record {
    /// Counts a text that [`Slots::admit`](crate::state::Slots::admit) let in.
    pub(crate) fn accept(state: &Arc<State>, model: &str) -> Self {
        state.metrics.accept(model);
        Self {
            accepted: state.environment.elapsed(),
            state: Arc::clone(state),
            model: model.to_owned(),
            is_running: false,
            is_ended: false,
            times: Stations::default(),
            usage: Usage::default(),
            #[cfg(feature = "registry")]
            account: None,
        }
    }

    /// Counts it to a tenant and a version. A request counts with its first text, a prompt with its first.
    #[cfg(feature = "registry")]
    pub(crate) fn of(
        mut self,
        tenant: &str,
        version: Option<&str>,
        is_first: bool,
        is_first_of_prompt: bool,
    ) -> Self {
        let (tenant, version) = (tenant.to_owned(), version.unwrap_or_default().to_owned());
        self.account = Some(Account { tenant, version, firsts: [is_first, is_first_of_prompt] });
        self
    }

    fn since(&self) -> Duration {
        self.state.environment.elapsed().saturating_sub(self.accepted)
    }

    /// It has a slot.
    pub(crate) fn start(&mut self) {
        self.state.slots.leave_queue();
        self.state.metrics.start(&self.model);
        self.is_running = true;
        self.times.started = self.since();
    }

    /// A piece of the answer came.
    fn piece(&mut self) {
        if self.times.first.is_none() {
            self.times.first = Some(self.since());
        }
    }

    /// It has ended.
    pub(crate) fn end(mut self, reason: &'static str) {
        self.finish(reason);
    }

    fn finish(&mut self, reason: &'static str) {
        if std::mem::replace(&mut self.is_ended, true) {
            return;
        }
        self.times.ended = self.since();
        if self.is_running {
            self.state.slots.took(self.times.ended.saturating_sub(self.times.started));
            self.state.metrics.measure(&self.model, &self.usage, &self.times);
        } else {
            self.state.slots.leave_queue();
        }
        self.state.metrics.end(&self.model, reason, self.is_running);
        #[cfg(feature = "registry")]
        self.count(reason);
        tracing::info!(
            model = %self.model,
            reason,
            prompt_tokens = self.usage.prompt,
            completion_tokens = self.usage.completion,
            seconds = self.times.ended.as_secs_f64(),
            "a text ended"
        );
    }

    #[cfg(feature = "registry")]
    fn count(&mut self, reason: &'static str) {
        use crate::registry::{Counts, UsageKey};
        let Some(Account { tenant, version, firsts: [request, prompt] }) = self.account.take() else {
            return;
        };
        let usage = &self.usage;
        let counts = Counts {
            requests: request.into(),
            texts: 1,
            failures: (reason == "failed").into(),
            prompt_tokens: if prompt { usage.prompt } else { 0 },
            cached_tokens: if prompt { usage.cached_prompt } else { 0 },
            completion_tokens: usage.completion,
        };
        let key = UsageKey { day: 0, tenant, model: self.model.clone(), version };
        self.state.count_usage(key, counts);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.finish(if self.is_running { "failed" } else { "cancelled_waiting" });
    }
}
