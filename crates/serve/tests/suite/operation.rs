//! Health, readiness and metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use breakers_core::{
    CallError, ChatModel, ChatReply, ChatRequest, Embedder, FinishReason, ModelCard, ModelLoad, OnDelta,
    ScriptedModel, Usage,
};
use breakers_serve::Server;
use serde_json::json;

use crate::support::{Client, config, metric, prepared, server, until};
use crate::vectors::Bytes;

#[test]
fn a_server_is_ready_when_its_models_answer() {
    let works = Arc::new(AtomicBool::new(false));
    let inside = Arc::clone(&works);
    let model = ScriptedModel::from_fn("m", move |_| match inside.load(Ordering::SeqCst) {
        true => "ok".into(),
        false => CallError::failed(std::io::Error::other("not yet")).into(),
    });
    let server = server(Arc::new(model), config());
    let client = Client::new(&server);
    until("it was tested", || client.get("/ready").text.contains("failing"));
    assert_eq!((client.get("/ready").status, client.get("/health").status), (503, 200));
    works.store(true, Ordering::SeqCst);
    until("it was tested again", || client.get("/ready").status == 200);
    assert_eq!(client.get("/ready").json(), json!({"status": "ready", "models": {"m": "ok"}}));
    // An answer that fails is as good as a test that fails.
    works.store(false, Ordering::SeqCst);
    let body = r#"{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}"#;
    assert_eq!(client.post("/v1/chat/completions", body).status, 500);
    assert_eq!(client.get("/ready").status, 503);
}

/// Makes vectors when it is told to.
struct Switch(Arc<AtomicBool>);

impl Embedder for Switch {
    fn dimension(&self) -> usize {
        1
    }
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, CallError> {
        let number = if self.0.load(Ordering::SeqCst) { 1.0 } else { f32::NAN };
        Ok(vec![vec![number]; texts.len()])
    }
}

