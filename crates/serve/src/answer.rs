//! Answers as OpenAI's clients read them. Every key that the protocol requires is there, `null` where there
//! is nothing to say.

use std::collections::BTreeMap;

use breakers_core::{ChatReply, Delta, FinishReason, ScoredToken, ToolCallDelta, Usage};
use serde::Serialize;

use crate::request::Route;
use crate::texts::Writer;

/// What all parts of an answer have in common.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) system_fingerprint: Option<String>,
}

/// What a stream's `object` is called.
pub(crate) fn object(route: Route, stream: bool) -> &'static str {
    match (route, stream) {
        (Route::Chat, false) => "chat.completion",
        (Route::Chat, true) => "chat.completion.chunk",
        (Route::Text, _) => "text_completion",
        // Its answers have types of their own.
        (Route::Responses, _) => "response",
    }
}

#[derive(Serialize)]
struct Whole<'a, C> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<C>,
    usage: WireUsage,
}

#[derive(Serialize)]
struct Chunk<'a, C> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<C>,
    /// `Some(None)` is written as null.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<WireUsage>>,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<Logprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Option<&'a str>,
    refusal: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
}

#[derive(Serialize)]
struct Call<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

#[derive(Serialize)]
struct ChatChunkChoice<'a> {
    index: usize,
    delta: ChatDelta<'a>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct ChatDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[Call<'a>; 1]>,
}

#[derive(Serialize)]
struct TextChoice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Logprobs {
    content: Vec<WireToken>,
    refusal: Option<()>,
}

#[derive(Serialize)]
pub(crate) struct WireToken {
    #[serde(flatten)]
    token: WireAlternative,
    top_logprobs: Vec<WireAlternative>,
}

#[derive(Serialize)]
struct WireAlternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

#[derive(Serialize)]
struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<String, f32>>,
    text_offset: Vec<usize>,
}

#[derive(Clone, Copy, Serialize)]
pub(crate) struct WireUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: CompletionDetails,
}

#[derive(Clone, Copy, Serialize)]
struct PromptDetails {
    cached_tokens: u64,
}

#[derive(Clone, Copy, Serialize)]
struct CompletionDetails {
    reasoning_tokens: u64,
    accepted_prediction_tokens: u64,
    rejected_prediction_tokens: u64,
}

/// The tokens of a whole request. A prompt counts once, however many answers it has.
///
/// # Shapes
/// `usages`: `[prompts × n]`, in the order of the choices.
pub(crate) fn usage(usages: &[Usage], n: usize) -> WireUsage {
    let prompts: Usage = usages.iter().step_by(n.max(1)).copied().sum();
    let all: Usage = usages.iter().copied().sum();
    WireUsage {
        prompt_tokens: prompts.prompt,
        completion_tokens: all.completion,
        total_tokens: prompts.prompt.saturating_add(all.completion),
        prompt_tokens_details: Some(PromptDetails { cached_tokens: prompts.cached_prompt }),
        completion_tokens_details: CompletionDetails {
            reasoning_tokens: all.reasoning,
            // These are about `prediction`, and not about any other drafts.
            accepted_prediction_tokens: all.predicted,
            rejected_prediction_tokens: all.mispredicted,
        },
    }
}

/// The body of an answer that is not streamed.
///
/// # Shapes
/// `replies`: `[prompts × n]`; `echo`: `[prompts]`, or empty.
pub(crate) fn whole(
    route: Route,
    head: &Head,
    replies: &[ChatReply],
    n: usize,
    scored: bool,
    echo: &[String],
) -> String {
    let usages: Vec<Usage> = replies.iter().map(|reply| reply.usage).collect();
    whole_with(route, head, replies, n, scored, echo, usage(&usages, n))
}

/// As [`whole`], without what depends on other requests: how much of the prompt was cached, and how much of a
/// prediction was tried.
///
/// # Shapes
/// As [`whole`].
#[cfg(feature = "batches")]
pub(crate) fn whole_alone(
    route: Route,
    head: &Head,
    replies: &[ChatReply],
    n: usize,
    scored: bool,
    echo: &[String],
) -> String {
    let alone = |reply: &ChatReply| {
        let mut usage = reply.usage;
        (usage.predicted, usage.mispredicted) = (0, 0);
        usage
    };
    let usages: Vec<Usage> = replies.iter().map(alone).collect();
    let usage = WireUsage { prompt_tokens_details: None, ..usage(&usages, n) };
    whole_with(route, head, replies, n, scored, echo, usage)
}

