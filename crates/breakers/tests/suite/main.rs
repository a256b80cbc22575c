//! The program `breakers` as its users see it.

mod batch;
mod chat;
mod form;
mod optimize;
mod program;
mod run;
mod stage;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Output};

use breakers_backend::harness::model_path;
use serde_json::Value;

/// The program, with an empty model cache.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_breakers"));
    command.env("BREAKERS_CACHE", std::env::temp_dir().join("breakers-program-tests-have-no-cache"));
    command
}

fn breakers(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The small model's file, if the tests have it.
fn small_model() -> Option<String> {
    Some(model_path("smollm2-135m")?.to_str().unwrap().to_owned())
}

/// Sends a body to a server, and returns the status and the body of its answer.
fn post(address: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

/// One JSON object and nothing else.
fn answer(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap()
}
