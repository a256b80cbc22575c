use std::fmt;
use std::sync::Arc;

use breakers_core::Tool;

use super::{IdForm, Lark, Reader, ToolError};

/// The form in which models of a family write calls of functions.
///
/// One description gives both halves: the grammar that a model is held to, and the reader that takes its
/// calls apart. A new format is a file and a line in [`FORMATS`](super::FORMATS).
pub trait ToolFormat: fmt::Debug + Send + Sync {
    /// What stands around calls.
    fn layout(&self) -> Layout;

    /// The expression for one call of a function, between what [`layout`](Self::layout) puts around it.
    ///
    /// # Errors
    /// [`ToolError::Parameters`], [`ToolError::Name`].
    fn call(&self, tool: &Tool, lark: &mut Lark<'_>) -> Result<String, ToolError>;

    /// Reads what follows [`Layout::open`], up to where text may stand again. `is_bare`: the call began
    /// without a marker, and its brace comes first.
    fn reader(&self, tools: &Arc<[Tool]>, is_bare: bool) -> Box<dyn Reader>;

    /// A call as a model is to write it, with words in the place of the name and of the arguments.
    fn example(&self) -> &'static str;

    /// What tells a model of its functions if its chat template does not: a part of the instructions.
    fn instructions(&self, tools: &[Tool]) -> String {
        let mut text = "You can call these functions, each described by a JSON object:\n".to_owned();
        for tool in tools {
            text += tool.to_json().as_str();
            text.push('\n');
        }
        text += "To call a function, end your answer with:\n";
        text += self.example();
        text += "\nIf no function helps, answer without it.";
        text
    }
}

/// What stands around calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The marker that begins a call, or the list of all calls.
    pub open: &'static str,
    /// What follows it.
    pub prefix: &'static str,
    /// What stands between two calls, before the marker of the second if it has one.
    pub between: &'static str,
    /// Whether each call has its own marker.
    pub reopens: bool,
    /// What ends a call, or the list of all calls.
    pub close: &'static str,
    /// Whether the answer may also begin with a call as it is, without a marker.
    pub is_bare: bool,
    /// Whether a model writes several calls if nobody says whether it may.
    pub is_parallel: bool,
    /// How ids look that the model does not give itself.
    pub ids: IdForm,
}

/// Refuses names that cannot stand unquoted.
///
/// # Errors
/// [`ToolError::Name`].
pub(super) fn plain_name<'a>(name: &'a str, format: &'static str) -> Result<&'a str, ToolError> {
    let is_plain = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    if !name.is_empty() && name.chars().all(is_plain) {
        return Ok(name);
    }
    let reason = "expected letters, digits, '_', '-' and '.'";
    Err(ToolError::Name { name: name.to_owned(), format, reason })
}
