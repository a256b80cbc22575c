//! What answers look like, whole and streamed.

use std::sync::Arc;

use breakers_core::testing::counting_model;
use breakers_core::{
    Alternative, CallError, ChatReply, FinishReason, Json, ModelCard, Prompt, ResponseFormat, ScoredToken,
    Scripted, ScriptedModel, ToolCall, ToolChoice, Usage,
};
use serde_json::{Value, json};

use crate::support::{Client, NOW, config, server};

fn card(id: &str) -> ModelCard {
    let mut card = ModelCard::new(id);
    card.revision = Some("r1".to_owned());
    let can = &mut card.capabilities;
    (can.chat, can.text, can.tokens, can.tools, can.json, can.logprobs, can.seed) =
        (true, true, true, true, true, true, true);
    card
}

fn scripted(
    answer: impl Fn(&breakers_core::ChatRequest) -> Scripted + Send + Sync + 'static,
) -> Arc<ScriptedModel> {
    Arc::new(ScriptedModel::from_fn("m", answer).with_card(card("m")))
}

fn reply() -> ChatReply {
    let mut reply = ChatReply::new("two words", FinishReason::EndOfText);
    let mut token = ScoredToken::new(Some(1), "two", -0.5);
    token.top.push(Alternative::new(Some(1), "two", -0.5));
    token.top.push(Alternative::new(Some(2), [0xf0, 0x9f], f32::NEG_INFINITY));
    reply.tokens = vec![token, ScoredToken::new(Some(3), " words", -0.25)];
    reply.usage = Usage::new(5, 2);
    reply.usage.cached_prompt = 4;
    reply
}

#[test]
fn a_whole_answer_has_every_key() {
    let model = scripted(|_| reply().into());
    let server = server(model, config());
    let client = Client::new(&server);
    let body = r#"{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "user": "u"}"#;
    let answer = client.post("/v1/chat/completions", body);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("x-breakers-ignored"), Some("user"));
    assert!(answer.header("x-request-id").is_some_and(|id| id.starts_with("req_")));
    let json = answer.json();
    let expected = json!({
        "id": json["id"],
        "object": "chat.completion",
        "created": NOW,
        "model": "m",
        "system_fingerprint": json["system_fingerprint"],
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": "two words", "refusal": null},
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 2,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
    });
    assert_eq!(json, expected);
    assert!(json["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(json["system_fingerprint"].as_str().unwrap().starts_with("fp_"));
}

/// Adds the deltas up as OpenAI's clients do.
fn assemble(events: &[Value]) -> Vec<Value> {
    let mut choices: Vec<Value> = Vec::new();
    for event in events {
        for choice in event["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            if index == choices.len() {
                assert_eq!(choice["delta"]["role"], "assistant", "a choice begins with its role");
                choices.push(json!({"content": "", "logprobs": [], "tool_calls": [], "finish_reason": null}));
            }
            let whole = &mut choices[index];
            assert_eq!(whole["finish_reason"], Value::Null, "nothing comes after the end");
            if let Some(text) = choice["delta"]["content"].as_str() {
                whole["content"] = json!(format!("{}{text}", whole["content"].as_str().unwrap()));
            }
            if let Some(tokens) = choice["logprobs"]["content"].as_array() {
                whole["logprobs"].as_array_mut().unwrap().extend(tokens.iter().cloned());
            }
            for part in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                let calls = whole["tool_calls"].as_array_mut().unwrap();
                let at = part["index"].as_u64().unwrap() as usize;
                if at == calls.len() {
                    calls.push(json!({"id": part["id"], "type": part["type"], "function": part["function"]}));
                } else {
                    assert!(part.get("id").is_none() && part["function"].get("name").is_none(), "only once");
                    let more = part["function"]["arguments"].as_str().unwrap();
                    let so_far = calls[at]["function"]["arguments"].as_str().unwrap();
                    calls[at]["function"]["arguments"] = json!(format!("{so_far}{more}"));
                }
            }
            whole["finish_reason"] = choice["finish_reason"].clone();
        }
    }
    choices
}

