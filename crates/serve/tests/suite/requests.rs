//! Requests that are refused, and the field that each refusal names.

use std::sync::Arc;

use breakers_core::{
    CallError, ChatModel as _, ChatRequest, Json, ModelCard, Priority, ResponseFormat, ResponseSchema,
    ScriptedModel,
};
use serde_json::{Value, json};

use crate::support::{Client, config, raw, server};

fn server_of_all() -> breakers_serve::ServerHandle {
    let mut card = ModelCard::new("m");
    let can = &mut card.capabilities;
    (can.chat, can.text, can.tokens, can.tools, can.json, can.logprobs, can.seed) =
        (true, true, true, true, true, true, true);
    let model = ScriptedModel::from_fn("m", |_| "ok".into()).with_card(card);
    server(Arc::new(model), config())
}

#[test]
fn what_cannot_be_honored_is_refused_by_name() {
    let server = server_of_all();
    let client = Client::new(&server);
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let cases: Vec<(&str, Value, &str)> = vec![
        ("model", json!(null), "model"),
        ("model", json!(7), "model"),
        ("messages", json!([]), "messages"),
        ("messages", json!("Hi"), "messages"),
        ("messages", json!([{"content": "Hi"}]), "messages[0].role"),
        ("messages", json!([{"role": "user"}]), "messages[0].content"),
        ("messages", json!([{"role": "robot", "content": "Hi"}]), "messages[0].role"),
        ("messages", json!([{"role": "user", "content": 3}]), "messages[0].content"),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
            "messages[0].content[0].type",
        ),
        ("messages", json!([{"role": "tool", "content": "x"}]), "messages[0].tool_call_id"),
        ("messages", json!([{"role": "user", "content": "x", "tool_calls": [{}]}]), "messages[0].tool_calls"),
        ("messages", json!([{"role": "assistant", "audio": {"id": "x"}}]), "messages[0].audio"),
        (
            "messages",
            json!([{"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "f"}}]}]),
            "messages[0].tool_calls[0].function.arguments",
        ),
        ("max_tokens", json!(0), "max_tokens"),
        ("max_completion_tokens", json!(-1), "max_completion_tokens"),
        ("n", json!(0), "n"),
        ("n", json!(129), "n"),
        ("n", json!("two"), "n"),
        ("temperature", json!(2.5), "temperature"),
        ("top_p", json!(-0.1), "top_p"),
        ("frequency_penalty", json!(3), "frequency_penalty"),
        ("presence_penalty", json!(-3), "presence_penalty"),
        ("logit_bias", json!({"x": 1}), "logit_bias"),
        ("logit_bias", json!({"1": 101}), "logit_bias"),
        ("seed", json!(1.5), "seed"),
        ("stop", json!([""]), "stop"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "stop"),
        ("stop", json!("x".repeat(257)), "stop"),
        ("stop", json!(5), "stop"),
        ("top_logprobs", json!(3), "top_logprobs"),
        ("stream", json!("yes"), "stream"),
        ("stream_options", json!({"include_usage": true}), "stream_options"),
        ("response_format", json!({"type": "xml"}), "response_format.type"),
        ("response_format", json!({"type": "json_schema"}), "response_format.json_schema"),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "n"}}),
            "response_format.json_schema.schema",
        ),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "n", "schema": []}}),
            "response_format.json_schema.schema",
        ),
        ("tools", json!([{"type": "custom", "custom": {"name": "x"}}]), "tools[0].type"),
        ("tools", json!([{"type": "function", "function": {"name": "a b"}}]), "tools[0].function.name"),
        ("tools", json!([tool, tool]), "tools[1].function.name"),
        ("tool_choice", json!("required"), "tool_choice"),
        ("tool_choice", json!("sometimes"), "tool_choice"),
        ("tool_choice", json!({"type": "function", "function": {"name": "g"}}), "tool_choice"),
        ("audio", json!({"voice": "x"}), "audio"),
        ("modalities", json!(["text", "audio"]), "modalities"),
        ("functions", json!([{}]), "functions"),
        ("function_call", json!("auto"), "function_call"),
        ("web_search_options", json!({}), "web_search_options"),
        ("moderation", json!({"model": "x"}), "moderation"),
        ("store", json!(true), "store"),
        ("reasoning_effort", json!("high"), "reasoning_effort"),
        ("verbosity", json!("low"), "verbosity"),
        ("ignore_eos", json!(true), "ignore_eos"),
        ("min_tokens", json!(1), "min_tokens"),
        ("guided_json", json!([]), "guided_json"),
        ("guided_json", json!("{"), "guided_json"),
        ("json_schema", json!(3), "json_schema"),
        ("guided_regex", json!(["a"]), "guided_regex"),
        ("guided_choice", json!(["a", ""]), "guided_choice"),
        ("guided_choice", json!("a"), "guided_choice"),
        ("guided_grammar", json!("root ::= \"a\""), "guided_grammar"),
        ("grammar", json!("root ::= \"a\""), "grammar"),
        ("ebnf", json!("root ::= \"a\""), "ebnf"),
        ("structured_outputs", json!("a"), "structured_outputs"),
        ("structured_outputs", json!({"regex": "a", "choice": ["a"]}), "structured_outputs.choice"),
        ("structured_outputs", json!({"structural_tag": "x"}), "structured_outputs.structural_tag"),
        (
            "structured_outputs",
            json!({"json": {}, "whitespace_pattern": " "}),
            "structured_outputs.whitespace_pattern",
        ),
        ("prediction", json!({"type": "text", "content": "x"}), "prediction.type"),
        ("prediction", json!({"type": "content"}), "prediction.content"),
        (
            "prediction",
            json!({"type": "content", "content": [{"type": "image", "text": ""}]}),
            "prediction.content",
        ),
        ("best_of", json!(3), "best_of"),
    ];
    for (field, value, param) in cases {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        body[field] = value.clone();
        let answer = client.post("/v1/chat/completions", &body.to_string());
        let error = &answer.json()["error"];
        assert_eq!((answer.status, error["param"].as_str()), (400, Some(param)), "{field}: {value}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
        // What has no effect is accepted.
        body[field] = Value::Null;
        if !matches!(field, "model" | "messages") {
            assert_eq!(client.post("/v1/chat/completions", &body.to_string()).status, 200, "{field}");
        }
    }
    for (field, value, param) in [
        ("prompt", json!(null), "prompt"),
        ("prompt", json!([]), "prompt"),
        ("prompt", json!(["a", 3]), "prompt"),
        ("prompt", json!([3, "a"]), "prompt"),
        ("prompt", json!([3.5]), "prompt"),
        ("prompt", json!(vec!["a"; 129]), "prompt"),
        ("suffix", json!("x"), "suffix"),
        ("logprobs", json!(6), "logprobs"),
        ("logprobs", json!(true), "logprobs"),
        ("max_tokens", json!(0), "max_tokens"),
    ] {
        let mut body = json!({"model": "m", "prompt": "Hi"});
        body[field] = value.clone();
        let answer = client.post("/v1/completions", &body.to_string());
        let error = &answer.json()["error"];
        assert_eq!((answer.status, error["param"].as_str()), (400, Some(param)), "{field}: {value}: {error}");
    }
    let contradiction = r#"{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "max_completion_tokens": 4}"#;
    assert_eq!(client.post("/v1/chat/completions", contradiction).json()["error"]["param"], "max_tokens");
}

