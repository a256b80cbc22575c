use std::sync::Arc;

use breakers_core::Tool;

use super::closed::Enclosed;
use super::json::quoted;
use super::{IdForm, Lark, Layout, Reader, ToolError, ToolFormat};

/// A fenced block of JSON objects, a line for each call:
///
/// ````text
/// ```tool_code
/// {"name": "weather", "parameters": {"city": "Oslo"}}
/// ```
/// ````
///
/// # Source
/// Gemma 3 has no form of its own and its template says nothing of functions: they are described in the
/// prompt. The object is that of Google's guide ("Function calling with Gemma", ai.google.dev), the fence
/// what the model was seen to write around calls.
///
/// # Deviations
/// The guide's other form, calls in the syntax of Python, is not read.
#[derive(Clone, Copy, Debug)]
pub struct Gemma3;

impl ToolFormat for Gemma3 {
    fn layout(&self) -> Layout {
        Layout {
            open: "```tool_code",
            prefix: "\n",
            between: "\n",
            reopens: false,
            close: "\n```",
            is_bare: false,
            is_parallel: true,
            ids: IdForm::default(),
        }
    }

    fn call(&self, tool: &Tool, lark: &mut Lark<'_>) -> Result<String, ToolError> {
        let head = lark.literal(&format!("{{\"name\": {}, \"parameters\": ", quoted(&tool.name)));
        Ok(format!("{head} {} \"}}\"", lark.arguments(tool)?))
    }

    fn reader(&self, _tools: &Arc<[Tool]>, _is_bare: bool) -> Box<dyn Reader> {
        Box::new(Enclosed::many("```"))
    }

    fn example(&self) -> &'static str {
        "```tool_code\n{\"name\": the function's name, \"parameters\": an object of its arguments}\n```"
    }
}
