#![allow(clippy::print_stdout, clippy::print_stderr)] // A command-line program.
//! Which engine is best? Puts the same load on one or several servers of OpenAI's protocol and compares what
//! their clients would have seen.
//!
//! ```sh
//! cargo run --release --example engine_bench -- --url http://127.0.0.1:8080/v1 --rate 4 --requests 200
//! cargo run --release --example engine_bench -- --url ours=http://127.0.0.1:8080/v1 \
//!     --url llama.cpp=http://127.0.0.1:8081/v1 --arrivals closed-loop --users 8 --rounds 5
//! ```
//! Each server gets the same prompts at the same moments; within a round they take turns. Without `--model`,
//! the first model of each server is asked. With several `--model`, the first belongs to the first `--url`,
//! and so on.
//!
//! `--out FOLDER` keeps `report.html`, `report.md`, `report.json`, charts, and a line for each request.
//!
//! JSON: the report; its tables are `requests`, `throughput` and `latency`, and `summaries` has all figures.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use breakers_eval::load::{
    Arrivals, GeneratedPrompts, LoadConfig, Objectives, Run, Target, TargetRoute, read_prompts, report, run,
};
use breakers_eval::{BootstrapConfig, Provenance};
use clap::{Parser, ValueEnum};
use serde_json::{Map, Value, json};

