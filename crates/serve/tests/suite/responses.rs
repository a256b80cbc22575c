//! Responses: items, events, and what is kept of them.

use std::sync::Arc;

use breakers_core::{
    CallError, ChatReply, FinishReason, Message, ModelCard, ResponseFormat, Role, ScoredToken, Scripted,
    ScriptedModel, ToolCall, ToolChoice, Usage,
};
use breakers_serve::{Keys, ServerHandle};
use serde_json::{Value, json};

use crate::support::{Client, config, server};

const PATH: &str = "/v1/responses";

/// The events of a stream, whose names and numbers must fit.
pub(crate) fn events(text: &str) -> Vec<Value> {
    let blocks = text.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':'));
    let read = |(i, block): (usize, &str)| {
        let (name, data) = block.split_once('\n').unwrap();
        let event: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), event["type"].as_str());
        assert_eq!(event["sequence_number"], i, "{text}");
        event
    };
    blocks.enumerate().map(read).collect()
}

/// Says how many messages it was shown and repeats the last one, or calls the first function.
fn model() -> Arc<ScriptedModel> {
    let mut card = ModelCard::new("m");
    let can = &mut card.capabilities;
    (can.chat, can.tools, can.json, can.logprobs) = (true, true, true, true);
    let model = ScriptedModel::from_fn("m", |request| {
        let messages = request.prompt.messages().unwrap();
        let last = messages.last().unwrap().text();
        if last == "break" {
            let error = CallError::failed(std::io::Error::other("told to break"));
            return Scripted::Fail { after: "one two".to_owned(), error };
        }
        let mut reply = ChatReply::new(format!("{} {last}", messages.len()), FinishReason::EndOfText);
        if request.max_tokens == Some(1) {
            reply.finish = FinishReason::Length;
        }
        if let Some(n) = request.top_logprobs {
            let mut token = ScoredToken::new(None, b"1 ".to_vec(), -0.5);
            token.top = vec![breakers_core::Alternative::new(None, b"2 ".to_vec(), -1.0); n];
            reply.tokens = vec![token];
        }
        if let (Some(tool), Role::User) = (request.tools.first(), &messages.last().unwrap().role) {
            reply.tool_calls = vec![
                ToolCall::new("call_a", &tool.name, "{\"x\": 1}"),
                ToolCall::new("call_b", &tool.name, ""),
            ];
            reply.finish = FinishReason::ToolCalls;
        }
        reply.usage = Usage::new(10, 4);
        reply.usage.cached_prompt = 6;
        reply.into()
    });
    Arc::new(model.with_card(card))
}

fn serve(model: &Arc<ScriptedModel>) -> ServerHandle {
    let mut config = config();
    config.canary = false;
    server(Arc::clone(model) as _, config)
}

