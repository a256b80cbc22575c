//! A server that is killed again and again: its batch ends as it would have without that.
//!
//! `BREAKERS_SOAK=1` runs 2,000 lines and 100 kills; otherwise it is a tenth of that.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use breakers_core::{
    CallError, ChatReply, ChatRequest, FinishReason, Message, ModelCard, ScoredToken, Scripted,
    ScriptedModel, ToolCall, Usage,
};
use breakers_serve::{ServeConfig, Server};
use serde_json::json;

use crate::batches::{line, wait_for, with_folder};
use crate::support::{Client, until};

const FOLDER: &str = "BREAKERS_TEST_FOLDER";
const PAUSE: &str = "BREAKERS_TEST_PAUSE";

/// Texts at a time, one of which batches leave free.
const MAX_TEXTS: usize = 5;

fn settings(folder: &Path) -> ServeConfig {
    let mut config = with_folder(folder);
    config.limits.max_texts = MAX_TEXTS;
    config
}

/// Answers that depend on the request, with parts that differ from one time to the next as they do with a
/// real model. `calls` counts them.
fn model(pause: Duration, calls: Option<std::fs::File>) -> ScriptedModel {
    let mut card = ModelCard::new("m");
    card.revision = Some("one".to_owned());
    let can = &mut card.capabilities;
    (can.chat, can.tools, can.logprobs, can.seed) = (true, true, true, true);
    let answer = move |request: &ChatRequest| -> Scripted {
        if let Some(mut calls) = calls.as_ref() {
            calls.write_all(b"x").unwrap();
        }
        std::thread::sleep(pause);
        let last = request.prompt.messages().and_then(<[Message]>::last).map_or("".into(), Message::text);
        let n: usize = last.rsplit(' ').next().unwrap().parse().unwrap();
        match n % 50 {
            7 => return CallError::bad_request("prompt", "unlucky").into(),
            8 => return CallError::ContextTooLong { needed: Some(n), limit: Some(8) }.into(),
            _ => {}
        }
        let text = format!("{last}: {:016x} \"🦀\"\n", request.seed.unwrap_or(0));
        let mut reply = ChatReply::new(text, FinishReason::Stop);
        reply.tokens.push(ScoredToken::new(None, "a", -0.25));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
        if n.is_multiple_of(5) {
            reply.tool_calls.push(ToolCall::new(format!("call_{now}"), "f", "{}"));
        }
        reply.usage = Usage::new(20, 5);
        reply.usage.cached_prompt = u64::from(now % 20);
        reply.into()
    };
    ScriptedModel::from_fn("m", answer).with_card(card)
}

/// Not a test by itself: the process that is killed.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let pause = std::env::var(PAUSE).unwrap().parse().unwrap();
    let calls = Path::new(&folder).join("calls");
    let calls = std::fs::OpenOptions::new().create(true).append(true).open(calls).unwrap();
    let model = Arc::new(model(Duration::from_millis(pause), Some(calls)));
    Server::new(settings(Path::new(&folder))).with_model(model).run(|_| {}).unwrap();
}

/// Kills its process when it is dropped.
struct Victim(Child);

impl Victim {
    fn start(folder: &Path, pause: u64) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["batch_kills::child", "--exact", "--nocapture"]);
        command.env(FOLDER, folder).env(PAUSE, pause.to_string());
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // On Unix this is SIGKILL.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Ends the batch of a folder without being killed. Its counts, and the bytes of its two files.
fn finish(folder: &Path, id: &str) -> (serde_json::Value, [String; 2]) {
    let server =
        Server::new(settings(folder)).with_model(Arc::new(model(Duration::ZERO, None))).spawn().unwrap();
    let client = Client::new(&server);
    // Thousands of lines take a while on a slow disk.
    let begun = Instant::now();
    while client.get(&format!("/v1/batches/{id}")).json()["status"] == "in_progress"
        && begun.elapsed() < Duration::from_secs(300)
    {
        std::thread::sleep(Duration::from_millis(50));
    }
    let batch = wait_for(&client, id);
    assert_eq!(batch["status"], "completed", "{batch}");
    let text = |name: &str| client.get(&format!("/v1/files/{}/content", batch[name].as_str().unwrap())).text;
    (batch["request_counts"].clone(), [text("output_file_id"), text("error_file_id")])
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[test]
fn kills_change_no_byte() {
    let is_soak = std::env::var_os("BREAKERS_SOAK").is_some();
    let (n_lines, n_kills, pause, life) = if is_soak { (2000, 100, 30, 300) } else { (200, 10, 15, 150) };
    let folder = tempfile::tempdir().unwrap();
    let (disturbed, alone) = (folder.path().join("disturbed"), folder.path().join("alone"));
    // The batch is accepted, and the server is gone before it has run.
    let id = {
        let mut config = settings(&disturbed);
        config.limits.max_texts = 1;
        let model = breakers_core::ScriptedModel::from_fn("m", |_| {
            CallError::Overloaded { retry_after: Some(Duration::from_secs(30)) }.into()
        });
        let server = Server::new(config).with_model(Arc::new(model)).spawn().unwrap();
        let client = Client::new(&server);
        let system = "You are one of many. ".repeat(5);
        let content: String =
            (0..n_lines).map(|i| line(&format!("{i}"), &format!("{system} {} {i}", i % 7))).collect();
        let file = client.upload(&content);
        let body =
            json!({"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"});
        let batch = client.post("/v1/batches", &body.to_string()).json();
        let id = batch["id"].as_str().unwrap().to_owned();
        until("it was checked", || {
            client.get(&format!("/v1/batches/{id}")).json()["status"] == "in_progress"
        });
        id
    };
    copy(&disturbed, &alone);
    let calls = disturbed.join("calls");
    let mut random = 1u64;
    let mut n_disturbed = 0;
    for _ in 0..n_kills {
        let before = size(&calls);
        let victim = Victim::start(&disturbed, pause);
        until("it runs, or has ended", || {
            size(&calls) > before || std::fs::read_dir(disturbed.join("files")).unwrap().count() > 1
        });
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis((random >> 33) % life));
        drop(victim);
        n_disturbed += usize::from(size(&calls) > before);
    }
    assert!(n_disturbed * 2 > n_kills, "it had ended before most kills: {n_disturbed} of {n_kills}");
    let n_calls = size(&calls);
    let (counts, found) = finish(&disturbed, &id);
    let (expected_counts, expected) = finish(&alone, &id);
    assert!(found == expected, "the files differ");
    assert_eq!(counts, expected_counts);
    let n_bad = (0..n_lines).filter(|i| matches!(i % 50, 7 | 8)).count();
    assert_eq!(expected[1].lines().count(), n_bad);
    assert_eq!(expected[0].lines().count(), n_lines - n_bad);
    // What ran twice is what was in flight.
    eprintln!("{n_disturbed} of {n_kills} kills hit a running batch; {n_calls} calls before the last start");
    let n_in_flight = (MAX_TEXTS - 1) * n_kills;
    assert!(n_calls <= (n_lines + n_in_flight) as u64, "{n_calls} calls for {n_lines} lines");
}