#[test]
fn hints_are_named_as_ignored() {
    let server = server_of_all();
    let body = json!({
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "service_tier": "auto",
        "prediction": {"type": "content", "content": "x"},
        "metadata": {"a": "b"},
    });
    let answer = Client::new(&server).post("/v1/chat/completions", &body.to_string());
    assert_eq!(
        (answer.status, answer.header("x-breakers-ignored")),
        (200, Some("metadata, prediction, service_tier"))
    );
}

/// A model that can do everything, and remembers what it was asked.
fn all_and_grammars() -> Arc<ScriptedModel> {
    let mut card = ModelCard::new("m");
    let can = &mut card.capabilities;
    (can.chat, can.text, can.tools, can.json, can.grammar, can.prediction) =
        (true, true, true, true, true, true);
    Arc::new(ScriptedModel::from_fn("m", |_| "ok".into()).with_card(card))
}

#[test]
fn grammars_in_the_words_of_other_servers_reach_the_model() {
    let model = all_and_grammars();
    let mut config = config();
    config.canary = false;
    let server = server(Arc::clone(&model) as _, config);
    let client = Client::new(&server);
    let schema = |name: &str| {
        let schema = Json::parse(r#"{"type":"array"}"#).unwrap();
        ResponseFormat::JsonSchema(ResponseSchema::new(name, schema))
    };
    let choice = || ResponseFormat::Choice(vec!["a".to_owned(), "b".to_owned()]);
    let cases = [
        (json!({"structured_outputs": {"regex": "a+"}}), ResponseFormat::Regex("a+".to_owned())),
        (json!({"structured_outputs": {"choice": ["a", "b"]}}), choice()),
        (
            json!({"structured_outputs": {"grammar": "start: \"a\""}}),
            ResponseFormat::Lark("start: \"a\"".to_owned()),
        ),
        (json!({"structured_outputs": {"json_object": true}}), ResponseFormat::JsonObject),
        (
            json!({"structured_outputs": {"json": {"type": "array"}, "regex": "", "choice": []}}),
            schema("json"),
        ),
        (json!({"guided_json": r#"{"type":"array"}"#}), schema("guided_json")),
        (json!({"json_schema": {"type": "array"}}), schema("json_schema")),
        (json!({"guided_regex": "a+"}), ResponseFormat::Regex("a+".to_owned())),
        (json!({"regex": "a+"}), ResponseFormat::Regex("a+".to_owned())),
        (json!({"guided_choice": ["a", "b"]}), choice()),
        (json!({"guided_grammar": "start: \"a\""}), ResponseFormat::Lark("start: \"a\"".to_owned())),
        (json!({"guided_regex": null, "structured_outputs": {}}), ResponseFormat::Text),
    ];
    for (fields, expected) in cases {
        for (path, prompt) in [
            ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "Hi"}]})),
            ("/v1/completions", json!({"prompt": "Hi"})),
            ("/v1/responses", json!({"input": "Hi"})),
        ] {
            let mut body = json!({"model": "m"});
            for (name, value) in fields.as_object().unwrap().iter().chain(prompt.as_object().unwrap()) {
                body[name] = value.clone();
            }
            let answer = client.post(path, &body.to_string());
            assert_eq!(answer.status, 200, "{body}: {}", answer.text);
            let asked = model.requests().pop().unwrap().response;
            let texts = |form: &ResponseFormat| format!("{form:?}").replace(' ', "");
            assert_eq!(texts(&asked), texts(&expected), "{body}");
        }
    }
    // Two forms, or a grammar and functions, contradict each other.
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    for (field, value, param) in
        [("response_format", json!({"type": "json_object"}), "response_format"), ("tools", tool, "tools")]
    {
        let mut body =
            json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "guided_regex": "a"});
        body[field] = value;
        let answer = client.post("/v1/chat/completions", &body.to_string());
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(param)));
    }
}

