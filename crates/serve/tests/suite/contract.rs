//! Every body and every event of thousands of random requests follows OpenAI's description of its interface.
//! `BREAKERS_OPENAPI` names the description (`openapi.json`, compressed or not); without it, the file beside
//! the project is taken if it is there. With `BREAKERS_SOAK` there are ten times as many.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use breakers_core::{
    Alternative, CallError, ChatReply, ChatRequest, FinishReason, ModelCard, ScoredToken, Scripted,
    ScriptedModel, ToolCall, Usage,
};
use jsonschema::Validator;
use serde_json::{Value, json};

use crate::support::{Client, config, server};

fn description() -> Option<Value> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/openai/openapi.json.gz");
    let named = std::env::var_os("BREAKERS_OPENAPI").map(PathBuf::from);
    let path = named.or_else(|| Some(PathBuf::from(beside)).filter(|path| path.exists()))?;
    let bytes = std::fs::read(path).unwrap();
    let mut text = String::new();
    match bytes.starts_with(&[0x1f, 0x8b]) {
        true => flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap(),
        false => (&bytes[..]).read_to_string(&mut text).unwrap(),
    };
    Some(serde_json::from_str(&text).unwrap())
}

/// Writes `nullable`, a word of older descriptions, as JSON Schema says it.
fn with_null(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.values_mut().for_each(with_null);
            if object.remove("nullable") == Some(json!(true)) {
                let inner = Value::Object(std::mem::take(object));
                object.insert("anyOf".to_owned(), json!([inner, {"type": "null"}]));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(with_null),
        _ => {}
    }
}

/// Validators by the name of the schema.
pub(crate) struct Schemas {
    description: Value,
}

impl Schemas {
    pub(crate) fn read() -> Option<Self> {
        let mut description = description()?;
        with_null(&mut description);
        Some(Self { description })
    }

    pub(crate) fn validator(&self, name: &str) -> Validator {
        let schemas = &self.description["components"]["schemas"];
        // What a schema refers to, and nothing else of the 3 MB.
        let mut needed: BTreeMap<String, Value> = BTreeMap::new();
        let mut open = vec![name.to_owned()];
        while let Some(name) = open.pop() {
            if needed.contains_key(&name) {
                continue;
            }
            let schema = schemas[&name].clone();
            assert!(schema.is_object(), "there is no schema {name}");
            let text = schema.to_string();
            let refs = text.split("\"#/components/schemas/").skip(1);
            open.extend(refs.map(|rest| rest.split('"').next().unwrap().to_owned()));
            needed.insert(name, schema);
        }
        let whole =
            json!({"$ref": format!("#/components/schemas/{name}"), "components": {"schemas": needed}});
        jsonschema::validator_for(&whole).unwrap()
    }

    /// OpenAI streams texts with the schema of whole answers; until the end, `finish_reason` and `usage` are
    /// null.
    fn text_chunk(&self) -> Validator {
        let mut copy = Self { description: self.description.clone() };
        let properties =
            &mut copy.description["components"]["schemas"]["CreateCompletionResponse"]["properties"];
        for path in ["/choices/items/properties/finish_reason", "/usage"] {
            let schema = properties.pointer_mut(path).unwrap();
            *schema = json!({"anyOf": [schema.clone(), {"type": "null"}]});
        }
        copy.validator("CreateCompletionResponse")
    }
}

/// How many random requests to make, where `n` are enough for every change.
pub(crate) fn n_requests(n: usize) -> usize {
    if std::env::var_os("BREAKERS_SOAK").is_some() { 10 * n } else { n }
}

/// A model whose answers are as different as possible.
pub(crate) fn model() -> ScriptedModel {
    let mut card = ModelCard::new("m");
    card.revision = Some("r".to_owned());
    let can = &mut card.capabilities;
    (can.chat, can.text, can.tokens, can.tools, can.json, can.logprobs, can.seed) =
        (true, true, true, true, true, true, true);
    ScriptedModel::from_fn("m", answer).with_card(card)
}

