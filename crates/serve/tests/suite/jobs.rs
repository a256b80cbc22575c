//! Jobs: handed in, waited for, fetched; also while the server is down.

use std::sync::Arc;
use std::time::Duration;

use breakers_core::{CallError, ScriptedModel};
use breakers_serve::client::{Client as JobClient, ClientConfig, ClientError, Progress};
use breakers_serve::{Keys, Server};
use serde_json::json;

use crate::batches::{line, model, with_folder};
use crate::support::{Client, Endless, server, until};

const CHAT: &str = "/v1/chat/completions";

fn body(text: &str) -> String {
    json!({"model": "m", "messages": [{"role": "user", "content": text}], "seed": 1}).to_string()
}

fn client_of(address: std::net::SocketAddr, folder: Option<&std::path::Path>) -> JobClient {
    let mut config = ClientConfig::new(format!("http://{address}/v1/"));
    config.data = folder.map(Into::into);
    JobClient::new(config)
}

#[test]
fn jobs_wait_for_each_other_and_get_their_own_answers() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = with_folder(folder.path());
    config.limits.max_texts = 1;
    config.batches.as_mut().unwrap().grace = Duration::from_millis(400);
    let model = Arc::new(model());
    let server = server(model.clone(), config);
    let texts = ["b 1", "a 1", "b 0", "a 0"];
    std::thread::scope(|scope| {
        for text in texts {
            let client = client_of(server.address(), None);
            scope.spawn(move || {
                let ticket = client.submit(CHAT, &body(text)).unwrap();
                assert!(!ticket.is_spooled);
                let answer = client.wait(&ticket.name, Some(Duration::from_secs(20))).unwrap();
                assert_eq!((answer.status, answer.text()), (200, Some(format!("{text} Some(1)"))));
            });
        }
    });
    // They came within the time of grace, so that those that begin alike ran together.
    let order: Vec<_> = model
        .requests()
        .iter()
        .map(|request| request.prompt.messages().unwrap()[0].text().into_owned())
        .collect();
    assert_eq!(order, ["a 0", "a 1", "b 0", "b 1"]);
}

#[test]
fn a_job_for_a_folder_that_no_server_looks_at_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for data in [folder.path().to_owned(), folder.path().join("typo")] {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = client_of(address, Some(&data)).submit(CHAT, &body("x"));
        assert!(matches!(error, Err(ClientError::NoServerFolder { folder }) if folder == data));
        assert!(!data.join("spool").exists());
    }
}

#[test]
fn a_job_that_comes_while_the_server_is_down_is_answered_later() {
    let folder = tempfile::tempdir().unwrap();
    // A port that is free for the server that comes later.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // The folder is there once a server has run.
    drop(server(Arc::new(model()), with_folder(folder.path())));
    let client = client_of(address, Some(folder.path()));
    let unreachable = client_of(address, None).submit(CHAT, &body("x")).unwrap_err();
    assert!(matches!(unreachable, ClientError::Unreachable { .. }), "{unreachable}");
    let ticket = client.submit(CHAT, &body("hello")).unwrap();
    let wrong = client.submit(CHAT, &body("hello").replace("\"m\"", "\"none\"")).unwrap();
    assert!(ticket.is_spooled && wrong.is_spooled);
    assert!(client.fetch(&ticket.name).unwrap().is_none());
    let late = client.wait(&ticket.name, Some(Duration::from_millis(100))).unwrap_err();
    assert!(matches!(late, ClientError::TimedOut { .. }), "{late}");
    // Files that are no jobs do no harm.
    let spool = folder.path().join("spool");
    let aside = ["0123456789abcdef0.job.json", "short.job.json", "0123456789abcdef1.job.json"];
    std::fs::write(spool.join(aside[0]), "{").unwrap();
    std::fs::write(spool.join(aside[1]), "{}").unwrap();
    let other = json!({"ticket": "somebody-elses-ticket", "endpoint": CHAT, "body": {}}).to_string();
    std::fs::write(spool.join(aside[2]), other).unwrap();
    std::fs::create_dir(spool.join("0123456789abcdef2.job.json")).unwrap();
    std::fs::write(spool.join("note.txt"), "not ours").unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.wait(&ticket.name, Some(Duration::from_secs(20))).unwrap());
        let mut config = with_folder(folder.path());
        config.address = address;
        let _server = Server::new(config).with_model(Arc::new(model())).spawn().unwrap();
        assert_eq!(waiting.join().unwrap().text().unwrap(), "hello Some(1)");
        let refused = client.wait(&wrong.name, Some(Duration::from_secs(20))).unwrap();
        assert_eq!(refused.status, 404);
        assert!(refused.error().unwrap().contains("none"), "{:?}", refused.error());
        // It can be fetched again, until it is too old.
        assert_eq!(client.fetch(&ticket.name).unwrap().unwrap().status, 200);
        until("the spool is empty", || {
            let names = std::fs::read_dir(&spool).unwrap().flatten().map(|entry| entry.file_name());
            let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            let refused = |i| format!("0123456789abcdef{i}.job.refused");
            names
                == [refused(0), refused(1), refused(2), "note.txt".to_owned(), "short.job.refused".to_owned()]
        });
    });
}

