use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{
    CallError, ChatModel, ChatReply, ChatRequest, Delta, FinishReason, ModelCard, OnDelta, ToolCall,
    ToolCallDelta,
};

/// What a [`ScriptedModel`] does with one request.
#[derive(Clone, Debug)]
pub enum Scripted {
    /// Answers, one word at a time.
    Reply(ChatReply),
    /// Hands out the beginning of an answer and then fails.
    Fail {
        /// The text that is handed out before the failure; may be empty.
        after: String,
        /// The error.
        error: CallError,
    },
}

impl From<ChatReply> for Scripted {
    fn from(reply: ChatReply) -> Self {
        Scripted::Reply(reply)
    }
}

impl From<&str> for Scripted {
    fn from(text: &str) -> Self {
        Scripted::Reply(ChatReply::new(text, FinishReason::EndOfText))
    }
}

impl From<CallError> for Scripted {
    fn from(error: CallError) -> Self {
        Scripted::Fail { after: String::new(), error }
    }
}

impl From<ToolCall> for Scripted {
    fn from(call: ToolCall) -> Self {
        let mut reply = ChatReply::new("", FinishReason::ToolCalls);
        reply.tool_calls.push(call);
        Scripted::Reply(reply)
    }
}

/// A [`ChatModel`] for tests. It answers from a script, or by a function of the request, and remembers what
/// it was asked.
///
/// # Example
/// ```
/// use std::ops::ControlFlow;
/// use breakers_core::{CallError, ChatModel, ChatRequest, Message, ScriptedModel};
///
/// let busy = CallError::Overloaded { retry_after: None };
/// let model = ScriptedModel::new("test", ["Hello there.".into(), busy.into()]);
/// let request = ChatRequest::new(vec![Message::user("Hi!")]);
/// let mut pieces = Vec::new();
/// let reply = model.chat(&request, &mut |delta| {
///     pieces.push(delta);
///     ControlFlow::Continue(())
/// })?;
/// assert_eq!((reply.text.as_str(), pieces.len()), ("Hello there.", 2));
/// assert!(model.chat(&request, &mut |_| ControlFlow::Continue(())).is_err());
/// assert_eq!(model.requests(), [request.clone(), request]);
/// # Ok::<(), CallError>(())
/// ```
pub struct ScriptedModel {
    card: ModelCard,
    answer: Answer,
    requests: Mutex<Vec<ChatRequest>>,
}

enum Answer {
    Script(Mutex<VecDeque<Scripted>>),
    Function(Box<dyn Fn(&ChatRequest) -> Scripted + Send + Sync>),
}

impl ScriptedModel {
    /// A model that gives these answers, one per request.
    pub fn new(id: impl Into<String>, script: impl IntoIterator<Item = Scripted>) -> Self {
        Self::with_answer(id, Answer::Script(Mutex::new(script.into_iter().collect())))
    }

    /// A model whose answer is a function of the request.
    pub fn from_fn(
        id: impl Into<String>,
        answer: impl Fn(&ChatRequest) -> Scripted + Send + Sync + 'static,
    ) -> Self {
        Self::with_answer(id, Answer::Function(Box::new(answer)))
    }

    fn with_answer(id: impl Into<String>, answer: Answer) -> Self {
        let mut card = ModelCard::new(id);
        card.capabilities.chat = true;
        card.capabilities.text = true;
        card.capabilities.tools = true;
        card.capabilities.json = true;
        Self { card, answer, requests: Mutex::new(Vec::new()) }
    }

    /// The same model with another card.
    pub fn with_card(mut self, card: ModelCard) -> Self {
        self.card = card;
        self
    }

    /// The requests so far, in the order of their arrival.
    pub fn requests(&self) -> Vec<ChatRequest> {
        lock(&self.requests).clone()
    }

    fn next(&self, request: &ChatRequest) -> Option<Scripted> {
        match &self.answer {
            Answer::Script(script) => lock(script).pop_front(),
            Answer::Function(answer) => Some(answer(request)),
        }
    }
}

impl std::fmt::Debug for ScriptedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScriptedModel").field("card", &self.card).finish_non_exhaustive()
    }
}