#[test]
fn a_stream_adds_up_to_the_whole_answer() {
    let model = scripted(|request| match request.tools.is_empty() {
        true => reply().into(),
        false => {
            let mut reply = ChatReply::new("I call.", FinishReason::ToolCalls);
            reply.tool_calls.push(ToolCall::new("call_1", "weather", r#"{"city": "Oslo"}"#));
            reply.tool_calls.push(ToolCall::new("call_2", "time", ""));
            reply.usage = Usage::new(9, 8);
            reply.into()
        }
    });
    let server = server(model, config());
    let client = Client::new(&server);
    let tool =
        |name| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    for (n, tools, scored) in [(1, false, false), (3, false, true), (2, true, false)] {
        let mut body = json!({"model": "m", "n": n, "messages": [{"role": "user", "content": "Hi"}]});
        if tools {
            body["tools"] = json!([tool("weather"), tool("time")]);
        }
        if scored {
            body["logprobs"] = json!(true);
            body["top_logprobs"] = json!(2);
        }
        let whole = client.post("/v1/chat/completions", &body.to_string()).json();
        body["stream"] = json!(true);
        let plain = client.post("/v1/chat/completions", &body.to_string());
        assert_eq!(plain.header("content-type"), Some("text/event-stream; charset=utf-8"));
        assert!(plain.events().iter().all(|event| event.get("usage").is_none()), "usage was not asked for");
        body["stream_options"] = json!({"include_usage": true});
        let mut events = client.post("/v1/chat/completions", &body.to_string()).events();
        let last = events.pop().unwrap();
        assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
        assert_eq!(whole["usage"]["completion_tokens"], if tools { 8 * n } else { 2 * n });
        assert!(events.iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));
        assert!(events.iter().all(|event| event["id"] == events[0]["id"] && event["created"] == NOW));
        for events in [plain.events(), events] {
            let choices = assemble(&events);
            assert_eq!(choices.len(), n);
            for (choice, whole) in choices.iter().zip(whole["choices"].as_array().unwrap()) {
                assert_eq!(choice["content"], whole["message"]["content"]);
                assert_eq!(choice["finish_reason"], whole["finish_reason"]);
                let none = json!([]);
                assert_eq!(&choice["tool_calls"], whole["message"].get("tool_calls").unwrap_or(&none));
                let tokens = whole["logprobs"].get("content").unwrap_or(&none);
                assert_eq!(&choice["logprobs"], tokens);
                assert_eq!(tokens.as_array().unwrap().len(), if scored { 2 } else { 0 });
            }
        }
    }
}

#[test]
fn impossible_tokens_and_split_characters_are_json() {
    let server = server(scripted(|_| reply().into()), config());
    let body = r#"{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "logprobs": true, "top_logprobs": 2}"#;
    let json = Client::new(&server).post("/v1/chat/completions", body).json();
    let token = &json["choices"][0]["logprobs"]["content"][0];
    assert_eq!(token["bytes"], json!(b"two"));
    assert_eq!(
        token["top_logprobs"][1],
        json!({"token": "\u{fffd}", "logprob": -9999.0, "bytes": [0xf0, 0x9f]})
    );
}

#[test]
fn texts_are_continued_repeated_and_scored() {
    let model = scripted(|_| reply().into());
    let server = server(model.clone(), config());
    let client = Client::new(&server);
    let body = r#"{"model": "m", "prompt": ["a", "b"], "n": 2, "echo": true}"#;
    let json = client.post("/v1/completions", body).json();
    let texts: Vec<&str> =
        json["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["atwo words", "atwo words", "btwo words", "btwo words"]);
    assert_eq!(json["usage"]["prompt_tokens"], 10, "each prompt counts once");
    assert_eq!(json["object"], "text_completion");
    assert_eq!(model.requests().last().unwrap().max_tokens, Some(16));

    let body = json!({"model": "m", "prompt": [3, 4], "logprobs": 2, "stream": true});
    let events = client.post("/v1/completions", &body.to_string()).events();
    assert_eq!(model.requests().last().unwrap().prompt, Prompt::Tokens(vec![3, 4]));
    let text: String = events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, "two words");
    let scores: Vec<&Value> =
        events.iter().map(|e| &e["choices"][0]["logprobs"]).filter(|l| !l.is_null()).collect();
    let expected = json!({
        "tokens": ["two", " words"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"two": -0.5, "\u{fffd}": -9999.0}, {}],
        "text_offset": [0, 3],
    });
    assert_eq!(scores, [&expected]);
}

