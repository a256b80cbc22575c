//! Small files of models, and a loader that makes scripted models of them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use breakers_core::{
    BoxError, CallError, ChatModel, ChatReply, ChatRequest, Delta, FinishReason, ModelCard, OnDelta,
    Scripted, ScriptedModel, Usage,
};
use breakers_gguf::{File, Format, Metadata, Writer};
use breakers_serve::registry::{Loader, NewVersion, Registry, RegistryConfig, Version};
use breakers_serve::{ServeConfig, Server, ServerHandle};
use serde_json::{Value, json};

use crate::support::{Answer, Client, prepared};

type Make = Arc<dyn Fn() -> Result<Arc<dyn ChatModel>, BoxError> + Send + Sync>;

/// Makes models by the name in their files. A name `says WORDS` needs no entry.
#[derive(Default)]
pub(crate) struct Shelf {
    models: Mutex<BTreeMap<String, Make>>,
    pub(crate) n_loads: AtomicUsize,
}

impl Shelf {
    pub(crate) fn put(
        &self,
        name: &str,
        make: impl Fn() -> Result<Arc<dyn ChatModel>, BoxError> + Send + Sync + 'static,
    ) {
        self.models.lock().unwrap().insert(name.to_owned(), Arc::new(make));
    }
}

impl Loader for Shelf {
    fn load(&self, path: &Path, _version: &Version) -> Result<Arc<dyn ChatModel>, BoxError> {
        self.n_loads.fetch_add(1, Ordering::SeqCst);
        let file = File::open(path)?;
        let name = file.metadata().require_str("general.name")?.to_owned();
        let make = self.models.lock().unwrap().get(&name).cloned();
        match make {
            Some(make) => make(),
            None => match name.strip_prefix("says ") {
                Some(words) => Ok(says(words)),
                None => Err(format!("no model is called {name:?}").into()),
            },
        }
    }
}

/// A model that always says the same.
pub(crate) fn says(words: &str) -> Arc<dyn ChatModel> {
    let words = words.to_owned();
    let mut card = ModelCard::new("inner");
    let can = &mut card.capabilities;
    (can.chat, can.text, can.seed) = (true, true, true);
    let model = ScriptedModel::from_fn("inner", move |_| {
        let mut reply = ChatReply::new(words.as_str(), FinishReason::EndOfText);
        reply.usage = Usage::new(7, words.split_whitespace().count() as u64);
        reply.usage.cached_prompt = 4;
        Scripted::from(reply)
    });
    Arc::new(model.with_card(card))
}

/// A model that writes slowly; what it writes follows from its name and the seed.
pub(crate) struct Slow {
    card: ModelCard,
    tag: String,
    /// Counted down when it is let go.
    n_alive: Arc<AtomicUsize>,
}

pub(crate) const SLOW_WORDS: usize = 20;

impl Slow {
    pub(crate) fn open(tag: &str, n_alive: &Arc<AtomicUsize>) -> Arc<dyn ChatModel> {
        n_alive.fetch_add(1, Ordering::SeqCst);
        let mut card = ModelCard::new("inner");
        let can = &mut card.capabilities;
        (can.chat, can.text, can.seed) = (true, true, true);
        Arc::new(Self { card, tag: tag.to_owned(), n_alive: Arc::clone(n_alive) })
    }

    pub(crate) fn text(tag: &str, seed: u64) -> String {
        (0..SLOW_WORDS).map(|i| format!("{tag}-{seed}-{i} ")).collect()
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.n_alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ChatModel for Slow {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn chat(&self, request: &ChatRequest, on_delta: &mut OnDelta<'_>) -> Result<ChatReply, CallError> {
        let text = Self::text(&self.tag, request.seed.unwrap_or(0));
        let mut reply = ChatReply::new("", FinishReason::EndOfText);
        for word in text.split_inclusive(' ') {
            std::thread::sleep(Duration::from_millis(1));
            reply.text += word;
            if on_delta(Delta::Text(word.to_owned())) == ControlFlow::Break(()) {
                reply.finish = FinishReason::Cancelled;
                break;
            }
        }
        reply.usage = Usage::new(3, SLOW_WORDS as u64);
        Ok(reply)
    }
}

/// The metadata of a small, valid file.
pub(crate) fn metadata(name: &str) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "llama").unwrap();
    metadata.insert("general.name", name).unwrap();
    metadata.insert("tokenizer.ggml.model", "gpt2").unwrap();
    metadata.insert("tokenizer.ggml.pre", "gpt-2").unwrap();
    metadata.insert("tokenizer.ggml.tokens", vec!["a", "b", "ab", "<|end|>"]).unwrap();
    metadata.insert("tokenizer.ggml.token_type", vec![1, 1, 1, 3]).unwrap();
    metadata.insert("tokenizer.ggml.merges", vec!["a b"]).unwrap();
    metadata.insert("tokenizer.ggml.eos_token_id", 3u32).unwrap();
    let template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}";
    metadata.insert("tokenizer.chat_template", template).unwrap();
    metadata
}

/// The bytes of a file with these metadata and one tensor.
pub(crate) fn gguf(metadata: Metadata, values: [f32; 4]) -> Vec<u8> {
    let mut plan = Writer::with_metadata(metadata);
    plan.declare("token_embd.weight", Format::F32, &[2, 2]).unwrap();
    let mut data = plan.write_to(Vec::new()).unwrap();
    data.write("token_embd.weight", &values.map(f32::to_le_bytes).concat()).unwrap();
    data.finish().unwrap()
}

/// A folder with models and a database, and what loads them.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) shelf: Arc<Shelf>,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), shelf: Arc::default() }
    }

    pub(crate) fn config(&self) -> RegistryConfig {
        let mut config = RegistryConfig::new(self.folder.path().join("registry.db"), self.folder.path());
        config.sync_time = Duration::from_millis(20);
        config.usage_time = Duration::from_millis(20);
        config.canary_time = Duration::from_secs(10);
        config
    }

    pub(crate) fn open(&self) -> Arc<Registry> {
        Arc::new(Registry::open(self.config(), self.shelf.clone()).unwrap())
    }

    /// Writes a file whose model has this name.
    pub(crate) fn write(&self, file: &str, name: &str) -> PathBuf {
        std::fs::write(self.folder.path().join(file), gguf(metadata(name), [1.0, 2.0, 3.0, 4.0])).unwrap();
        file.into()
    }

    /// Writes a file and registers it. Returns the version's name.
    pub(crate) fn add(&self, registry: &Registry, file: &str, name: &str) -> String {
        registry.register(&NewVersion::new(self.write(file, name))).unwrap().name
    }
}

pub(crate) fn serve(registry: &Arc<Registry>, mut config: ServeConfig) -> ServerHandle {
    config.canary = false;
    prepared(Server::new(config).with_registry(Arc::clone(registry)))
}

pub(crate) fn chat(client: &Client, model: &str, more: &Value) -> Answer {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client.post("/v1/chat/completions", &body.to_string())
}

/// What a model says to a chat.
pub(crate) fn said(client: &Client, model: &str) -> String {
    let answer = chat(client, model, &json!({}));
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}
