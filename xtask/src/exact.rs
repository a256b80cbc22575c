//! Agreement with llama.cpp: token ids, log-probabilities of its own continuations, perplexity.

use std::path::{Path, PathBuf};

use breakers_eval::{Cell, Column, Provenance, Report, Table, stats};
use serde_json::{Value, json};

use crate::peer::{self, Examples, Peer, number};
use crate::{Result, fetch, workspace};

/// If llama.cpp prefers its first choice by more than this, in nats, ours must be the same.
const MARGIN: f64 = 0.5;
/// Allowed difference of the log-probability of its choice, in nats: median, and 95th percentile. Its own
/// repacked, plain and f32 kernels differ by up to 0.016 and 0.17.
const MEDIAN_DELTA: f64 = 0.02;
const P95_DELTA: f64 = 0.2;
/// Allowed relative difference of perplexity.
const PERPLEXITY_DELTA: f64 = 0.005;

/// What to compare.
#[derive(clap::Args, Clone)]
pub(crate) struct Options {
    /// Names of models.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "smollm2-135m,gemma3-270m,qwen2.5-coder-0.5b,qwen2.5-coder-1.5b"
    )]
    models: Vec<String>,
    /// Tokens that llama.cpp continues each prompt by.
    #[arg(long, default_value_t = 64)]
    max_tokens: usize,
    /// Text for perplexity; default: 80 KB of the project's own documentation.
    #[arg(long)]
    text: Option<PathBuf>,
    /// Window of perplexity, in tokens.
    #[arg(long, default_value_t = 512)]
    context: usize,
    /// Device that our side runs on.
    #[arg(long, default_value = "flex")]
    device: String,
    /// Leave out perplexity.
    #[arg(long)]
    no_perplexity: bool,
    /// A Python with llama-cpp-python and numpy; otherwise one is set up in the build folder.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Where the report goes.
    #[arg(long, default_value = "target/reports/exact")]
    out: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            options: Options,
        }
        <Command as clap::Parser>::parse_from(["exact"]).options
    }
}

/// Agreement on the places of a continuation.
#[derive(Debug, Default)]
struct Agreement {
    /// |Δ log-probability| of llama.cpp's choice, one for each place.
    deltas: Vec<f64>,
    /// Places where llama.cpp's margin is large.
    clear: usize,
    /// Of these, places where our choice differs.
    mismatches: usize,
}

