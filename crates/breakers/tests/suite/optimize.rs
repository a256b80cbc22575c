//! `breakers optimize`, beside a server whose models follow scripts: files and gates are real.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use breakers_core::{BoxError, CallError, ChatModel, ScriptedModel};
use breakers_serve::registry::{Loader, NewVersion, Registry, RegistryConfig, Version};
use breakers_serve::{ServeConfig, Server, ServerHandle};
use serde_json::{Value, json};

use super::{breakers, post, small_model, stderr};

/// Answers with the file's name. Files in the format Q5_0 fail all but their first texts, which are tests.
struct Files;

impl Loader for Files {
    fn load(&self, path: &Path, _: &Version) -> Result<Arc<dyn ChatModel>, BoxError> {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let model = move |request: &breakers_core::ChatRequest| match name.contains("Q5_0") {
            true if request.prompt.messages().is_some() => {
                CallError::failed(std::io::Error::other("broken")).into()
            }
            _ => name.as_str().into(),
        };
        Ok(Arc::new(ScriptedModel::from_fn("m", model)))
    }
}

fn server(folder: &Path, small: &str) -> (ServerHandle, Arc<Registry>, Version) {
    let models = folder.join("models");
    std::fs::create_dir(&models).unwrap();
    let file = models.join("small.gguf");
    // A link where that is possible, and not to another link, which would lead out of the folder.
    let small = std::fs::canonicalize(small).unwrap();
    std::fs::hard_link(&small, &file).or_else(|_| std::fs::copy(&small, &file).map(drop)).unwrap();
    let registry =
        Registry::open(RegistryConfig::new(folder.join("registry.db"), &models), Arc::new(Files)).unwrap();
    let registry = Arc::new(registry);
    let version = registry.register(&NewVersion::new("small.gguf")).unwrap();
    registry.deploy("small", &version.name, None).unwrap();
    let mut config = ServeConfig::default();
    config.address = "127.0.0.1:0".parse().unwrap();
    config.canary = false;
    (Server::new(config).with_registry(registry.clone()).spawn().unwrap(), registry, version)
}

/// Asks again and again, until told to stop.
fn ask(server: &ServerHandle, stop: &AtomicBool) {
    let address = server.address().to_string();
    let body = json!({"model": "small", "messages": [{"role": "user", "content": "Hi"}]});
    while !stop.load(Ordering::Relaxed) {
        post(&address, "/v1/chat/completions", &body);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_smaller_version_answers_if_it_is_as_good() {
    let Some(small) = small_model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (server, registry, old) = server(folder.path(), &small);
    let url = format!("http://{}/v1", server.address());
    let text = folder.path().join("text");
    std::fs::write(&text, "The keeper of the light writes down what the night has brought. ".repeat(40))
        .unwrap();
    let (models, text) = (folder.path().join("models"), text.to_str().unwrap());
    let optimize = |flags: &[&str]| {
        let fixed = [
            &["optimize", "small", "--json", "--url", &url, "--gate-text", text, "--tokens", "300"][..],
            &["--window", "64", "--models-dir", models.to_str().unwrap()],
        ];
        let output = breakers(&[&fixed.concat(), flags].concat());
        let answer = serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default();
        (output.status.code(), answer, stderr(&output))
    };
    let answering = || -> Vec<String> {
        let routes = registry.routes().unwrap();
        routes[0].shares.iter().map(|share| share.version.clone()).collect()
    };

    // The gate.
    let (code, answer, said) = optimize(&["--job", "rtn:Q4_0", "--max-kl", "0.001"]);
    assert_eq!((code, &answer["end"]), (Some(1), &json!("gate failed")), "{said}");
    assert!(answer["mean_kl"].as_f64().unwrap() > 0.001 && said.contains("gate failed"), "{answer} {said}");
    let (code, answer, said) = optimize(&["--job", "rtn:Q8_0", "--gate-only"]);
    assert_eq!((code, &answer["end"]), (Some(0), &json!("gate passed")), "{said}");
    assert_eq!((registry.versions().unwrap().len(), answering()), (1, vec![old.name.clone()]));

    // Nobody asks.
    let (code, answer, said) =
        optimize(&["--job", "rtn:Q8_0", "--reuse", "--patience", "0", "--requests", "9"]);
    assert_eq!((code, &answer["end"]), (Some(1), &json!("rolled back")), "{said}");
    assert!(said.contains("taken as it is"), "{said}");
    assert!(answer["why"].as_str().unwrap().contains("0 of 9 requests"), "{answer}");
    assert_eq!(answering(), [old.name.as_str()]);

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| ask(&server, &stop));
        // It fails its share.
        let flags = ["--share", "50", "--requests", "1000", "--max-kl", "1", "--max-perplexity", "50"];
        let (code, answer, said) = optimize(&[&["--job", "rtn:Q5_0"], &flags[..]].concat());
        assert_eq!((code, &answer["end"]), (Some(1), &json!("rolled back")), "{said} {answer}");
        assert!(answer["why"].as_str().unwrap().contains("failed"), "{answer}");
        assert_eq!((answer["failures"][0].as_u64(), answering()), (Some(0), vec![old.name.clone()]));
        // All is well.
        let flags = ["--job", "rtn:Q8_0", "--reuse", "--share", "50", "--requests", "20"];
        let (code, answer, said) = optimize(&flags);
        assert_eq!((code, &answer["end"]), (Some(0), &json!("deployed")), "{said} {answer}");
        assert!(answer["requests"][0].as_u64() > Some(0) && answer["requests"][1].as_u64() >= Some(20));
        assert_eq!(answering(), [answer["version"].as_str().unwrap()]);
        let new = registry.version(answer["version"].as_str().unwrap()).unwrap();
        assert_eq!((new.parent, new.path.to_str()), (Some(old.name.clone()), Some("small-rtn-Q8_0.gguf")));
        stop.store(true, Ordering::Relaxed);
    });

    // What cannot be is told before anything is written.
    for (flags, mentioned) in [
        (&["--job", "gptq:Q4_K"][..], "--text"),
        (&["--job", "rtn:Q8_0", "--share", "100"], "--share"),
        (&["--job", "rtn:Q8_0", "--max-kl", "-1"], "--max-kl"),
    ] {
        let (code, _, said) = optimize(flags);
        assert!(code == Some(2) && said.contains(mentioned), "{flags:?}: {said}");
    }
    let unknown = breakers(&[
        "optimize",
        "large",
        "--job",
        "rtn:Q8_0",
        "--url",
        &url,
        "--gate-text",
        text,
        "--models-dir",
        ".",
    ]);
    assert!(unknown.status.code() == Some(2) && stderr(&unknown).contains("small"), "{}", stderr(&unknown));
}
