use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, Hasher as _};
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use breakers_core::{
    Alternative, AnswerForms, AnswerPlan, AnswerReader, CallError, ChatFormat, ChatModel, ChatReply,
    ChatRequest, Constraint, Delta, EncodeOptions, FinishReason, LanguageModel, ModelCard, ModelInfo,
    ModelLoad, OnDelta, Prompt, PromptProgress, ResponseFormat, ScoredToken, Timings, TokenId, Tokenizer,
    ToolChoice, Usage, Vocabulary,
};

use self::driver::{Driver, Event, Job, Limits, Ticket};
use self::saved::PrefixFiles;
use crate::{AtLimit, Config, DraftLength, Drafter, NoDrafter, Result, TokenScore};

mod driver;
mod prefixes;
mod rows;
mod saved;

pub use saved::{SavedPrefixes, SavedPrefixesError};

/// Settings of an [`Engine`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EngineConfig {
    /// How many texts are generated at a time; further requests wait for one to end.
    pub max_texts: usize,
    /// The most rows of a forward pass.
    pub max_rows: usize,
    /// About how long a pass may take while texts are being written: a prompt is read in pieces that fit,
    /// after how long earlier passes took. `None`: it is only bounded by its rows.
    pub max_pass: Option<Duration>,
    /// How many tokens to draft.
    pub draft_length: DraftLength,
    /// What happens to a constrained answer at the limit of its tokens.
    pub at_limit: AtLimit,
    /// Bytes up to which the sequences of texts that have ended are kept, running ones counted in. A text
    /// that begins like one of them goes on from there (a prefix cache): the next turn of a conversation, or
    /// another question behind the same instructions, reads only what is new. The sequence that was not used
    /// for longest goes first. 0: none are kept.
    ///
    /// Answers are the same with and without, so that it is used only where the model promises that
    /// ([`LanguageModel::is_shareable`]).
    pub cache_bytes: usize,
    /// Bytes that the sequences of all texts may take; `None`: what the model has room for. A text waits
    /// until it fits in. If running ones grow beyond the limit, the latest pauses, one of
    /// [`Priority::Background`](breakers_core::Priority::Background) first: it gives up its sequence, and
    /// goes on later as if nothing had been. One text always runs.
    ///
    /// Only texts of models that share sequences pause ([`LanguageModel::is_shareable`]).
    pub max_bytes: Option<usize>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let draft_length = DraftLength::Adaptive { max: 16 };
        let at_limit = AtLimit::default();
        let max_pass = Some(Duration::from_millis(80));
        Self {
            max_texts: 8,
            max_rows: 128,
            max_pass,
            draft_length,
            at_limit,
            cache_bytes: 0,
            max_bytes: None,
        }
    }
}

/// Forms of answers from a function that makes constraints.
struct Constraints<F>(F);

impl<F> AnswerForms for Constraints<F>
where
    F: Fn(&ChatRequest) -> Result<Option<Box<dyn Constraint>>, CallError> + Send + Sync,
{
    fn plan(&self, request: &ChatRequest, _: u64) -> Result<AnswerPlan, CallError> {
        Ok((self.0)(request)?.map_or_else(AnswerPlan::text, AnswerPlan::constrained))
    }

    fn has_calls(&self) -> bool {
        false
    }
}

/// A request that is ready to run, and what reads its answer.
struct Prepared {
    job: Job,
    reader: Option<Box<dyn AnswerReader>>,
}

