//! As `contract`, for vectors, files, batches, kept responses, lists, and requests that are none: every body
//! follows OpenAI's description, and whatever is refused has the form of its errors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use breakers_core::{
    CallError, ChatModel, ChatReply, ChatRequest, ModelCard, OnDelta, Priority, ScriptedModel,
};
use breakers_serve::{BatchConfig, Keys, Server};
use jsonschema::Validator;
use serde_json::{Value, json};

use crate::contract::{Random, Schemas, model, n_requests, random_body, random_response};
use crate::support::{Answer, Client, config, form, prepared};
use crate::vectors::{Bytes, Lengths};

/// What the requests so far have made, and the validators of what comes back.
struct World<'a> {
    client: &'a Client,
    random: Random,
    schemas: Schemas,
    validators: BTreeMap<&'static str, Validator>,
    files: Vec<String>,
    /// The route that the lines of each file ask.
    endpoints: BTreeMap<String, &'static str>,
    batches: Vec<String>,
    responses: Vec<String>,
    /// How many answers of each kind there were.
    counts: BTreeMap<String, usize>,
}

impl World<'_> {
    fn check(&mut self, schema: &'static str, value: &Value, what: &str) {
        let schemas = &self.schemas;
        let validator = self.validators.entry(schema).or_insert_with(|| schemas.validator(schema));
        if let Err(error) = validator.validate(value) {
            panic!("{error} at {} of {value}\nfor {what}", error.instance_path());
        }
    }

    /// Checks an answer, whether it is what was asked for or an error, and counts it. The result is the body
    /// of what was asked for.
    fn take(&mut self, kind: &str, schema: &'static str, answer: &Answer, what: &str) -> Option<Value> {
        let is_good = answer.status == 200;
        let value: Value = serde_json::from_str(&answer.text)
            .unwrap_or_else(|error| panic!("{error}: {} {:?}\nfor {what}", answer.status, answer.text));
        match answer.status {
            200 => self.check(schema, &value, what),
            400..600 => self.check("ErrorResponse", &value, what),
            other => panic!("{other}: {value}\nfor {what}"),
        }
        assert!(answer.header("x-request-id").is_some(), "{what}");
        *self
            .counts
            .entry(format!("{kind}, {}", if is_good { "answered" } else { "refused" }))
            .or_default() += 1;
        is_good.then_some(value)
    }

    /// One of the names that there are, or one that there is not.
    fn name(&mut self, names: fn(&Self) -> &[String]) -> String {
        let n = names(self).len();
        if n == 0 || self.random.below(6) == 0 {
            let none = ["x", "file-0", "%ff", "a%2fb", "%00", "batch_Ü"];
            return none[self.random.below(none.len())].replace('Ü', "%C3%9C");
        }
        let at = self.random.below(n);
        names(self)[at].clone()
    }

    fn embeddings(&mut self) {
        let mut body = json!({"model": "e", "input": self.random.pick(&[
            json!("x"), json!(["a", "bc"]), json!([97, 98]), json!([[97], [98, 256]]), json!("Grüße 🦀"),
            json!("fail"), json!([]), json!(""), json!([300]), json!({"a": 1}), json!([["x"]]),
        ])});
        for (name, values) in [
            ("encoding_format", vec![json!("base64"), json!("base64"), json!("float"), json!("hex")]),
            ("dimensions", vec![json!(2), json!(2), json!(1), json!("x")]),
            ("user", vec![json!("u")]),
            ("model", vec![json!("e"), json!("e"), json!("m"), json!("none"), json!(null)]),
            ("unknown", vec![json!([null])]),
        ] {
            // The last value of most is wrong, so it is rarer.
            if self.random.below(3) == 0 {
                let n = values.len() - usize::from(values.len() > 1 && self.random.below(6) > 0);
                body[name] = values[self.random.below(n)].clone();
            }
        }
        let mut answer = self.client.post("/v1/embeddings", &body.to_string());
        if answer.status == 200 && body["encoding_format"] == "base64" {
            // The description has only numbers; these are their bytes.
            let mut value = answer.json();
            for one in value["data"].as_array_mut().unwrap() {
                let bytes = BASE64_STANDARD.decode(one["embedding"].as_str().unwrap()).unwrap();
                let floats = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap()));
                one["embedding"] = floats.collect();
                assert_eq!(one["embedding"].as_array().unwrap().len(), 2);
            }
            answer.text = value.to_string();
        }
        self.take("vectors", "CreateEmbeddingResponse", &answer, &body.to_string());
    }

    /// A file of random requests, or something that is none.
    fn upload(&mut self) {
        let mut content = String::new();
        let urls = ["/v1/chat/completions", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"];
        let url = urls[self.random.below(4)];
        for i in 0..=self.random.below(4) {
            let mut body = match url {
                "/v1/embeddings" => json!({"model": "e", "input": "x"}),
                url => random_body(&mut self.random, url == "/v1/chat/completions"),
            };
            if self.random.below(16) > 0 {
                let object = body.as_object_mut().unwrap();
                object.retain(|name, _| !name.starts_with("stream"));
                object["model"] = json!(if url.contains("embed") { "e" } else { "m" });
            }
            content += &json!({"custom_id": format!("c{i}"), "method": "POST", "url": url, "body": body})
                .to_string();
            content += "\n";
        }
        if self.random.below(10) == 0 {
            content.truncate(content.floor_char_boundary(content.len() / 2));
        }
        let purpose = ["batch", "batch", "batch", "batch", "assistants", ""][self.random.below(6)];
        let mut fields = vec![("purpose", None, purpose), ("file", Some("in.jsonl"), content.as_str())];
        match self.random.below(12) {
            0 => drop(fields.remove(0)),
            1 => drop(fields.pop()),
            2 => fields.push(("expires_after[anchor]", None, "created_at")),
            3 => fields.extend([
                ("expires_after[anchor]", None, "created_at"),
                ("expires_after[seconds]", None, "3600"),
            ]),
            _ => {}
        }
        let body = form(&fields);
        let answer = self.client.post_form(&body);
        if let Some(file) = self.take("uploads", "OpenAIFile", &answer, &body) {
            let id = file["id"].as_str().unwrap();
            self.files.push(id.to_owned());
            self.endpoints.insert(id.to_owned(), url);
        }
    }

    fn query(&mut self, names: fn(&Self) -> &[String]) -> String {
        match self.random.below(5) {
            0 => format!("?limit={}", ["1", "3", "100", "0", "x"][self.random.below(5)]),
            1 => format!("?after={}&limit=2", self.name(names)),
            2 => format!("?order={}", ["asc", "desc", "up"][self.random.below(3)]),
            3 => "?purpose=batch&limit=2".to_owned(),
            _ => String::new(),
        }
    }

    fn files(&mut self) {
        let id = self.name(|world| &world.files);
        let path = format!("/v1/files/{id}");
        match self.random.below(8) {
            0 | 1 => {
                let path = format!("/v1/files{}", self.query(|world| &world.files));
                let answer = self.client.get(&path);
                self.take("lists of files", "ListFilesResponse", &answer, &path);
            }
            2 => {
                let answer = self.client.delete(&path);
                self.take("files deleted", "DeleteFileResponse", &answer, &path);
            }
            3 | 4 => {
                // What is in a file has no form; only an error has.
                let mut answer = self.client.get(&format!("{path}/content"));
                if answer.status == 200 {
                    answer.text = self.client.get(&path).text;
                }
                self.take("contents", "OpenAIFile", &answer, &path);
            }
            _ => {
                let answer = self.client.get(&path);
                self.take("files", "OpenAIFile", &answer, &path);
            }
        }
    }

    fn batch(&mut self) {
        if self.random.below(2) == 0 {
            let file = self.name(|world| &world.files);
            let mut body = json!({"input_file_id": file, "completion_window": "24h"});
            body["endpoint"] = match self.endpoints.get(&file) {
                Some(url) if self.random.below(8) > 0 => json!(url),
                _ => self.random.pick(&[json!("/v1/chat/completions"), json!("/v1/images"), json!(null)]),
            };
            for (name, values) in [
                ("metadata", vec![json!({"a": "b"}), json!(null), json!({"a": 1})]),
                ("completion_window", vec![json!("1h"), json!("24h"), json!("soon"), json!(null)]),
                (
                    "output_expires_after",
                    vec![json!({"anchor": "created_at", "seconds": 3600}), json!({"x": 1})],
                ),
            ] {
                if self.random.below(5) == 0 {
                    body[name] = self.random.pick(&values);
                }
            }
            let answer = self.client.post("/v1/batches", &body.to_string());
            if let Some(batch) = self.take("batches made", "Batch", &answer, &body.to_string()) {
                self.batches.push(batch["id"].as_str().unwrap().to_owned());
            }
            return;
        }
        let id = self.name(|world| &world.batches);
        let path = format!("/v1/batches/{id}");
        match self.random.below(4) {
            0 => {
                let path = format!("/v1/batches{}", self.query(|world| &world.batches));
                let answer = self.client.get(&path);
                self.take("lists of batches", "ListBatchesResponse", &answer, &path);
            }
            1 => {
                let answer = self.client.post(&format!("{path}/cancel"), "");
                self.take("batches cancelled", "Batch", &answer, &path);
            }
            _ => {
                let answer = self.client.get(&path);
                self.take("batches", "Batch", &answer, &path);
            }
        }
    }

    fn responses(&mut self) {
        if self.random.below(2) == 0 {
            let mut body = random_response(&mut self.random);
            body.as_object_mut().unwrap().remove("stream");
            if self.random.below(3) == 0 {
                body["previous_response_id"] = json!(self.name(|world| &world.responses));
            }
            let answer = self.client.post("/v1/responses", &body.to_string());
            if let Some(response) = self.take("responses made", "Response", &answer, &body.to_string()) {
                self.responses.push(response["id"].as_str().unwrap().to_owned());
            }
            return;
        }
        let path = format!("/v1/responses/{}", self.name(|world| &world.responses));
        if self.random.below(4) == 0 {
            // What is deleted is described by no schema.
            let mut answer = self.client.delete(&path);
            if answer.status == 200 {
                let value = answer.json();
                assert_eq!(
                    (&value["deleted"], path.ends_with(value["id"].as_str().unwrap())),
                    (&json!(true), true)
                );
                answer.text = json!({"id": value["id"], "object": "file", "deleted": true}).to_string();
            }
            self.take("responses deleted", "DeleteFileResponse", &answer, &path);
        } else {
            let answer = self.client.get(&path);
            self.take("responses", "Response", &answer, &path);
        }
    }

    fn models(&mut self) {
        match self.random.below(2) {
            0 => {
                let answer = self.client.get("/v1/models");
                self.take("lists of models", "ListModelsResponse", &answer, "models");
            }
            _ => {
                let path = format!("/v1/models/{}", ["m", "e", "x", "a/b", "%ff"][self.random.below(5)]);
                let answer = self.client.get(&path);
                self.take("models", "Model", &answer, &path);
            }
        }
    }

    /// Something that no client means to send.
    fn nonsense(&mut self) {
        let paths = [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/responses",
            "/v1/files",
            "/v1/batches",
            "/v1/models",
            "/v1/models/m",
            "/v1/files/x/content",
            "/v1/batches/x/cancel",
            "/v1/jobs",
            "/v1/jobs/x",
            "/v1",
            "/v2/chat",
            "/health",
            "/metrics",
            "/v1/images/generations",
        ];
        let path = paths[self.random.below(paths.len())];
        let method = ["POST", "POST", "POST", "PUT", "PATCH", "DELETE"][self.random.below(6)];
        let deep = "[".repeat(200);
        let long = format!("{{\"model\": \"{}\"}}", "x".repeat(3000));
        let bodies: [&[u8]; 14] = [
            b"{",
            b"",
            b"null",
            b"[]",
            b"\"x\"",
            b"{\"model\": \"m\"",
            b"\xff\xfe",
            b"{\"a\": 1e999}",
            b"{\"model\": \"m\", \"model\": \"x\"}",
            b"{\"model\": {}}",
            deep.as_bytes(),
            long.as_bytes(),
            b"--XX\r\n\r\n",
            b"\0",
        ];
        let body = if method == "DELETE" { b"" } else { bodies[self.random.below(bodies.len())] };
        let types =
            ["application/json", "text/plain", "multipart/form-data; boundary=XX", "multipart/form-data"];
        let content_type = types[self.random.below(types.len())];
        let answer = self.client.send(method, path, content_type, body);
        let what = format!("{method} {path} {content_type} {}", String::from_utf8_lossy(body));
        assert!(answer.status >= 400, "{} {}\nfor {what}", answer.status, answer.text);
        self.take("nonsense", "ErrorResponse", &answer, &what);
    }

    /// The answers of all lines of all batches follow the description, too.
    fn results(&mut self) {
        for id in self.batches.clone() {
            let batch = crate::batches::wait_for(self.client, &id);
            self.check("Batch", &batch, &id);
            let endpoint = batch["endpoint"].as_str().unwrap().to_owned();
            let schema = match &*endpoint {
                "/v1/chat/completions" => "CreateChatCompletionResponse",
                "/v1/completions" => "CreateCompletionResponse",
                _ => "CreateEmbeddingResponse",
            };
            for name in ["output_file_id", "error_file_id"] {
                let Some(file) = batch[name].as_str() else { continue };
                let answer = self.client.get(&format!("/v1/files/{file}/content"));
                // Another request may have deleted it.
                for line in answer.text.lines().filter(|_| answer.status == 200) {
                    let line: Value = serde_json::from_str(line).unwrap();
                    let response = &line["response"];
                    let what = match response["status_code"].as_u64() {
                        Some(200) => {
                            self.check(schema, &response["body"], &endpoint);
                            "lines, answered"
                        }
                        Some(_) => {
                            self.check("ErrorResponse", &response["body"], &endpoint);
                            "lines, refused"
                        }
                        None => {
                            assert!(line["error"]["code"].is_string(), "{line}");
                            "lines, not run"
                        }
                    };
                    *self.counts.entry(what.to_owned()).or_default() += 1;
                }
            }
        }
    }
}

