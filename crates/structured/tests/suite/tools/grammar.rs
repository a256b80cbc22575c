//! What each format's grammar lets through: choices of tools, parallel calls, parameters, answers of a form.

use std::sync::Arc;

use breakers_core::{
    AnswerForms as _, ChatRequest, Constraint, Json, ResponseFormat, ResponseSchema, TokenMask, Tool,
    ToolChoice, Vocabulary as _,
};
use breakers_structured::tools::{CallRules, ToolError, ToolFormatSpec, ToolGrammar};
use breakers_structured::{Compiler, Error, Forms, Grammar};
use serde_json::{Value, json};

use super::generate::{Call, Chance, tools};
use super::wire::{self, Style};
use super::{formats, parse_pieces};
use crate::bytes::{Bytes, END};
use crate::{accepts, compiler};

fn request(choice: ToolChoice) -> ChatRequest {
    ChatRequest::new("x").with_tools(tools(), choice)
}

fn grammar(format: ToolFormatSpec, request: &ChatRequest) -> Result<ToolGrammar, ToolError> {
    format.grammar(&CallRules::of(request), &Bytes)
}

fn call(name: &str, arguments: Value) -> Call {
    Call { name: name.to_owned(), arguments: arguments.as_object().unwrap().clone() }
}

/// Checks which texts a request's grammar lets through.
fn check(compiler: &Compiler, format: ToolFormatSpec, request: &ChatRequest, texts: &[(String, bool)]) {
    let grammar = grammar(format, request).unwrap().grammar;
    for (text, expected) in texts {
        let constraint = compiler.constraint(&grammar).unwrap_or_else(|error| panic!("{format}: {error}"));
        let found = accepts(constraint, text).unwrap();
        assert_eq!(found, *expected, "{format} under {:?}: {text:?}", request.tool_choice);
    }
}

#[test]
fn choices_are_obeyed() {
    let compiler = compiler();
    let (noop, search) = (call("noop", json!({})), call("search", json!({ "query": "a}\"" })));
    for format in formats() {
        let name = format.to_string();
        let write = |text: &str, calls: &[&Call]| {
            let calls: Vec<Call> = calls.iter().map(|call| (*call).clone()).collect();
            wire::answer(&name, text, &calls, Style::Spaced)
        };
        let text = || "Nothing to do. {}".to_owned();
        let is_parallel = name != "llama3";
        check(
            &compiler,
            format,
            &request(ToolChoice::Auto),
            &[
                (String::new(), true),
                (text(), true),
                (write("", &[&noop]), true),
                (write("Well. ", &[&search]), true),
                (write("", &[&noop, &search]), is_parallel),
                (write("", &[&call("none", json!({}))]), false),
                (write("", &[&call("search", json!({}))]), false),
                (write("", &[&call("noop", json!({ "a": 1 }))]), false),
                (write("", &[&noop])[..write("", &[&noop]).len() - 1].to_owned(), false),
            ],
        );
        check(
            &compiler,
            format,
            &request(ToolChoice::None),
            &[
                (String::new(), true),
                (text(), true),
                (write("", &[&noop]), false),
                (write("Well. ", &[&search]), false),
            ],
        );
        check(
            &compiler,
            format,
            &request(ToolChoice::Required),
            &[
                (String::new(), false),
                (text(), false),
                (write("", &[&noop]), true),
                (write("Well. ", &[&search]), false),
                (write("", &[&noop, &search]), is_parallel),
            ],
        );
        let mut one = request(ToolChoice::Function("noop".to_owned()));
        one.parallel_tool_calls = Some(true);
        check(
            &compiler,
            format,
            &one,
            &[
                (text(), false),
                (write("", &[&noop]), true),
                (write("", &[&search]), false),
                (write("", &[&noop, &noop]), true),
                (write("", &[&noop, &search]), false),
            ],
        );
        for choice in [ToolChoice::Auto, ToolChoice::Required] {
            let mut single = request(choice);
            single.parallel_tool_calls = Some(false);
            check(
                &compiler,
                format,
                &single,
                &[
                    (write("", &[&search]), true),
                    (write("", &[&noop, &search]), false),
                    (write("", &[&noop, &noop]), false),
                ],
            );
        }
    }
}

#[test]
fn a_grammar_of_the_answer_leaves_no_room_for_calls() {
    for format in formats() {
        for form in [ResponseFormat::Regex("a".to_owned()), ResponseFormat::Choice(vec!["a".to_owned()])] {
            let refused = grammar(format, &request(ToolChoice::Auto).with_response(form.clone()));
            assert!(matches!(refused, Err(ToolError::AnswerFormat { .. })), "{refused:?}");
            // Where a call must come, the form of other answers says nothing.
            assert!(grammar(format, &request(ToolChoice::Required).with_response(form)).is_ok());
        }
    }
}

