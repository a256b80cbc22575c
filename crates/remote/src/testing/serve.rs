//! A model as an endpoint: converts requests and answers from and to OpenAI's format.

use std::cell::RefCell;
use std::io;
use std::ops::ControlFlow;

use breakers_core::{
    CallError, ChatModel, ChatReply, ChatRequest, Delta, FinishReason, Json, Message, Prompt, ResponseFormat,
    ResponseSchema, SamplingConfig, ScoredToken, Tool, ToolCall, ToolChoice,
};
use serde_json::{Map, Value, json};

use super::{Connection, HttpRequest};

/// Answers a request with what the model says.
pub(super) fn answer(
    model: &dyn ChatModel,
    http: &HttpRequest,
    connection: &mut Connection,
) -> io::Result<()> {
    let is_chat = http.path.ends_with("/chat/completions");
    let body = http.json();
    let request = match &body {
        Some(body) if is_chat || http.path.ends_with("/completions") => parse(body),
        _ => Err(CallError::BadRequest {
            param: None,
            message: format!("{} is not a request for a model", http.path),
        }),
    };
    let request = match request {
        Ok(request) => request,
        Err(error) => return fail(connection, &error),
    };
    let body = body.unwrap_or_default();
    let id = body["model"].as_str().unwrap_or_default();
    if id != model.card().id {
        return fail(connection, &CallError::ModelNotFound { model: id.to_owned() });
    }
    if body["stream"] != true {
        return match model.chat(&request, &mut |_| ControlFlow::Continue(())) {
            Ok(reply) => connection.json(200, &[], &whole(&reply, &request, is_chat).to_string()),
            Err(error) => fail(connection, &error),
        };
    }
    // Headers are sent with the first piece, so that an error before it can set the status.
    let begun = RefCell::new(false);
    let begin = |connection: &mut Connection| {
        if begun.replace(true) { Ok(()) } else { connection.start_events() }
    };
    let mut result = Ok(());
    let reply = model.chat(&request, &mut |delta| {
        let piece = piece(&delta, id, is_chat);
        result = begin(connection).and_then(|()| connection.event(&piece.to_string()));
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    result?;
    match reply {
        Ok(reply) => {
            begin(connection)?;
            let mut last = chunk(&reply.model, is_chat);
            last["choices"] = json!([choice_end(&reply, &request, json!({}), is_chat)]);
            connection.event(&last.to_string())?;
            let mut usage = chunk(&reply.model, is_chat);
            usage["usage"] = usage_of(&reply);
            connection.event(&usage.to_string())?;
            connection.event("[DONE]")?;
            connection.end()
        }
        Err(error) if begun.take() => {
            connection.event(&error_of(&error).2.to_string())?;
            connection.end()
        }
        Err(error) => fail(connection, &error),
    }
}

fn fail(connection: &mut Connection, error: &CallError) -> io::Result<()> {
    if matches!(error, CallError::Transport(_)) {
        return Err(io::Error::other(error.to_string()));
    }
    let (status, headers, body) = error_of(error);
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    connection.json(status, &headers, &body.to_string())
}

/// Status, headers and body for an error.
fn error_of(error: &CallError) -> (u16, Vec<(&'static str, String)>, Value) {
    use CallError::*;
    let (status, code, kind) = match error {
        RateLimited { .. } => (429, "rate_limit_exceeded", "requests"),
        Overloaded { .. } => (503, "overloaded", "server_error"),
        Timeout { .. } => (504, "timeout", "server_error"),
        ContextTooLong { .. } => (400, "context_length_exceeded", "invalid_request_error"),
        ContentFiltered { .. } => (400, "content_filter", "invalid_request_error"),
        BadRequest { .. } | Unsupported { .. } => (400, "invalid_value", "invalid_request_error"),
        Auth { .. } => (401, "invalid_api_key", "authentication_error"),
        ModelNotFound { .. } => (404, "model_not_found", "invalid_request_error"),
        _ => (500, "failed", "server_error"),
    };
    let message = match error {
        ContextTooLong { needed: Some(needed), limit: Some(limit) } => {
            format!(
                "This model's maximum context length is {limit} tokens. However, you requested {needed} tokens."
            )
        }
        ContentFiltered { message } | BadRequest { message, .. } | Auth { message } => message.clone(),
        other => other.to_string(),
    };
    let param = match error {
        BadRequest { param, .. } => param.clone(),
        _ => None,
    };
    let mut headers = Vec::new();
    if let Some(after) = error.retry_after() {
        headers.push(("Retry-After-Ms", after.as_millis().to_string()));
    }
    if status == 500 {
        headers.push(("X-Should-Retry", "false".to_owned()));
    }
    (status, headers, json!({"error": {"message": message, "type": kind, "param": param, "code": code}}))
}

fn chunk(model: &str, is_chat: bool) -> Value {
    let object = if is_chat { "chat.completion.chunk" } else { "text_completion" };
    json!({"id": "test", "object": object, "created": 0, "model": model, "choices": []})
}

fn piece(delta: &Delta, model: &str, is_chat: bool) -> Value {
    let mut choice = json!({"index": 0, "finish_reason": null, "logprobs": null});
    if is_chat {
        choice["delta"] = json!({});
    }
    match delta {
        Delta::Text(text) if is_chat => choice["delta"] = json!({"content": text}),
        Delta::Text(text) => choice["text"] = json!(text),
        Delta::Tokens(tokens) => choice["logprobs"] = logprobs(tokens, is_chat),
        Delta::ToolCall(part) => {
            let mut function = json!({"arguments": part.arguments});
            let mut call = json!({"index": part.index});
            if let (Some(id), Some(name)) = (&part.id, &part.name) {
                function["name"] = json!(name);
                call["id"] = json!(id);
                call["type"] = json!("function");
            }
            call["function"] = function;
            choice["delta"] = json!({"tool_calls": [call]});
        }
        _ => {}
    }
    let mut out = chunk(model, is_chat);
    out["choices"] = json!([choice]);
    out
}

fn whole(reply: &ChatReply, request: &ChatRequest, is_chat: bool) -> Value {
    let mut choice = if is_chat {
        let mut message = json!({"role": "assistant", "content": reply.text, "refusal": null});
        if !reply.tool_calls.is_empty() {
            let calls = reply.tool_calls.iter().map(|call| {
                let function = json!({"name": call.name, "arguments": call.arguments});
                json!({"id": call.id, "type": "function", "function": function})
            });
            message["tool_calls"] = calls.collect();
        }
        json!({"message": message})
    } else {
        json!({"text": reply.text})
    };
    choice["logprobs"] = logprobs(&reply.tokens, is_chat);
    let mut out = chunk(&reply.model, is_chat);
    out["choices"] = json!([choice_end(reply, request, choice, is_chat)]);
    out["usage"] = usage_of(reply);
    out
}

fn choice_end(reply: &ChatReply, request: &ChatRequest, mut choice: Value, is_chat: bool) -> Value {
    let word = match reply.finish {
        FinishReason::Length | FinishReason::ContextFull => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::ContentFilter => "content_filter",
        _ => "stop",
    };
    choice["index"] = json!(0);
    choice["finish_reason"] = json!(word);
    if is_chat && choice.get("message").is_none() {
        choice["delta"] = json!({});
    }
    if reply.finish == FinishReason::Stop {
        choice["stop_reason"] = json!(request.stop.first());
    }
    choice
}

fn usage_of(reply: &ChatReply) -> Value {
    let usage = &reply.usage;
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total(),
        "prompt_tokens_details": {"cached_tokens": usage.cached_prompt},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "accepted_prediction_tokens": usage.predicted,
            "rejected_prediction_tokens": usage.mispredicted,
        },
    })
}

