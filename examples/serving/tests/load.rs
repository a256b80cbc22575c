//! The load generator against a server whose answers take known times.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use breakers_core::{
    CallError, ChatModel, ChatReply, ChatRequest, Delta, FinishReason, ModelCard, OnDelta, Usage,
};
use breakers_eval::BootstrapConfig;
use breakers_eval::load::{
    Arrivals, Counted, GeneratedPrompts, LoadConfig, LoadPrompt, Objectives, Outcome, Run, Summary, Target,
    Tool, report, run,
};
use breakers_serve::{ServeConfig, Server, ServerHandle};

/// How much later than scripted a moment may be on a busy machine, in seconds.
const SLACK: f64 = 0.06;

/// A model that waits before its first word and before each further one.
struct Timed {
    card: ModelCard,
    first: Duration,
    next: Duration,
    n_words: usize,
    /// The first request waits this long in place of `first`.
    stall: Mutex<Option<Duration>>,
    n_asked: AtomicUsize,
    /// Every which request fails; 0: none.
    fails: usize,
    has_usage: bool,
}

impl Timed {
    fn new(first: u64, next: u64, n_words: usize) -> Self {
        let mut card = ModelCard::new("timed");
        card.capabilities.chat = true;
        Self {
            card,
            first: Duration::from_millis(first),
            next: Duration::from_millis(next),
            n_words,
            stall: Mutex::new(None),
            n_asked: AtomicUsize::new(0),
            fails: 0,
            has_usage: true,
        }
    }
}

impl ChatModel for Timed {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn chat(&self, _: &ChatRequest, on_delta: &mut OnDelta<'_>) -> Result<ChatReply, CallError> {
        let i = self.n_asked.fetch_add(1, Ordering::SeqCst) + 1;
        let stall = self.stall.lock().unwrap().take();
        std::thread::sleep(stall.unwrap_or(self.first));
        if self.fails > 0 && i.is_multiple_of(self.fails) {
            return Err(CallError::failed(std::io::Error::other("told to fail")));
        }
        let mut reply = ChatReply::new("", FinishReason::Length);
        for word in 0..self.n_words {
            if word > 0 {
                std::thread::sleep(self.next);
            }
            reply.text += "word ";
            if on_delta(Delta::Text("word ".to_owned())) == ControlFlow::Break(()) {
                reply.finish = FinishReason::Cancelled;
                return Ok(reply);
            }
        }
        // Two tokens a word, so that words and tokens cannot be mixed up.
        reply.usage = Usage::new(7, if self.has_usage { 2 * self.n_words as u64 } else { 0 });
        Ok(reply)
    }
}

fn serve(model: Timed, max_texts: usize, max_waiting: usize) -> ServerHandle {
    let mut config = ServeConfig::default();
    config.address = "127.0.0.1:0".parse().unwrap();
    config.canary = false;
    config.limits.max_texts = max_texts;
    config.limits.max_waiting = max_waiting;
    Server::new(config).with_model(Arc::new(model)).spawn().unwrap()
}

fn target(name: &str, server: &ServerHandle) -> Target {
    Target::new(name, format!("http://{}/v1/", server.address()), "timed")
}

fn prompts() -> Vec<LoadPrompt> {
    GeneratedPrompts::default().make(16).unwrap()
}

fn config(arrivals: Arrivals, n: usize) -> LoadConfig {
    let mut config = LoadConfig::new(arrivals, n);
    config.bootstrap = BootstrapConfig { n_resamples: 200, ..BootstrapConfig::default() };
    config
}

fn one(target: Target, config: &LoadConfig) -> Run {
    run(&[target], &prompts(), config, &mut |_| {}).unwrap().remove(0)
}

/// Tests of times, one after the other. A machine that does something else may disturb one; no machine makes
/// a wrong figure right, so one of a few tries must succeed.
fn patiently(test: fn()) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for _ in 0..5 {
        if std::panic::catch_unwind(test).is_ok() {
            return;
        }
    }
    test();
}

fn near(found: f64, expected: f64, what: &str) {
    assert!(found >= expected - 0.002 && found <= expected + SLACK, "{what}: {found}, scripted {expected}");
}