#[test]
fn an_answer_of_a_form_or_calls() {
    let compiler = compiler();
    let noop = call("noop", json!({}));
    let schema =
        Json::parse(r#"{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}"#);
    let schema = ResponseFormat::JsonSchema(ResponseSchema::new("ok", schema.unwrap()));
    for format in formats() {
        let write =
            |text: &str| wire::answer(&format.to_string(), text, std::slice::from_ref(&noop), Style::Spaced);
        let request = request(ToolChoice::Auto).with_response(schema.clone());
        if format.format().layout().is_bare {
            let refused = grammar(format, &request);
            assert!(matches!(refused, Err(ToolError::AnswerFormat { .. })), "{refused:?}");
            continue;
        }
        check(
            &compiler,
            format,
            &request,
            &[
                ("{\"ok\": true}".to_owned(), true),
                ("{\"ok\": 1}".to_owned(), false),
                ("Well.".to_owned(), false),
                (write(""), true),
                (write("Well. "), false),
            ],
        );
    }
}

#[test]
fn requests_that_cannot_be_met_are_typed_errors() {
    let format: ToolFormatSpec = "hermes".parse().unwrap();
    let error = |request: &ChatRequest| grammar(format, request).unwrap_err();
    let none = ChatRequest::new("x").with_tools([], ToolChoice::Required);
    assert!(matches!(error(&none), ToolError::NoFunctions));
    let other = request(ToolChoice::Function("fly".to_owned()));
    assert!(matches!(error(&other), ToolError::UnknownFunction { name, known }
        if name == "fly" && known.starts_with("search, run-shell.v2")));
    let twice = ChatRequest::new("x").with_tools([tools().remove(2), tools().remove(2)], ToolChoice::Auto);
    assert!(matches!(error(&twice), ToolError::RepeatedFunction { name } if name == "noop"));
    for parameters in ["3", "null", "{\"type\": \"string\"}"] {
        let tool = Tool::new("f", Json::parse(parameters).unwrap());
        let request = ChatRequest::new("x").with_tools([tool], ToolChoice::Auto);
        for format in formats() {
            let error = grammar(format, &request).unwrap_err();
            assert!(
                matches!(&error, ToolError::Parameters { function, .. } if function == "f"),
                "{format}: {error:?}"
            );
        }
    }
    for name in ["", "a b", "a<b", "a{", "a\n"] {
        let tool = Tool::new(name, Json::parse("{}").unwrap());
        let request = ChatRequest::new("x").with_tools([tool], ToolChoice::Auto);
        for (format, is_raw) in formats().map(|format| (format, format.to_string())) {
            let is_raw = name.is_empty() || ["qwen3-coder", "mistral", "gemma4"].contains(&is_raw.as_str());
            let found = grammar(format, &request);
            assert_eq!(matches!(found, Err(ToolError::Name { .. })), is_raw, "{format} {name:?}");
        }
    }
}

#[test]
fn what_is_not_enforced_is_said_or_refused() {
    // A keyword that neither the engine nor a rewriting knows.
    let parameters = json!({ "type": "object", "properties": { "a": { "type": "array", "contains": { "const": 3 } } },
        "additionalProperties": false });
    let compiler = compiler();
    for format in formats() {
        let tool = Tool::new("f", Json::parse(&parameters.to_string()).unwrap());
        let request = ChatRequest::new("x").with_tools([tool.clone()], ToolChoice::Required);
        let found = grammar(format, &request).unwrap();
        // The whole of the parameters, where the keyword could be checked at a value's end.
        let is_named = |keyword: &str| ["contains", "parameters"].contains(&keyword);
        let keyword = |error: &Error| matches!(error, Error::Keyword { keyword, .. } if is_named(keyword));
        assert!(!found.warnings.is_empty(), "{format}");
        for warning in &found.warnings {
            assert!(warning.function == "f" && keyword(&warning.reason), "{format}: {warning:?}");
        }
        let arguments = json!({ "a": [1] });
        let text = wire::answer(&format.to_string(), "", &[call("f", arguments)], Style::Spaced);
        assert!(accepts(compiler.constraint(&found.grammar).unwrap(), &text).unwrap(), "{format}: {text}");
        let strict = ChatRequest::new("x").with_tools([tool.with_strict()], ToolChoice::Required);
        let refused = grammar(format, &strict).unwrap_err();
        let ToolError::Parameters { function, source } = &refused else { panic!("{format}: {refused:?}") };
        assert!(function == "f" && keyword(source), "{format}: {refused:?}");
    }
}

/// Parameters whose values are written without JSON are held to their schemas, too.
#[test]
fn values_are_held_to_their_schemas() {
    let parameters = json!({
        "type": "object",
        "properties": {
            "n": { "type": "integer", "minimum": 1, "maximum": 20 },
            "s": { "type": "string", "minLength": 2, "maxLength": 4 },
            "e": { "enum": ["a", "b}"] },
            "o": { "anyOf": [{ "type": "string" }, { "type": "null" }] },
            "l": { "type": "array", "items": { "type": "boolean" }, "minItems": 1, "maxItems": 2 },
        },
        "required": ["n"],
        "additionalProperties": false,
    });
    let tool = Tool::new("f", Json::parse(&parameters.to_string()).unwrap()).with_strict();
    let request = ChatRequest::new("x").with_tools([tool.clone()], ToolChoice::Required);
    let compiler = compiler();
    let cases = [
        (json!({ "n": 1 }), true),
        (json!({ "n": 20 }), true),
        (json!({ "n": 21 }), false),
        (json!({ "n": 0 }), false),
        (json!({}), false),
        (json!({ "n": true }), false),
        (json!({ "n": 2, "s": "éé" }), true),
        (json!({ "n": 2, "s": "é" }), false),
        (json!({ "n": 2, "s": "12345" }), false),
        (json!({ "n": 2, "e": "b}" }), true),
        (json!({ "n": 2, "e": "c" }), false),
        (json!({ "n": 2, "o": null }), true),
        (json!({ "n": 2, "o": "nul" }), true),
        (json!({ "n": 2, "l": [true, false] }), true),
        (json!({ "n": 2, "l": [] }), false),
        (json!({ "n": 2, "l": [true, true, true] }), false),
        (json!({ "n": 2, "l": [1] }), false),
        (json!({ "n": 2, "x": 1 }), false),
    ];
    for format in formats() {
        let texts = cases.iter().map(|(arguments, expected)| {
            (wire::answer(&format.to_string(), "", &[call("f", arguments.clone())], Style::Spaced), *expected)
        });
        check(&compiler, format, &request, &texts.collect::<Vec<_>>());
    }
}

/// Hundreds of functions with descriptions of all kinds are within the limits of a grammar.
#[test]
fn descriptions_do_not_count_as_depth() {
    let compiler = compiler();
    let tool = |n: usize| {
        let parameters = json!({ "type": "object", "description": ":( {[ \\( ", "properties": {
            "a": { "type": "string", "description": "such as ((((([[[[[{{{{{" } }, "additionalProperties": false });
        Tool::new(format!("f{n}"), Json::parse(&parameters.to_string()).unwrap())
    };
    let request = ChatRequest::new("x").with_tools((0..100).map(tool), ToolChoice::Auto);
    for format in formats() {
        let write = |name: &str| {
            let text =
                wire::answer(&format.to_string(), "", &[call(name, json!({ "a": "(" }))], Style::Spaced);
            (text, name == "f99")
        };
        check(&compiler, format, &request, &[write("f99"), write("f100")]);
    }
}

/// Walks through a grammar at random: whatever it lets end is an answer with calls of these functions.
#[test]
fn what_a_grammar_writes_is_what_the_parser_reads() {
    let compiler = compiler();
    let tools = tools();
    for format in formats() {
        let mut request = request(ToolChoice::Required);
        request.parallel_tool_calls = Some(true);
        let Grammar::Lark(text) = grammar(format, &request).unwrap().grammar else { panic!("{format}") };
        let grammar = Grammar::Lark(text);
        let (mut n_finished, mut chance) = (0, Chance(5));
        for _ in 0..60 {
            let mut constraint = compiler.constraint(&grammar).unwrap();
            let mut mask = TokenMask::none(Bytes.n_tokens());
            let mut bytes = Vec::new();
            for _ in 0..700 {
                constraint.allowed(&mut mask).unwrap();
                if mask.is_allowed(END) {
                    break;
                }
                // Strings end some time, and so do calls.
                let ends = [b'"', b'}', b']', b'\n', b'<', b'|', b'/', b'>', b'`', b'f'].map(u32::from);
                let allowed: Vec<u32> = mask.iter().collect();
                let end = ends.iter().find(|&&end| mask.is_allowed(end)).filter(|_| chance.is(60));
                let token = end.copied().unwrap_or_else(|| *chance.of(&allowed));
                constraint.advance(token).unwrap();
                bytes.extend_from_slice(Bytes.token_bytes(token).unwrap());
            }
            if !constraint.may_end().unwrap() {
                continue;
            }
            n_finished += 1;
            let text = String::from_utf8(bytes.clone()).unwrap();
            let (_, answer) = parse_pieces(format, &tools, [&bytes[..]]);
            assert!(answer.malformed.is_empty() && answer.text.is_empty(), "{format}: {text:?}: {answer:?}");
            assert!(!answer.calls.is_empty(), "{format}: {text:?}");
            for call in &answer.calls {
                let arguments = serde_json::from_str::<Value>(&call.arguments);
                assert!(
                    arguments.is_ok_and(|arguments| arguments.is_object()),
                    "{format}: {text:?}: {call:?}"
                );
                assert!(tools.iter().any(|tool| tool.name == call.name), "{format}: {text:?}");
            }
        }
        assert!(n_finished >= 20, "{format}: {n_finished} of 60 walks came to an end");
    }
}

/// A limit of tokens can come at any place: from each, calls can still be ended. Where strings stand without
/// quotes, no way is known out of them.
#[test]
fn calls_can_be_ended_from_everywhere() {
    let compiler = compiler();
    let search = |text: &str| call("search", json!({ "query": text }));
    let is_quoted = |format: &ToolFormatSpec| !["qwen3-coder", "gemma4"].contains(&format.entry().name);
    for format in formats().filter(is_quoted) {
        let calls = [search("where"), call("noop", json!({})), search("when")];
        let n_calls = if format.format().layout().is_parallel { 3 } else { 1 };
        let answer = wire::answer(&format.to_string(), "", &calls[..n_calls], Style::Spaced);
        let grammar = grammar(format, &request(ToolChoice::Required)).unwrap().grammar;
        let mut constraint = compiler.constraint(&grammar).unwrap();
        for (at, byte) in answer.bytes().enumerate() {
            let way = constraint.completion(200).unwrap();
            let way = way.unwrap_or_else(|| panic!("{format}: no way to the end from {:?}", &answer[..at]));
            way.iter().for_each(|&token| constraint.advance(token).unwrap());
            assert!(constraint.may_end().unwrap(), "{format}: {way:?}");
            constraint.rollback(way.len()).unwrap();
            constraint.advance(byte.into()).unwrap();
        }
    }
}

/// Parameters that the engine does not take are found among others: a strict function is refused by its name,
/// another one is called with wider parameters, and the rest are enforced as before.
#[test]
fn one_function_that_cannot_be_enforced_does_not_spoil_the_others() {
    let json = |value: Value| Json::parse(&value.to_string()).unwrap();
    // Two patterns of names that are not disjoint.
    let patterns = json!({ "^[^b]{1,3}$": { "type": "integer" }, "a": { "type": "string" } });
    let value = json!({ "type": "object", "patternProperties": patterns, "additionalProperties": false });
    let odd = json(json!({ "type": "object", "properties": { "v": value } }));
    let even = json(json!({
        "type": "object",
        "properties": { "n": { "type": "integer" } },
        "required": ["n"],
        "additionalProperties": false,
    }));
    for format in formats() {
        let forms = Forms::new(Arc::new(Bytes)).unwrap().with_calls(format);
        let tools = [Tool::new("odd", odd.clone()), Tool::new("even", even.clone())];
        let ask = |tools: [Tool; 2]| ChatRequest::new("x").with_tools(tools, ToolChoice::Required);
        // Once with a search, once with what it found.
        for _ in 0..2 {
            for (function, arguments, expected) in [
                ("even", json!({ "n": 1 }), true),
                ("even", json!({ "n": true }), false),
                ("even", json!({}), false),
                ("odd", json!({}), true),
            ] {
                let plan =
                    forms.plan(&ask(tools.clone()), 0).unwrap_or_else(|error| panic!("{format}: {error}"));
                let text = wire::answer(&format.to_string(), "", &[call(function, arguments)], Style::Spaced);
                let mut constraint = plan.constraint.unwrap();
                let is_taken = text.bytes().all(|byte| constraint.advance(byte.into()).is_ok());
                let mut mask = TokenMask::none(Bytes.n_tokens());
                let may_end = is_taken && constraint.allowed(&mut mask).is_ok() && mask.is_allowed(END);
                assert_eq!(may_end, expected, "{format}: {text}");
            }
        }
        let [odd, even] = tools;
        let refused = forms.plan(&ask([odd.with_strict(), even]), 0);
        let message = refused.err().unwrap_or_else(|| panic!("{format}: not refused")).to_string();
        assert!(message.contains(r#"the function "odd""#) && !message.contains('\n'), "{format}: {message}");
    }
}
