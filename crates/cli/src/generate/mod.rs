//! Answers to prompts and conversations: what `breakers run`, `breakers chat` and the example `generate`
//! share.

mod answer;
mod chat;
mod interrupt;
mod session;

use std::io::IsTerminal as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use breakers_core::{
    AnswerForms, AnswerPlan, ChatReply, ChatRequest, FinishReason, LanguageModel as _, Message, TokenId,
};
use breakers_spec_decode::{Config, Decoding, Drafter, Speculator};
use breakers_tokenizer::{ChatTemplate, EncodeOptions};
use serde_json::{Value, json};

use self::answer::{Answer, call_json};
use self::session::Session;
use super::input::at_home;
use super::{
    CacheArgs, DraftArgs, Error, LoadedModel, ModelArgs, N_TOP, PromptArgs, Result, SamplingArgs, ScoredStep,
    print, print_json, read_text, step_json,
};

/// The form that a model's answers must have.
pub struct Form {
    /// What holds answers to it, and reads them.
    pub forms: Box<dyn AnswerForms>,
    /// What each answer is asked for beside its prompt: functions, and which of them may be called.
    pub request: ChatRequest,
}

/// Says which form the answers of a model must have, given its chat template if it uses one; `None`: they may
/// be any text.
pub type FormOf<'a> = &'a dyn Fn(&LoadedModel, Option<&ChatTemplate>) -> Result<Option<Form>>;

/// Answers may be any text.
///
/// # Errors
/// None.
pub fn any_text(_: &LoadedModel, _: Option<&ChatTemplate>) -> Result<Option<Form>> {
    Ok(None)
}

/// Holds a text to the form of its answer, and takes that answer apart.
fn hold(mut decoding: Decoding, form: Option<&Form>) -> Result<(Decoding, Answer)> {
    let seed = decoding.config().seed;
    let plan = form.map(|Form { forms, request }| forms.plan(request, seed)).transpose()?;
    let AnswerPlan { constraint, reader, .. } = plan.unwrap_or_default();
    if reader.is_some() {
        decoding = decoding.with_controls();
    }
    if let Some(constraint) = constraint {
        decoding = decoding.with_constraint(constraint);
    }
    Ok((decoding, Answer::new(reader)))
}

/// Added to the logits of end tokens that must not be chosen: larger than any logit in magnitude, but finite.
const NEVER: f32 = -1e30;

/// Flags of `breakers run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// The model, instead of --model.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub name: Option<String>,
    /// The prompt; put -- before it if it begins with a hyphen. Piped standard input is put before it, or is
    /// the prompt if none is given.
    #[arg(value_name = "PROMPT", conflicts_with_all = ["prompt", "prompt_file"])]
    pub words: Vec<String>,
    /// What to generate.
    #[command(flatten)]
    pub generate: GenerateArgs,
}

/// Flags of `breakers chat`.
#[derive(Clone, Debug, clap::Args)]
pub struct ChatArgs {
    /// The model, instead of --model.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub name: Option<String>,
    /// How to answer.
    #[command(flatten)]
    pub text: TextArgs,
}

/// Flags that say what to answer and in which form.
#[derive(Clone, Debug, clap::Args)]
pub struct GenerateArgs {
    /// How to answer.
    #[command(flatten)]
    pub text: TextArgs,
    /// The prompt; without one, a chat begins.
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// Answer with one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags that say how to answer.
#[derive(Clone, Debug, clap::Args)]
pub struct TextArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The key-value cache.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// The drafter.
    #[command(flatten)]
    pub draft: DraftArgs,
    /// Instructions for the model, put before the conversation. Without them its template may add its own.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// A file with the instructions of --system; - reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["raw", "system"])]
    pub system_file: Option<String>,
    /// A Jinja2 chat template instead of the model's own: a file, or the template itself.
    #[arg(
        long,
        visible_alias = "chat-template-file",
        value_name = "FILE|TEMPLATE",
        conflicts_with = "raw",
        allow_hyphen_values = true
    )]
    pub chat_template: Option<String>,
    /// Continue the prompt as plain text, without a chat template.
    #[arg(long)]
    pub raw: bool,
    /// The most new tokens.
    #[arg(short = 'n', long, visible_alias = "n-predict", default_value_t = 256, value_name = "N")]
    pub max_tokens: usize,
    /// Stop before this text appears; may be given several times.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Ignore the model's end tokens and go on until --max-tokens.
    #[arg(long)]
    pub ignore_eos: bool,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Runs `breakers run`: one prompt, or a chat if none is given or piped.
