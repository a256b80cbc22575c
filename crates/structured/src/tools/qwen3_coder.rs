use std::sync::Arc;

use breakers_core::Tool;
use serde_json::Value;

use super::json::{Scan, Scanner, escape, is_space, quoted};
use super::kinds::{self, Kinds};
use super::{CallFault, Calls, Hermes, Lark, Layout, Reader, Step, ToolError, ToolFormat};

pub(super) const FUNCTION: &str = "<function=";
pub(super) const FUNCTION_END: &str = "</function>";
pub(super) const PARAMETER: &str = "<parameter=";
pub(super) const PARAMETER_END: &str = "</parameter>";
/// White space that may stand between two tags.
pub(super) const MOST_SPACE: usize = 4;

/// Parameters between tags, strings as they are:
///
/// ```text
/// <tool_call>
/// <function=weather>
/// <parameter=city>
/// Oslo
/// </parameter>
/// </function>
/// </tool_call>
/// ```
///
/// A value is read by the type that the function's parameters give it: a string is the text between the tags,
/// without the line breaks next to them; anything else is JSON. Where a value may be a string or something
/// else, what spells a number, `true`, `false` or `null` of an allowed type is that, what begins with a
/// bracket of an allowed type is JSON, and the rest is a string.
///
/// # Source
/// Chat template of Qwen3-Coder, and of Qwen 3.5 and later, which write the same.
///
/// # Deviations
/// - A string cannot hold `</parameter>` where another tag of the call follows it: nothing could tell it from
///   the end of the value.
/// - The grammar enforces `enum`, `const` and lengths of strings; further keywords of strings, and those that
///   concern several parameters at once, are refused for strict functions and left out with a warning for
///   others. Parameters come in declared order, those that are not declared last.
/// - Python's `True`, `False` and `None`, which the template writes for earlier calls, are read as JSON's.
#[derive(Clone, Copy, Debug)]
pub struct Qwen3Coder;

impl ToolFormat for Qwen3Coder {
    /// The same tags around a call.
    fn layout(&self) -> Layout {
        Hermes.layout()
    }

    fn call(&self, tool: &Tool, lark: &mut Lark<'_>) -> Result<String, ToolError> {
        super::qwen3_coder_grammar::call(tool, lark)
    }

    fn reader(&self, tools: &Arc<[Tool]>, _is_bare: bool) -> Box<dyn Reader> {
        Box::new(Tags {
            tools: tools.clone(),
            parameters: Value::Null,
            n_parameters: 0,
            state: State::Open(String::new()),
        })
    }

    fn example(&self) -> &'static str {
        "<tool_call>\n<function=the function's name>\n<parameter=a parameter's name>\nits value\n\
            </parameter>\n</function>\n</tool_call>"
    }
}

/// Reads a function's tags.
#[derive(Debug)]
struct Tags {
    tools: Arc<[Tool]>,
    /// The parameters of the function, once it is known; null if it is not one of these.
    parameters: Value,
    n_parameters: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Before the name: the part of the tag that has come.
    Open(String),
    Name(String),
    /// Between parameters: the part of a tag that has come.
    Between(String),
    Key(String),
    Value(Reading),
    /// After JSON: the part of the end tag that has come.
    ValueEnd(String),
    /// After the function: the part of the closing marker that has come.
    Close(String),
}

#[derive(Debug)]
struct Reading {
    kinds: Kinds,
    kind: Form,
    /// What may be the tag that ends it.
    held: String,
}

#[derive(Debug)]
enum Form {
    /// White space before it, which may be part of it.
    Unknown(String),
    /// A string: whether something of it has come.
    Text {
        has_begun: bool,
    },
    /// A string or a word, which only its end tells.
    Word(String),
    Json(Scanner),
}

/// What the end of a value may be.
enum Tail {
    No,
    Maybe,
    /// It is, and this is the tag after it.
    Parameter,
    Function,
}

