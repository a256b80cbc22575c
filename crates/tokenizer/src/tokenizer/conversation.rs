//! A conversation as tokens. Control tokens come only from the chat template: whatever a user, a tool or the
//! model has typed remains text, even if it looks like a control token.
//!
//! A template joins both into one text. So before the template sees it, every spelling of a control token in
//! a message gets a mark after its first character: a character that occurs nowhere else. No control token is
//! recognized where there is a mark, and the marks are removed from the text between the tokens.
//! Conversations without such spellings reach the template unchanged.
//!
//! # Deviations
//! - A control token of a single character has no inside to mark. (In these vocabularies the character is
//!   always that token, parsed or not.)
//! - A template that searches messages for a control token's spelling does not find it, and one that counts
//!   characters also counts the marks.
//! - With a tokenizer.json, if a conversation spells a control token, each text between two control tokens is
//!   encoded as if it were the start of a text.
//! - A template that deletes something *within* messages can create a spelling that was not there before.

use breakers_core::{BoxError, ChatFormat, Json, Message, Part, TokenId, Tool};

use super::{Fragment, Inner, Tokenizer};
use crate::{ChatTemplate, Error, Result};

impl Tokenizer {
    /// The tokens of a conversation, up to where the model's answer begins.
    ///
    /// Only the template's own control tokens become control tokens. `<|im_end|>` in a message, in the name,
    /// arguments or result of a call, or in a tool's description remains text; no template can ensure that by
    /// itself.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`] and [`Tokenizer::encode`]; [`Error::NoMark`].
    ///
    /// # Example
    /// ```
    /// use breakers_core::Message;
    /// use breakers_gguf::Metadata;
    /// use breakers_tokenizer::{ChatTemplate, Tokenizer};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut metadata = Metadata::new();
    /// metadata.insert("tokenizer.ggml.model", "gpt2")?;
    /// metadata.insert("tokenizer.ggml.pre", "qwen2")?;
    /// metadata.insert("tokenizer.ggml.tokens", vec!["<", "e", ">", "<e>"])?;
    /// metadata.insert("tokenizer.ggml.token_type", vec![1, 1, 1, 3])?;
    /// metadata.insert("tokenizer.ggml.merges", Vec::<String>::new())?;
    /// let tokenizer = Tokenizer::from_metadata(&metadata)?;
    ///
    /// let template = ChatTemplate::new("{% for m in messages %}{{ m.content }}<e>{% endfor %}")?;
    /// let ids = tokenizer.encode_chat(&template, &[Message::user("ee<e>")], &[])?;
    /// assert_eq!(ids, [1, 1, 0, 1, 2, 3]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn encode_chat(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        tools: &[Tool],
    ) -> Result<Vec<TokenId>> {
        self.encode_conversation(messages, tools, |messages, tools| template.render_chat(messages, tools))
    }

    /// The tokens of a conversation in any chat format.
    pub(super) fn encode_in_format(
        &self,
        format: &dyn ChatFormat,
        messages: &[Message],
        tools: &[Tool],
    ) -> Result<Vec<TokenId>, BoxError> {
        self.encode_conversation(messages, tools, |messages, tools| format.render(messages, tools))
    }

    fn encode_conversation<E: From<Error>>(
        &self,
        messages: &[Message],
        tools: &[Tool],
        render: impl FnOnce(&[Message], &[Tool]) -> Result<String, E>,
    ) -> Result<Vec<TokenId>, E> {
        let options = super::EncodeOptions { add_special: false, parse_special: true };
        let Some(marked) = Marked::new(&self.0, messages, tools)? else {
            return Ok(self.encode(&render(messages, tools)?, options)?);
        };
        let text = render(&marked.messages, &marked.tools)?;
        // A filter like `tojson(ensure_ascii=true)` may have escaped the mark.
        let text = text.replace(&escape_of(marked.mark), marked.mark.encode_utf8(&mut [0; 4]));
        let mut out = Vec::with_capacity(text.len() / 4 + 2);
        super::check_length(&text)?;
        self.0.encode_marked(&text, marked.mark, &mut out)?;
        Ok(out)
    }
}

/// A conversation in which spellings of control tokens are marked.
struct Marked {
    mark: char,
    messages: Vec<Message>,
    tools: Vec<Tool>,
}

