//! What is sent, and what is refused before it is.

use std::sync::Arc;

use breakers_core::{
    Capabilities, ChatModel as _, ChatRequest, Json, Message, Prompt, ResponseFormat, ResponseSchema,
    SamplingConfig, ScriptedModel, Tool, ToolCall, ToolChoice,
};
use breakers_remote::{ApiKey, Dialect, Error, RemoteConfig, RemoteModel, testing::FakeEndpoint};
use serde_json::{Value, json};

use super::{kind, listen, question};

fn json_of(text: &str) -> Json {
    Json::parse(text).unwrap()
}

/// The path and the body of a request as it is sent, without the parts that all requests share.
fn sent(request: &ChatRequest, set: impl Fn(&mut RemoteConfig)) -> Result<(String, Value), String> {
    let endpoint = FakeEndpoint::serve(Arc::new(ScriptedModel::from_fn("test", |_| "x".into())));
    let mut config = RemoteConfig::new(endpoint.url() + "/", "test");
    set(&mut config);
    let model = RemoteModel::new(config).unwrap();
    let (reply, _) = listen(&model, request);
    let requests = endpoint.requests();
    if let Err(error) = reply {
        assert!(requests.is_empty(), "refused after it was sent: {error}");
        return Err(format!("{error:?}"));
    }
    let mut body = requests[0].json().unwrap();
    for key in ["model", "stream", "stream_options"] {
        body.as_object_mut().unwrap().remove(key);
    }
    Ok((requests[0].path.clone(), body))
}

