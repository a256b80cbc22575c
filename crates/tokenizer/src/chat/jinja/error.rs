//! What can go wrong in a template.

use std::fmt;

/// Why a chat template does not parse, or fails while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateError {
    line: usize,
    message: String,
    refusal: Option<String>,
}

impl TemplateError {
    /// An error without a line.
    pub fn new(message: impl Into<String>) -> Self {
        Self { line: 0, message: message.into(), refusal: None }
    }

    /// The error of `raise_exception`.
    pub(super) fn refusal(message: String) -> Self {
        Self { line: 0, message: format!("the template refuses: {message}"), refusal: Some(message) }
    }

    /// The same error at a line, unless it has one already.
    pub(super) fn at(mut self, line: usize) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }

    /// The line of the template, from 1; 0 if it is not known.
    pub fn line(&self) -> usize {
        self.line
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The template's own message, if it has called `raise_exception`.
    pub fn refused(&self) -> Option<&str> {
        self.refusal.as_deref()
    }
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "line {line}: {}", self.message),
        }
    }
}

impl std::error::Error for TemplateError {}

/// Result of the functions of this module.
pub(super) type Result<T = super::value::Value> = std::result::Result<T, TemplateError>;

/// Fails with a message.
pub(super) fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(TemplateError::new(message))
}