#[test]
fn measured_times_are_the_scripted_ones() {
    patiently(|| {
        // First word after 80 ms, 9 further ones each after 20 ms; 20 tokens, as the server counts them.
        let server = serve(Timed::new(80, 20, 10), 16, 64);
        let config = config(Arrivals::Poisson { rate: 20.0 }, 24);
        let run = one(target("timed", &server), &config);
        let summary = Summary::new(&run, &Objectives::default(), &config.bootstrap).unwrap();
        assert_eq!((summary.n_requests, summary.n_done, summary.n_counted_by_usage), (24, 24, 24));
        assert_eq!((summary.output_tokens, summary.prompt_tokens), (24 * 20, 24 * 7));
        let median = |tool, name| summary.metric(tool, name).unwrap().quantiles[0].value;
        near(median(None, "TTFT"), 0.08, "TTFT from the plan");
        near(median(Some(Tool::Guidellm), "TTFT"), 0.08, "guidellm's TTFT");
        near(median(Some(Tool::Aiperf), "TTFT"), 0.08, "AIPerf's TTFT");
        for (tool, name, expected) in [
            (Tool::Vllm, "TPOT", 9.0 * 0.02 / 19.0),
            (Tool::Guidellm, "TPOT", 0.26 / 20.0),
            (Tool::Guidellm, "ITL", 9.0 * 0.02 / 19.0),
            (Tool::Aiperf, "ITL", 9.0 * 0.02 / 19.0),
        ] {
            let found = median(Some(tool), name);
            assert!(
                (0.95..1.4).contains(&(found / expected)),
                "{tool:?} {name}: {found}, scripted {expected}"
            );
        }
        // The gaps between events are those between words, but for the last one, which says why it ended.
        let gaps = summary.metric(Some(Tool::Vllm), "ITL").unwrap();
        assert!((0.019..0.03).contains(&gaps.quantiles[0].value), "{gaps:?}");
        near(median(Some(Tool::Vllm), "latency"), 0.26, "latency");
        near(median(None, "latency"), 0.26, "latency from the plan");
        let doubts = summary.warnings.join("\n");
        assert!(
            doubts.contains("24 answers say little") && doubts.contains("2.0 tokens on average"),
            "{doubts}"
        );
        // 24 requests at 20 a second are sent within 1.2 s; the last answer takes 0.26 s more.
        near(summary.duration, run.records.last().unwrap().planned + 0.26, "duration");
        assert!(summary.client_cpu.is_none_or(|cpu| cpu > 0.0));
    });
}

#[test]
fn a_server_that_stood_still_is_seen_from_the_plan() {
    patiently(|| {
        // One request at a time: the first stands still for 500 ms, the others take 10 ms and come every 50
        // ms.
        let model = Timed::new(10, 0, 1);
        *model.stall.lock().unwrap() = Some(Duration::from_millis(500));
        let server = serve(model, 1, 64);
        let mut config = config(Arrivals::Constant { rate: 20.0 }, 16);
        // This client waits for an answer before it asks again, which hides the waiting.
        config.max_open = 1;
        let run = one(target("timed", &server), &config);
        let mut before = 0.0;
        for (i, record) in run.records.iter().enumerate() {
            let planned = 0.05 * i as f64;
            assert!((record.planned - planned).abs() < 1e-9);
            // Sent when it was planned, or when the one before it was answered.
            near(record.sent, f64::max(planned, before), &format!("request {i} was sent"));
            near(record.end - record.sent, if i == 0 { 0.5 } else { 0.01 }, &format!("request {i} took"));
            before = record.end;
        }
        let summary = Summary::new(&run, &Objectives::default(), &config.bootstrap).unwrap();
        let p50 = |tool| summary.metric(tool, "latency").unwrap().quantiles[0].value;
        assert!(p50(Some(Tool::Guidellm)) < 0.1 && p50(None) > 0.12, "{:?}", summary.metrics);
        assert!(
            summary.warnings.iter().any(|warning| warning.contains("sent more than")),
            "{:?}",
            summary.warnings
        );

        // With room for all, they are sent in time and wait at the server: both views see it.
        let model = Timed::new(10, 0, 1);
        *model.stall.lock().unwrap() = Some(Duration::from_millis(500));
        let server = serve(model, 1, 64);
        config.max_open = 64;
        let run = one(target("timed", &server), &config);
        let summary = Summary::new(&run, &Objectives::default(), &config.bootstrap).unwrap();
        let p50 = |tool| summary.metric(tool, "latency").unwrap().quantiles[0].value;
        assert!(
            (p50(Some(Tool::Guidellm)) - p50(None)).abs() < 0.03 && p50(None) > 0.12,
            "{:?}",
            summary.metrics
        );
    });
}

