//! Files and batches.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use breakers_core::{
    CallError, ChatModel, ChatReply, ChatRequest, FinishReason, Message, ModelCard, Scripted, ScriptedModel,
    ToolCall, Usage,
};
use breakers_serve::{BatchConfig, Error, Keys, ServeConfig, Server, ServerHandle};
use serde_json::{Value, json};

use crate::contract::Schemas;
use crate::support::{
    Adjustable, Answer, Client, Endless, begin, config, form, prepared, raw, server, until,
};

pub(crate) fn with_folder(folder: &Path) -> ServeConfig {
    let mut config = config();
    let mut batches = BatchConfig::new(folder);
    batches.grace = Duration::from_millis(50);
    config.batches = Some(batches);
    config.canary = false;
    config
}

/// A line that asks the model `m` for an answer to a text.
pub(crate) fn line(id: &str, text: &str) -> String {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": text}]});
    request(id, "/v1/chat/completions", &body)
}

fn request(id: &str, url: &str, body: &Value) -> String {
    json!({"custom_id": id, "method": "POST", "url": url, "body": body}).to_string() + "\n"
}

/// Repeats the last message; some texts fail, some are refused, and some take a call.
pub(crate) fn model() -> ScriptedModel {
    let mut card = ModelCard::new("m");
    let can = &mut card.capabilities;
    (can.chat, can.text, can.tokens, can.tools, can.seed) = (true, true, true, true, true);
    ScriptedModel::from_fn("m", answer).with_card(card)
}

fn answer(request: &ChatRequest) -> Scripted {
    let last = request.prompt.messages().and_then(<[Message]>::last).map_or("text".into(), Message::text);
    if last.contains("fail") {
        return CallError::failed(std::io::Error::other("broken")).into();
    }
    if last.contains("refuse") {
        return CallError::bad_request("prompt", "no").into();
    }
    let mut reply = ChatReply::new(format!("{last} {:?}", request.seed), FinishReason::EndOfText);
    if last.contains("call") {
        reply.tool_calls.push(ToolCall::new(format!("call_{:?}", Instant::now()), "f", "{}"));
        reply.finish = FinishReason::ToolCalls;
    }
    reply.usage = Usage::new(10, 2);
    // How much of a prompt is cached depends on what ran before.
    reply.usage.cached_prompt = 4;
    reply.into()
}

/// Creates a batch.
fn create(client: &Client, file: &str, endpoint: &str) -> Answer {
    let body = json!({"input_file_id": file, "endpoint": endpoint, "completion_window": "24h"});
    client.post("/v1/batches", &body.to_string())
}

fn id_of(answer: &Answer) -> String {
    answer.json()["id"].as_str().unwrap_or_else(|| panic!("{}", answer.text)).to_owned()
}

/// Runs lines to their end.
fn run(client: &Client, content: &str, endpoint: &str) -> Value {
    let file = client.upload(content);
    wait_for(client, &id_of(&create(client, &file, endpoint)))
}

/// Waits until a batch has ended.
pub(crate) fn wait_for(client: &Client, id: &str) -> Value {
    let path = format!("/v1/batches/{id}");
    let ended = |batch: &Value| {
        ["completed", "failed", "expired", "cancelled"].contains(&batch["status"].as_str().unwrap())
    };
    until("the batch ended", || ended(&client.get(&path).json()));
    client.get(&path).json()
}

