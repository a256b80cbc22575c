//! Perplexity of a text, by the protocol of llama.cpp's program of the same name.
//!
//! ```sh
//! cargo run --release --example perplexity -- --file README.md
//! ```
//! The text is cut into windows of `--context` tokens without overlap, and a remainder is dropped. The second
//! half of each window counts. JSON: `perplexity`, `nll` (nats a token), `n_tokens` (those that count),
//! `tok_s` (those fed).

use std::process::ExitCode;
use std::time::Instant;

use breakers_cli::{Bar, CacheArgs, Error, ModelArgs, print, print_json, read_text, run, tokens_per_second};
use breakers_eval::score::perplexity;
use breakers_tokenizer::EncodeOptions;
use clap::Parser;
use serde_json::json;

/// Perplexity of a text.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// The text; - reads standard input.
    #[arg(long, value_name = "FILE")]
    file: String,
    /// Tokens of a window.
    #[arg(long, default_value_t = 512, value_name = "N")]
    context: usize,
    /// Answer with one JSON object.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    run(|| {
        let arguments = Arguments::parse();
        let text = read_text(&arguments.file)?;
        let loaded = arguments.model.load()?;
        let tokenizer = loaded.model.tokenizer();
        let ids = tokenizer.encode(&text, EncodeOptions { add_special: true, parse_special: false })?;
        let context = arguments.context;
        let limit = loaded.model.info().max_context;
        if !(4..=limit).contains(&context) {
            return Err(Error::Usage(format!("--context {context}: {} takes 4 to {limit}", loaded.name)));
        }
        if ids.len() < context {
            let n = ids.len();
            return Err(Error::Usage(format!("the text has {n} tokens, fewer than a window of {context}")));
        }
        let bos = if tokenizer.adds_bos() { tokenizer.bos() } else { None };
        let bar = Bar::new(ids.len() / context, "windows");
        let start = Instant::now();
        let mut runner = arguments.cache.runner(&loaded.model)?;
        let result = perplexity(&mut runner, &ids, context, bos, |done, _| bar.done(done))?;
        let rate = tokens_per_second(ids.len() / context * context, start.elapsed());
        drop(bar);
        if arguments.json {
            print_json(&json!({
                "perplexity": result.perplexity,
                "nll": result.nll,
                "n_tokens": result.n_tokens,
                "tok_s": rate,
            }))?;
        } else {
            print(&format!(
                "perplexity {:.4} over {} tokens ({:.5} nats a token), {rate:.1} token/s\n",
                result.perplexity, result.n_tokens, result.nll
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}
