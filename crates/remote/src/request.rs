//! A request as JSON for an endpoint.

use breakers_core::{
    CallError, ChatRequest, Message, Prompt, ResponseFormat, Role, SamplingConfig, ToolChoice,
};
use serde_json::{Map, Value, json};

use crate::config::{Dialect, RemoteConfig};

/// Which of the endpoint's two completion routes to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/chat/completions`.
    Chat,
    /// `/completions`, for texts and tokens that are continued without a chat format.
    Text,
}

impl Route {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Route::Chat => "chat/completions",
            Route::Text => "completions",
        }
    }
}

/// The body of a request, and where it goes.
///
/// # Errors
/// [`CallError::Unsupported`] for features that the card or the dialect lacks, [`CallError::BadRequest`] for
/// requests that no model can serve.
pub(crate) fn body(config: &RemoteConfig, request: &ChatRequest) -> Result<(Route, Value), CallError> {
    let card = &config.card;
    let can = &card.capabilities;
    let need = |has: bool, feature: &str| {
        if has { Ok(()) } else { Err(CallError::unsupported(&card.id, feature)) }
    };
    let mut body = Map::new();
    body.insert("model".to_owned(), json!(card.id));
    let route = match &request.prompt {
        Prompt::Chat(messages) => {
            need(can.chat, "conversations")?;
            if messages.is_empty() {
                return Err(CallError::bad_request("messages", "a conversation needs a message"));
            }
            let messages: Result<Vec<Value>, _> = messages.iter().map(message).collect();
            body.insert("messages".to_owned(), messages?.into());
            Route::Chat
        }
        Prompt::Text(text) => {
            need(can.text, "texts that are continued as they are")?;
            body.insert("prompt".to_owned(), json!(text));
            Route::Text
        }
        Prompt::Tokens(tokens) => {
            need(can.tokens, "prompts of tokens")?;
            body.insert("prompt".to_owned(), json!(tokens));
            Route::Text
        }
        _ => return Err(CallError::unsupported(&card.id, "a prompt of this kind")),
    };
    need(request.tools.is_empty() || can.tools, "tools")?;
    need(can.json || matches!(request.response, ResponseFormat::Text), "answers of this form")?;
    let ChatRequest { max_tokens, sampling, seed, stop, top_logprobs, .. } = request;
    if let Some(max_tokens) = max_tokens {
        if *max_tokens == 0 {
            return Err(CallError::bad_request("max_tokens", "at least one token is needed"));
        }
        // OpenAI's reasoning models accept only the new name, other servers often only the old one.
        let name = match (config.dialect, route) {
            (Dialect::OpenAi, Route::Chat) => "max_completion_tokens",
            _ => "max_tokens",
        };
        body.insert(name.to_owned(), json!(max_tokens));
    }
    sample(config, sampling, &mut body)?;
    if let Some(seed) = seed {
        if config.dialect == Dialect::LlamaCpp && *seed >= u64::from(u32::MAX) {
            return Err(CallError::bad_request("seed", "this server has seeds below 2^32 - 1 only"));
        }
        // The protocol's seeds are signed, so large ones are sent with the same bits.
        body.insert("seed".to_owned(), json!(seed.cast_signed()));
    }
    if stop.iter().any(String::is_empty) {
        return Err(CallError::bad_request("stop", "an empty text ends nothing"));
    }
    if !stop.is_empty() {
        body.insert("stop".to_owned(), json!(stop));
    }
    if let Some(n) = top_logprobs {
        need(can.logprobs, "log-probabilities")?;
        match route {
            Route::Chat => {
                body.insert("logprobs".to_owned(), json!(true));
                body.insert("top_logprobs".to_owned(), json!(n));
            }
            Route::Text => {
                body.insert("logprobs".to_owned(), json!(n));
            }
        }
    }
    tools(request, route, &need, &mut body)?;
    form(config, request, route, &mut body)?;
    // It may be left out, since it never changes an answer; OpenAI's interface has it for chats alone.
    if let Some(prediction) = request.prediction.as_ref().filter(|_| can.prediction && route == Route::Chat) {
        body.insert("prediction".to_owned(), json!({"type": "content", "content": prediction}));
    }
    if config.stream {
        body.insert("stream".to_owned(), json!(true));
        body.insert("stream_options".to_owned(), json!({"include_usage": true}));
    }
    for (name, value) in &config.body {
        let value = serde_json::from_str(value.as_str());
        body.insert(name.clone(), value.map_err(|error| CallError::bad_request(name, error.to_string()))?);
    }
    Ok((route, body.into()))
}