#[test]
fn bodies() {
    let tool = Tool::new("f", json_of(r#"{"type": "object"}"#)).with_description("d");
    let tools = json!([{"type": "function", "function":
        {"name": "f", "description": "d", "parameters": {"type": "object"}}}]);
    let user = json!([{"role": "user", "content": "?"}]);
    let base = |extra: Value| {
        let mut body = json!({"messages": user, "temperature": 0});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let schema = ResponseSchema::new("s", json_of(r#"{"type": "string"}"#));
    let mut drawn = SamplingConfig::temperature(0.7);
    drawn.top_p = 0.9;
    let cases = [
        (question(), base(json!({}))),
        (question().with_max_tokens(9), base(json!({"max_completion_tokens": 9}))),
        (question().with_seed(u64::MAX), base(json!({"seed": -1}))),
        (question().with_stop(["a", "b"]), base(json!({"stop": ["a", "b"]}))),
        (question().with_logprobs(3), base(json!({"logprobs": true, "top_logprobs": 3}))),
        (question().with_sampling(drawn), base(json!({"temperature": 0.7, "top_p": 0.9}))),
        (
            question().with_response(ResponseFormat::JsonObject),
            base(json!({"response_format": {"type": "json_object"}})),
        ),
        (
            question().with_response(ResponseFormat::JsonSchema(schema)),
            base(json!({"response_format": {"type": "json_schema",
                "json_schema": {"name": "s", "strict": true, "schema": {"type": "string"}}}})),
        ),
        (
            question().with_tools([tool.clone()], ToolChoice::Required),
            base(json!({"tools": tools, "tool_choice": "required"})),
        ),
        (
            question().with_tools([tool.clone()], ToolChoice::Function("f".to_owned())),
            base(json!({"tools": tools,
                "tool_choice": {"type": "function", "function": {"name": "f"}}})),
        ),
    ];
    for (request, expected) in cases {
        let (path, body) = sent(&request, |_| {}).unwrap();
        assert_eq!((path.as_str(), body), ("/v1/chat/completions", expected), "{request:?}");
    }
    let mut parallel = question().with_tools([tool], ToolChoice::Auto);
    parallel.parallel_tool_calls = Some(false);
    assert_eq!(sent(&parallel, |_| {}).unwrap().1["parallel_tool_calls"], false);

    let conversation = vec![
        Message::system("s"),
        Message::user(""),
        Message::assistant("").with_tool_call(ToolCall::new("c", "f", "{}")),
        Message::tool("c", "4").with_field("name", json_of("\"f\"")),
        Message::assistant("x"),
        Message::new("developer", "y"),
    ];
    assert_eq!(
        sent(&ChatRequest::new(conversation), |_| {}).unwrap().1["messages"],
        json!([
            {"role": "system", "content": "s"},
            {"role": "user", "content": ""},
            {"role": "assistant", "content": null, "tool_calls":
                [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "4", "tool_call_id": "c", "name": "f"},
            {"role": "assistant", "content": "x"},
            {"role": "developer", "content": "y"},
        ])
    );
}

#[test]
fn dialects_and_other_forms() {
    let mut sampling = SamplingConfig::temperature(0.5);
    (sampling.top_k, sampling.min_p) = (40, 0.1);
    let request = question().with_sampling(sampling.clone()).with_max_tokens(3);
    let llama = |config: &mut RemoteConfig| config.dialect = Dialect::LlamaCpp;
    let vllm = |config: &mut RemoteConfig| config.dialect = Dialect::Vllm;
    for (set, names) in [
        (&llama as &dyn Fn(&mut RemoteConfig), &["top_k", "min_p", "top_p", "max_tokens"][..]),
        (&vllm, &["top_k", "min_p", "max_tokens"][..]),
    ] {
        let body = sent(&request, set).unwrap().1;
        for name in names {
            assert!(body.get(name).is_some(), "{name} in {body}");
        }
        assert_eq!((&body["top_k"], &body["min_p"]), (&json!(40), &json!(0.1)));
    }
    sampling.repetition_penalty = 1.1;
    let penalized = question().with_sampling(sampling);
    let body = sent(&penalized, llama).unwrap().1;
    assert_eq!((&body["repeat_penalty"], &body["repeat_last_n"]), (&json!(1.1), &json!(64)));
    assert!(sent(&penalized, vllm).unwrap_err().contains("repetition_penalty"));

    let choice = || ResponseFormat::Choice(vec!["yes".to_owned(), "\"no\"\n\\".to_owned()]);
    for (form, expected) in [
        (ResponseFormat::Regex("[a-z]+".to_owned()), json!({"regex": "[a-z]+"})),
        (ResponseFormat::Lark("start: \"a\"".to_owned()), json!({"grammar": "start: \"a\""})),
        (choice(), json!({"choice": ["yes", "\"no\"\n\\"]})),
    ] {
        let body = sent(&question().with_response(form), vllm).unwrap().1;
        assert_eq!(body["structured_outputs"], expected);
    }
    let body = sent(&question().with_response(choice()), llama).unwrap().1;
    assert_eq!(body["grammar"], r#"root ::= "yes" | "\"no\"\n\\""#);

    // Whoever says that the endpoint uses predictions has them sent; to others they are no use.
    let predicted = question().with_prediction("a text");
    let knows = |config: &mut RemoteConfig| config.card.capabilities.prediction = true;
    let body = sent(&predicted, knows).unwrap().1;
    assert_eq!(body["prediction"], json!({"type": "content", "content": "a text"}));
    assert_eq!(sent(&predicted, |_| {}).unwrap().1.get("prediction"), None);

    let text = |config: &mut RemoteConfig| {
        config.card.capabilities.text = true;
        config.card.capabilities.tokens = true;
        config.body = vec![("top_k".to_owned(), json_of("5")), ("temperature".to_owned(), json_of("1"))];
        config.stream = false;
    };
    let story = ChatRequest::new("Once").with_logprobs(2).with_max_tokens(4);
    let expected = json!({"prompt": "Once", "logprobs": 2, "max_tokens": 4, "temperature": 1, "top_k": 5});
    assert_eq!(sent(&story, text).unwrap(), ("/v1/completions".to_owned(), expected));
    let ids = sent(&ChatRequest::new(vec![1u32, 2]), text).unwrap().1;
    assert_eq!(ids["prompt"], json!([1, 2]));
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    let tool = || Tool::new("f", json_of("{}"));
    let sampled = |set: fn(&mut SamplingConfig)| {
        let mut sampling = SamplingConfig::temperature(1.0);
        set(&mut sampling);
        question().with_sampling(sampling)
    };
    let mut parallel = question();
    parallel.parallel_tool_calls = Some(true);
    let nothing = |_: &mut RemoteConfig| {};
    let incapable = |config: &mut RemoteConfig| config.card.capabilities = Capabilities::default();
    let texts = |config: &mut RemoteConfig| config.card.capabilities.text = true;
    let llama = |config: &mut RemoteConfig| config.dialect = Dialect::LlamaCpp;
    let vllm = |config: &mut RemoteConfig| config.dialect = Dialect::Vllm;
    type Case<'a> = (ChatRequest, &'a dyn Fn(&mut RemoteConfig), &'a str);
    let cases: Vec<Case<'_>> = vec![
        (ChatRequest::new("text"), &nothing, "Unsupported"),
        (ChatRequest::new(vec![1u32]), &nothing, "Unsupported"),
        (ChatRequest::new(Prompt::Chat(Vec::new())), &nothing, "BadRequest"),
        (question(), &incapable, "Unsupported"),
        (sampled(|s| s.top_k = 1), &nothing, "Unsupported"),
        (sampled(|s| s.min_p = 0.1), &nothing, "Unsupported"),
        (sampled(|s| s.repetition_penalty = 1.2), &nothing, "Unsupported"),
        (sampled(|s| s.top_p = 2.0), &nothing, "BadRequest"),
        (sampled(|s| s.temperature = f32::NAN), &nothing, "BadRequest"),
        (question().with_max_tokens(0), &nothing, "BadRequest"),
        (question().with_stop([""]), &nothing, "BadRequest"),
        (question().with_tools([], ToolChoice::Required), &nothing, "BadRequest"),
        (question().with_tools([tool()], ToolChoice::Function("g".to_owned())), &nothing, "BadRequest"),
        (parallel, &nothing, "BadRequest"),
        (ChatRequest::new("text").with_tools([tool()], ToolChoice::Auto), &texts, "Unsupported"),
        (ChatRequest::new("text").with_response(ResponseFormat::JsonObject), &texts, "Unsupported"),
        (question().with_response(ResponseFormat::Regex(String::new())), &vllm, "BadRequest"),
        (question().with_response(ResponseFormat::Lark(String::new())), &vllm, "BadRequest"),
        (question().with_response(ResponseFormat::Choice(Vec::new())), &vllm, "BadRequest"),
        (question().with_response(ResponseFormat::Choice(vec![String::new()])), &vllm, "BadRequest"),
        (question().with_response(ResponseFormat::Regex("a".to_owned())), &nothing, "Unsupported"),
        (question().with_response(ResponseFormat::Regex("a".to_owned())), &llama, "Unsupported"),
        (question().with_response(ResponseFormat::Lark("start: A".to_owned())), &llama, "Unsupported"),
        (question().with_response(ResponseFormat::Choice(vec!["a".to_owned()])), &nothing, "Unsupported"),
        (question().with_seed(u64::from(u32::MAX)), &llama, "BadRequest"),
        (
            ChatRequest::new(Message::user("").with_tool_call(ToolCall::new("c", "f", "{}"))),
            &nothing,
            "BadRequest",
        ),
    ];
    for (request, set, expected) in cases {
        let error = sent(&request, set).expect_err(&format!("{request:?}"));
        assert!(error.starts_with(expected), "{request:?}: {error}");
    }
}

#[test]
fn configs_that_cannot_be_used() {
    let check = |url: &str, expected: &str| {
        let result = RemoteModel::new(RemoteConfig::new(url, "m"));
        let found = result.map_or_else(|error| kind_of(&error), |_| "fine");
        assert_eq!(found, expected, "{url}");
    };
    let https = if cfg!(feature = "tls") { "fine" } else { "tls" };
    check("http://localhost:80/v1/", "fine");
    check("HTTP://[::1]:80", "fine");
    check("https://example.org/v1", https);
    for url in [
        "",
        "localhost",
        "/v1",
        "ftp://x",
        "http://",
        "http:///v1",
        "http://a b/",
        "http://user:pw@host/v1",
        "http://host/v1?key=1",
        "http://host/v1#x",
    ] {
        check(url, "url");
    }
    let set = |change: fn(&mut RemoteConfig)| {
        let mut config = RemoteConfig::new("http://localhost", "m");
        change(&mut config);
        RemoteModel::new(config).map_or_else(|error| kind_of(&error), |_| "fine")
    };
    assert_eq!(set(|config| config.headers.push(("a b".to_owned(), String::new()))), "header");
    assert_eq!(set(|config| config.headers.push(("a".to_owned(), "\n".to_owned()))), "header");
    assert_eq!(set(|config| config.api_key = Some(ApiKey::new("a\r\nb: c"))), "header");
    assert_eq!(set(|config| config.max_concurrent = 0), "parameter");
    assert_eq!(set(|config| config.max_answer = 0), "parameter");
    assert_eq!(set(|config| config.timeouts.total = Default::default()), "parameter");
    assert_eq!(set(|config| config.timeouts.total = std::time::Duration::MAX), "fine");
}

fn kind_of(error: &Error) -> &'static str {
    match error {
        Error::Url { .. } => "url",
        Error::Header { .. } => "header",
        Error::NoTls { .. } => "tls",
        Error::Parameter { .. } => "parameter",
        _ => "other",
    }
}

#[test]
fn keys_and_headers_are_sent_and_connections_are_kept() {
    let endpoint = FakeEndpoint::serve(Arc::new(ScriptedModel::from_fn("test", |_| "x".into())));
    let mut config = RemoteConfig::new(endpoint.url(), "test");
    config.api_key = Some(ApiKey::new("k"));
    config.headers.push(("X-Team".to_owned(), "blue".to_owned()));
    let model = RemoteModel::new(config).unwrap();
    for _ in 0..5 {
        listen(&model, &question()).0.unwrap();
    }
    let requests = endpoint.requests();
    assert_eq!((requests.len(), endpoint.n_connections()), (5, 1));
    for request in requests {
        assert_eq!(request.header("authorization"), Some("Bearer k"));
        assert_eq!(request.header("x-team"), Some("blue"));
        assert_eq!(request.header("accept-encoding"), None);
    }
    let wrong = RemoteModel::new(RemoteConfig::new(endpoint.url(), "another")).unwrap();
    assert_eq!(kind(&listen(&wrong, &question()).0.unwrap_err()), "ModelNotFound");
    assert_eq!(wrong.card().id, "another");
}
