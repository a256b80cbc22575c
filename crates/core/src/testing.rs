//! The contract of [`ChatModel`] as a test that any implementation can run: local, remote or scripted.
//!
//! ```
//! use breakers_core::{Message, testing};
//!
//! let probe = testing::Probe::new(Message::user("Count."));
//! testing::check_chat_model(&testing::counting_model("test"), &probe);
//! ```

use std::ops::ControlFlow;

use crate::{
    Alternative, CallError, ChatModel, ChatReply, ChatRequest, Delta, FinishReason, Json, Message, Prompt,
    ResponseFormat, SamplingConfig, ScoredToken, Scripted, ScriptedModel, Tool, ToolCall, ToolChoice, Usage,
};

/// What a model is asked while it is checked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Probe {
    /// The greedy answer to it must have at least [`Probe::max_tokens`] tokens, some of them letters.
    pub prompt: Prompt,
    /// Length of an answer in tokens; at least 6.
    pub max_tokens: usize,
    /// A prompt of the model's own tokens, if it accepts such prompts.
    pub tokens: Option<Prompt>,
}

impl Probe {
    /// A probe whose answers are eight tokens long.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        Self { prompt: prompt.into(), max_tokens: 8, tokens: None }
    }

    fn request(&self) -> ChatRequest {
        ChatRequest::new(self.prompt.clone()).with_max_tokens(self.max_tokens).with_seed(7)
    }
}

/// Tests a model against the contract of [`ChatModel`]: the pieces make up the answer, limits and stop
/// strings are obeyed, receivers can stop it, batches and threads change nothing, and what the model's card
/// lacks is refused.
///
/// # Panics
/// If the model breaks any part of the contract.
pub fn check_chat_model(model: &dyn ChatModel, probe: &Probe) {
    let whole = answer(model, &probe.request());
    assert!(
        whole.text.chars().any(char::is_alphabetic),
        "the probe's answer needs letters: {:?}",
        whole.text
    );
    assert_eq!(whole.usage.completion, probe.max_tokens as u64, "the probe's answer is too short");
    assert_eq!(whole.finish, FinishReason::Length);
    assert!(whole.usage.prompt > 0 && !whole.model.is_empty());
    check_limits(model, probe, &whole);
    check_cancelling(model, probe, &whole);
    check_companions(model, probe, &whole);
    check_logprobs(model, probe);
    check_tools(model, probe);
    check_refusals(model, probe);
}

/// Calls a model and checks that the pieces it hands out make up its reply.
fn answer(model: &dyn ChatModel, request: &ChatRequest) -> ChatReply {
    let (mut text, mut tokens, mut calls) = (String::new(), Vec::new(), Vec::<ToolCall>::new());
    let reply = model.chat(request, &mut |delta| {
        match delta {
            Delta::Text(piece) => {
                assert!(!piece.is_empty(), "a piece is empty");
                text += &piece;
            }
            Delta::Tokens(pieces) => tokens.extend(pieces),
            Delta::ToolCall(part) if part.index == calls.len() => {
                let (id, name) = (part.id.expect("a call's id"), part.name.expect("a call's name"));
                calls.push(ToolCall::new(id, name, part.arguments));
            }
            Delta::ToolCall(part) => {
                assert_eq!((part.index + 1, part.id, part.name), (calls.len(), None, None));
                calls[part.index].arguments += &part.arguments;
            }
            Delta::Progress(progress) => {
                assert!(progress.read <= progress.total, "{progress:?}");
                assert!(text.is_empty() && tokens.is_empty() && calls.is_empty(), "a prompt is read before");
            }
        }
        ControlFlow::Continue(())
    });
    let reply = reply.unwrap_or_else(|error| panic!("{error}: {request:?}"));
    assert_eq!((&text, &tokens, &calls), (&reply.text, &reply.tokens, &reply.tool_calls), "pieces and reply");
    assert!(reply.timings.first_token.is_none_or(|first| first <= reply.timings.total));
    assert!(request.max_tokens.is_none_or(|max| reply.usage.completion <= max as u64));
    reply
}

