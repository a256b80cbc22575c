//! `breakers batch`, beside a server whose model follows a script.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use breakers_core::{CallError, ScriptedModel};
use breakers_serve::{BatchConfig, ServeConfig, Server, ServerHandle};

use super::{breakers, program, stderr, stdout};

fn server(folder: &Path) -> ServerHandle {
    let mut config = ServeConfig::default();
    config.address = "127.0.0.1:0".parse().unwrap();
    let mut batches = BatchConfig::new(folder);
    batches.grace = Duration::from_millis(50);
    config.batches = Some(batches);
    let model = ScriptedModel::from_fn("m", |request| {
        let messages = request.prompt.messages().unwrap();
        let texts: Vec<_> = messages.iter().map(|message| message.text()).collect();
        match &*texts.join("|") {
            "refuse" => CallError::bad_request("prompt", "too rude").into(),
            text => (&*format!("{text} {:?}", request.max_tokens)).into(),
        }
    });
    Server::new(config).with_model(Arc::new(model)).spawn().unwrap()
}

#[test]
fn a_request_is_answered_with_its_own_answer() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let url = format!("http://{}/v1", server.address());
    let submit = |arguments: &[&str]| {
        breakers(&[&["batch", "submit", "--url", url.as_str(), "--timeout", "20"][..], arguments].concat())
    };
    let flags = ["-m", "m", "--system", "Be brief.", "--max-tokens", "5", "Hello"];
    assert_eq!(stdout(&submit(&flags)), "Be brief.|Hello Some(5)\n");
    // From standard input.
    let mut child = program();
    child
        .args(["batch", "submit", "--url", url.as_str(), "-m", "m"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = child.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"piped").unwrap();
    assert_eq!(stdout(&child.wait_with_output().unwrap()), "piped None\n");
    // Later.
    let ticket = stdout(&submit(&["-m", "m", "--no-wait", "later"]));
    let answer = stdout(&breakers(&["batch", "get", "--url", url.as_str(), "--json", ticket.trim()]));
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], "later None");
    // What is wrong has exit code 1 and says so.
    for (arguments, message) in [
        (["-m", "m", "refuse"], "too rude"),
        (["-m", "none", "Hello"], "does not exist"),
        (["-m", "m", "--request=none.json"], "cannot be used with"),
    ] {
        let output = submit(&arguments);
        assert!(!output.status.success() && stderr(&output).contains(message), "{}", stderr(&output));
    }
    let down = breakers(&["batch", "submit", "--url", "http://127.0.0.1:1/v1", "-m", "m", "Hello"]);
    assert!(stderr(&down).contains("cannot reach"), "{}", stderr(&down));
}

#[test]
fn a_file_is_run() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let url = format!("http://{}/v1", server.address());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let line = |id: &str| {
        let body = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": id}]});
        serde_json::json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body})
            .to_string()
    };
    std::fs::write(path("in.jsonl"), [line("a"), line("refuse"), line("b")].join("\n")).unwrap();
    let output = breakers(&[
        "batch",
        "run",
        path("in.jsonl").as_str(),
        "-o",
        path("out.jsonl").as_str(),
        "--url",
        url.as_str(),
    ]);
    // Some lines failed.
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let lines = |name: &str| std::fs::read_to_string(path(name)).unwrap().lines().count();
    assert_eq!((lines("out.jsonl"), lines("out.jsonl.errors")), (2, 1));
}
