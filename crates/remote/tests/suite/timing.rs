//! Time limits, closed connections, and retries.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use breakers_core::{CallError, ChatModel, ChatRequest, FinishReason, Scripted, ScriptedModel, TimeoutPhase};
use breakers_remote::{
    RemoteConfig, RemoteModel, RetryConfig, Retrying, Timeouts,
    testing::{Connection, FakeEndpoint},
};

use super::{ask, kind, listen, question};

const SHORT: Duration = Duration::from_millis(150);
const LONG: Duration = Duration::from_secs(60);

fn piece(text: &str) -> String {
    serde_json::json!({"choices": [{"index": 0, "delta": {"content": text}}]}).to_string()
}

const END: &str = r#"{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}"#;

/// Sends comments until the client is gone.
fn ping(connection: &mut Connection) -> std::io::Result<()> {
    loop {
        connection.send(b": ping\n\n")?;
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn each_wait_has_its_limit() {
    type Serve = fn(&mut Connection) -> std::io::Result<()>;
    let limits = |first, next, total| {
        let mut timeouts = Timeouts::default();
        (timeouts.first_token, timeouts.next_token, timeouts.total) = (first, next, total);
        timeouts
    };
    let wait = |connection: &mut Connection| {
        while !connection.is_closed() {
            sleep(Duration::from_millis(5));
        }
        Ok(())
    };
    let cases: Vec<(&str, Serve, Timeouts, TimeoutPhase)> = vec![
        ("silence", wait, limits(SHORT, LONG, LONG), TimeoutPhase::FirstToken),
        (
            "headers, then silence",
            |connection| {
                connection.start_events()?;
                while !connection.is_closed() {
                    sleep(Duration::from_millis(5));
                }
                Ok(())
            },
            limits(SHORT, LONG, LONG),
            TimeoutPhase::FirstToken,
        ),
        (
            "comments and nothing else",
            |connection| {
                connection.start_events()?;
                ping(connection)
            },
            limits(SHORT, LONG, LONG),
            TimeoutPhase::FirstToken,
        ),
        (
            "a piece, then comments",
            |connection| {
                connection.start_events()?;
                connection.event(&piece("x"))?;
                ping(connection)
            },
            limits(LONG, SHORT, LONG),
            TimeoutPhase::NextToken,
        ),
        (
            "pieces without end",
            |connection| {
                connection.start_events()?;
                loop {
                    connection.event(&piece("x"))?;
                    sleep(Duration::from_millis(10));
                }
            },
            limits(LONG, LONG, SHORT),
            TimeoutPhase::Total,
        ),
        ("silence", wait, limits(LONG, LONG, SHORT), TimeoutPhase::Total),
        (
            "half of an answer that is whole",
            |connection| {
                connection.raw(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
                )?;
                while !connection.is_closed() {
                    sleep(Duration::from_millis(5));
                }
                Ok(())
            },
            limits(SHORT, LONG, LONG),
            TimeoutPhase::FirstToken,
        ),
    ];
    for (what, serve, timeouts, expected) in cases {
        let endpoint = FakeEndpoint::start(move |_, connection| serve(connection));
        let mut config = RemoteConfig::new(endpoint.url(), "test");
        config.timeouts = timeouts;
        let begun = Instant::now();
        let error = ask(&RemoteModel::new(config).unwrap()).unwrap_err();
        let CallError::Timeout { phase, limit } = error else { panic!("{what}: {error}") };
        assert_eq!((phase, limit), (expected, SHORT), "{what}");
        assert!(begun.elapsed() >= SHORT && begun.elapsed() < LONG / 4, "{what}: {:?}", begun.elapsed());
    }
}

#[test]
fn slow_answers_within_their_limits_are_answers() {
    let endpoint = FakeEndpoint::start(|_, connection| {
        connection.start_events()?;
        for text in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            sleep(Duration::from_millis(120));
            connection.send(b": ping\n\n")?;
            connection.event(&piece(text))?;
        }
        connection.event(END)?;
        connection.event("[DONE]")?;
        connection.end()
    });
    let mut config = RemoteConfig::new(endpoint.url(), "test");
    // Shorter than all of it, much longer than each wait.
    let limit = Duration::from_secs(1);
    (config.timeouts.first_token, config.timeouts.next_token) = (limit, limit);
    let reply = ask(&RemoteModel::new(config).unwrap()).unwrap();
    let first = reply.timings.first_token.unwrap();
    assert_eq!(reply.text, "abcdefghij");
    assert!(first >= Duration::from_millis(120) && first <= reply.timings.total);
    assert!(reply.timings.total >= Duration::from_millis(1200));
}

#[test]
fn a_receiver_that_breaks_closes_the_connection() {
    let closed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&closed);
    let endpoint = FakeEndpoint::start(move |_, connection| {
        connection.start_events()?;
        connection.event(&piece("x"))?;
        // It sends nothing more, so it can only notice that the client has closed the connection.
        while !connection.is_closed() {
            sleep(Duration::from_millis(2));
        }
        seen.store(true, Ordering::SeqCst);
        Ok(())
    });
    let model = RemoteModel::new(RemoteConfig::new(endpoint.url(), "test")).unwrap();
    let reply = model.chat(&question(), &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!((reply.finish, reply.text.as_str()), (FinishReason::Cancelled, "x"));
    let begun = Instant::now();
    while !closed.load(Ordering::SeqCst) {
        assert!(begun.elapsed() < Duration::from_secs(10), "the endpoint goes on for nobody");
        sleep(Duration::from_millis(2));
    }
}

#[test]
fn an_end_that_is_never_closed_is_an_end() {
    let endpoint = FakeEndpoint::start(|_, connection| {
        connection.start_events()?;
        connection.event(&piece("x"))?;
        connection.event(END)?;
        connection.event("[DONE]")?;
        while !connection.is_closed() {
            sleep(Duration::from_millis(2));
        }
        Ok(())
    });
    let begun = Instant::now();
    let model = RemoteModel::new(RemoteConfig::new(endpoint.url(), "test")).unwrap();
    assert_eq!(ask(&model).unwrap().text, "x");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// A retrying model, and the pauses that it made.
fn retrying(
    model: impl ChatModel,
    config: RetryConfig,
) -> (Retrying<impl ChatModel>, Arc<Mutex<Vec<Duration>>>) {
    let pauses = Arc::new(Mutex::new(Vec::new()));
    let made = Arc::clone(&pauses);
    let model = Retrying::new(model, config).unwrap();
    (model.with_sleep(move |pause| made.lock().unwrap().push(pause)), pauses)
}

#[test]
fn calls_that_may_heal_are_tried_again() {
    let after = |ms| Some(Duration::from_millis(ms));
    let busy = || Scripted::from(CallError::Overloaded { retry_after: None });
    let ask_again = |ms| Scripted::from(CallError::RateLimited { retry_after: after(ms) });
    let begun =
        || Scripted::Fail { after: "a".to_owned(), error: CallError::Overloaded { retry_after: None } };
    let wrong = || Scripted::from(CallError::bad_request("x", "y"));
    let good = || Scripted::from("good");
    let cases: Vec<(Vec<Scripted>, &str, usize)> = vec![
        (vec![good()], "good", 0),
        (vec![busy(), good()], "good", 1),
        (vec![busy(), ask_again(10), busy(), good()], "good", 3),
        (vec![busy(), busy(), busy(), busy(), good()], "Overloaded", 3),
        (vec![wrong(), good()], "BadRequest", 0),
        (vec![busy(), wrong(), good()], "BadRequest", 1),
        // What was handed out cannot be taken back.
        (vec![begun(), good()], "Overloaded", 0),
        // Nobody waits for an hour.
        (vec![ask_again(3_600_000), good()], "RateLimited", 0),
    ];
    for (script, expected, n_pauses) in cases {
        let (model, pauses) = retrying(ScriptedModel::new("test", script.clone()), RetryConfig::default());
        let found = listen(&model, &question()).0.map_or_else(|error| kind(&error), |reply| reply.text);
        assert_eq!((found.as_str(), pauses.lock().unwrap().len()), (expected, n_pauses), "{script:?}");
        // A batch has no receiver, so it may be retried even after an answer has begun.
        if !matches!(script[0], Scripted::Fail { ref after, .. } if !after.is_empty()) {
            let (model, _) = retrying(ScriptedModel::new("test", script.clone()), RetryConfig::default());
            let reply = model.chat_batch(&[question()]).remove(0);
            let found = reply.map_or_else(|error| kind(&error), |reply| reply.text);
            assert_eq!(found, expected, "{script:?}");
        }
    }
}

#[test]
fn pauses_double_and_spread_and_obey_the_endpoint() {
    let config = RetryConfig::default();
    let busy = CallError::Overloaded { retry_after: None };
    for retry in 0..3 {
        let whole = Duration::from_millis(500 << retry);
        assert_eq!(config.pause(retry, &busy, u64::MAX), Some(whole));
        assert_eq!(config.pause(retry, &busy, 0), Some(whole / 2));
    }
    assert_eq!(config.pause(3, &busy, 0), None);
    let mut many = config;
    many.max_retries = u32::MAX;
    assert_eq!(many.pause(u32::MAX - 1, &busy, u64::MAX), Some(many.longest_pause));
    let asked = CallError::RateLimited { retry_after: Some(Duration::from_secs(30)) };
    assert_eq!(config.pause(0, &asked, 0), Some(Duration::from_secs(30)));
    let mut wrong = config;
    wrong.first_pause = Duration::from_secs(9);
    assert!(Retrying::new(ScriptedModel::new("t", []), wrong).is_err());
}

#[test]
fn batches_go_in_parallel_and_keep_their_order() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let inner = ScriptedModel::from_fn("test", move |request| {
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        sleep(Duration::from_millis(30));
        now.fetch_sub(1, Ordering::SeqCst);
        match &*request.prompt.messages().unwrap()[0].text() {
            "3" => CallError::bad_request("messages", "three").into(),
            text => text.into(),
        }
    });
    let endpoint = FakeEndpoint::serve(Arc::new(inner));
    let mut config = RemoteConfig::new(endpoint.url(), "test");
    config.max_concurrent = 3;
    let model = RemoteModel::new(config).unwrap();
    let requests: Vec<ChatRequest> =
        (0..9).map(|i| ChatRequest::new(breakers_core::Message::user(i.to_string()))).collect();
    for (i, reply) in model.chat_batch(&requests).into_iter().enumerate() {
        match reply {
            Ok(reply) => assert_eq!(reply.text, i.to_string()),
            Err(error) => assert_eq!((i, kind(&error).as_str()), (3, "BadRequest")),
        }
    }
    assert_eq!(seen.load(Ordering::SeqCst), 3);
    assert!(model.chat_batch(&[]).is_empty());
}
