//! Plain greedy decoding against speculative decoding: the same tokens, faster where the text repeats itself.
//!
//! ```sh
//! cargo run --release --example spec_decode
//! cargo run --release --example spec_decode -- --model qwen2.5-coder-1.5b --draft qwen2.5-coder-0.5b
//! cargo run --release --example spec_decode -- --prompts benches/speculation_prompts.json --batch 4
//! ```
//! Plain decoding and every drafter run on each prompt in turn, `--repeat` times; medians count. The table goes
//! to standard output; `report.json`, `report.md` and a chart go into the folder `--out`. If any drafter's tokens
//! differ from those of plain decoding, the exit code is 1. With `--batch`, plain decoding of one text at a time stays
//! the measure of speed and tokens.

mod measure;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use breakers::cli::{
    CacheArgs, Error, LoadedModel, ModelArgs, PromptArgs, Result, SamplingArgs, finish, read_text, run,
};
use breakers_core::{Message, TokenId};
use breakers_model::tokenizer::{EncodeOptions, Tokenizer};
use breakers_spec_decode::{
    BatchSpeculator, Config, DraftLength, Drafter, ModelDraftConfig, ModelDrafter, NgramDrafter, NoDrafter,
    TokenizerFingerprint,
};
use clap::{Parser, ValueEnum};

use crate::measure::{Contestant, Measurement, Prompt};

/// Built-in prompts: name and text.
const PROMPTS: [(&str, &str); 3] = [
    ("chat", include_str!("prompts/chat.txt")),
    ("summarize", include_str!("prompts/summarize.txt")),
    ("code edit", include_str!("prompts/code_edit.txt")),
];

/// Draft tokens at most, where costs decide how many.
const MAX_DRAFT: usize = 16;

/// Plain decoding against speculative decoding.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// A smaller model with the same tokenizer that drafts, by name or path.
    #[arg(long, value_name = "NAME|PATH")]
    draft: Option<String>,
    /// Which drafters run.
    #[arg(long, value_enum, default_value_t = DrafterChoice::All)]
    drafter: DrafterChoice,
    /// Tokens drafted in a step; default: as many as pay off, 16 at most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    draft_length: Option<u16>,
    #[command(flatten)]
    prompt: PromptArgs,
    /// A JSON file of prompts, `[{"name": …, "text": …}]`; those with the same name share the lines of the first table.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_file"])]
    prompts: Option<String>,
    /// New tokens at most, for each prompt.
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Texts that are generated at a time, in shared passes.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    batch: u16,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Runs of each drafter on each prompt.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    repeat: u16,
    /// Folder of the report.
    #[arg(long, default_value = "target/reports/spec_decode", value_name = "FOLDER")]
    out: PathBuf,
    /// Answer with one JSON object: the report.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DrafterChoice {
    /// Those that apply: n-gram, and the draft model if one is given.
    All,
    /// Prompt lookup by n-grams.
    Ngram,
    /// The draft model.
    Draft,
}

fn main() -> ExitCode {
    run(|| {
        let arguments = Arguments::parse();
        if arguments.drafter == DrafterChoice::Draft && arguments.draft.is_none() {
            return Err(Error::Usage("--drafter draft needs --draft MODEL".to_owned()));
        }
        let config = Config {
            max_tokens: arguments.max_tokens as usize,
            sampling: arguments.sampling.config()?,
            seed: arguments.sampling.seed,
            draft_length: match arguments.draft_length {
                Some(n) => DraftLength::Fixed(n.into()),
                None => DraftLength::Adaptive { max: MAX_DRAFT },
            },
            ..Config::default()
        };
        let texts = match (arguments.prompt.read()?, &arguments.prompts) {
            (Some(text), _) => vec![("prompt".to_owned(), text)],
            (None, Some(file)) => read_prompts(file)?,
            (None, None) => {
                PROMPTS.map(|(name, text)| (name.to_owned(), text.trim_end().to_owned())).to_vec()
            }
        };
        let target = arguments.model.load()?;
        let draft = match &arguments.draft {
            Some(name) if arguments.drafter != DrafterChoice::Ngram => {
                Some(arguments.model.load_other(name)?)
            }
            _ => None,
        };
        let prompts = texts
            .into_iter()
            .map(|(name, text)| Ok(Prompt { name, ids: encode(&target, &text)? }))
            .collect::<Result<Vec<_>>>()?;
        let contestants = contestants(&arguments, &target, draft.as_ref(), config.sampling.is_greedy())?;

        let mut runner = arguments.cache.runner(&target.model)?;
        let measurement = measure::run(&mut runner, prompts, contestants, &config, arguments.repeat.into())?;
        let models: Vec<&LoadedModel> = std::iter::once(&target).chain(&draft).collect();
        let mut provenance = arguments.model.provenance(&models)?;
        provenance.seeds = vec![config.seed];
        let report = report::build(&measurement, provenance)?;
        let mut json = if arguments.json { Some(report.to_json()?) } else { None };
        if let Some(json) = &mut json {
            json["same_tokens"] = measurement.all_same().into();
        }
        finish(&report, &arguments.out, json)?;
        Ok(verdict(&measurement))
    })
}

