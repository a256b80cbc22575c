//! A front before scripted servers, which fail in every way that servers fail.

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use breakers_serve::upstreams::{Secret, Upstream, UpstreamsConfig};
use breakers_serve::{Keys, Server, ServerHandle};

use crate::support::{Answer, Client, begin, config, metric, until};

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const WHOLE: &str = r#"{"id":"x","choices":[],"usage":{"total_tokens":7}}"#;
const LIST: &str = r#"{"object":"list","data":[{"id":"m","object":"model","extra":[1]}]}"#;

/// What a server got.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) path: String,
    pub(crate) head: String,
    pub(crate) body: String,
}

type Act = dyn Fn(&Got, &mut TcpStream) + Send + Sync;

/// A server that answers checks, and all else by its script; then it closes the connection.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    pub(crate) got: Arc<Mutex<Vec<Got>>>,
    /// Whether checks are not answered.
    pub(crate) hangs: Arc<AtomicBool>,
}

impl Scripted {
    pub(crate) fn new(act: impl Fn(&Got, &mut TcpStream) + Send + Sync + 'static) -> Self {
        Self::with_list(LIST, act)
    }

    fn with_list(list: &'static str, act: impl Fn(&Got, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (got, hangs) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let this = Self { address, got: Arc::clone(&got), hangs: Arc::clone(&hangs) };
        let act: Arc<Act> = Arc::new(act);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (act, got, hangs) = (Arc::clone(&act), Arc::clone(&got), Arc::clone(&hangs));
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let Some(request) = receive(&stream) else { return };
                    if hangs.load(Ordering::SeqCst) {
                        let _ = stream.read(&mut [0]);
                    } else if request.path == "/v1/models" {
                        reply(&mut stream, "200 OK", "", list);
                    } else if request.path == "/health" {
                        reply(&mut stream, "404 Not Found", "", "{}");
                    } else {
                        got.lock().unwrap().push(request.clone());
                        act(&request, &mut stream);
                    }
                });
            }
        });
        this
    }

    fn n(&self) -> usize {
        self.got.lock().unwrap().len()
    }

    pub(crate) fn upstream(&self) -> Upstream {
        Upstream::new(format!("http://{}/v1", self.address))
    }
}

fn receive(stream: &TcpStream) -> Option<Got> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let lower = head.to_lowercase();
    let length = lower.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    let path = head.split(' ').nth(1)?.to_owned();
    Some(Got { path, head, body: String::from_utf8(body).unwrap() })
}

pub(crate) fn reply(stream: &mut TcpStream, status: &str, headers: &str, body: &str) {
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n{headers}Content-Length: \
         {length}\r\n\r\n{body}"
    );
}

fn stream_head(stream: &mut TcpStream) {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Request-Id: theirs\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
}

pub(crate) fn settings(upstreams: impl IntoIterator<Item = Upstream>) -> UpstreamsConfig {
    let mut settings = UpstreamsConfig::new(upstreams);
    settings.check_interval = Duration::from_millis(200);
    settings.check_time = Duration::from_millis(500);
    settings.backoff = Duration::from_millis(100);
    settings.max_backoff = Duration::from_millis(400);
    settings
}

pub(crate) fn front(settings: UpstreamsConfig) -> ServerHandle {
    Server::new(config()).with_upstreams(settings).spawn().unwrap()
}

fn of(servers: &[&Scripted]) -> ServerHandle {
    front(settings(servers.iter().map(|server| server.upstream())))
}

fn ask(client: &Client, text: &str, stream: bool) -> Answer {
    client.post(CHAT, &body(text, stream))
}

pub(crate) fn body(text: &str, stream: bool) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}],"stream":{stream}}}"#)
}

fn whole(_: &Got, stream: &mut TcpStream) {
    reply(stream, "200 OK", "X-Request-Id: theirs\r\nX-Extra: kept\r\n", WHOLE);
}

