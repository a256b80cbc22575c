//! Calls that are none: nothing is lost, and what is wrong is said.

use breakers_structured::tools::{Answer, CallFault, Event, ToolFormatSpec};
use proptest::prelude::*;

use super::generate::tools;
use super::{formats, parse_pieces};

fn parse(format: &str, text: &str) -> Answer {
    let spec: ToolFormatSpec = format.parse().unwrap();
    let (_, answer) = parse_pieces(spec, &tools(), [text.as_bytes()]);
    // However it is cut.
    for at in 1..text.len() {
        let (head, tail) = text.as_bytes().split_at(at);
        assert_eq!(parse_pieces(spec, &tools(), [head, tail]).1, answer, "{format}: {text:?} at {at}");
    }
    answer
}

/// Checks an answer's text, calls as `name arguments`, and what is malformed.
fn check(format: &str, text: &str, expected_text: &str, calls: &[&str], malformed: &[&str]) -> Answer {
    let answer = parse(format, text);
    let found: Vec<String> =
        answer.calls.iter().map(|call| format!("{} {}", call.name, call.arguments)).collect();
    let raw: Vec<&str> = answer.malformed.iter().map(|call| call.raw.as_str()).collect();
    assert_eq!(
        (answer.text.as_str(), found, raw),
        (expected_text, calls.iter().map(|&c| c.to_owned()).collect(), malformed.to_vec()),
        "{format}: {text:?}"
    );
    answer
}

#[test]
fn what_is_no_marker_is_text() {
    check(
        "hermes",
        "a <tool_cal <tool_<tool_calls> b<tool_call",
        "a <tool_cal <tool_<tool_calls> b<tool_call",
        &[],
        &[],
    );
    check("mistral", "[[TOOL_CALLS", "[[TOOL_CALLS", &[], &[]);
    check("gemma3", "```python\n```` ``", "```python\n```` ``", &[], &[]);
    // A marker within what looked like the beginning of one.
    check("hermes", "<tool_<tool_call>{\"name\": \"f\"}</tool_call>", "<tool_", &["f {}"], &[]);
    check("gemma4", "<|tool_<|tool_call>call:f{}<tool_call|>x", "<|tool_x", &["f {}"], &[]);
}