fn post(client: &Client, body: &Value) -> Value {
    let answer = client.post(PATH, &body.to_string());
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

#[test]
fn a_response_goes_on_from_the_one_before() {
    let model = model();
    let server = serve(&model);
    let client = Client::new(&server);
    let first = post(
        &client,
        &json!({"model": "m", "input": "one", "instructions": "Be brief.", "metadata": {"k": "v"}}),
    );
    assert_eq!(first["output"][0]["content"][0]["text"], "2 one");
    assert_eq!((&first["status"], &first["metadata"]["k"]), (&json!("completed"), &json!("v")));
    let usage = &first["usage"];
    assert_eq!((&usage["input_tokens"], &usage["total_tokens"]), (&json!(10), &json!(14)));
    assert_eq!(usage["input_tokens_details"]["cached_tokens"], 6);

    let second = post(&client, &json!({"model": "m", "input": "two", "previous_response_id": first["id"]}));
    // The first question, its answer and the second question; no instructions, which are not inherited.
    assert_eq!(second["output"][0]["content"][0]["text"], "3 two");
    assert_eq!(second["previous_response_id"], first["id"]);
    let third = json!({"model": "m", "input": "three", "previous_response_id": second["id"], "stream": true});
    let third = events(&client.post(PATH, &third.to_string()).text).pop().unwrap();
    let requests = model.requests();
    let roles = |i: usize| -> Vec<Role> {
        let messages: &[Message] = requests[i].prompt.messages().unwrap();
        messages.iter().map(|message| message.role.clone()).collect()
    };
    assert_eq!(roles(0), [Role::System, Role::User]);
    assert_eq!(roles(2), [Role::User, Role::Assistant, Role::User, Role::Assistant, Role::User]);

    // What was kept is what was sent, streamed or not.
    let id = |response: &Value| response["id"].as_str().unwrap().to_owned();
    assert_eq!(client.get(&format!("{PATH}/{}", id(&second))).json(), second);
    assert_eq!(client.get(&format!("{PATH}/{}", id(&third["response"]))).json(), third["response"]);
    assert_eq!(client.get(&format!("{PATH}/{}?stream=true", id(&second))).status, 400);
}

#[test]
fn nothing_is_kept_that_should_not_be() {
    let server = serve(&model());
    let client = Client::new(&server);
    let unkept = post(&client, &json!({"model": "m", "input": "one", "store": false}));
    assert_eq!(unkept["store"], false);
    let id = unkept["id"].as_str().unwrap();
    assert_eq!(client.get(&format!("{PATH}/{id}")).status, 404);
    let follow = json!({"model": "m", "input": "two", "previous_response_id": id}).to_string();
    let answer = client.post(PATH, &follow);
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("previous_response_id")));
    assert_eq!(answer.json()["error"]["code"], "previous_response_not_found");
}

#[test]
fn what_is_kept_is_bounded_and_ones_own() {
    let mut config = config();
    config.canary = false;
    config.limits.stored_responses = 3;
    config.keys = Some(Keys::from_plain(["alice", "bob"]).unwrap());
    let server = server(model(), config);
    let client = Client::new(&server);
    let ask = |key: &str, input: &str| {
        let body = json!({"model": "m", "input": input}).to_string();
        let answer = client.post_with(PATH, &body, &[("api-key", key)]);
        format!("{PATH}/{}", answer.json()["id"].as_str().unwrap())
    };
    let get = |key: &str, path: &str| client.get_with(path, &[("api-key", key)]).status;
    let paths: Vec<String> = (0..4).map(|i| ask("alice", &format!("number {i}"))).collect();
    assert_eq!(get("alice", &paths[0]), 404, "the oldest has gone");
    assert!(paths[1..].iter().all(|path| get("alice", path) == 200));
    assert_eq!(get("bob", &paths[3]), 404, "it is not his");
}

#[test]
fn one_large_response_is_not_kept_in_place_of_all_others() {
    let mut config = config();
    config.canary = false;
    config.limits.stored_bytes = 6000;
    let server = server(model(), config);
    let client = Client::new(&server);
    let ask = |input: &str| {
        let response = post(&client, &json!({"model": "m", "input": input}));
        format!("{PATH}/{}", response["id"].as_str().unwrap())
    };
    let small = ask("small");
    let large = ask(&"large ".repeat(2000));
    assert_eq!((client.get(&small).status, client.get(&large).status), (200, 404));
    (0..20).for_each(|i| drop(ask(&format!("further {i}"))));
    assert_eq!(client.get(&small).status, 404);
}

#[test]
fn deleted_responses_are_gone() {
    let server = serve(&model());
    let client = Client::new(&server);
    let id = post(&client, &json!({"model": "m", "input": "one"}))["id"].clone();
    let path = format!("{PATH}/{}", id.as_str().unwrap());
    assert_eq!(client.delete(&path).json(), json!({"id": id, "object": "response", "deleted": true}));
    assert_eq!((client.delete(&path).status, client.get(&path).status), (404, 404));
}

