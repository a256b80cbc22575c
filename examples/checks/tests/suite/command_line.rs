//! The examples as programs: exit codes, JSON, and agreement between them.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use breakers_backend::harness::model_path;
use serde_json::Value;

/// An example that `cargo test` has built beside this test.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(|deps| deps.parent()).unwrap();
    Command::new(folder.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX)))
}

/// Runs an example on the small model, `None` if the model is not there.
fn on_model(name: &str, arguments: &[&str]) -> Option<Output> {
    on("smollm2-135m", name, arguments)
}

/// Runs an example on a file or folder of the test models, `None` if it is not there.
pub(crate) fn on(model: &str, name: &str, arguments: &[&str]) -> Option<Output> {
    let model = model_path(model)?;
    Some(example(name).arg("--model").arg(model).args(arguments).output().unwrap())
}

/// The answer of an example that must succeed: one JSON object and nothing else.
pub(crate) fn answer(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(value.is_object());
    value
}

#[test]
fn impossible_command_lines_exit_with_2_and_say_why() {
    let cases: [(&str, &[&str], &str); 11] = [
        ("tokenize", &["--no-such-flag"], "--no-such-flag"),
        ("tokenize", &["--model", "smolm2-135m"], "smollm2-135m"),
        ("tokenize", &["--model", "no/such/file.gguf"], "no/such/file.gguf"),
        ("generate", &["--json"], "--prompt"),
        ("generate", &["--prompt", "x", "--top-p", "2"], "top_p"),
        ("generate", &["--prompt", "x", "--device", "warp-drive"], "warp-drive"),
        ("score", &["--ids-file", "no/such/file.json"], "no/such/file.json"),
        ("spec_decode", &["--drafter", "draft"], "--draft"),
        ("roofline", &["--rows", "0"], "--rows"),
        ("roofline", &["--rows", "1,0"], "--rows"),
        ("score", &["--chunk", "0"], "--chunk"),
    ];
    for (name, arguments, mentioned) in cases {
        let output = example(name).args(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name} {arguments:?}: {stderr}");
        assert!(stderr.contains(mentioned), "{name} {arguments:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_file_that_is_no_model_exits_with_1() {
    let file = tempfile::NamedTempFile::with_suffix(".gguf").unwrap();
    std::fs::write(file.path(), "this is not a model").unwrap();
    let output = example("tokenize").arg("--model").arg(file.path()).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: "));
}

#[test]
fn tokens_make_a_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("input");
    let text = "naïve 日本 <|im_end|>\n  x = 1";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let Some(output) = on_model("tokenize", &["--json", "--text-file", file]) else { return };
    let tokenized = answer(&output);
    assert_eq!(tokenized["text"], text);

    std::fs::write(file, tokenized["ids"].to_string()).unwrap();
    let back = answer(&on_model("tokenize", &["--json", "--detokenize", "--text-file", file]).unwrap());
    assert_eq!(back, tokenized);
}

#[test]
fn drafts_change_no_token_of_an_answer() {
    let prompt = "Repeat this list: alpha, beta, gamma, delta. Repeat this list: alpha, beta,";
    let run = |draft: &[&str]| {
        let arguments = ["--json", "--raw", "--prompt", prompt, "--max-tokens", "30", "--stop", "beta, beta"];
        on_model("generate", &[&arguments[..], draft].concat()).map(|output| answer(&output))
    };
    let Some(plain) = run(&[]) else { return };
    assert_eq!(plain["finish"], "stop string");
    let drafted = run(&["--draft", "ngram", "--draft-length", "4"]).unwrap();
    for field in ["output_ids", "text", "finish", "steps"] {
        assert_eq!(drafted[field], plain[field], "{field}");
    }
}

#[test]
fn a_continuation_scores_the_same_in_any_pieces() {
    let arguments = ["--json", "--raw", "--prompt", "The capital of France is", "--max-tokens", "12"];
    let Some(output) = on_model("generate", &arguments) else { return };
    let generated = answer(&output);
    assert!(generated["text"].as_str().unwrap().contains("Paris"), "{generated}");
    assert_eq!(
        generated["steps"].as_array().unwrap().len(),
        generated["output_ids"].as_array().unwrap().len()
    );

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ids.json");
    std::fs::write(&file, generated.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let score = |chunk: &str, threads: &str| {
        let arguments = ["--json", "--ids-file", file, "--chunk", chunk, "--threads", threads];
        answer(&on_model("score", &arguments).unwrap())
    };
    let scored = score("1", "1");
    for (chunk, threads) in [("4", "1"), ("16", "2"), ("1000", "2")] {
        assert_eq!(score(chunk, threads), scored, "{chunk} tokens a pass on {threads} threads");
    }
    // Plain decoding chose the best token of each place; its log-probabilities are those of the scores.
    for (generated, scored) in
        generated["steps"].as_array().unwrap().iter().zip(scored["steps"].as_array().unwrap())
    {
        assert_eq!(generated["top"], scored["top"]);
        assert_eq!(scored["logprob"], scored["top"][0][1]);
    }
}

#[test]
fn a_sentence_encoder_has_tokens_but_continues_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("input");
    std::fs::write(&file, "Hello, world!").unwrap();
    let arguments = ["--json", "--add-special", "--text-file", file.to_str().unwrap()];
    let Some(output) = on("minilm", "tokenize", &arguments) else { return };
    assert_eq!(answer(&output)["ids"], serde_json::json!([101, 7592, 1010, 2088, 999, 102]));
    let json = on("minilm/tokenizer.json", "tokenize", &arguments).unwrap();
    assert_eq!(json.stdout, output.stdout);
    for (name, arguments) in
        [("generate", ["--prompt", "x"]), ("perplexity", ["--file", file.to_str().unwrap()])]
    {
        let output = on("minilm", name, &arguments).unwrap();
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("\"bert\" model") && stderr.contains("minilm"), "{name}: {stderr}");
    }
}

