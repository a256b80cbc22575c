use std::sync::Arc;

use breakers_core::Tool;

use super::closed::Enclosed;
use super::json::quoted;
use super::{IdForm, Lark, Layout, Reader, ToolError, ToolFormat};

/// `<tool_call>` around a JSON object, once for each call:
///
/// ```text
/// <tool_call>
/// {"name": "weather", "arguments": {"city": "Oslo"}}
/// </tool_call>
/// ```
///
/// # Source
/// NousResearch, Hermes-Function-Calling; chat templates of Hermes 2 Pro, Hermes 3, Qwen 2.5 and Qwen 3.
///
/// # Deviations
/// The reader takes the object's keys in any order and `parameters` for `arguments`, and does without the
/// closing marker at the end of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Hermes;

impl ToolFormat for Hermes {
    fn layout(&self) -> Layout {
        Layout {
            open: "<tool_call>",
            prefix: "\n",
            between: "\n",
            reopens: true,
            close: "\n</tool_call>",
            is_bare: false,
            is_parallel: true,
            ids: IdForm::default(),
        }
    }

    fn call(&self, tool: &Tool, lark: &mut Lark<'_>) -> Result<String, ToolError> {
        let head = lark.literal(&format!("{{\"name\": {}, \"arguments\": ", quoted(&tool.name)));
        Ok(format!("{head} {} \"}}\"", lark.arguments(tool)?))
    }

    fn reader(&self, _tools: &Arc<[Tool]>, _is_bare: bool) -> Box<dyn Reader> {
        Box::new(Enclosed::one("</tool_call>", false))
    }

    fn example(&self) -> &'static str {
        "<tool_call>\n{\"name\": the function's name, \"arguments\": an object of its arguments}\n\
            </tool_call>"
    }
}

/// As [`Hermes`], also for models that leave the markers out: an answer that begins with a brace is a call.
///
/// # Source
/// Qwen2.5-Coder: its chat template is that of Qwen 2.5 and asks for markers, which the model does not write.
///
/// # Deviations
/// An answer in text cannot begin with a brace.
#[derive(Clone, Copy, Debug)]
pub struct HermesBare;

impl ToolFormat for HermesBare {
    fn layout(&self) -> Layout {
        Layout { is_bare: true, ..Hermes.layout() }
    }

    fn call(&self, tool: &Tool, lark: &mut Lark<'_>) -> Result<String, ToolError> {
        Hermes.call(tool, lark)
    }

    fn reader(&self, tools: &Arc<[Tool]>, is_bare: bool) -> Box<dyn Reader> {
        if is_bare { Box::new(Enclosed::one("", true)) } else { Hermes.reader(tools, false) }
    }

    fn example(&self) -> &'static str {
        Hermes.example()
    }
}
