//! A server with a registry and without weights, for trying `/admin` and the page: two small files,
//! `one.gguf` and `two.gguf`, whose models answer with the name in their file. Both are registered, and
//! `demo` leads to the first. `cargo run -p breakers-serve --features registry --example registry -- FOLDER
//! 127.0.0.1:8080`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use breakers_core::{BoxError, ChatModel, ScriptedModel};
use breakers_gguf::{File, Format, Writer};
use breakers_serve::registry::{Loader, NewVersion, Registry, RegistryConfig, Version};
use breakers_serve::{ServeConfig, Server};

/// Makes models that say their file's name.
struct Names;

impl Loader for Names {
    fn load(&self, path: &Path, _: &Version) -> Result<Arc<dyn ChatModel>, BoxError> {
        let name = File::open(path)?.metadata().require_str("general.name")?.to_owned();
        Ok(Arc::new(ScriptedModel::from_fn("demo", move |_| name.as_str().into())))
    }
}

/// Writes a file that has all that a registry looks at.
fn write(path: &Path, name: &str) -> Result<(), breakers_gguf::Error> {
    let mut plan = Writer::new();
    plan.insert("general.architecture", "llama")?;
    plan.insert("general.name", name)?;
    plan.insert("tokenizer.ggml.model", "gpt2")?;
    plan.insert("tokenizer.ggml.pre", "gpt-2")?;
    plan.insert("tokenizer.ggml.tokens", vec!["a", "b", "ab", "<|end|>"])?;
    plan.insert("tokenizer.ggml.token_type", vec![1, 1, 1, 3])?;
    plan.insert("tokenizer.ggml.merges", vec!["a b"])?;
    plan.insert("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")?;
    plan.declare("token_embd.weight", Format::F32, &[1, 1])?;
    let mut file = plan.create(path)?;
    file.write("token_embd.weight", &1.0f32.to_le_bytes())?;
    file.finish()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let folder: PathBuf = arguments.next().ok_or("name a folder")?.into();
    let mut config = ServeConfig::default();
    if let Some(address) = arguments.next() {
        config.address = address.to_str().ok_or("the address is not UTF-8")?.parse()?;
    }
    let registry = Registry::open(RegistryConfig::new(folder.join("registry.db"), &folder), Arc::new(Names))?;
    for (file, name) in [("one.gguf", "I am the first."), ("two.gguf", "I am the second.")] {
        write(&folder.join(file), name)?;
        let version = registry.register(&NewVersion::new(file))?;
        if registry.routes()?.is_empty() {
            registry.deploy("demo", &version.name, None)?;
        }
    }
    let server = Server::new(config).with_registry(Arc::new(registry));
    server.run(|address| eprintln!("listening on http://{address}"))?;
    Ok(())
}
