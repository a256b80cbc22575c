//! The table, and which format a template speaks.

use breakers_structured::tools::{FORMATS, ToolError, ToolFormatSpec};

#[test]
fn names_are_known_or_listed() {
    for entry in FORMATS {
        let spec: ToolFormatSpec = entry.name.parse().unwrap();
        assert_eq!((spec.to_string(), spec.entry().name), (entry.name.to_owned(), entry.name));
        assert_eq!(FORMATS.iter().filter(|other| other.name == entry.name).count(), 1);
        assert!(!entry.models.is_empty() && !entry.source.is_empty(), "{}", entry.name);
        // Only what Hermes's template cannot be told from has none.
        assert_eq!(entry.marks.is_empty(), entry.name == "hermes-bare", "{}", entry.name);
        let layout = spec.format().layout();
        assert!(!layout.open.is_empty() && layout.ids.length >= 9, "{}", entry.name);
        // An id of the form that the layout says, another one for each call and each seed.
        let ids = |seed| {
            let text = super::wire::answer(
                entry.name,
                "",
                &vec![super::generate::call(&mut super::generate::Chance(1)); 2],
                super::wire::Style::Spaced,
            );
            spec.parse(&text, &super::generate::tools(), seed)
                .calls
                .into_iter()
                .map(|call| call.id)
                .collect::<Vec<_>>()
        };
        let (one, two) = (ids(1), ids(2));
        assert_eq!(one, ids(1), "{}", entry.name);
        for id in one.iter().chain(&two) {
            let digits = id.strip_prefix(layout.ids.prefix).unwrap();
            assert!(
                digits.len() == layout.ids.length && digits.chars().all(|c| c.is_ascii_alphanumeric()),
                "{id}"
            );
            assert_eq!(one.iter().chain(&two).filter(|other| *other == id).count(), 1, "{id}");
        }
    }
    for name in ["", "Hermes", "qwen", "hermes "] {
        match name.parse::<ToolFormatSpec>() {
            Err(ToolError::UnknownFormat { name: found, known }) => {
                assert_eq!(found, name);
                assert_eq!(
                    known,
                    "hermes, hermes-bare, qwen3-coder, llama3, mistral, mistral-list, gemma3, gemma4"
                );
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// Lines of the kind that templates hold.
#[test]
fn templates_tell_their_format_or_nothing() {
    let check = |source: &str, expected: Option<&str>| {
        let found = ToolFormatSpec::of_template(source).map(|spec| spec.to_string());
        assert_eq!(found.as_deref(), expected, "{source}");
    };
    check(
        r#"{{- "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>" }}"#,
        Some("hermes"),
    );
    check(r#"{{ '<tool_call>\n{"name": "' + name + '", "arguments": ' }}"#, Some("hermes"));
    check(
        r#"{{- '<tool_call>\n<function=' + tool_call.name + '>\n<parameter=' + k + '>' }} {"name": 1, "arguments": 2}"#,
        Some("qwen3-coder"),
    );
    check(
        r#"<|start_header_id|> {{- 'Respond in the format {"name": function name, "parameters": dictionary}' }}"#,
        Some("llama3"),
    );
    check(r#"{{ "[TOOL_CALLS]" + name + "[ARGS]" + arguments }}"#, Some("mistral"));
    check(r#"{{ "[TOOL_CALLS] [" }}"#, Some("mistral-list"));
    check(r#"{{ '<|tool_call>call:' + name + '{' }}<|\"|>"#, Some("gemma4"));
    check("<start_of_turn>model\n```tool_code\n", Some("gemma3"));
    // A form of another family, none, and two at once.
    check(r#"<tool_call>{{ name }}<arg_key>{{ k }}</arg_key> "arguments": "#, None);
    check("{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}", None);
    check("<start_of_turn>{{ m.role }}", None);
    check(r#"[TOOL_CALLS][ARGS] <tool_call> "arguments": "#, None);
}