#[test]
fn a_form_that_the_model_refuses_is_named_as_it_was_given() {
    let refusing = |_: &ChatRequest| CallError::bad_request("response_format", "no").into();
    let card = all_and_grammars().card().clone();
    let model = ScriptedModel::from_fn("m", refusing).with_card(card);
    let mut config = config();
    config.canary = false;
    let server = server(Arc::new(model), config);
    let client = Client::new(&server);
    for (field, value) in [
        ("guided_regex", json!("(")),
        ("structured_outputs", json!({"grammar": "start: x"})),
        ("response_format", json!({"type": "json_object"})),
    ] {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        body[field] = value;
        let answer = client.post("/v1/chat/completions", &body.to_string());
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(field)));
    }
}

#[test]
fn predictions_reach_a_model_that_uses_them() {
    let model = all_and_grammars();
    let mut config = config();
    config.canary = false;
    let server = server(Arc::clone(&model) as _, config);
    let parts = json!([{"type": "text", "text": "fn "}, {"type": "text", "text": "main"}]);
    for content in [json!("fn main"), parts] {
        let body = json!({
            "model": "m",
            "messages": [{"role": "user", "content": "Hi"}],
            "prediction": {"type": "content", "content": content},
            "user": "u",
        });
        let answer = Client::new(&server).post("/v1/chat/completions", &body.to_string());
        assert_eq!((answer.status, answer.header("x-breakers-ignored")), (200, Some("user")));
        assert_eq!(model.requests().pop().unwrap().prediction.as_deref(), Some("fn main"));
    }
}