/// Load on servers of OpenAI's protocol, and what their clients would have seen.
#[derive(Parser)]
struct Arguments {
    /// A server, up to `/v1`, if need be with a name before it; several are compared.
    #[arg(long = "url", value_name = "[NAME=]URL", required = true)]
    urls: Vec<String>,
    /// The model, as the server names it; one for all servers or one for each.
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// The environment variable with the servers' key.
    #[arg(long, value_name = "VARIABLE", default_value = "OPENAI_API_KEY")]
    key_env: String,
    /// Which route is asked.
    #[arg(long, value_enum, default_value_t = Route::Chat)]
    route: Route,
    /// How requests come.
    #[arg(long, value_enum, default_value_t = Pattern::Poisson)]
    arrivals: Pattern,
    /// Requests a second.
    #[arg(long, default_value_t = 4.0, value_name = "N")]
    rate: f64,
    /// How evenly bursty requests come: below 1 in bursts, 1 is poisson.
    #[arg(long, default_value_t = 0.25, value_name = "SHAPE")]
    burstiness: f64,
    /// Users of a closed loop.
    #[arg(long, default_value_t = 8, value_name = "N")]
    users: usize,
    /// The moments of a trace: a line for each request, in seconds, or JSON with a `timestamp` in
    /// milliseconds.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Requests to each server; of a trace, all of its lines if this is not given.
    #[arg(short = 'n', long, value_name = "N")]
    requests: Option<usize>,
    /// Rounds; in each, every server gets its share of the requests.
    #[arg(long, default_value_t = 1, value_name = "N")]
    rounds: usize,
    /// Requests to each server beforehand that are not counted.
    #[arg(long, default_value_t = 2, value_name = "N")]
    warmup: usize,
    /// Prompts: lines of JSON with `prompt` or `messages`, and if need be `max_tokens`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["words", "shared_words", "salt"])]
    prompts: Option<PathBuf>,
    /// Words of a generated prompt.
    #[arg(long, default_value_t = 100, value_name = "N")]
    words: usize,
    /// How many of them all prompts share, at the beginning.
    #[arg(long, default_value_t = 0, value_name = "N")]
    shared_words: usize,
    /// Makes generated prompts differ from those of earlier runs, which servers may have kept; without it,
    /// the time.
    #[arg(long, value_name = "TEXT")]
    salt: Option<String>,
    /// New tokens of an answer at most.
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_tokens: usize,
    /// Fields that are added to each request, such as '{"ignore_eos": true}'.
    #[arg(long, value_name = "JSON")]
    extra: Option<String>,
    /// Seconds for a request.
    #[arg(long, default_value_t = 120.0, value_name = "S")]
    timeout: f64,
    /// Open requests at most.
    #[arg(long, default_value_t = 512, value_name = "N")]
    max_open: usize,
    /// For the goodput: the time to the first token in milliseconds that is good enough.
    #[arg(long, value_name = "MS")]
    ttft: Option<f64>,
    /// For the goodput: the time per token in milliseconds that is good enough.
    #[arg(long, value_name = "MS")]
    tpot: Option<f64>,
    /// For the goodput: the time of a whole request in milliseconds that is good enough.
    #[arg(long, value_name = "MS")]
    latency: Option<f64>,
    /// Seed of arrivals and prompts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The folder for the report.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Answer with one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Route {
    /// Chats.
    Chat,
    /// Texts that are continued, for models without a chat template.
    Text,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Pattern {
    /// Independent users.
    Poisson,
    /// In bursts.
    Bursty,
    /// At equal intervals.
    Constant,
    /// Users who ask again as soon as they are answered.
    ClosedLoop,
    /// The moments of a file.
    Trace,
}

/// Why the program ends early.
enum Failure {
    /// The command line asks for something impossible: exit code 2.
    Usage(String),
    Failed(Box<dyn std::error::Error>),
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        match (&error as &dyn std::error::Error).downcast_ref::<breakers_eval::Error>() {
            Some(wrong @ breakers_eval::Error::Parameter { .. }) => Self::Usage(wrong.to_string()),
            _ => Self::Failed(Box::new(error)),
        }
    }
}

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(code) => code,
        Err(Failure::Usage(message)) => {
            eprintln!("error: {message}\n\nFor more information, try '--help'.");
            ExitCode::from(2)
        }
        Err(Failure::Failed(error)) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                let _ = write!(text, "\n  because: {error}");
                cause = error.source();
            }
            eprintln!("error: {text}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let arrivals = arrivals(arguments)?;
    let n_requests = match (&arrivals, arguments.requests) {
        (_, Some(n)) => n,
        (Arrivals::Trace(times), None) => times.len(),
        _ => 200,
    };
    let targets = targets(arguments)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis());
    let salt = arguments.salt.clone().unwrap_or_else(|| format!("{now}:"));
    let prompts = match &arguments.prompts {
        Some(path) => read_prompts(&read(path)?)?,
        None => {
            let generated = GeneratedPrompts {
                words: arguments.words,
                shared_words: arguments.shared_words,
                salt: salt.clone(),
                seed: arguments.seed,
            };
            // Those of the warm-up are none of the others.
            generated.make(n_requests.saturating_add(arguments.warmup))?
        }
    };
    let seconds = |name: &str, value: f64| {
        let wrong = || Failure::Usage(format!("{name} is {value}, expected a positive number"));
        Duration::try_from_secs_f64(value).ok().filter(|time| !time.is_zero()).ok_or_else(wrong)
    };
    let objective = |name, value: Option<f64>| {
        value.map(|ms| seconds(name, ms / 1000.0).map(|time| time.as_secs_f64())).transpose()
    };
    let objectives = Objectives {
        ttft: objective("--ttft", arguments.ttft)?,
        tpot: objective("--tpot", arguments.tpot)?,
        latency: objective("--latency", arguments.latency)?,
    };
    let mut config = LoadConfig::new(arrivals, n_requests);
    config.rounds = arguments.rounds;
    config.warmup = arguments.warmup;
    config.max_tokens = arguments.max_tokens;
    config.timeout = seconds("--timeout", arguments.timeout)?;
    config.max_open = arguments.max_open;
    config.seed = arguments.seed;
    config.bootstrap = BootstrapConfig { n_resamples: 1000, ..BootstrapConfig::default() };

    let total = n_requests * targets.len();
    let mut n_done = 0;
    let runs = run(&targets, &prompts, &config, &mut |_| {
        n_done += 1;
        if n_done % 20 == 0 || n_done == total {
            eprint!("\r{n_done} of {total} requests");
        }
    })?;
    eprintln!();

    let mut provenance = Provenance::collect(Some(env!("CARGO_MANIFEST_DIR").as_ref()));
    provenance.seeds = vec![arguments.seed];
    provenance.settings.insert("salt of the prompts".to_owned(), salt);
    for target in &targets {
        provenance.settings.insert(target.name.clone(), format!("{}, model {}", target.url, target.model));
    }
    let (report, summaries) = report(&runs, &config, &objectives, provenance)?;
    if let Some(folder) = &arguments.out {
        report.write(folder)?;
        breakers_files::replace(folder.join("report.html"), report.to_html()?.as_bytes())?;
        breakers_files::replace(folder.join("requests.jsonl"), lines(&runs)?.as_bytes())?;
        eprintln!("report: {}", folder.join("report.html").display());
    }
    if arguments.json {
        let mut json = report.to_json()?;
        json["summaries"] = serde_json::to_value(&summaries)?;
        println!("{json}");
    } else {
        for summary in &summaries {
            summary.warnings.iter().for_each(|warning| eprintln!("warning: {}: {warning}", summary.name));
            summary.failures.iter().for_each(|(reason, n)| eprintln!("{}: {n} × {reason}", summary.name));
        }
        for table in report.tables() {
            println!("{}\n{}", table.title(), table.to_markdown());
        }
    }
    // A server that answers nothing has not been measured.
    let is_measured = summaries.iter().all(|summary| summary.n_done > 0);
    Ok(if is_measured { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn arrivals(arguments: &Arguments) -> Result<Arrivals, Failure> {
    let rate = arguments.rate;
    if (arguments.arrivals == Pattern::Trace) != arguments.trace.is_some() {
        return Err(Failure::Usage("`--arrivals trace` and `--trace FILE` belong together".to_owned()));
    }
    Ok(match (arguments.arrivals, &arguments.trace) {
        (Pattern::Trace, Some(path)) => Arrivals::read_trace(&read(path)?)?,
        (Pattern::Bursty, _) => Arrivals::Bursty { rate, burstiness: arguments.burstiness },
        (Pattern::Constant, _) => Arrivals::Constant { rate },
        (Pattern::ClosedLoop, _) => Arrivals::ClosedLoop { users: arguments.users },
        _ => Arrivals::Poisson { rate },
    })
}

fn targets(arguments: &Arguments) -> Result<Vec<Target>, Failure> {
    let key = std::env::var(&arguments.key_env).ok().filter(|key| !key.is_empty());
    let extra: Map<String, Value> = match &arguments.extra {
        Some(text) => serde_json::from_str(text)
            .map_err(|error| Failure::Usage(format!("--extra is no JSON object: {error}")))?,
        None => Map::new(),
    };
    let n_models = arguments.models.len();
    if n_models > 1 && n_models != arguments.urls.len() {
        let message = format!("{n_models} models for {} servers", arguments.urls.len());
        return Err(Failure::Usage(message));
    }
    let mut targets: Vec<Target> = Vec::new();
    for (i, url) in arguments.urls.iter().enumerate() {
        let (name, url) = match url.split_once('=') {
            Some((name, url)) if !name.contains("://") => (name.to_owned(), url),
            _ => (url.split_once("://").map_or(&**url, |(_, rest)| rest).to_owned(), &**url),
        };
        if !url.contains("://") {
            return Err(Failure::Usage(format!("{url:?} is no URL")));
        }
        if targets.iter().any(|target| target.name == name) {
            return Err(Failure::Usage(format!("two servers are called {name}; give one as NAME=URL")));
        }
        let model = match arguments.models.get(if n_models == 1 { 0 } else { i }) {
            Some(model) => model.clone(),
            None => Target::models(url, key.as_deref())?
                .into_iter()
                .next()
                .ok_or_else(|| Failure::Usage(format!("{url} has no model; give one with --model")))?,
        };
        let mut target = Target::new(name, url, model);
        target.api_key.clone_from(&key);
        target.route = if arguments.route == Route::Text { TargetRoute::Text } else { TargetRoute::Chat };
        target.extra.clone_from(&extra);
        targets.push(target);
    }
    Ok(targets)
}

fn read(path: &PathBuf) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
}

/// A line for each request.
fn lines(runs: &[Run]) -> Result<String, Failure> {
    let mut out = String::new();
    for run in runs {
        for record in &run.records {
            let mut line = serde_json::to_value(record)?;
            line["endpoint"] = json!(run.target.name);
            let _ = writeln!(out, "{line}");
        }
    }
    Ok(out)
}