fn is_repeatable(model: &dyn ChatModel) -> bool {
    model.card().capabilities.seed
}

/// Lengths and stop strings.
fn check_limits(model: &dyn ChatModel, probe: &Probe, whole: &ChatReply) {
    for max_tokens in [1, 3] {
        let short = answer(model, &probe.request().with_max_tokens(max_tokens));
        assert_eq!((short.usage.completion, short.finish), (max_tokens as u64, FinishReason::Length));
        assert!(!is_repeatable(model) || whole.text.starts_with(&short.text), "{short:?} {whole:?}");
    }
    if !is_repeatable(model) {
        return;
    }
    assert_eq!(answer(model, &probe.request()).text, whole.text);
    let drawn = probe.request().with_sampling(SamplingConfig::temperature(1.0));
    assert_eq!(answer(model, &drawn).text, answer(model, &drawn).text, "the same seed");
    let absent = answer(model, &probe.request().with_stop(["\u{0}never\u{0}"]));
    assert_eq!((absent.text.as_str(), absent.finish), (whole.text.as_str(), FinishReason::Length));
    // Every pair of characters in the answer, wherever its tokens end.
    let starts: Vec<usize> = whole.text.char_indices().map(|(at, _)| at).collect();
    for window in starts.windows(3) {
        let stop = &whole.text[window[0]..window[2]];
        let reply = answer(model, &probe.request().with_stop(["\u{0}never\u{0}", stop]));
        let expected = &whole.text[..whole.text.find(stop).expect("a part of it")];
        assert_eq!(reply.text, expected, "stopped by {stop:?}");
        // An endpoint need not say which of the two it was.
        assert!(matches!(reply.finish, FinishReason::Stop | FinishReason::EndOfText), "{:?}", reply.finish);
    }
}

/// Receivers that end an answer.
fn check_cancelling(model: &dyn ChatModel, probe: &Probe, whole: &ChatReply) {
    for wanted in 1..=3 {
        let (mut heard, mut text) = (0, String::new());
        let reply = model.chat(&probe.request(), &mut |delta| {
            assert!(heard < wanted, "a piece after the receiver has ended the answer");
            heard += 1;
            if let Delta::Text(piece) = delta {
                text += &piece;
            }
            if heard == wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let reply = reply.unwrap_or_else(|error| panic!("{error}"));
        // A model that answers in one piece has no second piece to suppress.
        if heard == wanted {
            assert_eq!((reply.finish, &reply.text), (FinishReason::Cancelled, &text));
        }
        assert!(!is_repeatable(model) || whole.text.starts_with(&reply.text));
    }
}

/// Batches, and threads at the same time.
fn check_companions(model: &dyn ChatModel, probe: &Probe, whole: &ChatReply) {
    let mut wrong = probe.request();
    wrong.sampling.top_p = 2.0;
    let requests = [probe.request(), wrong, probe.request().with_max_tokens(2), probe.request()];
    let replies = model.chat_batch(&requests);
    assert_eq!(replies.len(), requests.len());
    for (i, (reply, request)) in replies.iter().zip(&requests).enumerate() {
        match reply {
            Err(CallError::BadRequest { .. }) if i == 1 => {}
            Ok(reply) if i != 1 => {
                assert_eq!(reply.usage.completion, request.max_tokens.unwrap_or(0) as u64);
                assert!(!is_repeatable(model) || whole.text.starts_with(&reply.text));
            }
            other => panic!("request {i}: {other:?}"),
        }
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let reply = answer(model, &probe.request());
                assert!(!is_repeatable(model) || reply.text == whole.text);
            });
        }
    });
}

