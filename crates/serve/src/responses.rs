//! `/v1/responses`: answers as items, kept so that later requests can go on from them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State as Shared};
use axum::http::Uri;
use axum::response::Response;
use breakers_core::{ChatReply, Delta, FinishReason, Json, Message, ScoredToken, ToolCallDelta, Usage};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::answer::{WireToken, arguments, json, wire_tokens};
use crate::api_error::ApiError;
use crate::edge::Caller;
use crate::environment::new_id;
use crate::request::{Echo, ResponseRequest};
use crate::routes;
use crate::state::State;
use crate::stream::Tail;
use crate::texts::{self, Event, Writer};

type Answer = Result<Response, ApiError>;

/// The responses that are kept, for the tenants that own them.
pub(crate) struct Store {
    kept: Mutex<Kept>,
    max_responses: usize,
    max_bytes: usize,
}

#[derive(Default)]
struct Kept {
    responses: HashMap<String, Stored>,
    /// Ids, oldest first; those of deleted responses may still be among them.
    order: VecDeque<String>,
    bytes: usize,
}

struct Stored {
    tenant: String,
    body: String,
    /// What the next response follows, the answer included.
    conversation: Arc<Vec<Message>>,
    bytes: usize,
}

impl Store {
    pub(crate) fn new(max_responses: usize, max_bytes: usize) -> Self {
        Self { kept: Mutex::default(), max_responses, max_bytes }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a response; the oldest ones go if there are too many, or too much of them.
    fn keep(&self, id: &str, tenant: &str, body: String, conversation: Vec<Message>) {
        let bytes = body.len() + conversation.iter().map(size).sum::<usize>();
        if bytes > self.max_bytes || self.max_responses == 0 {
            return;
        }
        let mut kept = self.lock();
        kept.bytes += bytes;
        let stored = Stored { tenant: tenant.to_owned(), body, conversation: Arc::new(conversation), bytes };
        kept.responses.insert(id.to_owned(), stored);
        kept.order.push_back(id.to_owned());
        while kept.responses.len() > self.max_responses || kept.bytes > self.max_bytes {
            let Some(oldest) = kept.order.pop_front() else { break };
            kept.remove(&oldest);
        }
        // Ids of deleted responses must not pile up.
        if kept.order.len() > 2 * kept.responses.len() + 16 {
            let Kept { responses, order, .. } = &mut *kept;
            order.retain(|id| responses.contains_key(id));
        }
    }

    /// A tenant's response: its body and the conversation up to its end.
    fn get(&self, id: &str, tenant: &str) -> Option<(String, Arc<Vec<Message>>)> {
        let kept = self.lock();
        let stored = kept.responses.get(id).filter(|stored| stored.tenant == tenant)?;
        Some((stored.body.clone(), Arc::clone(&stored.conversation)))
    }

    fn delete(&self, id: &str, tenant: &str) -> bool {
        let mut kept = self.lock();
        let is_owner = kept.responses.get(id).is_some_and(|stored| stored.tenant == tenant);
        if is_owner {
            kept.remove(id);
        }
        is_owner
    }
}

impl Kept {
    fn remove(&mut self, id: &str) {
        if let Some(stored) = self.responses.remove(id) {
            self.bytes -= stored.bytes;
        }
    }
}

/// About how many bytes a message takes.
fn size(message: &Message) -> usize {
    let calls = message.tool_calls.iter();
    let calls: usize = calls.map(|call| call.id.len() + call.name.len() + call.arguments.len() + 96).sum();
    message.text().len() + calls + size_of::<Message>()
}

fn not_found(id: &str) -> ApiError {
    ApiError::not_found(format!("Response with id '{id:.80}' not found."))
}

/// `POST /v1/responses`.
pub(crate) async fn create(Shared(state): Shared<Arc<State>>, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let caller = parts.extensions.get::<Caller>().cloned().unwrap_or_default();
    let body = routes::read_body(&state, body).await?;
    let limits = &state.config.limits;
    let request = ResponseRequest::read(&body, limits)?;
    drop(body);
    caller.check_model(&request.completion.model)?;
    let hosted = state.choose(&request.completion)?;
    let tenant = caller.tenant().to_owned();
    let before = match &request.previous {
        None => Arc::default(),
        Some(id) => {
            let (_, conversation) = state.responses.get(id, &tenant).ok_or_else(|| {
                let message = format!("Previous response with id '{id:.80}' not found.");
                ApiError::field("previous_response_id", message).with_code("previous_response_not_found")
            })?;
            conversation
        }
    };
    let conversation = request.conversation(&before);
    let builder = Builder {
        id: new_id(&*state.environment, "resp_"),
        created_at: state.environment.unix_time(),
        model: hosted.name.clone(),
        instructions: request.instructions.clone(),
        previous: request.previous.clone(),
        is_stored: request.store,
        echo: request.echo.clone(),
        items: Vec::new(),
        tokens: Vec::new(),
        sequence: 0,
        is_streamed: request.completion.stream,
        is_open: false,
        conversation: conversation.clone(),
        tenant,
        state: Arc::clone(&state),
    };
    let completion = request.complete(&conversation, limits)?;
    let rename = |error| routes::rename(error, &completion);
    completion.check(hosted.model.card()).map_err(rename)?;
    let visit = caller.visit(state.environment.elapsed())?.map(Arc::new);
    let is_streamed = completion.stream;
    let builder = Arc::new(Mutex::new(builder));
    // Before the text begins, whose events are numbered behind these.
    let begin = lock(&builder).begin();
    let writer = |_| Box::new(ResponseWriter(Arc::clone(&builder))) as Box<dyn Writer>;
    let mut texts = texts::start(&state, &hosted, &completion, visit, Some(&writer))?;
    let mut response = if is_streamed {
        let failing = Arc::clone(&builder);
        let tail = Tail::Response(Box::new(move |error| lock(&failing).fail(error)));
        routes::stream(&state, texts, tail, vec![begin], 1).await
    } else {
        whole(&mut texts, &builder).await
    }
    .map_err(rename)?;
    routes::name_ignored(&mut response, &completion.ignored_by(hosted.model.card()));
    routes::name_version(&mut response, &hosted);
    Ok(response)
}

async fn whole(texts: &mut texts::Texts, builder: &Mutex<Builder>) -> Answer {
    loop {
        match texts.next().await {
            Some(Event::End(_, reply)) => {
                let reply = reply?;
                let body = lock(builder).body(&reply, status(reply.finish));
                return Ok(routes::json(body));
            }
            Some(Event::Chunk(..)) => {}
            None => return Err(ApiError::failed("an answer is missing")),
        }
    }
}

/// `GET /v1/responses/{id}`.
pub(crate) async fn get(
    Shared(state): Shared<Arc<State>>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
    request: Request,
) -> Answer {
    let (id, tenant) = named(id, &request)?;
    for pair in uri.query().unwrap_or_default().split('&') {
        if let Some(name @ ("stream" | "starting_after" | "include" | "include[]")) = pair.split('=').next()
            && pair != "stream=false"
        {
            return Err(ApiError::unsupported(name, format!("`{name}`: kept responses come as a whole")));
        }
    }
    let (body, _) = state.responses.get(&id, &tenant).ok_or_else(|| not_found(&id))?;
    Ok(routes::json(body))
}

/// `DELETE /v1/responses/{id}`.
pub(crate) async fn delete(
    Shared(state): Shared<Arc<State>>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Answer {
    #[derive(Serialize)]
    struct Deleted<'a> {
        id: &'a str,
        object: &'static str,
        deleted: bool,
    }
    let (id, tenant) = named(id, &request)?;
    match state.responses.delete(&id, &tenant) {
        true => Ok(routes::json(json(&Deleted { id: &id, object: "response", deleted: true }))),
        false => Err(not_found(&id)),
    }
}

fn named(id: Result<Path<String>, PathRejection>, request: &Request) -> Result<(String, String), ApiError> {
    let Path(id) = id.map_err(|_| not_found("?"))?;
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
    Ok((id, caller.tenant().to_owned()))
}

fn lock(builder: &Mutex<Builder>) -> MutexGuard<'_, Builder> {
    builder.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A response that is being written.
struct Builder {
    id: String,
    created_at: u64,
    model: String,
    instructions: Option<String>,
    previous: Option<String>,
    is_stored: bool,
    echo: Echo,
    items: Vec<Item>,
    /// Scored tokens whose text has not come yet.
    tokens: Vec<ScoredToken>,
    /// Number of the next event.
    sequence: u64,
    is_streamed: bool,
    /// Whether the last item still grows.
    is_open: bool,
    conversation: Vec<Message>,
    tenant: String,
    state: Arc<State>,
}

/// A part of the output.
enum Item {
    Message { id: String, text: String, tokens: Vec<ScoredToken> },
    Call { id: String, call_id: String, name: String, arguments: String },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum WireItem<'a> {
    Message { id: &'a str, role: &'static str, status: &'static str, content: Vec<WirePart<'a>> },
    FunctionCall { id: &'a str, call_id: &'a str, name: &'a str, arguments: &'a str, status: &'static str },
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "output_text")]
struct WirePart<'a> {
    text: &'a str,
    annotations: [(); 0],
    logprobs: Vec<WireToken>,
}

