//! Random texts of all schemas of a file, each within a limit of tokens, from the shortest one on: they end,
//! and they are valid.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use breakers_core::{Constraint as _, Json, TokenId, Tokenizer};
use breakers_structured::{Compiler, Grammar, SchemaOptions};
use serde_json::{Value, json};

use crate::texts::{Chance, Outcome, random_text};

/// Tokens beyond the shortest text, its end among them.
const MORE: [usize; 7] = [1, 2, 3, 5, 9, 20, 60];
/// Tokens of the longest shortest text.
const ROOM: usize = 4096;

/// Prints what went wrong and counts it; `texts` is where the texts go, a line for each schema:
/// `{name, schema, texts}`.
pub(crate) fn run(
    compiler: &Compiler,
    tokenizer: &dyn Tokenizer,
    lines: &[&String],
    options: SchemaOptions,
    seed: usize,
    texts: Option<&Path>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut file = texts.map(|path| File::create(path).map(BufWriter::new)).transpose()?;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, line) in lines.iter().enumerate() {
        let row: Value = serde_json::from_str(line)?;
        let name = row["name"].as_str().unwrap_or_default();
        let mut count = |what: &'static str, detail: &str| {
            *counts.entry(what).or_default() += 1;
            if !detail.is_empty() {
                println!("{what}\t{name}\t{}", detail.replace(['\n', '\t'], " "));
            }
        };
        let grammar = Grammar::JsonSchemaWith(Json::parse(&row["schema"].to_string())?, options);
        let Ok(mut constraint) = compiler.constraint(&grammar) else {
            count("schemas refused", "");
            continue;
        };
        count("schemas", "");
        let Some(shortest) = constraint.completion(ROOM)? else {
            count("schemas without a known end", "?");
            continue;
        };
        let validator = jsonschema::options().should_validate_formats(true).build(&row["schema"]);
        if let Err(error) = &validator {
            count("schemas that the validator does not take", &error.to_string());
        }
        let mut written = Vec::new();
        for (round, more) in MORE.into_iter().enumerate() {
            let limit = shortest.len() + more;
            let mut chance = Chance((seed * 1_000_003 + i * MORE.len() + round) as u64);
            let text = |tokens: &[TokenId]| {
                let bytes = tokens.iter().flat_map(|&token| tokenizer.token_bytes(token).unwrap_or_default());
                String::from_utf8_lossy(&bytes.copied().collect::<Vec<_>>()).into_owned()
            };
            let constraint = compiler.constraint(&grammar)?;
            let tokens = match random_text(constraint, tokenizer, limit, 1 + round, &mut chance) {
                Ok(Outcome::Ended(tokens)) => tokens,
                Ok(Outcome::Unfinished(tokens)) => {
                    count("texts without an end", &format!("{more} {}", text(&tokens)));
                    continue;
                }
                Err(error) => {
                    count("texts that ended in an error", &format!("{more} {error}"));
                    continue;
                }
            };
            count("texts", "");
            let text = text(&tokens);
            let value = match serde_json::from_str::<Value>(&text) {
                Ok(value) => value,
                Err(error) => {
                    count("texts that are not JSON", &format!("{error} {text}"));
                    continue;
                }
            };
            if let Ok(validator) = &validator
                && let Err(error) = validator.validate(&value)
            {
                count("texts that are not valid", &format!("{error} at {} {text}", error.instance_path()));
            }
            written.push(text);
        }
        if let Some(file) = &mut file {
            writeln!(file, "{}", json!({ "name": name, "schema": row["schema"], "texts": written }))?;
        }
    }
    counts.iter().for_each(|(what, n)| println!("{what:<44}{n:>9}"));
    Ok(())
}
