//! Bodies of `/v1/responses`.

use std::collections::BTreeMap;
use std::sync::Arc;

use breakers_core::{
    Json, Message, Part, Prompt, ResponseFormat, ResponseSchema, Role, Tool, ToolCall, ToolChoice,
};
use serde_json::value::RawValue;

use super::{Common, Completion, Fields, Route, chat, fields};
use crate::Limits;
use crate::api_error::ApiError;

/// A request for a response.
#[derive(Debug)]
pub(crate) struct ResponseRequest {
    /// The request without the conversation before it.
    pub(crate) completion: Completion,
    /// The response that this one follows.
    pub(crate) previous: Option<String>,
    /// Instructions, which later responses do not inherit.
    pub(crate) instructions: Option<String>,
    /// The messages of this request alone.
    pub(crate) input: Vec<Message>,
    /// Whether the response is kept.
    pub(crate) store: bool,
    /// What the response repeats of its request.
    pub(crate) echo: Echo,
}

/// What a response repeats of its request.
#[derive(Clone, Debug)]
pub(crate) struct Echo {
    pub(crate) tools: Vec<Tool>,
    pub(crate) tool_choice: Json,
    pub(crate) format: Json,
    pub(crate) parallel_tool_calls: bool,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) max_output_tokens: Option<usize>,
    pub(crate) top_logprobs: usize,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl ResponseRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it, by field.
    pub(crate) fn read(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::of_body(body, limits.json_depth)?;
        let metadata = metadata(&mut fields)?;
        refuse(&mut fields)?;
        let common = Common::read(&mut fields, limits)?;
        if common.n != 1 {
            return Err(fields.unsupported("n", "a response has one answer"));
        }
        let mut ignored = common.ignored.clone();
        let logprobs = include(&mut fields, &mut ignored)?;
        let input = input(&mut fields, limits)?;
        let instructions = fields.get::<String>("instructions")?;
        let mut request = common.request(Prompt::Chat(Vec::new()));
        request.max_tokens = fields.count("max_output_tokens", 1, u64::MAX)?;
        let top = fields.count("top_logprobs", 0, 20)?;
        if top.is_some_and(|top| top > 0) && !logprobs {
            let message = "it needs `include`: [\"message.output_text.logprobs\"]";
            return Err(fields.wrong("top_logprobs", message));
        }
        request.top_logprobs = logprobs.then_some(top.unwrap_or(0));
        let (response, format) = format(&mut fields, limits)?;
        if response != ResponseFormat::Text {
            if request.response != ResponseFormat::Text {
                return Err(fields.wrong("text", super::grammar::TWICE));
            }
            request.response = response;
        }
        let mut tools = tools(&mut fields, limits)?;
        let echoed = tools.clone();
        let (choice, tool_choice) = tool_choice(&mut fields, &mut tools)?;
        (request.tools, request.tool_choice) = (tools, choice);
        if request.response.is_grammar() && !request.tools.is_empty() {
            return Err(fields.unsupported("tools", "functions and a grammar exclude each other"));
        }
        let parallel = fields.get("parallel_tool_calls")?;
        request.parallel_tool_calls = if request.tools.is_empty() { None } else { parallel };
        let echo = Echo {
            tools: echoed,
            tool_choice,
            format,
            parallel_tool_calls: parallel.unwrap_or(true),
            temperature: common.sampling.temperature,
            top_p: common.sampling.top_p,
            max_output_tokens: request.max_tokens,
            top_logprobs: request.top_logprobs.unwrap_or(0),
            metadata,
        };
        let previous = fields.get("previous_response_id")?;
        let store = fields.get("store")?.unwrap_or(true);
        let form_field = common.form_field("text.format");
        let Common { model, stream, user, .. } = common;
        let completion = Completion {
            route: Route::Responses,
            model,
            prompts: vec![Arc::new(request)],
            n: 1,
            stream,
            include_usage: false,
            echo: Vec::new(),
            form_field,
            user,
            ignored,
        };
        Ok(Self { completion, previous, instructions, input, store, echo })
    }

    /// The conversation that later responses follow: all messages without instructions.
    pub(crate) fn conversation(&self, before: &[Message]) -> Vec<Message> {
        before.iter().chain(&self.input).cloned().collect()
    }

    /// Puts the whole conversation into the request.
    ///
    /// # Errors
    /// If it has too many messages.
    pub(crate) fn complete(
        mut self,
        conversation: &[Message],
        limits: &Limits,
    ) -> Result<Completion, ApiError> {
        let instructions = self.instructions.map(|text| Message::new(Role::System, text));
        let messages: Vec<Message> = instructions.into_iter().chain(conversation.iter().cloned()).collect();
        if messages.len() > limits.messages {
            let message = format!("`input`: with what came before, more than {} messages", limits.messages);
            return Err(ApiError::field("input", message));
        }
        for request in &mut self.completion.prompts {
            Arc::make_mut(request).prompt = Prompt::Chat(messages.clone());
        }
        Ok(self.completion)
    }
}