/// The lines of a file of results.
fn results(client: &Client, id: &Value) -> Vec<Value> {
    let Some(id) = id.as_str() else { return Vec::new() };
    let text = client.get(&format!("/v1/files/{id}/content")).text;
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_line_has_one_result_in_the_order_of_lines() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(Arc::new(model()), with_folder(folder.path()));
    let client = Client::new(&server);
    let texts = ["zebra", "fail", "apple", "refuse", "call", "apple pie"];
    let mut content: String = texts.iter().map(|text| line(&format!("id {text}"), text)).collect();
    let many = json!({"model": "m", "messages": [{"role": "user", "content": "n"}], "n": 3, "seed": 5});
    content += &request("three", "/v1/chat/completions", &many);
    content += "\n";
    let wrong = json!({"model": "m", "messages": [], "temperature": 9, "stream": true});
    content += &request("wrong", "/v1/chat/completions", &wrong);
    let batch = run(&client, &content, "/v1/chat/completions");
    assert_eq!(batch["status"], "completed", "{batch}");
    assert_eq!(batch["request_counts"], json!({"total": 8, "completed": 5, "failed": 3}));
    // Three answers to one prompt read it once.
    let usage = json!({"input_tokens": 50, "input_tokens_details": {"cached_tokens": 20}, "output_tokens": 14,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 64});
    assert_eq!(batch["usage"], usage);
    let good = results(&client, &batch["output_file_id"]);
    let ids: Vec<&str> = good.iter().map(|line| line["custom_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["id zebra", "id apple", "id call", "id apple pie", "three"]);
    for line in &good {
        assert_eq!((&line["response"]["status_code"], &line["error"]), (&json!(200), &Value::Null));
        // What depends on other requests is not in it.
        assert!(line["response"]["body"]["usage"].get("prompt_tokens_details").is_none(), "{line}");
        assert_eq!(line["response"]["body"]["created"], batch["created_at"]);
    }
    let text = |i: usize| good[i]["response"]["body"]["choices"][0]["message"]["content"].clone();
    assert!(text(0).as_str().unwrap().starts_with("zebra Some("), "it has a seed: {}", text(0));
    assert_eq!(text(4), "n Some(5)");
    let call = &good[2]["response"]["body"]["choices"][0]["message"]["tool_calls"][0]["id"];
    assert!(call.as_str().is_some_and(|id| id.starts_with("call_0_0_")), "{call}");
    let bad = results(&client, &batch["error_file_id"]);
    let told: Vec<_> =
        bad.iter().map(|line| (&line["custom_id"], &line["response"]["status_code"])).collect();
    let expected =
        [("id fail", 500), ("id refuse", 400), ("wrong", 400)].map(|(id, status)| (json!(id), json!(status)));
    assert_eq!(told, expected.each_ref().map(|(id, status)| (id, status)));
    assert_eq!(bad[2]["response"]["body"]["error"]["param"], "temperature", "{}", bad[2]);

    // Other routes.
    let texts = request("t", "/v1/completions", &json!({"model": "m", "prompt": ["a", "b"]}));
    let batch = run(&client, &texts, "/v1/completions");
    let good = results(&client, &batch["output_file_id"]);
    assert_eq!(good[0]["response"]["body"]["choices"].as_array().unwrap().len(), 2);
    assert!(batch.get("error_file_id").is_none());
}

#[test]
fn lines_that_begin_alike_run_together() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = with_folder(folder.path());
    config.limits.max_texts = 1;
    let model = Arc::new(model());
    let server = server(model.clone(), config);
    let client = Client::new(&server);
    let texts = ["b 1", "a 1", "b 0", "a 0", "b 2"];
    let content: String = texts.iter().map(|text| line(text, text)).collect();
    run(&client, &content, "/v1/chat/completions");
    let order: Vec<_> = model
        .requests()
        .iter()
        .map(|request| request.prompt.messages().unwrap()[0].text().into_owned())
        .collect();
    assert_eq!(order, ["a 0", "a 1", "b 0", "b 1", "b 2"]);
}

#[test]
fn a_wrong_file_fails_with_its_lines() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(Arc::new(model()), with_folder(folder.path()));
    let client = Client::new(&server);
    let twice = line("a", "x") + "no json\n" + &line("a", "y");
    let batch = run(&client, &twice, "/v1/chat/completions");
    assert_eq!(batch["status"], "failed");
    assert!(batch["failed_at"].is_u64() && batch.get("in_progress_at").is_none(), "{batch}");
    let errors = batch["errors"]["data"].as_array().unwrap();
    let told: Vec<_> = errors.iter().map(|error| (&error["code"], &error["line"], &error["param"])).collect();
    let expected = [
        (json!("invalid_json_line"), json!(2), Value::Null),
        (json!("duplicate_custom_id"), json!(3), json!("custom_id")),
    ];
    assert_eq!(told, expected.each_ref().map(|(code, line, param)| (code, line, param)));
    // What is wrong with the request itself is told at once.
    let file = client.upload(&line("a", "x"));
    for (body, status, param) in [
        (
            json!({"input_file_id": "file-none", "endpoint": "/v1/completions", "completion_window": "24h"}),
            404,
            Value::Null,
        ),
        (
            json!({"input_file_id": file, "endpoint": "/v1/images", "completion_window": "24h"}),
            400,
            json!("endpoint"),
        ),
        (
            json!({"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "1s"}),
            400,
            json!("completion_window"),
        ),
        (json!({"input_file_id": file, "endpoint": "/v1/completions"}), 400, json!("completion_window")),
        (
            json!({"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h", "metadata": {"a": 1}}),
            400,
            json!("metadata"),
        ),
        (
            json!({"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h",
            "output_expires_after": {"anchor": "created_at", "seconds": 5}}),
            400,
            json!("output_expires_after.seconds"),
        ),
    ] {
        let answer = client.post("/v1/batches", &body.to_string());
        assert_eq!(
            (answer.status, &answer.json()["error"]["param"]),
            (status, &param),
            "{body}: {}",
            answer.text
        );
    }
    // Files of results are no requests.
    let done = run(&client, &line("a", "x"), "/v1/chat/completions");
    let answer = create(&client, done["output_file_id"].as_str().unwrap(), "/v1/chat/completions");
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("input_file_id")));
}