#[test]
fn forms_that_models_also_write() {
    let hermes = |object: &str| format!("<tool_call>{object}</tool_call>");
    let call = |object: &str, expected: &str| check("hermes", &hermes(object), "", &[expected], &[]);
    call(r#"{"arguments": {"a": "</tool_call>"}, "name": "f"}"#, r#"f {"a": "</tool_call>"}"#);
    call(r#" { "name" : "f" , "parameters" : { } } "#, "f { }");
    call(r#"{"type": "function", "name": "f\u00e9", "arguments": {}, "x": [1, "}"], "y": -1.5}"#, "fé {}");
    let answer = call(r#"{"id": "abc", "name": "f", "arguments": {}}"#, "f {}");
    assert_eq!(answer.calls[0].id, "abc");
    // The end of the answer closes what is complete.
    check("hermes", "<tool_call>\n{\"name\": \"f\"}\n", "", &["f {}"], &[]);
    check("gemma4", "<|tool_call>call:f{}", "", &["f {}"], &[]);
    check(
        "gemma3",
        "```tool_code\n{\"name\": \"f\", \"parameters\": {}}\n{\"name\": \"g\", \"parameters\": {}}",
        "",
        &["f {}", "g {}"],
        &[],
    );
    // White space between calls and after them is no text; anything else is.
    check(
        "hermes",
        "a \n<tool_call>{\"name\": \"f\"}</tool_call> \n<tool_call>{\"name\": \"g\"}</tool_call>\n",
        "a \n",
        &["f {}", "g {}"],
        &[],
    );
    check("hermes", "<tool_call>{\"name\": \"f\"}</tool_call>\n so <tool_", "\n so <tool_", &["f {}"], &[]);
    let answer = check(
        "mistral",
        "[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS] {\"a\": \"[TOOL_CALLS]\"}[TOOL_CALLS]g{}",
        "",
        &["f {\"a\": \"[TOOL_CALLS]\"}", "g {}"],
        &[],
    );
    assert_eq!(answer.calls[0].id, "a1b2c3d4e");
    check(
        "mistral-list",
        "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}, \"id\": \"x\"}] .",
        " .",
        &["f {}"],
        &[],
    );
    check(
        "llama3",
        " {\"name\": \"f\", \"parameters\": {}};{\"name\": \"g\", \"arguments\": {}}",
        "",
        &["f {}", "g {}"],
        &[],
    );
    check(
        "llama3",
        "So: <|python_tag|>{\"name\": \"f\", \"parameters\": {}} ; x",
        "So:  ; x",
        &["f {}"],
        &[],
    );
    // An answer in JSON is no call.
    for text in [
        "{\"name\": \"Ada\", \"age\": 36}",
        "{}",
        "{\"a\": 1}",
        "{\"name\": 1}",
        " { x",
        "{\"name\": \"f\"}",
        "{",
    ] {
        check("llama3", text, text, &[], &[]);
    }
    check(
        "qwen3-coder",
        "<tool_call><function=search><parameter=query>a</parameter><parameter=limit> 3 </parameter></function></tool_call>",
        "",
        &[r#"search {"query":"a","limit":3}"#],
        &[],
    );
    check(
        "qwen3-coder",
        "<tool_call>\n<function=größe_東>\n<parameter=value>\nTrue\n</parameter>\n<parameter=node>\n{\"text\": \"</parameter></function>\"}\n</parameter>\n</function>",
        "",
        &[r#"größe_東 {"value":"True","node":{"text": "</parameter></function>"}}"#],
        &[],
    );
    check(
        "qwen3-coder",
        "<tool_call><function=search><parameter=options>{\"deep\": true}</parameter></function></tool_call>",
        "",
        &[r#"search {"options":{"deep": true}}"#],
        &[],
    );
    check(
        "gemma4",
        "<|tool_call> call: f { a : None, <|\"|>b c<|\"|>:[ True ,{x:<|\"|><|<|\"|>},[]] } <tool_call|>",
        "",
        &[r#"f {"a":null,"b c":[true,{"x":"<|"},[]]}"#],
        &[],
    );
    // A comma without anything behind it.
    check("gemma4", "<|tool_call>call:f{a:1, }", "}", &[], &["<|tool_call>call:f{a:1, "]);
}

#[test]
fn malformed_calls_are_told_with_their_text() {
    let fault =
        |format: &str, text: &str, expected_text: &str, raw: &str, fault: CallFault, index: Option<usize>| {
            let answer = check(format, text, expected_text, &[], &[raw]);
            assert_eq!(
                (&answer.malformed[0].fault, answer.malformed[0].index),
                (&fault, index),
                "{format}: {text:?}"
            );
        };
    let unexpected = |expected, found| CallFault::Unexpected { expected, found };
    fault(
        "hermes",
        "a<tool_call>f(x)",
        "af(x)",
        "<tool_call>",
        unexpected("the object of a call", 'f'),
        None,
    );
    fault(
        "hermes",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": tru}} b",
        "}} b",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": tru",
        unexpected("the rest of a value", '}'),
        Some(0),
    );
    fault(
        "hermes",
        "<tool_call>{\"arguments\": {}}",
        "}",
        "<tool_call>{\"arguments\": {}",
        CallFault::NoName,
        None,
    );
    fault(
        "hermes",
        "<tool_call>{\"name\": \"f\", \"arguments\": \"x\"}",
        "\"x\"}",
        "<tool_call>{\"name\": \"f\", \"arguments\": ",
        unexpected("an object of arguments", '"'),
        None,
    );
    fault(
        "hermes",
        r#"<tool_call>{"name": "\ud800", "#,
        "\", ",
        "<tool_call>{\"name\": \"\\ud800",
        CallFault::NoText { literal: r#""\ud800""#.to_owned() },
        None,
    );
    fault(
        "hermes",
        r#"<tool_call>{"arguments": {}, "parameters": {}}"#,
        "\": {}}",
        r#"<tool_call>{"arguments": {}, "parameters"#,
        CallFault::RepeatedKey { key: "parameters".to_owned() },
        None,
    );
    fault(
        "hermes",
        "<tool_call>{\"name\": \"f\", \"arg",
        "",
        "<tool_call>{\"name\": \"f\", \"arg",
        CallFault::Unfinished { expected: "a key of the call" },
        None,
    );
    fault(
        "mistral",
        "[TOOL_CALLS]f g[ARGS]",
        "g[ARGS]",
        "[TOOL_CALLS]f ",
        unexpected("a function's name and its arguments", 'g'),
        None,
    );
    fault("mistral", "[TOOL_CALLS]{}", "{}", "[TOOL_CALLS]", CallFault::NoName, None);
    fault(
        "mistral-list",
        "[TOOL_CALLS][]",
        "]",
        "[TOOL_CALLS][",
        unexpected("the object of a call", ']'),
        None,
    );
    fault(
        "llama3",
        "<|python_tag|>print(1)",
        "print(1)",
        "<|python_tag|>",
        unexpected("the object of a call", 'p'),
        None,
    );
    fault("qwen3-coder", "<tool_call>\n{", "{", "<tool_call>\n", unexpected("<function=", '{'), None);
    fault(
        "qwen3-coder",
        "<tool_call><function=search><parameter=limit>x</parameter></function>",
        ">",
        "<tool_call><function=search><parameter=limit>x</parameter></function",
        unexpected("a value of the parameter's type", '<'),
        Some(0),
    );
    fault(
        "gemma4",
        "<|tool_call>call:f{a:b}",
        "}",
        "<|tool_call>call:f{a:b",
        unexpected("a number, true, false or null", '}'),
        Some(0),
    );
    // A call after one that is none.
    check(
        "hermes",
        "<tool_call>{\"name\" <tool_call>{\"name\": \"f\"}</tool_call>",
        "",
        &["f {}"],
        &["<tool_call>{\"name\" "],
    );
    // The calls of a list that were complete stay.
    check("mistral-list", "[TOOL_CALLS][{\"name\": \"f\"}, 3", "3", &["f {}"], &[", "]);
}

/// Text in which markers, parts of them and JSON are common.
fn any_text() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "<tool_",
        "<function=search>",
        "<parameter=query>",
        "</parameter>",
        "</function>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "```tool_code",
        "```",
        "<|python_tag|>",
        "<|tool_call>",
        "<tool_call|>",
        "call:",
        "<|\"|>",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        ";",
        "\"",
        "\"name\"",
        "\"arguments\"",
        "\"parameters\"",
        "f",
        "\\",
        " ",
        "\n",
        "1",
        "-",
        "true",
        "é",
        "😀",
    ]);
    let piece = prop_oneof![8 => pieces.prop_map(str::to_owned), 1 => any::<String>()];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_text_is_kept(text in any_text()) {
        for format in formats() {
            let (events, answer) = parse_pieces(format, &tools(), [text.as_bytes()]);
            let chars = text.char_indices().map(|(at, c)| &text.as_bytes()[at..at + c.len_utf8()]);
            prop_assert_eq!(&parse_pieces(format, &tools(), chars).1, &answer);
            if answer.calls.is_empty() {
                // In order, all of it.
                let all: String = events.iter().map(|event| match event {
                    Event::Text(text) => text.as_str(),
                    Event::Malformed(call) => call.raw.as_str(),
                    _ => "",
                }).collect();
                prop_assert_eq!(&all, &text, "{}", format);
            }
            for call in &answer.calls {
                prop_assert!(call.arguments_json().is_ok(), "{}: {:?}", format, call);
            }
        }
    }

    #[test]
    fn any_bytes_are_kept(
        pieces in prop::collection::vec(prop::collection::vec(
            prop_oneof![any::<u8>(), Just(b'<'), Just(b'{'), Just(0xf0), Just(0x9f)], 0..6), 0..12)
    ) {
        for format in formats() {
            let whole = pieces.concat();
            let answer = parse_pieces(format, &tools(), pieces.iter().map(Vec::as_slice)).1;
            prop_assert_eq!(&answer.text, &String::from_utf8_lossy(&whole));
        }
    }
}
