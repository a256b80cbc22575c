use std::sync::Arc;

use breakers_core::Tool;

use super::closed::Enclosed;
use super::json::quoted;
use super::{IdForm, Lark, Layout, Reader, ToolError, ToolFormat};

/// A JSON object that is the whole answer, or stands behind `<|python_tag|>`:
///
/// ```text
/// {"name": "weather", "parameters": {"city": "Oslo"}}
/// ```
///
/// # Source
/// Chat templates of Llama 3.1, 3.2 and 3.3 (Meta), which say this of functions that are not built in, and
/// refuse more than one call in a turn. So several calls are written only where a request asks for them, with
/// `; ` between them, as vLLM's parser for these models reads it.
///
/// # Deviations
/// - Calls of built-in tools as code behind the tag (`brave_search.call(query="…")`) are malformed calls.
/// - Text that begins with a brace is held back until its keys tell it from a call.
#[derive(Clone, Copy, Debug)]
pub struct Llama3;

impl ToolFormat for Llama3 {
    fn layout(&self) -> Layout {
        Layout {
            open: "<|python_tag|>",
            prefix: "",
            between: "; ",
            reopens: false,
            close: "",
            is_bare: true,
            is_parallel: false,
            ids: IdForm::default(),
        }
    }

    fn call(&self, tool: &Tool, lark: &mut Lark<'_>) -> Result<String, ToolError> {
        let head = lark.literal(&format!("{{\"name\": {}, \"parameters\": ", quoted(&tool.name)));
        Ok(format!("{head} {} \"}}\"", lark.arguments(tool)?))
    }

    fn reader(&self, _tools: &Arc<[Tool]>, is_bare: bool) -> Box<dyn Reader> {
        Box::new(Enclosed::one("", is_bare))
    }

    fn example(&self) -> &'static str {
        "{\"name\": the function's name, \"parameters\": an object of its arguments}"
    }
}