fn whole_with(
    route: Route,
    head: &Head,
    replies: &[ChatReply],
    n: usize,
    scored: bool,
    echo: &[String],
    usage: WireUsage,
) -> String {
    let numbered = replies.iter().enumerate();
    match route {
        Route::Chat | Route::Responses => {
            let choices = numbered.map(|(index, reply)| ChatChoice {
                index,
                message: message(reply),
                logprobs: scored.then(|| logprobs(&reply.tokens)),
                finish_reason: finish_reason(route, reply.finish),
            });
            json(&Whole { head, choices: choices.collect(), usage })
        }
        Route::Text => {
            let echoed: Vec<String> = numbered
                .clone()
                .map(|(i, reply)| match echo.get(i / n.max(1)) {
                    Some(prompt) => format!("{prompt}{}", reply.text),
                    None => String::new(),
                })
                .collect();
            let choices = numbered.map(|(index, reply)| TextChoice {
                index,
                text: if echo.is_empty() { &reply.text } else { &echoed[index] },
                logprobs: scored.then(|| text_logprobs(&reply.tokens, &mut 0)),
                finish_reason: Some(finish_reason(route, reply.finish)),
            });
            json(&Whole { head, choices: choices.collect(), usage })
        }
    }
}

fn message(reply: &ChatReply) -> Message<'_> {
    let calls = reply.tool_calls.iter().map(|call| Call {
        index: None,
        id: Some(&call.id),
        r#type: Some("function"),
        function: Function { name: Some(&call.name), arguments: arguments(&call.arguments) },
    });
    // A turn that only calls functions has null as its content.
    let is_silent = reply.text.is_empty() && !reply.tool_calls.is_empty();
    Message {
        role: "assistant",
        content: (!is_silent).then_some(&*reply.text),
        refusal: None,
        tool_calls: calls.collect(),
    }
}

/// Clients parse the arguments, and an empty text is no JSON.
pub(crate) fn arguments(text: &str) -> &str {
    if text.is_empty() { "{}" } else { text }
}

fn finish_reason(route: Route, finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Length | FinishReason::ContextFull => "length",
        FinishReason::ContentFilter => "content_filter",
        FinishReason::ToolCalls if route == Route::Chat => "tool_calls",
        _ => "stop",
    }
}

/// Writes the events of one choice of a stream.
pub(crate) struct ChoiceWriter {
    pub(crate) route: Route,
    pub(crate) head: std::sync::Arc<Head>,
    pub(crate) index: usize,
    /// Whether chunks have a `usage`, which is null in all but the last.
    pub(crate) with_usage: bool,
    pub(crate) is_scored: bool,
    /// Scored tokens whose text has not come yet.
    tokens: Vec<ScoredToken>,
    /// Characters of the tokens so far, for offsets.
    n_characters: usize,
    /// The function call that is being written, and whether it has arguments yet.
    call: Option<(usize, bool)>,
}

impl ChoiceWriter {
    pub(crate) fn new(
        route: Route,
        head: std::sync::Arc<Head>,
        index: usize,
        with_usage: bool,
        is_scored: bool,
    ) -> Self {
        Self { route, head, index, with_usage, is_scored, tokens: Vec::new(), n_characters: 0, call: None }
    }

    /// What stands before the answer: who speaks in a chat, the prompt if it is repeated.
    pub(crate) fn begin(&mut self, echo: Option<&str>) -> Option<String> {
        match self.route {
            Route::Chat | Route::Responses => {
                let delta = ChatDelta { role: Some("assistant"), content: Some(""), tool_calls: None };
                Some(self.chat(delta, None))
            }
            Route::Text => echo.map(|echo| self.text(echo, None)),
        }
    }

    fn take(&mut self, delta: Delta) -> String {
        match delta {
            // They go out with the text that they belong to, as OpenAI sends them.
            Delta::Tokens(tokens) => {
                self.tokens.extend(tokens);
                String::new()
            }
            Delta::Text(text) => match self.route {
                Route::Chat | Route::Responses => {
                    self.chat(ChatDelta { content: Some(&text), ..ChatDelta::default() }, None)
                }
                Route::Text => self.text(&text, None),
            },
            Delta::ToolCall(part) => self.call(&part),
            _ => String::new(),
        }
    }