impl Item {
    fn wire(&self, status: &'static str, is_begun: bool) -> WireItem<'_> {
        match self {
            Self::Message { id, text, tokens } => {
                let content = if is_begun { vec![part(text, tokens)] } else { Vec::new() };
                WireItem::Message { id, role: "assistant", status, content }
            }
            Self::Call { id, call_id, name, arguments } => {
                let arguments = if is_begun { self::arguments(arguments) } else { "" };
                WireItem::FunctionCall { id, call_id, name, arguments, status }
            }
        }
    }

    fn id(&self) -> &str {
        match self {
            Self::Message { id, .. } | Self::Call { id, .. } => id,
        }
    }
}

fn part<'a>(text: &'a str, tokens: &[ScoredToken]) -> WirePart<'a> {
    WirePart { text, annotations: [], logprobs: wire_tokens(tokens) }
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    object: &'static str,
    created_at: u64,
    status: &'static str,
    completed_at: Option<u64>,
    background: bool,
    error: Option<WireError<'a>>,
    incomplete_details: Option<Incomplete>,
    instructions: Option<&'a str>,
    max_output_tokens: Option<usize>,
    model: &'a str,
    output: Vec<WireItem<'a>>,
    parallel_tool_calls: bool,
    previous_response_id: Option<&'a str>,
    store: bool,
    temperature: f32,
    text: Text<'a>,
    tool_choice: &'a Json,
    tools: Vec<WireTool<'a>>,
    top_logprobs: usize,
    top_p: f32,
    truncation: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<WireUsage>,
    metadata: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct WireError<'a> {
    code: &'static str,
    message: &'a str,
}