/// Adds the tools.
fn tools(
    request: &ChatRequest,
    route: Route,
    need: &impl Fn(bool, &str) -> Result<(), CallError>,
    body: &mut Map<String, Value>,
) -> Result<(), CallError> {
    let bad = |param: &str, message: &str| Err(CallError::bad_request(param, message));
    if request.tools.is_empty() {
        if matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Function(_)) {
            return bad("tool_choice", "there are no tools to choose from");
        }
        if request.parallel_tool_calls.is_some() {
            return bad("parallel_tool_calls", "there are no tools");
        }
        return Ok(());
    }
    need(route == Route::Chat, "tools for a text that is continued as it is")?;
    let tools: Result<Vec<Value>, _> = request.tools.iter().map(|tool| value(&tool.to_json())).collect();
    body.insert("tools".to_owned(), tools?.into());
    let choice = match &request.tool_choice {
        ToolChoice::Auto => json!("auto"),
        ToolChoice::None => json!("none"),
        ToolChoice::Required => json!("required"),
        ToolChoice::Function(name) => {
            if !request.tools.iter().any(|tool| tool.name == *name) {
                return bad("tool_choice", "there is no tool of this name");
            }
            json!({"type": "function", "function": {"name": name}})
        }
        _ => return bad("tool_choice", "a choice that this build does not know"),
    };
    body.insert("tool_choice".to_owned(), choice);
    if let Some(parallel) = request.parallel_tool_calls {
        body.insert("parallel_tool_calls".to_owned(), json!(parallel));
    }
    Ok(())
}

/// Adds the form of the answer.
fn form(
    config: &RemoteConfig,
    request: &ChatRequest,
    route: Route,
    body: &mut Map<String, Value>,
) -> Result<(), CallError> {
    let unsupported = |feature: &str| Err(CallError::unsupported(&config.card.id, feature));
    let is_empty = match &request.response {
        ResponseFormat::Regex(text) | ResponseFormat::Lark(text) => text.is_empty(),
        ResponseFormat::Choice(texts) => texts.is_empty() || texts.iter().any(String::is_empty),
        _ => false,
    };
    if is_empty {
        // Servers take it for none, and answer with any text.
        return Err(CallError::bad_request("response", "the form, or one of its choices, is empty"));
    }
    let (name, form) = match (&request.response, config.dialect) {
        (ResponseFormat::Text, _) => return Ok(()),
        (ResponseFormat::JsonObject, _) => ("response_format", json!({"type": "json_object"})),
        (ResponseFormat::JsonSchema(schema), _) => {
            let (name, strict) = (&schema.name, schema.strict);
            let schema = value(&schema.schema)?;
            let schema = json!({"name": name, "schema": schema, "strict": strict});
            ("response_format", json!({"type": "json_schema", "json_schema": schema}))
        }
        (ResponseFormat::Regex(regex), Dialect::Vllm) => ("structured_outputs", json!({"regex": regex})),
        (ResponseFormat::Lark(grammar), Dialect::Vllm) => ("structured_outputs", json!({"grammar": grammar})),
        (ResponseFormat::Choice(texts), Dialect::Vllm) => ("structured_outputs", json!({"choice": texts})),
        (ResponseFormat::Choice(texts), Dialect::LlamaCpp) => ("grammar", json!(gbnf_of(texts))),
        (ResponseFormat::Regex(_), _) => return unsupported("regular expressions outside vLLM's dialect"),
        (ResponseFormat::Lark(_), _) => return unsupported("grammars outside vLLM's dialect"),
        (ResponseFormat::Choice(_), _) => return unsupported("choices in OpenAI's dialect"),
        _ => return Err(CallError::bad_request("response", "a form that this build does not know")),
    };
    if name == "response_format" && route != Route::Chat {
        return unsupported("a form for a text that is continued as it is");
    }
    body.insert(name.to_owned(), form);
    Ok(())
}

