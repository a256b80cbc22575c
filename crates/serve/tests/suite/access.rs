//! Who may call, how much, and from where.

use std::sync::Arc;
use std::time::Duration;

use breakers_core::{
    CallError, ChatModel, ChatReply, ChatRequest, FinishReason, OnDelta, ScriptedModel, Usage,
};
use breakers_serve::{Error, Keys, Server};

use crate::support::{Client, Endless, begin, config, raw, server, until};

const HI: &str = r#"{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}"#;

fn model() -> Arc<ScriptedModel> {
    Arc::new(ScriptedModel::from_fn("m", |_| {
        let mut reply = ChatReply::new("ok", FinishReason::EndOfText);
        reply.usage = Usage::new(50, 50);
        reply.into()
    }))
}

#[test]
fn a_server_that_others_can_reach_needs_keys() {
    let mut open = config();
    open.address = "0.0.0.0:0".parse().unwrap();
    let error = Server::new(open.clone()).with_model(model()).spawn().unwrap_err();
    assert!(matches!(error, Error::Unprotected { .. }), "{error}");
    open.allow_no_keys = true;
    assert!(Server::new(open).with_model(model()).spawn().is_ok());
    assert!(matches!(Server::new(config()).spawn().unwrap_err(), Error::NoModel));
    let twice = Server::new(config()).with_model(model()).with_model(model()).spawn().unwrap_err();
    assert!(matches!(twice, Error::SameName { id } if id == "m"));
}

#[test]
fn names_of_other_sites_are_refused() {
    let mut config = config();
    config.hosts.push("models.example".to_owned());
    let server = server(model(), config);
    let length = HI.len();
    let status = |headers: &str| {
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n{HI}"
        );
        raw(&server, &request)[9..12].to_owned()
    };
    assert_eq!(status("Host: 127.0.0.1:80\r\n"), "200");
    assert_eq!(status("Host: models.example\r\n"), "200");
    assert_eq!(status("Host: evil.example\r\n"), "403", "a name that was pointed here");
    assert_eq!(status("Host: localhost:80\r\nOrigin: http://localhost:80\r\n"), "200");
    assert_eq!(status("Host: localhost:80\r\nOrigin: https://evil.example\r\n"), "403");
    assert_eq!(status("Host: localhost:80\r\nOrigin: http://localhost:81\r\n"), "403");
    assert_eq!(status("Host: localhost:80\r\nOrigin: null\r\n"), "403");
    let preflight =
        raw(&server, "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(!preflight.to_ascii_lowercase().contains("access-control"), "{preflight}");
}

#[test]
fn keys_open_the_routes_and_have_limits() {
    let hash = Keys::hash("hashed", b"some salt");
    let text = format!(
        "[[key]]\ntenant = \"a\"\nkey = \"plain\"\nrequests_per_minute = 2\n\
         [[key]]\ntenant = \"b\"\nhash = \"{hash}\"\ntokens_per_minute = 90\nmodels = [\"m\"]\n\
         [[key]]\ntenant = \"c\"\nkey = \"other\"\nmodels = [\"x\"]\n"
    );
    let mut config = config();
    config.keys = Some(Keys::parse(&text).unwrap());
    let server = server(model(), config);
    let client = Client::new(&server);
    let post = |key: &str| {
        let key = format!("Bearer {key}");
        client.post_with("/v1/chat/completions", HI, &[("authorization", &key)])
    };
    let none = client.post("/v1/chat/completions", HI);
    assert_eq!((none.status, none.header("www-authenticate")), (401, Some("Bearer")));
    let wrong = post("wrong");
    assert_eq!((wrong.status, &wrong.json()["error"]["code"]), (401, &"invalid_api_key".into()));
    assert_eq!(client.get("/v1/models").status, 401);
    assert_eq!(client.get("/metrics").status, 401);
    assert_eq!(
        (client.get("/health").status, client.get_with("/metrics", &[("api-key", "plain")]).status),
        (200, 200)
    );
    assert_eq!([post("plain").status, post("plain").status], [200, 200]);
    let limited = post("plain");
    assert_eq!((limited.status, &limited.json()["error"]["code"]), (429, &"rate_limit_exceeded".into()));
    let wait: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((29..=30).contains(&wait), "{wait}");
    // 100 tokens of 90 are used up by the first answer.
    assert_eq!([post("hashed").status, post("hashed").status], [200, 429]);
    // A model that a key may not use does not exist for it.
    assert_eq!(post("other").status, 404);
    let listed = client.get_with("/v1/models", &[("authorization", "Bearer other")]).json();
    assert_eq!(listed["data"], serde_json::json!([]));
}

/// A model that answers with the tenant it is called for.
struct Tenants(breakers_core::ModelCard);

