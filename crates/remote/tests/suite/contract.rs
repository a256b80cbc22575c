//! The contract of all chat models, for a scripted one, the same one behind an endpoint, and
//! the endpoint behind retries.

use std::sync::Arc;

use breakers_core::testing::{Probe, check_chat_model, counting_model};
use breakers_core::{ChatModel, Message};
use breakers_remote::{Dialect, RemoteConfig, RemoteModel, RetryConfig, Retrying, testing::FakeEndpoint};

fn probe() -> Probe {
    Probe::new(Message::user("Count."))
}

fn remote(endpoint: &FakeEndpoint, inner: &dyn ChatModel, stream: bool) -> RemoteModel {
    let mut config = RemoteConfig::new(endpoint.url(), inner.card().id.clone());
    config.card = inner.card().clone();
    config.dialect = Dialect::LlamaCpp;
    config.stream = stream;
    RemoteModel::new(config).unwrap()
}

#[test]
fn the_scripted_model_keeps_the_contract() {
    check_chat_model(&counting_model("count"), &probe());
}

#[test]
fn the_remote_model_keeps_the_contract() {
    let inner = Arc::new(counting_model("count"));
    let endpoint = FakeEndpoint::serve(inner.clone());
    for stream in [true, false] {
        let model = remote(&endpoint, &*inner, stream);
        check_chat_model(&model, &probe());
        check_chat_model(&Retrying::new(model, RetryConfig::default()).unwrap(), &probe());
    }
}
