//! Requests as OpenAI's clients send them, read into [`ChatRequest`]s. A field that the protocol has is
//! honored or refused by name; fields that it does not have are skipped, because clients send many.

mod chat;
mod embedding;
mod fields;
mod grammar;
mod responses;
mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

use breakers_core::{
    Capabilities, ChatRequest, ModelCard, Priority, Prompt, ResponseFormat, SamplingConfig, TokenId,
};
use serde::Deserialize;
use serde_json::value::RawValue;

pub(crate) use self::embedding::{EmbeddingRequest, Encoding, Inputs};
pub(crate) use self::fields::Fields;
pub(crate) use self::responses::{Echo, ResponseRequest};
use crate::Limits;
use crate::api_error::ApiError;

/// Which route a request came by, and so which form its answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Text,
    /// `/v1/responses`.
    Responses,
}

/// A request for one or more answers.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) route: Route,
    pub(crate) model: String,
    /// The prompts, each with all settings.
    pub(crate) prompts: Vec<Arc<ChatRequest>>,
    /// Answers to each prompt.
    pub(crate) n: usize,
    pub(crate) stream: bool,
    /// Whether a stream ends with the number of tokens used.
    pub(crate) include_usage: bool,
    /// Texts that stand before the answers, one for each prompt; empty if prompts are not repeated.
    pub(crate) echo: Vec<String>,
    /// The field that gives the form of the answer.
    pub(crate) form_field: &'static str,
    /// Who asks, as the request says it.
    #[cfg_attr(
        not(any(feature = "batches", feature = "registry")),
        expect(dead_code, reason = "it decides between versions")
    )]
    pub(crate) user: Option<String>,
    /// Fields that are hints without effect here.
    pub(crate) ignored: Vec<&'static str>,
}

impl Completion {
    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it, by field.
    pub(crate) fn read(route: Route, body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::of_body(body, limits.json_depth)?;
        match route {
            Route::Chat => chat::read(&mut fields, limits),
            Route::Text => text::read(&mut fields, limits),
            Route::Responses => Ok(ResponseRequest::read(body, limits)?.completion),
        }
    }

    /// The fields that had no effect with this model.
    pub(crate) fn ignored_by(&self, card: &ModelCard) -> Vec<&'static str> {
        let is_used = |name: &str| name == PREDICTION && card.capabilities.prediction;
        let mut ignored: Vec<_> = self.ignored.iter().copied().filter(|name| !is_used(name)).collect();
        ignored.sort_unstable();
        ignored
    }

    /// How many answers there will be.
    pub(crate) fn n_choices(&self) -> usize {
        self.prompts.len() * self.n
    }

    /// The request for the answer of an index: `n` for the first prompt, then `n` for the second, and so on.
    /// The first answer to a prompt has the seed that was given, the others have seeds derived from it.
    pub(crate) fn choice(&self, index: usize) -> (Arc<ChatRequest>, Option<u64>) {
        let request = Arc::clone(&self.prompts[index / self.n]);
        let seed = request.seed.map(|seed| match (index % self.n) as u64 {
            0 => seed,
            k => mix(seed ^ mix(k)),
        });
        (request, seed)
    }

    /// Checks that a model can do what is asked.
    ///
    /// # Errors
    /// The field that asks for too much.
    pub(crate) fn check(&self, card: &ModelCard) -> Result<(), ApiError> {
        let Capabilities { chat, text, tokens, tools, json, grammar, logprobs, seed, .. } = card.capabilities;
        let need = |has: bool, field: &str, what: &str| {
            let message = || format!("`{field}`: the model `{}` does not {what}", card.id);
            if has { Ok(()) } else { Err(ApiError::unsupported(field, message())) }
        };
        for request in &self.prompts {
            match &request.prompt {
                Prompt::Chat(_) => need(chat, "messages", "answer conversations")?,
                Prompt::Text(_) => need(text, "prompt", "continue texts")?,
                _ => need(tokens, "prompt", "continue tokens")?,
            }
            need(tools || request.tools.is_empty(), "tools", "call functions")?;
            let is_grammar = request.response.is_grammar();
            need(grammar || !is_grammar, self.form_field, "keep to a grammar")?;
            need(
                json || is_grammar || request.response == ResponseFormat::Text,
                self.form_field,
                "answer in a given form",
            )?;
            need(logprobs || request.top_logprobs.is_none(), "logprobs", "report log-probabilities")?;
            need(seed || request.seed.is_none(), "seed", "repeat its answers")?;
        }
        Ok(())
    }
}

