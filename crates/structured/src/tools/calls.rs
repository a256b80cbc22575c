use breakers_core::{ChatRequest, ResponseFormat, Tool, ToolChoice, Vocabulary};
use serde_json::{Value, json};

use super::lark::{self, ANY_TEXT, Lark};
use super::{ToolError, ToolFormat};
use crate::{Error, Grammar, SchemaOptions, schema};

/// Which calls an answer may or must hold.
///
/// # Example
/// ```
/// use breakers_core::{ChatRequest, Json, Tool, ToolChoice};
/// use breakers_structured::tools::CallRules;
///
/// let weather = Tool::new("weather", Json::parse(r#"{"type": "object"}"#)?);
/// let request = ChatRequest::new("Oslo?").with_tools([weather], ToolChoice::Required);
/// assert_eq!(CallRules::of(&request).choice, &ToolChoice::Required);
/// # Ok::<(), breakers_core::JsonError>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CallRules<'a> {
    /// Functions that may be called.
    pub tools: &'a [Tool],
    /// Which of them may or must be called.
    pub choice: &'a ToolChoice,
    /// Whether one answer may hold several calls; `None`: as the model's format has it.
    pub parallel: Option<bool>,
    /// What an answer without calls must be.
    pub response: &'a ResponseFormat,
}

impl<'a> CallRules<'a> {
    /// What a request asks for.
    pub fn of(request: &'a ChatRequest) -> Self {
        Self {
            tools: &request.tools,
            choice: &request.tool_choice,
            parallel: request.parallel_tool_calls,
            response: &request.response,
        }
    }

    /// The functions that an answer may call, each name once.
    fn callable(&self, format: &'static str) -> Result<Vec<&'a Tool>, ToolError> {
        for (i, tool) in self.tools.iter().enumerate() {
            if tool.name.is_empty() {
                return Err(ToolError::Name { name: String::new(), format, reason: "expected a name" });
            }
            if self.tools[..i].iter().any(|other| other.name == tool.name) {
                return Err(ToolError::RepeatedFunction { name: tool.name.clone() });
            }
        }
        let named = |name: &String| -> Result<Vec<&'a Tool>, ToolError> {
            let tool = self.tools.iter().find(|tool| tool.name == *name);
            let known = || self.tools.iter().map(|tool| tool.name.as_str()).collect::<Vec<_>>().join(", ");
            let unknown = || ToolError::UnknownFunction { name: name.clone(), known: known() };
            Ok(vec![tool.ok_or_else(unknown)?])
        };
        match self.choice {
            ToolChoice::None => Ok(Vec::new()),
            ToolChoice::Function(name) => named(name),
            ToolChoice::Required if self.tools.is_empty() => Err(ToolError::NoFunctions),
            _ => Ok(self.tools.iter().collect()),
        }
    }

    fn is_forced(&self) -> bool {
        matches!(self.choice, ToolChoice::Required | ToolChoice::Function(_))
    }
}

/// A grammar of answers with calls.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ToolGrammar {
    /// The grammar.
    pub grammar: Grammar,
    /// Where it accepts more than a function's parameters do.
    pub warnings: Vec<Warning>,
}

/// A part of a function's parameters that the grammar leaves out: the arguments may violate it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the grammar accepts more than the parameters of {function}")]
#[non_exhaustive]
pub struct Warning {
    /// The function.
    pub function: String,
    /// What is left out.
    #[source]
    pub reason: Error,
}

/// The grammar of answers in a format.
///
/// # Errors
/// [`ToolError`].
pub(super) fn grammar(
    format: &dyn ToolFormat,
    name: &'static str,
    rules: &CallRules<'_>,
    vocabulary: &dyn Vocabulary,
) -> Result<ToolGrammar, ToolError> {
    let layout = format.layout();
    let mut lark = Lark::new(vocabulary);
    let callable = rules.callable(name)?;
    let answer = match rules.response {
        ResponseFormat::JsonObject => Some(json!({ "type": "object" })),
        ResponseFormat::JsonSchema(schema) => {
            Some(schema.schema.to::<Value>().map_err(|error| ToolError::Grammar(error.into()))?)
        }
        // A grammar of the answer alone leaves no room for calls, unless a call is all that may come.
        format if format.is_grammar() && !rules.is_forced() && !callable.is_empty() => {
            return Err(ToolError::AnswerFormat { format: name });
        }
        _ => None,
    };
    let answer = answer.filter(|_| !rules.is_forced());
    if answer.is_some() && layout.is_bare && !callable.is_empty() {
        return Err(ToolError::AnswerFormat { format: name });
    }
    let mut options = Vec::new();
    // Free text: nothing in it may be taken for a call.
    let mut body = format!("{ANY_TEXT} & {}", lark::without(layout.open));
    if layout.is_bare {
        body = format!("({body}) & ~/[ \\t\\r\\n]*\\{{(?s:.*)/");
    }
    match &answer {
        Some(schema) => {
            let schemas = schema::Schemas::new(schema);
            let rewritten = schema::rewrite(&schemas, SchemaOptions::default(), schema::Looseness::Least);
            let rewritten = rewritten.map_err(ToolError::Grammar)?;
            if !rewritten.wider.is_empty() {
                return Err(ToolError::Grammar(lark::only_checked("response")));
            }
            options.push(lark.any_json(rewritten.schema));
        }
        None if !rules.is_forced() => {
            let text = lark.terminal(&format!("/(?s:.+)/ & ({body})"));
            options.push(format!("{text}?"));
        }
        None => {}
    }
    if !callable.is_empty() {
        let one: Vec<String> =
            callable.iter().map(|tool| format.call(tool, &mut lark)).collect::<Result<_, _>>()?;
        let call = lark.rule(&one.join(" | "));
        let is_parallel = rules.parallel.unwrap_or(layout.is_parallel);
        let open = lark.marker(layout.open);
        let [prefix, between, close] =
            [layout.prefix, layout.between, layout.close].map(|text| lark.spelled(text));
        // Behind the first marker.
        let calls = match (layout.reopens, is_parallel) {
            (true, true) => format!("{prefix} {call} {close} ({between} {open} {prefix} {call} {close})*"),
            (false, true) => format!("{prefix} {call} ({between} {call})* {close}"),
            (_, false) => format!("{prefix} {call} {close}"),
        };
        let calls = lark.rule(&calls);
        // Without a marker in front there is none behind.
        let is_enclosed = !layout.close.is_empty();
        if layout.is_bare {
            options.push(if is_enclosed { call } else { calls.clone() });
        }
        if !rules.is_forced() && answer.is_none() {
            let any = if layout.is_bare { "~/[ \\t\\r\\n]*\\{(?s:.*)/" } else { ANY_TEXT };
            let before = lark.terminal(&format!("{ANY_TEXT} & {any}"));
            let before = lark.until(&before, layout.open);
            options.push(format!("{before} {calls}"));
        } else if !layout.is_bare || is_enclosed {
            options.push(format!("{open} {calls}"));
        }
    }
    let (grammar, warnings) = lark.finish(&options.join(" | "));
    Ok(ToolGrammar { grammar, warnings })
}
