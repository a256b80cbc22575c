use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Message, Prompt, ResponseFormat, SamplingConfig, TokenId, Tool, ToolCall, ToolChoice};

/// A request to a [`ChatModel`](crate::ChatModel), whether it runs here or elsewhere.
///
/// # Example
/// ```
/// use breakers_core::{ChatRequest, Message, SamplingConfig};
///
/// let request = ChatRequest::new(vec![Message::system("Be brief."), Message::user("Why is the sky blue?")])
///     .with_max_tokens(64)
///     .with_sampling(SamplingConfig::temperature(0.7))
///     .with_seed(1)
///     .with_stop(["\n\n"]);
/// assert_eq!(request.stop.len(), 1);
/// // A text to be continued as it is:
/// let story = ChatRequest::new("Once upon a time");
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ChatRequest {
    /// What is to be continued or answered.
    pub prompt: Prompt,
    /// The most tokens to generate; `None`: until the model ends the text or its context is full.
    pub max_tokens: Option<usize>,
    /// How a token is drawn.
    pub sampling: SamplingConfig,
    /// Seed for drawing tokens: the same seed gives the same text where the model promises that. `None`: a
    /// different text each time, unless decoding is greedy.
    pub seed: Option<u64>,
    /// Texts that end the answer. They are not part of it.
    pub stop: Vec<String>,
    /// Functions that the model may call.
    pub tools: Vec<Tool>,
    /// Which of them it may or must call.
    pub tool_choice: ToolChoice,
    /// Whether one answer may call several functions; `None`: the model's default.
    pub parallel_tool_calls: Option<bool>,
    /// The form that the answer must have.
    pub response: ResponseFormat,
    /// `Some(n)`: report the log-probability of each token and the `n` most likely alternatives in its place.
    /// `None`: report neither.
    pub top_logprobs: Option<usize>,
    /// Whether somebody waits for the answer.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// A text that the answer probably resembles, such as the file that is to be edited. It may make the
    /// answer faster and never changes it, so that a model may leave it unused
    /// ([`Capabilities::prediction`](crate::Capabilities::prediction)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction: Option<String>,
}

/// How urgent an answer is, for models that answer many at a time. It does not change the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Normal,
    /// It can wait, and be interrupted, while others are answered.
    Background,
}

impl Priority {
    fn is_normal(&self) -> bool {
        *self == Self::Normal
    }
}

impl ChatRequest {
    /// A greedy request without a limit.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        Self {
            prompt: prompt.into(),
            max_tokens: None,
            sampling: SamplingConfig::greedy(),
            seed: None,
            stop: Vec::new(),
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: None,
            response: ResponseFormat::Text,
            top_logprobs: None,
            priority: Priority::Normal,
            prediction: None,
        }
    }

    /// The same request, this urgent.
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// The same request, limited to this many new tokens.
    pub fn with_max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = Some(max_tokens);
        self
    }

    /// The same request with these sampling settings.
    pub fn with_sampling(mut self, sampling: SamplingConfig) -> Self {
        self.sampling = sampling;
        self
    }

    /// The same request with a seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The same request, which also ends at any of these texts.
    pub fn with_stop(mut self, stop: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.stop = stop.into_iter().map(Into::into).collect();
        self
    }

    /// The same request with functions that the model may call.
    pub fn with_tools(mut self, tools: impl IntoIterator<Item = Tool>, choice: ToolChoice) -> Self {
        self.tools = tools.into_iter().collect();
        self.tool_choice = choice;
        self
    }

    /// The same request, whose answer must have this form.
    pub fn with_response(mut self, response: ResponseFormat) -> Self {
        self.response = response;
        self
    }

    /// The same request with a text that the answer probably resembles.
    pub fn with_prediction(mut self, text: impl Into<String>) -> Self {
        self.prediction = Some(text.into());
        self
    }

    /// The same request, reporting the log-probability of each token and of the `n` most likely alternatives.
    pub fn with_logprobs(mut self, n: usize) -> Self {
        self.top_logprobs = Some(n);
        self
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model produced one of its end tokens.
    EndOfText,
    /// A stop string appeared.
    Stop,
    /// `max_tokens` were produced.
    Length,
    /// The context is full.
    ContextFull,
    /// The model calls functions.
    ToolCalls,
    /// The endpoint's content filter withheld the rest.
    ContentFilter,
    /// The callback that receives the answer asked to stop.
    Cancelled,
}