#[test]
fn every_request_is_counted_once() {
    patiently(|| {
        let mut model = Timed::new(30, 1, 2);
        model.fails = 5;
        let server = serve(model, 2, 2);
        let mut seen = 0;
        let config = config(Arrivals::Bursty { rate: 100.0, burstiness: 0.5 }, 60);
        let runs = run(&[target("timed", &server)], &prompts(), &config, &mut |_| seen += 1).unwrap();
        let objectives = Objectives { ttft: Some(0.02), ..Objectives::default() };
        let summary = Summary::new(&runs[0], &objectives, &config.bootstrap).unwrap();
        let Summary { n_requests, n_done, n_refused, n_timed_out, n_failed, .. } = summary;
        assert_eq!((n_requests, seen, n_timed_out), (60, 60, 0));
        assert_eq!(n_done + n_refused + n_failed, 60);
        assert!(n_done > 0 && n_refused > 0 && n_failed > 0, "{summary:?}");
        assert_eq!(summary.failures.values().sum::<usize>(), n_failed);
        assert!(
            summary.failures.keys().all(|reason| reason.contains("told to fail")),
            "{:?}",
            summary.failures
        );
        // No first word comes within 20 ms.
        assert!(
            summary
                .goodput
                .iter()
                .all(|(tool, rate)| (*rate == 0.0) == (*tool != Tool::Vllm) || *rate == 0.0)
        );
        assert!(summary.request_rate > 0.0);
    });
}

#[test]
fn a_request_has_its_time() {
    patiently(|| {
        let server = serve(Timed::new(2000, 1, 1), 4, 4);
        let mut config = config(Arrivals::ClosedLoop { users: 2 }, 4);
        config.timeout = Duration::from_millis(150);
        let run = one(target("timed", &server), &config);
        for record in &run.records {
            assert_eq!(record.outcome, Outcome::TimedOut);
            near(record.end - record.sent, 0.15, "the time limit");
        }
    });
}

#[test]
fn a_closed_loop_keeps_its_users_busy() {
    patiently(|| {
        let server = serve(Timed::new(40, 5, 3), 8, 8);
        let config = config(Arrivals::ClosedLoop { users: 3 }, 12);
        let run = one(target("timed", &server), &config);
        let summary = Summary::new(&run, &Objectives::default(), &config.bootstrap).unwrap();
        assert_eq!((summary.n_done, summary.lateness), (12, None));
        // Four turns of three users, 50 ms each.
        assert!((0.2..0.6).contains(&summary.duration), "{}", summary.duration);
        assert!(summary.metric(None, "TTFT").is_none(), "there is no plan");
    });
}

#[test]
fn servers_take_turns_and_are_compared() {
    patiently(|| {
        let (slow, fast) = (serve(Timed::new(60, 2, 3), 8, 8), serve(Timed::new(5, 2, 3), 8, 8));
        let mut config = config(Arrivals::Constant { rate: 50.0 }, 20);
        (config.rounds, config.warmup) = (4, 1);
        let targets = [target("slow", &slow), target("fast", &fast)];
        let runs = run(&targets, &prompts(), &config, &mut |_| {}).unwrap();
        assert!(runs.iter().all(|run| run.records.len() == 20));
        let (report, summaries) = report(
            &runs,
            &config,
            &Objectives { ttft: Some(0.03), ..Objectives::default() },
            Default::default(),
        )
        .unwrap();
        let median = |i: usize| summaries[i].metric(Some(Tool::Aiperf), "TTFT").unwrap().quantiles[0].value;
        near(median(0), 0.06, "slow");
        near(median(1), 0.005, "fast");
        let good = |i: usize| summaries[i].goodput.iter().find(|(tool, _)| *tool == Tool::Aiperf).unwrap().1;
        assert!(good(0) == 0.0 && good(1) > 5.0, "{} {}", good(0), good(1));
        let page = report.to_html().unwrap();
        assert!(page.matches("<svg").count() == 3 && page.contains("goodput, AIPerf"), "{page}");
    });
}