/// Any language model as a [`ChatModel`], with any drafter and any constraint.
///
/// Requests may come from several threads at once. They share the model's passes: a thread that waits for an
/// answer runs the next pass for all of them, so no thread is started and none is idle while there is work.
/// Each answer is the one that the request would get alone.
///
/// # Determinism
/// The same seed gives the same answer, unless the drafter itself samples (see
/// [`Proposal::Sampled`](crate::Proposal::Sampled)): in that case only the distribution is the same.
///
/// # Forms of answers
/// Answers that follow a schema, and calls of functions, need [`with_forms`](Self::with_forms): both depend
/// on the vocabulary and on the model's family. Without it such requests are refused. Calls need a
/// conversation, because only a chat template tells the model of its functions.
///
/// # Example
/// ```
/// # mod toy { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/toy.rs")); }
/// # mod bytes { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/bytes.rs")); }
/// use std::{ops::ControlFlow, sync::Arc};
/// use breakers_core::{CallError, ChatModel, ChatRequest};
/// use breakers_spec_decode::{Engine, NgramDrafter};
///
/// # fn main() -> Result<(), CallError> {
/// // Any `LanguageModel` and any `Tokenizer` will do.
/// # let (model, tokenizer) = (toy::Toy::repetitive(256, 7), bytes::Bytes);
/// let engine = Engine::new(model, Arc::new(tokenizer)).with_drafter(|| Ok(NgramDrafter::default()));
/// let request = ChatRequest::new("Once upon a time").with_max_tokens(40);
/// let reply = engine.chat(&request, &mut |_delta| ControlFlow::Continue(()))?;
/// assert_eq!(reply.usage.completion, 40);
/// # Ok(())
/// # }
/// ```
pub struct Engine<M, D = NoDrafter> {
    info: ModelInfo,
    card: ModelCard,
    config: EngineConfig,
    tokenizer: Arc<dyn Tokenizer>,
    format: Option<Arc<dyn ChatFormat>>,
    forms: Option<Arc<dyn AnswerForms>>,
    shared: Mutex<Shared<M, D>>,
    /// Signaled when results are delivered, and when the driver is free.
    wake: Condvar,
}

struct Shared<M, D> {
    /// `None` while a thread runs a pass.
    driver: Option<Driver<M, D>>,
    queue: VecDeque<(Ticket, Job)>,
    /// Requests that nobody waits for anymore.
    gone: Vec<Ticket>,
    mail: HashMap<Ticket, Vec<Event>>,
    n_tickets: u64,
    /// What the driver was busy with when it was last here.
    load: ModelLoad,
    /// A pass has panicked, so the model cannot be used anymore.
    is_broken: bool,
}

/// A pass of the model ended in a panic.
#[derive(Debug, thiserror::Error)]
#[error("the engine has stopped: a forward pass panicked")]
struct Broken;

impl<M: LanguageModel> Engine<M> {
    /// An engine with plain decoding and without a chat format: it continues texts and tokens.
    pub fn new(model: M, tokenizer: Arc<dyn Tokenizer>) -> Self {
        let info = model.info().clone();
        let mut card = ModelCard::new(info.name.clone());
        card.max_context = Some(info.max_context);
        let can = &mut card.capabilities;
        (can.text, can.tokens, can.logprobs, can.seed, can.prediction) = (true, true, true, true, true);
        let driver = Driver::new(model, Box::new(|| Ok(NoDrafter)));
        Self {
            info,
            card,
            config: EngineConfig::default(),
            tokenizer,
            format: None,
            forms: None,
            shared: Mutex::new(Shared::new(driver)),
            wake: Condvar::new(),
        }
    }
}

impl<M: LanguageModel, D: Drafter> Engine<M, D> {
    /// The same engine with drafters from a function, one for each text that runs at a time; they are reused.
    pub fn with_drafter<E: Drafter>(self, make: impl FnMut() -> Result<E> + Send + 'static) -> Engine<M, E> {
        let Self { info, card, config, tokenizer, format, forms, shared, wake } = self;
        let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        let driver = shared.driver.map(|driver| driver.with_drafter(Box::new(make)));
        let shared = Mutex::new(Shared { driver, is_broken: shared.is_broken, ..Shared::empty() });
        Engine { info, card, config, tokenizer, format, forms, shared, wake }
    }

    /// The same engine, which can also answer conversations, in this chat format.
    pub fn with_format(mut self, format: Arc<dyn ChatFormat>) -> Self {
        self.format = Some(format);
        self.card.capabilities.chat = true;
        self
    }

    /// The same engine, whose answers can have these forms: JSON, a schema, calls of functions.
    pub fn with_forms(mut self, forms: Arc<dyn AnswerForms>) -> Self {
        let can = &mut self.card.capabilities;
        (can.json, can.grammar, can.tools) = (true, true, forms.has_calls());
        self.forms = Some(forms);
        self
    }