impl ChatModel for Tenants {
    fn card(&self) -> &breakers_core::ModelCard {
        &self.0
    }
    fn chat(&self, request: &ChatRequest, on_delta: &mut OnDelta<'_>) -> Result<ChatReply, CallError> {
        self.chat_as("", request, on_delta)
    }
    fn chat_as(
        &self,
        tenant: &str,
        _request: &ChatRequest,
        _on_delta: &mut OnDelta<'_>,
    ) -> Result<ChatReply, CallError> {
        Ok(ChatReply::new(format!("for {tenant:?}"), FinishReason::EndOfText))
    }
}

#[test]
fn the_model_is_told_the_tenant_of_the_key_and_no_other() {
    let mut card = breakers_core::ModelCard::new("m");
    card.capabilities.chat = true;
    let model = Arc::new(Tenants(card));
    // What a body says of its sender counts for nothing.
    let body = r#"{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "user": "b", "tenant": "b",
        "prompt_cache_key": "b"}"#;
    let told = |config, key: &str| {
        let server = server(model.clone(), config);
        let answer = Client::new(&server).post_with("/v1/chat/completions", body, &[("api-key", key)]);
        answer.json()["choices"][0]["message"]["content"].clone()
    };
    let mut keyed = config();
    let text = "[[key]]\ntenant = \"a\"\nkey = \"one\"\n[[key]]\ntenant = \"b\"\nkey = \"two\"\n";
    keyed.keys = Some(Keys::parse(text).unwrap());
    assert_eq!([told(keyed.clone(), "one"), told(keyed, "two")], ["for \"a\"", "for \"b\""]);
    assert_eq!(told(config(), "one"), "for \"\"");
}

#[test]
fn a_key_has_only_so_many_requests_at_a_time() {
    let model = Endless::new();
    let mut config = config();
    config.canary = false;
    config.keys = Some(Keys::parse("[[key]]\ntenant = \"a\"\nkey = \"k\"\nconcurrent = 1\n").unwrap());
    let server = server(model.clone(), config);
    model.holds.store(true, std::sync::atomic::Ordering::SeqCst);
    let body = r#"{"model": "endless", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}"#;
    let client = Client::new(&server);
    let post = || client.post_with("/v1/chat/completions", body, &[("x-api-key", "k")]);
    std::thread::scope(|scope| {
        let first = scope.spawn(post);
        until("one runs", || model.running() == 1);
        assert_eq!(post().status, 429);
        model.release();
        assert_eq!(first.join().unwrap().status, 200);
    });
    until("the place is free", || post().status == 200);
}

#[test]
fn bodies_have_limits() {
    let mut config = config();
    config.limits.body_bytes = 1000;
    config.limits.body_time = Duration::from_millis(200);
    config.limits.head_time = Duration::from_millis(300);
    let server = server(model(), config);
    let client = Client::new(&server);
    let large = format!("{{\"x\": \"{}\"}}", "a".repeat(1000));
    let answer = client.post("/v1/chat/completions", &large);
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (413, &"request_too_large".into()));
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n";
    let slow = raw(&server, &format!("{head}Content-Length: 100\r\nConnection: close\r\n\r\n{{"));
    assert!(slow.starts_with("HTTP/1.1 408 "), "{slow}");
    // One that is still being sent is read to its end, so that its client finds the answer.
    let large = "x".repeat(8_000_000);
    let length = large.len();
    let answer = raw(&server, &format!("{head}Content-Length: {length}\r\n\r\n{large}"));
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    // The head never ends: the connection is closed.
    let begun = std::time::Instant::now();
    let text = raw(&server, head);
    assert!(!text.contains(" 200 ") && begun.elapsed() < Duration::from_secs(10), "{text}");
}

#[test]
fn a_full_queue_is_refused_at_once() {
    let model = Endless::new();
    let mut config = config();
    config.canary = false;
    config.limits.max_texts = 1;
    config.limits.max_waiting = 2;
    let server = server(model.clone(), config);
    model.holds.store(true, std::sync::atomic::Ordering::SeqCst);
    let body = r#"{"model": "endless", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}"#;
    let client = Client::new(&server);
    let waiting = || crate::support::metric(&client.get("/metrics").text, "breakers_num_requests_waiting");
    let mut open = vec![begin(&server, "/v1/chat/completions", body)];
    until("one runs", || model.running() == 1);
    for n in 1..=2 {
        open.push(begin(&server, "/v1/chat/completions", body));
        until("it waits", || waiting() == f64::from(n));
    }
    let begun = std::time::Instant::now();
    let refused = client.post("/v1/chat/completions", body);
    assert!(begun.elapsed() < Duration::from_millis(500));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &"overloaded".into()));
    assert_eq!(refused.header("retry-after"), Some("3"), "three texts of a second each");
    // Who leaves the queue makes room.
    open.pop();
    until("one left", || waiting() == 1.0);
    model.release();
    until("all ended", || model.running() == 0 && waiting() == 0.0);
    assert_eq!(client.post("/v1/chat/completions", body).status, 200);
}
