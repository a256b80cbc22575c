//! Output that keeps to a grammar: JSON Schema, any JSON, regular expressions, Lark grammars and lists of
//! choices, as masks over the tokens of a model.
//!
//! A [`Compiler`] belongs to one vocabulary. It turns a [`Grammar`] into a [`GrammarConstraint`], which any
//! decoder that knows [`breakers_core::Constraint`] can follow: it says which tokens may come next, takes
//! tokens back, and tells what is determined for a while.
//!
//! | to get | give |
//! |---|---|
//! | an object by a schema | [`Grammar::JsonSchema`] |
//! | whatever a request asks for | [`Grammar::of_response`] |
//! | a date, a version, a number in a range | [`Grammar::Regex`] |
//! | a language with nesting | [`Grammar::Lark`] |
//! | one of a few texts | [`Grammar::Choice`] |
//! | calls of functions | [`tools`] |
//!
//! # What can go wrong
//! A schema is enforced as a whole or refused by the keyword's name and place ([`Error::Keyword`]); it is
//! never enforced in part without a word. What the engine does not know is rewritten into what it knows where
//! that accepts the same instances. Properties come in the order in which the schema declares them, and
//! between two tokens of JSON there is at most one space: a model that may write blanks without end does so.
//!
//! A text can be cut short by a limit of tokens, unless its decoder keeps the end in reach:
//! [`GrammarConstraint`] knows a short way to it from nearly everywhere
//! ([`completion`](breakers_core::Constraint::completion)). It knows none where a text has to hold a certain
//! word at any place, as under an expression without anchors.
//!
//! # Formats
//! Formats that the specification of JSON Schema defines are enforced or refused. Any other is an annotation,
//! as the specification has it.
//!
//! # Deviations
//! - Formats are expressions: a date may be 29 February in any year, a host name is not looked up in Unicode.
//! - Keywords beside `$ref` count in every draft, also in those that ignore them.
//! - Properties in another order than the declared one are not accepted, though they are valid.
//!
//! # Cost
//! A vocabulary of 49,152 tokens is sorted into a tree once. Grammars are compiled on a thread of their own,
//! because deep schemas need a deep stack, and kept: [`Limits::cached`].
//!
//! # Source
//! The engine is the crate `llguidance`: derivatives of regular expressions for the lexer, Earley's algorithm
//! for the parser, over a tree of all tokens.
//!
//! # Example
//! ```
//! # mod bytes { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/bytes.rs")); }
//! use std::sync::Arc;
//! use breakers_core::{Constraint, Json, TokenMask, Vocabulary};
//! use breakers_structured::{Compiler, Grammar};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let tokenizer = bytes::Bytes;
//! # let n_tokens = tokenizer.n_tokens();
//! // Any `Tokenizer` will do; here each byte is a token.
//! let compiler = Compiler::new(Arc::new(tokenizer))?;
//! let schema = Json::parse(r#"{"type": "object", "properties": {"age": {"type": "integer"}},
//!     "required": ["age"], "additionalProperties": false}"#)?;
//! let mut constraint = compiler.constraint(&Grammar::JsonSchema(schema))?;
//! for byte in br#"{"age":4"# {
//!     constraint.advance((*byte).into())?;
//! }
//! let mut mask = TokenMask::none(n_tokens);
//! constraint.allowed(&mut mask)?;
//! assert!(mask.is_allowed(b'2'.into()) && mask.is_allowed(b'}'.into()) && !mask.is_allowed(b'"'.into()));
//! # Ok(())
//! # }
//! ```

mod compiler;
mod completion;
mod constraint;
mod environment;
mod error;
mod grammar;
mod schema;
pub mod tools;

pub use compiler::{Compiler, Limits};
pub use constraint::GrammarConstraint;
pub use error::{Error, Result};
pub use grammar::Grammar;

/// The README, so that its example is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