#[test]
fn streams_have_all_events_in_their_order() {
    let server = serve(&model());
    let client = Client::new(&server);
    let tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
    let body = json!({"model": "m", "input": "one two", "tools": [tool], "stream": true});
    let answer = client.post(PATH, &body.to_string());
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let events = events(&answer.text);
    let mut kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    kinds.dedup();
    assert_eq!(
        kinds.iter().map(|kind| kind.strip_prefix("response.").unwrap()).collect::<Vec<_>>(),
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
    );
    let deltas = |kind: &str| -> String {
        let of_kind = events.iter().filter(|event| event["type"] == kind);
        of_kind.map(|event| event["delta"].as_str().unwrap()).collect()
    };
    assert_eq!(deltas("response.output_text.delta"), "1 one two");
    assert_eq!(deltas("response.function_call_arguments.delta"), "{\"x\": 1}");
    let response = &events.last().unwrap()["response"];
    let output = response["output"].as_array().unwrap();
    assert_eq!(output.len(), 3);
    let done: Vec<&Value> =
        events.iter().filter(|e| e["type"] == "response.output_item.done").map(|e| &e["item"]).collect();
    assert_eq!(done, output.iter().collect::<Vec<_>>(), "items are in the response as they ended");
    assert_eq!((&output[1]["call_id"], &output[2]["arguments"]), (&json!("call_a"), &json!("{}")));

    // Not streamed, it is the same but for ids and times.
    let mut whole = body.clone();
    whole["stream"] = json!(false);
    let whole = post(&client, &whole);
    let blank = |response: &Value| {
        let mut response = response.clone();
        response["id"] = json!("");
        response["output"].as_array_mut().unwrap().iter_mut().for_each(|item| item["id"] = json!(""));
        response
    };
    assert_eq!(blank(&whole), blank(response));
}

