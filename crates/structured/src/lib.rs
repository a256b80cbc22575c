//! Output that keeps to a grammar: JSON Schema, any JSON, regular expressions, Lark grammars and lists of
//! choices, as masks over the tokens of a model.
//!
//! A [`Compiler`] belongs to one vocabulary. It turns a [`Grammar`] into a [`GrammarConstraint`], which any
//! decoder that knows [`breakers_core::Constraint`] can follow: it says which tokens may come next, takes
//! tokens back, and tells what is determined for a while.
//!
//! | to get | give |
//! |---|---|
//! | an object by a schema | [`Grammar::JsonSchema`]; with [`SchemaOptions`] [`Grammar::JsonSchemaWith`] |
//! | whatever a request asks for | [`Forms`] for an engine; [`Grammar::of_response`] alone |
//! | a date, a version, a number in a range | [`Grammar::Regex`] |
//! | a language with nesting | [`Grammar::Lark`] |
//! | XML by rules, a SQL `SELECT`, an expression of Python | [`grammars`] |
//! | one of a few texts | [`Grammar::Choice`] |
//! | calls of functions | [`tools`] |
//!
//! # What can go wrong
//! A schema is enforced as a whole or refused by the keyword's name and place ([`Error::Keyword`]). With
//! [`SchemaOptions::strict`] off, the rest of it is enforced instead, and what is not is told:
//! [`GrammarConstraint::warnings`], and as a warning of `tracing`. It is never enforced in part without a
//! word.
//!
//! A text can be cut short by a limit of tokens, unless its decoder keeps the end in reach:
//! [`GrammarConstraint`] knows a short way to it from nearly everywhere
//! ([`completion`](breakers_core::Constraint::completion)). It knows none that takes more than 4,096 tokens
//! (256 where a schema needs checks), and none where several keywords ask for different things of one text or
//! list.
//!
//! # JSON Schema: three ways
//! 1. What the engine knows is enforced by the grammar: types, numbers, texts, patterns, lists, objects,
//!    `anyOf`, `allOf`, references.
//! 2. What it does not know is rewritten into what it knows, where that accepts the same instances: `oneOf`
//!    of options that exclude each other, `not`, `if`, dependencies, `propertyNames`, formats.
//! 3. What is left is checked. The text is followed as JSON, and a token is forbidden if a value, a name or a
//!    comma ends with it after which no valid instance can follow: `uniqueItems`, `contains`,
//!    `unevaluatedProperties`, patterns of names that overlap, and `oneOf`, `not` and `if` that cannot be
//!    rewritten. So an invalid instance is never finished. A text can come to a place where nothing is valid
//!    any more: [`ConstraintError::DeadEnd`](breakers_core::ConstraintError::DeadEnd), from which one goes
//!    back token by token. [`GrammarConstraint::is_checked`] tells whether a schema needs this.
//!
//! Refused are `$dynamicRef`, references to other documents or below an `$id` of their own, patterns that are
//! not regular (they look around or refer back), and the formats `regex`, `iri`, `iri-reference`, `idn-email`
//! and `idn-hostname`. Formats that the specification does not define are annotations, as it has it.
//!
//! Properties come in the order in which the schema declares them, or in any order: [`Order`]. Between two
//! tokens of JSON there is at most one space: a model that may write blanks without end does so.
//!
//! # Deviations
//! - Formats are enforced, not annotations, and in the narrowest reading: no leap second but at the end of a
//!   day in UTC, no host name with letters beyond ASCII, no year 0.
//! - Keywords beside `$ref` count, but in drafts before 2019-09, which ignore them.
//! - Readers of JSON must all see the same. So no name stands twice in an object, names are spelled without
//!   escapes that they do not need, brackets go 120 deep, and numbers have at most 19 digits (or fit 64 bits)
//!   and are neither infinite nor zero for an `f64`; an integer is not `-0`.
//! - Where ECMAScript and Python differ about blanks (`\s`), what either does not hold for one is not
//!   written.
//! - In the declared order, valid properties in another order are not accepted.
//! - Texts are written without escapes for printable characters.
//!
//! What readers must see is not looked at within a grammar of Lark that takes in JSON.
//!
//! # Limits
//! A schema has at most 1 MiB and describes 63 levels of nested values; an expression has 16 KiB, 64 levels
//! of groups, and 200,000 steps with its repetitions written out. `minLength`, `minItems`, `minProperties`
//! and `minContains` ask for at most 65,536. What is beyond is a typed error at once: [`Error::Limit`], or
//! [`Error::Keyword`] with the keyword and its place.
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

mod check;
mod compiler;
mod completion;
mod constraint;
mod cost;
mod environment;
mod error;
mod forms;
mod grammar;
pub mod grammars;
pub mod maskbench;
mod options;
mod schema;
mod state;
pub mod tools;
mod words;

pub use compiler::{Compiler, Limits};
pub use constraint::GrammarConstraint;
pub use error::{Error, Result};
pub use forms::Forms;
pub use grammar::Grammar;
pub use options::{Order, SchemaOptions, Warning};

/// The README, so that its example is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