/// A grammar of just these texts, in llama.cpp's notation.
fn gbnf_of(texts: &[String]) -> String {
    let mut out = "root ::=".to_owned();
    for (i, text) in texts.iter().enumerate() {
        out.push_str(if i == 0 { " \"" } else { " | \"" });
        for c in text.chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if c.is_control() => out.push_str(&format!("\\U{:08X}", u32::from(c))),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    out
}

/// Adds how tokens are drawn. Settings that change nothing are not sent.
fn sample(
    config: &RemoteConfig,
    sampling: &SamplingConfig,
    body: &mut Map<String, Value>,
) -> Result<(), CallError> {
    sampling.validate()?;
    let SamplingConfig {
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        repetition_window,
        logit_bias,
    } = sampling;
    // By way of the shortest decimal form, which is what the caller wrote.
    let number = |x: &f32| serde_json::from_str(&x.to_string()).unwrap_or_else(|_| json!(x));
    body.insert("temperature".to_owned(), number(temperature));
    let knows = |feature: &str, dialects: &[Dialect]| {
        let ok = dialects.contains(&config.dialect);
        if ok { Ok(()) } else { Err(CallError::unsupported(&config.card.id, feature)) }
    };
    let is_drawn = !sampling.is_greedy();
    if is_drawn && *top_p < 1.0 {
        body.insert("top_p".to_owned(), number(top_p));
    }
    if is_drawn && *top_k > 0 {
        knows("top_k", &[Dialect::LlamaCpp, Dialect::Vllm])?;
        body.insert("top_k".to_owned(), json!(top_k));
    }
    if is_drawn && *min_p > 0.0 {
        knows("min_p", &[Dialect::LlamaCpp, Dialect::Vllm])?;
        body.insert("min_p".to_owned(), number(min_p));
    }
    if *repetition_penalty != 1.0 {
        knows("repetition_penalty", &[Dialect::LlamaCpp])?;
        body.insert("repeat_penalty".to_owned(), number(repetition_penalty));
        body.insert("repeat_last_n".to_owned(), json!(repetition_window));
    }
    // OpenAI's penalties look at the whole answer.
    if *frequency_penalty != 0.0 || *presence_penalty != 0.0 {
        for (name, penalty) in
            [("frequency_penalty", frequency_penalty), ("presence_penalty", presence_penalty)]
        {
            if *penalty != 0.0 {
                body.insert(name.to_owned(), number(penalty));
            }
        }
        if config.dialect == Dialect::LlamaCpp {
            body.insert("repeat_last_n".to_owned(), json!(repetition_window));
        }
    }
    if !logit_bias.is_empty() {
        let bias = logit_bias.iter().map(|(token, bias)| (token.to_string(), number(bias)));
        body.insert("logit_bias".to_owned(), Value::Object(bias.collect()));
    }
    if config.dialect == Dialect::LlamaCpp && is_drawn {
        // The server's own defaults are not neutral.
        body.entry("top_k").or_insert(json!(0));
        body.entry("top_p").or_insert(json!(1));
        body.entry("min_p").or_insert(json!(0));
    }
    Ok(())
}

fn message(message: &Message) -> Result<Value, CallError> {
    let mut out = Map::new();
    out.insert("role".to_owned(), json!(message.role.as_str()));
    let text = message.text();
    // A turn that only calls functions has null as its content.
    let content = if text.is_empty() && !message.tool_calls.is_empty() { Value::Null } else { json!(text) };
    out.insert("content".to_owned(), content);
    if !message.tool_calls.is_empty() {
        if message.role != Role::Assistant {
            return Err(CallError::bad_request("messages", "only the model calls functions"));
        }
        let calls = message.tool_calls.iter().map(|call| {
            let function = json!({"name": call.name, "arguments": call.arguments});
            json!({"id": call.id, "type": "function", "function": function})
        });
        out.insert("tool_calls".to_owned(), calls.collect());
    }
    if let Some(id) = &message.tool_call_id {
        out.insert("tool_call_id".to_owned(), json!(id));
    }
    for (name, field) in &message.fields {
        out.insert(name.clone(), value(field)?);
    }
    Ok(out.into())
}

fn value(json: &breakers_core::Json) -> Result<Value, CallError> {
    serde_json::from_str(json.as_str()).map_err(|error| CallError::bad_request("request", error.to_string()))
}
