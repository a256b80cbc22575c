//! A server whose model follows a script, for trying clients without weights: it answers with the last
//! message, calls the first function if there are any, and keeps to `{"name": "Ann", "age": 7}` if JSON is
//! wanted. A message that begins with `slowly` is answered slowly.
//! `cargo run -p breakers-serve --features batches --example scripted -- 127.0.0.1:8080 [KEY] [FOLDER]`; an
//! empty KEY is none, and FOLDER keeps files and batches (feature `batches`).

use std::sync::Arc;
use std::time::Duration;

use breakers_core::{
    Alternative, BoxError, CallError, ChatFormat, ChatModel, ChatReply, ChatRequest, Embedder, EncodeOptions,
    FinishReason, Message, ModelCard, OnDelta, ResponseFormat, ScoredToken, Scripted, ScriptedModel, TokenId,
    Tokenizer, Tool, ToolCall, ToolChoice, Usage, Vocabulary,
};
use breakers_serve::{Keys, ServeConfig, Server};

/// Three numbers for each text: its bytes, its words, one.
struct Counts;

impl Embedder for Counts {
    fn dimension(&self) -> usize {
        3
    }
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, CallError> {
        let counts = |text: &&str| vec![text.len() as f32, text.split_whitespace().count() as f32, 1.0];
        Ok(texts.iter().map(counts).collect())
    }
}

/// A tokenizer that counts words and has no spellings.
struct Words;

impl Vocabulary for Words {
    fn n_tokens(&self) -> usize {
        0
    }
    fn token_bytes(&self, _token: TokenId) -> Option<&[u8]> {
        None
    }
    fn is_control(&self, _token: TokenId) -> bool {
        false
    }
    fn end_tokens(&self) -> &[TokenId] {
        &[]
    }
    fn begin_token(&self) -> Option<TokenId> {
        None
    }
}

impl Tokenizer for Words {
    fn encode(&self, text: &str, _options: EncodeOptions) -> Result<Vec<TokenId>, BoxError> {
        Ok(text.split_whitespace().map(|_| 0).collect())
    }
    fn encode_chat(&self, _: &dyn ChatFormat, _: &[Message], _: &[Tool]) -> Result<Vec<TokenId>, BoxError> {
        Err("no conversations".into())
    }
}

fn answer(request: &ChatRequest) -> Scripted {
    let last = request.prompt.messages().and_then(<[Message]>::last).map_or("text".into(), Message::text);
    match &*last {
        "busy" => return CallError::Overloaded { retry_after: Some(Duration::from_millis(50)) }.into(),
        "break" => {
            let error = CallError::failed(std::io::Error::other("told to break"));
            return Scripted::Fail { after: "one two".to_owned(), error };
        }
        _ => {}
    }
    let mut reply = match &request.response {
        ResponseFormat::Text => ChatReply::new(&*last, FinishReason::EndOfText),
        _ => ChatReply::new(r#"{"name": "Ann", "age": 7}"#, FinishReason::EndOfText),
    };
    let has_result = last.starts_with("result");
    if let (Some(tool), false, false) =
        (request.tools.first(), has_result, request.tool_choice == ToolChoice::None)
    {
        reply = ChatReply::new("", FinishReason::ToolCalls);
        let arguments = r#"{"name": "Ann", "age": 7}"#;
        reply.tool_calls.push(ToolCall::new("call_1", &tool.name, arguments));
        if request.parallel_tool_calls == Some(true) {
            reply.tool_calls.push(ToolCall::new("call_2", &tool.name, arguments));
        }
    }
    let words = reply.text.split_whitespace().count();
    if let Some(n) = request.top_logprobs {
        reply.tokens =
            reply.text.split_inclusive(' ').map(|word| ScoredToken::new(None, word, -0.5)).collect();
        for token in &mut reply.tokens {
            token.top =
                (0..n).map(|i| Alternative::new(None, vec![b'a' + i as u8], -1.0 - i as f32)).collect();
        }
    }
    if request.max_tokens.is_some_and(|max| max < words) {
        let kept: Vec<&str> = reply.text.split(' ').take(request.max_tokens.unwrap_or(0)).collect();
        (reply.text, reply.finish) = (kept.join(" "), FinishReason::Length);
    }
    reply.usage = Usage::new(5, words as u64);
    reply.into()
}

/// Takes its time where it is asked to.
struct Paced(ScriptedModel);

impl ChatModel for Paced {
    fn card(&self) -> &ModelCard {
        self.0.card()
    }
    fn chat(&self, request: &ChatRequest, on_delta: &mut OnDelta<'_>) -> Result<ChatReply, CallError> {
        let last = request.prompt.messages().and_then(<[Message]>::last);
        let is_slow = last.is_some_and(|last| last.text().starts_with("slowly"));
        self.0.chat(request, &mut |delta| {
            if is_slow {
                std::thread::sleep(Duration::from_millis(40));
            }
            on_delta(delta)
        })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut config = ServeConfig::default();
    if let Some(address) = arguments.next() {
        config.address = address.parse()?;
    }
    if let Some(key) = arguments.next().filter(|key| !key.is_empty()) {
        config.keys = Some(Keys::from_plain([key])?);
    }
    if let Some(folder) = arguments.next() {
        #[cfg(feature = "batches")]
        {
            config.batches = Some(breakers_serve::BatchConfig::new(folder));
        }
        #[cfg(not(feature = "batches"))]
        return Err(format!("{folder}: this build keeps no files; turn on the feature `batches`").into());
    }
    let mut card = ModelCard::new("scripted");
    let can = &mut card.capabilities;
    (can.chat, can.text, can.tokens, can.tools, can.json, can.logprobs, can.seed) =
        (true, true, true, true, true, true, true);
    let model = ScriptedModel::from_fn("scripted", answer).with_card(card);
    let server = Server::new(config).with_model(Arc::new(Paced(model))).with_embedder(
        "counts",
        Arc::new(Counts),
        Arc::new(Words),
    );
    let ended = server.run(|address| eprintln!("listening on http://{address}/v1"))?;
    if ended.n_cut > 0 {
        return Err(format!("{} connections were cut off", ended.n_cut).into());
    }
    Ok(())
}