#[test]
fn the_tier_for_what_can_wait_reaches_the_model() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let model = ScriptedModel::from_fn("m", {
        let seen = Arc::clone(&seen);
        move |request| {
            seen.lock().unwrap().push(request.priority);
            "ok".into()
        }
    });
    let server = server(Arc::new(model), config());
    let client = Client::new(&server);
    for (tier, priority) in [
        (json!("flex"), Priority::Background),
        (json!("auto"), Priority::Normal),
        (json!(null), Priority::Normal),
    ] {
        let body = json!({"model": "m", "prompt": "Hi", "service_tier": tier});
        let answer = client.post("/v1/completions", &body.to_string());
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-breakers-ignored").is_some(), tier == "auto", "{tier}");
        assert_eq!(seen.lock().unwrap().pop(), Some(priority), "{tier}");
    }
}

/// Texts that can wait never take the places of those that cannot.
#[test]
fn who_cannot_wait_finds_a_place_among_those_who_can() {
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let (began, begins) = std::sync::mpsc::channel();
    let held = std::sync::Mutex::new(held);
    let model = ScriptedModel::from_fn("m", move |request| {
        if request.priority == Priority::Background {
            began.send(()).unwrap();
            let _ = held.lock().unwrap().recv();
        }
        "ok".into()
    });
    let mut config = config();
    (config.canary, config.limits.max_texts) = (false, 2);
    let server = server(Arc::new(model), config);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let body = json!({"model": "m", "prompt": "Hi", "service_tier": "flex"});
                assert_eq!(Client::new(&server).post("/v1/completions", &body.to_string()).status, 200);
            });
        }
        (0..2).for_each(|_| begins.recv().unwrap());
        let body = json!({"model": "m", "prompt": "Hi"}).to_string();
        assert_eq!(Client::new(&server).post("/v1/completions", &body).status, 200);
        assert!(begins.try_recv().is_err(), "the third has no place yet");
        drop(hold);
    });
}

#[test]
fn what_a_model_cannot_do_is_refused_by_name() {
    let model = ScriptedModel::from_fn("m", |_| "ok".into()).with_card(ModelCard::new("m"));
    let mut config = config();
    config.canary = false;
    let server = server(Arc::new(model), config);
    let client = Client::new(&server);
    let chat = r#"{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}"#;
    for (path, body, param) in [
        ("/v1/chat/completions", chat, "messages"),
        ("/v1/completions", r#"{"model": "m", "prompt": "x"}"#, "prompt"),
        ("/v1/completions", r#"{"model": "m", "prompt": [1]}"#, "prompt"),
    ] {
        let answer = client.post(path, body);
        assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (400, Some(param)));
    }
    drop(server);
    let mut card = ModelCard::new("m");
    card.capabilities.chat = true;
    let server = crate::support::server(
        Arc::new(ScriptedModel::from_fn("m", |_| "ok".into()).with_card(card)),
        crate::support::config(),
    );
    let client = Client::new(&server);
    for (field, value) in [
        ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
        ("response_format", json!({"type": "json_object"})),
        ("guided_regex", json!("a")),
        ("structured_outputs", json!({"choice": ["a", "b"]})),
        ("logprobs", json!(true)),
        ("seed", json!(1)),
    ] {
        let mut body: Value = serde_json::from_str(chat).unwrap();
        body[field] = value;
        let answer = client.post("/v1/chat/completions", &body.to_string());
        let error = &answer.json()["error"];
        assert_eq!((answer.status, error["param"].as_str()), (400, Some(field)), "{error}");
        assert_eq!(error["code"], "unsupported_parameter");
    }
}

#[test]
fn bodies_that_are_no_requests() {
    let server = server_of_all();
    let client = Client::new(&server);
    let deep = format!(r#"{{"model": "m", "x": {}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    for body in ["", "nonsense", "[]", "{\"model\": ", "{\"model\": \"m\"} x", "\"m\"", &deep] {
        let answer = client.post("/v1/chat/completions", body);
        assert_eq!(
            (answer.status, &answer.json()["error"]["code"]),
            (400, &json!("invalid_json")),
            "{body:.40}"
        );
    }
    let no_model = r#"{"model": "x", "messages": [{"role": "user", "content": "Hi"}]}"#;
    let answer = client.post("/v1/chat/completions", no_model);
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!("model_not_found")));
    for (method, path, status) in
        [("GET", "/v1/chat/completions", 405), ("GET", "/v1/nothing", 404), ("POST", "/v1/models", 405)]
    {
        let text = raw(
            &server,
            &format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        );
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")) && text.contains("\"error\""), "{text}");
    }
    let path = raw(&server, "GET /v1/models/%ff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(path.starts_with("HTTP/1.1 404 ") && path.contains("model_not_found"), "{path}");
}