#[test]
fn calls_and_their_results_reach_the_model() {
    let model = model();
    let server = serve(&model);
    let client = Client::new(&server);
    let tool = json!({"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true});
    let first =
        post(&client, &json!({"model": "m", "input": "x", "tools": [tool], "tool_choice": "required"}));
    let mut input: Vec<Value> = vec![json!({"role": "user", "content": "x"})];
    input.extend(first["output"].as_array().unwrap().iter().cloned());
    for id in ["call_a", "call_b"] {
        input.push(json!({"type": "function_call_output", "call_id": id, "output": [{"type": "input_text", "text": "4"}]}));
    }
    let second = post(&client, &json!({"model": "m", "input": input, "tools": [tool]}));
    assert_eq!(second["output"][0]["content"][0]["text"], "4 4");
    let requests = model.requests();
    assert_eq!(requests[0].tool_choice, ToolChoice::Required);
    assert!(requests[0].tools[0].strict && requests[0].tools[0].description.as_deref() == Some("d"));
    let messages = requests[1].prompt.messages().unwrap();
    assert_eq!(messages[1].tool_calls.len(), 2, "{messages:?}");
    assert_eq!(messages[1].text(), "1 x");
    assert_eq!((messages[3].role.clone(), messages[3].tool_call_id.as_deref()), (Role::Tool, Some("call_b")));
    // By the id alone, it is the same conversation.
    let results: Vec<Value> = input.split_off(input.len() - 2);
    post(
        &client,
        &json!({"model": "m", "input": results, "tools": [tool], "previous_response_id": first["id"]}),
    );
    assert_eq!(model.requests()[2].prompt, requests[1].prompt);
}

#[test]
fn forms_and_limits_reach_the_model() {
    let model = model();
    let server = serve(&model);
    let client = Client::new(&server);
    let format = json!({"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": true});
    let response = post(
        &client,
        &json!({"model": "m", "input": "x", "text": {"format": format}, "max_output_tokens": 1,
            "include": ["message.output_text.logprobs"], "top_logprobs": 1, "temperature": 0.5}),
    );
    assert_eq!((&response["status"], &response["text"]["format"]), (&json!("incomplete"), &format));
    assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(response["output"][0]["status"], "incomplete");
    let token = &response["output"][0]["content"][0]["logprobs"][0];
    assert_eq!((&token["token"], &token["top_logprobs"][0]["token"]), (&json!("1 "), &json!("2 ")));
    let request = model.requests().remove(0);
    match request.response {
        ResponseFormat::JsonSchema(schema) => {
            assert!(schema.strict && schema.schema.as_str().contains("object"))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((request.max_tokens, request.top_logprobs), (Some(1), Some(1)));
    assert_eq!(request.sampling.temperature, 0.5);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let server = serve(&model());
    let client = Client::new(&server);
    for (fields, param) in [
        (json!({"background": true}), "background"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"reasoning": {"effort": "high"}}), "reasoning.effort"),
        (json!({"reasoning": {"summary": "auto"}}), "reasoning.summary"),
        (json!({"include": ["file_search_call.results"]}), "include"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"max_tool_calls": 2}), "max_tool_calls"),
        (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
        (json!({"text": {"format": {"type": "grammar"}}}), "text.format.type"),
        (json!({"text": {"format": {"type": "json_schema", "name": "n"}}}), "text.format.schema"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function", "name": "a b"}]}), "tools[0].name"),
        (json!({"tool_choice": {"type": "function", "name": "f"}}), "tool_choice.name"),
        (json!({"tool_choice": {"type": "mcp"}}), "tool_choice.type"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"input": []}), "input"),
        (json!({"input": null}), "input"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "input[0].type"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            "input[0].content[0].type",
        ),
        (json!({"input": [{"role": "tool", "content": "x"}]}), "input[0].role"),
        (json!({"metadata": {"a": "b".repeat(513)}}), "metadata"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"messages": []}), "messages"),
        (json!({"n": 2}), "n"),
        (json!({"previous_response_id": "resp_x"}), "previous_response_id"),
        (json!({"seed": 1}), "seed"),
    ] {
        let mut body = json!({"model": "m", "input": "x"});
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        let answer = client.post(PATH, &body.to_string());
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["param"]), (400, &json!(param)), "{body}: {error}");
    }
    let body = json!({"model": "m", "input": "x", "user": "u", "include": ["reasoning.encrypted_content"]});
    let answer = client.post(PATH, &body.to_string());
    let ignored = answer.header("x-breakers-ignored").unwrap();
    assert!(ignored.contains("user") && ignored.contains("encrypted"), "{ignored}");
}

#[test]
fn a_failure_is_a_status_or_the_last_event() {
    let mut config = config();
    config.canary = false;
    let server = server(model(), config);
    let client = Client::new(&server);
    let body = |stream| json!({"model": "m", "input": "break", "stream": stream}).to_string();
    assert_eq!(client.post(PATH, &body(false)).status, 500);
    let events = events(&client.post(PATH, &body(true)).text);
    let last = events.last().unwrap();
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
    let error = &last["response"]["error"];
    assert!(error["message"].as_str().unwrap().contains("told to break"), "{error}");
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], "one two");
    let path = format!("{PATH}/{}", last["response"]["id"].as_str().unwrap());
    assert_eq!(client.get(&path).status, 404, "it is not kept");
}

#[test]
fn a_stream_that_is_closed_ends_its_text_and_is_not_kept() {
    let model = crate::support::Endless::new();
    let server = server(Arc::clone(&model) as _, config());
    let body = json!({"model": "endless", "input": "x", "stream": true}).to_string();
    let stream = crate::support::begin(&server, PATH, &body);
    crate::support::until("words", || model.n_words.load(std::sync::atomic::Ordering::SeqCst) > 10);
    drop(stream);
    crate::support::until("the end", || model.cancelled() == 1 && model.running() == 0);
}
