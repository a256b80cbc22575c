use std::fmt;
use std::sync::Arc;

use breakers_core::{
    AnswerForms, AnswerPlan, AnswerReader, CallError, ChatRequest, Delta, Tokenizer, Tool, chain,
};

use crate::tools::{CallGrammars, CallRules, Event, Parser, ToolFormatSpec};
use crate::{Compiler, Grammar, Result};

/// The forms of answers that requests ask a model for: JSON, a schema, calls of functions.
///
/// Give it to an engine ([`AnswerForms`]), and each answer is held to the form that its request asks for.
///
/// # What is told as a warning
/// Where a function that is not strict has parameters that cannot be enforced, the grammar accepts more than
/// they do; a warning of `tracing` says so.
///
/// # Example
/// ```
/// # mod bytes { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/bytes.rs")); }
/// use std::sync::Arc;
/// use breakers_core::{AnswerForms, ChatRequest, Delta, Json, Message, Tool, ToolChoice};
/// use breakers_structured::Forms;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let tokenizer = bytes::Bytes;
/// // Any `Tokenizer` will do; here each byte is a token.
/// let forms = Forms::new(Arc::new(tokenizer))?.with_calls("hermes".parse()?);
/// let weather = Tool::new("weather", Json::parse(r#"{"type": "object"}"#)?);
/// let request = ChatRequest::new(Message::user("Oslo?")).with_tools([weather], ToolChoice::Required);
/// let plan = forms.plan(&request, 0)?;
///
/// let (mut constraint, mut reader) = (plan.constraint.unwrap(), plan.reader.unwrap());
/// let text = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>";
/// text.bytes().try_for_each(|byte| constraint.advance(byte.into()))?;
/// let mut pieces = Vec::new();
/// reader.push(text, &mut pieces)?;
/// assert!(matches!(&pieces[0], Delta::ToolCall(part) if part.name.as_deref() == Some("weather")));
/// # Ok(())
/// # }
/// ```
pub struct Forms {
    compiler: Compiler,
    tokenizer: Arc<dyn Tokenizer>,
    calls: Option<CallGrammars>,
}

impl Forms {
    /// The forms of a vocabulary, without calls of functions.
    ///
    /// # Errors
    /// Those of [`Compiler::new`].
    pub fn new(tokenizer: Arc<dyn Tokenizer>) -> Result<Self> {
        Ok(Self { compiler: Compiler::new(tokenizer.clone())?, tokenizer, calls: None })
    }

    /// The same forms for a model that writes calls in this format.
    pub fn with_calls(mut self, format: ToolFormatSpec) -> Self {
        self.calls = Some(CallGrammars::new(format, self.tokenizer.clone()));
        self
    }

    /// What compiles the grammars.
    pub fn compiler(&self) -> &Compiler {
        &self.compiler
    }
}

impl AnswerForms for Forms {
    fn plan(&self, request: &ChatRequest, seed: u64) -> Result<AnswerPlan, CallError> {
        let compile = |grammar: &Grammar| {
            let constraint = self.compiler.constraint(grammar);
            constraint.map_err(|error| CallError::bad_request("response_format", chain(&error, ": ")))
        };
        let Some(calls) = self.calls.as_ref().filter(|_| !request.tools.is_empty()) else {
            let grammar = Grammar::of_response(&request.response);
            let constraint = grammar.map(|grammar| compile(&grammar)).transpose()?;
            let plan = constraint.map(|constraint| AnswerPlan::constrained(Box::new(constraint)));
            return Ok(plan.unwrap_or_default());
        };
        let constraint = calls.constraint(&self.compiler, &CallRules::of(request));
        let constraint = constraint.map_err(|error| CallError::bad_request("tools", chain(&error, ": ")))?;
        let reader = CallReader { parser: calls.format().parser(&request.tools, seed) };
        Ok(AnswerPlan::constrained(Box::new(constraint)).with_reader(Box::new(reader)))
    }

    fn has_calls(&self) -> bool {
        self.calls.is_some()
    }

    fn instructions(&self, tools: &[Tool]) -> Option<String> {
        Some(self.calls.as_ref()?.format().format().instructions(tools))
    }
}

impl fmt::Debug for Forms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forms")
            .field("calls", &self.calls.as_ref().map(CallGrammars::format))
            .finish_non_exhaustive()
    }
}

/// A parser of calls, in the words of `core`.
struct CallReader {
    parser: Parser,
}

impl AnswerReader for CallReader {
    fn push(&mut self, text: &str, out: &mut Vec<Delta>) -> Result<(), CallError> {
        let events = self.parser.push(text);
        append(events, out)
    }

    fn finish(self: Box<Self>, out: &mut Vec<Delta>) -> Result<(), CallError> {
        let events = self.parser.finish();
        append(events, out)
    }
}

fn append(events: Vec<Event>, out: &mut Vec<Delta>) -> Result<(), CallError> {
    for event in events {
        match event {
            // Nothing was said of it yet: it is text that only looked like a call.
            Event::Malformed(call) if call.index.is_none() => out.push(Delta::Text(call.raw)),
            Event::Malformed(call) => return Err(CallError::Malformed { message: chain(&call, ": ") }),
            event => out.extend(event.delta()),
        }
    }
    Ok(())
}
