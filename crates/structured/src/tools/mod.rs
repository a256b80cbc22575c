//! Calls of functions: the grammar that a model writes them under, and the parser that takes them apart.
//!
//! Each family of models writes calls in a form of its own. One description of the form, a [`ToolFormat`],
//! gives both halves, so that what the grammar lets through is what the parser reads.
//!
//! | name | models | a call |
//! |---|---|---|
//! | `hermes` | Hermes, Qwen 2.5 and 3 | `<tool_call>` `{"name": …, "arguments": …}` `</tool_call>` |
//! | `hermes-bare` | Qwen2.5-Coder | the same, or the object alone |
//! | `qwen3-coder` | Qwen3-Coder | `<tool_call><function=…><parameter=…>…</parameter>…` |
//! | `llama3` | Llama 3.1 to 3.3 | `{"name": …, "parameters": …}` |
//! | `mistral` | Mistral Small 3.2, Magistral, Devstral | `[TOOL_CALLS]…[ARGS]{…}` |
//! | `mistral-list` | Mistral before that | `[TOOL_CALLS] [{"name": …, "arguments": …}]` |
//! | `gemma3` | Gemma 3 | a block `tool_code` of `{"name": …, "parameters": …}` |
//! | `gemma4` | Gemma 4 | `<\|tool_call>call:…{…}<tool_call\|>` |
//!
//! [`ToolFormatSpec::of_template`] tells which one a model writes from its chat template, and says nothing
//! where that is not plain. [`Conversation`] runs a conversation with functions to its answer;
//! [`Calculator`] and [`FileSearch`] are two functions to begin with.
//!
//! # What can go wrong
//! A model that no grammar holds writes calls that are none. Such a call is an [`Event::Malformed`] with its
//! text and with what is wrong; nothing is lost, and nothing is repaired.
//!
//! A parser does not see control tokens that a decoder leaves out: where markers are control tokens, the
//! decoder has to spell them.
//!
//! # Cost
//! Each character of an answer is looked at once or twice; a call takes as much memory as it is long.
//!
//! # Example
//! ```
//! # mod bytes { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/bytes.rs")); }
//! use std::sync::Arc;
//! use breakers_core::{ChatRequest, Constraint, Json, Tool, ToolChoice};
//! use breakers_structured::{Compiler, tools::{CallRules, ToolFormatSpec}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let tokenizer = bytes::Bytes;
//! let parameters = Json::parse(r#"{"type": "object", "properties": {"city": {"type": "string"}},
//!     "required": ["city"], "additionalProperties": false}"#)?;
//! let request = ChatRequest::new("Is it cold in Oslo?")
//!     .with_tools([Tool::new("weather", parameters)], ToolChoice::Required);
//! let format: ToolFormatSpec = "hermes".parse()?;
//! let grammar = format.grammar(&CallRules::of(&request), &tokenizer)?;
//!
//! // Here each byte is a token.
//! let mut constraint = Compiler::new(Arc::new(tokenizer))?.constraint(&grammar.grammar)?;
//! let text = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";
//! for byte in text.bytes() {
//!     constraint.advance(byte.into())?;
//! }
//! assert!(constraint.may_end()?);
//!
//! let answer = format.parse(text, &request.tools, 0);
//! assert_eq!(answer.calls[0].arguments, r#"{"city": "Oslo"}"#);
//! # Ok(())
//! # }
//! ```

mod calls;
mod closed;
mod conversation;
mod envelope;
mod error;
mod event;
mod format;
mod functions;
mod gemma3;
mod gemma4;
mod gemma4_grammar;
mod hermes;
mod json;
mod kinds;
mod lark;
mod llama3;
mod mistral;
mod mistral_list;
mod parser;
mod qwen3_coder;
mod qwen3_coder_grammar;
mod table;
mod wider;

pub use calls::{CallRules, ToolGrammar, Warning};
pub use conversation::{CallRecord, Conversation, ConversationError, Finished, Function, FunctionError};
pub use error::ToolError;
pub use event::{Answer, CallFault, Event, MalformedCall};
pub use format::{Layout, ToolFormat};
pub use functions::{Calculator, FileSearch};
pub use gemma3::Gemma3;
pub use gemma4::Gemma4;
pub use hermes::{Hermes, HermesBare};
pub use lark::Lark;
pub use llama3::Llama3;
pub use mistral::Mistral;
pub use mistral_list::MistralList;
pub use parser::{Calls, IdForm, Parser, Reader, Step};
pub use qwen3_coder::Qwen3Coder;
pub use table::{Entry, FORMATS, ToolFormatSpec};
pub(crate) use wider::CallGrammars;