pub(crate) fn run(options: &Options) -> Result {
    let peer = Peer::find(options.python.as_deref())?;
    let examples = Examples::build()?;
    let names: Vec<&str> = options.models.iter().map(String::as_str).collect();
    let folder = fetch::fetch(&names)?;
    let work = workspace::target().join("exact");
    std::fs::create_dir_all(&work)?;
    let text = work.join("text.txt");
    match &options.text {
        Some(file) => {
            std::fs::copy(file, &text).map(|_| ()).map_err(|e| format!("{}: {e}", file.display()))?
        }
        None => std::fs::write(&text, peer::own_prose(80_000)?)?,
    }

    let mut table = Table::new("exactness", "Agreement with llama.cpp");
    table
        .column(Column::new("model"))
        .column(Column::new("token cases"))
        .column(Column::new("differing cases"))
        .column(Column::new("places"))
        .column(Column::new("clear places"))
        .column(Column::new("other top-1"))
        .column(Column::new("median |Δ|").unit("nat").decimals(4))
        .column(Column::new("p95 |Δ|").unit("nat").decimals(4))
        .column(Column::new("perplexity").decimals(4))
        .column(Column::new("llama.cpp's").decimals(4))
        .column(Column::new("Δ").unit("%").decimals(3))
        .column(Column::new("passes"));
    let mut failed = Vec::new();
    for name in names {
        let model = folder.join(format!("{name}.gguf"));
        let model = model.to_str().ok_or("the model's path is not UTF-8")?;
        let (n_cases, differing) = compare_tokens(&peer, &examples, model, &work)?;
        differing.iter().for_each(|case| eprintln!("{name}: {case}"));
        let agreement = compare_continuations(&peer, &examples, model, &work, options)?;
        let median = stats::median(&agreement.deltas)?;
        let p95 = stats::quantile(&agreement.deltas, 0.95)?;
        let perplexity = if options.no_perplexity {
            None
        } else {
            Some(compare_perplexity(&peer, &examples, model, &text, options)?)
        };
        let relative = perplexity.map(|(ours, theirs)| ours / theirs - 1.0);
        let passes = differing.is_empty()
            && agreement.mismatches == 0
            && median <= MEDIAN_DELTA
            && p95 <= P95_DELTA
            && relative.is_none_or(|r| r.abs() <= PERPLEXITY_DELTA);
        if !passes {
            failed.push(name);
        }
        table.row(vec![
            Cell::from(name),
            n_cases.into(),
            differing.len().into(),
            agreement.deltas.len().into(),
            agreement.clear.into(),
            agreement.mismatches.into(),
            median.into(),
            p95.into(),
            perplexity.map(|p| p.0).into(),
            perplexity.map(|p| p.1).into(),
            relative.map(|r| 100.0 * r).into(),
            passes.into(),
        ])?;
        eprintln!(
            "{name}: {}: {} differing token cases, {} other choices, |Δ| median {median:.4}, p95 {p95:.4}, perplexity \
             {perplexity:.4?} (ours, llama.cpp's)",
            if passes { "passes" } else { "FAILS" },
            differing.len(),
            agreement.mismatches
        );
    }
    print!("{}", table.to_markdown());
    let mut provenance = Provenance::collect(Some(Path::new(env!("CARGO_MANIFEST_DIR"))));
    provenance.device = Some(options.device.clone());
    let mut report = Report::new("Agreement with llama.cpp", provenance);
    report
        .paragraph(format!(
            "Token ids on `benches/tokenizer_cases.json`; log-probabilities of llama.cpp's own greedy continuations \
             (a place is clear if its margin is over {MARGIN} nats); perplexity over windows of {} tokens. Allowed: \
             no differing case, no other top-1 on a clear place, a median |Δ| of {MEDIAN_DELTA}, a 95th percentile \
             of {P95_DELTA}, {} % of perplexity.",
            options.context,
            100.0 * PERPLEXITY_DELTA
        ))
        .table(table);
    report.write(workspace::root().join(&options.out))?;
    if failed.is_empty() { Ok(()) } else { Err(format!("no agreement: {}", failed.join(", ")).into()) }
}

/// Number of cases, and a line for each that differs.
fn compare_tokens(
    peer: &Peer,
    examples: &Examples,
    model: &str,
    work: &Path,
) -> Result<(usize, Vec<String>)> {
    let texts = std::fs::read_to_string(workspace::root().join("benches/tokenizer_cases.json"))?;
    let texts: Vec<String> = serde_json::from_str(&texts)?;
    let cases: Vec<Value> = texts
        .iter()
        .flat_map(|text| {
            [true, false].map(|parse| json!({ "text": text, "add_special": true, "parse_special": parse }))
        })
        .collect();
    let file = work.join("cases.json");
    std::fs::write(&file, Value::from(cases).to_string())?;
    let answer = peer.ask(&["tokens", "--model", model, "--cases", &file.to_string_lossy()])?;
    let cases = answer["cases"].as_array().ok_or("the peer answered no cases")?;
    let mut differing = Vec::new();
    for case in cases {
        let text = case["text"].as_str().unwrap_or_default();
        let file = work.join("text-case.txt");
        std::fs::write(&file, text)?;
        let file = file.to_string_lossy();
        let mut arguments = vec!["--model", model, "--text-file", &file, "--add-special"];
        if case["parse_special"] == true {
            arguments.push("--parse-special");
        }
        let ours = peer::ids(&examples.ask("tokenize", &arguments)?, "ids")?;
        let theirs = peer::ids(case, "ids")?;
        if ours != theirs {
            differing.push(format!("{text:?}: ours {ours:?}, llama.cpp's {theirs:?}"));
        }
    }
    Ok((cases.len(), differing))
}