///
/// # Errors
/// As [`generate`]; [`Error::Usage`] if standard input is piped and empty.
pub fn run(arguments: &RunArgs, form_of: FormOf<'_>) -> Result<ExitCode> {
    let mut generate = arguments.generate.clone();
    if let Some(name) = &arguments.name {
        generate.text.model.model.clone_from(name);
    }
    let flags_have_prompt = generate.prompt.prompt.is_some() || generate.prompt.prompt_file.is_some();
    let stdin_is_taken = generate.text.system_file.as_deref() == Some("-");
    if !flags_have_prompt {
        let piped = match std::io::stdin().is_terminal() || stdin_is_taken {
            true => None,
            false => Some(read_text("-")?),
        };
        generate.prompt.prompt = join(piped.as_deref(), &arguments.words)?;
    }
    self::generate(&generate, form_of)
}

/// Runs `breakers chat`: one message per line, until the input ends.
///
/// # Errors
/// As [`generate`].
pub fn chat(arguments: &ChatArgs, form_of: FormOf<'_>) -> Result<ExitCode> {
    let mut text = arguments.text.clone();
    if let Some(name) = &arguments.name {
        text.model.model.clone_from(name);
    }
    generate(&GenerateArgs { text, prompt: PromptArgs::default(), json: false }, form_of)
}

