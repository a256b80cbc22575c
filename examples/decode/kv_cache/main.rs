//! Compressed key-value caches against the f16 cache: bytes, quality, speed.
//!
//! ```sh
//! cargo run --release --example kv_cache -- --text BOOK.txt
//! cargo run --release --example kv_cache -- --text BOOK.txt \
//!     --caches f16,water-4,kivi-4 --depths 1024,4096,8192
//! ```
//! Quality: windows of `--context` tokens of the text, of which only the second half counts; all caches see
//! the same passes, and their predictions are compared with those of the f16 cache (mean Kullback–Leibler
//! divergence). Bits an element are all bytes that the cache holds, divided by the number of elements of keys
//! and values, averaged over the places that count. Speed: single tokens after `--depths` tokens, all caches
//! in turn. The tables go to standard output; `report.json`, `report.md` and charts into the folder `--out`.

mod memory;
mod needle;
mod quality;
mod report;
mod speed;

use std::path::PathBuf;
use std::process::ExitCode;

use breakers_cli::{Error, ModelArgs, Result, cache_named, finish, print_json, read_text, run};
use breakers_eval::needle::NeedleConfig;
use breakers_kv_cache::coders::CODERS;
use breakers_tokenizer::EncodeOptions;
use clap::Parser;

/// The book's own pages: enough text for a first look.
const TEXT: &str = concat!(
    include_str!("../../../docs/performance.md"),
    include_str!("../../../docs/gpu.md"),
    include_str!("../../../ARCHITECTURE.md"),
    include_str!("../../../CONTRIBUTING.md"),
);

/// Compressed key-value caches against the f16 cache.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    /// The text; - reads standard input. Without it a few pages of this project's documentation.
    #[arg(long, value_name = "FILE")]
    text: Option<String>,
    /// Caches, by name; f16 is always the first. "all": every one.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "q8_0,q4_0,q4_0-rotated,kivi-4,turbo-4,turbo-3,kvarn-4,water-5,water-4,water-3"
    )]
    caches: Vec<String>,
    /// Tokens of a window of text.
    #[arg(long, default_value_t = 2048, value_name = "N")]
    context: usize,
    /// The most windows; 0: no quality.
    #[arg(long, default_value_t = 2, value_name = "N")]
    windows: usize,
    /// Depths at which decoding is timed; just 0: none.
    #[arg(long, value_delimiter = ',', default_values_t = [1024usize, 2048])]
    depths: Vec<usize>,
    /// Tokens decoded in a round.
    #[arg(long, default_value_t = 8, value_name = "N")]
    tokens: usize,
    /// Rounds of decoding at each depth.
    #[arg(long, default_value_t = 5, value_name = "N")]
    repeat: usize,
    /// Lengths of texts in which a number is hidden and asked for; none: no needles.
    #[arg(long, value_delimiter = ',', value_name = "N")]
    needle_lengths: Vec<usize>,
    /// Where the number is hidden, in percent of the length.
    #[arg(long, value_delimiter = ',', default_values_t = [0usize, 25, 50, 75, 100], value_name = "N")]
    needle_depths: Vec<usize>,
    /// Numbers hidden at each place, one at a time.
    #[arg(long, default_value_t = 3, value_name = "N")]
    needles: usize,
    /// Tokens to fill each cache with, in a process of its own whose memory is measured; 0: none.
    #[arg(long, default_value_t = 0, value_name = "N")]
    memory_tokens: usize,
    /// Fill only this cache, with --memory-tokens, and report the memory that it takes.
    #[arg(long, value_name = "NAME", hide = true)]
    memory_of: Option<String>,
    /// The folder for the report.
    #[arg(long, default_value = "target/reports/kv_cache", value_name = "FOLDER")]
    out: PathBuf,
    /// Answer with one JSON object: the report.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    run(|| {
        let arguments = Arguments::parse();
        let names = names(&arguments.caches);
        let caches = names.iter().map(|name| cache_named(name)).collect::<Result<Vec<_>>>()?;
        let text = match &arguments.text {
            Some(file) => read_text(file)?,
            None => TEXT.to_owned(),
        };
        let loaded = arguments.model.load()?;
        let model = &loaded.model;
        if let Some(name) = &arguments.memory_of {
            let memory = memory::fill(model, &cache_named(name)?, arguments.memory_tokens)?;
            print_json(&memory)?;
            return Ok(ExitCode::SUCCESS);
        }
        let ids =
            model.tokenizer().encode(&text, EncodeOptions { add_special: true, parse_special: false })?;
        let limit = model.info().max_context;
        let depths: Vec<usize> = arguments.depths.iter().copied().filter(|depth| *depth > 0).collect();
        let longest = depths.iter().max().map_or(0, |d| d + arguments.tokens * arguments.repeat);
        if !(4..=limit).contains(&arguments.context) || longest > limit {
            return Err(Error::Usage(format!("{} takes 4 to {limit} tokens", loaded.name)));
        }
        if depths.windows(2).any(|pair| pair[1] < pair[0] + arguments.tokens * arguments.repeat) {
            return Err(Error::Usage("--depths must ascend, by more than is decoded at each".to_owned()));
        }
        if ids.len() < arguments.context && arguments.windows > 0 || ids.is_empty() {
            let (n, context) = (ids.len(), arguments.context);
            return Err(Error::Usage(format!("the text has {n} tokens, fewer than a window of {context}")));
        }
        let quality = match arguments.windows {
            0 => Vec::new(),
            n => quality::measure(model, &caches, &ids, arguments.context, n)?,
        };
        let speed = match depths.is_empty() {
            true => Vec::new(),
            false => speed::measure(model, &caches, &ids, &depths, arguments.tokens, arguments.repeat)?,
        };
        if arguments.needle_lengths.iter().any(|length| *length > limit)
            || arguments.needle_depths.iter().any(|depth| *depth > 100)
        {
            return Err(Error::Usage(format!("needles lie at 0 to 100 % of at most {limit} tokens")));
        }
        let config = NeedleConfig {
            lengths: arguments.needle_lengths.clone(),
            depths: arguments.needle_depths.clone(),
            n_facts: arguments.needles,
        };
        let needles = needle::measure(model, &caches, &ids, &config)?;
        if arguments.memory_tokens > limit {
            return Err(Error::Usage(format!("--memory-tokens: {} takes {limit} tokens", loaded.name)));
        }
        let memory = match arguments.memory_tokens {
            0 => Vec::new(),
            n => memory::measure(&names, &arguments.model.model, n)?,
        };
        let provenance = arguments.model.provenance(&[&loaded])?;
        let measured = report::Measured {
            needles: &needles,
            memory: &memory,
            model,
            names: &names,
            quality: &quality,
            depths: &depths,
            speed: &speed,
        };
        let report = report::build(&measured, arguments.context, provenance)?;
        let json = if arguments.json { Some(report.to_json()?) } else { None };
        finish(&report, &arguments.out, json)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// The caches asked for, f16 first.
fn names(asked: &[String]) -> Vec<String> {
    let all = CODERS.iter().map(|coder| coder.name.to_owned());
    let asked: Vec<String> =
        if asked.iter().any(|name| name == "all") { all.collect() } else { asked.to_vec() };
    let others = asked.into_iter().filter(|name| name != "f16");
    std::iter::once("f16".to_owned()).chain(others).collect()
}