#[derive(Serialize)]
struct Incomplete {
    reason: &'static str,
}

#[derive(Serialize)]
struct Text<'a> {
    format: &'a Json,
}

#[derive(Serialize)]
struct WireTool<'a> {
    r#type: &'static str,
    name: &'a str,
    description: Option<&'a str>,
    parameters: &'a Json,
    strict: bool,
}

#[derive(Serialize)]
struct WireUsage {
    input_tokens: u64,
    input_tokens_details: InputDetails,
    output_tokens: u64,
    output_tokens_details: OutputDetails,
    total_tokens: u64,
}

#[derive(Serialize)]
struct InputDetails {
    cached_tokens: u64,
    cache_write_tokens: u64,
}

#[derive(Serialize)]
struct OutputDetails {
    reasoning_tokens: u64,
}

impl From<Usage> for WireUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt,
            // The protocol counts what is written for a fee; here that costs nothing.
            input_tokens_details: InputDetails { cached_tokens: usage.cached_prompt, cache_write_tokens: 0 },
            output_tokens: usage.completion,
            output_tokens_details: OutputDetails { reasoning_tokens: usage.reasoning },
            total_tokens: usage.total(),
        }
    }
}

/// How a response ended.
#[derive(Clone, Copy, PartialEq)]
enum Status {
    InProgress,
    Completed,
    Incomplete(&'static str),
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete(_) => "incomplete",
        }
    }
}

fn status(finish: FinishReason) -> Status {
    match finish {
        FinishReason::Length | FinishReason::ContextFull => Status::Incomplete("max_output_tokens"),
        FinishReason::ContentFilter => Status::Incomplete("content_filter"),
        _ => Status::Completed,
    }
}

/// An event. The fields of `data` come behind its type and number.
#[derive(Serialize)]
struct WireEvent<'a, D> {
    r#type: &'a str,
    sequence_number: u64,
    #[serde(flatten)]
    data: D,
}

#[derive(Serialize)]
struct OfResponse<'a> {
    response: Body<'a>,
}

#[derive(Serialize)]
struct OfBody<'a> {
    response: &'a RawValue,
}

#[derive(Serialize)]
struct OfItem<'a> {
    output_index: usize,
    item: WireItem<'a>,
}

