//! Assembling a reply from the pieces of a stream.

use std::ops::ControlFlow;

use breakers_core::{
    Alternative, CallError, ChatReply, ChatRequest, Delta, FinishReason, OnDelta, ScoredToken, ToolCall,
    ToolCallDelta, Usage,
};

use crate::failure;
use crate::wire::{Choice, Chunk, WireCall, WireLogprobs, WireMessage, WireToken, WireUsage};

/// The most function calls that one answer may have.
const MAX_CALLS: usize = 1024;

/// The part of an answer that has arrived.
pub(crate) struct Reply<'a> {
    request: &'a ChatRequest,
    model: &'a str,
    reply: ChatReply,
    refusal: String,
    finish: Option<FinishReason>,
    cancelled: bool,
    /// Whether anything was handed out.
    pub(crate) begun: bool,
}

impl<'a> Reply<'a> {
    pub(crate) fn new(request: &'a ChatRequest, model: &'a str) -> Self {
        let mut reply = ChatReply::new("", FinishReason::EndOfText);
        model.clone_into(&mut reply.model);
        let (refusal, finish) = (String::new(), None);
        Self { request, model, reply, refusal, finish, cancelled: false, begun: false }
    }

    /// Whether the endpoint has said how the answer ends.
    pub(crate) fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// Whether the receiver has stopped it.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled
    }

    /// Processes an event's data.
    ///
    /// # Errors
    /// [`CallError::Malformed`], or what the endpoint says went wrong.
    pub(crate) fn take(&mut self, json: &str, on_delta: &mut OnDelta<'_>) -> Result<(), CallError> {
        let chunk: Chunk = serde_json::from_str(json).map_err(|error| malformed(error.to_string()))?;
        if let Some(error) = chunk.error {
            return Err(failure::of_event(error, self.model));
        }
        if let Some(model) = chunk.model.filter(|model| !model.is_empty()) {
            self.reply.model = model;
        }
        if let Some(usage) = chunk.usage {
            self.reply.usage = usage_of(&usage);
        }
        for choice in chunk.choices.unwrap_or_default() {
            self.choice(choice, on_delta)?;
        }
        Ok(())
    }

    fn choice(&mut self, choice: Choice, on_delta: &mut OnDelta<'_>) -> Result<(), CallError> {
        if choice.index.is_some_and(|index| index > 0) {
            return Err(malformed("a second answer, though one was asked for"));
        }
        if let Some(logprobs) = &choice.logprobs {
            self.tokens(logprobs, on_delta)?;
        }
        for WireMessage { content, refusal, tool_calls } in
            [choice.delta, choice.message].into_iter().flatten()
        {
            self.text(content, on_delta)?;
            self.refusal.extend(refusal);
            for call in tool_calls.unwrap_or_default() {
                self.call(call, on_delta)?;
            }
        }
        self.text(choice.text, on_delta)?;
        let Some(word) = &choice.finish_reason else { return Ok(()) };
        let stopped_by = choice.stop_reason.or(choice.matched_stop);
        let finish = finish_of(word, stopped_by.as_ref(), &self.request.stop)?;
        if self.finish.is_some_and(|before| before != finish) {
            return Err(malformed("two reasons for the end"));
        }
        self.finish = Some(finish);
        Ok(())
    }

    fn text(&mut self, text: Option<String>, on_delta: &mut OnDelta<'_>) -> Result<(), CallError> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(()) };
        self.still_open()?;
        if !self.cancelled {
            self.reply.text.push_str(&text);
        }
        self.hand_out(Delta::Text(text), on_delta);
        Ok(())
    }

    fn tokens(&mut self, logprobs: &WireLogprobs, on_delta: &mut OnDelta<'_>) -> Result<(), CallError> {
        let Some(n) = self.request.top_logprobs else { return Ok(()) };
        let mut tokens = Vec::new();
        for wire in logprobs.content.iter().flatten() {
            let mut token = ScoredToken::new(None, bytes_of(wire), logprob(wire.logprob)?);
            for other in wire.top_logprobs.iter().flatten() {
                token.top.push(Alternative::new(None, bytes_of(other), logprob(other.logprob)?));
            }
            tokens.push(token);
        }
        let scores = logprobs.token_logprobs.iter().flatten();
        for (i, (text, score)) in logprobs.tokens.iter().flatten().zip(scores).enumerate() {
            // The first token of an echoed prompt has no log-probability.
            let Some(score) = score else { continue };
            let mut token = ScoredToken::new(None, text.as_bytes(), logprob(*score)?);
            let top = logprobs.top_logprobs.as_ref().and_then(|top| top.get(i)?.as_ref());
            for (text, score) in top.into_iter().flatten() {
                token.top.push(Alternative::new(None, text.as_bytes(), logprob(*score)?));
            }
            tokens.push(token);
        }
        for token in &mut tokens {
            // The chosen token may be listed in addition to the alternatives asked for.
            token.top.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
            token.top.truncate(n);
        }
        if tokens.is_empty() {
            return Ok(());
        }
        self.still_open()?;
        if !self.cancelled {
            self.reply.tokens.extend_from_slice(&tokens);
        }
        self.hand_out(Delta::Tokens(tokens), on_delta);
        Ok(())
    }

    fn call(&mut self, wire: WireCall, on_delta: &mut OnDelta<'_>) -> Result<(), CallError> {
        self.still_open()?;
        let calls = &mut self.reply.tool_calls;
        let id = wire.id.filter(|id| !id.is_empty());
        // Without an index, a new id begins a new call.
        let index = wire.index.unwrap_or_else(|| match (calls.last(), &id) {
            (Some(last), Some(id)) if last.id != *id => calls.len(),
            (Some(_), _) => calls.len() - 1,
            (None, _) => 0,
        });
        if index > calls.len() || index + 1 < calls.len() || index >= MAX_CALLS {
            let found = format!("a part of call {index}, after {} calls", calls.len());
            return Err(malformed(found));
        }
        let function = wire.function.unwrap_or_default();
        let Some(arguments) = function.arguments() else {
            return Err(malformed("arguments that are neither text nor an object"));
        };
        let name = function.name.as_deref().filter(|name| !name.is_empty());
        let mut delta = ToolCallDelta::arguments(index, arguments.into_owned());
        if let Some(call) = calls.get_mut(index) {
            // Some servers repeat both in each part.
            if id.is_some_and(|id| id != call.id) || name.is_some_and(|name| name != call.name) {
                return Err(malformed(format!("call {index} changes its id or its name")));
            }
            call.arguments.push_str(&delta.arguments);
        } else {
            let Some(name) = name else {
                return Err(malformed(format!("call {index} has no name")));
            };
            let id = id.unwrap_or_else(|| format!("call_{index}"));
            (delta.id, delta.name) = (Some(id.clone()), Some(name.to_owned()));
            calls.push(ToolCall::new(id, name, delta.arguments.clone()));
        }
        self.hand_out(Delta::ToolCall(delta), on_delta);
        Ok(())
    }

    /// No part of the answer may come after its finish reason.
    fn still_open(&self) -> Result<(), CallError> {
        if self.finish.is_some() { Err(malformed("more of the answer after its end")) } else { Ok(()) }
    }

    fn hand_out(&mut self, delta: Delta, on_delta: &mut OnDelta<'_>) {
        if !self.cancelled {
            self.begun = true;
            self.cancelled = matches!(on_delta(delta), ControlFlow::Break(()));
        }
    }

    /// The complete reply, once the stream has ended.
    ///
    /// # Errors
    /// [`CallError::Truncated`] if the answer has not ended, [`CallError::ContentFiltered`] for a refusal.
    pub(crate) fn finish(mut self) -> Result<ChatReply, CallError> {
        if self.cancelled {
            self.reply.finish = FinishReason::Cancelled;
            return Ok(self.reply);
        }
        let Some(finish) = self.finish else {
            return Err(CallError::Truncated { message: "it has no reason for its end".to_owned() });
        };
        if !self.refusal.is_empty() {
            return Err(CallError::ContentFiltered { message: self.refusal });
        }
        // Some servers say `stop` though functions are called.
        let calls = !self.reply.tool_calls.is_empty() && finish == FinishReason::EndOfText;
        self.reply.finish = if calls { FinishReason::ToolCalls } else { finish };
        self.reply.seed = self.request.seed;
        Ok(self.reply)
    }
}