    /// The same engine with constraints, in place of [`with_forms`](Self::with_forms). The function is called
    /// for every request, so it can constrain by [`ChatRequest::response`] or by anything else. A request for
    /// a format other than text is refused if the function returns no constraint for it.
    pub fn with_constraints(
        self,
        make: impl Fn(&ChatRequest) -> Result<Option<Box<dyn Constraint>>, CallError> + Send + Sync + 'static,
    ) -> Self {
        self.with_forms(Arc::new(Constraints(make)))
    }

    /// The same engine with other settings.
    pub fn with_config(mut self, config: EngineConfig) -> Self {
        self.config = config;
        self
    }

    /// The same engine with another name, revision or price. Its capabilities stay the same.
    pub fn with_card(mut self, card: ModelCard) -> Self {
        let (capabilities, max_context) = (self.card.capabilities, self.card.max_context);
        self.card = card;
        (self.card.capabilities, self.card.max_context) = (capabilities, max_context);
        self
    }

    /// The same engine, which keeps beginnings of texts in files as well, so that they outlive the program:
    /// after a restart, a text that begins like an earlier one goes on from there. Give it its card first
    /// ([`with_card`](Self::with_card)): files are told apart by the card's revision, which has to change
    /// with the weights. They are used where [`EngineConfig::cache_bytes`] keeps sequences at all.
    ///
    /// A thread of its own writes a text's sequence soon after the text has ended. Answers are the same with
    /// and without: a file is used only if its checksums are right and it comes from the same weights, kind
    /// of cache, instruction set and version; otherwise the tokens are computed.
    ///
    /// # Errors
    /// [`SavedPrefixesError`].
    pub fn with_saved_prefixes(mut self, config: SavedPrefixes) -> Result<Self, SavedPrefixesError> {
        let revision = self.card.revision.as_deref();
        let shared = self.shared.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(driver) = shared.driver.take() {
            let files = PrefixFiles::open(config, driver.model(), revision);
            let (driver, opened) = match files {
                Ok(files) => (driver.with_files(files), Ok(())),
                Err(error) => (driver, Err(error)),
            };
            shared.driver = Some(driver);
            opened?;
        }
        Ok(self)
    }

    fn load_now(&self) -> ModelLoad {
        let shared = self.lock();
        shared.driver.as_ref().map_or(shared.load, Driver::load)
    }