impl Marked {
    /// `None` if no control token is spelled anywhere.
    fn new(inner: &Inner, messages: &[Message], tools: &[Tool]) -> Result<Option<Self>> {
        let (mut texts, mut spelling) = (Vec::new(), None);
        let (mut seen_messages, mut seen_tools) = (messages.to_vec(), tools.to_vec());
        each_text(&mut seen_messages, &mut seen_tools, &mut |text| {
            let first = inner.specials.spelled_controls(&text).first().copied();
            spelling = spelling.take().or_else(|| first.map(|at| text[at..].chars().take(32).collect()));
            texts.push(text.clone());
            text
        });
        let Some(spelling) = spelling else { return Ok(None) };
        let is_free = |mark: &char| {
            let escape = escape_of(*mark);
            texts.iter().all(|text| !text.contains(*mark) && !text.to_lowercase().contains(&escape))
        };
        // Noncharacters first, then code points for private use.
        let mut candidates = ('\u{fdd0}'..='\u{fdef}').chain('\u{e000}'..='\u{f8ff}');
        let mark = candidates.find(is_free).ok_or(Error::NoMark { spelling })?;
        let (mut messages, mut tools) = (messages.to_vec(), tools.to_vec());
        each_text(&mut messages, &mut tools, &mut |text| {
            let mut marked = String::with_capacity(text.len() + 8);
            let mut at = 0;
            for start in inner.specials.spelled_controls(&text) {
                let behind = start + text[start..].chars().next().map_or(0, char::len_utf8);
                marked.push_str(&text[at..behind]);
                marked.push(mark);
                at = behind;
            }
            marked + &text[at..]
        });
        Ok(Some(Self { mark, messages, tools }))
    }
}

/// The escape of a character in ASCII JSON.
fn escape_of(mark: char) -> String {
    format!("\\u{:04x}", u32::from(mark))
}

/// Changes every text that a template may print: of messages, calls, further fields and tools.
fn each_text(messages: &mut [Message], tools: &mut [Tool], change: &mut dyn FnMut(String) -> String) {
    for message in messages {
        // A spelling may begin in one part and end in the next.
        let text = message.text().into_owned();
        if !text.is_empty() {
            message.content = vec![Part::Text(change(text))];
        }
        if let breakers_core::Role::Other(name) = &mut message.role {
            *name = change(std::mem::take(name));
        }
        for call in &mut message.tool_calls {
            call.id = change(std::mem::take(&mut call.id));
            call.name = change(std::mem::take(&mut call.name));
            call.arguments = match call.arguments_json() {
                Ok(json) => change_strings(json.as_str(), change),
                Err(_) => change(std::mem::take(&mut call.arguments)),
            };
        }
        message.tool_call_id = message.tool_call_id.take().map(&mut *change);
        message.fields.iter_mut().for_each(|(_, json)| change_json(json, change));
    }
    for tool in tools {
        tool.name = change(std::mem::take(&mut tool.name));
        tool.description = tool.description.take().map(&mut *change);
        change_json(&mut tool.parameters, change);
    }
}

fn change_json(json: &mut Json, change: &mut dyn FnMut(String) -> String) {
    let changed = change_strings(json.as_str(), change);
    *json = Json::parse(&changed).expect("a string stays a string");
}

/// Changes the strings in a JSON text, including keys; everything between them stays the same byte for byte.
fn change_strings(json: &str, change: &mut dyn FnMut(String) -> String) -> String {
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(start) = rest.find('"') {
        let is_escaped = |end: usize| rest[..end].bytes().rev().take_while(|&b| b == b'\\').count() % 2 == 1;
        let mut ends = rest.match_indices('"').map(|(end, _)| end).filter(|&end| end > start);
        let Some(end) = ends.find(|&end| !is_escaped(end)) else { break };
        let literal = &rest[start..=end];
        out.push_str(&rest[..start]);
        match serde_json::from_str::<String>(literal) {
            Ok(text) => {
                let changed = change(text.clone());
                match changed == text {
                    true => out.push_str(literal),
                    false => out.push_str(&serde_json::Value::String(changed).to_string()),
                }
            }
            Err(_) => out.push_str(literal),
        }
        rest = &rest[end + 1..];
    }
    out + rest
}

impl Inner {
    /// Encodes a text in which marks keep control tokens from being recognized.
    fn encode_marked(&self, text: &str, mark: char, out: &mut Vec<TokenId>) -> Result<()> {
        let mut after_token = true;
        for fragment in self.specials.split(text, true) {
            match fragment {
                Fragment::Token(token) => {
                    out.push(token);
                    after_token = true;
                }
                Fragment::Text(range) => {
                    let text = text[range].replace(mark, "");
                    // User-defined tokens, which any text may spell, are recognized only now.
                    self.encode_fragments(&text, self.specials.split(&text, false), &mut after_token, out)?;
                }
            }
        }
        Ok(())
    }
}