fn check_logprobs(model: &dyn ChatModel, probe: &Probe) {
    let request = probe.request().with_logprobs(2);
    if !model.card().capabilities.logprobs {
        return refused(model, &request);
    }
    let reply = answer(model, &request);
    assert_eq!(reply.tokens.len() as u64, reply.usage.completion);
    let bytes: Vec<u8> = reply.tokens.iter().flat_map(|token| token.bytes.clone()).collect();
    assert!(bytes.starts_with(reply.text.as_bytes()), "{bytes:?} {:?}", reply.text);
    for token in &reply.tokens {
        assert!(token.logprob <= 0.0 && token.top.len() <= 2, "{token:?}");
        assert!(token.top.is_sorted_by(|a, b| a.logprob >= b.logprob), "{token:?}");
        // The greedy token is the best of its place.
        assert!(token.top.first().is_none_or(|best| best.logprob == token.logprob), "{token:?}");
    }
    assert!(reply.logprob().is_some_and(|sum| sum <= 0.0));
    let bare = answer(model, &probe.request().with_logprobs(0));
    assert!(bare.tokens.iter().all(|token| token.top.is_empty()) && !bare.tokens.is_empty());
    assert!(answer(model, &probe.request()).tokens.is_empty(), "nobody asked for them");
}

fn check_tools(model: &dyn ChatModel, probe: &Probe) {
    let parameters = r#"{"type": "object", "properties": {"city": {"type": "string"}}}"#;
    let tool = Tool::new("weather", Json::parse(parameters).expect("JSON"));
    let request = probe.request().with_tools([tool], ToolChoice::Required);
    if !model.card().capabilities.tools {
        return refused(model, &request);
    }
    let reply = answer(model, &request.with_max_tokens(200));
    assert_eq!(reply.finish, FinishReason::ToolCalls);
    assert!(!reply.tool_calls.is_empty(), "a call was required");
    for call in &reply.tool_calls {
        assert!(call.name == "weather" && !call.id.is_empty() && call.arguments_json().is_ok(), "{call:?}");
    }
}

/// Requests that no model can serve, and those that this one cannot.
fn check_refusals(model: &dyn ChatModel, probe: &Probe) {
    let can = model.card().capabilities;
    for temperature in [f32::NAN, -1.0, f32::INFINITY] {
        let request = probe.request().with_sampling(SamplingConfig::temperature(temperature));
        let error = model.chat(&request, &mut nothing).expect_err("no temperature");
        assert!(matches!(error, CallError::BadRequest { .. }), "{error:?}");
    }
    let required = probe.request().with_tools([], ToolChoice::Required);
    let error = model.chat(&required, &mut nothing).expect_err("there is no tool");
    assert!(matches!(error, CallError::BadRequest { .. } | CallError::Unsupported { .. }), "{error:?}");
    let json = probe.request().with_response(ResponseFormat::JsonObject);
    if can.json {
        let reply = answer(model, &json.with_max_tokens(200));
        let is_json = Json::parse(&reply.text).is_ok();
        assert!(is_json || reply.finish == FinishReason::Length, "{reply:?}");
    } else {
        refused(model, &json);
    }
    let prompts = [
        (can.text, Some(Prompt::from("Once upon a time"))),
        (can.chat, Some(Message::user("Count.").into())),
        (can.tokens, probe.tokens.clone().or((!can.tokens).then(|| vec![1].into()))),
    ];
    for (can, prompt) in prompts {
        let Some(prompt) = prompt else { continue };
        let request = ChatRequest::new(prompt).with_max_tokens(3);
        if can {
            answer(model, &request);
        } else {
            refused(model, &request);
        }
    }
    if let Some(limit) = model.card().max_context {
        let mut request = probe.request();
        let text = "one ".repeat(limit + 1);
        request.prompt = if can.chat { Message::user(text).into() } else { text.into() };
        let error = model.chat(&request, &mut nothing).expect_err("longer than the context");
        assert!(matches!(error, CallError::ContextTooLong { .. }), "{error:?}");
    }
}

