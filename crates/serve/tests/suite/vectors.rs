//! `/v1/embeddings`.

use std::sync::Arc;

use breakers_core::{
    BoxError, CallError, ChatFormat, Embedder, EncodeOptions, Message, TokenId, Tokenizer, Tool, Vocabulary,
};
use breakers_serve::Server;
use serde_json::{Value, json};

use crate::support::{Client, config, prepared};

/// Bytes are tokens, and 256 is a control token.
pub(crate) struct Bytes;

static BYTES: [[u8; 1]; 256] = {
    let mut bytes = [[0]; 256];
    let mut i = 0;
    while i < 256 {
        bytes[i] = [i as u8];
        i += 1;
    }
    bytes
};

impl Vocabulary for Bytes {
    fn n_tokens(&self) -> usize {
        257
    }
    fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        match token {
            0..256 => Some(&BYTES[token as usize]),
            256 => Some(b"<end>"),
            _ => None,
        }
    }
    fn is_control(&self, token: TokenId) -> bool {
        token == 256
    }
    fn end_tokens(&self) -> &[TokenId] {
        &[256]
    }
    fn begin_token(&self) -> Option<TokenId> {
        None
    }
}

impl Tokenizer for Bytes {
    fn encode(&self, text: &str, _options: EncodeOptions) -> Result<Vec<TokenId>, BoxError> {
        Ok(text.bytes().map(TokenId::from).collect())
    }
    fn encode_chat(&self, _: &dyn ChatFormat, _: &[Message], _: &[Tool]) -> Result<Vec<TokenId>, BoxError> {
        Err("no conversations".into())
    }
}

/// The number of bytes and half of it.
pub(crate) struct Lengths;

impl Embedder for Lengths {
    fn dimension(&self) -> usize {
        2
    }
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, CallError> {
        if texts.contains(&"fail") {
            return Err(CallError::failed(std::io::Error::other("told to fail")));
        }
        Ok(texts.iter().map(|text| vec![text.len() as f32, text.len() as f32 / 2.0]).collect())
    }
}

#[test]
fn vectors_of_texts_and_tokens() {
    let server = prepared(Server::new(config()).with_embedder("e", Arc::new(Lengths), Arc::new(Bytes)));
    let client = Client::new(&server);
    let post = |body: Value| client.post("/v1/embeddings", &body.to_string());
    let vectors = |input: Value| {
        let json = post(json!({"model": "e", "input": input})).json();
        let data = json["data"].as_array().unwrap_or_else(|| panic!("{json}"));
        assert!(data.iter().enumerate().all(|(i, one)| one["index"] == i && one["object"] == "embedding"));
        let vectors: Vec<Value> = data.iter().map(|one| one["embedding"].clone()).collect();
        (vectors, json["usage"]["prompt_tokens"].as_u64().unwrap())
    };
    assert_eq!(vectors(json!("abcd")), (vec![json!([4.0, 2.0])], 4));
    assert_eq!(vectors(json!(["a", "bc"])), (vec![json!([1.0, 0.5]), json!([2.0, 1.0])], 3));
    assert_eq!(vectors(json!([97, 98, 256])), (vec![json!([2.0, 1.0])], 2), "control tokens are no text");
    assert_eq!(vectors(json!([[97], [98, 99, 100]])).0, [json!([1.0, 0.5]), json!([3.0, 1.5])]);

    let coded = post(json!({"model": "e", "input": "abcd", "encoding_format": "base64"})).json();
    // Little-endian floats 4 and 2.
    assert_eq!(coded["data"][0]["embedding"], "AACAQAAAAEA=");

    for (field, value, status, param) in [
        ("input", json!(null), 400, "input"),
        ("input", json!([]), 400, "input"),
        ("input", json!(""), 400, "input"),
        ("input", json!([300]), 400, "input"),
        ("input", json!([0xff]), 400, "input"),
        ("input", json!(vec!["x"; 2049]), 400, "input"),
        ("dimensions", json!(1), 400, "dimensions"),
        ("encoding_format", json!("hex"), 400, "encoding_format"),
        ("model", json!("x"), 404, "model"),
    ] {
        let mut body = json!({"model": "e", "input": "x"});
        body[field] = value;
        let answer = post(body);
        assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (status, Some(param)));
    }
    assert_eq!(post(json!({"model": "e", "input": "x", "dimensions": 2})).status, 200);
    let text = client.post("/v1/completions", r#"{"model": "e", "prompt": "x"}"#);
    assert_eq!((text.status, &text.json()["error"]["code"]), (400, &json!("unsupported_parameter")));
    assert_eq!(post(json!({"model": "e", "input": "fail"})).status, 500);
    let metrics = client.get("/metrics").text;
    assert_eq!(crate::support::metric(&metrics, "breakers_num_requests_running{"), 0.0);
}