    fn lock(&self) -> MutexGuard<'_, Shared<M, D>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsupported(&self, feature: &str) -> CallError {
        CallError::unsupported(&self.card.id, feature)
    }

    /// Checks a request and turns it into what the driver needs.
    fn prepare(&self, tenant: &Arc<str>, request: &ChatRequest, seed: u64) -> Result<Prepared, CallError> {
        let may_call = request.tool_choice != ToolChoice::None && !request.tools.is_empty();
        if may_call && !self.card.capabilities.tools {
            return Err(self.unsupported("calling functions"));
        }
        if may_call && request.prompt.messages().is_none() {
            return Err(CallError::bad_request("tools", "functions are called in conversations only"));
        }
        if !may_call && matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Function(_)) {
            return Err(CallError::bad_request(
                "tool_choice",
                "a function is to be called, and none is given",
            ));
        }
        request.sampling.validate()?;
        let plan = match &self.forms {
            Some(forms) => forms.plan(request, seed)?,
            None => AnswerPlan::text(),
        };
        let AnswerPlan { constraint, reader, .. } = plan;
        if constraint.is_none() && request.response != ResponseFormat::Text {
            return Err(self.unsupported("answers of this form"));
        }
        if may_call && reader.is_none() {
            return Err(self.unsupported("calling functions"));
        }
        let prompt = self.encode(request)?;
        if prompt.is_empty() {
            return Err(CallError::bad_request("prompt", "it is empty"));
        }
        let config = Config {
            max_tokens: request.max_tokens.unwrap_or(usize::MAX),
            sampling: request.sampling.clone(),
            seed,
            end_tokens: None,
            draft_length: self.config.draft_length,
            top_logprobs: request.top_logprobs,
            at_limit: self.config.at_limit,
        };
        let prediction = request.prediction.as_ref().map(|text| {
            // A text in the middle of a sequence.
            let options = EncodeOptions { add_special: false, ..EncodeOptions::default() };
            let tokens = self.tokenizer.encode(text, options);
            tokens.map_err(|error| CallError::bad_request("prediction", error.to_string()))
        });
        let prediction = prediction.transpose()?;
        let vocabulary: Arc<dyn Vocabulary> = self.tokenizer.clone();
        let (stop, has_controls) = (request.stop.clone(), reader.is_some());
        let tenant = tenant.clone();
        Ok(Prepared {
            job: Job {
                tenant,
                priority: request.priority,
                n_overtaken: 0,
                prompt,
                config,
                stop,
                constraint,
                prediction,
                has_controls,
                vocabulary,
            },
            reader,
        })
    }

    fn encode(&self, request: &ChatRequest) -> Result<Vec<TokenId>, CallError> {
        let failed = |error: breakers_core::BoxError| CallError::bad_request("prompt", error.to_string());
        match &request.prompt {
            Prompt::Text(text) => self.tokenizer.encode(text, EncodeOptions::default()).map_err(failed),
            Prompt::Tokens(tokens) => Ok(tokens.clone()),
            Prompt::Chat(messages) => {
                let format = self.format.as_ref().ok_or_else(|| self.unsupported("conversations"))?;
                let Some(forms) = self.forms.as_ref().filter(|forms| forms.has_calls()) else {
                    return self.tokenizer.encode_chat(&**format, messages, &[]).map_err(failed);
                };
                // Also functions that may not be called now: the model may be asked about results.
                let tools = &request.tools;
                let messages = forms.conversation(&**format, messages, tools).map_err(failed)?;
                self.tokenizer.encode_chat(&**format, &messages, tools).map_err(failed)
            }
            _ => Err(self.unsupported("prompts of this kind")),
        }
    }

    /// Puts a request into the queue.
    fn submit(&self, Prepared { job, reader }: Prepared) -> Waiting<'_, M, D> {
        let mut shared = self.lock();
        let ticket = Ticket(shared.n_tickets);
        shared.n_tickets += 1;
        shared.mail.insert(ticket, Vec::new());
        shared.queue.push_back((ticket, job));
        Waiting { engine: self, ticket, reader }
    }

    /// Waits for news of a request. If no other thread does, the waiting thread runs the next pass.
    fn wait(&self, ticket: Ticket) -> Result<Vec<Event>, CallError> {
        let mut shared = self.lock();
        loop {
            if let Some(events) = shared.mail.get_mut(&ticket).filter(|events| !events.is_empty()) {
                return Ok(std::mem::take(events));
            }
            if shared.is_broken {
                return Err(CallError::failed(Broken));
            }
            let Some(driver) = shared.driver.take() else {
                shared = self.wake.wait(shared).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let gone = std::mem::take(&mut shared.gone);
            let waiting = shared.queue.drain(..).collect();
            drop(shared);
            let mut driving = Driving { engine: self, driver: Some(driver) };
            let done = driving.run(gone, waiting);
            shared = driving.give_back(done);
            self.wake.notify_all();
        }
    }

    /// Follows an answer to its end.
    fn follow(
        &self,
        mut waiting: Waiting<'_, M, D>,
        begun: Instant,
        on_delta: &mut OnDelta<'_>,
    ) -> Result<ChatReply, CallError> {
        let mut reply = ChatReply::new("", FinishReason::Cancelled);
        reply.model.clone_from(&self.card.id);
        let mut first_token = None;
        loop {
            for event in self.wait(waiting.ticket)? {
                if !event.tokens.is_empty() {
                    first_token.get_or_insert_with(|| begun.elapsed());
                }
                if event.usage != Usage::default() {
                    reply.usage = event.usage;
                }
                let mut deltas = self.scored(&event.tokens, event.scores);
                deltas.extend(event.progress.map(Delta::Progress));
                reply.token_ids.extend(event.tokens);
                let end = event.end.transpose()?;
                let read = waiting.read(event.text, end, &mut deltas);
                let flow = deliver(&mut reply, deltas, on_delta);
                read?;
                let end = end.filter(|_| flow.is_continue());
                if let Some(finish) = end.or(flow.is_break().then_some(FinishReason::Cancelled)) {
                    let has_called = finish == FinishReason::EndOfText && !reply.tool_calls.is_empty();
                    reply.finish = if has_called { FinishReason::ToolCalls } else { finish };
                    reply.timings = Timings::new(first_token, begun.elapsed());
                    return Ok(reply);
                }
            }
        }
    }

    /// The tokens of an event with their log-probabilities, if these were asked for.
    fn scored(&self, tokens: &[TokenId], scores: Vec<TokenScore>) -> Vec<Delta> {
        let bytes = |token: TokenId| self.tokenizer.token_bytes(token).unwrap_or_default();
        let scored = tokens.iter().zip(scores).map(|(&token, score)| {
            let mut scored = ScoredToken::new(Some(token), bytes(token), score.logprob);
            let top = score.top.iter();
            scored.top = top.map(|t| Alternative::new(Some(t.token), bytes(t.token), t.logprob)).collect();
            scored
        });
        let scored: Vec<ScoredToken> = scored.collect();
        if scored.is_empty() { Vec::new() } else { vec![Delta::Tokens(scored)] }
    }
}

