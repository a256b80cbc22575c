//! Any text is JSON or a typed error; arguments of a function that a model wrote are read as JSON, or as
//! text; a filter of the vector store is read, applied and written again.

#![no_main]

use std::hint::black_box;

use breakers_core::{Json, Message, SamplingConfig, ToolCall};
use breakers_retrieval::store::Filter;
use breakers_tokenizer::ChatTemplate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let template = ChatTemplate::new("{{ messages | tojson }}{{ tools | tojson(indent=2) }}").expect("it parses");
    let mut message = Message::assistant("");
    message.tool_calls.push(ToolCall::new("id", "f", text));
    let json = Json::parse(text);
    black_box(template.render(&[message], json.as_ref().ok(), false).is_ok());
    match json {
        Ok(json) => {
            assert_eq!(Json::parse(json.as_str()).expect("what was read can be read again"), json);
            black_box(json.to::<SamplingConfig>().is_ok());
            if let Ok(filter) = json.to::<Filter>() {
                let payload = json.to::<serde_json::Map<String, serde_json::Value>>().unwrap_or_default();
                black_box(filter.matches(&payload));
                let written = serde_json::to_string(&filter).expect("what was read can be written");
                assert!(serde_json::from_str::<Filter>(&written).is_ok(), "{written}");
            }
            black_box(template.render_with(&json).is_ok());
        }
        Err(error) => drop(black_box(error.to_string())),
    }
});