/// A new piece of an answer that is being produced. Joined in order, the pieces of one kind make up the
/// answer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Delta {
    /// Text: one or more whole characters. Text that may turn out to be the start of a stop string is held
    /// back.
    Text(String),
    /// Tokens, if log-probabilities were asked for. They may arrive before the text that they belong to.
    Tokens(Vec<ScoredToken>),
    /// A part of a function call.
    ToolCall(ToolCallDelta),
    /// Nothing of the answer yet: how far its prompt has been read. Who has enough can say so here, too.
    Progress(PromptProgress),
}

/// How far a prompt has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PromptProgress {
    /// Tokens that have been read; 0 while the request waits for its turn.
    pub read: usize,
    /// Tokens of the prompt.
    pub total: usize,
}

impl PromptProgress {
    /// So many tokens of so many.
    pub fn new(read: usize, total: usize) -> Self {
        Self { read, total }
    }
}

/// A part of a function call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ToolCallDelta {
    /// Which of the answer's calls this belongs to, counted from 0. A new index ends the previous call.
    pub index: usize,
    /// The call's id, in its first part.
    pub id: Option<String>,
    /// The function's name, in the call's first part.
    pub name: Option<String>,
    /// The next piece of the arguments.
    pub arguments: String,
}

impl ToolCallDelta {
    /// The first part of a call.
    pub fn start(index: usize, id: impl Into<String>, name: impl Into<String>) -> Self {
        Self { index, id: Some(id.into()), name: Some(name.into()), arguments: String::new() }
    }

    /// A further part.
    pub fn arguments(index: usize, arguments: impl Into<String>) -> Self {
        Self { index, id: None, name: None, arguments: arguments.into() }
    }
}

/// A token of an answer and how likely it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScoredToken {
    /// The token's id; `None` where an endpoint does not say.
    pub token: Option<TokenId>,
    /// The token's bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability under the model's full softmax, before penalties, masks and
    /// temperature.
    pub logprob: f32,
    /// The most likely tokens in its place, best first.
    pub top: Vec<Alternative>,
}

impl ScoredToken {
    /// A token without alternatives.
    pub fn new(token: Option<TokenId>, bytes: impl Into<Vec<u8>>, logprob: f32) -> Self {
        Self { token, bytes: bytes.into(), logprob, top: Vec::new() }
    }
}

/// A token that could have stood in this place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Alternative {
    /// The token's id; `None` where an endpoint does not say.
    pub token: Option<TokenId>,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

impl Alternative {
    /// A token that could have stood in this place.
    pub fn new(token: Option<TokenId>, bytes: impl Into<Vec<u8>>, logprob: f32) -> Self {
        Self { token, bytes: bytes.into(), logprob }
    }
}

/// How many tokens a request used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub prompt: u64,
    /// How many of them were cached, and so did not have to be computed.
    pub cached_prompt: u64,
    /// Tokens produced, including reasoning and the end token.
    pub completion: u64,
    /// How many of them were reasoning rather than answer.
    pub reasoning: u64,
    /// Tokens that were drafted and verified.
    pub drafted: u64,
    /// How many of them became output.
    pub accepted: u64,
    /// How many of the accepted ones were [predicted](ChatRequest::prediction).
    pub predicted: u64,
    /// How many of the others were.
    pub mispredicted: u64,
}

impl Usage {
    /// Tokens of a prompt and of its answer.
    pub fn new(prompt: u64, completion: u64) -> Self {
        Self { prompt, completion, ..Self::default() }
    }