fn answer(request: &ChatRequest) -> Scripted {
    let mut random = Random(request.seed.unwrap_or(1) ^ request.max_tokens.unwrap_or(3) as u64);
    if random.below(8) == 0 {
        return [
            CallError::ContextTooLong { needed: Some(9), limit: Some(8) },
            CallError::Overloaded { retry_after: None },
            CallError::failed(std::io::Error::other("broken")),
            CallError::bad_request("prompt", "no"),
            CallError::ContentFiltered { message: "no".to_owned() },
        ][random.below(5)]
        .clone()
        .into();
    }
    let texts = ["", "a", "two words", "Grüße 🦀 \"quoted\"\n\u{0}", "{\"a\": [1]}"];
    let finishes = [
        FinishReason::EndOfText,
        FinishReason::Stop,
        FinishReason::Length,
        FinishReason::ContextFull,
        FinishReason::ContentFilter,
    ];
    let mut reply = ChatReply::new(texts[random.below(5)], finishes[random.below(5)]);
    reply.usage = Usage::new(random.below(100) as u64, random.below(100) as u64);
    if let Some(n) = request.top_logprobs {
        for bytes in [&b"a"[..], b"\xf0\x9f", b""] {
            let mut token =
                ScoredToken::new(Some(1), bytes, [-0.5, f32::NEG_INFINITY, f32::NAN][random.below(3)]);
            token.top = (0..n).map(|i| Alternative::new(None, vec![i as u8], -(i as f32))).collect();
            reply.tokens.push(token);
        }
    }
    if !request.tools.is_empty() && random.below(2) == 0 {
        reply.finish = FinishReason::ToolCalls;
        for i in 0..=random.below(3) {
            let arguments = ["", "{}", "{\"a\": \"}\"}"][random.below(3)];
            reply.tool_calls.push(ToolCall::new(
                format!("call_{i}"),
                request.tools[0].name.clone(),
                arguments,
            ));
        }
    }
    reply.into()
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % n as u64) as usize
    }

    pub(crate) fn pick(&mut self, values: &[Value]) -> Value {
        values[self.below(values.len())].clone()
    }
}

pub(crate) fn random_body(random: &mut Random, is_chat: bool) -> Value {
    let mut body = json!({"model": "m", "seed": random.below(1 << 20)});
    if random.below(40) == 0 {
        body["model"] = random.pick(&[json!("x"), json!(null), json!(3)]);
    }
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    let mut fields: Vec<(&str, Vec<Value>)> = vec![
        ("n", vec![json!(1), json!(2), json!(5), json!(0)]),
        ("stream", vec![json!(true), json!(true), json!(false), json!("x")]),
        ("stream_options", vec![json!({"include_usage": true}), json!({}), json!(null)]),
        ("temperature", vec![json!(0), json!(1.5), json!(9)]),
        ("top_p", vec![json!(0.5), json!(1), json!("x")]),
        ("stop", vec![json!("x"), json!(["a", "b"]), json!([""]), json!(null)]),
        ("max_tokens", vec![json!(1), json!(100), json!(0)]),
        ("logit_bias", vec![json!({"1": 5}), json!({}), json!({"x": 5})]),
        ("user", vec![json!("u")]),
        ("store", vec![json!(false), json!(true)]),
        ("unknown", vec![json!({"a": [null]})]),
    ];
    if is_chat {
        let messages = [
            json!([{"role": "user", "content": "Hi"}]),
            json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "x"}]}]),
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ];
        body["messages"] = messages[[0, 0, 0, 1, 1, 2][random.below(6)]].clone();
        fields.extend([
            ("logprobs", vec![json!(true), json!(true), json!(false)]),
            ("top_logprobs", vec![json!(0), json!(5), json!(21)]),
            ("tools", vec![json!([tool("f")]), json!([tool("f"), tool("g")]), json!([])]),
            (
                "tool_choice",
                vec![
                    json!("auto"),
                    json!("none"),
                    json!("required"),
                    json!({"type": "function", "function": {"name": "f"}}),
                ],
            ),
            (
                "response_format",
                vec![json!({"type": "json_object"}), json!({"type": "text"}), json!({"type": "x"})],
            ),
        ]);
    } else {
        body["prompt"] = random.pick(&[
            json!("x"),
            json!(["a", "b"]),
            json!([1, 2]),
            json!([[1], [2, 3]]),
            json!([]),
            json!("y"),
        ]);
        fields.extend([
            ("logprobs", vec![json!(0), json!(5), json!(6)]),
            ("echo", vec![json!(true), json!(false)]),
            ("suffix", vec![json!(""), json!("x")]),
        ]);
    }
    for (name, values) in &fields {
        // The last value of most fields is wrong, so it is rarer.
        if random.below(3) == 0 {
            let n = values.len() - usize::from(values.len() > 1 && random.below(16) > 0);
            body[*name] = values[random.below(n)].clone();
        }
    }
    // These need each other; alone they are refused, and that was seen often enough.
    for (name, other) in
        [("stream_options", "stream"), ("top_logprobs", "logprobs"), ("tool_choice", "tools")]
    {
        let has_other = !matches!(body.get(other), None | Some(Value::Bool(false)));
        if is_chat && !has_other && random.below(8) > 0 {
            body.as_object_mut().unwrap().remove(name);
        }
    }
    body
}

