//! The body of a streamed answer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use breakers_core::Usage;
use bytes::Bytes;
use futures_core::Stream;
use tokio::time::{Instant, Sleep};

use crate::answer::{Head, event, usage_event};
use crate::api_error::ApiError;
use crate::texts::{Event, Texts};

/// What a client ignores; it keeps proxies from closing a silent connection.
const PING: &[u8] = b": ping\n\n";

/// How a stream ends.
pub(crate) enum Tail {
    /// With the tokens used, if that was asked for, and the end.
    Choices {
        head: std::sync::Arc<Head>,
        include_usage: bool,
        /// Answers to each prompt.
        n: usize,
    },
    /// With the last event of its text. The function writes the event of a failure.
    Response(Box<dyn FnMut(&ApiError) -> String + Send>),
}

/// Server-sent events: what stands before the answers, the pieces of all texts as they come, the tokens used,
/// the end. An error is the last event.
pub(crate) struct EventStream {
    /// `None` when all texts have ended.
    texts: Option<Texts>,
    /// What is to be sent before further news.
    ready: VecDeque<Bytes>,
    tail: Tail,
    /// What each text used, once it has ended.
    usages: Vec<Option<Usage>>,
    ping: Pin<Box<Sleep>>,
    ping_time: Duration,
}

impl EventStream {
    /// A stream of `n_choices` texts that begins with `begin`.
    pub(crate) fn new(
        texts: Texts,
        tail: Tail,
        begin: impl IntoIterator<Item = String>,
        n_choices: usize,
        ping_time: Duration,
    ) -> Self {
        Self {
            texts: Some(texts),
            ready: begin.into_iter().map(Bytes::from).collect(),
            tail,
            usages: vec![None; n_choices],
            ping: Box::pin(tokio::time::sleep(ping_time)),
            ping_time,
        }
    }

    /// Takes news of a text.
    pub(crate) fn take(&mut self, news: Event) {
        match news {
            Event::Chunk(bytes, _permit) => self.ready.push_back(bytes),
            Event::End(index, Ok(reply)) => {
                if let Some(usage) = self.usages.get_mut(index) {
                    *usage = Some(reply.usage);
                }
                let all: Option<Vec<Usage>> = self.usages.iter().copied().collect();
                let Some(all) = all else { return };
                if let Tail::Choices { head, include_usage, n } = &self.tail {
                    if *include_usage {
                        self.ready.push_back(usage_event(head, &all, *n).into());
                    }
                    self.ready.push_back(event("[DONE]").into());
                }
                self.texts = None;
            }
            Event::End(_, Err(error)) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &ApiError) {
        let last = match &mut self.tail {
            Tail::Choices { .. } => event(&error.to_json()),
            Tail::Response(failed) => failed(error),
        };
        self.ready.push_back(last.into());
        self.texts = None;
    }
}

impl Stream for EventStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                let next = Instant::now() + self.ping_time;
                self.ping.as_mut().reset(next);
                return Poll::Ready(Some(Ok(bytes)));
            }
            let Some(texts) = &mut self.texts else { return Poll::Ready(None) };
            match texts.poll_next(context) {
                Poll::Ready(Some(news)) => self.take(news),
                Poll::Ready(None) => self.fail(&ApiError::failed("the answer broke off")),
                Poll::Pending => {
                    if self.ping.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    self.ready.push_back(Bytes::from_static(PING));
                }
            }
        }
    }
}
