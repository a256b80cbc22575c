//! Chat templates: a conversation as the prompt that a model was trained on.
//!
//! Models carry their template with them, a Jinja2 program. It is run as Hugging Face's `transformers` runs
//! it: blocks trimmed, methods of Python's strings and dicts available, `tojson` without HTML escapes,
//! `raise_exception` and `strftime_now` defined, the order of keys in tools kept. Texts come out byte for
//! byte the same.
//!
//! A template is part of a file that may come from anywhere, so it has no access to anything but its
//! arguments, and its running time is bounded.
//!
//! # Example
//! ```
//! use breakers_core::Message;
//! use breakers_model::chat::ChatTemplate;
//!
//! # fn main() -> Result<(), breakers_model::Error> {
//! let template = ChatTemplate::new("{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}")?;
//! let prompt = template.render(&[Message::user("Hi!")], None, true)?;
//! assert_eq!(prompt, "<user>Hi!\n");
//! # Ok(())
//! # }
//! ```
//!
//! # Source
//! `chat_template_utils.py` of huggingface/transformers, for the environment that templates expect.

mod python;

use std::{error::Error as _, fmt, time::SystemTime};

use breakers_core::{BoxError, ChatFormat, Json, Message, Tool, ToolCall};
use breakers_gguf::{File, Metadata};
use minijinja::{
    Environment, ErrorKind, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, ValueKind},
};

use crate::{Error, Result};

/// Instructions that a template may run: far more than a long conversation takes, and no endless loop.
const FUEL: u64 = 10_000_000;

const NAME: &str = "chat_template";

/// A message as templates see it: its text as `content`, calls of functions in the form of `transformers`.
fn message_value(message: &Message) -> Result<Value> {
    let mut pairs = vec![
        ("role", Value::from(message.role.as_str())),
        ("content", Value::from(message.text().into_owned())),
    ];
    if !message.tool_calls.is_empty() {
        pairs.push(("tool_calls", message.tool_calls.iter().map(call_value).collect()));
    }
    pairs.extend(message.tool_call_id.as_deref().map(|id| ("tool_call_id", Value::from(id))));
    for (name, json) in &message.fields {
        pairs.push((name, json_value(json)?));
    }
    Ok(Value::from_pairs(pairs))
}

/// A call of a function. Arguments that are no JSON stay the text that the model wrote.
fn call_value(call: &ToolCall) -> Value {
    let arguments = call.arguments_json().ok().and_then(|json| json_value(&json).ok());
    let arguments = arguments.unwrap_or_else(|| Value::from(&*call.arguments));
    let function = Value::from_pairs([("name", Value::from(&*call.name)), ("arguments", arguments)]);
    let id = ("id", Value::from(&*call.id));
    Value::from_pairs([id, ("type", Value::from("function")), ("function", function)])
}

/// A JSON value whose objects keep the order of their keys.
fn json_value(json: &Json) -> Result<Value> {
    serde_json::from_str(json.as_str()).map_err(|source| Error::Json { what: "a chat value", source })
}