#[test]
fn a_job_that_is_handed_in_twice_runs_once() {
    let folder = tempfile::tempdir().unwrap();
    let model = Arc::new(model());
    let server = server(model.clone(), with_folder(folder.path()));
    let client = Client::new(&server);
    let job = |ticket: &str, text: &str| {
        let inner: serde_json::Value = serde_json::from_str(&body(text)).unwrap();
        json!({"ticket": ticket, "endpoint": CHAT, "body": inner}).to_string()
    };
    let first = job("0123456789abcdef", "once");
    assert_eq!(client.post("/v1/jobs", &first).json()["status"], "queued");
    // As a whole, as our client does it: the server may look at any moment.
    std::fs::write(folder.path().join("whole"), &first).unwrap();
    std::fs::rename(folder.path().join("whole"), folder.path().join("spool/0123456789abcdef.job.json"))
        .unwrap();
    assert_eq!(client.post("/v1/jobs", &first).status, 200);
    let done = client.get("/v1/jobs/0123456789abcdef?wait=20").json();
    assert_eq!((&done["status"], &done["response"]["status_code"]), (&json!("completed"), &json!(200)));
    until("the spool is empty", || std::fs::read_dir(folder.path().join("spool")).unwrap().count() == 0);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(model.requests().len(), 1);
    // Another request under the same ticket is none of these.
    assert_eq!(client.post("/v1/jobs", &job("0123456789abcdef", "twice")).status, 409);
    // What is wrong is told at once.
    for (job, param) in [
        (job("short", "x"), "ticket"),
        (job("../../0123456789abcdef", "x"), "ticket"),
        (first.replace("chat/completions", "images"), "endpoint"),
        (first.replace("user", "nobody"), "messages[0].role"),
        (first.replace("\"seed\":1", "\"stream\":true"), "stream"),
        (r#"{"ticket": "0123456789abcdef"}"#.to_owned(), "endpoint"),
    ] {
        let answer = client.post("/v1/jobs", &job);
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(param)), "{job}");
    }
    assert_eq!(client.get("/v1/jobs/0123456789abcdef?wait=61").status, 400);
    assert_eq!(client.get("/v1/jobs/0123456789abcdee").status, 404);
}