/// 64 well-mixed bits (the finalizer of SplitMix64).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What both routes have in common, but for the prompt and what chats alone have.
struct Common {
    model: String,
    n: usize,
    stream: bool,
    include_usage: bool,
    sampling: SamplingConfig,
    seed: Option<u64>,
    stop: Vec<String>,
    priority: Priority,
    /// The form of the answer in the words of other servers, and the field that gave it.
    form: Option<(ResponseFormat, &'static str)>,
    /// What the answer probably resembles.
    prediction: Option<String>,
    user: Option<String>,
    ignored: Vec<&'static str>,
}

/// Fields of other servers that change answers in ways that cannot be had here. To skip them would be to give
/// another answer than was asked for.
const FOREIGN: [&str; 8] = [
    "ebnf",
    "grammar",
    "ignore_eos",
    "length_penalty",
    "min_tokens",
    "stop_token_ids",
    "structural_tag",
    "use_beam_search",
];

impl Common {
    fn read(fields: &mut Fields<'_>, limits: &Limits) -> Result<Self, ApiError> {
        let model = fields.need::<String>("model")?;
        let n = fields.count("n", 1, limits.max_choices as u64)?.unwrap_or(1);
        let best_of = fields.count("best_of", 0, 20)?;
        if best_of.is_some_and(|best_of| best_of > 1 && best_of != n) {
            return Err(fields.unsupported("best_of", "the best of several answers is not chosen"));
        }
        let stream = fields.get("stream")?.unwrap_or(false);
        let mut ignored = Vec::new();
        let mut include_usage = false;
        if let Some(mut options) = fields.object("stream_options")? {
            if !stream {
                return Err(fields.wrong("stream_options", "it is only allowed with `stream`: true"));
            }
            include_usage = options.get("include_usage")?.unwrap_or(false);
            if options.get("include_obfuscation")?.unwrap_or(false) {
                ignored.push("stream_options.include_obfuscation");
            }
        }
        for name in FOREIGN {
            let Some(value) = fields.raw(name) else { continue };
            let is_neutral = match name {
                "length_penalty" => matches!(value.get(), "1" | "1.0"),
                _ => matches!(value.get(), "false" | "0" | "[]" | "\"\""),
            };
            if !is_neutral {
                let message = match name {
                    "grammar" | "ebnf" => "GBNF and EBNF are not read; `structured_outputs` takes Lark",
                    _ => "it is not supported",
                };
                return Err(fields.unsupported(name, message));
            }
        }
        let mut priority = Priority::default();
        let form = grammar::form(fields, limits)?;
        let prediction = prediction(fields)?;
        if prediction.is_some() {
            // Unless the model says otherwise.
            ignored.push(PREDICTION);
        }
        let mut user = None;
        // Hints: for accounts, caches and speed, but never for what is answered.
        for name in [
            "metadata",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "safety_identifier",
            "service_tier",
            "user",
        ] {
            let Some(value) = fields.raw(name) else { continue };
            // The newer name of `user`, which comes after it.
            if matches!(name, "safety_identifier" | "user") {
                user = Some(value.get().to_owned());
            }
            // The tier that OpenAI sells for what can wait.
            if name == "service_tier" && value.get() == "\"flex\"" {
                priority = Priority::Background;
                continue;
            }
            ignored.push(name);
        }
        let sampling = sampling(fields)?;
        let seed = fields.get::<i64>("seed")?.map(i64::cast_unsigned);
        let stop = stop(fields, limits)?;
        Ok(Self {
            model,
            n,
            stream,
            include_usage,
            sampling,
            seed,
            stop,
            priority,
            form,
            prediction,
            user,
            ignored,
        })
    }

