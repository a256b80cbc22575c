//! Bodies of `/v1/chat/completions`.

use std::sync::Arc;

use breakers_core::{
    Json, Message, Part, Prompt, ResponseFormat, ResponseSchema, Role, Tool, ToolCall, ToolChoice,
};
use serde_json::value::RawValue;

use super::{Common, Completion, Fields, Route};
use crate::Limits;
use crate::api_error::ApiError;

pub(super) fn read(fields: &mut Fields<'_>, limits: &Limits) -> Result<Completion, ApiError> {
    let common = Common::read(fields, limits)?;
    refuse(fields)?;
    let messages: Vec<&RawValue> = fields.need("messages")?;
    if messages.is_empty() {
        return Err(fields.wrong("messages", "a conversation needs a message"));
    }
    if messages.len() > limits.messages {
        return Err(fields.wrong("messages", format!("more than {} messages", limits.messages)));
    }
    let messages = messages.into_iter().enumerate();
    let messages: Result<Vec<Message>, _> = messages.map(|(i, value)| message(value, i)).collect();
    let mut request = common.request(Prompt::Chat(messages?));

    let max = fields.count("max_completion_tokens", 1, u64::MAX)?;
    let old = fields.count("max_tokens", 1, u64::MAX)?;
    if let (Some(max), Some(old)) = (max, old)
        && max != old
    {
        return Err(fields.wrong("max_tokens", format!("{old} contradicts `max_completion_tokens`: {max}")));
    }
    request.max_tokens = max.or(old);

    let is_scored = fields.get("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0, 20)?;
    if !is_scored && top.is_some_and(|top| top > 0) {
        return Err(fields.wrong("top_logprobs", "it needs `logprobs`: true"));
    }
    request.top_logprobs = is_scored.then_some(top.unwrap_or(0));

    if let Some(form) = response_format(fields, limits)? {
        if request.response != ResponseFormat::Text {
            return Err(fields.wrong("response_format", super::grammar::TWICE));
        }
        request.response = form;
    }
    request.tools = tools(fields, limits)?;
    if request.response.is_grammar() && !request.tools.is_empty() {
        return Err(fields.unsupported("tools", "functions and a grammar exclude each other"));
    }
    request.tool_choice = tool_choice(fields, &mut request.tools)?;
    let parallel = fields.get("parallel_tool_calls")?;
    request.parallel_tool_calls = if request.tools.is_empty() { None } else { parallel };

    let form_field = common.form_field("response_format");
    let Common { model, n, stream, include_usage, user, ignored, .. } = common;
    let (prompts, echo) = (vec![Arc::new(request)], Vec::new());
    let route = Route::Chat;
    Ok(Completion { route, model, prompts, n, stream, include_usage, echo, form_field, user, ignored })
}

/// Refuses what the protocol has and this server does not.
fn refuse(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    for (name, message) in [
        ("audio", "there is no speech"),
        ("functions", "use `tools`"),
        ("function_call", "use `tool_choice`"),
        ("moderation", "answers are not moderated"),
        ("web_search_options", "there is no search of the web"),
    ] {
        if fields.raw(name).is_some() {
            return Err(fields.unsupported(name, message));
        }
    }
    if fields.get::<Vec<String>>("modalities")?.is_some_and(|all| all.iter().any(|one| one != "text")) {
        return Err(fields.unsupported("modalities", "only text is generated"));
    }
    if fields.get::<bool>("store")?.unwrap_or(false) {
        return Err(fields.unsupported("store", "answers are not kept"));
    }
    for (name, allowed) in [("reasoning_effort", "none"), ("verbosity", "medium")] {
        if fields.get::<String>(name)?.is_some_and(|word| word != allowed) {
            return Err(fields.unsupported(name, format!("only `{allowed}` is supported")));
        }
    }
    Ok(())
}

fn message(value: &RawValue, index: usize) -> Result<Message, ApiError> {
    let mut fields = Fields::of_value(value, format!("messages[{index}]"))?;
    let role: String = fields.need("role")?;
    let role = match role.as_str() {
        // Templates do not know the newer name.
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        _ => return Err(fields.wrong("role", "it is none of system, developer, user, assistant, tool")),
    };
    for name in ["audio", "function_call"] {
        if fields.raw(name).is_some() {
            return Err(fields.unsupported(name, "it is not supported"));
        }
    }
    let mut message = Message::new(role.clone(), "");
    message.content = content(&mut fields, &role)?;
    let refusal = fields.get::<String>("refusal")?;
    if let (Some(refusal), true) = (refusal, message.content.is_empty()) {
        message.content.push(Part::Text(refusal));
    }
    if let Some(calls) = fields.get::<Vec<&RawValue>>("tool_calls")?.filter(|calls| !calls.is_empty()) {
        if role != Role::Assistant {
            return Err(fields.wrong("tool_calls", "only the assistant calls functions"));
        }
        for (i, call) in calls.into_iter().enumerate() {
            message.tool_calls.push(tool_call(call, fields.path(&format!("tool_calls[{i}]")))?);
        }
    }
    if role == Role::Tool {
        message.tool_call_id = Some(fields.need("tool_call_id")?);
    }
    if let Some(name) = fields.get::<String>("name")? {
        let name = Json::from_serialize(&name).map_err(|error| fields.wrong("name", error))?;
        message = message.with_field("name", name);
    }
    Ok(message)
}

/// The parts of a message; none for a missing content, which only the assistant may have.
fn content(fields: &mut Fields<'_>, role: &Role) -> Result<Vec<Part>, ApiError> {
    let Some(value) = fields.raw("content") else {
        return if *role == Role::Assistant { Ok(Vec::new()) } else { Err(fields.missing("content")) };
    };
    if value.get().starts_with('"') {
        let text: String = super::fields::read(value, &fields.path("content"))?;
        return Ok(if text.is_empty() { Vec::new() } else { vec![Part::Text(text)] });
    }
    let parts: Vec<&RawValue> = serde_json::from_str(value.get())
        .map_err(|_| fields.wrong("content", "it is neither a text nor a list of parts"))?;
    let mut texts = Vec::new();
    for (i, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of_value(part, fields.path(&format!("content[{i}]")))?;
        let kind: String = part.need("type")?;
        let text: String = match kind.as_str() {
            "text" => part.need("text")?,
            "refusal" => part.need("refusal")?,
            "image_url" | "input_audio" | "file" => return Err(part.unsupported("type", "only text is read")),
            _ => return Err(part.wrong("type", "it is not `text`")),
        };
        if !text.is_empty() {
            texts.push(Part::Text(text));
        }
    }
    Ok(texts)
}

/// A call that the model made in an earlier turn.
fn tool_call(value: &RawValue, path: String) -> Result<ToolCall, ApiError> {
    let mut call = Fields::of_value(value, path)?;
    if call.get::<String>("type")?.is_some_and(|kind| kind != "function") {
        return Err(call.unsupported("type", "only functions are called"));
    }
    let id: String = call.need("id")?;
    let mut function = call.object("function")?.ok_or_else(|| call.missing("function"))?;
    let name: String = function.need("name")?;
    let arguments: String = function.need("arguments")?;
    Ok(ToolCall::new(id, name, arguments))
}

pub(super) fn json_schema(
    value: &RawValue,
    fields: &Fields<'_>,
    name: &str,
    limits: &Limits,
) -> Result<Json, ApiError> {
    let text = value.get();
    if text.len() > limits.schema_bytes {
        return Err(fields.wrong(name, format!("a schema of more than {} bytes", limits.schema_bytes)));
    }
    if !text.starts_with('{') {
        return Err(fields.wrong(name, "a schema is an object"));
    }
    Json::parse(text).map_err(|error| fields.wrong(name, error))
}

fn response_format(fields: &mut Fields<'_>, limits: &Limits) -> Result<Option<ResponseFormat>, ApiError> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(None) };
    let kind: String = format.need("type")?;
    Ok(Some(match kind.as_str() {
        "text" => return Ok(None),
        "json_object" => ResponseFormat::JsonObject,
        "json_schema" => {
            let mut wrapped = format.object("json_schema")?.ok_or_else(|| format.missing("json_schema"))?;
            let name: String = wrapped.need("name")?;
            let schema = wrapped.raw("schema").ok_or_else(|| wrapped.missing("schema"))?;
            let mut schema = ResponseSchema::new(name, json_schema(schema, &wrapped, "schema", limits)?);
            schema.strict = wrapped.get("strict")?.unwrap_or(false);
            ResponseFormat::JsonSchema(schema)
        }
        _ => return Err(format.wrong("type", "it is none of text, json_object, json_schema")),
    }))
}

fn tools(fields: &mut Fields<'_>, limits: &Limits) -> Result<Vec<Tool>, ApiError> {
    let values: Vec<&RawValue> = fields.get("tools")?.unwrap_or_default();
    if values.len() > limits.tools {
        return Err(fields.wrong("tools", format!("more than {} functions", limits.tools)));
    }
    let mut tools: Vec<Tool> = Vec::with_capacity(values.len());
    for (i, value) in values.into_iter().enumerate() {
        let mut wrapped = Fields::of_value(value, fields.path(&format!("tools[{i}]")))?;
        let kind: String = wrapped.need("type")?;
        if kind != "function" {
            let message =
                "only functions are supported; `structured_outputs` takes grammars for whole answers";
            return Err(wrapped.unsupported("type", message));
        }
        let mut function = wrapped.object("function")?.ok_or_else(|| wrapped.missing("function"))?;
        let tool = self::function(&mut function, &tools, limits)?;
        tools.push(tool);
    }
    Ok(tools)
}

/// A function, which must have another name than the others.
pub(super) fn function(
    function: &mut Fields<'_>,
    others: &[Tool],
    limits: &Limits,
) -> Result<Tool, ApiError> {
    let name: String = function.need("name")?;
    let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > 128 || !name.chars().all(is_valid) {
        return Err(
            function.wrong("name", "a name has 1 to 128 letters, digits, underscores, dots and dashes")
        );
    }
    if others.iter().any(|tool| tool.name == name) {
        return Err(function.wrong("name", format!("two functions are called {name}")));
    }
    let parameters = match function.raw("parameters") {
        Some(value) => json_schema(value, function, "parameters", limits)?,
        None => Json::parse(r#"{"type":"object","properties":{},"additionalProperties":false}"#)
            .map_err(|error| function.wrong("parameters", error))?,
    };
    let mut tool = Tool::new(name, parameters);
    tool.description = function.get("description")?;
    tool.strict = function.get("strict")?.unwrap_or(false);
    Ok(tool)
}

/// Which functions may be called. A list of allowed ones removes the others.
fn tool_choice(fields: &mut Fields<'_>, tools: &mut Vec<Tool>) -> Result<ToolChoice, ApiError> {
    const NAME: &str = "tool_choice";
    let Some(value) = fields.raw(NAME) else { return Ok(ToolChoice::Auto) };
    let known = |tools: &[Tool], name: &str| tools.iter().any(|tool| tool.name == name);
    let no_tool = |name: &str| format!("there is no function {name:.80?} in `tools`");
    if value.get().starts_with('"') {
        let word: String = super::fields::read(value, NAME)?;
        return mode(&word, tools).map_err(|message| fields.wrong(NAME, message));
    }
    let mut choice = Fields::of_value(value, NAME)?;
    let kind: String = choice.need("type")?;
    match kind.as_str() {
        "function" => {
            let mut function = choice.object("function")?.ok_or_else(|| choice.missing("function"))?;
            let name: String = function.need("name")?;
            if !known(tools, &name) {
                return Err(fields.wrong(NAME, no_tool(&name)));
            }
            Ok(ToolChoice::Function(name))
        }
        "allowed_tools" => {
            let mut allowed =
                choice.object("allowed_tools")?.ok_or_else(|| choice.missing("allowed_tools"))?;
            let mut names = Vec::new();
            for (i, value) in allowed.need::<Vec<&RawValue>>("tools")?.into_iter().enumerate() {
                let mut tool = Fields::of_value(value, allowed.path(&format!("tools[{i}]")))?;
                let mut function = tool.object("function")?.ok_or_else(|| tool.missing("function"))?;
                let name: String = function.need("name")?;
                if !known(tools, &name) {
                    return Err(function.wrong("name", no_tool(&name)));
                }
                names.push(name);
            }
            tools.retain(|tool| names.contains(&tool.name));
            let word: String = allowed.need("mode")?;
            mode(&word, tools).map_err(|message| allowed.wrong("mode", message))
        }
        "custom" => Err(choice.unsupported("type", "only functions are supported")),
        _ => Err(choice.wrong("type", "it is neither `function` nor `allowed_tools`")),
    }
}

pub(super) fn mode(word: &str, tools: &[Tool]) -> Result<ToolChoice, &'static str> {
    match word {
        "auto" => Ok(ToolChoice::Auto),
        "none" => Ok(ToolChoice::None),
        "required" if tools.is_empty() => Err("a function is to be called, and none is given"),
        "required" => Ok(ToolChoice::Required),
        _ => Err("it is none of auto, none, required"),
    }
}
