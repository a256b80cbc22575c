//! Calls of functions in all formats: what a grammar lets through is what the parser reads.

mod conversation;
mod detect;
mod faults;
mod generate;
mod grammar;
mod roundtrip;
mod vocabulary;
mod wire;

use breakers_core::Tool;
use breakers_structured::tools::{Answer, Event, FORMATS, ToolFormatSpec};

/// The formats of the table.
fn formats() -> impl Iterator<Item = ToolFormatSpec> {
    FORMATS.iter().map(|entry| entry.name.parse().unwrap())
}

/// An answer in pieces of bytes.
fn parse_pieces<'a>(
    format: ToolFormatSpec,
    tools: &[Tool],
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Event>, Answer) {
    let mut parser = format.parser(tools, 7);
    let mut events: Vec<Event> = pieces.into_iter().flat_map(|piece| parser.push_bytes(piece)).collect();
    events.extend(parser.finish());
    check_events(&events);
    let answer = events.iter().cloned().collect();
    (events, answer)
}

/// The order of events that a client relies on.
fn check_events(events: &[Event]) {
    let (mut n_begun, mut open) = (0, None);
    for event in events {
        match event {
            Event::Text(text) => assert!(!text.is_empty() && open.is_none(), "{events:?}"),
            Event::Begin { index, id, name } => {
                assert!(
                    open.is_none() && *index == n_begun && !id.is_empty() && !name.is_empty(),
                    "{events:?}"
                );
                (n_begun, open) = (n_begun + 1, Some(*index));
            }
            Event::Arguments { index, delta } => {
                assert!(open == Some(*index) && !delta.is_empty(), "{events:?}");
            }
            Event::End { index } => assert_eq!(open.take(), Some(*index), "{events:?}"),
            Event::Malformed(call) => {
                assert_eq!(open.take(), call.index, "{events:?}");
                assert!(!call.to_string().is_empty());
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(open, None, "{events:?}");
}
