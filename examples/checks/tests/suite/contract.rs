//! One contract for all chat models: a local one on real weights, with and without drafts, and the same one
//! behind an endpoint. The scripted one is in `breakers-remote`'s own tests.

use std::sync::Arc;

use breakers_backend::harness::model_path;
use breakers_core::testing::{Probe, check_chat_model};
use breakers_core::{ChatModel, Message};
use breakers_model::{LoadOptions, Model};
use breakers_remote::{Dialect, RemoteConfig, RemoteModel, testing::FakeEndpoint};
use breakers_spec_decode::{Engine, NgramDrafter};

pub(crate) fn probe() -> Probe {
    let mut probe = Probe::new(Message::user("Tell me a long story about a lighthouse."));
    probe.tokens = Some(vec![1, 2, 3].into());
    probe
}

pub(crate) fn engine() -> Option<Engine<breakers_model::Runner>> {
    let path = model_path("smollm2-135m")?;
    // With a small context, a short prompt is already too long.
    let options = LoadOptions { max_context: Some(256), ..LoadOptions::default() };
    let model = Model::load(path, &options).unwrap();
    let format = Arc::new(model.chat_template().unwrap().unwrap().clone());
    Some(Engine::new(model.runner(), Arc::new(model.tokenizer().clone())).with_format(format))
}

#[test]
fn a_local_model_keeps_the_contract() {
    let Some(engine) = engine() else { return };
    check_chat_model(&engine, &probe());
    check_chat_model(&engine.with_drafter(|| Ok(NgramDrafter::default())), &probe());
}

#[test]
fn a_remote_model_keeps_the_contract() {
    let Some(engine) = engine() else { return };
    let mut config = RemoteConfig::new("", "");
    config.card = engine.card().clone();
    config.dialect = Dialect::LlamaCpp;
    let endpoint = FakeEndpoint::serve(Arc::new(engine));
    config.base_url = endpoint.url();
    check_chat_model(&RemoteModel::new(config).unwrap(), &probe());
}
