//! A model behind our server and our client is the same model: the contract of all chat models, over HTTP.

use std::sync::Arc;

use breakers_core::testing::{Probe, check_chat_model, counting_model};
use breakers_core::{ChatModel, Message};
use breakers_remote::{Dialect, RemoteConfig, RemoteModel};
use breakers_serve::{ServeConfig, Server};

/// Checks a model by way of a server, streamed and whole.
fn check(model: Arc<dyn ChatModel>, probe: &Probe) {
    let card = model.card().clone();
    let mut config = ServeConfig::default();
    config.address = "127.0.0.1:0".parse().unwrap();
    let server = Server::new(config).with_model(model).spawn().unwrap();
    for stream in [true, false] {
        let mut config = RemoteConfig::new(format!("http://{}/v1", server.address()), card.id.clone());
        config.card = card.clone();
        config.dialect = Dialect::LlamaCpp;
        config.stream = stream;
        check_chat_model(&RemoteModel::new(config).unwrap(), probe);
    }
}

#[test]
fn a_scripted_model_keeps_the_contract_behind_the_server() {
    check(Arc::new(counting_model("count")), &Probe::new(Message::user("Count.")));
}

#[test]
fn real_weights_keep_the_contract_behind_the_server() {
    let Some(engine) = crate::contract::engine() else { return };
    check(Arc::new(engine), &crate::contract::probe());
}