#[test]
fn hostile_uploads_are_refused_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = with_folder(folder.path());
    let batches = config.batches.as_mut().unwrap();
    (batches.file_bytes, batches.data_bytes) = (3 << 20, 4 << 20);
    batches.upload_time = Duration::from_millis(400);
    let server = server(Arc::new(model()), config);
    let client = Client::new(&server);
    let large = "x".repeat((3 << 20) + 1);
    let batch = ("purpose", None, "batch");
    let file = |content| ("file", Some("a"), content);
    let huge_head =
        format!("--XX\r\nContent-Disposition: form-data; name=\"file\"; x=\"{}", "y".repeat(2 << 20));
    for (body, status, code, param) in [
        (String::new(), 400, "invalid_json", Value::Null),
        ("no form at all".into(), 400, "invalid_json", Value::Null),
        (form(&[batch, file("x")]).replace("--XX--\r\n", ""), 400, "invalid_json", Value::Null),
        (huge_head, 400, "invalid_json", Value::Null),
        (form(&[file("x")]), 400, "missing_required_parameter", json!("purpose")),
        (form(&[batch]), 400, "missing_required_parameter", json!("file")),
        (form(&[("purpose", None, "fine-tune"), file("x")]), 400, "unsupported_parameter", json!("purpose")),
        (form(&[batch, file("x"), file("y")]), 400, "invalid_value", json!("file")),
        (
            form(&[
                batch,
                ("expires_after[anchor]", None, "created_at"),
                ("expires_after[seconds]", None, "7"),
                file("x"),
            ]),
            400,
            "invalid_value",
            json!("expires_after.seconds"),
        ),
        (form(&[("purpose", None, &"b".repeat(5000)), file("x")]), 400, "invalid_json", Value::Null),
        (form(&[batch, file(&large)]), 413, "request_too_large", Value::Null),
    ] {
        let answer = client.post_form(&body);
        let error = answer.json()["error"].clone();
        let told = (answer.status, error["code"].as_str().unwrap(), &error["param"]);
        assert_eq!(told, (status, code, &param), "{}: {}", &body[..body.len().min(100)], answer.text);
    }
    // No form, by its head.
    let answer = client.post("/v1/files", "{}");
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("invalid_json")));
    // One that never ends.
    let head = "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 1000\r\n\
        Content-Type: multipart/form-data; boundary=XX\r\n\r\n--XX\r\n";
    assert!(raw(&server, head).starts_with("HTTP/1.1 408 "));
    let left = std::fs::read_dir(folder.path().join("files")).unwrap().count();
    assert_eq!(left, 0);
    // Two that fit alone and not together; names are cut and never paths.
    let content = "x".repeat(2_200_000);
    let answer = client.post_form(&form(&[batch, ("file", Some("../../etc/passwd"), &content)]));
    assert_eq!((answer.status, &answer.json()["filename"]), (200, &json!("../../etc/passwd")));
    let full = client.post_form(&form(&[batch, file(&content)]));
    assert_eq!((full.status, &full.json()["error"]["code"]), (413, &json!("storage_full")));
    let names: Vec<_> = std::fs::read_dir(folder.path().join("files")).unwrap().flatten().collect();
    assert_eq!(names.len(), 1);
    assert_eq!(client.get(&format!("/v1/files/{}/content", id_of(&answer))).text, content);
    for path in
        ["/v1/files/..%2f.lock", "/v1/files/..%2f..%2fbatches.db/content", "/v1/batches/x", "/v1/jobs/x"]
    {
        assert_eq!(client.get(path).status, 404, "{path}");
    }
}