#[test]
fn bodies_and_events_follow_the_description() {
    let Some(schemas) = Schemas::read() else {
        eprintln!("skipped: BREAKERS_OPENAPI is not set");
        return;
    };
    let error = schemas.validator("ErrorResponse");
    let whole =
        [schemas.validator("CreateChatCompletionResponse"), schemas.validator("CreateCompletionResponse")];
    let chunk = [schemas.validator("CreateChatCompletionStreamResponse"), schemas.text_chunk()];
    let mut config = config();
    config.canary = false;
    let server = server(Arc::new(model()), config);
    let client = Client::new(&server);
    let check = |validator: &Validator, value: &Value, body: &Value| {
        if let Err(error) = validator.validate(value) {
            panic!("{error} at {} of {value}\nfor {body}", error.instance_path());
        }
    };
    let mut random = Random(7);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for i in 0..n_requests(5000) {
        let is_chat = i % 3 != 0;
        let (path, kind) = if is_chat { ("/v1/chat/completions", 0) } else { ("/v1/completions", 1) };
        let body = random_body(&mut random, is_chat);
        let answer = client.post(path, &body.to_string());
        let what = match (answer.status, body["stream"] == true) {
            (200, false) => {
                check(&whole[kind], &answer.json(), &body);
                "whole"
            }
            (200, true) => {
                let mut has_error = false;
                let data = answer.text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
                for data in data.filter(|data| *data != "[DONE]") {
                    let event: Value = serde_json::from_str(data).unwrap();
                    has_error |= event.get("error").is_some();
                    check(if event.get("error").is_some() { &error } else { &chunk[kind] }, &event, &body);
                }
                assert!(has_error != answer.text.ends_with("data: [DONE]\n\n"), "{}", answer.text);
                "streams"
            }
            (400..600, _) => {
                check(&error, &answer.json(), &body);
                if answer.status == 400 { "refused" } else { "failed" }
            }
            other => panic!("{other:?} for {body}"),
        };
        *counts.entry(what).or_default() += 1;
    }
    eprintln!("{counts:?}");
    let least = ["whole", "streams", "refused", "failed"].map(|what| counts.get(what).copied().unwrap_or(0));
    assert!(least.iter().all(|&n| n >= 100), "too few of a kind: {counts:?}");

    check(&schemas.validator("ListModelsResponse"), &client.get("/v1/models").json(), &Value::Null);
    check(&schemas.validator("Model"), &client.get("/v1/models/m").json(), &Value::Null);
    check(&error, &client.get("/v1/models/x").json(), &Value::Null);
}