/// Adds pieces to an answer and hands them to its receiver, until it has enough.
fn deliver(reply: &mut ChatReply, deltas: Vec<Delta>, on_delta: &mut OnDelta<'_>) -> ControlFlow<()> {
    for delta in deltas {
        reply.absorb(delta.clone());
        on_delta(delta)?;
    }
    ControlFlow::Continue(())
}

impl<M: LanguageModel, D: Drafter> Shared<M, D> {
    fn empty() -> Self {
        Self {
            driver: None,
            queue: VecDeque::new(),
            gone: Vec::new(),
            mail: HashMap::new(),
            n_tickets: 0,
            load: ModelLoad::default(),
            is_broken: false,
        }
    }

    fn new(driver: Driver<M, D>) -> Self {
        Self { driver: Some(driver), ..Self::empty() }
    }
}

/// A request whose answer somebody waits for. When this is dropped, the request leaves the batch.
struct Waiting<'e, M: LanguageModel, D: Drafter> {
    engine: &'e Engine<M, D>,
    ticket: Ticket,
    /// What takes the answer apart.
    reader: Option<Box<dyn AnswerReader>>,
}

impl<M: LanguageModel, D: Drafter> Waiting<'_, M, D> {
    /// Appends what a piece of text, and the end of the answer if it ends, bring.
    fn read(
        &mut self,
        text: String,
        end: Option<FinishReason>,
        out: &mut Vec<Delta>,
    ) -> Result<(), CallError> {
        let Some(reader) = &mut self.reader else {
            out.extend((!text.is_empty()).then_some(Delta::Text(text)));
            return Ok(());
        };
        reader.push(&text, out)?;
        let Some(reader) = self.reader.take_if(|_| end.is_some()) else { return Ok(()) };
        match reader.finish(out) {
            // Cut off within a call: its finish reason says so.
            Err(_) if end != Some(FinishReason::EndOfText) => Ok(()),
            read => read,
        }
    }
}

impl<M: LanguageModel, D: Drafter> Drop for Waiting<'_, M, D> {
    fn drop(&mut self) {
        let mut shared = self.engine.lock();
        shared.mail.remove(&self.ticket);
        shared.queue.retain(|(ticket, _)| *ticket != self.ticket);
        match &mut shared.driver {
            Some(driver) => driver.drop_text(self.ticket),
            None => shared.gone.push(self.ticket),
        }
    }
}

/// The driver, while a pass runs. If the pass panics, all waiting threads are told.
struct Driving<'e, M: LanguageModel, D: Drafter> {
    engine: &'e Engine<M, D>,
    driver: Option<Driver<M, D>>,
}

