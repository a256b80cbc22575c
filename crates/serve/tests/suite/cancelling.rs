//! Clients that go away or do not read, and servers that stop.

use std::io::Read as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::{Client, Endless, begin, config, metric, server, until};

fn body(stream: bool, n: usize) -> String {
    format!(
        r#"{{"model": "endless", "messages": [{{"role": "user", "content": "Hi"}}], "stream": {stream}, "n": {n}}}"#
    )
}

#[test]
fn a_closed_connection_ends_its_texts() {
    let model = Endless::new();
    let mut config = config();
    config.canary = false;
    config.limits.max_texts = 4;
    let server = server(model.clone(), config);
    let client = Client::new(&server);
    let mut n_ended = 0;
    for stream in [false, true] {
        for n in [1, 3] {
            let mut connection = begin(&server, "/v1/chat/completions", &body(stream, n));
            until("they run", || model.running() == n);
            if stream {
                let mut some = [0; 1000];
                assert!(connection.read(&mut some).unwrap() > 0);
            }
            drop(connection);
            until("they ended", || model.running() == 0);
            n_ended += n;
            assert_eq!(model.cancelled(), n_ended);
        }
    }
    until("all is counted", || metric(&client.get("/metrics").text, "breakers_num_requests_running") == 0.0);
    let metrics = client.get("/metrics").text;
    let name = "breakers_request_ended_total{model_name=\"endless\",finished_reason=\"cancelled\"}";
    assert_eq!(metric(&metrics, name), n_ended as f64, "{metrics}");
}

#[test]
fn a_text_that_waits_is_dropped_with_its_connection() {
    let model = Endless::new();
    let mut config = config();
    config.canary = false;
    config.limits.max_texts = 1;
    let server = server(model.clone(), config);
    let client = Client::new(&server);
    model.holds.store(true, Ordering::SeqCst);
    let first = begin(&server, "/v1/chat/completions", &body(false, 1));
    until("one runs", || model.running() == 1);
    let waiting = |n: f64| metric(&client.get("/metrics").text, "breakers_num_requests_waiting") == n;
    for stream in [false, true] {
        let second = begin(&server, "/v1/chat/completions", &body(stream, 2));
        until("two wait", || waiting(2.0));
        drop(second);
        until("none waits", || waiting(0.0));
    }
    assert_eq!(model.running(), 1);
    // Gone while the model has not said anything yet: the first word is the last.
    drop(first);
    std::thread::sleep(Duration::from_millis(100));
    model.release();
    until("it ended", || model.cancelled() == 1);
    assert_eq!(model.n_words.load(Ordering::SeqCst), 1);
}

#[test]
fn the_text_of_a_slow_client_pauses_and_is_ended() {
    let model = Endless::new();
    let mut config = config();
    config.canary = false;
    config.limits.stream_bytes = 64 << 10;
    config.limits.write_time = Duration::from_millis(800);
    let server = server(model.clone(), config);
    let connection = begin(&server, "/v1/chat/completions", &body(true, 1));
    until("it runs", || model.n_words.load(Ordering::SeqCst) > 100);
    // Nobody reads: the buffers of server and system fill, and then the text stands still.
    let words = || model.n_words.load(Ordering::SeqCst);
    until("it pauses", || {
        let before = words();
        std::thread::sleep(Duration::from_millis(150));
        words() == before && before > 0
    });
    until("it is ended", || model.running() == 0);
    assert_eq!(model.cancelled(), 1);
    drop(connection);
    // Other clients were not disturbed, and the server goes on.
    let short = r#"{"model": "endless", "prompt": "x", "max_tokens": 3}"#;
    assert_eq!(
        Client::new(&server).post("/v1/completions", short).json()["choices"][0]["text"],
        "word word word "
    );
}

#[test]
fn silence_is_filled_with_comments() {
    let model = Endless::new();
    let mut config = config();
    config.canary = false;
    config.limits.status_time = Duration::from_millis(20);
    config.limits.ping_time = Duration::from_millis(30);
    let server = server(model.clone(), config);
    model.holds.store(true, Ordering::SeqCst);
    let mut connection = begin(&server, "/v1/chat/completions", &body(true, 1));
    connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut text = String::new();
    while text.matches(": ping").count() < 3 {
        let mut some = [0; 1000];
        let n = connection.read(&mut some).unwrap();
        assert!(n > 0);
        text += &String::from_utf8_lossy(&some[..n]);
    }
    assert!(text.starts_with("HTTP/1.1 200 OK") && text.contains("\"role\":\"assistant\""), "{text}");
    drop(connection);
    model.release();
}

#[test]
fn a_server_that_stops_lets_answers_end() {
    let model = Endless::new();
    let mut config = config();
    config.canary = false;
    let server = server(model.clone(), config);
    let address = server.address();
    model.holds.store(true, Ordering::SeqCst);
    let short = body(true, 1).replace("\"n\": 1", "\"max_tokens\": 3");
    let mut connection = begin(&server, "/v1/chat/completions", &short);
    until("it runs", || model.running() == 1);
    server.stop();
    until("nobody else is let in", || std::net::TcpStream::connect(address).is_err());
    model.release();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    assert!(text.contains("[DONE]") && text.matches("word ").count() == 3, "{text}");
    assert_eq!(server.join().unwrap().n_cut, 0);
}

#[test]
fn a_server_that_is_stopped_twice_ends_at_once() {
    let model = Endless::new();
    let mut config = config();
    config.canary = false;
    let server = server(model.clone(), config);
    let mut connection = begin(&server, "/v1/chat/completions", &body(true, 1));
    until("it runs", || model.n_words.load(Ordering::SeqCst) > 0);
    server.stop();
    server.cut();
    let mut text = Vec::new();
    let _ = connection.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("the server is stopping") && !text.contains("[DONE]"));
    assert_eq!(server.join().unwrap().n_cut, 1);
    until("the text ended", || model.running() == 0);
}

#[test]
fn running_answers_are_cut_off_after_the_time_they_have() {
    let model = Endless::new();
    let mut config = config();
    config.canary = false;
    config.limits.drain_time = Duration::from_millis(100);
    let server = server(model.clone(), config);
    let connection = begin(&server, "/v1/chat/completions", &body(false, 1));
    until("it runs", || model.running() == 1);
    server.stop();
    assert_eq!(server.join().unwrap().n_cut, 1);
    until("the text ended", || model.running() == 0);
    drop(connection);
}