fn tail(held: &str) -> Tail {
    let rest = held.strip_prefix('\n').unwrap_or(held);
    let Some(rest) = rest.strip_prefix(PARAMETER_END) else {
        return if PARAMETER_END.starts_with(rest) { Tail::Maybe } else { Tail::No };
    };
    let tag = rest.trim_start_matches(is_space);
    if rest.len() - tag.len() > MOST_SPACE {
        return Tail::No;
    }
    match tag {
        PARAMETER => Tail::Parameter,
        FUNCTION_END => Tail::Function,
        tag if PARAMETER.starts_with(tag) || FUNCTION_END.starts_with(tag) => Tail::Maybe,
        _ => Tail::No,
    }
}

fn unexpected(expected: &'static str, found: char) -> Step {
    Step::Fault(CallFault::Unexpected { expected, found })
}

impl Tags {
    fn kinds(&self, key: &str) -> Kinds {
        let schema = kinds::resolve(&self.parameters, &self.parameters);
        let property = schema.get("properties").and_then(|members| members.get(key));
        let property = property.or_else(|| schema.get("additionalProperties"));
        property.map_or(Kinds::ANY, |property| Kinds::of(property, &self.parameters))
    }

    fn value(&mut self, c: char, calls: &mut Calls) -> Step {
        let State::Value(reading) = &mut self.state else { return Step::More };
        if let Form::Json(scanner) = &mut reading.kind {
            let step = scanner.take(c);
            match step {
                Scan::More | Scan::End => calls.arguments(c.encode_utf8(&mut [0; 4])),
                Scan::EndBefore | Scan::Fault => return unexpected("the rest of a value", c),
            }
            if step == Scan::End {
                self.state = State::ValueEnd(String::new());
            }
            return Step::More;
        }
        reading.held.push(c);
        loop {
            match tail(&reading.held) {
                Tail::Maybe => return Step::More,
                Tail::No => {
                    let first = reading.held.remove(0);
                    if let Err(step) = reading.take(first, calls) {
                        return step;
                    }
                    if let Form::Json(_) = reading.kind {
                        // Only the bracket that began it was held.
                        return Step::More;
                    }
                    if reading.held.is_empty() {
                        return Step::More;
                    }
                }
                tag => {
                    if let Err(fault) = reading.end(calls) {
                        return Step::Fault(fault);
                    }
                    self.state = match tag {
                        Tail::Function => {
                            calls.arguments("}");
                            State::Close(String::new())
                        }
                        _ => State::Key(String::new()),
                    };
                    return Step::More;
                }
            }
        }
    }
}

impl Reading {
    /// The next character of the value.
    fn take(&mut self, c: char, calls: &mut Calls) -> Result<(), Step> {
        let kinds = self.kinds;
        match &mut self.kind {
            Form::Unknown(space) => {
                if is_space(c) {
                    space.push(c);
                    return Ok(());
                }
                let space = std::mem::take(space);
                if (c == '{' && kinds.object) || (c == '[' && kinds.array) {
                    let mut scanner = Scanner::new();
                    scanner.take(c);
                    calls.arguments(c.encode_utf8(&mut [0; 4]));
                    self.kind = Form::Json(scanner);
                    return Ok(());
                }
                if !kinds.string && !kinds.literal() {
                    return Err(unexpected("a list or an object", c));
                }
                self.begin_text();
                for c in space.chars().chain([c]) {
                    self.take(c, calls)?;
                }
            }
            Form::Text { has_begun } => {
                let mut out = String::new();
                if !*has_begun {
                    out.push('"');
                }
                // The line break behind the tag.
                if *has_begun || c != '\n' {
                    escape(c, &mut out);
                }
                *has_begun = true;
                calls.arguments(&out);
            }
            Form::Word(text) => text.push(c),
            Form::Json(_) => {}
        }
        Ok(())
    }

    fn begin_text(&mut self) {
        self.kind = match self.kinds.literal() {
            true => Form::Word(String::new()),
            false => Form::Text { has_begun: false },
        };
    }

