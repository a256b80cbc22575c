//! Errors that endpoints report: by status, by code, by message.

use std::sync::Arc;
use std::time::Duration;

use breakers_core::{CallError, ChatModel as _, ScriptedModel, TimeoutPhase};
use breakers_remote::testing::FakeEndpoint;

use super::{ask, kind, model, question};

/// The error for a status, headers and a body.
fn error(status: u16, headers: &[(&str, &str)], body: &str) -> CallError {
    let headers: Vec<(String, String)> =
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let body = body.to_owned();
    let endpoint = FakeEndpoint::start(move |_, connection| {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        connection.json(status, &headers, &body)
    });
    ask(&model(&endpoint)).unwrap_err()
}

#[test]
fn statuses_and_words() {
    let openai = |code: &str, message: &str| {
        format!(r#"{{"error": {{"message": "{message}", "type": "t", "param": "p", "code": "{code}"}}}}"#)
    };
    let cases: &[(u16, String, &str)] = &[
        (400, openai("x", "wrong"), "BadRequest { param: Some(\"p\"), message: \"wrong\" }"),
        (
            400,
            openai("context_length_exceeded", "This model's maximum context length is 4,097 tokens. However, you requested 5000 tokens (3000 in the messages, 2000 in the completion)."),
            "ContextTooLong { needed: Some(5000), limit: Some(4097) }",
        ),
        (
            400,
            openai("", "This model's maximum context length is 512 tokens. However, your request has 600 input tokens."),
            "ContextTooLong { needed: Some(600), limit: Some(512) }",
        ),
        (
            400,
            r#"{"error":{"code":400,"message":"the request exceeds the available context size (256 tokens), try increasing it","type":"exceed_context_size_error"}}"#.to_owned(),
            "ContextTooLong { needed: None, limit: Some(256) }",
        ),
        (400, openai("content_filter", "no"), "ContentFiltered { message: \"no\" }"),
        (401, openai("invalid_api_key", "key"), "Auth { message: \"key\" }"),
        (403, "{}".to_owned(), "Auth { message: "),
        (404, openai("model_not_found", "x"), "ModelNotFound { model: \"test\" }"),
        (404, r#"{"detail": "model 'test' not found"}"#.to_owned(), "ModelNotFound"),
        (404, "404 page not found".to_owned(), "BadRequest { param: None, message: \"HTTP 404: 404 page"),
        (405, String::new(), "BadRequest"),
        (408, String::new(), "Overloaded"),
        (409, String::new(), "Overloaded"),
        (413, "too large".to_owned(), "BadRequest"),
        (422, r#"{"detail": [{"loc": ["body", "n"]}]}"#.to_owned(), "BadRequest"),
        (429, openai("rate_limit_exceeded", "slow"), "RateLimited { retry_after: None }"),
        (429, String::new(), "RateLimited"),
        (429, openai("insufficient_quota", "pay"), "Auth { message: \"pay\" }"),
        (500, openai("", "oops"), "Transport(HttpStatus { status: 500, message: \"oops\" })"),
        (502, "<html>Bad Gateway</html>".to_owned(), "Transport"),
        (503, String::new(), "Overloaded"),
        (529, r#"{"error": {"type": "overloaded_error", "message": "busy"}}"#.to_owned(), "Overloaded"),
        (301, String::new(), "BadRequest"),
        (307, String::new(), "BadRequest"),
        (400, "x".repeat(1 << 21), "BadRequest"),
        (400, r#"{"error": "just text"}"#.to_owned(), "BadRequest { param: None, message: \"just text\" }"),
        (400, r#"{"error": 7}"#.to_owned(), "BadRequest"),
    ];
    for (status, body, expected) in cases {
        let error = error(*status, &[("Location", "http://127.0.0.1:9/elsewhere")], body);
        let found = format!("{error:?}");
        assert!(found.starts_with(expected), "{status} {:.60}: {found:.300}", body);
        assert!(error.to_string().len() < 1500);
    }
    let error = error(500, &[("x-should-retry", "false")], "{}");
    assert_eq!((kind(&error).as_str(), error.is_retryable()), ("Failed", false));
}

#[test]
fn when_to_try_again() {
    let ms = |n| Some(Duration::from_millis(n));
    type Case<'a> = (&'a [(&'a str, &'a str)], Option<Duration>);
    let cases: &[Case<'_>] = &[
        (&[], None),
        (&[("retry-after", "7")], ms(7000)),
        (&[("retry-after", "0.25")], ms(250)),
        (&[("Retry-After", "7"), ("Retry-After-Ms", "30")], ms(30)),
        (&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")], ms(0)),
        (&[("retry-after", "-1")], None),
        (&[("retry-after", "NaN")], None),
        (&[("retry-after", "1e300")], None),
        (&[("retry-after", "soon")], None),
        (&[("retry-after", "")], None),
    ];
    for (headers, expected) in cases {
        for status in [429, 503] {
            assert_eq!(error(status, headers, "{}").retry_after(), *expected, "{headers:?}");
        }
    }
}

#[test]
fn every_kind_of_error_comes_back_as_itself() {
    let text = |message: &str| message.to_owned();
    let after = Some(Duration::from_millis(1500));
    let cases = [
        CallError::RateLimited { retry_after: after },
        CallError::Overloaded { retry_after: after },
        CallError::ContextTooLong { needed: Some(900), limit: Some(512) },
        CallError::ContentFiltered { message: text("no") },
        CallError::bad_request("top_p", "too large"),
        CallError::Auth { message: text("key") },
        CallError::ModelNotFound { model: text("test") },
    ];
    for expected in cases {
        let script = ScriptedModel::new("test", [expected.clone().into()]);
        let endpoint = FakeEndpoint::serve(Arc::new(script));
        let found = ask(&model(&endpoint)).unwrap_err();
        assert_eq!(format!("{found:?}"), format!("{expected:?}"));
    }
    let failed = CallError::failed(std::io::Error::other("weights are NaN"));
    let broken = CallError::Transport(Arc::new(std::io::Error::other("gone")));
    let late = CallError::Timeout { phase: TimeoutPhase::Total, limit: Duration::from_secs(1) };
    for (inner, expected) in [(failed, "Failed"), (broken, "Transport"), (late, "Transport")] {
        let endpoint = FakeEndpoint::serve(Arc::new(ScriptedModel::new("test", [inner.into()])));
        assert_eq!(kind(&ask(&model(&endpoint)).unwrap_err()), expected);
    }
}

#[test]
fn no_server_and_no_http() {
    let endpoint = FakeEndpoint::start(|_, connection| connection.raw(b"hello\r\n\r\n"));
    let url = endpoint.url();
    assert_eq!(kind(&ask(&model(&endpoint)).unwrap_err()), "Malformed");
    drop(endpoint);
    let config = breakers_remote::RemoteConfig::new(url, "test");
    let gone = breakers_remote::RemoteModel::new(config).unwrap();
    assert_eq!(kind(&ask(&gone).unwrap_err()), "Transport");
    for answer in [
        &b""[..],
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    ] {
        let endpoint = FakeEndpoint::start(move |_, connection| {
            connection.raw(answer)?;
            Err(std::io::ErrorKind::Other.into())
        });
        let error = ask(&model(&endpoint)).unwrap_err();
        assert!(["Transport", "Truncated", "Malformed"].contains(&kind(&error).as_str()), "{error:?}");
    }
}

#[test]
fn secrets_are_never_shown() {
    let mut config = breakers_remote::RemoteConfig::new("http://127.0.0.1:1/v1", "test");
    config.api_key = Some(breakers_remote::ApiKey::new("sk-secret\n"));
    let error = breakers_remote::RemoteModel::new(config.clone()).unwrap_err();
    assert!(!format!("{error} {error:?} {config:?}").contains("sk-secret"));
    config.api_key = Some(breakers_remote::ApiKey::new("sk-secret"));
    let model = breakers_remote::RemoteModel::new(config).unwrap();
    let error = model.chat(&question(), &mut |_| std::ops::ControlFlow::Continue(())).unwrap_err();
    assert!(!format!("{error} {error:?} {model:?}").contains("sk-secret"));
}
