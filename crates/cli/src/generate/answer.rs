//! An answer while it grows: its text, and the calls of functions in it.

use breakers_core::{AnswerReader, CallError, ChatReply, Delta, FinishReason, ToolCall};
use serde_json::{Value, json};

use crate::Result;

/// What has come of an answer.
pub(super) struct Answer {
    reader: Option<Box<dyn AnswerReader>>,
    /// The answer so far. Its finish reason is that of the end, once it has come.
    pub(super) reply: ChatReply,
}

impl Answer {
    /// An empty answer.
    pub(super) fn new(reader: Option<Box<dyn AnswerReader>>) -> Self {
        Self { reader, reply: ChatReply::new("", FinishReason::Cancelled) }
    }

    /// Adds a piece, and returns what is new of the text.
    pub(super) fn push(&mut self, piece: &str) -> Result<String> {
        let Some(reader) = &mut self.reader else {
            self.reply.text += piece;
            return Ok(piece.to_owned());
        };
        let mut deltas = Vec::new();
        let read = reader.push(piece, &mut deltas);
        self.absorb(deltas, read)
    }

    /// Ends the answer, and returns what is new of the text.
    pub(super) fn finish(&mut self, finish: FinishReason) -> Result<String> {
        self.reply.finish = finish;
        let Some(reader) = self.reader.take() else { return Ok(String::new()) };
        let mut deltas = Vec::new();
        let read = match reader.finish(&mut deltas) {
            // Cut off within a call: its finish reason says so.
            Err(_) if finish != FinishReason::EndOfText => Ok(()),
            read => read,
        };
        let text = self.absorb(deltas, read)?;
        if finish == FinishReason::EndOfText && !self.reply.tool_calls.is_empty() {
            self.reply.finish = FinishReason::ToolCalls;
        }
        Ok(text)
    }

    fn absorb(&mut self, deltas: Vec<Delta>, read: std::result::Result<(), CallError>) -> Result<String> {
        let before = self.reply.text.len();
        deltas.into_iter().for_each(|delta| self.reply.absorb(delta));
        read?;
        Ok(self.reply.text[before..].to_owned())
    }
}

/// A call as the program prints it. Arguments that are no JSON, because the answer was cut off among them,
/// appear as the text that they are.
pub(super) fn call_json(call: &ToolCall) -> Value {
    let arguments = call.arguments_json().ok().and_then(|json| json.to::<Value>().ok());
    let arguments = arguments.unwrap_or_else(|| call.arguments.clone().into());
    json!({ "id": call.id, "name": call.name, "arguments": arguments })
}
