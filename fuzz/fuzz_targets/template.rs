//! Any text is a chat template or a typed error, and a template makes a prompt or a typed
//! error in bounded time.

#![no_main]

use std::hint::black_box;
use std::time::SystemTime;

use breakers_core::{Json, Message};
use breakers_tokenizer::ChatTemplate;
use libfuzzer_sys::fuzz_target;

const VARIABLES: &str = r#"{"messages": [{"role": "user", "content": "Hi, 10 °C!"}], "x": [3, -1.5, null, "a\nb"],
    "y": {"k": [true, {}], "a": 1e300}, "bos_token": "<s>", "n": 9223372036854775807}"#;
const TOOLS: &str = r#"[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]"#;

fuzz_target!(|source: &str| {
    let template = match ChatTemplate::new(source) {
        Ok(template) => template.with_time(SystemTime::UNIX_EPOCH).with_tokens(Some("<s>".into()), None),
        Err(error) => {
            black_box(error.to_string());
            return;
        }
    };
    let messages = [Message::system("Be brief."), Message::user("Hi!"), Message::assistant("Hello.")];
    let tools = Json::parse(TOOLS).expect("the constant is JSON");
    let variables = Json::parse(VARIABLES).expect("the constant is JSON");
    for prompt in [template.render(&messages, Some(&tools), true), template.render_with(&variables)] {
        black_box(prompt.map_err(|error| error.to_string()).is_ok());
    }
});