/// Pairs that are kept with the response.
fn metadata(fields: &mut Fields<'_>) -> Result<BTreeMap<String, String>, ApiError> {
    let pairs: BTreeMap<String, String> = fields.get("metadata")?.unwrap_or_default();
    let is_long = |(key, value): (&String, &String)| key.chars().count() > 64 || value.chars().count() > 512;
    if pairs.len() > 16 || pairs.iter().any(is_long) {
        let message = "at most 16 pairs, keys of at most 64 and values of at most 512 characters";
        return Err(fields.wrong("metadata", message));
    }
    Ok(pairs)
}

/// Refuses what the protocol has and this server does not.
fn refuse(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    for (name, message) in [
        ("context_management", "conversations are not shortened"),
        ("conversation", "use `previous_response_id`"),
        ("max_tool_calls", "there are no tools of the server's own"),
        ("messages", "use `input`"),
        ("moderation", "answers are not moderated"),
        ("prompt", "there are no stored prompts"),
        ("response_format", "use `text.format`"),
    ] {
        if fields.raw(name).is_some() {
            return Err(fields.unsupported(name, message));
        }
    }
    if fields.get::<bool>("background")?.unwrap_or(false) {
        return Err(fields.unsupported("background", "answers are not written in the background"));
    }
    if fields.get::<String>("truncation")?.is_some_and(|word| word != "disabled") {
        return Err(fields.unsupported("truncation", "only `disabled` is supported"));
    }
    if let Some(mut reasoning) = fields.object("reasoning")? {
        if reasoning.get::<String>("effort")?.is_some_and(|word| word != "none") {
            return Err(reasoning.unsupported("effort", "only `none` is supported"));
        }
        for name in ["summary", "generate_summary", "context", "mode"] {
            if reasoning.raw(name).is_some() {
                return Err(reasoning.unsupported(name, "there is no reasoning"));
            }
        }
    }
    Ok(())
}

/// What the response is to hold beyond what it always does: whether log-probabilities.
fn include(fields: &mut Fields<'_>, ignored: &mut Vec<&'static str>) -> Result<bool, ApiError> {
    let mut has_logprobs = false;
    for word in fields.get::<Vec<String>>("include")?.unwrap_or_default() {
        match word.as_str() {
            "message.output_text.logprobs" => has_logprobs = true,
            // There is none, so nothing is left out.
            "reasoning.encrypted_content" => ignored.push("include[reasoning.encrypted_content]"),
            _ => return Err(fields.unsupported("include", format!("{word:.80?} is not supported"))),
        }
    }
    Ok(has_logprobs)
}

/// The messages of a request.
fn input(fields: &mut Fields<'_>, limits: &Limits) -> Result<Vec<Message>, ApiError> {
    const NAME: &str = "input";
    let value = fields.raw(NAME).ok_or_else(|| fields.missing(NAME))?;
    if value.get().starts_with('"') {
        return Ok(vec![Message::new(Role::User, fields::read::<String>(value, NAME)?)]);
    }
    let items: Vec<&RawValue> = serde_json::from_str(value.get())
        .map_err(|_| fields.wrong(NAME, "it is neither a text nor a list of items"))?;
    if items.is_empty() {
        return Err(fields.wrong(NAME, "it is empty"));
    }
    if items.len() > limits.messages {
        return Err(fields.wrong(NAME, format!("more than {} items", limits.messages)));
    }
    let mut messages: Vec<Message> = Vec::new();
    for (i, item) in items.into_iter().enumerate() {
        let mut item = Fields::of_value(item, format!("{NAME}[{i}]"))?;
        let kind = item.get::<String>("type")?.unwrap_or_else(|| "message".to_owned());
        match kind.as_str() {
            "message" => {
                let role = match item.need::<String>("role")?.as_str() {
                    "system" | "developer" => Role::System,
                    "user" => Role::User,
                    "assistant" => Role::Assistant,
                    _ => {
                        let message = "it is none of system, developer, user, assistant";
                        return Err(item.wrong("role", message));
                    }
                };
                let mut message = Message::new(role, "");
                message.content = texts(&mut item, "content")?;
                messages.push(message);
            }
            "function_call" => {
                let call = ToolCall::new(
                    item.need::<String>("call_id")?,
                    item.need::<String>("name")?,
                    item.need::<String>("arguments")?,
                );
                // Calls belong to the turn in which the model made them.
                match messages.last_mut().filter(|last| last.role == Role::Assistant) {
                    Some(last) => last.tool_calls.push(call),
                    None => messages.push(Message::assistant("").with_tool_call(call)),
                }
            }
            "function_call_output" => {
                let mut message = Message::tool(item.need::<String>("call_id")?, "");
                message.content = texts(&mut item, "output")?;
                messages.push(message);
            }
            _ => return Err(item.unsupported("type", format!("items of type {kind:.40?} are not supported"))),
        }
    }
    Ok(messages)
}