#[test]
fn files_are_listed_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let model = Endless::new();
    let server = server(model.clone(), with_folder(folder.path()));
    let client = Client::new(&server);
    assert_eq!(client.get("/v1/files").json()["data"], json!([]));
    let ids: Vec<String> = (0..5).map(|i| client.upload(&i.to_string())).collect();
    let list = |query: &str| {
        let answer = client.get(&format!("/v1/files?{query}")).json();
        let data = answer["data"].as_array().unwrap_or_else(|| panic!("{answer}"));
        let found: Vec<usize> =
            data.iter().map(|file| ids.iter().position(|id| *id == file["id"]).unwrap()).collect();
        (found, answer["has_more"] == true)
    };
    assert_eq!(list(""), (vec![4, 3, 2, 1, 0], false));
    assert_eq!(list("limit=2"), (vec![4, 3], true));
    assert_eq!(list(&format!("limit=2&after={}", ids[3])), (vec![2, 1], true));
    assert_eq!(list(&format!("order=asc&after={}", ids[3])), (vec![4], false));
    assert_eq!(list("purpose=batch_output"), (vec![], false));
    for wrong in ["limit=0", "limit=x", "order=up", "after=none"] {
        assert_eq!(client.get(&format!("/v1/files?{wrong}")).status, 400, "{wrong}");
    }
    assert_eq!(
        client.delete(&format!("/v1/files/{}", ids[0])).json(),
        json!({"id": ids[0], "object": "file", "deleted": true})
    );
    assert_eq!(client.delete(&format!("/v1/files/{}", ids[0])).status, 404);
    assert_eq!(list(""), (vec![4, 3, 2, 1], false));
    // A file that a batch still reads stays.
    model.holds.store(true, Ordering::SeqCst);
    let body = json!({"model": "endless", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2});
    let file = client.upload(&request("a", "/v1/chat/completions", &body));
    let batch = id_of(&create(&client, &file, "/v1/chat/completions"));
    until("it runs", || model.running() == 1);
    assert_eq!(client.delete(&format!("/v1/files/{file}")).status, 409);
    model.release();
    assert_eq!(wait_for(&client, &batch)["status"], "completed");
    assert_eq!(client.delete(&format!("/v1/files/{file}")).status, 200);
    let batches = client.get("/v1/batches?limit=1").json();
    assert_eq!((&batches["data"][0]["id"], &batches["has_more"]), (&json!(batch), &json!(false)));
    assert_eq!(client.get(&format!("/v1/batches?after={batch}")).json()["data"], json!([]));
}

/// A batch of lines that the model `endless` holds.
fn held_batch(client: &Client, n: usize) -> String {
    let body = json!({"model": "endless", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2});
    let content: String = (0..n).map(|i| request(&i.to_string(), "/v1/chat/completions", &body)).collect();
    id_of(&create(client, &client.upload(&content), "/v1/chat/completions"))
}