impl<'e, M: LanguageModel, D: Drafter> Driving<'e, M, D> {
    fn run(&mut self, gone: Vec<Ticket>, waiting: Vec<(Ticket, Job)>) -> driver::Done {
        let Some(driver) = &mut self.driver else { return driver::Done::default() };
        gone.into_iter().for_each(|ticket| driver.drop_text(ticket));
        let EngineConfig { max_texts, max_rows, max_pass, cache_bytes, max_bytes, .. } = self.engine.config;
        let max_texts = max_texts.max(1);
        driver.step(waiting, Limits { max_texts, max_rows, max_pass, cache_bytes, max_bytes })
    }

    /// Puts the driver back and delivers its results.
    fn give_back(mut self, done: driver::Done) -> MutexGuard<'e, Shared<M, D>> {
        let mut shared = self.engine.lock();
        // Those that left during the pass: there need not be another one.
        let gone = std::mem::take(&mut shared.gone);
        if let Some(driver) = &mut self.driver {
            gone.into_iter().for_each(|ticket| driver.drop_text(ticket));
            shared.load = driver.load();
        }
        shared.driver = self.driver.take();
        for (ticket, event) in done.events {
            // An abandoned request has no mailbox.
            if let Some(mail) = shared.mail.get_mut(&ticket) {
                mail.push(event);
            }
        }
        let Shared { queue, mail, .. } = &mut *shared;
        for job in done.refused.into_iter().rev().filter(|(ticket, _)| mail.contains_key(ticket)) {
            queue.push_front(job);
        }
        // Who still waits is asked after each pass whether it wants to.
        for (ticket, job) in queue {
            if let Some(mail) = mail.get_mut(ticket).filter(|mail| mail.is_empty()) {
                mail.push(Event::progress(PromptProgress::new(0, job.prompt.len())));
            }
        }
        shared
    }
}

impl<M: LanguageModel, D: Drafter> Drop for Driving<'_, M, D> {
    fn drop(&mut self) {
        if self.driver.is_some() {
            self.engine.lock().is_broken = true;
            self.engine.wake.notify_all();
        }
    }
}

impl<M: LanguageModel + Send, D: Drafter + Send> ChatModel for Engine<M, D> {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn chat(&self, request: &ChatRequest, on_delta: &mut OnDelta<'_>) -> Result<ChatReply, CallError> {
        self.chat_as("", request, on_delta)
    }

    /// What is kept of a tenant's texts ([`EngineConfig::cache_bytes`]) serves that tenant alone: otherwise,
    /// the time to an answer would tell one what others have asked.
    fn chat_as(
        &self,
        tenant: &str,
        request: &ChatRequest,
        on_delta: &mut OnDelta<'_>,
    ) -> Result<ChatReply, CallError> {
        let begun = Instant::now();
        let seed = request.seed.unwrap_or_else(fresh_seed);
        let waiting = self.submit(self.prepare(&Arc::from(tenant), request, seed)?);
        let mut reply = self.follow(waiting, begun, on_delta)?;
        reply.seed = Some(seed);
        Ok(reply)
    }

    /// The requests share forward passes.
    fn chat_batch(&self, requests: &[ChatRequest]) -> Vec<Result<ChatReply, CallError>> {
        let (begun, tenant) = (Instant::now(), Arc::from(""));
        let submit = |request: &ChatRequest| {
            let seed = request.seed.unwrap_or_else(fresh_seed);
            Ok((self.submit(self.prepare(&tenant, request, seed)?), seed))
        };
        let waiting: Vec<Result<_, CallError>> = requests.iter().map(submit).collect();
        let follow = |waiting: Result<(Waiting<'_, M, D>, u64), CallError>| {
            let (waiting, seed) = waiting?;
            let mut reply = self.follow(waiting, begun, &mut |_| ControlFlow::Continue(()))?;
            reply.seed = Some(seed);
            Ok(reply)
        };
        waiting.into_iter().map(follow).collect()
    }

    fn load(&self) -> Option<ModelLoad> {
        Some(self.load_now())
    }
}

impl<M, D> std::fmt::Debug for Engine<M, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("card", &self.card)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// A random seed.
fn fresh_seed() -> u64 {
    // The keys of the standard library's hash maps are drawn by the operating system.
    std::hash::RandomState::new().build_hasher().finish()
}
