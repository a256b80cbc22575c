//! The run book for a GPU: kernel tests, speed and exactness on a card in a few minutes, as a report.
//!
//! Programs are built beforehand (`cargo xtask cuda-build --tests`, or `--build` here for other devices),
//! because a card is often lent for minutes only. Each step has a time limit; steps for which no time was
//! left are listed as such.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use breakers_eval::{Cell, Column, Provenance, Report, Table};
use serde_json::{Value, json};

use crate::programs::{self, Kind, Program};
use crate::{Result, fetch, workspace};

/// The options of a run.
#[derive(clap::Args, Clone)]
pub(crate) struct Options {
    /// Device, as the examples take it: cuda, wgpu, vulkan, metal; also the feature that the
    /// programs were built with.
    #[arg(long, default_value = "cuda")]
    device: String,
    /// Folder of the programs [default: where `cuda-build` and `--build` put them].
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
    /// Build the programs first, with the device's feature.
    #[arg(long)]
    build: bool,
    /// Folder with the models' GGUF files; missing ones are listed as skipped.
    #[arg(long, value_name = "FOLDER")]
    models: Option<PathBuf>,
    /// Seconds for everything.
    #[arg(long, default_value_t = 480, value_name = "SECONDS")]
    limit: u64,
    /// Tokens of the measured prompt.
    #[arg(long, default_value_t = 512, value_name = "N")]
    prompt_tokens: usize,
    /// New tokens of each measurement.
    #[arg(long, default_value_t = 64, value_name = "N")]
    max_tokens: usize,
    /// Folder of the report and of each step's output.
    #[arg(long, default_value = "target/reports/gpu", value_name = "FOLDER")]
    out: PathBuf,
}

/// Names of the tests that put kernels or models on a device.
const DEVICE_TESTS: [&str; 2] = ["leg", "device"];

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    /// Stopped at its time limit.
    TimedOut,
    /// Not started, because the time for all steps was over.
    NotReached,
    /// Not started, because its model is missing.
    Skipped,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::TimedOut => "TIMED OUT",
            Self::NotReached => "not reached",
            Self::Skipped => "skipped",
        }
    }
}

/// A program to run, and its purpose.
struct Step {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    /// Seconds at most.
    limit: u64,
    /// Its model's file is missing.
    missing: bool,
}

struct Done {
    name: String,
    outcome: Outcome,
    seconds: f64,
    /// What it printed, where that is JSON.
    answer: Option<Value>,
    /// A line that sums up the step, or says why it failed.
    note: String,
}

pub(crate) fn run(options: &Options) -> Result {
    let feature = options.device.split(':').next().unwrap_or_default();
    if options.build {
        build(feature)?;
    }
    let folder = options.programs.clone().unwrap_or_else(|| programs::folder(feature));
    let list = programs::read(&folder).map_err(|e| {
        let how = if feature == "cuda" { "cargo xtask cuda-build --tests" } else { "--build" };
        format!("{e}; {how} builds the programs")
    })?;
    let out = workspace::root().join(&options.out);
    std::fs::create_dir_all(&out)?;
    let models = match &options.models {
        Some(folder) => folder.clone(),
        None => fetch::fetch(&["smollm2-135m", "gemma3-270m"])?,
    };
    let models = std::path::absolute(models)?;
    let steps = steps(options, &list, &folder, &models, &out)?;
    let started = Instant::now();
    let total = Duration::from_secs(options.limit);
    let mut done = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let left = total.saturating_sub(started.elapsed());
        let result = execute(step, index, left, options, &models, &out)?;
        eprintln!("{:>9.1} s  {:<11} {}", result.seconds, result.outcome.name(), result.name);
        done.push(result);
    }
    let report = report(options, &done)?;
    for file in report.write(&out)? {
        println!("{}", file.display());
    }
    let bad = done.iter().filter(|d| matches!(d.outcome, Outcome::Failed | Outcome::TimedOut)).count();
    if bad > 0 { Err(format!("{bad} of {} steps failed", done.len()).into()) } else { Ok(()) }
}

/// Builds examples and tests for a device that needs no setup.
fn build(feature: &str) -> Result {
    let build = |arguments: &[&str]| {
        let mut command = workspace::cargo();
        command.args(arguments).args(["--release", "--features", feature]);
        workspace::output(command.args(["--message-format", "json-render-diagnostics"]))
    };
    let mut messages = build(&["build", "--workspace", "--examples"])?;
    messages += &build(&["test", "--workspace", "--lib", "--tests", "--no-run"])?;
    programs::gather(&messages, feature).map(|_| ())
}

