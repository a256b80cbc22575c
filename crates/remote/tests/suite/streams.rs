//! Answers as endpoints send them, and as they should not.

use std::io;
use std::ops::ControlFlow;

use breakers_core::{
    Alternative, CallError, ChatReply, Delta, FinishReason, ScoredToken, ToolCall, ToolCallDelta,
};
use breakers_remote::testing::read_answer;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Pieces, kind, question};

type Heard = (Result<ChatReply, CallError>, Vec<Delta>);

fn hear<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, then: Option<io::ErrorKind>) -> Heard {
    let mut deltas = Vec::new();
    let mut request = question().with_logprobs(1).with_stop(["END"]);
    request.seed = Some(7);
    let reply = read_answer(&request, true, Pieces::new(pieces, then), &mut |delta| {
        deltas.push(delta);
        ControlFlow::Continue(())
    });
    (
        reply.map(|mut reply| {
            reply.timings = Default::default();
            reply
        }),
        deltas,
    )
}

/// A stream of these chunks, with its end.
fn stream(chunks: &[Value]) -> String {
    let events: String = chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
    format!("{events}data: [DONE]\n\n")
}

fn piece(delta: Value) -> Value {
    json!({"model": "served", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

fn end(word: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": word}]})
}

/// Text, tokens, two calls, usage.
fn full() -> String {
    let logprobs = json!({"content": [
        {"token": "Gr\u{fc}", "logprob": -0.5, "bytes": [71, 114, 195, 188], "top_logprobs": [
            {"token": "Ha", "logprob": -1.0, "bytes": null},
            {"token": "Gr\u{fc}", "logprob": -0.5, "bytes": [71, 114, 195, 188]},
        ]},
    ]});
    let mut first = piece(json!({"role": "assistant", "content": "Gr\u{fc}"}));
    first["choices"][0]["logprobs"] = logprobs;
    let call = |index: usize, id: &str, name: &str| {
        piece(json!({"tool_calls": [
            {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}},
        ]}))
    };
    let more = |index: usize, text: &str| {
        piece(json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]}))
    };
    let usage = json!({"choices": [], "usage": {
        "prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {
            "reasoning_tokens": 1, "accepted_prediction_tokens": 2, "rejected_prediction_tokens": 3,
        },
    }});
    let chunks = [
        first,
        piece(json!({"content": "\u{df}e \u{1f642}\n"})),
        call(0, "c1", "weather"),
        more(0, "{\"city\":"),
        more(0, " \"Oslo\"}"),
        call(1, "c2", "time"),
        more(1, "{}"),
        end("tool_calls"),
        usage,
    ];
    format!(": ping\n\n{}", stream(&chunks).replacen("data: {", "data:{", 1))
}

fn check_full((reply, deltas): &Heard) {
    let reply = reply.as_ref().unwrap();
    assert_eq!(reply.text, "Gr\u{fc}\u{df}e \u{1f642}\n");
    let calls = [ToolCall::new("c1", "weather", "{\"city\": \"Oslo\"}"), ToolCall::new("c2", "time", "{}")];
    assert_eq!(reply.tool_calls, calls);
    assert_eq!(
        (reply.finish, reply.model.as_str(), reply.seed),
        (FinishReason::ToolCalls, "served", Some(7))
    );
    let usage = reply.usage;
    assert_eq!((usage.prompt, usage.cached_prompt, usage.completion, usage.reasoning), (12, 8, 5, 1));
    assert_eq!((usage.accepted, usage.drafted), (2, 5));
    let mut token = ScoredToken::new(None, "Gr\u{fc}", -0.5);
    token.top.push(Alternative::new(None, "Gr\u{fc}", -0.5));
    assert_eq!(reply.tokens, [token.clone()]);
    let expected = [
        Delta::Tokens(vec![token]),
        Delta::Text("Gr\u{fc}".to_owned()),
        Delta::Text("\u{df}e \u{1f642}\n".to_owned()),
        Delta::ToolCall(ToolCallDelta::start(0, "c1", "weather")),
        Delta::ToolCall(ToolCallDelta::arguments(0, "{\"city\":")),
        Delta::ToolCall(ToolCallDelta::arguments(0, " \"Oslo\"}")),
        Delta::ToolCall(ToolCallDelta::start(1, "c2", "time")),
        Delta::ToolCall(ToolCallDelta::arguments(1, "{}")),
    ];
    assert_eq!(deltas[..], expected);
}