pub(crate) fn malformed(message: impl Into<String>) -> CallError {
    CallError::Malformed { message: message.into() }
}

fn finish_of(
    word: &str,
    stopped_by: Option<&serde_json::Value>,
    stop: &[String],
) -> Result<FinishReason, CallError> {
    Ok(match word {
        // A number is the id of an end token.
        "stop" => match stopped_by.and_then(serde_json::Value::as_str) {
            Some(text) if stop.iter().any(|stop| stop == text) => FinishReason::Stop,
            _ => FinishReason::EndOfText,
        },
        "eos" | "eos_token" | "end_turn" => FinishReason::EndOfText,
        "stop_sequence" => FinishReason::Stop,
        "length" | "max_tokens" => FinishReason::Length,
        "tool_calls" | "function_call" => FinishReason::ToolCalls,
        "content_filter" => FinishReason::ContentFilter,
        "abort" | "cancelled" | "error" => {
            return Err(CallError::Truncated { message: format!("the endpoint ended it with `{word}`") });
        }
        other => {
            let known = "stop, length, tool_calls, content_filter";
            let other: String = other.chars().take(40).collect();
            return Err(malformed(format!("the reason for the end is {other:?}; expected one of {known}")));
        }
    })
}

fn bytes_of(token: &WireToken) -> Vec<u8> {
    token.bytes.clone().unwrap_or_else(|| token.token.clone().into_bytes())
}

/// Servers write -9999 for minus infinity, and may round a log-probability of zero to a small positive
/// number.
fn logprob(x: f64) -> Result<f32, CallError> {
    if x.is_nan() || x > 1e-3 {
        return Err(malformed(format!("{x} is no logarithm of a probability")));
    }
    Ok(x.min(0.0) as f32)
}

fn usage_of(wire: &WireUsage) -> Usage {
    let mut usage = Usage::new(wire.prompt_tokens.unwrap_or(0), wire.completion_tokens.unwrap_or(0));
    if let Some(details) = &wire.prompt_tokens_details {
        usage.cached_prompt = details.cached_tokens.unwrap_or(0);
    }
    if let Some(details) = &wire.completion_tokens_details {
        usage.reasoning = details.reasoning_tokens.unwrap_or(0);
        usage.predicted = details.accepted_prediction_tokens.unwrap_or(0);
        usage.mispredicted = details.rejected_prediction_tokens.unwrap_or(0);
        // An endpoint tells of no other drafts.
        usage.accepted = usage.predicted;
        usage.drafted = usage.predicted.saturating_add(usage.mispredicted);
    }
    usage
}
