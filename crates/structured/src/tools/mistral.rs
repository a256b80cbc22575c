use std::sync::Arc;

use breakers_core::Tool;

use super::format::plain_name;
use super::json::{Scan, Scanner, is_space};
use super::{CallFault, Calls, IdForm, Lark, Layout, Reader, Step, ToolError, ToolFormat};

const ARGUMENTS: &str = "[ARGS]";
const ID: &str = "[CALL_ID]";

/// `[TOOL_CALLS]`, a name, `[ARGS]` and a JSON object, for each call:
///
/// ```text
/// [TOOL_CALLS]weather[ARGS]{"city": "Oslo"}
/// ```
///
/// # Source
/// mistralai/mistral-common, tokenizers of version 11 and 13; templates of Magistral, Devstral, Mistral Small
/// 3.2 and Ministral 3. Version 11 puts `[CALL_ID]` and an id before `[ARGS]`, which the reader takes.
///
/// # Deviations
/// The reader also takes a name right before the object, as vLLM does.
#[derive(Clone, Copy, Debug)]
pub struct Mistral;

impl ToolFormat for Mistral {
    fn layout(&self) -> Layout {
        Layout {
            open: "[TOOL_CALLS]",
            prefix: "",
            between: "",
            reopens: true,
            close: "",
            is_bare: false,
            is_parallel: true,
            ids: IdForm { prefix: "", length: 9 },
        }
    }

    fn call(&self, tool: &Tool, lark: &mut Lark<'_>) -> Result<String, ToolError> {
        let name = lark.literal(plain_name(&tool.name, "mistral")?);
        Ok(format!("{name} {} {}", lark.marker(ARGUMENTS), lark.arguments(tool)?))
    }

    fn reader(&self, _tools: &Arc<[Tool]>, _is_bare: bool) -> Box<dyn Reader> {
        Box::new(NamedObject { state: State::Name(String::new()) })
    }

    fn example(&self) -> &'static str {
        "[TOOL_CALLS]the function's name[ARGS]an object of its arguments"
    }
}

/// Reads a name and an object.
#[derive(Debug)]
struct NamedObject {
    state: State,
}

#[derive(Debug)]
enum State {
    /// The name so far, with the beginning of a marker.
    Name(String),
    /// The same of an id.
    Id {
        name: String,
        text: String,
    },
    Object {
        scanner: Scanner,
        has_begun: bool,
    },
}

impl State {
    fn expected(&self) -> &'static str {
        match self {
            State::Name(_) | State::Id { .. } => "a function's name and its arguments",
            State::Object { has_begun: false, .. } => "an object of arguments",
            State::Object { .. } => "the rest of the arguments",
        }
    }
}

/// Whether a text may become a name or an id with one of the markers behind it.
fn may_become(text: &str, markers: &[&str]) -> bool {
    let (name, marker) = text.split_at(text.find('[').unwrap_or(text.len()));
    let is_plain = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    name.trim_matches(is_space).chars().all(is_plain) && markers.iter().any(|whole| whole.starts_with(marker))
}

impl NamedObject {
    fn begin(&mut self, name: &str, id: Option<&str>, calls: &mut Calls) -> Step {
        let name = name.trim_matches(is_space);
        if name.is_empty() {
            return Step::Fault(CallFault::NoName);
        }
        calls.begin(name.to_owned(), id.map(|id| id.trim_matches(is_space).to_owned()));
        self.state = State::Object { scanner: Scanner::new(), has_begun: false };
        Step::More
    }

    fn unexpected(&self, found: char) -> Step {
        Step::Fault(CallFault::Unexpected { expected: self.state.expected(), found })
    }
}

impl Reader for NamedObject {
    fn take(&mut self, c: char, calls: &mut Calls) -> Step {
        match &mut self.state {
            State::Name(name) if c == '{' && !name.contains('[') => {
                let name = std::mem::take(name);
                match self.begin(&name, None, calls) {
                    Step::More => return self.take(c, calls),
                    step => return step,
                }
            }
            State::Name(text) => {
                text.push(c);
                if let Some(name) = text.strip_suffix(ARGUMENTS).map(str::to_owned) {
                    return self.begin(&name, None, calls);
                }
                if let Some(name) = text.strip_suffix(ID).map(str::to_owned) {
                    self.state = State::Id { name, text: String::new() };
                } else if !may_become(text, &[ARGUMENTS, ID]) {
                    return self.unexpected(c);
                }
            }
            State::Id { name, text } => {
                text.push(c);
                if let Some(id) = text.strip_suffix(ARGUMENTS) {
                    let (name, id) = (std::mem::take(name), id.to_owned());
                    return self.begin(&name, Some(&id), calls);
                }
                if !may_become(text, &[ARGUMENTS]) {
                    return self.unexpected(c);
                }
            }
            State::Object { has_begun: false, .. } if is_space(c) => {}
            State::Object { has_begun: false, .. } if c != '{' => return self.unexpected(c),
            State::Object { scanner, has_begun } => {
                *has_begun = true;
                let step = scanner.take(c);
                if matches!(step, Scan::EndBefore | Scan::Fault) {
                    return self.unexpected(c);
                }
                calls.arguments(c.encode_utf8(&mut [0; 4]));
                if step == Scan::End {
                    calls.end();
                    return Step::Done;
                }
            }
        }
        Step::More
    }

    fn end(&mut self, _calls: &mut Calls) -> Result<(), CallFault> {
        Err(CallFault::Unfinished { expected: self.state.expected() })
    }
}