#[test]
fn jobs_belong_to_their_keys() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = with_folder(folder.path());
    let text = "[[key]]\ntenant = \"a\"\nkey = \"first key\"\n[[key]]\ntenant = \"b\"\nkey = \"second key\"\nmodels = [\"x\"]\n";
    config.keys = Some(Keys::parse(text).unwrap());
    let server = server(Arc::new(model()), config);
    let client = |key: &str| {
        let mut config = ClientConfig::new(format!("http://{}/v1", server.address()));
        config.key = Some(key.to_owned());
        assert!(!format!("{config:?}").contains(key));
        JobClient::new(config)
    };
    let ticket = client("first key").submit(CHAT, &body("x")).unwrap().name;
    assert!(matches!(client("second key").fetch(&ticket), Err(ClientError::NoJob { .. })));
    assert!(matches!(
        client("second key").submit(CHAT, &body("x")),
        Err(ClientError::Refused { status: 404, .. })
    ));
    assert!(matches!(client("none").fetch(&ticket), Err(ClientError::Refused { status: 401, .. })));
    assert!(client("first key").wait(&ticket, Some(Duration::from_secs(20))).is_ok());
}

#[test]
fn a_job_outlives_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let endless = Endless::new();
    endless.holds.store(true, std::sync::atomic::Ordering::SeqCst);
    let held = server(endless.clone(), with_folder(folder.path()));
    let text = json!({"model": "endless", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3});
    let ticket = client_of(held.address(), None).submit(CHAT, &text.to_string()).unwrap().name;
    until("it runs", || endless.running() == 1);
    drop(held);
    endless.release();
    let again = server(endless.clone(), with_folder(folder.path()));
    let answer = client_of(again.address(), None).wait(&ticket, Some(Duration::from_secs(20))).unwrap();
    assert_eq!(answer.text().as_deref(), Some("word word word "));
}

#[test]
fn a_model_that_fails_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let script = [
        CallError::failed(std::io::Error::other("once")).into(),
        CallError::Overloaded { retry_after: Some(Duration::from_millis(5)) }.into(),
        "well".into(),
    ];
    let server = server(Arc::new(ScriptedModel::new("m", script)), with_folder(folder.path()));
    let client = client_of(server.address(), None);
    let ticket = client.submit(CHAT, &body("x").replace(",\"seed\":1", "")).unwrap().name;
    assert_eq!(client.wait(&ticket, Some(Duration::from_secs(20))).unwrap().text().unwrap(), "well");
    // But not without end.
    let ticket = client.submit(CHAT, &body("x").replace(",\"seed\":1", "")).unwrap().name;
    let answer = client.wait(&ticket, Some(Duration::from_secs(20))).unwrap();
    assert!(answer.status >= 500 && answer.text().is_none() && answer.error().is_some(), "{answer:?}");
}

#[test]
fn a_file_is_run_from_end_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let work = tempfile::tempdir().unwrap();
    let server = server(Arc::new(model()), with_folder(folder.path()));
    let client = client_of(server.address(), None);
    let path = |name: &str| work.path().join(name);
    let content: String = ["x", "fail", "y"].iter().map(|text| line(text, text)).collect();
    std::fs::write(path("in.jsonl"), content).unwrap();
    let mut last = Progress::default();
    let mut run = |input: &str| {
        client.run_batch(
            &path(input),
            CHAT,
            "24h",
            &path("out.jsonl"),
            &path("errors.jsonl"),
            &mut |progress| {
                last = progress.clone();
            },
        )
    };
    let done = run("in.jsonl").unwrap();
    assert_eq!((done.total, done.completed, done.failed), (3, 2, 1));
    let lines = |name: &str| std::fs::read_to_string(path(name)).unwrap().lines().count();
    assert_eq!((lines("out.jsonl"), lines("errors.jsonl")), (2, 1));
    std::fs::write(path("bad.jsonl"), "{\n").unwrap();
    let error = run("bad.jsonl").unwrap_err();
    assert!(
        matches!(&error, ClientError::Batch { errors, .. } if errors[0].starts_with("line 1: ")),
        "{error}"
    );
    assert!(matches!(run("missing.jsonl").unwrap_err(), ClientError::Files(_)));
    assert_eq!(last.status, "failed");
}
