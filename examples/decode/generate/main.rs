//! Continues a prompt, or chats in the terminal.
//!
//! ```sh
//! cargo run --release --example generate                              # a chat
//! cargo run --release --example generate -- --prompt 'Why is the sky blue?'
//! cargo run --release --example generate -- --raw --prompt 'Once upon a time' --temperature 0.8 --seed 1
//! cargo run --release --example generate -- --draft ngram                 # the same answers, sooner
//! ```
//! A prompt is put into the model's chat template if it has one; `--raw` leaves it as it is. With `--draft` the text
//! is the same, and comes sooner where it can be guessed.
//!
//! JSON: `prompt_ids`, `output_ids`, `text`, `finish`, `steps` (of each token `id` and `top`, the five most
//! likely tokens with their log-probabilities), `prefill_tok_s`, `decode_tok_s`.

mod chat;

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;

use breakers::cli::{
    CacheArgs, DraftArgs, Error, LoadedModel, ModelArgs, N_TOP, PromptArgs, Result, SamplingArgs, ScoredStep,
    bench, print, print_json, read_ids, read_text, run, step_json,
};
use breakers_core::{FinishReason, LanguageModel, SamplingConfig, TokenId};
use breakers_spec_decode::{Config, Decoding, Drafter, Speculator};
use breakers_tokenizer::{ChatTemplate, EncodeOptions};
use clap::Parser;
use serde_json::{Value, json};

/// Continue a prompt, or chat in the terminal.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    draft: DraftArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    /// What the model is told before the conversation; its template has a text of its own otherwise.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", allow_hyphen_values = true)]
    system: Option<String>,
    /// A file that holds what --system would say.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["raw", "system"])]
    system_file: Option<String>,
    /// A file with a Jinja2 template, in place of the model's own.
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    chat_template: Option<String>,
    /// Continue the prompt as it is, without chat template.
    #[arg(long)]
    raw: bool,
    /// New tokens at most.
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
    /// End the text before this one appears; may be given several times.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Answer with one JSON object.
    #[arg(long)]
    json: bool,
    /// Measure speed alone: the file's `prompt_ids` in one pass, then `--max-tokens` passes over one token.
    #[arg(long, hide = true, value_name = "FILE", requires = "json")]
    measure: Option<String>,
}