#[test]
fn a_batch_can_be_cancelled_in_the_middle() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = with_folder(folder.path());
    config.limits.max_texts = 3;
    let model = Endless::new();
    let server = server(model.clone(), config);
    let client = Client::new(&server);
    model.holds.store(true, Ordering::SeqCst);
    let id = held_batch(&client, 9);
    until("two run", || model.running() == 2);
    let cancel = || client.post(&format!("/v1/batches/{id}/cancel"), "");
    assert_eq!(cancel().json()["status"], "cancelling");
    // Nothing waits for the texts that run.
    let batch = wait_for(&client, &id);
    model.release();
    assert_eq!((&batch["status"], &batch["request_counts"]["completed"]), (&json!("cancelled"), &json!(0)));
    until("texts ended", || model.running() == 0);
    assert_eq!(model.cancelled(), 2, "texts that ran were ended");
    let bad = results(&client, &batch["error_file_id"]);
    assert_eq!(bad.len(), 9);
    assert!(bad.iter().all(|line| line["error"]["code"] == "batch_cancelled" && line["response"].is_null()));
    // Again is the same; what has ended otherwise cannot be cancelled.
    assert_eq!(cancel().json()["status"], "cancelled");
    let done = held_batch(&client, 1);
    wait_for(&client, &done);
    assert_eq!(client.post(&format!("/v1/batches/{done}/cancel"), "").status, 409);
    assert_eq!(client.post("/v1/batches/none/cancel", "").status, 404);
}

#[test]
fn a_batch_expires_with_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let environment = Adjustable::new();
    let mut config = with_folder(folder.path());
    config.limits.max_texts = 2;
    let model = ScriptedModel::from_fn("m", |request| match &*request.prompt.messages().unwrap()[0].text() {
        // Busy for as long as anybody asks.
        "late" => CallError::Overloaded { retry_after: Some(Duration::from_millis(5)) }.into(),
        text => text.into(),
    });
    let server = Server::new(config).with_model(Arc::new(model)).with_environment(environment.clone());
    let server = server.spawn().unwrap();
    let client = Client::new(&server);
    let file = client.upload(&(line("a", "soon") + &line("b", "late")));
    let id = id_of(&create(&client, &file, "/v1/chat/completions"));
    let path = format!("/v1/batches/{id}");
    until("one is done", || client.get(&path).json()["request_counts"]["completed"] == 1);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(client.get(&path).json()["status"], "in_progress");
    environment.passed.store(24 * 3600, Ordering::SeqCst);
    let batch = wait_for(&client, &id);
    assert_eq!(batch["status"], "expired");
    assert_eq!(results(&client, &batch["output_file_id"])[0]["custom_id"], "a");
    let bad = results(&client, &batch["error_file_id"]);
    assert_eq!((bad.len(), &bad[0]["error"]["code"]), (1, &json!("batch_expired")));
    // Files expire as well.
    assert_eq!(client.get(&format!("/v1/files/{file}")).status, 200);
    environment.passed.store(30 * 24 * 3600 + 60, Ordering::SeqCst);
    assert_eq!(client.get(&format!("/v1/files/{file}")).status, 404);
    assert_eq!(
        client.get("/v1/files").json()["data"].as_array().unwrap().len(),
        2,
        "the results are younger"
    );
}

#[test]
fn a_request_that_is_sent_again_makes_no_second_batch() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(Arc::new(model()), with_folder(folder.path()));
    let client = Client::new(&server);
    let file = client.upload(&line("a", "x"));
    let post = |headers: &[(&str, &str)], window: &str| {
        let body =
            json!({"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": window});
        client.post_with("/v1/batches", &body.to_string(), headers)
    };
    let first = id_of(&post(&[("idempotency-key", "k")], "24h"));
    assert_eq!(id_of(&post(&[("idempotency-key", "k")], "24h")), first);
    assert_eq!(post(&[("idempotency-key", "k")], "1h").status, 409);
    // OpenAI's clients count their tries.
    let second = id_of(&post(&[("x-stainless-retry-count", "0")], "24h"));
    assert_ne!(second, first);
    assert_eq!(id_of(&post(&[("x-stainless-retry-count", "1")], "24h")), second);
    assert_ne!(id_of(&post(&[("x-stainless-retry-count", "1")], "2h")), second);
}

