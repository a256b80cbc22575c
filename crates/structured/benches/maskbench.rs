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

use breakers_core::{
    AnswerForms as _, AnswerPlan, ChatRequest, Constraint as _, Message, TokenMask, Tokenizer, Tool,
    ToolChoice,
};
use breakers_structured::maskbench::{Case, Outcome, Summary, percentile, run};
use breakers_structured::{Compiler, Forms, Grammar, Order, SchemaOptions};
use serde_json::Value;

fn lines(path: &Path) -> std::io::Result<Vec<String>> {
    let file = File::open(path)?;
    let reader: Box<dyn Read> = match path.extension().is_some_and(|extension| extension == "gz") {
        true => Box::new(flate2::read::GzDecoder::new(file)),
        false => Box::new(file),
    };
    BufReader::new(reader).lines().collect()
}

/// Calls of many functions, with the schemas of the file that are enforced as their parameters: the time to
/// the first mask, and once more with the grammar kept.
fn tools(tokenizer: &Arc<dyn Tokenizer>, lines: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    const TOOLS: usize = 400;
    let compiler = Compiler::new(tokenizer.clone())?;
    let mut tools = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let schema = Case::parse(line)?.schema;
        let is_object = schema.to::<Value>()?["type"] == "object";
        // References are meant from the root of a schema of its own.
        if is_object
            && !schema.as_str().contains(r#""$ref""#)
            && compiler.constraint(&Grammar::JsonSchema(schema.clone())).is_ok()
        {
            tools.push(Tool::new(format!("tool_{i}"), schema));
        }
        if tools.len() == TOOLS {
            break;
        }
    }
    let (n_tools, bytes) =
        (tools.len(), tools.iter().map(|tool| tool.parameters.as_str().len()).sum::<usize>());
    let request = ChatRequest::new(Message::user("?")).with_tools(tools, ToolChoice::Auto);
    for format in ["hermes", "qwen3-coder", "llama3", "mistral"] {
        let forms = Forms::new(tokenizer.clone())?.with_calls(format.parse()?);
        for name in ["cold", "kept"] {
            let start = Instant::now();
            match forms.plan(&request, 0) {
                Ok(AnswerPlan { constraint: Some(mut constraint), .. }) => {
                    let mut mask = TokenMask::none(tokenizer.n_tokens());
                    constraint.allowed(&mut mask)?;
                    println!(
                        "{n_tools} functions, {bytes} bytes of parameters, {format}, {name}: {:.2?}, {} tokens allowed",
                        start.elapsed(),
                        mask.count()
                    );
                }
                Ok(_) => println!("{format}: not constrained"),
                Err(error) => println!("{format}: {error}, after {:.2?}", start.elapsed()),
            }
        }
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
    if has("--tools") {
        return tools(&tokenizer, &lines);
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