#[derive(Serialize)]
struct OfPart<'a> {
    item_id: &'a str,
    output_index: usize,
    content_index: usize,
    part: WirePart<'a>,
}

#[derive(Serialize)]
struct OfText<'a> {
    item_id: &'a str,
    output_index: usize,
    content_index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    logprobs: Vec<WireToken>,
}

#[derive(Serialize)]
struct OfArguments<'a> {
    item_id: &'a str,
    output_index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<&'a str>,
}

fn event(sequence: &mut u64, kind: &str, data: impl Serialize) -> String {
    let body = json(&WireEvent { r#type: kind, sequence_number: *sequence, data });
    *sequence += 1;
    format!("event: {kind}\ndata: {body}\n\n")
}

impl Builder {
    fn response<'a>(&'a self, status: Status, usage: Option<Usage>, error: Option<&'a str>) -> Body<'a> {
        let last = self.items.len().saturating_sub(1);
        let items = self.items.iter().enumerate().map(|(i, item)| {
            let is_cut = i == last && status != Status::Completed;
            item.wire(if is_cut { "incomplete" } else { "completed" }, true)
        });
        let Echo { tools, metadata, .. } = &self.echo;
        let failed = error.map(|message| WireError { code: "server_error", message });
        Body {
            id: &self.id,
            object: "response",
            created_at: self.created_at,
            status: if failed.is_some() { "failed" } else { status.name() },
            completed_at: (status == Status::Completed && failed.is_none())
                .then(|| self.state.environment.unix_time()),
            background: false,
            error: failed,
            incomplete_details: match status {
                Status::Incomplete(reason) => Some(Incomplete { reason }),
                _ => None,
            },
            instructions: self.instructions.as_deref(),
            max_output_tokens: self.echo.max_output_tokens,
            model: &self.model,
            output: items.collect(),
            parallel_tool_calls: self.echo.parallel_tool_calls,
            previous_response_id: self.previous.as_deref(),
            store: self.is_stored,
            temperature: self.echo.temperature,
            text: Text { format: &self.echo.format },
            tool_choice: &self.echo.tool_choice,
            tools: tools
                .iter()
                .map(|tool| WireTool {
                    r#type: "function",
                    name: &tool.name,
                    description: tool.description.as_deref(),
                    parameters: &tool.parameters,
                    strict: tool.strict,
                })
                .collect(),
            top_logprobs: self.echo.top_logprobs,
            top_p: self.echo.top_p,
            truncation: "disabled",
            usage: usage.map(WireUsage::from),
            metadata,
        }
    }

    /// The finished body, which is kept if that was asked for.
    fn body(&mut self, reply: &ChatReply, status: Status) -> String {
        let body = json(&self.response(status, Some(reply.usage), None));
        if self.is_stored {
            let mut conversation = std::mem::take(&mut self.conversation);
            let mut message = reply.message();
            for call in &mut message.tool_calls {
                // As clients see it, and would send it back.
                call.arguments = self::arguments(&call.arguments).to_owned();
            }
            conversation.push(message);
            self.state.responses.keep(&self.id, &self.tenant, body.clone(), conversation);
        }
        body
    }

    /// The two events before all others.
    fn begin(&mut self) -> String {
        let mut sequence = self.sequence;
        let mut out = String::new();
        for kind in ["response.created", "response.in_progress"] {
            let response = self.response(Status::InProgress, None, None);
            out += &event(&mut sequence, kind, OfResponse { response });
        }
        self.sequence = sequence;
        out
    }

    /// The event of a failure, which is the last one.
    fn fail(&mut self, error: &ApiError) -> String {
        let mut sequence = self.sequence;
        let mut out = String::new();
        let response = self.response(Status::InProgress, None, Some(&error.message));
        out += &event(&mut sequence, "response.failed", OfResponse { response });
        self.sequence = sequence;
        out
    }

    fn text(&mut self, text: &str) -> String {
        let mut out = String::new();
        if !(self.is_open && matches!(self.items.last(), Some(Item::Message { .. }))) {
            out += &self.close("completed");
            let id = new_id(&*self.state.environment, "msg_");
            out += &self.open(Item::Message { id, text: String::new(), tokens: Vec::new() });
        }
        let new = std::mem::take(&mut self.tokens);
        let output_index = self.items.len() - 1;
        if let Some(Item::Message { id, text: all, tokens }) = self.items.last_mut() {
            *all += text;
            let logprobs = wire_tokens(&new);
            tokens.extend(new);
            let data = OfText {
                item_id: id,
                output_index,
                content_index: 0,
                delta: Some(text),
                text: None,
                logprobs,
            };
            out += &event(&mut self.sequence, "response.output_text.delta", data);
        }
        out
    }

    fn call(&mut self, new: &ToolCallDelta) -> String {
        let mut out = String::new();
        if new.name.is_some() || new.id.is_some() {
            out += &self.close("completed");
            let id = new_id(&*self.state.environment, "fc_");
            let call_id = new.id.clone().unwrap_or_else(|| new_id(&*self.state.environment, "call_"));
            let name = new.name.clone().unwrap_or_default();
            out += &self.open(Item::Call { id, call_id, name, arguments: String::new() });
        }
        let output_index = self.items.len().saturating_sub(1);
        if let Some(Item::Call { id, arguments, .. }) = self.items.last_mut()
            && !new.arguments.is_empty()
        {
            *arguments += &new.arguments;
            let delta = Some(&*new.arguments);
            let data = OfArguments { item_id: id, output_index, delta, name: None, arguments: None };
            out += &event(&mut self.sequence, "response.function_call_arguments.delta", data);
        }
        out
    }

    fn open(&mut self, item: Item) -> String {
        let output_index = self.items.len();
        let data = OfItem { output_index, item: item.wire("in_progress", false) };
        let mut out = event(&mut self.sequence, "response.output_item.added", data);
        if let Item::Message { id, .. } = &item {
            let data = OfPart { item_id: id, output_index, content_index: 0, part: part("", &[]) };
            out += &event(&mut self.sequence, "response.content_part.added", data);
        }
        self.items.push(item);
        self.is_open = true;
        out
    }

    /// Ends the item that grows, if there is one.
    fn close(&mut self, status: &'static str) -> String {
        let mut out = String::new();
        if !std::mem::take(&mut self.is_open) {
            return out;
        }
        let output_index = self.items.len() - 1;
        let Some(item) = self.items.last() else { return out };
        let item_id = item.id();
        match item {
            Item::Message { text, tokens, .. } => {
                let logprobs = wire_tokens(tokens);
                let data = OfText {
                    item_id,
                    output_index,
                    content_index: 0,
                    delta: None,
                    text: Some(text),
                    logprobs,
                };
                out += &event(&mut self.sequence, "response.output_text.done", data);
                let data = OfPart { item_id, output_index, content_index: 0, part: part(text, tokens) };
                out += &event(&mut self.sequence, "response.content_part.done", data);
            }
            Item::Call { name, arguments, .. } => {
                let arguments = Some(self::arguments(arguments));
                let data = OfArguments { item_id, output_index, delta: None, name: Some(name), arguments };
                out += &event(&mut self.sequence, "response.function_call_arguments.done", data);
            }
        }
        let data = OfItem { output_index, item: item.wire(status, true) };
        out += &event(&mut self.sequence, "response.output_item.done", data);
        out
    }
}

/// A builder that the HTTP thread can reach, too.
struct ResponseWriter(Arc<Mutex<Builder>>);

impl Writer for ResponseWriter {
    fn piece(&mut self, delta: Delta) -> String {
        let mut builder = lock(&self.0);
        let out = match delta {
            Delta::Tokens(tokens) => {
                builder.tokens.extend(tokens);
                String::new()
            }
            Delta::Text(text) => builder.text(&text),
            Delta::ToolCall(part) => builder.call(&part),
            _ => String::new(),
        };
        if builder.is_streamed { out } else { String::new() }
    }

    fn end(&mut self, reply: &ChatReply) -> String {
        let mut builder = lock(&self.0);
        let status = status(reply.finish);
        let mut out = String::new();
        if builder.items.is_empty() {
            // An answer without a word is a message, too.
            out += &builder.text("");
        }
        // Tokens whose text is empty, such as the last one of a text.
        let rest = std::mem::take(&mut builder.tokens);
        if let Some(Item::Message { tokens, .. }) = builder.items.last_mut() {
            tokens.extend(rest);
        }
        out += &builder.close(if status == Status::Completed { "completed" } else { "incomplete" });
        if !builder.is_streamed {
            return String::new();
        }
        let kind = match status {
            Status::Incomplete(_) => "response.incomplete",
            _ => "response.completed",
        };
        let body = builder.body(reply, status);
        let Ok(response) = RawValue::from_string(body) else { return out };
        out += &event(&mut builder.sequence, kind, OfBody { response: &response });
        out
    }
}
