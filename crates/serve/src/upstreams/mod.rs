//! A front for several servers of OpenAI's protocol.
//!
//! Requests are passed on byte for byte, and so are answers: a front that read requests into types of its own
//! would lose the fields that only one kind of server knows, and would have to be taught each new one. All
//! that is read of a request is its model and where its messages begin and end; of an answer, whether it is
//! whole.

mod choose;
mod config;
mod events;
mod front;
mod health;
mod pass;
mod prefix;
mod relay;

pub use config::{Observer, Secret, Upstream, UpstreamNews, UpstreamStatus, UpstreamsConfig};
pub(crate) use front::Front;
pub use health::Condition;
pub(crate) use pass::router;