fn logprobs(tokens: &[ScoredToken], is_chat: bool) -> Value {
    if tokens.is_empty() {
        return Value::Null;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !is_chat {
        let top = tokens.iter().map(|token| {
            token.top.iter().map(|other| (text(&other.bytes), json!(other.logprob))).collect::<Map<_, _>>()
        });
        return json!({
            "tokens": tokens.iter().map(|token| text(&token.bytes)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
            "top_logprobs": top.collect::<Vec<_>>(),
        });
    }
    let content = tokens.iter().map(|token| {
        let top = token.top.iter().map(|other| {
            json!({"token": text(&other.bytes), "logprob": other.logprob, "bytes": other.bytes})
        });
        let top: Vec<Value> = top.collect();
        json!({"token": text(&token.bytes), "logprob": token.logprob, "bytes": token.bytes, "top_logprobs": top})
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

fn parse(body: &Value) -> Result<ChatRequest, CallError> {
    let bad = |param: &str| CallError::bad_request(param, "not what the protocol says");
    let prompt = match (&body["messages"], &body["prompt"]) {
        (Value::Array(messages), _) => {
            Prompt::Chat(messages.iter().map(message).collect::<Option<_>>().ok_or_else(|| bad("messages"))?)
        }
        (_, Value::String(text)) => Prompt::Text(text.clone()),
        (_, tokens @ Value::Array(_)) => {
            Prompt::Tokens(serde_json::from_value(tokens.clone()).map_err(|_| bad("prompt"))?)
        }
        _ => return Err(bad("messages")),
    };
    let mut request = ChatRequest::new(prompt);
    let count = |name: &str| body[name].as_u64().and_then(|n| usize::try_from(n).ok());
    request.max_tokens = count("max_completion_tokens").or_else(|| count("max_tokens"));
    let number = |name: &str, default: f64| body[name].as_f64().unwrap_or(default) as f32;
    let mut sampling = SamplingConfig::temperature(number("temperature", 1.0));
    sampling.top_p = number("top_p", 1.0);
    sampling.min_p = number("min_p", 0.0);
    sampling.top_k = count("top_k").unwrap_or(0);
    sampling.repetition_penalty = number("repeat_penalty", 1.0);
    sampling.repetition_window = count("repeat_last_n").unwrap_or(sampling.repetition_window);
    request.sampling = sampling;
    request.seed = body["seed"].as_i64().map(i64::cast_unsigned);
    request.stop = match &body["stop"] {
        Value::String(text) => vec![text.clone()],
        Value::Array(texts) => texts.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    request.top_logprobs = match &body["logprobs"] {
        Value::Bool(true) => Some(count("top_logprobs").unwrap_or(0)),
        _ => count("logprobs"),
    };
    let tools = body["tools"].as_array().map_or(&[][..], |tools| tools);
    request.tools = tools.iter().map(tool).collect::<Option<_>>().ok_or_else(|| bad("tools"))?;
    request.tool_choice = match &body["tool_choice"] {
        Value::String(word) if word == "none" => ToolChoice::None,
        Value::String(word) if word == "required" => ToolChoice::Required,
        Value::Object(choice) => {
            ToolChoice::Function(choice["function"]["name"].as_str().unwrap_or_default().to_owned())
        }
        _ => ToolChoice::Auto,
    };
    request.parallel_tool_calls = body["parallel_tool_calls"].as_bool();
    let format = &body["response_format"];
    request.response = match format["type"].as_str() {
        Some("json_object") => ResponseFormat::JsonObject,
        Some("json_schema") => {
            let wire = &format["json_schema"];
            let name = wire["name"].as_str().unwrap_or_default();
            let schema = Json::from_serialize(&wire["schema"]).map_err(|_| bad("response_format"))?;
            let mut schema = ResponseSchema::new(name, schema);
            schema.strict = wire["strict"] == true;
            ResponseFormat::JsonSchema(schema)
        }
        _ => ResponseFormat::Text,
    };
    Ok(request)
}

fn message(wire: &Value) -> Option<Message> {
    let mut message = Message::new(wire["role"].as_str()?, wire["content"].as_str().unwrap_or_default());
    for call in wire["tool_calls"].as_array().into_iter().flatten() {
        let function = &call["function"];
        message = message.with_tool_call(ToolCall::new(
            call["id"].as_str()?,
            function["name"].as_str()?,
            function["arguments"].as_str()?,
        ));
    }
    message.tool_call_id = wire["tool_call_id"].as_str().map(str::to_owned);
    Some(message)
}

fn tool(wire: &Value) -> Option<Tool> {
    let function = &wire["function"];
    let mut tool = Tool::new(function["name"].as_str()?, Json::from_serialize(&function["parameters"]).ok()?);
    tool.description = function["description"].as_str().map(str::to_owned);
    tool.strict = function["strict"] == true;
    Some(tool)
}