/// Slow for batches, and failing where the model is busy: a line of a batch would be tried again for a day.
struct Hasty(ScriptedModel);

impl ChatModel for Hasty {
    fn card(&self) -> &ModelCard {
        self.0.card()
    }
    fn chat(&self, request: &ChatRequest, on_delta: &mut OnDelta<'_>) -> Result<ChatReply, CallError> {
        // So that batches can be cancelled.
        if request.priority == Priority::Background {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.0.chat(request, on_delta).map_err(|error| match error {
            CallError::Overloaded { .. } => CallError::failed(std::io::Error::other("busy")),
            other => other,
        })
    }
}

#[test]
fn all_routes_follow_the_description() {
    let Some(schemas) = Schemas::read() else {
        eprintln!("skipped: BREAKERS_OPENAPI is not set");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut config = config();
    config.canary = false;
    let mut batches = BatchConfig::new(folder.path());
    batches.attempts = 1;
    batches.open_batches = 100_000;
    config.batches = Some(batches);
    let server = Server::new(config).with_model(Arc::new(Hasty(model())));
    let server = prepared(server.with_embedder("e", Arc::new(Lengths), Arc::new(Bytes)));
    let client = Client::new(&server);
    let mut world = World {
        client: &client,
        random: Random(13),
        schemas,
        validators: BTreeMap::new(),
        files: Vec::new(),
        endpoints: BTreeMap::new(),
        batches: Vec::new(),
        responses: Vec::new(),
        counts: BTreeMap::new(),
    };
    for _ in 0..n_requests(5000) {
        match world.random.below(16) {
            0..4 => world.embeddings(),
            4 => world.upload(),
            5..7 => world.files(),
            7..9 => world.batch(),
            9..12 => world.responses(),
            12 => world.models(),
            _ => world.nonsense(),
        }
    }
    world.results();
    eprintln!("{:?}", world.counts);
    for kind in [
        "vectors",
        "uploads",
        "lists of files",
        "files deleted",
        "contents",
        "files",
        "batches made",
        "lists of batches",
        "batches cancelled",
        "batches",
        "responses made",
        "responses deleted",
        "responses",
        "models",
        "lines",
    ] {
        for end in ["answered", "refused"] {
            let n = world.counts.get(&format!("{kind}, {end}")).copied().unwrap_or(0);
            assert!(n >= 5, "too few {kind}, {end}: {:?}", world.counts);
        }
    }
}

/// What is refused before it comes to a route.
#[test]
fn refusals_at_the_door_follow_the_description() {
    let Some(schemas) = Schemas::read() else {
        eprintln!("skipped: BREAKERS_OPENAPI is not set");
        return;
    };
    let error = schemas.validator("ErrorResponse");
    let mut config = config();
    config.canary = false;
    config.limits.body_bytes = 1000;
    config.limits.max_texts = 1;
    let file = "[[key]]\nkey = \"few\"\ntenant = \"few\"\nrequests_per_minute = 1\n\n[[key]]\nkey = \"one\"\ntenant = \"one\"\nmodels = [\"x\"]\n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    std::fs::write(&path, file).unwrap();
    config.keys = Some(Keys::read(&path).unwrap());
    let server = prepared(Server::new(config).with_model(Arc::new(model())));
    let client = Client::new(&server);
    let body = json!({"model": "m", "seed": 3, "messages": [{"role": "user", "content": "Hi"}]}).to_string();
    let large = body.replace("Hi", &"x".repeat(2000));
    let key = |key: &str| vec![("authorization".to_owned(), format!("Bearer {key}"))];
    let host = vec![("host".to_owned(), "evil.example".to_owned())];
    for (headers, body, status) in [
        (vec![], &body, 401),
        (key("none"), &body, 401),
        (key("one"), &body, 404),
        (key("one"), &large, 413),
        (key("few"), &body, 200),
        (key("few"), &body, 429),
        ([key("one"), host].concat(), &body, 403),
    ] {
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let answer = client.post_with("/v1/chat/completions", body, &headers);
        // The one that is let in may fail in the model.
        let is_expected = answer.status == status || (status == 200 && answer.status >= 500);
        assert!(is_expected, "{status} was expected: {} {}", answer.status, answer.text);
        if answer.status >= 400 {
            let value = answer.json();
            if let Err(error) = error.validate(&value) {
                panic!("{error} at {} of {value}", error.instance_path());
            }
        }
        if status == 429 {
            assert!(answer.header("retry-after").is_some() && answer.header("retry-after-ms").is_some());
        }
    }
}
