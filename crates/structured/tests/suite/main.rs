//! Grammars over a vocabulary of bytes: what they accept, what they refuse, and masks that agree with it.

mod bytes;
mod completion;
mod constraint;
mod grammars;
mod maskbench;
mod official;
mod random;
mod schema;
#[allow(dead_code)]
mod texts;
mod tools;

use std::collections::BTreeMap;
use std::path::Path;
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

/// Compares with a file of earlier results, lines of a name and a result: what is in neither is not worse.
/// With `BREAKERS_RATCHET=write` the file is written.
fn ratchet(file: &str, found: &BTreeMap<String, String>, is_no_worse: impl Fn(&str, &str) -> bool) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
    if std::env::var_os("BREAKERS_RATCHET").is_some_and(|value| value == "write") {
        let lines: String = found.iter().map(|(name, result)| format!("{name}\t{result}\n")).collect();
        std::fs::write(path, lines).unwrap();
        return;
    }
    let text = std::fs::read_to_string(path).unwrap();
    let old: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| {
            found.keys().find_map(|name| Some((&**name, line.strip_prefix(&**name)?.strip_prefix('\t')?)))
        })
        .collect();
    let worse: Vec<String> = found
        .iter()
        .filter(|(name, new)| !old.get(&***name).is_some_and(|old| is_no_worse(old, new)))
        .map(|(name, new)| format!("{name}: {new}, it was {:?}", old.get(&**name)))
        .collect();
    assert!(worse.is_empty(), "worse than {file}:\n{}", worse.join("\n"));
}
