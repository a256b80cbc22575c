//! Grammars over a vocabulary of bytes: what they accept, what they refuse, and masks that agree with it.

mod bytes;
mod completion;
mod constraint;
mod maskbench;
mod schema;
mod tools;

use std::sync::Arc;

use breakers_core::{Constraint as _, ConstraintError};
use breakers_structured::{Compiler, Grammar, GrammarConstraint};

fn compiler() -> Compiler {
    Compiler::new(Arc::new(bytes::Bytes)).unwrap()
}

/// Whether a text is one that the constraint lets end, byte by byte.
fn accepts(mut constraint: GrammarConstraint, text: &str) -> Result<bool, ConstraintError> {
    for byte in text.bytes() {
        match constraint.advance(byte.into()) {
            Ok(()) => {}
            Err(ConstraintError::NotAllowed { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    constraint.may_end()
}

/// Checks what a grammar accepts and refuses.
fn check(compiler: &Compiler, grammar: &Grammar, accepted: &[&str], refused: &[&str]) {
    for (texts, expected) in [(accepted, true), (refused, false)] {
        for text in texts {
            let found = accepts(compiler.constraint(grammar).unwrap(), text).unwrap();
            assert_eq!(found, expected, "{text} under {grammar:?}");
        }
    }
}