    /// The field that gives the form of the answer, if it is not the route's own.
    fn form_field(&self, own: &'static str) -> &'static str {
        self.form.as_ref().map_or(own, |(_, field)| field)
    }

    /// One prompt's request.
    fn request(&self, prompt: Prompt) -> ChatRequest {
        let mut request = ChatRequest::new(prompt);
        request.sampling = self.sampling.clone();
        request.seed = self.seed;
        request.stop.clone_from(&self.stop);
        request.priority = self.priority;
        request.prediction.clone_from(&self.prediction);
        if let Some((form, _)) = &self.form {
            request.response.clone_from(form);
        }
        request
    }
}

/// The field with a text that the answer probably resembles.
const PREDICTION: &str = "prediction";

fn prediction(fields: &mut Fields<'_>) -> Result<Option<String>, ApiError> {
    let Some(mut prediction) = fields.object(PREDICTION)? else { return Ok(None) };
    if prediction.need::<String>("type")? != "content" {
        return Err(prediction.wrong("type", "it is not `content`"));
    }
    let value = prediction.raw("content").ok_or_else(|| prediction.missing("content"))?;
    if value.get().starts_with('"') {
        return fields::read(value, &prediction.path("content")).map(Some);
    }
    #[derive(Deserialize)]
    struct Part {
        r#type: String,
        text: String,
    }
    let parts: Vec<Part> = fields::read(value, &prediction.path("content"))?;
    if parts.iter().any(|part| part.r#type != "text") {
        return Err(prediction.wrong("content", "a part is not `text`"));
    }
    Ok(Some(parts.into_iter().map(|part| part.text).collect()))
}

fn sampling(fields: &mut Fields<'_>) -> Result<SamplingConfig, ApiError> {
    let temperature = fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0);
    let mut config = SamplingConfig::temperature(temperature);
    config.top_p = fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0);
    config.frequency_penalty = fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0);
    config.presence_penalty = fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0);
    if config.frequency_penalty != 0.0 || config.presence_penalty != 0.0 {
        // OpenAI's penalties look at the whole text.
        config.repetition_window = usize::MAX;
    }
    if let Some(bias) = fields.get::<BTreeMap<String, f32>>("logit_bias")? {
        for (token, bias) in bias {
            let Ok(token) = token.parse::<TokenId>() else {
                return Err(fields.wrong("logit_bias", format!("{token:.40?} is no token's id")));
            };
            if !(-100.0..=100.0).contains(&bias) {
                return Err(fields.wrong("logit_bias", format!("{bias} is not from -100 to 100")));
            }
            config.logit_bias.insert(token, bias);
        }
    }
    // Settings that vLLM and llama.cpp add to the protocol.
    if let Some(k) = fields.get::<i64>("top_k")? {
        // -1 keeps all tokens, as 0 does.
        config.top_k = usize::try_from(k.max(0)).unwrap_or(usize::MAX);
    }
    config.min_p = fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0);
    for name in ["repetition_penalty", "repeat_penalty"] {
        if let Some(penalty) = fields.number(name, f64::from(f32::MIN_POSITIVE), 1e6)? {
            config.repetition_penalty = penalty;
        }
    }
    if let Some(window) = fields.get::<i64>("repeat_last_n")? {
        config.repetition_window = usize::try_from(window).unwrap_or(usize::MAX);
    }
    config.validate().map_err(|error| ApiError::from(breakers_core::CallError::from(error)))?;
    Ok(config)
}

fn stop(fields: &mut Fields<'_>, limits: &Limits) -> Result<Vec<String>, ApiError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stop {
        One(String),
        Some(Vec<String>),
    }
    let stop = match fields.raw("stop") {
        None => return Ok(Vec::new()),
        Some(value) => serde_json::from_str(value.get())
            .map_err(|_| fields.wrong("stop", "it is neither a text nor a list of texts"))?,
    };
    let texts = match stop {
        Stop::One(text) => vec![text],
        Stop::Some(texts) => texts,
    };
    if texts.len() > limits.stops {
        return Err(fields.wrong("stop", format!("more than {} texts", limits.stops)));
    }
    for text in &texts {
        if text.is_empty() {
            return Err(fields.wrong("stop", "an empty text ends nothing"));
        }
        if text.len() > limits.stop_bytes {
            return Err(fields.wrong("stop", format!("a text of more than {} bytes", limits.stop_bytes)));
        }
    }
    Ok(texts)
}

/// A list of texts, a text, tokens, or a list of tokens: what prompts and inputs for vectors may be.
enum Prompts {
    Texts(Vec<String>),
    Tokens(Vec<Vec<TokenId>>),
}

impl Prompts {
    /// Reads the four forms. `name` must be there.
    fn read(fields: &mut Fields<'_>, name: &str) -> Result<Self, ApiError> {
        let value = fields.raw(name).ok_or_else(|| fields.missing(name))?;
        let wrong = || fields.wrong(name, "it is no text, no list of texts, no tokens and no list of tokens");
        let text = value.get();
        if text.starts_with('"') {
            return Ok(Self::Texts(vec![serde_json::from_str(text).map_err(|_| wrong())?]));
        }
        let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| wrong())?;
        match items.first().map(|first| first.get().as_bytes()[0]) {
            None => Err(fields.wrong(name, "it is empty")),
            Some(b'"') => Ok(Self::Texts(serde_json::from_str(text).map_err(|_| wrong())?)),
            Some(b'[') => Ok(Self::Tokens(serde_json::from_str(text).map_err(|_| wrong())?)),
            Some(_) => Ok(Self::Tokens(vec![serde_json::from_str(text).map_err(|_| wrong())?])),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Tokens(tokens) => tokens.len(),
        }
    }
}
