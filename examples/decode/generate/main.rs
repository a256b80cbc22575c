//! Continues a prompt, or chats in the terminal: `breakers run` and `breakers chat` as an example.
//!
//! ```sh
//! cargo run --release --example generate                              # a chat
//! cargo run --release --example generate -- --prompt 'Why is the sky blue?'
//! cargo run --release --example generate -- --raw --prompt 'Once upon a time' --temperature 0.8 --seed 1
//! cargo run --release --example generate -- --draft ngram                 # the same answers, sooner
//! ```
//! A prompt is put into the model's chat template if it has one; `--raw` leaves it as it is. With `--draft`
//! the text is the same, and comes sooner if it can be guessed.
//!
//! JSON: `prompt_ids`, `output_ids`, `text`, `finish`, `steps` (of each token `id` and `top`, the five most
//! likely tokens with their log-probabilities), `prefill_tok_s`, `decode_tok_s`.

use std::process::ExitCode;

use breakers_cli::generate::{GenerateArgs, TextArgs, any_text, generate};
use breakers_cli::{Result, bench, print_json, read_ids, run};
use breakers_core::SamplingConfig;
use clap::Parser;
use serde_json::Value;

/// Continue a prompt, or chat in the terminal.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    generate: GenerateArgs,
    /// Only measure speed: the file's `prompt_ids` in one pass, then `--max-tokens` passes over one token.
    #[arg(long, hide = true, value_name = "FILE", requires = "json")]
    measure: Option<String>,
}

fn main() -> ExitCode {
    run(|| {
        let arguments = Arguments::parse();
        match &arguments.measure {
            None => generate(&arguments.generate, &any_text),
            Some(file) => {
                print_json(&measure(&arguments.generate.text, file)?)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    })
}

/// Speed of a prompt's pass and of passes over one token with greedy choice, after an untimed pass of each.
fn measure(text: &TextArgs, file: &str) -> Result<Value> {
    let prompt = read_ids(file)?.prompt;
    let loaded = text.model.load()?;
    let mut runner = text.cache.runner(&loaded.model)?;
    let greedy = SamplingConfig::greedy();
    bench::measure(&mut runner, &prompt, 1, &greedy, 0)?;
    Ok(bench::speed_json(bench::measure(&mut runner, &prompt, text.max_tokens, &greedy, 0)?))
}