/// Answers the prompt; without one, chats over standard input and output.
///
/// # Errors
/// [`Error::Usage`] for flags that cannot be obeyed; those of loading the model, of its template and of
/// decoding.
pub fn generate(arguments: &GenerateArgs, form_of: FormOf<'_>) -> Result<ExitCode> {
    let text = &arguments.text;
    let mut sampling = text.sampling.config()?;
    let prompt = arguments.prompt.read()?;
    if prompt.is_none() && arguments.json {
        return Err(Error::Usage("--json needs a prompt, by --prompt or --prompt-file".to_owned()));
    }
    let system = match &text.system_file {
        Some(file) => Some(read_text(file)?),
        None => text.system.clone(),
    };
    let loaded = text.model.load()?;
    let template = template(text, &loaded)?;
    if template.is_none() && system.is_some() {
        return Err(Error::Usage(format!("--system: {} has no chat template", loaded.name)));
    }
    let form = form_of(&loaded, template.as_ref())?;
    let mut end_tokens = None;
    if text.ignore_eos {
        if form.is_some() {
            return Err(Error::Usage(
                "--ignore-eos: an answer of a given form ends where the form ends".to_owned(),
            ));
        }
        let ends = &loaded.model.info().end_tokens;
        sampling.logit_bias.extend(ends.iter().map(|&token| (token, NEVER)));
        end_tokens = Some(Vec::new());
    }
    let config = Config {
        max_tokens: text.max_tokens,
        sampling,
        seed: text.sampling.seed(),
        end_tokens,
        draft_length: text.draft.length(),
        top_logprobs: arguments.json.then_some(N_TOP),
        ..Config::default()
    };
    let speculator = Speculator::new(text.draft.drafter(&text.model, &loaded)?);
    match prompt {
        Some(prompt) => {
            let prompt = match &template {
                Some(template) => {
                    encode(template, &opening(system.as_deref(), &prompt), &loaded, form.as_ref())?
                }
                None => loaded.model.tokenizer().encode(&prompt, EncodeOptions::default())?,
            };
            answer(arguments, &loaded, prompt, &config, form.as_ref(), speculator)?;
        }
        None => {
            let runner = text.cache.runner(&loaded.model)?;
            let session = Session::new(&loaded, runner, speculator, config, text.stop.clone(), form)?;
            chat::run(&loaded, session, system.as_deref(), template.as_ref())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The piped text, followed by the words of the command line.
fn join(piped: Option<&str>, words: &[String]) -> Result<Option<String>> {
    let words = words.join(" ");
    match piped {
        None if words.is_empty() => Ok(None),
        Some(piped) if words.is_empty() && piped.trim().is_empty() => {
            Err(Error::Usage("no prompt: standard input is empty".to_owned()))
        }
        Some(piped) if words.is_empty() => Ok(Some(piped.to_owned())),
        Some(piped) if !piped.trim().is_empty() => Ok(Some(format!("{}\n\n{words}", piped.trim_end()))),
        _ => Ok(Some(words)),
    }
}

/// The chat template: the given one or, if there is one, the model's own.
fn template(arguments: &TextArgs, loaded: &LoadedModel) -> Result<Option<ChatTemplate>> {
    if arguments.raw {
        return Ok(None);
    }
    let own = loaded.model.chat_template();
    let Some(given) = &arguments.chat_template else { return Ok(own?.cloned()) };
    let source = if Path::new(&at_home(given)).exists() {
        read_text(given)?
    } else if given.contains("{%") || given.contains("{{") {
        given.clone()
    } else {
        return Err(Error::Usage(format!(
            "--chat-template: {given} is neither a file nor a Jinja2 template"
        )));
    };
    let tokenizer = loaded.model.tokenizer();
    let spelled =
        |token: Option<TokenId>| Some(String::from_utf8_lossy(tokenizer.token_bytes(token?)?).into_owned());
    let template = ChatTemplate::new(source)?;
    if template.ignores_messages() {
        eprintln!("warning: the template does not look at the conversation: its prompt is always the same");
    }
    Ok(Some(template.with_tokens(spelled(tokenizer.bos()), spelled(tokenizer.eos()))))
}

/// The first messages of a conversation.
fn opening(system: Option<&str>, prompt: &str) -> Vec<Message> {
    let system = system.map(|text| Message::new("system", text));
    system.into_iter().chain([Message::new("user", prompt)]).collect()
}

/// The tokens of a conversation, which tells the model of its functions.
fn encode(
    template: &ChatTemplate,
    messages: &[Message],
    loaded: &LoadedModel,
    form: Option<&Form>,
) -> Result<Vec<TokenId>> {
    let tokenizer = loaded.model.tokenizer();
    let Some(Form { forms, request }) = form else {
        return Ok(tokenizer.encode_chat(template, messages, &[])?);
    };
    let messages = forms.conversation(template, messages, &request.tools);
    let messages = messages.map_err(|error| Error::Failed(error))?;
    Ok(tokenizer.encode_chat(template, &messages, &request.tools)?)
}

/// One prompt, one answer.
fn answer(
    arguments: &GenerateArgs,
    loaded: &LoadedModel,
    prompt: Vec<TokenId>,
    config: &Config,
    form: Option<&Form>,
    mut speculator: Speculator<Box<dyn Drafter + Send>>,
) -> Result {
    if prompt.is_empty() {
        return Err(Error::Usage("the prompt is empty".to_owned()));
    }
    let mut runner = arguments.text.cache.runner(&loaded.model)?;
    let sequence = runner.open()?;
    let vocabulary = Arc::new(loaded.model.tokenizer().clone());
    let decoding =
        Decoding::new(&runner, sequence, &prompt, config)?.with_text(vocabulary, &arguments.text.stop);
    let (mut decoding, mut answer) = hold(decoding, form)?;
    let mut written = Ok(());
    let show = |text: String| if arguments.json { Ok(()) } else { print(&text) };
    speculator.drive(&mut runner, &mut decoding, |decoding, _| {
        written = answer.push(&decoding.take_text()).and_then(show);
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written?;
    answer.finish(decoding.finish().unwrap_or(FinishReason::Cancelled)).and_then(show)?;
    let reply = answer.reply;
    let finish = finish_name(reply.finish);
    let stats = decoding.stats();
    let (prefill, decode) = (stats.prefill_tokens_per_second(), stats.decode_tokens_per_second());
    if arguments.json {
        let output = decoding.output();
        let steps = output.iter().zip(decoding.scores());
        let steps: Vec<Value> = steps
            .map(|(&token, score)| step_json(ScoredStep { token, logprob: None, top: &score.top }))
            .collect();
        let mut object = json!({
            "prompt_ids": prompt,
            "output_ids": output,
            "text": reply.text,
            "finish": finish,
            "steps": steps,
            "prefill_tok_s": prefill,
            "decode_tok_s": decode,
        });
        if form.is_some_and(|form| !form.request.tools.is_empty()) {
            object["tool_calls"] = reply.tool_calls.iter().map(call_json).collect();
        }
        return print_json(&object);
    }
    print_calls(&reply)?;
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

/// Ends the line of an answer whose text was printed, and prints its calls, a line of JSON each.
fn print_calls(reply: &ChatReply) -> Result {
    if !reply.text.is_empty() || reply.tool_calls.is_empty() {
        print("\n")?;
    }
    reply.tool_calls.iter().try_for_each(|call| print(&format!("{}\n", call_json(call))))
}

fn finish_name(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::EndOfText => "end of text",
        FinishReason::ToolCalls => "tool calls",
        FinishReason::Stop => "stop string",
        FinishReason::Length => "length",
        FinishReason::ContextFull => "context full",
        _ => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_piped_or_words_or_both() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let joined = |piped, text: Option<&str>| {
            join(piped, &text.map(words).unwrap_or_default()).map_err(|error| format!("{error:?}"))
        };
        assert_eq!(joined(None, None).unwrap(), None);
        assert_eq!(joined(None, Some("why is")).unwrap().as_deref(), Some("why is"));
        // What a script with /dev/null as its input gives.
        assert_eq!(joined(Some(""), Some("why is")).unwrap().as_deref(), Some("why is"));
        assert_eq!(joined(Some("a\nb\n"), None).unwrap().as_deref(), Some("a\nb\n"));
        assert_eq!(joined(Some("a\nb\n"), Some("Sum up:")).unwrap().as_deref(), Some("a\nb\n\nSum up:"));
        assert!(joined(Some(" \n"), None).unwrap_err().contains("standard input is empty"));
    }
}
