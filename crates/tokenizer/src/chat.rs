//! Chat templates: they turn a conversation into the prompt format that a model was trained on.
//!
//! A model's files contain its template, which is a Jinja2 program. It is run as Hugging Face's
//! `transformers` runs it: blocks are trimmed, the methods of Python's strings and dicts are available,
//! `tojson` does not escape HTML, `raise_exception` and `strftime_now` are defined, and the keys in tools
//! keep their order. The resulting texts are the same byte for byte. All of Jinja2's filters, tests,
//! functions and statements are implemented, except for those that need other templates.
//!
//! A template is part of a file that may come from anywhere, so it has access only to its arguments, and its
//! running time is bounded.
//!
//! # Example
//! ```
//! use breakers_core::Message;
//! use breakers_tokenizer::ChatTemplate;
//!
//! # fn main() -> Result<(), breakers_tokenizer::Error> {
//! let template = ChatTemplate::new("{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}")?;
//! let prompt = template.render(&[Message::user("Hi!")], None, true)?;
//! assert_eq!(prompt, "<user>Hi!\n");
//! # Ok(())
//! # }
//! ```
//!
//! # Source
//! `chat_template_utils.py` of huggingface/transformers, for the environment that templates expect.

mod jinja;
mod json;

use std::{fmt, time::SystemTime};

use breakers_core::{BoxError, ChatFormat, Json, Message, Tool, ToolCall};
use breakers_gguf::{File, Metadata};

use self::json::Tree;
use crate::{Error, Result};

pub use self::jinja::TemplateError;

/// A message as templates see it: its text as `content`, and function calls in the format of `transformers`.
fn message_tree(message: &Message) -> Result<Tree> {
    let mut entries = vec![
        ("role".to_owned(), Tree::text(message.role.as_str())),
        ("content".to_owned(), Tree::text(message.text())),
    ];
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(call_tree).collect();
        entries.push(("tool_calls".to_owned(), Tree::List(calls)));
    }
    entries.extend(message.tool_call_id.as_deref().map(|id| ("tool_call_id".to_owned(), Tree::text(id))));
    for (name, json) in &message.fields {
        entries.push((name.clone(), Tree::of(json)?));
    }
    Ok(Tree::Object(entries))
}

/// A function call. Arguments that are not JSON remain the text that the model wrote.
fn call_tree(call: &ToolCall) -> Tree {
    let object = |entries: Vec<(&str, Tree)>| {
        Tree::Object(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    };
    let arguments = call.arguments_json().ok().and_then(|json| Tree::of(&json).ok());
    let arguments = arguments.unwrap_or_else(|| Tree::text(&*call.arguments));
    let function = object(vec![("name", Tree::text(&*call.name)), ("arguments", arguments)]);
    object(vec![("id", Tree::text(&*call.id)), ("type", Tree::text("function")), ("function", function)])
}

/// A model's chat template, compiled.
#[derive(Clone)]
pub struct ChatTemplate {
    template: jinja::Template,
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
        let template = jinja::Template::parse(&source).map_err(|source| Error::ChatTemplate { source })?;
        Ok(Self { template, source, bos_token: None, eos_token: None, now: None })
    }

    /// The template of a GGUF file; `None` if it has none, or an empty one as base models do.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if it does not parse, [`Error::Gguf`] if it is not a string.
    pub fn from_gguf(file: &File) -> Result<Option<Self>> {
        Self::from_metadata(file.metadata())
    }

    /// The template in the metadata of a GGUF file; `None` if there is none or an empty one.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::from_gguf`].
    pub fn from_metadata(metadata: &Metadata) -> Result<Option<Self>> {
        let source = metadata.str("tokenizer.chat_template")?.filter(|source| !source.is_empty());
        let Some(source) = source else { return Ok(None) };
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

    /// Sets the time that the template sees, in UTC, so that prompts with a date are reproducible. Without
    /// it, the template sees the machine's local time.
    pub fn with_time(mut self, now: SystemTime) -> Self {
        self.now = Some(now);
        self
    }

    /// Whether the template ignores the conversation, so that its prompt is always the same: the name
    /// `messages` does not occur in it.
    pub fn ignores_messages(&self) -> bool {
        !self.template.names_messages()
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for a conversation, including the start of the model's answer if `add_generation_prompt` is
    /// set.
    ///
    /// `tools` is a JSON array of the functions that the model may call. For the prompt's tokens use
    /// [`Tokenizer::encode_chat`](crate::Tokenizer::encode_chat): if the prompt were encoded as one text,
    /// spellings of control tokens in messages would become control tokens.
    ///
    /// # Errors
    /// [`Error::ChatRefused`] if the template does not accept the conversation, [`Error::Json`] for values
    /// that are nested too deeply, [`Error::ChatTemplate`] for any other failure.
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let messages = Tree::List(messages.iter().map(message_tree).collect::<Result<_>>()?);
        let tools = tools.map_or(Ok(Tree::Null), Tree::of)?;
        let mut variables = vec![
            ("messages", messages),
            ("tools", tools),
            ("documents", Tree::Null),
            ("add_generation_prompt", Tree::Bool(add_generation_prompt)),
        ];
        // A token that the model does not have is undefined, which prints as nothing.
        variables.extend(self.bos_token.as_deref().map(|text| ("bos_token", Tree::text(text))));
        variables.extend(self.eos_token.as_deref().map(|text| ("eos_token", Tree::text(text))));
        self.run(&variables)
    }

    /// The template's output for arbitrary variables, given as the fields of an object. This is for templates
    /// that use more than a conversation, such as `enable_thinking` or `documents`.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`]; [`Error::ChatTemplate`] if `variables` is not an object.
    pub fn render_with(&self, variables: &Json) -> Result<String> {
        let Tree::Object(fields) = Tree::of(variables)? else {
            let source = TemplateError::new("the variables of a template are the fields of an object");
            return Err(Error::ChatTemplate { source });
        };
        let (names, values): (Vec<String>, Vec<Tree>) = fields.into_iter().unzip();
        self.run(&names.iter().map(String::as_str).zip(values).collect::<Vec<_>>())
    }

    /// The prompt up to where the model's answer begins.
    pub(crate) fn render_chat(&self, messages: &[Message], tools: &[Tool]) -> Result<String> {
        let list = || Json::from_serialize(&tools.iter().map(Tool::to_json).collect::<Vec<_>>());
        let tools = (!tools.is_empty()).then(|| list().expect("a list of JSON is JSON"));
        self.render(messages, tools.as_ref(), true)
    }

    fn run(&self, variables: &[(&str, Tree)]) -> Result<String> {
        self.template.render(variables, self.now).map_err(|source| match source.refused() {
            Some(message) => Error::ChatRefused { message: message.to_owned() },
            None => Error::ChatTemplate { source },
        })
    }
}

impl ChatFormat for ChatTemplate {
    fn render(&self, messages: &[Message], tools: &[Tool]) -> Result<String, BoxError> {
        Ok(self.render_chat(messages, tools)?)
    }
}