#[test]
fn a_stream_at_every_split_is_the_same() {
    for text in [full(), full().replace('\n', "\r\n").replace("\\r\\n", "\\n")] {
        let bytes = text.as_bytes();
        for at in 0..=bytes.len() {
            check_full(&hear([&bytes[..at], &bytes[at..]], None));
        }
        check_full(&hear(bytes.chunks(1), None));
    }
}

#[test]
fn a_stream_cut_anywhere_is_truncated_unless_it_has_ended() {
    let text = full();
    let bytes = text.as_bytes();
    // After its finish reason an answer is complete, though its usage may be missing.
    let whole = text.find("\"finish_reason\":\"tool_calls\"").unwrap();
    let line_end = whole + text[whole..].find('\n').unwrap();
    for at in 0..bytes.len() {
        for then in [None, Some(io::ErrorKind::ConnectionReset), Some(io::ErrorKind::UnexpectedEof)] {
            let (reply, deltas) = hear([&bytes[..at]], then);
            // A connection that ends may leave out the empty line after the event; one that breaks may not.
            if at > line_end + 1 || (at >= line_end && then.is_none()) {
                let reply = reply.unwrap();
                assert_eq!((reply.finish, reply.tool_calls.len()), (FinishReason::ToolCalls, 2), "{at}");
                continue;
            }
            let error = reply.unwrap_err();
            let expected = match then {
                // Before anything was handed out, a broken connection may be retried.
                Some(_) if deltas.is_empty() => "Transport",
                _ => "Truncated",
            };
            assert_eq!(kind(&error), expected, "{at} {then:?}: {error}");
        }
    }
}