/// All steps, the most informative first, in case the time does not suffice.
fn steps(options: &Options, list: &[Program], folder: &Path, models: &Path, out: &Path) -> Result<Vec<Step>> {
    let program = |name: &str| -> Result<PathBuf> {
        let found = list.iter().find(|p| p.kind == Kind::Example && p.name == name);
        let found = found.ok_or_else(|| format!("{} has no program {name}", folder.display()))?;
        Ok(folder.join(&found.file))
    };
    let prompt = out.join("prompt.json");
    let ids: Vec<usize> = (0..options.prompt_tokens).map(|i| 1000 + (i * 7919) % 20_000).collect();
    std::fs::write(&prompt, json!({ "prompt_ids": ids }).to_string())?;
    let on = |model: &str, example: &str, limit: u64, arguments: &[&str]| -> Result<Step> {
        let file = models.join(format!("{model}.gguf"));
        let mut all = vec!["--json", "--device", &options.device, "--model"];
        let path = file.to_string_lossy();
        all.push(&path);
        all.extend(arguments);
        Ok(Step {
            name: format!("{example} {model}"),
            program: program(example)?,
            arguments: all.into_iter().map(str::to_owned).collect(),
            limit,
            missing: !file.exists(),
        })
    };
    let (prompt, n) = (prompt.to_string_lossy(), options.max_tokens.to_string());
    let measure = ["--max-tokens", &n, "--measure", &prompt];
    let mut steps = vec![on("smollm2-135m", "generate", 60, &measure)?];
    for kind in [Kind::UnitTests, Kind::Tests] {
        steps.extend(list.iter().filter(|p| p.kind == kind).map(|test| Step {
            name: format!("tests {}", test.file.display()),
            program: folder.join(&test.file),
            arguments: DEVICE_TESTS.iter().chain(&["--nocapture"]).map(|s| (*s).to_owned()).collect(),
            limit: 120,
            missing: false,
        }));
    }
    for model in fetch::GENERATORS {
        let report = |program: &str| out.join(program).join(model).to_string_lossy().into_owned();
        let (roofline, spec) = (report("roofline"), report("spec_decode"));
        if model != "smollm2-135m" {
            steps.push(on(model, "generate", 60, &measure)?);
        }
        let rows = ["--rows", "1,8,512", "--repeat", "5", "--out", &roofline];
        steps.push(on(model, "roofline", 60, &rows)?);
        let texts = ["--max-tokens", &n, "--repeat", "1", "--out", &spec];
        steps.push(on(model, "spec_decode", 120, &texts)?);
    }
    Ok(steps)
}

/// Runs a step within the remaining time; its output goes to files.
fn execute(
    step: &Step,
    index: usize,
    left: Duration,
    options: &Options,
    models: &Path,
    out: &Path,
) -> Result<Done> {
    let end = |outcome, seconds, answer, note: &str| {
        Ok(Done { name: step.name.clone(), outcome, seconds, answer, note: note.to_owned() })
    };
    if step.missing {
        return end(Outcome::Skipped, 0.0, None, "the model is not there");
    }
    if left < Duration::from_secs(2) {
        return end(Outcome::NotReached, 0.0, None, "the time was over");
    }
    let stem = format!("{index:02}-{}", step.name.replace(['/', ' '], "-"));
    let (output, log) = (out.join(format!("{stem}.out")), out.join(format!("{stem}.log")));
    let start = Instant::now();
    let mut child = Command::new(&step.program)
        .args(&step.arguments)
        .env("BREAKERS_TEST_MODELS", models)
        .env("BREAKERS_REQUIRE_DEVICES", options.device.split(':').next().unwrap_or_default())
        .current_dir(workspace::root())
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&output)?)
        .stderr(std::fs::File::create(&log)?)
        .spawn()
        .map_err(|e| format!("cannot start {}: {e}", step.program.display()))?;
    let limit = left.min(Duration::from_secs(step.limit));
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let seconds = start.elapsed().as_secs_f64();
    let printed = String::from_utf8_lossy(&std::fs::read(&output)?).into_owned();
    let logged = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    let last = logged.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let totals = printed.lines().rev().find(|line| line.starts_with("test result:")).unwrap_or_default();
    match status {
        None => {
            end(Outcome::TimedOut, seconds, None, &format!("stopped after {} s; {stem}.log", limit.as_secs()))
        }
        Some(status) if status.success() => {
            end(Outcome::Passed, seconds, serde_json::from_str(&printed).ok(), totals)
        }
        Some(_) => end(Outcome::Failed, seconds, None, if totals.is_empty() { last } else { totals }),
    }
}

fn report(options: &Options, done: &[Done]) -> Result<Report> {
    let mut provenance = Provenance::collect(Some(&workspace::root()));
    provenance.device = Some(device_name(&options.device));
    let mut report = Report::new(format!("On {}", options.device), provenance);
    let mut steps = Table::new("steps", "What ran");
    steps.column(Column::new("step")).column(Column::new("result"));
    steps.column(Column::new("time").unit("s").decimals(1)).column(Column::new("note"));
    for d in done {
        steps.row(vec![
            d.name.as_str().into(),
            d.outcome.name().into(),
            d.seconds.into(),
            d.note.as_str().into(),
        ])?;
    }
    report.table(steps);
    let mut speed = Table::new("speed", format!("Speed behind a prompt of {} tokens", options.prompt_tokens));
    speed.column(Column::new("model"));
    speed.column(Column::new("prompt").unit("token/s").decimals(0));
    speed.column(Column::new("decode").unit("token/s").decimals(1));
    for (model, answer) in answers(done, "generate ") {
        let number = |field: &str| Cell::from(answer[field].as_f64());
        speed.row(vec![model.into(), number("prefill_tok_s"), number("decode_tok_s")])?;
    }
    report.table(speed);
    for (program, table) in [("roofline ", "passes"), ("spec_decode ", "speed")] {
        for (model, answer) in answers(done, program) {
            let name = format!("{}{table} {model}", if program == "roofline " { "roofline " } else { "" });
            report.table(copied(&name, model, &answer["tables"][table])?);
        }
    }
    Ok(report)
}

