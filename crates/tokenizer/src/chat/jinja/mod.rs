//! Jinja2 as the sandbox of `transformers` runs it, with the values, operators and methods of Python.
//!
//! Chat templates are written for this one program, and a prompt that differs in a single space or quote is a
//! different prompt. So this implements Jinja2 in full: its grammar and precedences, its whitespace rules,
//! and all of its filters, tests and functions. It also implements the parts of Python that templates see:
//! how values are printed, compared, divided and formatted. A table of fragments with Jinja2's answers tests
//! it (`tests/data/jinja_cases.json`).
//!
//! # Deviations
//! Whole numbers have 120 bits. `lipsum()` is refused. Values whose text contains a memory address
//! (functions, generators) cannot be printed. `\N{name}` in strings is refused. Running time, depth and the
//! size of results are bounded.
//!
//! # Source
//! The documentation of Jinja2 3.1 (jinja.palletsprojects.com) and of Python 3 (docs.python.org).

mod arguments;
mod ast;
mod error;
mod eval;
mod expressions;
mod filters;
mod format;
mod lexer;
mod lists;
mod markup;
mod methods;
mod operators;
mod parser;
mod predicates;
mod run;
mod strings;
mod text;
mod time;
mod value;
mod wrap;

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use self::{
    ast::{Name, Statement},
    error::Result,
    eval::Interpreter,
    value::{Function, Value},
};
use super::json::Tree;

pub use self::error::TemplateError;

/// A parsed template, which can be run any number of times.
#[derive(Clone, Debug)]
pub(super) struct Template {
    body: Arc<Vec<Statement>>,
    names_messages: bool,
}

impl Template {
    pub(super) fn parse(source: &str) -> Result<Self> {
        let (body, names_messages) = with_stack(|| parser::parse(source))?;
        Ok(Self { body: Arc::new(body), names_messages })
    }

    /// Whether the variable `messages` occurs.
    pub(super) fn names_messages(&self) -> bool {
        self.names_messages
    }

    /// The template's output for some variables. `now` is in UTC; without it, the machine's local time is
    /// used.
    pub(super) fn render(&self, variables: &[(&str, Tree)], now: Option<SystemTime>) -> Result<String> {
        with_stack(|| self.run(variables, now))
    }

    fn run(&self, variables: &[(&str, Tree)], now: Option<SystemTime>) -> Result<String> {
        let functions: HashMap<&'static str, Function> = Function::ALL.into();
        let variables: HashMap<Name, Value> = variables
            .iter()
            .map(|(name, value)| Ok(((*name).into(), to_value(value)?)))
            .collect::<Result<_>>()?;
        let mut interpreter = Interpreter::new(variables, now.map(time::DateTime::utc), &functions);
        let mut out = String::new();
        interpreter.body(&self.body, &mut out)?;
        Ok(out)
    }
}

/// Bytes of stack for the deepest template that the limits allow, even in a build without optimization.
const STACK: usize = 64 << 20;

/// Runs a function on a thread with its own stack: templates may be recursive, and the caller may have little
/// stack left. Pages that are not touched cost nothing.
fn with_stack<T: Send>(part: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("chat template".to_owned()).stack_size(STACK);
        match builder.spawn_scoped(scope, part) {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => error::fail(format!("no thread to run in: {error}")),
        }
    })
}

/// Converts a JSON value to a Python value.
fn to_value(json: &Tree) -> Result {
    Ok(match json {
        Tree::Null => Value::None,
        Tree::Bool(value) => Value::Bool(*value),
        Tree::Int(value) => Value::Int(*value),
        Tree::Float(value) => Value::Float(*value),
        Tree::Text(text) => Value::text(text.as_str()),
        Tree::List(items) => Value::list(items.iter().map(to_value).collect::<Result<_>>()?),
        Tree::Object(entries) => {
            let entries =
                entries.iter().map(|(key, value)| Ok((Value::text(key.as_str()), to_value(value)?)));
            Value::dict(entries.collect::<Result<Vec<_>>>()?)?
        }
    })
}
