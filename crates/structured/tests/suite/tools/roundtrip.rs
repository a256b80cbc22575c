//! Generated calls: the grammar accepts them, and the parser gives them back, wherever the text is cut.
//! `BREAKERS_TOOL_CALLS` says how many calls; 100,000 is the whole. `BREAKERS_TOOL_SEED` makes other ones.

use std::sync::Arc;

use breakers_core::{ChatRequest, Constraint, Tool, ToolChoice};
use breakers_structured::tools::{CallRules, ToolFormatSpec};
use breakers_structured::{Compiler, GrammarConstraint};
use serde_json::Value;

use super::generate::{self, Call, Chance};
use super::vocabulary::Marked;
use super::wire::{self, Style};
use super::{formats, parse_pieces};
use crate::bytes::Bytes;

fn setting(name: &str, otherwise: usize) -> usize {
    let value = std::env::var(name).ok();
    value.map_or(otherwise, |value| {
        value.parse().unwrap_or_else(|_| panic!("{name} is a number, found {value:?}"))
    })
}

fn constraint(format: ToolFormatSpec, is_marked: bool) -> GrammarConstraint {
    let mut request = ChatRequest::new("x").with_tools(generate::tools(), ToolChoice::Auto);
    request.parallel_tool_calls = Some(true);
    let rules = CallRules::of(&request);
    let (grammar, compiler) = match is_marked {
        true => (format.grammar(&rules, &Marked), Compiler::new(Arc::new(Marked))),
        false => (format.grammar(&rules, &Bytes), Compiler::new(Arc::new(Bytes))),
    };
    let grammar = grammar.unwrap();
    assert!(grammar.warnings.is_empty(), "{format}: {:?}", grammar.warnings);
    compiler.unwrap().constraint(&grammar.grammar).unwrap_or_else(|error| panic!("{format}: {error}"))
}

/// Goes along a text and back again.
fn check_accepted(constraint: &mut GrammarConstraint, tokens: &[u32], context: &str) {
    for (at, &token) in tokens.iter().enumerate() {
        if let Err(error) = constraint.advance(token) {
            panic!("{context}: {error} at {at} of {}", tokens.len());
        }
    }
    assert!(constraint.may_end().unwrap(), "{context}");
    constraint.rollback(tokens.len()).unwrap();
}

/// What an answer should be.
struct Expected<'a> {
    format: ToolFormatSpec,
    tools: &'a [Tool],
    text: &'a str,
    calls: &'a [Call],
    style: Style,
    answer: &'a str,
}

fn check_answer(expected: &Expected<'_>, pieces: &[&[u8]]) {
    let Expected { format, tools, text, calls, style, answer } = *expected;
    let (_, found) = parse_pieces(format, tools, pieces.iter().copied());
    let context = || format!("{format}: {answer:?} in {} pieces", pieces.len());
    assert!(found.malformed.is_empty(), "{}: {:?}", context(), found.malformed);
    assert_eq!(found.text, text, "{}", context());
    assert_eq!(found.calls.len(), calls.len(), "{}", context());
    for (found, call) in found.calls.iter().zip(calls) {
        assert_eq!(found.name, call.name, "{}", context());
        match wire::verbatim(&format.to_string(), call, style) {
            Some(expected) => assert_eq!(found.arguments, expected, "{}", context()),
            None => {
                // Both through the same reader of numbers.
                let value = |text: &str| {
                    serde_json::from_str::<Value>(text).unwrap_or_else(|_| panic!("{}", context()))
                };
                let expected = wire::json(&Value::Object(call.arguments.clone()), Style::Compact);
                assert_eq!(value(&found.arguments), value(&expected), "{}", context());
            }
        }
    }
}

#[test]
fn calls_are_accepted_and_read_wherever_they_are_cut() {
    let (n_formats, seed) = (formats().count(), setting("BREAKERS_TOOL_SEED", 0));
    let tools = generate::tools();
    for (number, format) in formats().enumerate() {
        let name = format.to_string();
        let mut constraints = [constraint(format, false), constraint(format, true)];
        let mut chance = Chance((seed * n_formats + number + 1) as u64);
        let (mut n_made, wanted) = (0, setting("BREAKERS_TOOL_CALLS", 700).div_ceil(n_formats));
        let mut n_cuts = 0;
        while n_made < wanted {
            let mut calls: Vec<Call> = (0..chance.below(4)).map(|_| generate::call(&mut chance)).collect();
            if chance.is(20) {
                // The same call twice.
                calls.extend(calls.last().cloned());
            }
            calls.retain(|call| wire::can_write(&name, call));
            n_made += calls.len();
            let text = wire::text(&name, &mut chance);
            let style = *chance.of(&[Style::Spaced, Style::Spaced, Style::Compact, Style::Escaped]);
            let answer = wire::answer(&name, &text, &calls, style);
            let expected =
                Expected { format, tools: &tools, text: &text, calls: &calls, style, answer: &answer };
            let check = |pieces: &[&[u8]]| check_answer(&expected, pieces);
            let bytes = answer.as_bytes();
            check(&[bytes]);
            check(&bytes.chunks(1).collect::<Vec<_>>());
            n_cuts += bytes.len().saturating_sub(1);
            for at in 1..bytes.len() {
                check(&[&bytes[..at], &bytes[at..]]);
            }
            // The engine has this character escaped in JSON.
            if style != Style::Escaped && !answer.contains('\u{7f}') {
                let tokens: Vec<u32> = bytes.iter().map(|&byte| byte.into()).collect();
                check_accepted(&mut constraints[0], &tokens, &format!("{format}: {answer:?}"));
                if can_mark(&text, &calls) {
                    check_accepted(
                        &mut constraints[1],
                        &Marked::tokens(&answer),
                        &format!("{format}, marked: {answer:?}"),
                    );
                }
            }
        }
        eprintln!("{format}: {n_made} calls, {n_cuts} cuts");
    }
}

/// Whether no string spells a marker that is a control token: text never becomes one.
fn can_mark(text: &str, calls: &[Call]) -> bool {
    let calls = format!("{text} {calls:?}");
    !["python_tag", "[TOOL_CALLS]", "[ARGS]", "tool_call", "<|"].iter().any(|part| calls.contains(part))
}
