//! `breakers run` with an answer of a given form.

use std::io::Write as _;
use std::process::{Output, Stdio};

use serde_json::Value;

use super::{answer, program, small_model, stderr};

const SCHEMA: &str = r#"{"type": "object", "properties": {"city": {"type": "string", "maxLength": 12},
    "people": {"type": "integer", "minimum": 1, "maximum": 99999999}, "coast": {"type": "boolean"}},
    "required": ["city", "people", "coast"], "additionalProperties": false}"#;

fn run(model: &str, arguments: &[&str]) -> Output {
    let mut command = program();
    command.args(["run", "--json", "--model", model, "-p", "A city, in one word or as JSON:"]);
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn text(output: &Output) -> String {
    let answer = answer(output);
    assert_eq!(answer["finish"], "end of text", "{answer}");
    answer["text"].as_str().unwrap().to_owned()
}

#[test]
fn answers_have_the_form_that_was_asked_for() {
    let Some(model) = small_model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).to_str().unwrap().to_owned()
    };
    let schema = write("schema.json", SCHEMA);
    let check = |text: &str| {
        let value: Value = serde_json::from_str(text).unwrap();
        assert!(value["city"].as_str().unwrap().chars().count() <= 12, "{text}");
        assert!((1..=99_999_999).contains(&value["people"].as_i64().unwrap()), "{text}");
        assert!(value["coast"].is_boolean() && value.as_object().unwrap().len() == 3, "{text}");
    };
    let from_file = text(&run(&model, &["--schema", &schema]));
    check(&from_file);
    assert_eq!(text(&run(&model, &["--schema", SCHEMA])), from_file);
    assert_eq!(text(&run(&model, &["--schema", &schema, "--draft", "ngram"])), from_file);
    // The shortest such texts fit, and end in time.
    check(&text(&run(&model, &["--schema", &schema, "-n", "32", "--temperature", "1.5", "--seed", "3"])));
    check(&text(&run(&model, &["--schema", &schema, "--any-order"])));
    let object: Value = serde_json::from_str(&text(&run(&model, &["--json-object"]))).unwrap();
    assert!(object.is_object());
    let choice = text(&run(&model, &["--choice", "Oslo", "--choice", "-Rome-"]));
    assert!(["Oslo", "-Rome-"].contains(&&*choice), "{choice}");
    let matched = text(&run(&model, &["--regex", "[A-Z][a-z]{2,6} is (near|far)\\."]));
    assert!(matched.ends_with(" is near.") || matched.ends_with(" is far."), "{matched}");
    let grammar = write("sum.lark", "start: NUMBER (\"+\" NUMBER){2,3}\nNUMBER: /[1-9][0-9]?/\n");
    let sum = text(&run(&model, &["--grammar", &grammar]));
    assert!((3..=4).contains(&sum.split('+').count()), "{sum}");
    assert!(sum.split('+').all(|number| number.parse::<u8>().is_ok()), "{sum}");
}

#[test]
fn forms_that_cannot_be_had_are_refused_before_anything_is_generated() {
    let Some(model) = small_model() else { return };
    for (code, words, arguments) in [
        (2, "--schema", ["--schema", "{\"type\": ", "--raw"].as_slice()),
        (2, "cannot be used with", &["--schema", SCHEMA, "--regex", "a"]),
        (2, "--schema", &["--any-order", "--json-object"]),
        (2, "--schema", &["--lenient", "--choice", "a"]),
        (2, "--ignore-eos", &["--choice", "a", "--ignore-eos"]),
        (1, "/properties/a", &["--schema", r#"{"properties": {"a": {"$dynamicRef": "x"}}}"#]),
        (2, "no-such-file", &["--grammar", "no-such-file"]),
        (1, "tokens", &["--schema", SCHEMA, "-n", "4"]),
    ] {
        let output = run(&model, arguments);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(told.contains(words) && output.stdout.is_empty(), "{arguments:?}: {told}");
    }
}

#[test]
fn functions_are_called_in_the_form_of_the_model() {
    let Some(model) = small_model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).to_str().unwrap().to_owned()
    };
    let tools = file(
        "tools.json",
        r#"[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"],
            "additionalProperties": false}}}, {"name": "now", "description": "The time"}]"#,
    );
    let call = |arguments: &[&str]| {
        let given = ["--tools", &tools, "--tool-format", "hermes"];
        let answer = answer(&run(&model, &[&given, arguments].concat()));
        let calls = answer["tool_calls"].as_array().unwrap().clone();
        assert_eq!(answer["finish"], if calls.is_empty() { "end of text" } else { "tool calls" }, "{answer}");
        calls
    };
    let weather = call(&["--tool-choice", "weather", "--one-call"]);
    assert!(weather.len() == 1 && weather[0]["name"] == "weather", "{weather:?}");
    assert!(weather[0]["arguments"]["city"].as_str().unwrap().chars().count() <= 12, "{weather:?}");
    assert_eq!(
        call(&["--tool-choice", "weather", "--one-call", "--draft", "ngram"])[0]["arguments"],
        weather[0]["arguments"]
    );
    assert!(!call(&["--tool-choice", "required"]).is_empty());
    assert!(call(&["--tool-choice", "none", "-n", "24"]).is_empty());

    // A chat asks for results, and goes on with them.
    let mut chat = program();
    let chat = chat.args(["chat", &model, "--tools", &tools, "--tool-format", "hermes", "-n", "40"]);
    let mut chat = chat
        .args(["--tool-choice", "now", "--one-call"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The model has to call in each answer, so that the input ends before it may answer.
    chat.stdin.take().unwrap().write_all(b"What time is it?\n12:30\n").unwrap();
    let output = chat.wait_with_output().unwrap();
    let told = stderr(&output);
    assert_eq!(told.matches("[result of now]").count(), 2, "{told}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let calls: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(calls.len() == 2 && calls.iter().all(|call| call["name"] == "now"), "{printed}");

    let (empty, typo) =
        (file("empty.json", "[]"), file("typo.json", r#"[{"name": "now", "parametres": {}}]"#));
    for (code, words, arguments) in [
        (2, "--tool-format", ["--tools", &tools].as_slice()),
        (2, "hermes", &["--tools", &tools, "--tool-format", "hermits"]),
        (2, "no chat template", &["--tools", &tools, "--tool-format", "hermes", "--raw"]),
        (2, "no function", &["--tools", &empty, "--tool-format", "hermes"]),
        (2, "parametres", &["--tools", &typo, "--tool-format", "hermes"]),
        (1, "\"fly\"", &["--tools", &tools, "--tool-format", "hermes", "--tool-choice", "fly"]),
        (2, "--tools", &["--tool-choice", "required"]),
        (2, "--tools", &["--one-call", "--choice", "a"]),
    ] {
        let output = run(&model, arguments);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(told.contains(words) && output.stdout.is_empty(), "{arguments:?}: {told}");
    }
}