    fn call(&mut self, part: &ToolCallDelta) -> String {
        let mut out = String::new();
        if self.call.is_some_and(|(index, _)| index != part.index) {
            out += &self.end_call();
        }
        let had = self.call.is_some_and(|(_, had)| had);
        self.call = Some((part.index, had || !part.arguments.is_empty()));
        let call = Call {
            index: Some(part.index),
            id: part.id.as_deref(),
            r#type: part.id.is_some().then_some("function"),
            function: Function { name: part.name.as_deref(), arguments: &part.arguments },
        };
        out += &self.chat(ChatDelta { tool_calls: Some([call]), ..ChatDelta::default() }, None);
        out
    }

    /// Arguments for a call that has none, because clients parse them.
    fn end_call(&mut self) -> String {
        let Some((index, false)) = self.call.take() else { return String::new() };
        let function = Function { name: None, arguments: arguments("") };
        let call = Call { index: Some(index), id: None, r#type: None, function };
        self.chat(ChatDelta { tool_calls: Some([call]), ..ChatDelta::default() }, None)
    }

    fn finish(&mut self, finish: FinishReason) -> String {
        let mut out = self.end_call();
        let reason = Some(finish_reason(self.route, finish));
        out += &match self.route {
            Route::Chat | Route::Responses => self.chat(ChatDelta::default(), reason),
            Route::Text => self.text("", reason),
        };
        out
    }

    fn chat(&mut self, delta: ChatDelta<'_>, finish_reason: Option<&'static str>) -> String {
        let tokens = std::mem::take(&mut self.tokens);
        let logprobs = (self.is_scored && !tokens.is_empty()).then(|| logprobs(&tokens));
        self.event(ChatChunkChoice { index: self.index, delta, logprobs, finish_reason })
    }

    fn text(&mut self, text: &str, finish_reason: Option<&'static str>) -> String {
        let tokens = std::mem::take(&mut self.tokens);
        let logprobs =
            (self.is_scored && !tokens.is_empty()).then(|| text_logprobs(&tokens, &mut self.n_characters));
        self.event(TextChoice { index: self.index, text, logprobs, finish_reason })
    }

    fn event(&self, choice: impl Serialize) -> String {
        let usage = self.with_usage.then_some(None);
        event(&json(&Chunk { head: &self.head, choices: vec![choice], usage }))
    }
}

impl Writer for ChoiceWriter {
    fn piece(&mut self, delta: Delta) -> String {
        self.take(delta)
    }

    fn end(&mut self, reply: &ChatReply) -> String {
        self.finish(reply.finish)
    }
}

/// The event with the number of tokens used, which has no choices.
pub(crate) fn usage_event(head: &Head, usages: &[Usage], n: usize) -> String {
    let usage = Some(Some(usage(usages, n)));
    event(&json(&Chunk::<()> { head, choices: Vec::new(), usage }))
}

/// An event with this data, which must not have line breaks.
pub(crate) fn event(data: &str) -> String {
    format!("data: {data}\n\n")
}

pub(crate) fn json(value: &impl Serialize) -> String {
    // All values here are strings, numbers and maps with strings as keys.
    serde_json::to_string(value).unwrap_or_default()
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// JSON has no infinity; OpenAI's interface says -9999 for what is impossible.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

fn logprobs(tokens: &[ScoredToken]) -> Logprobs {
    Logprobs { content: wire_tokens(tokens), refusal: None }
}

/// Tokens with their log-probabilities.
pub(crate) fn wire_tokens(tokens: &[ScoredToken]) -> Vec<WireToken> {
    let alternative = |bytes: &[u8], logprob| WireAlternative {
        token: text_of(bytes),
        logprob: finite(logprob),
        bytes: bytes.to_vec(),
    };
    let content = tokens.iter().map(|token| WireToken {
        token: alternative(&token.bytes, token.logprob),
        top_logprobs: token.top.iter().map(|other| alternative(&other.bytes, other.logprob)).collect(),
    });
    content.collect()
}

/// The four lists of a text's tokens. `n_characters` is where the first one begins; it moves on.
fn text_logprobs(tokens: &[ScoredToken], n_characters: &mut usize) -> TextLogprobs {
    let mut out = TextLogprobs {
        tokens: Vec::new(),
        token_logprobs: Vec::new(),
        top_logprobs: Vec::new(),
        text_offset: Vec::new(),
    };
    for token in tokens {
        let text = text_of(&token.bytes);
        let mut top = BTreeMap::new();
        // Of two tokens that read the same, the likelier one comes first and stays.
        for other in &token.top {
            top.entry(text_of(&other.bytes)).or_insert(finite(other.logprob));
        }
        out.text_offset.push(*n_characters);
        *n_characters += text.chars().count();
        out.tokens.push(text);
        out.token_logprobs.push(finite(token.logprob));
        out.top_logprobs.push(top);
    }
    out
}