#[test]
fn quantized_files_lie_over_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (over, text) = (at("over.safetensors"), at("text"));
    let made = ["--method", "hqq", "--bits", "4", "--out", &over, "--json"];
    let Some(output) = on_model("quantize", &made) else { return };
    let report = answer(&output);
    assert_eq!(report["job"], "hqq:int4-g64");
    assert_eq!(report["bytes"], std::fs::metadata(&over).unwrap().len());
    std::fs::write(&text, "The cat sat on the mat and looked at the rain. ".repeat(12)).unwrap();
    let perplexity = |matrices: &[&str]| {
        let arguments = [&["--json", "--file", &text, "--context", "32"][..], matrices].concat();
        answer(&on_model("perplexity", &arguments).unwrap())["perplexity"].as_f64().unwrap()
    };
    let (plain, quantized) = (perplexity(&[]), perplexity(&["--matrices", &over]));
    assert!(quantized != plain && (quantized / plain).ln().abs() < 0.3, "{quantized} {plain}");
    // The same file on the bench, beside one that the bench makes.
    let (named, work) = (format!("hqq={over}"), at("work"));
    let bench =
        ["--text", &text, "--context", "64", "--windows", "1", "--no-speed", "--json", "--work", &work];
    let bench = [&bench[..], &["--file", &named, "--method", "rtn", "--bits", "nf4"]].concat();
    let report = answer(&on_model("quant", &bench).unwrap());
    let rows = report["tables"]["methods"]["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["method"].as_str().unwrap()).collect();
    assert_eq!(names, ["reference", "hqq", "rtn:nf4"], "{report}");
    for (row, bits) in rows[1..].iter().zip([4.5, 4.127]) {
        assert!((row["bits in blocks"].as_f64().unwrap() - bits).abs() < 0.001, "{row}");
        let kl = row["mean KL"].as_f64().unwrap();
        assert!(kl > 0.0 && kl < 0.5, "{row}");
    }
    for (arguments, code, words) in [
        (&["--job", "rtn:nf4", "--out", "x.gguf"][..], 1, ".safetensors"),
        (&["--method", "rtn", "--bits", "7", "--out", "x.gguf"], 2, "number of bits \"7\""),
        (&["--method", "hqq", "--bits", "nf4", "--out", &at("x.safetensors")], 1, "offsets"),
        (&["--method", "rtn", "--job", "rtn:Q4_0", "--out", "x.gguf"], 2, "--job"),
        (&["--out", "x.gguf"], 2, "--job"),
    ] {
        let output = on_model("quantize", arguments).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    }
}

#[test]
fn perplexity_counts_the_second_half_of_each_window() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text");
    std::fs::write(&file, "The cat sat on the mat and looked at the rain. ".repeat(12)).unwrap();
    let arguments = ["--json", "--file", file.to_str().unwrap(), "--context", "32"];
    let Some(output) = on_model("perplexity", &arguments) else { return };
    let result = answer(&output);
    assert_eq!(result["n_tokens"].as_u64().unwrap() % 15, 0, "{result}");
    let (perplexity, nll) = (result["perplexity"].as_f64().unwrap(), result["nll"].as_f64().unwrap());
    assert!((perplexity - nll.exp()).abs() < 1e-9);
    assert!((1.0..4.0).contains(&perplexity), "a text that repeats itself is easy: {perplexity}");
}

#[test]
fn speculation_gives_the_same_tokens_and_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    // A text from which the answer copies, so drafts are accepted.
    let prompt = concat!(env!("CARGO_MANIFEST_DIR"), "/../decode/spec_decode/prompts/code_edit.txt");
    for (length, threads) in [("1", "1"), ("5", "2"), ("16", "1")] {
        let arguments = [
            "--json",
            "--out",
            out,
            "--prompt-file",
            prompt,
            "--max-tokens",
            "48",
            "--repeat",
            "1",
            "--draft-length",
            length,
            "--threads",
            threads,
        ];
        let Some(output) = on_model("spec_decode", &arguments) else { return };
        let report = answer(&output);
        assert_eq!(report["same_tokens"], true);
        let rows = report["tables"]["speed"]["rows"].as_array().unwrap();
        let drafters: Vec<&Value> = rows.iter().map(|row| &row["drafter"]).collect();
        assert_eq!(drafters, ["plain", "n-gram"]);
        assert!(rows[1]["tokens per step"].as_f64().unwrap() > 1.0, "{report}");
        assert_eq!(report["provenance"]["models"][0]["sha256"].as_str().unwrap().len(), 64);
        let written: Value =
            serde_json::from_slice(&std::fs::read(folder.path().join("report.json")).unwrap()).unwrap();
        assert_eq!(written["tables"], report["tables"]);
        assert!(folder.path().join("speed.svg").exists() && folder.path().join("report.md").exists());
    }
}

