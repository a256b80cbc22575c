use std::collections::HashMap;
use std::fmt;

use breakers_core::{
    BoxError, CallError, ChatModel, ChatReply, ChatRequest, FinishReason, Json, Message, OnDelta, Prompt,
    Tool, ToolCall, ToolChoice, Usage,
};

/// What a function says instead of a result. The model reads it.
pub type FunctionError = BoxError;

/// A function that a model may call.
pub trait Function: Send + Sync {
    /// Its name, what it does, and its parameters.
    fn tool(&self) -> Tool;

    /// Calls it. The arguments come from a model: whoever implements this checks them as the input of a
    /// stranger.
    ///
    /// # Errors
    /// The function's own. The model reads what it says, and may try again.
    fn call(&self, arguments: &Json) -> Result<String, FunctionError>;
}

/// A conversation in which a model calls functions until it answers.
///
/// The model's own template makes the prompt of each round, the model writes calls, their results are added
/// to the conversation, and so on up to an answer without calls. A model that calls the same functions with
/// the same arguments again, or that has called in as many rounds as it may, is asked once more without
/// functions that it could call: it answers with what it knows by then.
///
/// # Example
/// ```
/// use std::ops::ControlFlow;
/// use breakers_core::{ChatRequest, Json, Message, ScriptedModel, Tool, ToolCall};
/// use breakers_structured::tools::{Conversation, Function, FunctionError};
///
/// struct Weather;
/// impl Function for Weather {
///     fn tool(&self) -> Tool {
///         Tool::new("weather", Json::parse(r#"{"type": "object"}"#).unwrap())
///     }
///     fn call(&self, _arguments: &Json) -> Result<String, FunctionError> {
///         Ok("4 degrees, rain".to_owned())
///     }
/// }
///
/// # fn main() -> Result<(), breakers_structured::tools::ConversationError> {
/// let call = ToolCall::new("call_1", "weather", r#"{"city": "Oslo"}"#);
/// let model = ScriptedModel::new("test", [call.into(), "Cold and wet.".into()]);
/// let conversation = Conversation::new(&model, [Box::new(Weather) as Box<dyn Function>]);
/// let request = ChatRequest::new(Message::user("Is it cold in Oslo?"));
/// let finished = conversation.run(request, &mut |_| ControlFlow::Continue(()))?;
/// assert_eq!(finished.reply.text, "Cold and wet.");
/// assert_eq!(finished.calls[0].result.as_deref(), Ok("4 degrees, rain"));
/// # Ok(())
/// # }
/// ```
pub struct Conversation<'m> {
    model: &'m dyn ChatModel,
    functions: Vec<Box<dyn Function>>,
    most_rounds: usize,
}

/// A call and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallRecord {
    /// Which round it was made in, from 1 on.
    pub round: usize,
    /// The call.
    pub call: ToolCall,
    /// Its result, or why there is none. The model was told either.
    pub result: Result<String, String>,
}

/// A conversation that has come to its answer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Finished {
    /// The answer.
    pub reply: ChatReply,
    /// The conversation with all calls and results, without the answer.
    pub messages: Vec<Message>,
    /// All calls, in order.
    pub calls: Vec<CallRecord>,
    /// Tokens of all rounds.
    pub usage: Usage,
}

/// Why a conversation came to no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConversationError {
    /// The model could not be called.
    #[error("round {round} of the conversation failed")]
    Model {
        /// Which round, from 1 on.
        round: usize,
        /// Why.
        source: CallError,
    },
    /// The prompt is no conversation, so that no result could be added.
    #[error("the prompt is a text or tokens, expected messages")]
    NoMessages,
    /// Two functions of one name.
    #[error("the function {name:?} is there twice, expected each name once")]
    RepeatedFunction {
        /// The name.
        name: String,
    },
    /// The model goes on calling functions, even where it may not.
    #[error("no answer after {limit} rounds of calls")]
    Rounds {
        /// Rounds that were allowed.
        limit: usize,
        /// The calls so far.
        calls: Vec<CallRecord>,
    },
    /// The answer was cut off, so that its calls may not be what the model meant.
    #[error("round {round} ended with {finish:?} among calls, expected their end")]
    Unfinished {
        /// Which round, from 1 on.
        round: usize,
        /// Why it ended.
        finish: FinishReason,
    },
    /// Several calls in one answer where the request allows one. None of them was made.
    #[error("round {round} has {found} calls, at most 1 is allowed")]
    ParallelCalls {
        /// Which round, from 1 on.
        round: usize,
        /// Calls in its answer.
        found: usize,
    },
}