#[test]
fn tenants_do_not_see_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = with_folder(folder.path());
    let text =
        "[[key]]\ntenant = \"a\"\nkey = \"one\"\n[[key]]\ntenant = \"b\"\nkey = \"two\"\nmodels = [\"x\"]\n";
    config.keys = Some(Keys::parse(text).unwrap());
    let server = server(Arc::new(model()), config);
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let base = format!("http://{}", server.address());
    let send = |key: &str| {
        let body = form(&[("purpose", None, "batch"), ("file", Some("a"), &line("a", "x"))]);
        let request = agent.post(format!("{base}/v1/files")).header("api-key", key);
        let mut response = request.content_type("multipart/form-data; boundary=XX").send(&body).unwrap();
        let json: Value = serde_json::from_str(&response.body_mut().read_to_string().unwrap()).unwrap();
        json["id"].as_str().unwrap().to_owned()
    };
    let (file, other) = (send("one"), send("two"));
    let client = Client::new(&server);
    let get = |key: &str, path: &str| client.get_with(path, &[("api-key", key)]);
    assert_eq!(get("one", &format!("/v1/files/{file}")).status, 200);
    for path in
        [format!("/v1/files/{file}"), format!("/v1/files/{file}/content"), format!("/v1/files?after={file}")]
    {
        assert!([400, 404].contains(&get("two", &path).status), "{path}");
    }
    assert_eq!(get("two", "/v1/files").json()["data"].as_array().unwrap().len(), 1);
    let create = |key: &str, file: &str| {
        let body =
            json!({"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"});
        client.post_with("/v1/batches", &body.to_string(), &[("api-key", key)])
    };
    assert_eq!(create("two", &file).status, 404);
    let batch = id_of(&create("one", &file));
    assert_eq!(get("two", &format!("/v1/batches/{batch}")).status, 404);
    assert_eq!(
        client.post_with(&format!("/v1/batches/{batch}/cancel"), "", &[("api-key", "two")]).status,
        404
    );
    // A key that may not use the model may not use it in a batch either.
    let refused = id_of(&create("two", &other));
    let path = format!("/v1/batches/{refused}");
    until("it failed", || get("two", &path).json()["status"] == "failed");
    assert_eq!(get("two", &path).json()["errors"]["data"][0]["code"], "model_not_found");
}

/// Asks for a text that somebody waits for.
fn interactive(server: &ServerHandle) -> std::net::TcpStream {
    let body = r#"{"model": "endless", "messages": [{"role": "user", "content": "now"}], "max_tokens": 2}"#;
    begin(server, "/v1/chat/completions", body)
}

#[test]
fn who_waits_never_waits_for_more_than_one_line() {
    // With more than one slot, one is kept free.
    let folder = tempfile::tempdir().unwrap();
    let mut config = with_folder(folder.path());
    config.limits.max_texts = 3;
    let model = Endless::new();
    model.holds.store(true, Ordering::SeqCst);
    let held = server(model.clone(), config);
    let client = Client::new(&held);
    let id = held_batch(&client, 20);
    until("two lines run", || model.running() == 2);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(model.running(), 2);
    let _open = interactive(&held);
    until("it runs at once", || model.running() == 3);
    model.release();
    assert_eq!(wait_for(&client, &id)["status"], "completed");
    drop(held);

    // With one slot, it comes next, before the 19 lines that are left.
    let folder = tempfile::tempdir().unwrap();
    let mut config = with_folder(folder.path());
    config.limits.max_texts = 1;
    let order = Arc::new(Ordered::default());
    let held = server(order.clone(), config);
    let client = Client::new(&held);
    let content: String = (0..20).map(|i| line(&i.to_string(), "line")).collect();
    let id = id_of(&create(&client, &client.upload(&content), "/v1/chat/completions"));
    until("a line runs", || order.started() == 1);
    let body = r#"{"model": "m", "messages": [{"role": "user", "content": "now"}]}"#;
    let _first = begin(&held, "/v1/chat/completions", body);
    let _second = begin(&held, "/v1/chat/completions", body);
    let waiting = || crate::support::metric(&client.get("/metrics").text, "breakers_num_requests_waiting");
    until("both wait", || waiting() == 2.0);
    order.gate.store(true, Ordering::SeqCst);
    assert_eq!(wait_for(&client, &id)["status"], "completed");
    let asked = order.asked.lock().unwrap().clone();
    assert_eq!(asked[..4], ["line", "now", "now", "line"], "{asked:?}");
    assert_eq!(asked.len(), 22);
}