#[test]
fn endings() {
    for (chunk, expected) in [
        (end("stop"), FinishReason::EndOfText),
        (end("length"), FinishReason::Length),
        (end("content_filter"), FinishReason::ContentFilter),
        (end("function_call"), FinishReason::ToolCalls),
        (json!({"choices": [{"finish_reason": "stop", "stop_reason": "END"}]}), FinishReason::Stop),
        (json!({"choices": [{"finish_reason": "stop", "matched_stop": "END"}]}), FinishReason::Stop),
        (json!({"choices": [{"finish_reason": "stop", "stop_reason": 151645}]}), FinishReason::EndOfText),
        (json!({"choices": [{"finish_reason": "stop", "stop_reason": null}]}), FinishReason::EndOfText),
    ] {
        let text = stream(&[piece(json!({"content": "x"})), chunk.clone()]);
        let (reply, _) = hear([text.as_bytes()], None);
        assert_eq!(reply.unwrap().finish, expected, "{chunk}");
    }
    // A server that says `stop` though it calls.
    let call = piece(json!({"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}));
    let (reply, _) = hear([stream(&[call, end("stop")]).as_bytes()], None);
    assert_eq!(reply.unwrap().finish, FinishReason::ToolCalls);
}

#[test]
fn servers_that_take_liberties_are_understood() {
    let call = |delta: Value| piece(json!({"tool_calls": [delta]}));
    let cases: &[(&str, Vec<Value>, &[ToolCall])] = &[
        (
            "id and name in each part",
            vec![
                call(json!({"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}})),
                call(json!({"index": 0, "id": "c", "function": {"name": "f", "arguments": "}"}})),
            ],
            &[ToolCall::new("c", "f", "{}")],
        ),
        (
            "no index, a new id for a new call",
            vec![
                call(json!({"id": "c", "function": {"name": "f", "arguments": "{"}})),
                call(json!({"function": {"arguments": "}"}})),
                call(json!({"id": "d", "function": {"name": "f", "arguments": "{}"}})),
            ],
            &[ToolCall::new("c", "f", "{}"), ToolCall::new("d", "f", "{}")],
        ),
        (
            "no id, arguments as an object",
            vec![call(json!({"index": 0, "function": {"name": "f", "arguments": {"a": 1}}}))],
            &[ToolCall::new("call_0", "f", "{\"a\":1}")],
        ),
        (
            "no arguments",
            vec![call(json!({"index": 0, "id": "c", "function": {"name": "f", "arguments": null}}))],
            &[ToolCall::new("c", "f", "")],
        ),
    ];
    for (what, chunks, expected) in cases {
        let mut chunks = chunks.clone();
        chunks.push(end("tool_calls"));
        let (reply, _) = hear([stream(&chunks).as_bytes()], None);
        assert_eq!(reply.unwrap().tool_calls, *expected, "{what}");
    }
    // Nulls, extra fields, empty deltas, another kind of event, no `[DONE]`.
    let text = "event: ping\ndata: {}\n\ndata: {\"choices\": null, \"usage\": null, \"x\": 1}\n\n\
                data: {\"choices\": [{\"delta\": {\"content\": null, \"reasoning_content\": \"hm\"}}]}\n\n\
                data: {\"choices\": [{\"delta\": {\"content\": \"\"}}]}\n\n\
                data: {\"choices\": [{\"delta\": {\"content\": \"x\"}, \"finish_reason\": \"stop\"}]}";
    let (reply, deltas) = hear([text.as_bytes()], None);
    assert_eq!((reply.unwrap().text.as_str(), deltas.len()), ("x", 1));
}

#[test]
fn lies_are_found() {
    let call = |delta: Value| stream(&[piece(json!({"tool_calls": [delta]})), end("tool_calls")]);
    let named = |index: u64| json!({"index": index, "id": "c", "function": {"name": "f", "arguments": ""}});
    let two = |second: Value| {
        stream(&[
            piece(json!({"tool_calls": [named(0)]})),
            piece(json!({"tool_calls": [second]})),
            end("tool_calls"),
        ])
    };
    let with_logprob = |x: Value| {
        let mut chunk = piece(json!({"content": "x"}));
        chunk["choices"][0]["logprobs"] = json!({"content": [{"token": "x", "logprob": x}]});
        stream(&[chunk, end("stop")])
    };
    let cases: Vec<(&str, String, &str)> = vec![
        ("no JSON", "data: {\n\n".to_owned(), "Malformed"),
        ("another kind of JSON", "data: [1]\n\n".to_owned(), "Malformed"),
        ("a number for a text", stream(&[piece(json!({"content": 1}))]), "Malformed"),
        (
            "half of a surrogate pair",
            "data: {\"choices\":[{\"delta\":{\"content\":\"\\ud83d\"}}]}\n\n".to_owned(),
            "Malformed",
        ),
        ("a deep nest", format!("data: {{\"x\":{}\n\n", "[".repeat(100_000)), "Malformed"),
        ("bytes that are no text", "data: \u{0}\n\n".to_owned(), "Malformed"),
        (
            "a second choice",
            stream(&[json!({"choices": [{"index": 1, "delta": {"content": "x"}}]})]),
            "Malformed",
        ),
        ("text after the end", stream(&[end("stop"), piece(json!({"content": "x"}))]), "Malformed"),
        ("two ends", stream(&[end("stop"), end("length")]), "Malformed"),
        ("an unknown end", stream(&[end("whim")]), "Malformed"),
        ("an aborted end", stream(&[end("abort")]), "Truncated"),
        ("a call from nowhere", call(named(1)), "Malformed"),
        ("a huge index", call(named(u64::MAX)), "Malformed"),
        ("a call without a name", call(json!({"index": 0, "id": "c"})), "Malformed"),
        ("another id for the call", two(json!({"index": 0, "id": "d"})), "Malformed"),
        ("another name for the call", two(json!({"index": 0, "function": {"name": "g"}})), "Malformed"),
        ("arguments that are a number", two(json!({"index": 0, "function": {"arguments": 1}})), "Malformed"),
        ("a negative count", stream(&[json!({"usage": {"prompt_tokens": -1}})]), "Malformed"),
        ("a probability above one", with_logprob(json!(0.5)), "Malformed"),
        ("no number", with_logprob(json!("NaN")), "Malformed"),
        ("nothing", String::new(), "Truncated"),
        ("nothing but the end", "data: [DONE]\n\n".to_owned(), "Truncated"),
        ("nothing but comments", ": ping\n\n".repeat(100), "Truncated"),
        ("a refusal", stream(&[piece(json!({"refusal": "No."})), end("stop")]), "ContentFiltered"),
        ("more than a mebibyte", format!("data: {}", " ".repeat(1 << 21)), "Malformed"),
        ("comments without end", ": ping\n".repeat(1 << 18), "Malformed"),
        (
            "an error in the middle",
            format!(
                "data: {}\n\ndata: {{\"error\": {{\"message\": \"busy\", \"code\": 503}}}}\n\n",
                piece(json!({"content": "x"}))
            ),
            "Truncated",
        ),
        (
            "an error at the start",
            "data: {\"error\": {\"message\": \"busy\", \"code\": 503}}\n\n".to_owned(),
            "Overloaded",
        ),
        ("an error as text", "event: error\ndata: {\"error\": \"broken\"}\n\n".to_owned(), "Failed"),
    ];
    for (what, text, expected) in &cases {
        let (reply, _) = hear([text.as_bytes()], None);
        let error = reply.expect_err(what);
        assert_eq!(kind(&error), *expected, "{what}: {error}");
        assert!(error.to_string().len() < 1500, "{what}: the message is long");
    }
    let (reply, _) = hear([&b"data: {\"choices\":[{\"delta\":{\"content\":\"\xff\"}}]}\n\n"[..]], None);
    assert_eq!(kind(&reply.unwrap_err()), "Malformed");
}

#[test]
fn a_receiver_ends_the_answer_at_every_piece() {
    let text = full();
    for n in 1..=8 {
        let mut left = n;
        let request = question().with_logprobs(1);
        // After that, the stream fails.
        let reader = Pieces::new([text.as_bytes()], Some(io::ErrorKind::ConnectionReset));
        let reply = read_answer(&request, true, reader, &mut |_| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let reply = reply.unwrap();
        assert_eq!((left, reply.finish), (0, FinishReason::Cancelled));
        let text = ["", "Gr\u{fc}", "Gr\u{fc}\u{df}e \u{1f642}\n"][n.min(3) - 1];
        assert_eq!(reply.text, text, "{n}");
    }
}

#[test]
fn whole_answers() {
    let read =
        |body: &str| read_answer(&question(), false, body.as_bytes(), &mut |_| ControlFlow::Continue(()));
    let message = json!({"role": "assistant", "content": "Hi", "refusal": null});
    let body = json!({"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}});
    let reply = read(&body.to_string()).unwrap();
    assert_eq!((reply.text.as_str(), reply.model.as_str(), reply.usage.total()), ("Hi", "m", 4));
    for (body, expected) in [
        ("", "Truncated"),
        ("{", "Malformed"),
        ("<html>", "Malformed"),
        ("{}", "Truncated"),
        ("{\"error\": {\"code\": \"context_length_exceeded\"}}", "ContextTooLong"),
    ] {
        assert_eq!(kind(&read(body).unwrap_err()), expected, "{body}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_answer_or_a_typed_error(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        is_stream in any::<bool>(),
    ) {
        let reply = read_answer(&question(), is_stream, &bytes[..], &mut |_| ControlFlow::Continue(()));
        prop_assert!(reply.is_err());
    }

    // Built from the protocol's own words, so that the later parsers are reached.
    #[test]
    fn any_words_of_the_protocol(
        chunks in prop::collection::vec(any_chunk(), 0..8),
        at in any::<prop::sample::Index>(),
    ) {
        let text = stream(&chunks);
        let at = at.index(text.len());
        let whole = hear([text.as_bytes()], None);
        let split = hear([&text.as_bytes()[..at], &text.as_bytes()[at..]], None);
        prop_assert_eq!(format!("{whole:?}"), format!("{split:?}"));
        if let (Ok(reply), deltas) = &whole {
            let handed: String = deltas
                .iter()
                .filter_map(|delta| if let Delta::Text(text) = delta { Some(text.as_str()) } else { None })
                .collect();
            prop_assert_eq!(&handed, &reply.text);
        }
    }
}

fn any_chunk() -> impl Strategy<Value = Value> {
    let words = prop_oneof![Just("stop"), Just("length"), Just("tool_calls"), Just("?")];
    let leaf = prop_oneof![
        Just(Value::Null),
        (0u64..3).prop_map(Value::from),
        Just(json!("x")),
        Just(json!("{}")),
        words.prop_map(Value::from),
    ];
    let keys = prop::sample::select(vec![
        "choices",
        "delta",
        "message",
        "content",
        "tool_calls",
        "index",
        "id",
        "function",
        "name",
        "arguments",
        "finish_reason",
        "usage",
        "prompt_tokens",
        "logprobs",
        "token",
        "logprob",
        "error",
        "code",
        "text",
    ]);
    leaf.prop_recursive(6, 40, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..3).prop_map(Value::from),
            prop::collection::btree_map(keys.clone(), inner, 0..5)
                .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}