/// An endpoint that answers every request with these bytes and closes the connection.
fn bytes(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut piece = [0; 4096];
            // Bodies end with `}`; nothing more is asked of them.
            while !request.ends_with(b"}") {
                match stream.read(&mut piece) {
                    Ok(n) if n > 0 => request.extend_from_slice(&piece[..n]),
                    _ => break,
                }
            }
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    format!("http://{address}/v1")
}

#[test]
fn odd_servers_are_failures_and_no_panics() {
    const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    let config = config(Arrivals::ClosedLoop { users: 1 }, 1);
    let record = |answer: String| {
        let url = bytes(Box::leak(answer.into_boxed_str()));
        one(Target::new("odd", url, "m"), &config).records.remove(0)
    };
    let failed = |answer: &str| match record(answer.to_owned()).outcome {
        Outcome::Failed(reason) => reason,
        other => panic!("{other:?} for {answer}"),
    };
    assert!(failed("nonsense").len() > 3);
    assert!(failed("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").contains("no stream"));
    let body = r#"{"error": {"message": "no such thing"}}"#;
    let wrong = format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    assert_eq!(failed(&wrong), "HTTP 400: no such thing");
    assert_eq!(failed(&format!("{STREAM}data: {body}\n\n")), "no such thing");
    let text = r#"data: {"choices": [{"delta": {"content": "x"}}]}"#;
    assert!(failed(&format!("{STREAM}{text}\n\n")).contains("broke off"));
    assert!(failed(&format!("{STREAM}data: {{\n\n")).contains("EOF"));
    let busy = record("HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\n\r\n".to_owned());
    assert_eq!(busy.outcome, Outcome::Refused(429));

    // Neither an end nor usage, as some servers send it: the events are counted.
    let finished = format!(
        "{STREAM}: a comment\n\n{text}\n\n{text}\n\ndata: {{\"choices\": [{{\"delta\": {{}}, \"finish_reason\": \"stop\"}}]}}\n\n"
    );
    let done = record(finished);
    assert_eq!((done.outcome, done.output_tokens, done.counted), (Outcome::Done, 2, Counted::Chunks));
    assert_eq!((done.events.len(), done.texts.len()), (3, 2));

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = one(Target::new("gone", format!("http://{nobody}/v1"), "m"), &config).records.remove(0);
    assert!(matches!(gone.outcome, Outcome::Failed(_)), "{gone:?}");
    assert!(Target::models(&format!("http://{nobody}/v1"), None).is_err());
}

#[test]
fn impossible_loads_are_refused() {
    let target = Target::new("x", "http://127.0.0.1:1/v1", "m");
    let good = config(Arrivals::Constant { rate: 1.0 }, 2);
    let wrong = |config: &LoadConfig, targets: &[Target], prompts: &[LoadPrompt], expected: &str| match run(
        targets,
        prompts,
        config,
        &mut |_| {},
    ) {
        Err(breakers_eval::Error::Parameter { name, .. }) => assert_eq!(name, expected),
        other => panic!("{expected}: {other:?}"),
    };
    let with = |change: fn(&mut LoadConfig)| {
        let mut config = good.clone();
        change(&mut config);
        config
    };
    let targets = std::slice::from_ref(&target);
    wrong(&good, &[], &prompts(), "targets");
    wrong(&good, targets, &[], "prompts");
    wrong(&with(|config| config.n_requests = 0), targets, &prompts(), "n_requests");
    wrong(&with(|config| config.rounds = 3), targets, &prompts(), "rounds");
    wrong(&with(|config| config.max_open = 5000), targets, &prompts(), "max_open");
    wrong(&with(|config| config.timeout = Duration::ZERO), targets, &prompts(), "timeout");
    wrong(&with(|config| config.arrivals = Arrivals::Constant { rate: 0.0 }), targets, &prompts(), "rate");
}