#[test]
fn a_roofline_accounts_for_the_whole_pass() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let arguments =
        ["--json", "--out", out, "--rows", "1,3", "--depth", "5", "--repeat", "3", "--threads", "1"];
    let Some(output) = on_model("roofline", &arguments) else { return };
    let report = answer(&output);
    let rows = |table: &str| report["tables"][table]["rows"].as_array().unwrap().clone();
    assert!(rows("machine").iter().all(|row| row["peak"].as_f64().unwrap() > 0.0));
    let passes = rows("passes");
    assert_eq!(passes.iter().map(|row| row["rows"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3]);
    for pass in &passes {
        let operations = rows("operations").into_iter().filter(|row| row["rows"] == pass["rows"]);
        let (mut milliseconds, mut megabytes) = (0.0, 0.0);
        for row in operations {
            milliseconds += row["time"].as_f64().unwrap();
            megabytes += row["read"].as_f64().unwrap_or(0.0);
        }
        // Sums of medians are not medians of sums, so the times agree only roughly; the bytes are exactly
        // those of the file.
        let share = milliseconds / pass["time"].as_f64().unwrap();
        assert!((0.5..1.5).contains(&share), "{report}");
        assert!((90.0..110.0).contains(&megabytes), "{report}");
    }
    assert!(folder.path().join("rows_1.svg").exists());
}

#[test]
fn prompts_come_from_a_file_and_are_grouped_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompts.json");
    let arguments =
        ["--json", "--out", folder.path().to_str().unwrap(), "--max-tokens", "4", "--repeat", "1"];
    let run = |prompts: &str| {
        std::fs::write(&file, prompts).unwrap();
        on_model("spec_decode", &[&arguments[..], &["--prompts", file.to_str().unwrap()]].concat())
    };
    let prompts =
        r#"[{"name": "a", "text": "One"}, {"name": "b", "text": "Two"}, {"name": "a", "text": "Three"}]"#;
    let Some(output) = run(prompts) else { return };
    let report = answer(&output);
    let names = |table: &str| -> Vec<String> {
        let rows = report["tables"][table]["rows"].as_array().unwrap();
        rows.iter().step_by(2).map(|row| row["prompt"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("speed"), ["a", "b", "all"]);
    assert_eq!(names("prompts"), ["0: a", "1: b", "2: a", "all"]);
    for wrong in ["", "{}", "[]", r#"[{"name": "a"}]"#] {
        let output = run(wrong).unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--prompts"), "{wrong}");
    }
}

#[test]
fn generate_takes_the_flags_of_the_program() {
    let once = ["--json", "--prompt", "Once upon a time"];
    let ids = |arguments: &[&str]| {
        let arguments = [&once[..], &["--max-tokens", "8"], arguments].concat();
        Some(answer(&on_model("generate", &arguments)?)["output_ids"].clone())
    };
    let Some(plain) = ids(&[]) else { return };
    for same in [
        &["--cache", "F16", "--device", "cpu"][..],
        &["--draft", "NGRAM", "--seed", "-1", "--repeat-last-n", "-1"],
        &["--stop", "---", "--ignore-eos", "--ctx", "100"],
        &["--presence-penalty", "1", "--repeat-last-n", "0"],
    ] {
        assert_eq!(ids(same), Some(plain.clone()), "{same:?}");
    }
    let forbidden = format!("{}=-100", plain[0]);
    assert_ne!(ids(&["--logit-bias", &forbidden]), Some(plain));
}

#[test]
fn a_chat_goes_on_from_turn_to_turn() {
    let Some(model) = model_path("smollm2-135m") else { return };
    let mut command = example("generate");
    command.arg("--model").arg(model).args(["--max-tokens", "8"]);
    let mut chat =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    chat.stdin.take().unwrap().write_all(b"Say hello.\n/help\nAgain.\n/reset\nSay hello.\n/exit\n").unwrap();
    let output = chat.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .filter(|l| !l.is_empty())
        .collect();
    assert!(answers.len() >= 3, "{answers:?}");
    assert_eq!(answers.first(), answers.last(), "after /reset the same question has the same answer");
}

#[test]
fn help_names_the_models() {
    for name in ["spec_decode", "generate", "score", "tokenize", "perplexity"] {
        let output = example(name).arg("--help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        for expected in ["smollm2-135m", "--threads", "--device"] {
            assert!(help.contains(expected), "{name}: {help}");
        }
        assert!(output.status.success());
    }
}