#[test]
fn every_field_reaches_the_model() {
    let model = scripted(|_| "ok".into());
    let server = server(model.clone(), config());
    let client = Client::new(&server);
    let body = json!({
        "model": "m",
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": "Weather?", "name": "ann"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ],
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "logit_bias": {"5": -100, "6": 1.5},
        "seed": -3,
        "stop": "\n",
        "logprobs": true,
        "response_format": {"type": "json_schema",
            "json_schema": {"name": "n", "strict": true, "schema": {"z": 1, "a": 2}}},
        "tools": [
            {"type": "function", "function": {"name": "weather", "description": "d", "strict": true,
                "parameters": {"type": "object", "properties": {"z": {}, "a": {}}}}},
            {"type": "function", "function": {"name": "time"}},
        ],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
            {"type": "function", "function": {"name": "weather"}}]}},
        "parallel_tool_calls": false,
        "some_field_of_the_future": {"x": [1]},
    });
    // The order of keys matters to models.
    let body = body.to_string().replace(r#"{"a":2,"z":1}"#, r#"{"z":1,"a":2}"#);
    let answer = client.post("/v1/chat/completions", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("x-breakers-ignored"), None);
    let request = model.requests().pop().unwrap();
    let messages = request.prompt.messages().unwrap();
    let roles: Vec<&str> = messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool"]);
    assert_eq!((&*messages[0].text(), &*messages[3].text()), ("Be brief.", "rain"));
    assert_eq!(messages[1].fields[0].1.as_str(), "\"ann\"");
    assert_eq!(messages[2].tool_calls, [ToolCall::new("c1", "weather", "{}")]);
    assert_eq!(messages[3].tool_call_id.as_deref(), Some("c1"));
    assert_eq!((request.max_tokens, request.seed), (Some(7), Some((-3i64).cast_unsigned())));
    assert_eq!((request.stop.as_slice(), request.top_logprobs), (&["\n".to_owned()][..], Some(0)));
    let sampling = &request.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.5, 0.9, 40, 0.1));
    assert_eq!((sampling.frequency_penalty, sampling.presence_penalty), (0.5, -0.5));
    assert_eq!(sampling.repetition_window, usize::MAX);
    assert_eq!(sampling.logit_bias.iter().collect::<Vec<_>>(), [(&5, &-100.0), (&6, &1.5)]);
    let ResponseFormat::JsonSchema(schema) = &request.response else { panic!("{:?}", request.response) };
    assert_eq!((schema.strict, schema.schema.clone()), (true, Json::parse(r#"{"z":1,"a":2}"#).unwrap()));
    assert_eq!(request.tools.len(), 1);
    assert!(request.tools[0].strict && request.tools[0].description.as_deref() == Some("d"));
    assert_eq!((request.tool_choice, request.parallel_tool_calls), (ToolChoice::Required, Some(false)));
}

#[test]
fn answers_to_one_prompt_have_seeds_of_their_own() {
    let model = scripted(|_| "ok".into());
    let server = server(model.clone(), config());
    let client = Client::new(&server);
    let seeds = || {
        let body = r#"{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "n": 4, "seed": 11}"#;
        assert_eq!(client.post("/v1/chat/completions", body).status, 200);
        let requests = model.requests();
        let mut seeds: Vec<u64> = requests[requests.len() - 4..].iter().map(|r| r.seed.unwrap()).collect();
        seeds.sort_unstable();
        seeds
    };
    let first = seeds();
    assert!(first.contains(&11) && first.windows(2).all(|pair| pair[0] != pair[1]), "{first:?}");
    assert_eq!(first, seeds(), "the same for the same seed");
}

#[test]
fn models_are_listed_and_found_by_names_with_slashes() {
    let one = ScriptedModel::from_fn("team/one", |_| "1".into());
    let server = breakers_serve::Server::new(config())
        .with_model(Arc::new(one))
        .with_model(Arc::new(counting_model("two")));
    let server = crate::support::prepared(server);
    let client = Client::new(&server);
    let list = client.get("/v1/models").json();
    assert_eq!(list["object"], "list");
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["team/one", "two"]);
    for path in ["/v1/models/team/one", "/v1/models/team%2Fone"] {
        assert_eq!(client.get(path).json()["id"], "team/one");
    }
    let missing = client.get("/v1/models/team/three");
    assert_eq!((missing.status, &missing.json()["error"]["code"]), (404, &json!("model_not_found")));
}

#[test]
fn errors_of_models_have_a_status_before_the_stream_and_an_event_within_it() {
    let model = scripted(|request| match &*request.prompt.messages().unwrap()[0].text() {
        "long" => CallError::ContextTooLong { needed: Some(9), limit: Some(8) }.into(),
        "busy" => CallError::Overloaded { retry_after: Some(std::time::Duration::from_millis(1500)) }.into(),
        "late" => Scripted::Fail {
            after: "some words".to_owned(),
            error: CallError::failed(std::io::Error::other("it broke")),
        },
        _ => panic!("told to panic"),
    });
    let mut config = config();
    config.canary = false;
    let server = server(model, config);
    let client = Client::new(&server);
    for stream in [false, true] {
        let post = |text: &str| {
            let body =
                json!({"model": "m", "messages": [{"role": "user", "content": text}], "stream": stream});
            client.post("/v1/chat/completions", &body.to_string())
        };
        let long = post("long");
        assert_eq!((long.status, &long.json()["error"]["code"]), (400, &json!("context_length_exceeded")));
        let busy = post("busy");
        assert_eq!(
            (busy.status, busy.header("retry-after"), busy.header("retry-after-ms")),
            (503, Some("2"), Some("1500"))
        );
        let panicked = post("panic");
        assert_eq!((panicked.status, &panicked.json()["error"]["type"]), (500, &json!("server_error")));
        let late = post("late");
        if stream {
            assert_eq!(late.status, 200);
            let last = late.text.trim_end().rsplit("\n\n").next().unwrap().strip_prefix("data: ").unwrap();
            let last: Value = serde_json::from_str(last).unwrap();
            assert!(last["error"]["message"].as_str().unwrap().contains("it broke"));
            assert!(late.text.contains("words") && !late.text.contains("[DONE]"));
        } else {
            assert_eq!(late.status, 500);
        }
    }
}