/// A text, or a list of parts that are texts.
fn texts(item: &mut Fields<'_>, name: &str) -> Result<Vec<Part>, ApiError> {
    let value = item.raw(name).ok_or_else(|| item.missing(name))?;
    let texts: Vec<String> = if value.get().starts_with('"') {
        vec![fields::read(value, &item.path(name))?]
    } else {
        let parts: Vec<&RawValue> = serde_json::from_str(value.get())
            .map_err(|_| item.wrong(name, "it is neither a text nor a list of parts"))?;
        let read = |(i, part)| {
            let mut part = Fields::of_value(part, item.path(&format!("{name}[{i}]")))?;
            match part.need::<String>("type")?.as_str() {
                "input_text" | "output_text" | "text" => part.need("text"),
                "refusal" => part.need("refusal"),
                "input_image" | "input_file" | "input_audio" => {
                    Err(part.unsupported("type", "only text is read"))
                }
                _ => Err(part.wrong("type", "it is neither `input_text` nor `output_text`")),
            }
        };
        parts.into_iter().enumerate().map(read).collect::<Result<_, _>>()?
    };
    Ok(texts.into_iter().filter(|text| !text.is_empty()).map(Part::Text).collect())
}

/// The form of the text, and how the response repeats it.
fn format(fields: &mut Fields<'_>, limits: &Limits) -> Result<(ResponseFormat, Json), ApiError> {
    let plain = || Json::parse(r#"{"type":"text"}"#).map_err(|error| ApiError::failed(error.to_string()));
    let Some(mut text) = fields.object("text")? else { return Ok((ResponseFormat::Text, plain()?)) };
    if text.get::<String>("verbosity")?.is_some_and(|word| word != "medium") {
        return Err(text.unsupported("verbosity", "only `medium` is supported"));
    }
    let Some(value) = text.raw("format") else { return Ok((ResponseFormat::Text, plain()?)) };
    let echo = Json::parse(value.get()).map_err(|error| text.wrong("format", error))?;
    let mut format = Fields::of_value(value, text.path("format"))?;
    let response = match format.need::<String>("type")?.as_str() {
        "text" => ResponseFormat::Text,
        "json_object" => ResponseFormat::JsonObject,
        "json_schema" => {
            let name: String = format.need("name")?;
            let schema = format.raw("schema").ok_or_else(|| format.missing("schema"))?;
            let mut schema = ResponseSchema::new(name, chat::json_schema(schema, &format, "schema", limits)?);
            schema.strict = format.get("strict")?.unwrap_or(false);
            ResponseFormat::JsonSchema(schema)
        }
        _ => return Err(format.wrong("type", "it is none of text, json_object, json_schema")),
    };
    Ok((response, echo))
}

fn tools(fields: &mut Fields<'_>, limits: &Limits) -> Result<Vec<Tool>, ApiError> {
    let values: Vec<&RawValue> = fields.get("tools")?.unwrap_or_default();
    if values.len() > limits.tools {
        return Err(fields.wrong("tools", format!("more than {} functions", limits.tools)));
    }
    let mut tools: Vec<Tool> = Vec::with_capacity(values.len());
    for (i, value) in values.into_iter().enumerate() {
        let mut tool = Fields::of_value(value, format!("tools[{i}]"))?;
        let kind: String = tool.need("type")?;
        if kind != "function" {
            return Err(tool.unsupported("type", format!("{kind:.40?}: only functions are supported")));
        }
        tools.push(chat::function(&mut tool, &tools, limits)?);
    }
    Ok(tools)
}

/// Which functions may be called, and how the response repeats it.
fn tool_choice(fields: &mut Fields<'_>, tools: &mut Vec<Tool>) -> Result<(ToolChoice, Json), ApiError> {
    const NAME: &str = "tool_choice";
    let json = |text: &str| Json::parse(text).map_err(|error| ApiError::failed(error.to_string()));
    let Some(value) = fields.raw(NAME) else { return Ok((ToolChoice::Auto, json("\"auto\"")?)) };
    let echo = json(value.get())?;
    if value.get().starts_with('"') {
        let word: String = fields::read(value, NAME)?;
        let choice = chat::mode(&word, tools).map_err(|message| fields.wrong(NAME, message))?;
        return Ok((choice, echo));
    }
    let mut choice = Fields::of_value(value, NAME)?;
    let known = |tools: &[Tool], fields: &mut Fields<'_>| {
        let name: String = fields.need("name")?;
        match tools.iter().any(|tool| tool.name == name) {
            true => Ok(name),
            false => Err(fields.wrong("name", format!("there is no function {name:.80?} in `tools`"))),
        }
    };
    match choice.need::<String>("type")?.as_str() {
        "function" => Ok((ToolChoice::Function(known(tools, &mut choice)?), echo)),
        "allowed_tools" => {
            let mut names = Vec::new();
            for (i, value) in choice.need::<Vec<&RawValue>>("tools")?.into_iter().enumerate() {
                let mut tool = Fields::of_value(value, choice.path(&format!("tools[{i}]")))?;
                names.push(known(tools, &mut tool)?);
            }
            tools.retain(|tool| names.contains(&tool.name));
            let word: String = choice.need("mode")?;
            let mode = chat::mode(&word, tools).map_err(|message| choice.wrong("mode", message))?;
            Ok((mode, echo))
        }
        _ => Err(choice.unsupported("type", "only `function` and `allowed_tools` are supported")),
    }
}