impl<'m> Conversation<'m> {
    /// A conversation with these functions, of 8 rounds of calls at most.
    pub fn new(model: &'m dyn ChatModel, functions: impl IntoIterator<Item = Box<dyn Function>>) -> Self {
        Self { model, functions: functions.into_iter().collect(), most_rounds: 8 }
    }

    /// The same conversation with another limit of rounds.
    pub fn with_most_rounds(mut self, most_rounds: usize) -> Self {
        self.most_rounds = most_rounds;
        self
    }

    /// Runs it to its answer. `request` holds the messages so far, and how to draw; its tools are replaced by
    /// the functions.
    ///
    /// A choice of tools that demands a call holds for the first round: a model that always must call would
    /// never answer. A call of an unknown function, or with arguments that are no JSON, and a function's
    /// failure are told to the model. If `on_delta` breaks, the round ends there and its reply is given.
    ///
    /// # Errors
    /// [`ConversationError`].
    pub fn run(
        &self,
        mut request: ChatRequest,
        on_delta: &mut OnDelta<'_>,
    ) -> Result<Finished, ConversationError> {
        let Prompt::Chat(messages) = &mut request.prompt else { return Err(ConversationError::NoMessages) };
        let mut messages = std::mem::take(messages);
        let mut by_name: HashMap<String, &dyn Function> = HashMap::new();
        request.tools.clear();
        for function in &self.functions {
            let tool = function.tool();
            if by_name.insert(tool.name.clone(), &**function).is_some() {
                return Err(ConversationError::RepeatedFunction { name: tool.name });
            }
            request.tools.push(tool);
        }
        let (mut calls, mut usage) = (Vec::<CallRecord>::new(), Usage::default());
        let mut round = 0;
        loop {
            round += 1;
            let is_last = round > self.most_rounds || repeats(&calls);
            if is_last {
                request.tool_choice = ToolChoice::None;
            }
            request.prompt = Prompt::Chat(messages);
            let reply = self.model.chat(&request, on_delta);
            let reply = reply.map_err(|source| ConversationError::Model { round, source })?;
            usage += reply.usage;
            messages = match request.prompt {
                Prompt::Chat(messages) => messages,
                _ => return Err(ConversationError::NoMessages),
            };
            if reply.tool_calls.is_empty() || reply.finish == FinishReason::Cancelled {
                return Ok(Finished { reply, messages, calls, usage });
            }
            if is_last {
                return Err(ConversationError::Rounds { limit: round - 1, calls });
            }
            let found = reply.tool_calls.len();
            match reply.finish {
                FinishReason::ToolCalls | FinishReason::EndOfText | FinishReason::Stop => {}
                finish => return Err(ConversationError::Unfinished { round, finish }),
            }
            if request.parallel_tool_calls == Some(false) && found > 1 {
                return Err(ConversationError::ParallelCalls { round, found });
            }
            messages.push(reply.message());
            for call in reply.tool_calls {
                let result = result_of(&call, &by_name);
                let told = match &result {
                    Ok(text) => text.clone(),
                    Err(error) => format!("error: {error}"),
                };
                messages.push(Message::tool(&call.id, told));
                calls.push(CallRecord { round, call, result });
            }
            if matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Function(_)) {
                request.tool_choice = ToolChoice::Auto;
            }
        }
    }
}

/// Whether the calls of the last round are those of the round before.
fn repeats(calls: &[CallRecord]) -> bool {
    let Some(last) = calls.last().map(|record| record.round) else { return false };
    let of = |round| {
        let calls = calls.iter().filter(move |record| record.round == round);
        calls.map(|record| (&record.call.name, &record.call.arguments))
    };
    last > 1 && of(last).eq(of(last - 1))
}

fn result_of(call: &ToolCall, functions: &HashMap<String, &dyn Function>) -> Result<String, String> {
    let Some(function) = functions.get(&call.name) else {
        let mut known: Vec<&str> = functions.keys().map(String::as_str).collect();
        known.sort_unstable();
        return Err(format!("there is no function {:?}, only: {}", call.name, known.join(", ")));
    };
    let arguments = call.arguments_json().map_err(|error| error.to_string())?;
    function.call(&arguments).map_err(|error| error.to_string())
}

impl fmt::Debug for Conversation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions: Vec<String> = self.functions.iter().map(|function| function.tool().name).collect();
        f.debug_struct("Conversation")
            .field("model", &self.model.card().id)
            .field("functions", &functions)
            .field("most_rounds", &self.most_rounds)
            .finish()
    }
}
