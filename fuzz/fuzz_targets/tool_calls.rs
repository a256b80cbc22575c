//! Any text is text, calls and malformed calls, in every format, the same however it is cut, and nothing of
//! it is lost.

#![no_main]

use std::sync::LazyLock;

use breakers_core::{Json, Tool};
use breakers_structured::tools::{Answer, Event, FORMATS, ToolFormatSpec};
use libfuzzer_sys::fuzz_target;

/// A function whose parameters are of several types, for formats that read values by them.
static TOOLS: LazyLock<Vec<Tool>> = LazyLock::new(|| {
    let parameters = r#"{"type": "object", "properties": {"s": {"type": "string"}, "n": {"type": "integer"},
        "m": {"type": ["string", "null", "array"]}, "o": {"type": "object"}, "b": {"type": "boolean"}}}"#;
    vec![Tool::new("f", Json::parse(parameters).expect("the constant is JSON"))]
});

fn events(format: ToolFormatSpec, pieces: &[&[u8]]) -> Vec<Event> {
    let mut parser = format.parser(&TOOLS, 0);
    let mut events: Vec<Event> = pieces.iter().flat_map(|piece| parser.push_bytes(piece)).collect();
    events.extend(parser.finish());
    events
}

// The first byte chooses the format, the second where the rest is cut.
fuzz_target!(|data: &[u8]| {
    let [choice, cut, bytes @ ..] = data else { return };
    let entry = FORMATS[usize::from(*choice) % FORMATS.len()];
    let format: ToolFormatSpec = entry.name.parse().expect("the table's names are known");
    let whole = events(format, &[bytes]);
    let answer: Answer = whole.iter().cloned().collect();
    let (head, tail) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    assert_eq!(answer, events(format, &[head, tail]).into_iter().collect());
    assert_eq!(answer, events(format, &bytes.chunks(1).collect::<Vec<_>>()).into_iter().collect());
    for call in &answer.calls {
        assert!(call.arguments_json().is_ok(), "{call:?}");
    }
    if answer.calls.is_empty() {
        let kept: String = whole
            .iter()
            .map(|event| match event {
                Event::Text(text) => text.as_str(),
                Event::Malformed(call) => call.raw.as_str(),
                _ => "",
            })
            .collect();
        assert_eq!(kept, String::from_utf8_lossy(bytes));
    }
});