    /// All tokens of the request: prompt and completion.
    pub fn total(&self) -> u64 {
        self.prompt.saturating_add(self.completion)
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        let Self { prompt, cached_prompt, completion, reasoning, drafted, accepted, predicted, mispredicted } =
            other;
        self.prompt += prompt;
        self.cached_prompt += cached_prompt;
        self.completion += completion;
        self.reasoning += reasoning;
        self.drafted += drafted;
        self.accepted += accepted;
        self.predicted += predicted;
        self.mispredicted += mispredicted;
    }
}

impl std::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(usages: I) -> Self {
        usages.fold(Self::default(), |mut sum, usage| {
            sum += usage;
            sum
        })
    }
}

/// Where the time of a request went, on the caller's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Timings {
    /// From the call to the first token; `None` if there was none, or if it was not measured.
    pub first_token: Option<Duration>,
    /// From the call to the reply.
    pub total: Duration,
}

impl Timings {
    /// Times measured from the moment of the call.
    pub fn new(first_token: Option<Duration>, total: Duration) -> Self {
        Self { first_token, total }
    }
}

/// A finished answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ChatReply {
    /// The text, up to the first stop string.
    pub text: String,
    /// The functions that the model wants to call.
    pub tool_calls: Vec<ToolCall>,
    /// Why the answer ended.
    pub finish: FinishReason,
    /// Ids of the tokens produced, including the end token; empty where an endpoint does not say.
    pub token_ids: Vec<TokenId>,
    /// The tokens with their log-probabilities, if these were asked for.
    pub tokens: Vec<ScoredToken>,
    /// How many tokens it used.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// The name of the model that answered, as the model gives it.
    pub model: String,
    /// The seed that was used, if known: with it, the same request gives the same answer.
    pub seed: Option<u64>,
}

impl ChatReply {
    /// An answer that is only text. Assign to the other fields to fill them in.
    pub fn new(text: impl Into<String>, finish: FinishReason) -> Self {
        Self {
            text: text.into(),
            tool_calls: Vec::new(),
            finish,
            token_ids: Vec::new(),
            tokens: Vec::new(),
            usage: Usage::default(),
            timings: Timings::default(),
            model: String::new(),
            seed: None,
        }
    }

    /// Adds a piece of the answer.
    ///
    /// # Example
    /// ```
    /// use breakers_core::{ChatReply, Delta, FinishReason, ToolCallDelta};
    ///
    /// let mut reply = ChatReply::new("Let me ", FinishReason::ToolCalls);
    /// reply.absorb(Delta::Text("see.".to_owned()));
    /// reply.absorb(Delta::ToolCall(ToolCallDelta::start(0, "call_1", "weather")));
    /// reply.absorb(Delta::ToolCall(ToolCallDelta::arguments(0, "{\"city\": ")));
    /// reply.absorb(Delta::ToolCall(ToolCallDelta::arguments(0, "\"Oslo\"}")));
    /// assert_eq!((reply.text.as_str(), reply.tool_calls[0].name.as_str()), ("Let me see.", "weather"));
    /// assert_eq!(reply.tool_calls[0].arguments, r#"{"city": "Oslo"}"#);
    /// ```
    pub fn absorb(&mut self, delta: Delta) {
        match delta {
            Delta::Text(text) => self.text += &text,
            Delta::Tokens(tokens) => self.tokens.extend(tokens),
            Delta::Progress(_) => {}
            Delta::ToolCall(part) => {
                if part.index >= self.tool_calls.len() {
                    let [id, name] = [part.id, part.name].map(Option::unwrap_or_default);
                    self.tool_calls.push(ToolCall::new(id, name, ""));
                }
                if let Some(call) = self.tool_calls.last_mut() {
                    call.arguments += &part.arguments;
                }
            }
        }
    }

    /// The answer as a turn of the conversation.
    pub fn message(&self) -> Message {
        let mut message = Message::assistant(self.text.clone());
        message.tool_calls.clone_from(&self.tool_calls);
        message
    }

    /// Sum of the log-probabilities of the tokens; `None` if none were asked for.
    pub fn logprob(&self) -> Option<f64> {
        let some = !self.tokens.is_empty();
        some.then(|| self.tokens.iter().map(|token| f64::from(token.logprob)).sum())
    }
}