fn verdict(measurement: &Measurement) -> ExitCode {
    if measurement.all_same() {
        return ExitCode::SUCCESS;
    }
    for difference in measurement.differences() {
        eprintln!("error: {difference}");
    }
    ExitCode::FAILURE
}

/// Names and texts of a file of prompts.
fn read_prompts(file: &str) -> Result<Vec<(String, String)>> {
    let wrong = |what: &str| Error::Usage(format!("--prompts {file}: {what}"));
    let json: serde_json::Value =
        serde_json::from_str(&read_text(file)?).map_err(|error| wrong(&error.to_string()))?;
    let prompts = json.as_array().filter(|prompts| !prompts.is_empty());
    let prompts = prompts.ok_or_else(|| wrong("expected an array with at least one prompt"))?;
    let field = |prompt: &serde_json::Value, key: &str| prompt[key].as_str().map(str::to_owned);
    prompts
        .iter()
        .map(|prompt| field(prompt, "name").zip(field(prompt, "text")))
        .collect::<Option<_>>()
        .ok_or_else(|| wrong("every prompt needs a \"name\" and a \"text\""))
}

/// A prompt in the model's chat template if it has one, as it is otherwise.
fn encode(target: &LoadedModel, text: &str) -> Result<Vec<TokenId>> {
    let tokenizer = target.model.tokenizer();
    let ids = match target.model.chat_template() {
        Some(template) => {
            let text = template.render(&[Message::new("user", text)], None, true)?;
            tokenizer.encode(&text, EncodeOptions { add_special: false, parse_special: true })?
        }
        None => tokenizer.encode(text, EncodeOptions::default())?,
    };
    if ids.is_empty() { Err(Error::Usage("the prompt is empty".to_owned())) } else { Ok(ids) }
}

/// Plain decoding of one text at a time first, then what was asked for.
fn contestants(
    arguments: &Arguments,
    target: &LoadedModel,
    draft: Option<&LoadedModel>,
    is_greedy: bool,
) -> Result<Vec<Contestant>> {
    type MakeDrafter = Box<dyn FnMut() -> breakers_spec_decode::Result<Box<dyn Drafter>>>;
    let contestant = |name: &str, batch: u16, make: MakeDrafter, same_tokens| Contestant {
        name: if batch > 1 { format!("{name}, {batch} at a time") } else { name.to_owned() },
        batch: batch.into(),
        speculator: BatchSpeculator::new(make),
        promises_same_tokens: same_tokens,
    };
    let plain = || -> MakeDrafter { Box::new(|| Ok(Box::new(NoDrafter))) };
    let batch = arguments.batch;
    let mut all = vec![contestant("plain", 1, plain(), true)];
    if batch > 1 {
        all.push(contestant("plain", batch, plain(), true));
    }
    if arguments.drafter != DrafterChoice::Draft {
        all.push(contestant("n-gram", batch, Box::new(|| Ok(Box::<NgramDrafter>::default())), true));
    }
    if let Some(draft) = draft {
        let model = draft.model.clone();
        let (ours, theirs) = (fingerprint(model.tokenizer()), fingerprint(target.model.tokenizer()));
        let make = move || -> breakers_spec_decode::Result<Box<dyn Drafter>> {
            Ok(Box::new(ModelDrafter::new(model.runner(), ours, theirs, ModelDraftConfig::default())?))
        };
        // Where a draft model samples, the distribution is that of plain decoding, not the tokens.
        all.push(contestant("draft model", batch, Box::new(make), is_greedy));
    }
    Ok(all)
}

/// What identifies a vocabulary. Unused ids at its end pad the embedding table and do not count.
fn fingerprint(tokenizer: &Tokenizer) -> TokenizerFingerprint {
    let tokens = (0..tokenizer.vocab_size() as TokenId).map(|t| tokenizer.token_bytes(t).unwrap_or_default());
    let mut tokens: Vec<&[u8]> = tokens.collect();
    while tokens.last().is_some_and(|t| t.is_empty()) {
        tokens.pop();
    }
    TokenizerFingerprint::from_tokens(tokens)
}