/// A model's chat template, compiled.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
    now: Option<SystemTime>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if it does not parse.
    pub fn new(source: impl Into<String>) -> Result<Self> {
        let source = source.into();
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|source| Error::ChatTemplate { source })?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(python::format);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            let refused = minijinja::Error::new(ErrorKind::InvalidOperation, "the template refuses");
            Err(refused.with_source(Refused(message)))
        });
        environment
            .add_template_owned(NAME, python::without_generation_tags(&source).into_owned())
            .map_err(|source| Error::ChatTemplate { source })?;
        Ok(Self { environment, source, bos_token: None, eos_token: None, now: None })
    }

    /// The template of a GGUF file; `None` if it has none, like that of a base model.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if it does not parse, [`Error::Quant`] if it is not a string.
    pub fn from_gguf(file: &File) -> Result<Option<Self>> {
        Self::from_metadata(file.metadata())
    }

    /// The template in the metadata of a GGUF file; `None` if there is none.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::from_gguf`].
    pub fn from_metadata(metadata: &Metadata) -> Result<Option<Self>> {
        let Some(source) = metadata.str("tokenizer.chat_template")? else { return Ok(None) };
        let mut template = Self::new(source)?;
        let token = |key| -> Result<Option<String>> {
            let Some(id) = metadata.u64(key)? else { return Ok(None) };
            let text = metadata.strings("tokenizer.ggml.tokens")?.and_then(|tokens| tokens.get(id as usize));
            Ok(text.map(str::to_owned))
        };
        template.bos_token = token("tokenizer.ggml.bos_token_id")?;
        template.eos_token = token("tokenizer.ggml.eos_token_id")?;
        Ok(Some(template))
    }

    /// Sets what the template sees as `bos_token` and `eos_token`.
    pub fn with_tokens(mut self, bos_token: Option<String>, eos_token: Option<String>) -> Self {
        self.bos_token = bos_token;
        self.eos_token = eos_token;
        self
    }

    /// Sets what the template takes for the present, so that prompts which hold a date are reproducible.
    pub fn with_time(mut self, now: SystemTime) -> Self {
        self.now = Some(now);
        self
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for a conversation, with the start of the model's answer if `add_generation_prompt`.
    ///
    /// `tools` is a JSON array of the functions that the model may call. Encode the prompt with
    /// [`parse_special`](crate::tokenizer::EncodeOptions::parse_special), without
    /// [`add_special`](crate::tokenizer::EncodeOptions::add_special) if the template writes `bos_token`.
    ///
    /// # Errors
    /// [`Error::ChatRefused`] if the template does not accept the conversation, [`Error::Json`] for values that
    /// are nested too deeply, [`Error::ChatTemplate`] for any other failure.
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let failed = |source: minijinja::Error| match refusal(&source) {
            Some(message) => Error::ChatRefused { message },
            None => Error::ChatTemplate { source },
        };
        let now = self.now;
        let context = context! {
            messages => messages.iter().map(message_value).collect::<Result<Vec<_>>>()?,
            tools => tools.map(json_value).transpose()?,
            documents => (),
            add_generation_prompt,
            strftime_now => Value::from_function(move |format: &str| {
                python::strftime(format, now.unwrap_or_else(SystemTime::now))
            }),
        };
        // A token that the model does not have is undefined, which prints as nothing.
        let tokens = [("bos_token", &self.bos_token), ("eos_token", &self.eos_token)];
        let tokens = tokens.into_iter().filter_map(|(name, text)| Some((name, text.clone()?)));
        let context = context! { ..context, ..Value::from_pairs(tokens) };
        self.environment.get_template(NAME).and_then(|template| template.render(context)).map_err(failed)
    }
}

impl ChatFormat for ChatTemplate {
    fn render(&self, messages: &[Message], tools: &[Tool]) -> Result<String, BoxError> {
        let tools = match tools {
            [] => None,
            tools => Some(Json::from_serialize(&tools.iter().map(Tool::to_json).collect::<Vec<_>>())?),
        };
        Ok(ChatTemplate::render(self, messages, tools.as_ref(), true)?)
    }
}

/// A message that a template raises.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Refused {}

/// The message that a template has raised, if that is why it failed.
fn refusal(error: &minijinja::Error) -> Option<String> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(Refused(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        source = error.source();
    }
    None
}

/// The filter `tojson`, with the arguments that `transformers` gives it.
fn to_json(value: &Value, kwargs: Kwargs) -> Result<Value, minijinja::Error> {
    let ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let indent = kwargs.get::<Option<Value>>("indent")?;
    let separators = kwargs.get::<Option<Vec<String>>>("separators")?;
    kwargs.assert_all_used()?;
    let invalid = |what| minijinja::Error::new(ErrorKind::InvalidOperation, what);
    let indent = match indent {
        None => None,
        Some(text) if text.kind() == ValueKind::String => text.as_str().map(str::to_owned),
        Some(width) => {
            let width = width.as_i64().filter(|width| *width <= 64);
            let width = width.ok_or_else(|| invalid("indent is a string or a number up to 64"))?;
            Some(" ".repeat(usize::try_from(width).unwrap_or(0)))
        }
    };
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(invalid("separators are two strings")),
        None => (if indent.is_some() { "," } else { ", " }, ": "),
    };
    let style = python::JsonStyle { ensure_ascii, sort_keys, indent: indent.as_deref(), item, key };
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(Value::from(out))
}