fn main() -> ExitCode {
    run(|| {
        let arguments = Arguments::parse();
        let sampling = arguments.sampling.config()?;
        let prompt = arguments.prompt.read()?;
        let system = match &arguments.system_file {
            Some(file) => Some(read_text(file)?),
            None => arguments.system.clone(),
        };
        if prompt.is_none() && arguments.json && arguments.measure.is_none() {
            return Err(Error::Usage("--json needs --prompt or --prompt-file".to_owned()));
        }
        let loaded = arguments.model.load()?;
        let template = template(&arguments, &loaded)?;
        if template.is_none() && system.is_some() {
            return Err(Error::Usage(format!("--system: {} has no chat template", loaded.name)));
        }
        let config = Config {
            max_tokens: arguments.max_tokens,
            sampling,
            seed: arguments.sampling.seed(),
            draft_length: arguments.draft.length(),
            top_logprobs: arguments.json.then_some(N_TOP),
            ..Config::default()
        };
        if let Some(file) = &arguments.measure {
            print_json(&measure(&loaded, &arguments.cache, &read_ids(file)?.prompt, arguments.max_tokens)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let drafter = arguments.draft.drafter(&arguments.model, &loaded)?;
        let speculator = Speculator::new(drafter);
        match prompt {
            Some(prompt) => {
                let prompt = encode(template.as_ref(), system.as_deref(), &loaded, &prompt)?;
                answer(&arguments, &loaded, prompt, &config, speculator)?;
            }
            None => {
                let session = chat::Session::new(
                    &loaded,
                    arguments.cache.runner(&loaded.model)?,
                    speculator,
                    config,
                    arguments.stop.clone(),
                )?;
                chat::run(&loaded, session, system.as_deref(), template.as_ref())?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The template that prompts are put into: the one of a file, or the model's own, if it has one.
fn template(arguments: &Arguments, loaded: &LoadedModel) -> Result<Option<ChatTemplate>> {
    if arguments.raw {
        return Ok(None);
    }
    let own = loaded.model.chat_template();
    let Some(file) = &arguments.chat_template else { return Ok(own?.cloned()) };
    let tokenizer = loaded.model.tokenizer();
    let spelled =
        |token: Option<TokenId>| Some(String::from_utf8_lossy(tokenizer.token_bytes(token?)?).into_owned());
    let template = ChatTemplate::new(read_text(file)?)?;
    if template.ignores_messages() {
        eprintln!("warning: {file} does not look at the conversation: its prompt is always the same");
    }
    Ok(Some(template.with_tokens(spelled(tokenizer.bos()), spelled(tokenizer.eos()))))
}

/// The tokens of a prompt, in a chat template where there is one.
fn encode(
    template: Option<&ChatTemplate>,
    system: Option<&str>,
    loaded: &LoadedModel,
    prompt: &str,
) -> Result<Vec<TokenId>> {
    let tokenizer = loaded.model.tokenizer();
    let Some(template) = template else { return Ok(tokenizer.encode(prompt, EncodeOptions::default())?) };
    Ok(tokenizer.encode_chat(template, &chat::opening(system, prompt), &[])?)
}

/// One prompt, one answer.
fn answer(
    arguments: &Arguments,
    loaded: &LoadedModel,
    prompt: Vec<TokenId>,
    config: &Config,
    mut speculator: Speculator<Box<dyn Drafter + Send>>,
) -> Result {
    if prompt.is_empty() {
        return Err(Error::Usage("the prompt is empty".to_owned()));
    }
    let mut runner = arguments.cache.runner(&loaded.model)?;
    let sequence = runner.open()?;
    let vocabulary = Arc::new(loaded.model.tokenizer().clone());
    let mut decoding =
        Decoding::new(&runner, sequence, &prompt, config)?.with_text(vocabulary, &arguments.stop);
    let (mut text, mut written) = (String::new(), Ok(()));
    speculator.drive(&mut runner, &mut decoding, |decoding, _| {
        let piece = decoding.take_text();
        match arguments.json {
            true => text += &piece,
            false => written = print(&piece),
        }
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written?;
    let finish = finish_name(decoding.finish());
    let stats = decoding.stats();
    let (prefill, decode) = (stats.prefill_tokens_per_second(), stats.decode_tokens_per_second());
    if arguments.json {
        let output = decoding.output();
        let steps = output.iter().zip(decoding.scores());
        let steps: Vec<Value> = steps
            .map(|(&token, score)| step_json(ScoredStep { token, logprob: None, top: &score.top }))
            .collect();
        print_json(&json!({
            "prompt_ids": prompt,
            "output_ids": output,
            "text": text,
            "finish": finish,
            "steps": steps,
            "prefill_tok_s": prefill,
            "decode_tok_s": decode,
        }))
    } else {
        print("\n")?;
        let drafts = match stats.drafted {
            0 => String::new(),
            _ => format!("; {:.2} tokens a pass", stats.tokens_per_step()),
        };
        eprintln!(
            "[{} + {} tokens, {finish}; prompt {prefill:.1} token/s, answer {decode:.1} token/s{drafts}]",
            prompt.len(),
            decoding.output().len()
        );
        Ok(())
    }
}

fn finish_name(finish: Option<FinishReason>) -> &'static str {
    match finish {
        Some(FinishReason::EndOfText) => "end of text",
        Some(FinishReason::Stop) => "stop string",
        Some(FinishReason::Length) => "length",
        Some(FinishReason::ContextFull) => "context full",
        _ => "cancelled",
    }
}

/// Speed of a prompt's pass and of passes over one token with greedy choice, after an untimed pass of each.
fn measure(loaded: &LoadedModel, cache: &CacheArgs, prompt: &[TokenId], n_tokens: usize) -> Result<Value> {
    let mut runner = cache.runner(&loaded.model)?;
    let greedy = SamplingConfig::greedy();
    bench::measure(&mut runner, prompt, 1, &greedy, 0)?;
    Ok(bench::speed_json(bench::measure(&mut runner, prompt, n_tokens, &greedy, 0)?))
}
