//! Answers that cannot be wrong: a model under JSON Schemas beside the same model without, and how many
//! schemas of a file are enforced.
//!
//! ```sh
//! cargo run --release --example structured                                   # fetches a small model
//! cargo run --release --example structured -- --model gemma3-270m --rounds 5
//! cargo run --release --example structured -- --schemas maskbench.jsonl.gz --out report
//! cargo run --release --example structured -- --schemas maskbench.jsonl.gz --python python3
//! ```
//! Each task is a prompt with a schema. The answer under the schema is checked by a validator that knows
//! nothing of how it came about; its tokens are compared with those of masked decoding that drafts nothing
//! and forces nothing. A line of `--schemas` is `{name, schema, tests: [{valid, data}]}`. With `--python` the
//! same file is given to the packages `llguidance` and `outlines-core`, with the same vocabulary.
//!
//! JSON: the report, whose table `schemas` has the counts `schemas`, `compiled`, `refused`, `wrong_accepted`,
//! `wrong_refused` and the times of masks for each engine.

mod cost;
mod coverage;

use std::path::PathBuf;
use std::process::ExitCode;

use breakers_cli::{ModelArgs, print, print_json, run};
use breakers_eval::Report;
use breakers_structured::{Order, SchemaOptions};
use clap::Parser;

/// Answers that keep to a schema, and what that costs.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    /// Measure each task so many times.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// New tokens at most.
    #[arg(short = 'n', long, default_value_t = 200, value_name = "N")]
    max_tokens: usize,
    /// Tasks of your own in place of the built-in ones: a JSON file of `[{name, prompt, schema}]`.
    #[arg(long, value_name = "FILE")]
    tasks: Option<String>,
    /// Also count how many schemas of this file are enforced: JSON lines, .gz too.
    #[arg(long, value_name = "FILE")]
    schemas: Option<PathBuf>,
    /// Only the schemas, without a model's answers.
    #[arg(long, requires = "schemas")]
    only_schemas: bool,
    /// Let the properties of an object come in any order.
    #[arg(long)]
    any_order: bool,
    /// Enforce what can be enforced of a schema, and name the rest, where it would be refused.
    #[arg(long)]
    lenient: bool,
    /// A Python with the packages `llguidance` and `outlines-core`, to measure beside ours.
    #[arg(long, value_name = "PROGRAM", requires = "schemas")]
    python: Option<PathBuf>,
    /// The packages to measure. `outlines-core` takes seconds for a schema.
    #[arg(long, value_name = "NAMES", requires = "python", default_value = "llguidance,outlines-core")]
    engines: String,
    /// The folder for the report.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Answer with one JSON object.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// How schemas are enforced.
    fn options(&self) -> SchemaOptions {
        let order = if self.any_order { Order::Any } else { Order::Declared };
        SchemaOptions::default().with_order(order).with_strict(!self.lenient)
    }
}

fn main() -> ExitCode {
    run(|| {
        let arguments = Arguments::parse();
        let loaded = arguments.model.load()?;
        let provenance = arguments.model.provenance(&[&loaded])?;
        let mut report = Report::new(format!("Structured output of {}", loaded.name), provenance);
        let mut is_wrong = false;
        if !arguments.only_schemas {
            let costs = cost::measure(&arguments, &loaded)?;
            is_wrong |= costs.iter().any(|cost| !cost.is_valid || !cost.is_exact);
            cost::add_to(&mut report, &costs)?;
        }
        if let Some(file) = &arguments.schemas {
            let found = coverage::measure(&arguments, file, loaded.model.tokenizer())?;
            is_wrong |= found[0].wrong_accepted > 0;
            coverage::add_to(&mut report, &found)?;
        }
        if let Some(folder) = &arguments.out {
            report.write(folder)?;
        }
        if arguments.json {
            print_json(&report.to_json()?)?;
        } else {
            print(&report.to_markdown())?;
        }
        Ok(if is_wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    })
}
