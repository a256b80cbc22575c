//! The parser of events, compared with a slow one that sees everything at once.

use breakers_remote::sse::{SseError, SseEvent, SseParser};
use proptest::prelude::*;

/// By the specification's grammar, over the whole text.
fn reference(text: &str) -> Vec<(String, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = Vec::new();
    let (mut event, mut data) = (String::new(), Vec::new());
    // Without the line whose end is missing.
    let lines: Vec<&str> = text.split('\n').collect();
    for line in &lines[..lines.len() - 1] {
        if line.is_empty() {
            if !data.is_empty() {
                out.push((event.clone(), data.join("\n")));
            }
            event.clear();
            data.clear();
        } else if let Some(value) = line.strip_prefix("data:") {
            data.push(value.strip_prefix(' ').unwrap_or(value).to_owned());
        } else if *line == "data" {
            data.push(String::new());
        } else if let Some(value) = line.strip_prefix("event:") {
            event = value.strip_prefix(' ').unwrap_or(value).to_owned();
        } else if *line == "event" {
            event.clear();
        }
    }
    out
}

/// All events of a stream in pieces, and the error at its end.
fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limit: usize) -> (Vec<SseEvent>, Option<SseError>) {
    let mut parser = SseParser::new(limit);
    let mut events = Vec::new();
    for piece in pieces {
        parser.feed(piece);
        loop {
            match parser.next_event() {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(parser.next_event(), Err(error), "an error stays");
                    return (events, Some(error));
                }
            }
        }
    }
    (events, None)
}

fn pairs(events: &[SseEvent]) -> Vec<(String, String)> {
    events.iter().map(|event| (event.event.clone(), event.data.clone())).collect()
}

#[test]
fn streams_at_every_split() {
    for text in [
        "data: a\n\n",
        "data: a\r\n\r\ndata: b\r\rdata: c\n\n",
        "\u{feff}data:x\n\n\u{feff}data:y\n\n",
        ": ping\n\n: ping\r\n\r\ndata: Gr\u{fc}\u{df}e \u{1f642}\n\n",
        "event: error\ndata: 1\ndata:\ndata:  2\ndata\n\nevent: none\n\ndata: 3\n\n",
        "id: 7\nretry: 10\ndata\n\nunknown: field\ndata: x\n\ndata: unended",
        "\n\n\r\n\r\r\ndata: [DONE]\n\n",
        "data: a\r\n\ndata: b\n\r\n",
    ] {
        let bytes = text.as_bytes();
        let expected = reference(text);
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                let (events, error) = parse(pieces, 1000);
                assert_eq!((pairs(&events), error), (expected.clone(), None), "{text:?} {first} {second}");
            }
        }
        assert_eq!(pairs(&parse(bytes.chunks(1), 1000).0), expected, "{text:?} in single bytes");
    }
}

#[test]
fn what_lacks_its_end_is_known_at_the_end() {
    for (text, expected) in [
        ("data: a\n\n", None),
        ("data: a\n", Some("a")),
        ("data: a", Some("a")),
        ("data: a\ndata: b", Some("a\nb")),
        ("data: a\n: ping", Some("a")),
        ("event: x\n", None),
        ("data: a\ndata: \u{20ac}", Some("a\n\u{20ac}")),
        ("", None),
    ] {
        let mut parser = SseParser::new(100);
        parser.feed(text.as_bytes());
        while parser.next_event().unwrap().is_some() {}
        assert_eq!(parser.finish().unwrap().map(|event| event.data).as_deref(), expected, "{text:?}");
    }
}

#[test]
fn a_character_that_is_cut_off_takes_its_line_along() {
    for n in 1..4 {
        let bytes = "data: a\ndata: \u{1f642}".as_bytes();
        let mut parser = SseParser::new(100);
        parser.feed(&bytes[..bytes.len() - n]);
        assert_eq!(parser.next_event().unwrap(), None);
        assert_eq!(parser.finish().unwrap().unwrap().data, "a");
    }
}

#[test]
fn bytes_that_are_no_text_and_events_without_end() {
    for bytes in [&b"data: \xff\n\n"[..], b"\xc3\n\n", b"data: a\xe2\x82\n\n"] {
        for split in 0..bytes.len() {
            let (events, error) = parse([&bytes[..split], &bytes[split..]], 100);
            assert_eq!((events.len(), error), (0, Some(SseError::NotUtf8)), "{bytes:?} {split}");
        }
    }
    // One long line, and many short ones.
    let too_long = Some(SseError::TooLong { limit: 100 });
    for text in [format!("data: {}", "x".repeat(95)), "data: 123456789\n".repeat(12), ":".repeat(101)] {
        for size in [1, 7, 1000] {
            assert_eq!(parse(text.as_bytes().chunks(size), 100), (Vec::new(), too_long), "{text} by {size}");
        }
    }
    // Many comments are many lines and no event.
    assert_eq!(parse([": ping\n\n".repeat(1000).as_bytes()], 100), (Vec::new(), None));
    let good = format!("data: {}\n\n", "x".repeat(90));
    assert_eq!(parse([good.repeat(5).as_bytes()], 100).0.len(), 5);
}

proptest! {
    #[test]
    fn any_text_in_any_pieces(
        parts in prop::collection::vec(
            prop_oneof![
                Just("data".to_owned()), Just(": ".to_owned()), Just("\n".to_owned()), Just("\r".to_owned()),
                Just("\n\n".to_owned()), Just("event".to_owned()), Just("\u{feff}".to_owned()), ".{0,4}",
            ],
            0..40,
        ),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let text = parts.concat();
        let bytes = text.as_bytes();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let (events, error) = parse(cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]), 10_000);
        prop_assert_eq!((pairs(&events), error), (reference(&text), None));
    }

    #[test]
    fn any_bytes_split_anywhere_give_the_same(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let whole = parse([&bytes[..]], 40);
        for at in 0..=bytes.len() {
            prop_assert_eq!(parse([&bytes[..at], &bytes[at..]], 40), whole.clone());
        }
    }
}
