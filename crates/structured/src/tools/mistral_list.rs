use std::sync::Arc;

use breakers_core::Tool;

use super::closed::Enclosed;
use super::json::quoted;
use super::{IdForm, Lark, Layout, Reader, ToolError, ToolFormat};

/// `[TOOL_CALLS]` and a JSON list of all calls:
///
/// ```text
/// [TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}}]
/// ```
///
/// # Source
/// Chat templates of Mistral 7B v0.3, Nemo and Mistral Small 3.1 (tokenizers before version 11). Their ids
/// are nine letters or digits, and templates insist on it.
///
/// # Deviations
/// An id that the model writes counts if it stands before the arguments.
#[derive(Clone, Copy, Debug)]
pub struct MistralList;

impl ToolFormat for MistralList {
    fn layout(&self) -> Layout {
        Layout {
            open: "[TOOL_CALLS]",
            prefix: " [",
            between: ", ",
            reopens: false,
            close: "]",
            is_bare: false,
            is_parallel: true,
            ids: IdForm { prefix: "", length: 9 },
        }
    }

    fn call(&self, tool: &Tool, lark: &mut Lark<'_>) -> Result<String, ToolError> {
        let head = lark.literal(&format!("{{\"name\": {}, \"arguments\": ", quoted(&tool.name)));
        Ok(format!("{head} {} \"}}\"", lark.arguments(tool)?))
    }

    fn reader(&self, _tools: &Arc<[Tool]>, _is_bare: bool) -> Box<dyn Reader> {
        Box::new(Enclosed::list())
    }

    fn example(&self) -> &'static str {
        "[TOOL_CALLS] [{\"name\": the function's name, \"arguments\": an object of its arguments}]"
    }
}