fn compare_continuations(
    peer: &Peer,
    examples: &Examples,
    model: &str,
    work: &Path,
    options: &Options,
) -> Result<Agreement> {
    let prompts = workspace::root().join("benches/prompts.json");
    let n = options.max_tokens.to_string();
    let answer = peer.ask(&[
        "exactness",
        "--model",
        model,
        "--prompts",
        &prompts.to_string_lossy(),
        "--max-tokens",
        &n,
    ])?;
    let mut agreement = Agreement::default();
    for case in answer["cases"].as_array().ok_or("the peer answered no cases")? {
        let file = work.join("case.json");
        std::fs::write(&file, case.to_string())?;
        let file = file.to_string_lossy();
        let ours =
            examples.ask("score", &["--model", model, "--device", &options.device, "--ids-file", &file])?;
        compare_steps(&ours["steps"], &case["steps"], &mut agreement)?;
    }
    Ok(agreement)
}

fn compare_steps(ours: &Value, theirs: &Value, agreement: &mut Agreement) -> Result {
    let (ours, theirs) = (ours.as_array().ok_or("no `steps`")?, theirs.as_array().ok_or("no `steps`")?);
    if ours.len() != theirs.len() {
        return Err(format!("{} places scored, {} given", ours.len(), theirs.len()).into());
    }
    for (our, their) in ours.iter().zip(theirs) {
        let their_logprob =
            |rank: usize| their["top"][rank][1].as_f64().ok_or("a place without alternatives");
        let (first, second) = (their_logprob(0)?, their_logprob(1)?);
        agreement.deltas.push((number(our, "logprob")? - first).abs());
        if first - second > MARGIN {
            agreement.clear += 1;
            agreement.mismatches += usize::from(our["top"][0][0] != their["top"][0][0]);
        }
    }
    Ok(())
}

fn compare_perplexity(
    peer: &Peer,
    examples: &Examples,
    model: &str,
    text: &Path,
    options: &Options,
) -> Result<(f64, f64)> {
    let (text, context) = (text.to_string_lossy(), options.context.to_string());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    let shared = ["--model", model, "--file", &text, "--context", &context, "--threads", &threads];
    let theirs = peer.ask(&[&["perplexity"], &shared[..]].concat())?;
    let ours = examples.ask("perplexity", &[&shared[..], &["--device", &options.device]].concat())?;
    if ours["n_tokens"] != theirs["n_tokens"] {
        return Err(
            format!("{} tokens counted, the peer counted {}", ours["n_tokens"], theirs["n_tokens"]).into()
        );
    }
    Ok((number(&ours, "perplexity")?, number(&theirs, "perplexity")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_compared() {
        let theirs = json!([
            { "id": 7, "top": [[7, -0.1], [8, -2.0]] },
            { "id": 9, "top": [[9, -1.0], [8, -1.2]] },
            { "id": 5, "top": [[5, -0.2], [6, -1.9]] },
        ]);
        let ours = json!([
            { "id": 7, "logprob": -0.15, "top": [[7, -0.15]] },
            // A close call may go the other way; a clear one may not.
            { "id": 9, "logprob": -1.3, "top": [[8, -1.1]] },
            { "id": 5, "logprob": -2.2, "top": [[6, -0.1]] },
        ]);
        let mut agreement = Agreement::default();
        compare_steps(&ours, &theirs, &mut agreement).unwrap();
        assert_eq!((agreement.clear, agreement.mismatches), (2, 1));
        let expected = [0.05, 0.3, 2.0];
        for (found, expected) in agreement.deltas.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{agreement:?}");
        }
        assert!(compare_steps(&json!([]), &theirs, &mut Agreement::default()).is_err());
    }
}