    /// The value has ended.
    fn end(&mut self, calls: &mut Calls) -> Result<(), CallFault> {
        if let Form::Unknown(space) = &mut self.kind {
            let space = std::mem::take(space);
            self.begin_text();
            for c in space.chars() {
                let _ = self.take(c, calls);
            }
        }
        match &self.kind {
            Form::Text { .. } if !self.kinds.string => {
                return Err(CallFault::Unexpected {
                    expected: "a value of the parameter's type",
                    found: '<',
                });
            }
            Form::Text { has_begun: false } => calls.arguments("\"\""),
            Form::Text { has_begun: true } => calls.arguments("\""),
            Form::Word(text) => match kinds::literal(text.trim_matches(is_space), self.kinds) {
                Some(literal) => calls.arguments(literal),
                None if self.kinds.string => {
                    calls.arguments(&quoted(text.strip_prefix('\n').unwrap_or(text)));
                }
                None => {
                    let expected = "a value of the parameter's type";
                    return Err(CallFault::Unexpected { expected, found: '<' });
                }
            },
            Form::Unknown(_) | Form::Json(_) => {}
        }
        Ok(())
    }
}

/// Adds a character to what may become a tag.
fn tag(part: &mut String, c: char, tags: &[&str], expected: &'static str) -> Result<bool, Step> {
    if part.is_empty() && is_space(c) {
        return Ok(false);
    }
    part.push(c);
    if tags.iter().any(|tag| tag == part) {
        return Ok(true);
    }
    match tags.iter().any(|tag| tag.starts_with(&*part)) {
        true => Ok(false),
        false => Err(unexpected(expected, c)),
    }
}

impl Reader for Tags {
    fn take(&mut self, c: char, calls: &mut Calls) -> Step {
        let expected = self.expected();
        let is_whole = match &mut self.state {
            State::Open(part) => tag(part, c, &[FUNCTION], expected),
            State::Between(part) => tag(part, c, &[PARAMETER, FUNCTION_END], expected),
            State::ValueEnd(part) => tag(part, c, &[PARAMETER_END], expected),
            State::Close(part) => tag(part, c, &["</tool_call>"], expected),
            State::Name(text) | State::Key(text) => match c {
                '<' | '\n' => Err(unexpected(expected, c)),
                '>' => Ok(true),
                c => {
                    text.push(c);
                    Ok(false)
                }
            },
            State::Value(_) => return self.value(c, calls),
        };
        match is_whole {
            Ok(false) => return Step::More,
            Ok(true) => {}
            Err(step) => return step,
        }
        let state = std::mem::replace(&mut self.state, State::Between(String::new()));
        self.state = match state {
            State::Open(_) => State::Name(String::new()),
            State::Name(name) if name.is_empty() => return Step::Fault(CallFault::NoName),
            State::Name(name) => {
                let tool = self.tools.iter().find(|tool| tool.name == name);
                self.parameters = tool.and_then(|tool| tool.parameters.to().ok()).unwrap_or_default();
                calls.begin(name, None);
                calls.arguments("{");
                State::Between(String::new())
            }
            State::Between(part) if part == FUNCTION_END => {
                calls.arguments("}");
                State::Close(String::new())
            }
            State::Between(_) => State::Key(String::new()),
            State::Key(key) if key.is_empty() => return unexpected("a parameter's name", c),
            State::Key(key) => {
                let comma = if self.n_parameters > 0 { "," } else { "" };
                self.n_parameters += 1;
                calls.arguments(&format!("{comma}{}:", quoted(&key)));
                let kinds = self.kinds(&key);
                State::Value(Reading { kinds, kind: Form::Unknown(String::new()), held: String::new() })
            }
            State::ValueEnd(_) => State::Between(String::new()),
            State::Close(_) => {
                calls.end();
                return Step::Done;
            }
            state @ State::Value(_) => state,
        };
        Step::More
    }

    fn end(&mut self, calls: &mut Calls) -> Result<(), CallFault> {
        match &self.state {
            // A model that stops before the marker has said all of the call.
            State::Close(part) if part.is_empty() => {
                calls.end();
                Ok(())
            }
            _ => Err(CallFault::Unfinished { expected: self.expected() }),
        }
    }
}

impl Tags {
    fn expected(&self) -> &'static str {
        match self.state {
            State::Open(_) => "<function=",
            State::Name(_) => "a function's name and '>'",
            State::Between(_) => "<parameter= or </function>",
            State::Key(_) => "a parameter's name and '>'",
            State::Value(_) => "the rest of a value and </parameter>",
            State::ValueEnd(_) => "</parameter>",
            State::Close(_) => "</tool_call>",
        }
    }
}
