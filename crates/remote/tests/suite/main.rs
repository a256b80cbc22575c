//! The crate's tests: streams, whole and broken, errors, time limits, retries, and the contract of all
//! models.

mod contract;
mod errors;
mod requests;
mod sse;
mod streams;
mod timing;

use std::io::{self, Read};
use std::ops::ControlFlow;

use breakers_core::{CallError, ChatModel, ChatReply, ChatRequest, Delta, Message};
use breakers_remote::{RemoteConfig, RemoteModel, testing::FakeEndpoint};

/// A model of an endpoint.
fn model(endpoint: &FakeEndpoint) -> RemoteModel {
    RemoteModel::new(RemoteConfig::new(endpoint.url(), "test")).unwrap()
}

fn ask(model: &dyn ChatModel) -> Result<ChatReply, CallError> {
    model.chat(&question(), &mut |_| ControlFlow::Continue(()))
}

fn question() -> ChatRequest {
    ChatRequest::new(Message::user("?"))
}

/// Calls a model and keeps what it hands out.
fn listen(model: &dyn ChatModel, request: &ChatRequest) -> (Result<ChatReply, CallError>, Vec<Delta>) {
    let mut deltas = Vec::new();
    let reply = model.chat(request, &mut |delta| {
        deltas.push(delta);
        ControlFlow::Continue(())
    });
    (reply, deltas)
}

/// The kind of an error, without what it holds.
fn kind(error: &CallError) -> String {
    let text = format!("{error:?}");
    text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

/// Returns one piece per read, then ends or fails.
struct Pieces<'a> {
    pieces: Vec<&'a [u8]>,
    then: Option<io::ErrorKind>,
}

impl<'a> Pieces<'a> {
    fn new(pieces: impl IntoIterator<Item = &'a [u8]>, then: Option<io::ErrorKind>) -> Self {
        let mut pieces: Vec<_> = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
        pieces.reverse();
        Self { pieces, then }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(piece) = self.pieces.pop() else {
            return self.then.map_or(Ok(0), |kind| Err(kind.into()));
        };
        let n = piece.len().min(buffer.len());
        buffer[..n].copy_from_slice(&piece[..n]);
        if n < piece.len() {
            self.pieces.push(&piece[n..]);
        }
        Ok(n)
    }
}