/// The answers of a program's steps, with their models.
fn answers<'a>(done: &'a [Done], program: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    done.iter().filter_map(move |d| Some((d.name.strip_prefix(program)?, d.answer.as_ref()?)))
}

/// A copy of a table of another report.
fn copied(name: &str, model: &str, table: &Value) -> Result<Table> {
    let title = table["title"].as_str().unwrap_or(name);
    let mut copy = Table::new(name, format!("{model}: {title}"));
    let names: Vec<&str> =
        table["columns"].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect();
    for column in table["columns"].as_array().into_iter().flatten() {
        let plain = Column::new(column["name"].as_str().unwrap_or_default());
        copy.column(column["unit"].as_str().map_or_else(|| plain.clone(), |unit| plain.clone().unit(unit)));
    }
    for row in table["rows"].as_array().into_iter().flatten() {
        copy.row(names.iter().map(|name| cell(&row[*name])).collect())?;
    }
    Ok(copy)
}

fn cell(value: &Value) -> Cell {
    match value {
        Value::Null => Cell::Missing,
        Value::Bool(flag) => (*flag).into(),
        Value::String(text) => text.as_str().into(),
        Value::Object(estimate) => estimate.get("value").and_then(Value::as_f64).into(),
        number => match number.as_i64() {
            Some(count) => Cell::Integer(count),
            None => number.as_f64().into(),
        },
    }
}

/// The driver's name for the card, or the name of the device if no tool tells.
fn device_name(device: &str) -> String {
    let query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"];
    let told = Command::new("nvidia-smi").args(query).stderr(Stdio::null()).output();
    match told {
        Ok(output) if output.status.success() && device.starts_with("cuda") => {
            String::from_utf8_lossy(&output.stdout).trim().replace('\n', "; ")
        }
        _ => device.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(script: &str, limit: u64) -> Step {
        Step {
            name: "a step".to_owned(),
            program: "sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            limit,
            missing: false,
        }
    }

    fn options() -> Options {
        Options {
            device: "wgpu".to_owned(),
            programs: None,
            build: false,
            models: None,
            limit: 8,
            prompt_tokens: 4,
            max_tokens: 4,
            out: PathBuf::new(),
        }
    }

    #[test]
    fn steps_end_as_they_should() {
        let folder = tempfile::tempdir().unwrap();
        let long = Duration::from_secs(60);
        for (script, limit, left, outcome, note) in [
            ("echo '{\"decode_tok_s\": 3.5}'", 20, long, Outcome::Passed, ""),
            ("echo 'test result: ok. 3 passed'", 20, long, Outcome::Passed, "test result: ok. 3 passed"),
            ("echo why >&2; exit 1", 20, long, Outcome::Failed, "why"),
            ("sleep 30", 1, long, Outcome::TimedOut, "stopped after 1 s; 00-a-step.log"),
            ("true", 1, Duration::from_secs(1), Outcome::NotReached, "the time was over"),
        ] {
            let done =
                execute(&step(script, limit), 0, left, &options(), folder.path(), folder.path()).unwrap();
            assert_eq!((done.outcome, done.note.as_str()), (outcome, note), "{script}");
        }
        let missing = Step { missing: true, ..step("true", 1) };
        let done = execute(&missing, 0, long, &options(), folder.path(), folder.path()).unwrap();
        assert_eq!(done.outcome, Outcome::Skipped);
    }

    #[test]
    fn a_report_holds_what_programs_answered() {
        let done = |name: &str, answer: Value| Done {
            name: name.to_owned(),
            outcome: Outcome::Passed,
            seconds: 1.0,
            answer: Some(answer),
            note: String::new(),
        };
        let passes = json!({"tables": {"passes": {"title": "Passes", "rows": [{"rows": 8, "time": 1.5}],
            "columns": [{"name": "rows", "unit": null}, {"name": "time", "unit": "ms"}]}}});
        let done = [
            done("generate m", json!({"prefill_tok_s": 100.0, "decode_tok_s": 7.25})),
            done("roofline m", passes),
        ];
        let json = report(&options(), &done).unwrap().to_json().unwrap();
        assert_eq!(json["tables"]["speed"]["rows"][0]["decode"], 7.25);
        assert_eq!(json["tables"]["roofline passes m"]["rows"][0], json!({"rows": 8, "time": 1.5}));
    }
}
