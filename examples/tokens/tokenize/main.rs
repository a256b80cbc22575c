//! Text to token ids, and back with `--detokenize`.
//!
//! ```sh
//! echo -n 'Hello, world!' | cargo run --release --example tokenize
//! echo 19556 28 905 17 | cargo run --release --example tokenize -- --detokenize
//! ```
//! `--model` may also be `minilm`, a folder with a tokenizer.json, or such a file.
//!
//! JSON: `ids`, `text`.

use std::path::Path;
use std::process::ExitCode;

use breakers_cli::{Error, ModelArgs, Result, print, print_json, read_text, run};
use breakers_core::TokenId;
use breakers_gguf as gguf;
use breakers_tokenizer::{DecodeOptions, EncodeOptions, Tokenizer};
use clap::Parser;
use serde_json::json;

/// Text to token ids, and back.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    /// The text, or with --detokenize the ids; - reads standard input.
    #[arg(long, default_value = "-", value_name = "FILE")]
    text_file: String,
    /// Add the tokens that the model expects around a text.
    #[arg(long)]
    add_special: bool,
    /// Read the spelling of a control token as that token.
    #[arg(long)]
    parse_special: bool,
    /// The input is ids, as a JSON list or separated by spaces or commas; control tokens are
    /// shown as spelled.
    #[arg(long, conflicts_with_all = ["add_special", "parse_special"])]
    detokenize: bool,
    /// Answer with one JSON object.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    run(|| {
        let arguments = Arguments::parse();
        let tokenizer = load_tokenizer(&arguments.model.file()?)?;
        let input = read_text(&arguments.text_file)?;
        let (ids, text) = if arguments.detokenize {
            let ids = parse_ids(&input)?;
            let text = tokenizer.decode(&ids, DecodeOptions { skip_special: false, continues: false })?;
            (ids, text)
        } else {
            let options =
                EncodeOptions { add_special: arguments.add_special, parse_special: arguments.parse_special };
            (tokenizer.encode(&input, options)?, input)
        };
        if arguments.json {
            print_json(&json!({ "ids": ids, "text": text }))?;
        } else if arguments.detokenize {
            print(&format!("{text}\n"))?;
        } else {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            print(&format!("{}\n", ids.join(" ")))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Only the tokenizer: from a GGUF file only the metadata are read, from a folder its tokenizer.json.
fn load_tokenizer(path: &Path) -> Result<Tokenizer> {
    if path.is_dir() {
        return Ok(breakers_tokenizer_json::from_file(path.join("tokenizer.json"))?);
    }
    if path.extension().is_some_and(|extension| extension == "json") {
        return Ok(breakers_tokenizer_json::from_file(path)?);
    }
    Ok(Tokenizer::from_gguf(&gguf::File::open(path)?)?)
}

fn parse_ids(text: &str) -> Result<Vec<TokenId>> {
    let separators = |c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']');
    let words = text.split(separators).filter(|w| !w.is_empty());
    words.map(|w| w.parse().map_err(|_| Error::Usage(format!("`{w}` is not a token id")))).collect()
}