pub(crate) fn random_response(random: &mut Random) -> Value {
    let mut body = json!({"model": "m", "seed": random.below(1 << 20)});
    let user = json!({"role": "user", "content": [{"type": "input_text", "text": "x"}]});
    let call = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"});
    let result = json!({"type": "function_call_output", "call_id": "c", "output": "4"});
    let image = json!({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]});
    body["input"] = random.pick(&[
        json!("Hi"),
        json!("Hi"),
        json!([user]),
        json!([user, call, result]),
        json!([image]),
        json!([]),
    ]);
    let tool = |name: &str| json!({"type": "function", "name": name, "parameters": {"type": "object"}, "strict": true});
    let schema =
        json!({"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": true}});
    let fields: Vec<(&str, Vec<Value>)> = vec![
        ("stream", vec![json!(true), json!(true), json!(false), json!("x")]),
        ("instructions", vec![json!("Be brief."), json!(null), json!(3)]),
        ("temperature", vec![json!(0), json!(1.5), json!(9)]),
        ("top_p", vec![json!(0.5), json!(1), json!("x")]),
        ("max_output_tokens", vec![json!(1), json!(100), json!(0)]),
        ("metadata", vec![json!({"a": "b"}), json!(null), json!({"a": 3})]),
        ("store", vec![json!(false), json!(true), json!("x")]),
        ("tools", vec![json!([tool("f")]), json!([tool("f"), tool("g")]), json!([{"type": "web_search"}])]),
        ("parallel_tool_calls", vec![json!(true), json!(false), json!(1)]),
        ("text", vec![json!({"format": {"type": "json_object"}}), schema, json!({"format": {"type": "x"}})]),
        ("include", vec![json!(["message.output_text.logprobs"]), json!([]), json!(["x"])]),
        ("background", vec![json!(false), json!(true)]),
        ("reasoning", vec![json!({"effort": "none"}), json!({"effort": "high"})]),
        ("user", vec![json!("u")]),
    ];
    for (name, values) in &fields {
        // The last value of most fields is wrong, so it is rarer.
        if random.below(3) == 0 {
            let n = values.len() - usize::from(values.len() > 1 && random.below(16) > 0);
            body[*name] = values[random.below(n)].clone();
        }
    }
    if body["tools"].is_array() && random.below(2) == 0 {
        body["tool_choice"] = random.pick(&[
            json!("auto"),
            json!("required"),
            json!({"type": "function", "name": "f"}),
            json!({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}),
            json!({"type": "custom", "name": "f"}),
        ]);
    }
    if body["include"][0] == "message.output_text.logprobs" && random.below(2) == 0 {
        body["top_logprobs"] = json!(random.below(4));
    }
    body
}

#[test]
fn responses_and_their_events_follow_the_description() {
    let Some(schemas) = Schemas::read() else {
        eprintln!("skipped: BREAKERS_OPENAPI is not set");
        return;
    };
    let error = schemas.validator("ErrorResponse");
    let (whole, one_event) = (schemas.validator("Response"), schemas.validator("ResponseStreamEvent"));
    let mut config = config();
    config.canary = false;
    let server = server(Arc::new(model()), config);
    let client = Client::new(&server);
    let check = |validator: &Validator, value: &Value, body: &Value| {
        if let Err(error) = validator.validate(value) {
            panic!("{error} at {} of {value}\nfor {body}", error.instance_path());
        }
    };
    let mut random = Random(11);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..n_requests(2000) {
        let body = random_response(&mut random);
        let answer = client.post("/v1/responses", &body.to_string());
        let what = match (answer.status, body["stream"] == true) {
            (200, false) => {
                check(&whole, &answer.json(), &body);
                format!("whole, {}", answer.json()["status"].as_str().unwrap())
            }
            (200, true) => {
                let events = crate::responses::events(&answer.text);
                events.iter().for_each(|event| check(&one_event, event, &body));
                events.last().unwrap()["type"].as_str().unwrap().to_owned()
            }
            (400..600, _) => {
                check(&error, &answer.json(), &body);
                if answer.status == 400 { "refused" } else { "failed" }.to_owned()
            }
            other => panic!("{other:?} for {body}"),
        };
        *counts.entry(what).or_default() += 1;
    }
    eprintln!("{counts:?}");
    let kinds = [
        "whole, completed",
        "whole, incomplete",
        "response.completed",
        "response.incomplete",
        "refused",
        "failed",
    ];
    assert!(
        kinds.iter().all(|kind| counts.get(*kind).is_some_and(|n| *n >= 30)),
        "too few of a kind: {counts:?}"
    );
    check(&error, &client.get("/v1/responses/x").json(), &Value::Null);
}
