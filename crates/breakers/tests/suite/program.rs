//! Models by name, measurements, completions.

use serde_json::Value;

use super::{answer, breakers, small_model, stderr, stdout};

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
        (&["bench", "-p", "0"], "0"),
        (&["bench", "-r", "0"], "0"),
        (&["quantize", "--window", "0", "--job", "rtn:Q4_0", "--out", "x.gguf"], "--window"),
        (&["run", "--draft", "ngram", "--draft-length", "0", "x"], "--draft-length"),
        (&["completions", "tcsh"], "bash"),
        (&["run", "no/such/file.gguf", "x"], "no/such/file.gguf"),
        (&["run", "--prompt", "x", "smollm2-135m", "y"], "--prompt"),
        (&["run", "a", "--model", "b"], "--model"),
        (&["run", "--seed", "-2", "x"], "-1"),
        (&["run", "--logit-bias", "hello", "x"], "15043=-100"),
        (&["run", "--logit-bias", "7=inf", "-p", "x"], "logit_bias"),
        (&["run", "--top-p", "2", "-p", "x"], "top_p"),
        (&["run", "-p", "x", "--raw", "--system", "y"], "--raw"),
        (&["chat", "--prompt", "x"], "--prompt"),
        (&["quantize", "--out", "x.gguf"], "--job"),
        (&["quantize", "--job", "magic:Q4_0", "--out", "x.gguf"], "magic"),
        (&["quantize", "no/such/file.gguf", "--job", "rtn:Q4_0", "--out", "x.gguf"], "no/such/file.gguf"),
        (&["chat", "no/such/file.gguf"], "no/such/file.gguf"),
        (&["serve", "no/such/file.gguf"], "no/such/file.gguf"),
        (&["serve", "--host", "0.0.0.0"], "API keys"),
        (&["serve", "--keys", "no/such/keys.toml"], "no/such/keys.toml"),
        (&["serve", "--api-key", "k", "--no-keys"], "--no-keys"),
        (&["serve", "--max-texts", "0"], "max_texts"),
        (&["serve", "--upstream", "http://127.0.0.1:1", "--draft", "ngram"], "--draft"),
        (&["serve", "--upstream", "http://127.0.0.1:1", "--max-mb", "9"], "--max-mb"),
        (&["serve", "--upstream", "http://127.0.0.1:1", "--upstreams", "x.toml"], "--upstreams"),
        (&["serve", "--upstreams", "no/such/file.toml"], "no/such/file.toml"),
        (&["serve", "--prefixes", "x", "--cache-mb", "0"], "--cache-mb"),
    ] {
        let output = breakers(arguments);
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(mentioned), "{arguments:?}: {stderr}");
    }
}

#[test]
fn shells_get_completions() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&breakers(&["completions", shell]));
        for word in [
            "bench",
            "prompt-tokens",
            "run",
            "chat",
            "repeat-last-n",
            "pull",
            "rm",
            "list",
            "quantize",
            "budget",
        ] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn the_bench_measures_rounds() {
    let Some(model) = small_model() else { return };
    let model = model.as_str();
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
    assert!(stderr(&output).contains("context"));
}

#[test]
fn a_quantized_file_runs() {
    let Some(model) = small_model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.gguf");
    let out = out.to_str().unwrap();
    let report = answer(&breakers(&["quantize", &model, "--job", "rtn:Q4_0", "--out", out, "--json"]));
    assert_eq!((&report["job"], &report["tokens"]), (&Value::from("rtn:Q4_0"), &Value::from(0)));
    assert_eq!(report["bytes"], std::fs::metadata(out).unwrap().len());
    assert!(report["bytes"].as_u64().unwrap() < std::fs::metadata(&model).unwrap().len());
    let text = breakers(&["run", out, "--raw", "-n", "4", "-p", "1, 2, 3, 4, 5, 6, 7,"]);
    assert!(stdout(&text).contains('8'), "{}", stdout(&text));
    // A method that reads a text is not run without one.
    let output = breakers(&["quantize", &model, "--job", "gptq:Q4_0", "--out", out]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--text"), "{}", stderr(&output));
}

#[cfg(unix)]
#[test]
fn a_path_needs_no_cache_folder() {
    let Some(model) = small_model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf").to_str().unwrap().to_owned();
    for (name, value) in [
        ("HOME", "relative"),
        ("HOME", "/no/such/home"),
        ("XDG_CACHE_HOME", "/dev/null/x"),
        ("BREAKERS_CACHE", "/dev/null/x"),
    ] {
        for arguments in [
            &["run", &model, "--raw", "-n", "1", "-p", "x"][..],
            &["chat", &model, "-n", "1"],
            &["bench", "--model", &model, "-p", "4", "-n", "2", "-r", "1", "--json"],
            &["quantize", &model, "--job", "rtn:Q4_0", "--out", &out],
        ] {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_breakers"));
            command.env_remove("BREAKERS_CACHE").env_remove("XDG_CACHE_HOME").env(name, value);
            let output = command.args(arguments).stdin(std::process::Stdio::null()).output().unwrap();
            assert!(output.status.success(), "{name}={value} {arguments:?}: {}", stderr(&output));
        }
    }
}