fn refused(model: &dyn ChatModel, request: &ChatRequest) {
    let error = model.chat(request, &mut |_| panic!("an answer to what was to be refused")).map(|_| ());
    assert!(matches!(error, Err(CallError::Unsupported { .. })), "{error:?}: {request:?}");
}

fn nothing(_: Delta) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Words that [`counting_model`] says.
const WORDS: [&str; 12] = [
    "one",
    " two",
    " three",
    " four",
    " f\u{fc}nf",
    " six",
    " seven",
    " eight",
    " nine",
    " ten",
    " eleven",
    ".",
];
/// Its context, in words.
const CONTEXT: usize = 64;

/// A scripted model that counts to eleven, with a token for each word, and keeps the contract: limits, stop
/// strings, log-probabilities, functions, JSON, a context of 64 words.
pub fn counting_model(id: impl Into<String>) -> ScriptedModel {
    let id = id.into();
    let mut card = crate::ModelCard::new(id.clone());
    card.max_context = Some(CONTEXT);
    let can = &mut card.capabilities;
    (can.chat, can.text, can.tools, can.json) = (true, true, true, true);
    (can.logprobs, can.seed) = (true, true);
    ScriptedModel::from_fn(id.clone(), move |request| count(&id, request).unwrap_or_else(Scripted::from))
        .with_card(card)
}

fn count(id: &str, request: &ChatRequest) -> Result<Scripted, CallError> {
    request.sampling.validate()?;
    let text = match &request.prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Chat(messages) => messages.iter().map(|message| message.text().into_owned() + " ").collect(),
        Prompt::Tokens(_) => return Err(CallError::unsupported(id, "prompts of tokens")),
    };
    let n_prompt = text.split_whitespace().count().max(1);
    if n_prompt >= CONTEXT {
        return Err(CallError::ContextTooLong { needed: Some(n_prompt + 1), limit: Some(CONTEXT) });
    }
    let must_call = !matches!(request.tool_choice, ToolChoice::Auto | ToolChoice::None);
    if must_call {
        let Some(tool) = request.tools.first() else {
            return Err(CallError::bad_request("tool_choice", "there is no tool"));
        };
        let mut reply = ChatReply::new("", FinishReason::ToolCalls);
        reply.tool_calls.push(ToolCall::new("call_1", tool.name.clone(), r#"{"city": "Oslo"}"#));
        return Ok(reply.into());
    }
    if request.response != ResponseFormat::Text {
        return Ok(Scripted::from("{\"count\": 11}"));
    }
    let n = request.max_tokens.unwrap_or(usize::MAX).min(WORDS.len());
    let mut text = WORDS[..n].concat();
    let is_cut = request.max_tokens.is_some_and(|max| max <= WORDS.len());
    let mut finish = if is_cut { FinishReason::Length } else { FinishReason::EndOfText };
    let stop = request.stop.iter().filter_map(|stop| text.find(stop.as_str())).min();
    let mut n_said = n;
    if let Some(at) = stop {
        text.truncate(at);
        finish = FinishReason::Stop;
        n_said = WORDS
            .iter()
            .scan(0, |sum, word| {
                *sum += word.len();
                Some(*sum)
            })
            .take_while(|&end| end <= at)
            .count()
            + 1;
    }
    let mut reply = ChatReply::new(text, finish);
    reply.usage = Usage::new(n_prompt as u64, n_said as u64);
    reply.seed = request.seed;
    if let Some(n_top) = request.top_logprobs {
        for (i, word) in WORDS[..n_said].iter().enumerate() {
            let mut token = ScoredToken::new(None, *word, -0.125 * i as f32);
            let best = Alternative::new(None, *word, token.logprob);
            token.top = [best, Alternative::new(None, " no", -9.5)].into_iter().take(n_top).collect();
            reply.tokens.push(token);
        }
    }
    Ok(reply.into())
}
