//! The speed of a model on this machine, for prompts and for decoding, measured as `llama-bench` does.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use breakers_core::{LanguageModel, SamplingConfig, SequenceId, TokenId};
use breakers_eval::stats::median;
use breakers_spec_decode::{Config, Decoding, DraftLength, NoDrafter};
use serde_json::{Value, json};

use super::{Bar, CacheArgs, Error, ModelArgs, Result, SamplingArgs, print, print_json, tokens_per_second};

/// Flags of `breakers bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// The model to measure.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The key-value cache.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// How tokens are chosen. The cost of choosing is shown next to the speeds.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Tokens of the prompt.
    #[arg(short, long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt_tokens: u32,
    /// Tokens decoded after it, one at a time.
    #[arg(short = 'n', long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub new_tokens: u32,
    /// Measured rounds, after a warm-up round.
    #[arg(short, long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Answer with one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Speeds in tokens per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// For the prompt, in as many passes as the model needs for it.
    pub prefill: f64,
    /// For the tokens after it, one per pass.
    pub decode: f64,
    /// The share of the decoding time that is spent choosing tokens, outside of the model: 0 to 1.
    pub choosing: f64,
}

/// Feeds the prompt, then `n_tokens` tokens one at a time, each chosen by `sampling`.
///
/// # Errors
/// Those of the decode loop: an empty prompt, settings out of range, the model's own.
pub fn measure(
    model: &mut impl LanguageModel,
    prompt: &[TokenId],
    n_tokens: usize,
    sampling: &SamplingConfig,
    seed: u64,
) -> Result<Speed> {
    let config = Config {
        // The prompt gives the first token, each pass one more.
        max_tokens: n_tokens + 1,
        sampling: sampling.clone(),
        seed,
        // If a text could end early, the rounds would not be comparable.
        end_tokens: Some(Vec::new()),
        draft_length: DraftLength::Fixed(0),
        ..Config::default()
    };
    let sequence = model.open()?;
    let speed = decode(model, sequence, prompt, &config);
    model.close(sequence);
    speed
}

fn decode(
    model: &mut impl LanguageModel,
    sequence: SequenceId,
    prompt: &[TokenId],
    config: &Config,
) -> Result<Speed> {
    let start = Instant::now();
    let mut decoding = Decoding::new(model, sequence, prompt, config)?;
    let (mut prefilled, mut in_model) = (start, Duration::ZERO);
    while let Some(mut step) = decoding.plan(&mut NoDrafter, usize::MAX)? {
        let begun = Instant::now();
        model.forward(std::slice::from_mut(&mut step))?;
        let passed = begun.elapsed();
        let is_prompt = decoding.is_in_prompt();
        decoding.absorb(model, &mut NoDrafter, &step, passed.as_secs_f64())?;
        if is_prompt {
            prefilled = Instant::now();
        } else {
            in_model += passed;
        }
    }
    let decoded = prefilled.elapsed();
    Ok(Speed {
        prefill: tokens_per_second(prompt.len(), prefilled - start),
        decode: tokens_per_second(decoding.output().len() - 1, decoded),
        choosing: 1.0 - in_model.as_secs_f64() / decoded.as_secs_f64().max(f64::MIN_POSITIVE),
    })
}

/// Runs the bench and shows medians, with the slowest and the fastest round.
///
/// # Errors
/// [`Error::Usage`] for flags that cannot be obeyed, such as more tokens than the model's context holds; the
/// model's own errors.
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
    // Any tokens will do, since the cost does not depend on their values. Low ids are special tokens in many
    // vocabularies.
    let prompt: Vec<TokenId> =
        (0..n_prompt).map(|i| ((1000 + i * 7919) % info.vocab_size) as TokenId).collect();
    let (sampling, seed) = (arguments.sampling.config()?, arguments.sampling.seed());
    let mut runner = arguments.cache.runner(&loaded.model)?;
    let bar = Bar::new(arguments.repeat as usize + 1, "rounds");
    bar.doing("warming up");
    measure(&mut runner, &prompt, n_new.min(8), &sampling, seed)?;
    bar.step();
    let mut speeds = Vec::new();
    for round in 1..=arguments.repeat {
        bar.doing(&format!("round {round}"));
        speeds.push(measure(&mut runner, &prompt, n_new, &sampling, seed)?);
        bar.step();
    }
    drop(bar);
    let tests = [
        (format!("prompt of {n_prompt}"), "prefill", speeds.iter().map(|s| s.prefill).collect::<Vec<_>>()),
        (format!("decode of {n_new}"), "decode", speeds.iter().map(|s| s.decode).collect()),
    ];
    let choosing: f64 = median(&speeds.iter().map(|s| s.choosing).collect::<Vec<_>>())?;
    if arguments.json {
        let mut answer =
            json!({ "provenance": serde_json::to_value(arguments.model.provenance(&[&loaded])?)? });
        for (_, name, rates) in &tests {
            let median: f64 = median(rates)?;
            answer[*name] = json!({ "median_tok_s": median, "rounds_tok_s": rates });
        }
        answer["choosing"] = json!(choosing);
        return print_json(&answer).map(|()| ExitCode::SUCCESS);
    }
    for (name, _, rates) in &tests {
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = rates.iter().copied().fold(0.0, f64::max);
        print(&format!("{name:16} {:9.1} token/s  ({least:.1} to {most:.1})\n", median(rates)?))?;
    }
    let micros = choosing * 1e6 / median(&tests[1].2)?;
    print(&format!("choosing a token {micros:9.0} µs       ({:.1} % of decoding)\n", choosing * 100.0))?;
    Ok(ExitCode::SUCCESS)
}

/// The JSON answer of examples that measure one round.
pub fn speed_json(speed: Speed) -> Value {
    json!({ "prefill_tok_s": speed.prefill, "decode_tok_s": speed.decode })
}
