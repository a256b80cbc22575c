//! Speed of a model on this machine: prompts and decoding, as `llama-bench` counts them.

use std::process::ExitCode;
use std::time::Instant;

use breakers_core::{LanguageModel, Step, TokenId, Want};
use breakers_eval::stats::median;
use serde_json::{Value, json};

use super::{Bar, CacheArgs, Error, ModelArgs, Result, print, print_json, tokens_per_second};

/// Flags of `breakers bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// What to run.
    #[command(flatten)]
    pub model: ModelArgs,
    /// What to keep keys and values in.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Tokens of the prompt.
    #[arg(short, long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt_tokens: u32,
    /// Tokens decoded behind it, one at a time.
    #[arg(short = 'n', long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub new_tokens: u32,
    /// Measured rounds, after one that is not counted.
    #[arg(short, long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Answer with one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Tokens a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Of the prompt, in as many passes as the model makes of it.
    pub prefill: f64,
    /// Of the tokens behind it, one a pass.
    pub decode: f64,
}

/// Feeds the prompt, then `n_tokens` tokens one at a time, each the most likely one after the last.
///
/// # Errors
/// [`Error::Usage`] for an empty prompt; the model's own.
pub fn measure(model: &mut impl LanguageModel, prompt: &[TokenId], n_tokens: usize) -> Result<Speed> {
    let sequence = model.open()?;
    let mut feed = |tokens: Vec<TokenId>| -> Result<TokenId> {
        let n = tokens.len();
        let mut steps = [Step::last(sequence, tokens, Want::ArgMax)];
        model.forward(&mut steps)?;
        model.commit(sequence, n)?;
        let best = steps[0].outputs.last().and_then(|row| row.output.best());
        best.ok_or_else(|| Error::Usage("the prompt is empty".to_owned()))
    };
    let start = Instant::now();
    let mut timed = || -> Result<Speed> {
        let mut token = feed(prompt.to_vec())?;
        let prefilled = Instant::now();
        for _ in 0..n_tokens {
            token = feed(vec![token])?;
        }
        let decode = tokens_per_second(n_tokens, prefilled.elapsed());
        Ok(Speed { prefill: tokens_per_second(prompt.len(), prefilled - start), decode })
    };
    let speed = timed();
    model.close(sequence);
    speed
}

/// Runs the bench and shows medians, with the slowest and the fastest round.
///
/// # Errors
/// [`Error::Usage`] for flags that cannot be obeyed, more tokens than the model's context among them; the model's own.
pub fn bench(arguments: &BenchArgs) -> Result<ExitCode> {
    let loaded = arguments.model.load()?;
    let info = loaded.model.info();
    let (n_prompt, n_new) = (arguments.prompt_tokens as usize, arguments.new_tokens as usize);
    if n_prompt + n_new > info.max_context {
        return Err(Error::Usage(format!(
            "{n_prompt} and {n_new} tokens are more than the model's context of {}",
            info.max_context
        )));
    }
    // Any tokens do: products do not depend on their values. Low ids are special tokens in many vocabularies.
    let prompt: Vec<TokenId> =
        (0..n_prompt).map(|i| ((1000 + i * 7919) % info.vocab_size) as TokenId).collect();
    let mut runner = arguments.cache.runner(&loaded.model)?;
    let bar = Bar::new(arguments.repeat as usize + 1, "rounds");
    bar.doing("warming up");
    measure(&mut runner, &prompt, n_new.min(8))?;
    bar.step();
    let mut speeds = Vec::new();
    for round in 1..=arguments.repeat {
        bar.doing(&format!("round {round}"));
        speeds.push(measure(&mut runner, &prompt, n_new)?);
        bar.step();
    }
    drop(bar);
    let tests = [
        (format!("prompt of {n_prompt}"), "prefill", speeds.iter().map(|s| s.prefill).collect::<Vec<_>>()),
        (format!("decode of {n_new}"), "decode", speeds.iter().map(|s| s.decode).collect()),
    ];
    if arguments.json {
        let mut answer =
            json!({ "provenance": serde_json::to_value(arguments.model.provenance(&[&loaded])?)? });
        for (_, name, rates) in &tests {
            let median: f64 = median(rates)?;
            answer[*name] = json!({ "median_tok_s": median, "rounds_tok_s": rates });
        }
        return print_json(&answer).map(|()| ExitCode::SUCCESS);
    }
    for (name, _, rates) in &tests {
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = rates.iter().copied().fold(0.0, f64::max);
        print(&format!("{name:16} {:9.1} token/s  ({least:.1} to {most:.1})\n", median(rates)?))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The answer of examples that measure one round.
pub fn speed_json(speed: Speed) -> Value {
    json!({ "prefill_tok_s": speed.prefill, "decode_tok_s": speed.decode })
}
