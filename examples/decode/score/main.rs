//! Log-probabilities of a given continuation (teacher forcing).
//!
//! ```sh
//! cargo run --release --example score -- --ids-file ids.json
//! ```
//! The file holds `{"prompt_ids": […], "output_ids": […]}`, as `generate --json` prints it. `--chunk N` feeds
//! N tokens in a forward pass; the answer has the same bits whatever N is.
//!
//! JSON: `steps`, for each id of the continuation `id`, `logprob` and `top`, the five most likely tokens.

use std::process::ExitCode;

use breakers_cli::{
    CacheArgs, Error, ModelArgs, N_TOP, Result, ScoredStep, print, print_json, read_ids, run, step_json,
};
use breakers_eval::score::{ScoredToken, score};
use breakers_tokenizer::{DecodeOptions, Tokenizer};
use clap::Parser;
use serde_json::{Value, json};

/// Log-probabilities of a given continuation.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// JSON with `prompt_ids` and `output_ids`; - reads standard input.
    #[arg(long, value_name = "FILE")]
    ids_file: String,
    /// Tokens fed in one forward pass.
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// Answer with one JSON object.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    run(|| {
        let arguments = Arguments::parse();
        let ids = read_ids(&arguments.ids_file)?;
        if ids.prompt.is_empty() {
            return Err(Error::Usage(
                "`prompt_ids` is empty: the first token has nothing to follow".to_owned(),
            ));
        }
        let loaded = arguments.model.load()?;
        let mut runner = arguments.cache.runner(&loaded.model)?;
        let scored = score(&mut runner, &ids.prompt, &ids.output, arguments.chunk as usize, N_TOP)?;
        if arguments.json {
            let steps: Vec<Value> = scored
                .iter()
                .map(|s| step_json(ScoredStep { token: s.token, logprob: Some(s.logprob), top: &s.top }))
                .collect();
            print_json(&json!({ "steps": steps }))?;
        } else {
            print(&table(loaded.model.tokenizer(), &scored)?)?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// One line for each token: its log-probability, the token, and the best token if it differs.
fn table(tokenizer: &Tokenizer, scored: &[ScoredToken]) -> Result<String> {
    let show = |token| -> Result<String> {
        let text = tokenizer.decode(&[token], DecodeOptions { skip_special: false, continues: true })?;
        Ok(format!("{text:?}"))
    };
    let mut out = String::new();
    for s in scored {
        out += &format!("{:9.4}  {}", s.logprob, show(s.token)?);
        if let Some(best) = s.top.first().filter(|best| best.token != s.token) {
            out += &format!("  (best: {} {:.4})", show(best.token)?, best.logprob);
        }
        out.push('\n');
    }
    let total: f64 = scored.iter().map(|s| f64::from(s.logprob)).sum();
    out += &format!("{total:9.4}  in all, {} tokens\n", scored.len());
    Ok(out)
}
