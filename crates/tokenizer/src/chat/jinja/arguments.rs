//! The arguments of a call, taken one after the other.

use std::collections::VecDeque;

use super::ast::Name;
use super::error::{Result, fail};
use super::text::str;
use super::value::Value;

/// The arguments that have not been taken yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Args {
    pub(super) positional: VecDeque<Value>,
    pub(super) named: Vec<(Name, Value)>,
}

impl Args {
    pub(super) fn of(positional: Vec<Value>) -> Self {
        Self { positional: positional.into(), named: Vec::new() }
    }

    /// The next argument, by its place or its name.
    pub(super) fn take(&mut self, name: &str) -> Result<Option<Value>> {
        let named =
            self.named.iter().position(|(found, _)| &**found == name).map(|at| self.named.remove(at).1);
        match (self.positional.pop_front(), named) {
            (Some(_), Some(_)) => fail(format!("two values for the argument {name:?}")),
            (value, named) => Ok(value.or(named)),
        }
    }

    pub(super) fn require(&mut self, name: &str) -> Result {
        match self.take(name)? {
            Some(value) => Ok(value),
            None => fail(format!("the argument {name:?} is missing")),
        }
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name)? {
            None | Some(Value::None) => Ok(None),
            Some(value) => match value.as_text() {
                Some(text) => Ok(Some(text.to_owned())),
                None => fail(format!("{name:?} must be a text, not {}", value.described())),
            },
        }
    }

    pub(super) fn require_text(&mut self, name: &str) -> Result<String> {
        match self.text(name)? {
            Some(text) => Ok(text),
            None => fail(format!("the argument {name:?} is missing")),
        }
    }

    /// Any value as text.
    pub(super) fn printed(&mut self, name: &str) -> Result<Option<String>> {
        self.take(name)?.map(|value| str(&value)).transpose()
    }

    pub(super) fn int(&mut self, name: &str) -> Result<Option<i128>> {
        match self.take(name)? {
            None | Some(Value::None) => Ok(None),
            Some(value) => match value.as_int() {
                Some(number) => Ok(Some(number)),
                None => fail(format!("{name:?} must be a whole number, not {}", value.described())),
            },
        }
    }

    /// A number of characters or items; below 0 counts as 0.
    pub(super) fn count(&mut self, name: &str) -> Result<Option<usize>> {
        Ok(self.int(name)?.map(|number| usize::try_from(number.max(0)).unwrap_or(usize::MAX)))
    }

    pub(super) fn flag(&mut self, name: &str, default: bool) -> Result<bool> {
        Ok(self.take(name)?.map_or(default, |value| value.is_true()))
    }

    /// Fails if something is left.
    pub(super) fn finish(self) -> Result<()> {
        match (self.positional.front(), self.named.first()) {
            (None, None) => Ok(()),
            (_, Some((name, _))) => fail(format!("there is no argument {name:?}")),
            _ => fail("too many arguments"),
        }
    }
}
