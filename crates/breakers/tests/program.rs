//! The program `breakers` as its users meet it.

use std::process::{Command, Output};

use breakers_backend::harness::model_path;
use serde_json::Value;

fn breakers(arguments: &[&str]) -> Output {
    let cache = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_breakers"));
    command.args(arguments).env("BREAKERS_CACHE", cache.path()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_catalog_is_listed() {
    let listed: Value = serde_json::from_str(&stdout(&breakers(&["list", "--json"]))).unwrap();
    let entries = listed["entries"].as_array().unwrap();
    let small = entries.iter().find(|entry| entry["name"] == "smollm2-135m").unwrap();
    assert_eq!((&small["bytes"], &small["path"]), (&Value::from(98_362_432), &Value::Null));
    assert!(stdout(&breakers(&["ls"])).contains("smollm2-135m"));
    // The cache of the test is empty.
    assert_eq!(stdout(&breakers(&["list", "--cached"])), "");
    assert!(stdout(&breakers(&["rm", "smollm2-135m"])).is_empty());
}

#[test]
fn impossible_command_lines_exit_with_2_and_say_why() {
    for (arguments, mentioned) in [
        (&["pull", "smolm2-135m"][..], "smollm2-135m"),
        (&["rm", "gemma3-270m", "gemma"], "gemma"),
        (&["pull"], "NAME"),
        (&["bench", "--model", "no/such/file.gguf"], "no/such/file.gguf"),
        (&["bench", "-n", "0"], "0"),
        (&["completions", "tcsh"], "bash"),
    ] {
        let output = breakers(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(mentioned), "{arguments:?}: {stderr}");
    }
}

#[test]
fn shells_get_completions() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&breakers(&["completions", shell]));
        assert!(script.contains("bench") && script.contains("prompt-tokens"), "{shell}");
    }
}

#[test]
fn the_bench_measures_rounds() {
    let Some(model) = model_path("smollm2-135m") else { return };
    let model = model.to_str().unwrap();
    let arguments = ["bench", "--model", model, "-p", "40", "-n", "4", "-r", "3", "--json"];
    let answer: Value = serde_json::from_str(&stdout(&breakers(&arguments))).unwrap();
    for test in ["prefill", "decode"] {
        let rounds: Vec<f64> =
            answer[test]["rounds_tok_s"].as_array().unwrap().iter().map(|r| r.as_f64().unwrap()).collect();
        assert!(rounds.len() == 3 && rounds.iter().all(|rate| *rate > 0.0), "{answer}");
        assert!(rounds.contains(&answer[test]["median_tok_s"].as_f64().unwrap()), "{answer}");
    }
    let output = breakers(&["bench", "--model", model, "-p", "1000000"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("context"));
}
