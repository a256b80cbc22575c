//! `breakers stage` and `breakers serve --stage`: the same text as from one process.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use super::{breakers, post, program, small_model, stderr};

/// A program that says where it listens; it ends with this.
struct Running(Child, String);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(arguments: &[&str]) -> Running {
    let child = program().args(arguments).stderr(Stdio::piped()).spawn().unwrap();
    let mut running = Running(child, String::new());
    let mut lines = BufReader::new(running.0.stderr.take().unwrap());
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).unwrap() > 0, "{arguments:?} has ended");
        if let Some((_, address)) = line.split_once("listening on ") {
            running.1 = address.trim().trim_start_matches("http://").trim_end_matches("/v1").to_owned();
            // Whoever does not read stops the other one at some point.
            std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
            return running;
        }
    }
}

fn ask(server: &Running) -> (u16, Value) {
    let body = json!({"model": "small", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0});
    post(&server.1, "/v1/completions", &body)
}

#[test]
fn two_processes_write_what_one_writes() {
    let Some(small) = small_model() else { return };
    let stage = start(&["stage", &small, "--layers", "20..", "--listen", "127.0.0.1:0"]);
    let serve = ["serve", &small, "--port", "0", "--alias", "small"];
    let whole = start(&serve);
    let divided = start(&[&serve[..], &["--stage", &stage.1]].concat());
    let (status, expected) = ask(&whole);
    assert_eq!(status, 200, "{expected}");
    for _ in 0..2 {
        let (status, found) = ask(&divided);
        assert_eq!((status, &found["choices"]), (200, &expected["choices"]), "{found}");
    }
    // It is named when it is gone.
    let address = stage.1.clone();
    drop(stage);
    let (status, found) = ask(&divided);
    assert!(status >= 500, "{found}");
    let gone = breakers(&["serve", &small, "--stage", &address]);
    assert!(gone.status.code() == Some(2) && stderr(&gone).contains(&address), "{}", stderr(&gone));
}

#[test]
fn stages_that_cannot_be_are_refused() {
    for (arguments, mentioned) in [
        (&["stage", "x.gguf"][..], "--layers"),
        (&["stage", "x.gguf", "--layers", "a..b"], "12..24"),
        (&["stage", "x.gguf", "--layers", "1..2", "--listen", "0.0.0.0:0"], "--trust-network"),
        (&["stage", "x.gguf", "--layers", "1..2", "--cache", "none"], "f16"),
        (&["serve", "--stage", "127.0.0.1:1", "--prefixes", "x"], "--prefixes"),
    ] {
        let output = breakers(arguments);
        let said = stderr(&output);
        assert!(output.status.code() == Some(2) && said.contains(mentioned), "{arguments:?}: {said}");
    }
}