#[test]
fn bytes_and_headers_pass_through_and_keys_do_not() {
    let server = Scripted::new(whole);
    let mut upstream = server.upstream();
    upstream.key = Some(Secret::new("theirs").unwrap());
    let mut config = config();
    config.keys = Some(Keys::from_plain(["ours"]).unwrap());
    let front = Server::new(config).with_upstreams(settings([upstream])).spawn().unwrap();
    let client = Client::new(&front);
    let odd = "{ \"model\" : \"m\",\"unknown\":{\"a\": 1.50},\n\"messages\":[] ,\"\\u0061\":\"\\u00e9\"}";
    assert_eq!(client.post(CHAT, odd).status, 401);
    let headers = [("authorization", "Bearer ours"), ("x-mine", "yes"), ("cookie", "secret")];
    let answer = client.post_with(&format!("{CHAT}?a=b"), odd, &headers);
    assert_eq!((answer.status, &*answer.text), (200, WHOLE));
    assert_eq!(answer.header("x-request-id"), Some("theirs"));
    assert_eq!((answer.header("x-extra"), answer.header("x-breakers-upstream")), (Some("kept"), Some("1")));
    let got = server.got.lock().unwrap()[0].clone();
    assert_eq!((&*got.path, &*got.body), ("/v1/chat/completions?a=b", odd));
    let head = got.head.to_lowercase();
    assert!(head.contains("authorization: bearer theirs") && head.contains("x-mine: yes"), "{head}");
    assert!(
        head.contains("via: 1.1 breakers-") && !head.contains("ours") && !head.contains("cookie"),
        "{head}"
    );
    // What would let a key reach another model is not passed on.
    for twice in [r#"{"model":"m","model":"n"}"#, r#"{"model":"m","Model":"n"}"#, "{}", "[]", "{\"model\":1}"]
    {
        assert_eq!(client.post_with(CHAT, twice, &headers).status, 400, "{twice}");
    }
    let models = client.get_with("/v1/models", &headers).text;
    assert_eq!(models, LIST);
    let follows = r#"{"model":"m","previous_response_id":"resp_1"}"#;
    let error = client.post_with("/v1/responses", follows, &headers);
    assert_eq!((error.status, error.json()["error"]["param"].as_str()), (400, Some("previous_response_id")));
    assert_eq!(server.n(), 1);
}

#[test]
fn what_fails_before_its_first_byte_goes_to_another_server() {
    type Way = fn(&Got, &mut TcpStream);
    let ways: [(&str, Way); 7] = [
        ("closes", |_, _| {}),
        ("503", |_, s| reply(s, "503 Service Unavailable", "", "{}")),
        ("429", |_, s| reply(s, "429 Too Many Requests", "", "{}")),
        ("404", |_, s| reply(s, "404 Not Found", "", "{}")),
        ("no JSON", |_, s| reply(s, "200 OK", "", "{\"id\":")),
        ("torn", |_, s| s.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"id\"").unwrap()),
        ("no event", |_, s| {
            stream_head(s);
            s.write_all(b": ping\n\ndata: {\"par").unwrap();
        }),
    ];
    for (name, way) in ways {
        let (bad, good) = (Scripted::new(way), Scripted::new(whole));
        let front = of(&[&bad, &good]);
        let client = Client::new(&front);
        // Different texts, so that both servers are tried first by some.
        for i in 0..12 {
            let answer = ask(&client, &format!("{i}"), name == "no event");
            assert_eq!((answer.status, &*answer.text), (200, WHOLE), "{name}");
        }
        assert!(bad.n() > 0 && good.n() == 12, "{name}: {} {}", bad.n(), good.n());
        let metrics = client.get("/metrics").text;
        assert_eq!(metric(&metrics, "breakers_upstream_retries_total"), bad.n() as f64, "{name}");
    }
    // What may have an effect is not sent twice.
    let (bad, good) = (Scripted::new(|_, _| {}), Scripted::new(whole));
    let front = of(&[&bad, &good]);
    let client = Client::new(&front);
    let results: Vec<u16> =
        (0..12).map(|i| client.post("/v1/other", &body(&format!("{i}"), false)).status).collect();
    assert_eq!(results.iter().filter(|status| **status == 502).count(), bad.n(), "{results:?}");
    assert!(bad.n() > 0 && bad.n() + good.n() == 12);
}