#[test]
fn a_server_that_makes_only_vectors_is_ready_when_it_makes_them() {
    let works = Arc::new(AtomicBool::new(false));
    let switch = Arc::new(Switch(Arc::clone(&works)));
    let server = prepared(Server::new(config()).with_embedder("e", switch, Arc::new(Bytes)));
    let client = Client::new(&server);
    until("it was tested", || client.get("/ready").text.contains("failing"));
    assert_eq!(client.get("/ready").status, 503);
    works.store(true, Ordering::SeqCst);
    until("it was tested again", || client.get("/ready").status == 200);
    assert_eq!(client.get("/ready").json(), json!({"status": "ready", "models": {"e": "ok"}}));
    works.store(false, Ordering::SeqCst);
    assert_eq!(client.post("/v1/embeddings", r#"{"model": "e", "input": "x"}"#).status, 500);
    assert_eq!(client.get("/ready").status, 503);
    works.store(true, Ordering::SeqCst);
    assert_eq!(client.post("/v1/embeddings", r#"{"model": "e", "input": "x"}"#).status, 200);
    assert_eq!(client.get("/ready").status, 200, "a request that succeeds is as good as a test");
}

#[test]
fn counters_add_up() {
    let model = ScriptedModel::from_fn("m", |request| match &*request.prompt.messages().unwrap()[0].text() {
        "fail" => CallError::failed(std::io::Error::other("broken")).into(),
        "refuse" => CallError::bad_request("prompt", "no").into(),
        _ => {
            let mut reply = ChatReply::new("two words", FinishReason::Length);
            reply.usage = Usage::new(7, 2);
            reply.usage.cached_prompt = 4;
            reply.into()
        }
    });
    let mut config = config();
    config.canary = false;
    let server = server(Arc::new(model), config);
    let client = Client::new(&server);
    for (text, n) in [("x", 1), ("x", 3), ("fail", 1), ("refuse", 1), ("x", 2)] {
        let body =
            json!({"model": "m", "messages": [{"role": "user", "content": text}], "n": n, "stream": n == 3});
        client.post("/v1/chat/completions", &body.to_string());
    }
    client.post("/v1/chat/completions", "{}");
    let answer = client.get("/metrics");
    assert!(answer.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = answer.text;
    let value = |name: &str| metric(&text, name);
    let ended = |reason: &str| {
        value(&format!("breakers_request_ended_total{{model_name=\"m\",finished_reason=\"{reason}\"}}"))
    };
    assert_eq!([ended("length"), ended("failed"), ended("refused")], [6.0, 1.0, 1.0], "{text}");
    let label = "{model_name=\"m\"}";
    assert_eq!(value(&format!("breakers_requests_accepted_total{label}")), 8.0);
    assert_eq!(value("breakers_num_requests_running{"), 0.0);
    assert_eq!(value("breakers_num_requests_waiting{"), 0.0);
    assert_eq!(value(&format!("breakers_prompt_tokens_total{label}")), 42.0);
    assert_eq!(value(&format!("breakers_prompt_tokens_cached_total{label}")), 24.0);
    assert_eq!(value(&format!("breakers_generation_tokens_total{label}")), 12.0);
    for name in ["e2e_request_latency", "request_queue_time"] {
        assert_eq!(value(&format!("breakers_{name}_seconds_count{label}")), 8.0, "{name}");
    }
    for name in ["time_to_first_token", "time_per_output_token"] {
        assert_eq!(value(&format!("breakers_{name}_seconds_count{label}")), 6.0, "{name}");
    }
    let missing = "breakers_request_refused_total{status=\"400\",code=\"missing_required_parameter\"}";
    assert_eq!(value(missing), 1.0, "{text}");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let mut config = config();
    config.keys = Some(breakers_serve::Keys::from_plain(["k"]).unwrap());
    let server = server(Arc::new(ScriptedModel::from_fn("m", |_| "ok".into())), config);
    let answer = Client::new(&server).get("/");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = answer.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"),
        "{policy}"
    );
    // The hashes are those of what the page holds.
    for tag in ["script", "style"] {
        let (begin, end) = (format!("<{tag}>"), format!("</{tag}>"));
        assert_eq!(answer.text.matches(&format!("<{tag}")).count(), 1);
        let text = answer.text.split_once(&begin).unwrap().1.split_once(&end).unwrap().0;
        let hash: [u8; 32] =
            sha2::Digest::finalize(sha2::Digest::chain_update(sha2::Sha256::default(), text)).into();
        let hash = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, hash);
        assert!(policy.contains(&format!("{tag}-src 'sha256-{hash}'")), "{policy}");
    }
    // Attributes with code or style would be blocked, and so would be anything from another address.
    for forbidden in
        ["http:", "https:", "style=", "onclick", "src=", "innerHTML", "insertAdjacentHTML", "eval("]
    {
        assert!(!answer.text.contains(forbidden), "{forbidden}");
    }
}

/// A model that knows what it is busy with.
struct Busy(ScriptedModel);

impl ChatModel for Busy {
    fn card(&self) -> &ModelCard {
        self.0.card()
    }

    fn chat(&self, request: &ChatRequest, on_delta: &mut OnDelta<'_>) -> Result<ChatReply, CallError> {
        self.0.chat(request, on_delta)
    }

    fn load(&self) -> Option<ModelLoad> {
        let mut load = ModelLoad::default();
        (load.n_pausing, load.held_bytes, load.max_bytes, load.n_kept) = (1, 2, Some(3), 4);
        (load.n_passes, load.n_rows, load.n_pauses, load.n_evicted) = (5, 6, 7, 8);
        (load.n_saved, load.n_restored) = (9, 10);
        Some(load)
    }
}

#[test]
fn models_tell_what_they_are_busy_with() {
    let mut config = config();
    config.canary = false;
    let server = server(Arc::new(Busy(ScriptedModel::from_fn("m", |_| "ok".into()))), config);
    let client = Client::new(&server);
    client.get("/metrics");
    // Counters are set to what the model says, and not added to.
    let text = client.get("/metrics").text;
    for (name, expected) in [
        ("num_requests_paused", 1.0),
        ("kv_cache_used_bytes", 2.0),
        ("kv_cache_limit_bytes", 3.0),
        ("kv_cache_usage_perc", 2.0 / 3.0),
        ("prefix_cache_sequences", 4.0),
        ("forward_passes_total", 5.0),
        ("forward_rows_total", 6.0),
        ("num_preemptions_total", 7.0),
        ("prefix_cache_evictions_total", 8.0),
        ("prefix_cache_saved_total", 9.0),
        ("prefix_cache_restored_total", 10.0),
    ] {
        assert_eq!(metric(&text, &format!("breakers_{name}{{model_name=\"m\"}}")), expected, "{text}");
    }
}