/// The data stays valid even if a test panics while it holds the lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ChatModel for ScriptedModel {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    /// # Errors
    /// What the script says; [`CallError::Malformed`] at its end.
    fn chat(&self, request: &ChatRequest, on_delta: &mut OnDelta<'_>) -> Result<ChatReply, CallError> {
        lock(&self.requests).push(request.clone());
        match self.next(request) {
            Some(Scripted::Reply(mut reply)) => {
                if reply.model.is_empty() {
                    reply.model.clone_from(&self.card.id);
                }
                deliver(reply, on_delta)
            }
            Some(Scripted::Fail { after, error }) => {
                let _ = words(&after).try_for_each(|word| on_delta(Delta::Text(word.to_owned())));
                Err(error)
            }
            None => Err(CallError::Malformed { message: "the script has ended".to_owned() }),
        }
    }
}

/// Hands a reply out in pieces, and cuts it off where the receiver stops it.
fn deliver(mut reply: ChatReply, on_delta: &mut OnDelta<'_>) -> Result<ChatReply, CallError> {
    let mut given = 0;
    let mut flow = words(&reply.text).try_for_each(|word| {
        given += word.len();
        on_delta(Delta::Text(word.to_owned()))
    });
    if flow.is_continue() && !reply.tokens.is_empty() {
        flow = on_delta(Delta::Tokens(reply.tokens.clone()));
    }
    let calls = reply.tool_calls.iter().enumerate();
    let mut parts = calls.flat_map(|(i, call)| {
        [ToolCallDelta::start(i, &call.id, &call.name), ToolCallDelta::arguments(i, &call.arguments)]
    });
    if flow.is_continue() {
        flow = parts.try_for_each(|part| on_delta(Delta::ToolCall(part)));
    }
    if let ControlFlow::Break(()) = flow {
        reply.text.truncate(given);
        reply.finish = FinishReason::Cancelled;
    }
    Ok(reply)
}

/// The words of a text, each with the white space before it.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let start = rest.len() - rest.trim_start().len();
        let end = rest[start..].find(char::is_whitespace).map_or(rest.len(), |end| start + end);
        let (word, after) = rest.split_at(end);
        rest = after;
        (!word.is_empty()).then_some(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_text() {
        for text in ["", " ", "a", " a b", "a b ", "Grüße an  alle\n", "\u{3000}x\u{3000}"] {
            assert_eq!(words(text).collect::<String>(), text);
            assert!(words(text).all(|word| !word.is_empty()));
        }
    }

    #[test]
    fn a_reply_ends_where_its_receiver_ends_it() {
        let model = ScriptedModel::from_fn("echo", |request| match request.prompt.messages() {
            Some([.., last]) => Scripted::from(&*last.text()),
            _ => CallError::bad_request("prompt", "no messages").into(),
        });
        let request = ChatRequest::new(crate::Message::user("one two three"));
        let mut left = 2;
        let reply = model.chat(&request, &mut |_| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let reply = reply.unwrap();
        assert_eq!((reply.text.as_str(), reply.finish), ("one two", FinishReason::Cancelled));
        assert_eq!(reply.model, "echo");
        let both = model.chat_batch(&[request, ChatRequest::new("text")]);
        assert_eq!(both[0].as_ref().unwrap().text, "one two three");
        assert!(matches!(both[1], Err(CallError::BadRequest { .. })));
    }

    #[test]
    fn functions_are_called_in_pieces() {
        let call = ToolCall::new("c1", "weather", r#"{"city": "Oslo"}"#);
        let model = ScriptedModel::new("m", [call.clone().into()]);
        let mut parts = Vec::new();
        let reply = model.chat(&ChatRequest::new("x"), &mut |delta| {
            parts.push(delta);
            ControlFlow::Continue(())
        });
        let reply = reply.unwrap();
        assert_eq!((&reply.tool_calls[..], reply.finish), (&[call.clone()][..], FinishReason::ToolCalls));
        assert_eq!(reply.message().tool_calls, reply.tool_calls);
        let expected =
            [ToolCallDelta::start(0, "c1", "weather"), ToolCallDelta::arguments(0, call.arguments)];
        assert_eq!(parts, expected.map(Delta::ToolCall));
    }
}