#[test]
fn a_stream_that_is_cut_ends_with_an_error() {
    let server = Scripted::new(|got, stream| {
        stream_head(stream);
        let name = if got.path.contains("responses") { "event: x\n" } else { "" };
        write!(stream, "{name}data: {{\"sequence_number\":4}}\n\ndata: {{\"torn\":").unwrap();
    });
    let front = of(&[&server]);
    let client = Client::new(&front);
    let answer = ask(&client, "a", true);
    assert_eq!((answer.status, answer.header("x-request-id")), (200, Some("theirs")));
    let events: Vec<&str> = answer.text.split("\n\n").collect();
    assert_eq!((events.len(), events[0]), (3, "data: {\"sequence_number\":4}"));
    assert!(
        events[1].starts_with("data: {\"error\":{\"message\":\"the stream broke off\""),
        "{}",
        answer.text
    );
    let text = client.post("/v1/responses", r#"{"model":"m","input":"a","stream":true}"#).text;
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    let data: serde_json::Value =
        serde_json::from_str(last.strip_prefix("event: error\ndata: ").unwrap()).unwrap();
    assert_eq!((&data["type"], &data["sequence_number"]), (&"error".into(), &5.into()));
    assert_eq!(data["code"], "bad_gateway");
    let name = |reason| {
        format!(
            "breakers_upstream_request_ended_total{{upstream=\"{}\",reason=\"{reason}\"}}",
            server.address
        )
    };
    until("both are counted", || metric(&client.get("/metrics").text, &name("cut")) == 2.0);
}

#[test]
fn refusals_say_what_is_so() {
    let busy = |ms: &'static str| {
        Scripted::new(move |_, s| {
            reply(
                s,
                "429 Too Many Requests",
                &format!("Retry-After-Ms: {ms}\r\n"),
                r#"{"error":{"message":"full"}}"#,
            );
        })
    };
    let (a, b) = (busy("30000"), busy("9000"));
    let front = of(&[&a, &b]);
    let client = Client::new(&front);
    for i in 0..4 {
        let answer = ask(&client, &format!("{i}"), i % 2 == 1);
        assert_eq!((answer.status, answer.json()["error"]["message"].as_str()), (429, Some("full")));
        let wait: u64 = answer.header("retry-after-ms").unwrap().parse().unwrap();
        assert!((8000..=9000).contains(&wait), "{wait}");
        assert_eq!(answer.header("retry-after"), Some("9"));
    }
    assert_eq!(a.n() + b.n(), 5, "a server that is busy is not asked by way of another");
    let unknown = client.post(CHAT, r#"{"model":"nope","messages":[]}"#);
    assert_eq!((unknown.status, unknown.json()["error"]["code"].as_str()), (404, Some("model_not_found")));
    assert!(unknown.text.contains("There are: m."), "{}", unknown.text);
    assert_eq!(client.post("/v1/batches", "{}").status, 404);
    for server in [&a, &b] {
        server.hangs.store(true, Ordering::SeqCst);
    }
    until("both are down", || client.get("/ready").status == 503);
    let none = ask(&client, "a", false);
    assert_eq!((none.status, none.json()["error"]["code"].as_str()), (503, Some("no_upstream")));
    assert!(none.header("retry-after").is_some());
    a.hangs.store(false, Ordering::SeqCst);
    until("one is back", || client.get("/ready").status == 200);
    assert_eq!(client.get("/ready").json()["upstreams"]["usable"], 1);
    // A key that the server refuses is not the client's.
    let closed = Scripted::new(|_, s| reply(s, "401 Unauthorized", "", r#"{"error":{"message":"bad key"}}"#));
    let answer = ask(&Client::new(&of(&[&closed])), "a", false);
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (502, Some("upstream_auth")));
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    // Other errors are the server's own.
    let picky = Scripted::new(|_, s| reply(s, "400 Bad Request", "", r#"{"error":{"odd":1}}"#));
    let answer = ask(&Client::new(&of(&[&picky])), "a", false);
    assert_eq!((answer.status, &*answer.text), (400, r#"{"error":{"odd":1}}"#));
}

#[test]
fn requests_leave_a_server_that_hangs() {
    let stuck = |_: &Got, stream: &mut TcpStream| {
        let _ = stream.read(&mut [0]);
    };
    let (bad, good) = (Scripted::new(stuck), Scripted::new(whole));
    let front = of(&[&bad, &good]);
    let client = Client::new(&front);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..8)
            .map(|i| {
                scope.spawn({
                    let client = &client;
                    move || ask(client, &format!("{i}"), false)
                })
            })
            .collect();
        until("some hang", || bad.n() > 0 && bad.n() + good.n() == 8);
        bad.hangs.store(true, Ordering::SeqCst);
        for answer in waiting {
            assert_eq!(answer.join().unwrap().text, WHOLE);
        }
    });
    // One that answers checks and nothing else is late in the end.
    let late = Scripted::new(stuck);
    let mut settings = settings([late.upstream()]);
    settings.head_time = Duration::from_millis(300);
    assert_eq!(ask(&Client::new(&self::front(settings)), "a", false).status, 504);
    // A stream that stands still is cut.
    let still = Scripted::new(|_, stream| {
        stream_head(stream);
        stream.write_all(b"data: {}\n\n").unwrap();
        let _ = stream.read(&mut [0]);
    });
    let mut settings = self::settings([still.upstream()]);
    settings.idle_time = Duration::from_millis(300);
    let text = ask(&Client::new(&self::front(settings)), "a", true).text;
    assert!(text.contains("the stream stood still"), "{text}");
}

#[test]
fn silence_before_a_stream_is_filled_and_failures_go_on_elsewhere() {
    let slow = Scripted::new(|_, _| std::thread::sleep(Duration::from_millis(300)));
    let good = Scripted::new(|_, stream| {
        std::thread::sleep(Duration::from_millis(300));
        stream_head(stream);
        stream.write_all(b"data: {\"a\":1}\n\ndata: [DONE]\n\n").unwrap();
    });
    let run = |servers: &[&Scripted]| {
        let mut config = config();
        config.limits.status_time = Duration::from_millis(20);
        config.limits.ping_time = Duration::from_millis(30);
        let settings = settings(servers.iter().map(|server| server.upstream()));
        let front = Server::new(config).with_upstreams(settings).spawn().unwrap();
        ask(&Client::new(&front), "a", true)
    };
    for servers in [vec![&slow, &good], vec![&good, &slow]] {
        let answer = run(&servers);
        assert!(answer.status == 200 && answer.text.starts_with(": ping\n\n"), "{}", answer.text);
        assert!(answer.text.ends_with("data: {\"a\":1}\n\ndata: [DONE]\n\n"), "{}", answer.text);
    }
    let answer = run(&[&slow]);
    assert!(answer.status == 200 && answer.text.ends_with("\n\n"));
    assert!(
        answer.text.contains("data: {\"error\":{\"message\":\"the server broke off\""),
        "{}",
        answer.text
    );
}

#[test]
fn a_client_that_goes_away_is_gone_for_the_server_too() {
    let n_closed = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&n_closed);
    let server = Scripted::new(move |got, stream| {
        if got.body.contains("begun") {
            stream_head(stream);
            stream.write_all(b"data: {}\n\n").unwrap();
        }
        if matches!(stream.read(&mut [0]), Ok(0) | Err(_)) {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let front = of(&[&server]);
    let client = Client::new(&front);
    for (i, (text, stream, wait)) in
        [("quiet", false, 0), ("quiet", true, 0), ("quiet", true, 1200), ("begun", true, 0)]
            .into_iter()
            .enumerate()
    {
        let mut connection = begin(&front, CHAT, &body(text, stream));
        until("it is asked", || server.n() == i + 1);
        std::thread::sleep(Duration::from_millis(wait));
        if text == "begun" {
            assert!(connection.read(&mut [0; 10]).unwrap() > 0);
        }
        drop(connection);
        until("the server notices", || n_closed.load(Ordering::SeqCst) == i + 1);
    }
    let outstanding = format!("breakers_upstream_outstanding{{upstream=\"{}\"}}", server.address);
    until("none is left", || metric(&client.get("/metrics").text, &outstanding) == 0.0);
    let cancelled = format!(
        "breakers_upstream_request_ended_total{{upstream=\"{}\",reason=\"cancelled\"}}",
        server.address
    );
    assert_eq!(metric(&client.get("/metrics").text, &cancelled), 4.0);
}

#[test]
fn models_are_asked_of_those_that_have_them() {
    let a = Scripted::new(whole);
    let b = Scripted::with_list(r#"{"data":[{"id":"n"},{"id":"m","other":true}]}"#, whole);
    let front = of(&[&a, &b]);
    let client = Client::new(&front);
    let list = client.get("/v1/models").json();
    assert_eq!(list["data"][0]["extra"][0], 1, "the first server's entry");
    assert_eq!((list["data"].as_array().unwrap().len(), &list["data"][1]["id"]), (2, &"n".into()));
    assert_eq!(client.get("/v1/models/n").json()["id"], "n");
    assert_eq!(client.get("/v1/models/o").status, 404);
    for i in 0..6 {
        let body = format!(r#"{{"model":"n","prompt":"{i}"}}"#);
        assert_eq!(client.post("/v1/completions", &body).status, 200);
    }
    assert_eq!((a.n(), b.n()), (0, 6));
}

#[test]
fn a_front_does_not_ask_itself_and_serves_nothing_of_its_own() {
    use breakers_core::ScriptedModel;
    let server = Scripted::new(whole);
    let model = Arc::new(ScriptedModel::from_fn("test", |_| "Hello".into()));
    let mixed = Server::new(config()).with_model(model).with_upstreams(settings([server.upstream()])).spawn();
    assert!(matches!(mixed, Err(breakers_serve::Error::MixedFront)));
    // Its own address, given as a server: checks show the other server's model, and requests come round.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut config = config();
    config.address = address;
    let itself = Upstream::new(format!("http://{address}"));
    let front = Server::new(config).with_upstreams(settings([itself, server.upstream()])).spawn().unwrap();
    let client = Client::new(&front);
    let usable = || client.get("/ready").json()["upstreams"]["usable"].as_u64();
    until("it takes itself for a server", || usable() == Some(2));
    let statuses: Vec<u16> = (0..8).map(|i| ask(&client, &format!("{i}"), false).status).collect();
    assert!(
        statuses.contains(&508) && statuses.iter().all(|status| [200, 508].contains(status)),
        "{statuses:?}"
    );
}
