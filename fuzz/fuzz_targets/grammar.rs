//! A grammar of Lark or a regular expression, told apart by the first byte: compiling ends, and each token of
//! a mask can be advanced and taken back.
#![no_main]

use std::sync::Arc;

use breakers_core::{Constraint as _, TokenMask, Vocabulary as _};
use breakers_structured::{Compiler, Grammar};
use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../crates/structured/tests/suite/bytes.rs"]
mod bytes;

fuzz_target!(|data: &str| {
    let grammar = match data.strip_prefix('/') {
        Some(expression) => Grammar::Regex(expression.to_owned()),
        None => Grammar::Lark(data.to_owned()),
    };
    let compiler = Compiler::new(Arc::new(bytes::Bytes)).expect("a vocabulary with an end");
    let Ok(mut constraint) = compiler.constraint(&grammar) else { return };
    let mut mask = TokenMask::none(bytes::Bytes.n_tokens());
    for _ in 0..16 {
        if constraint.allowed(&mut mask).is_err() {
            return;
        }
        let Some(token) = mask.iter().find(|&token| token != bytes::END) else { return };
        if constraint.advance(token).is_err() {
            return;
        }
        if constraint.rollback(1).and_then(|()| constraint.advance(token)).is_err() {
            return;
        }
    }
});