/// Notes in which order it is asked, and answers when its gate is open.
struct Ordered {
    card: ModelCard,
    asked: std::sync::Mutex<Vec<String>>,
    gate: std::sync::atomic::AtomicBool,
}

impl Default for Ordered {
    fn default() -> Self {
        let mut card = ModelCard::new("m");
        card.capabilities.chat = true;
        Self { card, asked: std::sync::Mutex::default(), gate: false.into() }
    }
}

impl Ordered {
    fn started(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl ChatModel for Ordered {
    fn card(&self) -> &ModelCard {
        &self.card
    }
    fn chat(
        &self,
        request: &ChatRequest,
        _on_delta: &mut breakers_core::OnDelta<'_>,
    ) -> Result<ChatReply, CallError> {
        self.asked.lock().unwrap().push(request.prompt.messages().unwrap()[0].text().into_owned());
        while !self.gate.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(ChatReply::new("ok", FinishReason::EndOfText))
    }
}

#[test]
fn one_server_at_a_time_has_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let first = server(Arc::new(model()), with_folder(folder.path()));
    let second = Server::new(with_folder(folder.path())).with_model(Arc::new(model())).spawn();
    assert!(matches!(second, Err(Error::Data { .. })), "{second:?}");
    drop(first);
    // What was kept is there for the next one.
    let again = prepared(Server::new(with_folder(folder.path())).with_model(Arc::new(model())));
    assert_eq!(Client::new(&again).get("/v1/batches").json()["data"], json!([]));
    // A server without a folder says so.
    let none = server(Arc::new(model()), config());
    let answer = Client::new(&none).get("/v1/files");
    assert!(answer.status == 404 && answer.text.contains("no folder"), "{}", answer.text);
}

#[test]
fn files_and_batches_follow_the_description() {
    let Some(schemas) = Schemas::read() else {
        eprintln!("skipped: BREAKERS_OPENAPI is not set");
        return;
    };
    let check = |name: &str, value: &Value| {
        if let Err(error) = schemas.validator(name).validate(value) {
            panic!("{name}: {error} at {} of {value}", error.instance_path());
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let server = server(Arc::new(model()), with_folder(folder.path()));
    let client = Client::new(&server);
    check("ListFilesResponse", &client.get("/v1/files").json());
    check("ListBatchesResponse", &client.get("/v1/batches").json());
    let file = client.post_form(&form(&[
        ("purpose", None, "batch"),
        ("expires_after[anchor]", None, "created_at"),
        ("expires_after[seconds]", None, "3600"),
        ("file", Some("in.jsonl"), &(line("a", "x") + &line("b", "fail") + &line("c", "call"))),
    ]));
    check("OpenAIFile", &file.json());
    let body = json!({"input_file_id": id_of(&file), "endpoint": "/v1/chat/completions", "completion_window": "24h",
        "metadata": {"a": "b"}, "output_expires_after": {"anchor": "created_at", "seconds": 3600}});
    let batch = client.post("/v1/batches", &body.to_string());
    check("Batch", &batch.json());
    let done = wait_for(&client, &id_of(&batch));
    check("Batch", &done);
    assert_eq!((&done["metadata"], &done["status"]), (&json!({"a": "b"}), &json!("completed")));
    check("Batch", &run(&client, "nothing", "/v1/chat/completions"));
    check("ListBatchesResponse", &client.get("/v1/batches").json());
    check("ListFilesResponse", &client.get("/v1/files").json());
    check(
        "OpenAIFile",
        &client.get(&format!("/v1/files/{}", done["output_file_id"].as_str().unwrap())).json(),
    );
    for line in results(&client, &done["output_file_id"]) {
        check("CreateChatCompletionResponse", &line["response"]["body"]);
    }
    for line in results(&client, &done["error_file_id"]) {
        check("ErrorResponse", &line["response"]["body"]);
    }
    check("ErrorResponse", &client.get("/v1/files/none").json());
    check("DeleteFileResponse", &client.delete(&format!("/v1/files/{}", id_of(&file))).json());
}

#[test]
fn batches_and_jobs_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = with_folder(folder.path());
    config.limits.max_texts = 1;
    let order = Arc::new(Ordered::default());
    let server = server(order.clone(), config);
    let client = Client::new(&server);
    let value =
        |name: &str| crate::support::metric(&client.get("/metrics").text, &format!("breakers_{name}"));
    let content: String = (0..5).map(|i| line(&i.to_string(), "line")).collect();
    let id = id_of(&create(&client, &client.upload(&content), "/v1/chat/completions"));
    let job = json!({"ticket": "0123456789abcdef", "endpoint": "/v1/chat/completions",
        "body": {"model": "m", "messages": [{"role": "user", "content": "job"}]}});
    let job = client.post("/v1/jobs", &job.to_string());
    assert!(job.status < 300, "{}", job.text);
    until("they are seen", || {
        value("num_batches{status=\"in_progress\"}") == 1.0 && value("num_jobs_open") == 1.0
    });
    assert_eq!(value("num_batch_lines_open"), 5.0);
    assert_eq!(value("batch_lines_total{outcome=\"completed\"}"), 0.0);
    order.gate.store(true, Ordering::SeqCst);
    assert_eq!(wait_for(&client, &id)["status"], "completed");
    until("they have ended", || {
        value("num_batches{status=\"in_progress\"}") == 0.0 && value("num_jobs_open") == 0.0
    });
    assert_eq!(value("num_batch_lines_open"), 0.0);
    assert_eq!(value("batch_lines_total{outcome=\"completed\"}"), 5.0);
    assert_eq!(value("jobs_total{outcome=\"completed\"}"), 1.0);
    assert_eq!(value("batch_retries_total"), 0.0);
    drop(server);

    // What fails is counted as that, and how often it was tried again.
    let folder = tempfile::tempdir().unwrap();
    let server = crate::support::server(Arc::new(model()), with_folder(folder.path()));
    let client = Client::new(&server);
    run(&client, &line("a", "fail"), "/v1/chat/completions");
    let text = client.get("/metrics").text;
    assert_eq!(crate::support::metric(&text, "breakers_batch_lines_total{outcome=\"failed\"}"), 1.0);
    assert_eq!(crate::support::metric(&text, "breakers_batch_retries_total"), 2.0);
}

#[test]
fn a_batch_may_name_a_model_of_the_registry() {
    let place = crate::shelf::Place::new();
    let registry = place.open();
    let version = place.add(&registry, "a.gguf", "says from the registry");
    registry.deploy("team/a", &version, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let server = prepared(Server::new(with_folder(folder.path())).with_registry(registry));
    let client = Client::new(&server);
    let body = json!({"model": "team/a", "messages": [{"role": "user", "content": "Hi"}]});
    let content = request("a", "/v1/chat/completions", &body);
    let batch = run(&client, &content, "/v1/chat/completions");
    assert_eq!(batch["status"], "completed", "{batch}");
    let good = results(&client, &batch["output_file_id"]);
    assert_eq!(good[0]["response"]["body"]["choices"][0]["message"]["content"], "from the registry");
}
