//! Coverage, wrong answers and the cost of masks over a file of schemas:
//! `cargo bench -p breakers-structured --bench maskbench -- --schemas FILE.jsonl[.gz] [--json] [--any-order]
//! [--lenient] [--tools] [--verbose] [--bytes]`. The vocabulary is made up, 151,936 tokens cut from the lines
//! of the file and put together by chance; `--bytes` takes one of bytes and leaves the masks out.
#![allow(clippy::print_stdout)]

#[path = "../tests/suite/bytes.rs"]
#[allow(dead_code)]
mod bytes;
mod soak;
#[path = "../tests/suite/texts.rs"]
mod texts;
mod words;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use breakers_core::{Constraint as _, Json, TokenMask, Tokenizer};
use breakers_structured::maskbench::{Case, Outcome, Summary, percentile, run};
use breakers_structured::{Compiler, Grammar, Order, SchemaOptions};

fn lines(path: &Path) -> std::io::Result<Vec<String>> {
    let file = File::open(path)?;
    let reader: Box<dyn Read> = match path.extension().is_some_and(|extension| extension == "gz") {
        true => Box::new(flate2::read::GzDecoder::new(file)),
        false => Box::new(file),
    };
    BufReader::new(reader).lines().collect()
}

/// One call of many functions, `{name, arguments}` by the schemas of the file that are enforced: the time to
/// the first mask, and once more from the cache.
fn tools(compiler: &Compiler, lines: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    const TOOLS: usize = 400;
    let mut options = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let case = Case::parse(line)?;
        // References are meant from the root of a schema of its own.
        let text = case.schema.as_str();
        let is_object = text.starts_with(r#"{"type":"object""#) && !text.contains(r#""$ref""#);
        if is_object && compiler.constraint(&Grammar::JsonSchema(case.schema.clone())).is_ok() {
            options.push(format!(
                r#"{{"type":"object","properties":{{"name":{{"const":"tool_{i}"}},"arguments":{}}},"required":["name","arguments"],"additionalProperties":false}}"#,
                case.schema.as_str()
            ));
        }
        if options.len() == TOOLS {
            break;
        }
    }
    let text = format!(r#"{{"anyOf":[{}]}}"#, options.join(","));
    let grammar = Grammar::JsonSchema(Json::parse(&text)?);
    for name in ["cold", "cached"] {
        let start = Instant::now();
        let mut constraint = compiler.constraint(&grammar)?;
        constraint.allowed(&mut TokenMask::none(1 << 18))?;
        println!("{} tools, {} bytes, {name}: {:.2?}", options.len(), text.len(), start.elapsed());
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let named = arguments.iter().position(|argument| argument == "--schemas");
    let Some(path) = named.and_then(|at| arguments.get(at + 1)) else {
        println!("skipped: no file of schemas is named, see --schemas");
        return Ok(());
    };
    let lines = lines(Path::new(path))?;
    let tokenizer: Arc<dyn Tokenizer> = match has("--bytes") {
        true => Arc::new(bytes::Bytes),
        false => Arc::new(words::Words::cut_from(&lines)),
    };
    let order = if has("--any-order") { Order::Any } else { Order::Declared };
    let options = SchemaOptions::default().with_order(order).with_strict(!has("--lenient"));
    let compiler = Compiler::new(tokenizer.clone())?;
    if has("--soak") {
        let number = |name: &str, default| {
            let at = arguments.iter().position(|argument| argument == name);
            at.and_then(|at| arguments.get(at + 1)).map_or(Ok(default), |value| value.parse())
        };
        let texts = arguments.iter().position(|argument| argument == "--texts");
        let texts = texts.and_then(|at| arguments.get(at + 1)).map(Path::new);
        let lines: Vec<&String> = lines.iter().step_by(number("--step", 1)?).collect();
        return soak::run(&compiler, &*tokenizer, &lines, options, number("--seed", 0)?, texts);
    }
    let mut outcomes: Vec<Outcome> = Vec::new();
    for line in lines.iter().filter(|line| !line.trim().is_empty()) {
        let case = Case::parse(line)?;
        let outcome = run(&compiler, &*tokenizer, &case, options, !has("--bytes"))?;
        if has("--verbose") {
            let slowest = outcome.masks.iter().max().copied().unwrap_or_default();
            println!(
                "{}\t{}\t{:?}\t{slowest:?}\t{}\t{}\t{}",
                outcome.name,
                if outcome.is_checked { "checked" } else { "" },
                outcome.first_mask,
                outcome
                    .refused
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default()
                    .replace(['\n', '\t'], " "),
                outcome.wrong_accepted.iter().map(|text| format!("A {text}")).collect::<Vec<_>>().join(" "),
                outcome.wrong_refused.iter().map(|text| format!("R {text}")).collect::<Vec<_>>().join(" "),
            );
        }
        outcomes.push(outcome);
    }
    if has("--tools") {
        tools(&compiler, &lines)?;
    }
    let sum: Summary = outcomes.iter().collect();
    if has("--json") {
        println!("{}", sum.to_json());
        return Ok(());
    }
    println!("schemas         {:>9}", sum.schemas);
    println!("compiled        {:>9}   {} of them checked at the ends of values", sum.compiled, sum.checked);
    println!("refused         {:>9}", sum.refused);
    println!("wrong_accepted  {:>9}   of {} invalid instances", sum.wrong_accepted, sum.n_invalid);
    println!("wrong_refused   {:>9}   of {} valid instances", sum.wrong_refused, sum.n_valid);
    println!(
        "masks           {:>9}   mean {:.1?}, p50 {:.1?}, p99 {:.1?}, p99.9 {:.1?}, longest {:.1?}",
        sum.masks.len(),
        sum.mean_mask(),
        percentile(&sum.masks, 0.5),
        percentile(&sum.masks, 0.99),
        percentile(&sum.masks, 0.999),
        percentile(&sum.masks, 1.0),
    );
    println!(
        "first mask                  p50 {:.2?}, p99 {:.2?}, longest {:.2?}",
        percentile(&sum.first_masks, 0.5),
        percentile(&sum.first_masks, 0.99),
        percentile(&sum.first_masks, 1.0),
    );
    Ok(())
}
