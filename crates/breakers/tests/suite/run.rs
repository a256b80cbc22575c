//! `breakers run`: what users of ollama and llama.cpp type, and what the result must be.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::{answer, program, small_model, stderr, stdout};

/// The command on the small model, answered as JSON; standard input is empty. Six tokens, unless the
/// arguments say how many.
fn command(model: &str, arguments: &[&str]) -> Command {
    let mut command = program();
    command.args(["run", "--json", "--model", model]).args(arguments).stdin(Stdio::null());
    if !arguments.iter().any(|flag| ["-n", "--max-tokens", "--n-predict"].contains(flag)) {
        command.args(["-n", "6"]);
    }
    command
}

fn run(model: &str, arguments: &[&str]) -> Value {
    answer(&command(model, arguments).output().unwrap())
}

/// What was chosen does not depend on the clock.
fn without_speed(mut answer: Value) -> Value {
    for field in ["prefill_tok_s", "decode_tok_s"] {
        assert!(answer.as_object_mut().unwrap().remove(field).is_some(), "{field}");
    }
    answer
}

#[test]
fn each_spelling_means_the_same() {
    let Some(model) = small_model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).to_str().unwrap().to_owned()
    };
    let (dash, system) = (write("dash", "- x"), write("system", "-v is a flag"));
    let template_text = "{% for m in messages %}<{{ m.content }}>{% endfor %}";
    let template = write("template", template_text);
    let once = "Once upon a time";
    // Each group has one canonical spelling, then others that mean the same.
    let groups: [&[&[&str]]; 12] = [
        &[
            &["--raw", "--prompt-file", &dash],
            &["--raw", "--prompt", "- x"],
            &["--raw", "--prompt=- x"],
            &["--raw", "-p", "- x"],
            &["--raw", "-f", &dash],
        ],
        &[&["--raw", "--prompt=--stop"], &["--raw", "--prompt", "--stop"], &["--raw", "-p", "--stop"]],
        &[&["-p", once, "--system-file", &system], &["-p", once, "--system", "-v is a flag"]],
        &[
            &["-p", "hi", "--chat-template", &template],
            &["-p", "hi", "--chat-template-file", &template],
            &["-p", "hi", "--chat-template", template_text],
            &["--raw", "-p", "<hi>"],
        ],
        &[
            &["-p", once, "--device", "flex", "--cache", "f16"],
            &["-p", once, "--device", "cpu", "--cache", "F16"],
            &["-p", once, "--device", "CPU"],
            &["-p", once, "--device", "Flex", "--cache", "f16"],
        ],
        &[&["-p", once, "--draft", "ngram"], &["-p", once, "--draft", "NGRAM"], &["-p", once]],
        &[&["-p", once, "--ctx", "64"], &["-p", once, "--ctx-size", "64"], &["-p", once, "-c", "64"]],
        &[&["-p", once, "--max-tokens", "6"], &["-p", once, "--n-predict", "6"], &["-p", once]],
        &[&["-p", once, "--threads", "1"], &["-p", once, "-t", "1"], &["-p", once, "-t", "2"]],
        &[
            &["-p", once, "--temperature", "0.9", "--seed", "7"],
            &["-p", once, "--temp", "0.9", "-s", "7"],
            &["-p", once, "--temp=0.9", "--seed=7"],
        ],
        &[
            &["-p", once, "--repetition-penalty", "1.5", "--repeat-last-n", "100000"],
            &["-p", once, "--repeat-penalty", "1.5", "--repeat-last-n", "-1"],
        ],
        &[
            &["-p", once, "--repetition-penalty", "1.5", "--repeat-last-n", "0"],
            &["-p", once, "--presence-penalty", "2", "--frequency-penalty", "-1", "--repeat-last-n", "0"],
            &["-p", once],
        ],
    ];
    for group in groups {
        let of = |arguments: &[&str]| without_speed(run(&model, arguments));
        let right = of(group[0]);
        for other in &group[1..] {
            assert_eq!(of(other), right, "{other:?} and {:?}", group[0]);
        }
    }
    // The model and the prompt may stand without flags.
    let positional = program()
        .args(["run", &model, "--raw", "--json", "-n", "6", "--", "- x"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(
        without_speed(answer(&positional)),
        without_speed(run(&model, &["--raw", "--prompt-file", &dash]))
    );
}

#[test]
fn penalties_and_biases_reach_the_choice() {
    let Some(model) = small_model() else { return };
    let loops = ["--raw", "-n", "40", "-p", "one two one two one two one two"];
    let run = |more: &[&str]| run(&model, &[&loops[..], more].concat())["output_ids"].clone();
    let plain = run(&[]);
    for penalty in [
        ["--repetition-penalty", "1.6"],
        ["--presence-penalty", "3"],
        ["--frequency-penalty", "2"],
        ["--repeat-penalty", "1.6"],
    ] {
        assert_ne!(run(&penalty), plain, "{penalty:?}");
    }
    let near = run(&["--repetition-penalty", "1.3", "--repeat-last-n", "1"]);
    assert_ne!(run(&["--repetition-penalty", "1.3", "--repeat-last-n", "-1"]), near);
    let first = plain[0].as_u64().unwrap();
    assert_ne!(run(&["--logit-bias", &format!("{first}=-100")])[0], plain[0]);
    assert_ne!(run(&["--logit-bias", &format!("{first}-100")])[0], plain[0]);
    let favored = run(&["--logit-bias", "1000+100", "--logit-bias", "2000=-1"]);
    assert!(favored.as_array().unwrap().iter().all(|id| id == 1000), "{favored}");
    let output = command(&model, &["-p", "x", "--logit-bias", "49152=1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("49152"), "{}", stderr(&output));
}

#[test]
fn seeds_are_told_and_can_be_had_again() {
    let Some(model) = small_model() else { return };
    let sample = |more: &[&str]| {
        let sampling = ["-p", "Tell me something.", "--temperature", "1.5"];
        command(&model, &[&sampling[..], more].concat()).output().unwrap()
    };
    let told = |output: &Output| -> Option<u64> {
        let stderr = stderr(output);
        let line = stderr.lines().find_map(|line| line.strip_prefix("[seed ")?.strip_suffix(']'))?;
        line.parse().ok()
    };
    let mut seeds = Vec::new();
    for given in [&["--seed", "-1"][..], &[], &["-s", "-1"], &["--seed=-1"]] {
        let output = sample(given);
        let seed = told(&output).unwrap_or_else(|| panic!("{given:?}: {}", stderr(&output)));
        let again = sample(&["--seed", &seed.to_string()]);
        assert_eq!(without_speed(answer(&again)), without_speed(answer(&output)), "{given:?}");
        assert_eq!(told(&again), None, "a seed that was given is not told");
        seeds.push(seed);
    }
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 4, "{seeds:?}");
    assert_eq!(
        told(&command(&model, &["-p", "x", "--seed", "-1"]).output().unwrap()),
        None,
        "nothing is drawn"
    );
}

#[test]
fn a_text_ends_where_it_is_told_to() {
    let Some(model) = small_model() else { return };
    let finish = |arguments: &[&str]| {
        let answer = run(&model, arguments);
        let n = answer["output_ids"].as_array().unwrap().len();
        (answer["finish"].as_str().unwrap().to_owned(), n, answer)
    };
    // A prompt with lines of `---`, and the token of such a line made certain.
    let rules = ["--raw", "-p", "one\n---\ntwo\n---\nthree\n", "--logit-bias", "5583=100"];
    for stop in [&["--stop", "---"][..], &["--stop=---"], &["--stop", "never", "--stop", "---"]] {
        let (finish, _, answer) = finish(&[&rules[..], stop].concat());
        assert_eq!(finish, "stop string", "{stop:?}: {answer}");
        assert!(!answer["text"].as_str().unwrap().contains("---"), "{answer}");
    }
    let ends = finish(&["-p", "Say hello.", "-n", "80"]);
    assert_eq!(ends.0, "end of text", "{}", ends.2);
    let goes_on = finish(&["-p", "Say hello.", "-n", "80", "--ignore-eos"]);
    assert_eq!((goes_on.0.as_str(), goes_on.1), ("length", 80), "{}", goes_on.2);
    let end = ends.2["output_ids"].as_array().unwrap().last().unwrap();
    assert!(!goes_on.2["output_ids"].as_array().unwrap().contains(end), "{}", goes_on.2);
    // The drafter's tokens end no text either.
    let drafted = finish(&["-p", "Say hello.", "-n", "80", "--ignore-eos", "--draft", "ngram"]);
    assert_eq!(drafted.2["output_ids"], goes_on.2["output_ids"]);
    let full = finish(&["-p", "Say hello.", "-n", "80", "--ignore-eos", "--ctx", "48"]);
    assert_eq!(full.0, "context full", "{}", full.2);
    assert_eq!(full.2["prompt_ids"].as_array().unwrap().len() + full.1, 49, "the last token is not fed");
}

#[test]
fn contexts_that_cannot_be_are_refused() {
    let Some(model) = small_model() else { return };
    for (arguments, mentioned) in [
        (&["-p", "x", "--ctx", "10000000"][..], "8192"),
        (&["-p", "x", "--ctx", "0"], "8192"),
        (&["-p", "Say hello.", "--ctx", "8"], "8"),
        (&["-p", "x", "--chat-template", "chatml-of-old"], "neither a file nor"),
        (&["-p", "x", "--chat-template", "{% if %}"], "template"),
    ] {
        let output = command(&model, arguments).output().unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}");
        assert!(stderr(&output).contains(mentioned), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[cfg(unix)]
#[test]
fn a_tilde_is_the_home_folder_in_every_path() {
    let Some(model) = small_model() else { return };
    let home = tempfile::tempdir().unwrap();
    let link = home.path().join("model.gguf");
    std::os::unix::fs::symlink(std::fs::canonicalize(&model).unwrap(), link).unwrap();
    std::fs::write(home.path().join("prompt"), "Say hello.").unwrap();
    std::fs::write(home.path().join("system"), "Be brief.").unwrap();
    std::fs::write(home.path().join("template"), "{% for m in messages %}{{ m.content }}{% endfor %}")
        .unwrap();
    let run = |arguments: &[&str]| {
        let mut command = program();
        command
            .args(["run", "--json", "-n", "4"])
            .args(arguments)
            .env("HOME", home.path())
            .stdin(Stdio::null());
        command.output().unwrap()
    };
    let expected =
        without_speed(answer(&run(&["--model", &model, "-p", "Say hello.", "--system", "Be brief."])));
    for arguments in [
        &["--model=~/model.gguf", "-p", "Say hello.", "--system", "Be brief."][..],
        &["-m", "~/model.gguf", "--prompt-file=~/prompt", "--system-file=~/system"],
        &["~/model.gguf", "-f", "~/prompt", "--system-file", "~/system", "--draft", "~/model.gguf"],
    ] {
        assert_eq!(without_speed(answer(&run(arguments))), expected, "{arguments:?}");
    }
    let bare =
        run(&["~/model.gguf", "-f", "~/prompt", "--system-file", "~/system", "--chat-template=~/template"]);
    let raw = run(&["~/model.gguf", "--raw", "--prompt", "Be brief.Say hello."]);
    assert_eq!(without_speed(answer(&bare)), without_speed(answer(&raw)));
    let none = run(&["~/model.gguf", "-p", "x", "--matrices=~/none.safetensors"]);
    let path = home.path().join("none.safetensors");
    assert!(stderr(&none).contains(path.to_str().unwrap()), "{}", stderr(&none));
}

#[test]
fn standard_input_is_the_prompt_or_stands_before_it() {
    let Some(model) = small_model() else { return };
    let piped = |input: &str, arguments: &[&str]| {
        let mut command = program();
        command.args(["run", &model, "--json", "--raw", "-n", "4"]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let of = |input, arguments: &[&str]| without_speed(answer(&piped(input, arguments)));
    let direct = |prompt| without_speed(run(&model, &["--raw", "-n", "4", "-p", prompt]));
    assert_eq!(of("Once upon\n", &[]), direct("Once upon\n"));
    assert_eq!(of("Once upon\n", &["-f", "-"]), direct("Once upon\n"));
    assert_eq!(of("Once upon\n", &["a", "time"]), direct("Once upon\n\na time"));
    assert_eq!(of("", &["a", "time"]), direct("a time"));
    let output = piped("", &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("standard input is empty"), "{}", stderr(&output));
    let output = piped("x", &["--prompt", ""]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("the prompt is empty"), "{}", stderr(&output));
}

#[test]
fn a_text_is_printed_alone() {
    let Some(model) = small_model() else { return };
    let mut command = program();
    command.args(["run", &model, "--raw", "-n", "5", "The capital of France is"]).stdin(Stdio::null());
    let output = command.output().unwrap();
    let json = command.arg("--json").output().unwrap();
    assert_eq!(stdout(&output), format!("{}\n", answer(&json)["text"].as_str().unwrap()));
    assert!(stderr(&output).contains("token/s"));
}
