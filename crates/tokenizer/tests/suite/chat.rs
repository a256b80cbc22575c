//! Prompts compared with Jinja2's, on cases written by `data/make_chat_cases.py`.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use breakers_core::{Json, Message, Tool, ToolCall};
use breakers_gguf::Metadata;
use breakers_tokenizer::{ChatTemplate, Error};
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Cases {
    templates: BTreeMap<String, Template>,
    /// JSON with the keys in the order in which the model sees them.
    tools: String,
    /// Each field of a message as JSON.
    chats: Vec<Vec<BTreeMap<String, String>>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Template {
    source: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    chat: usize,
    tools: bool,
    add_generation_prompt: bool,
    text: Option<String>,
    refused: Option<String>,
    #[serde(default)]
    fails: bool,
}

fn message(fields: &BTreeMap<String, String>) -> Message {
    let text = |name: &str| serde_json::from_str::<String>(&fields[name]).unwrap();
    let rest = fields.iter().filter(|(name, _)| !matches!(name.as_str(), "role" | "content"));
    rest.fold(Message::new(text("role"), text("content")), |message, (name, value)| {
        message.with_field(name, Json::parse(value).unwrap())
    })
}

#[test]
fn prompts_equal_jinja2() {
    let Cases { templates, tools, chats, cases } =
        serde_json::from_str(include_str!("../data/chat_cases.json")).unwrap();
    let tools = Json::parse(&tools).unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_736_000_000);
    let templates: BTreeMap<String, ChatTemplate> = templates
        .into_iter()
        .map(|(name, t)| {
            let template = ChatTemplate::new(t.source).unwrap();
            (name, template.with_tokens(t.bos_token, t.eos_token).with_time(now))
        })
        .collect();
    for case in cases {
        let name = format!("{} on chat {}, tools {}", case.template, case.chat, case.tools);
        let messages: Vec<_> = chats[case.chat].iter().map(message).collect();
        let tools = case.tools.then_some(&tools);
        let found = templates[&case.template].render(&messages, tools, case.add_generation_prompt);
        match (found, case.text, case.refused) {
            (Ok(found), Some(expected), None) => assert_eq!(found, expected, "{name}"),
            (Err(Error::ChatRefused { message }), None, Some(expected)) => {
                assert_eq!(message, expected, "{name}");
            }
            (Err(Error::ChatTemplate { .. }), None, None) if case.fails => {}
            (found, expected, refused) => panic!("{name}: {found:?}, expected {expected:?} or {refused:?}"),
        }
    }
}

/// Fragments of templates with Jinja2's answers; `None` is an error.
#[derive(Deserialize)]
struct Fragments {
    /// JSON, the keys in their order.
    variables: String,
    cases: Vec<(String, Option<String>)>,
}

/// Written by `data/make_jinja_cases.py`.
#[test]
fn fragments_equal_jinja2() {
    let Fragments { variables, cases } =
        serde_json::from_str(include_str!("../data/jinja_cases.json")).unwrap();
    assert!(cases.len() >= 1000);
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_736_000_000);
    let variables = Json::parse(&variables).unwrap();
    let mut wrong = Vec::new();
    for (source, expected) in cases {
        let found = ChatTemplate::new(source.clone())
            .and_then(|template| template.with_time(now).render_with(&variables));
        if found.as_ref().ok() != expected.as_ref() {
            wrong.push(format!("{source:?}: {found:?}, expected {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn deep_templates_are_typed_errors() {
    for (head, part, tail) in [
        ("{{ ", "(", "1 }}"),
        ("{{ ", "-", "1 }}"),
        ("{{ ", "not ", "1 }}"),
        ("{{ 1", " + 1", " }}"),
        ("{{ 1", "|abs", " }}"),
        ("{{ a", ".b", " }}"),
        ("{{ 1", " if 1 else 1", " }}"),
        ("", "{% if 1 %}", ""),
        ("{{ ", "[", "1 }}"),
    ] {
        let source = format!("{head}{}{tail}", part.repeat(10_000));
        let failed = ChatTemplate::new(source);
        assert!(matches!(failed, Err(Error::ChatTemplate { .. })), "{part}");
    }
}

#[test]
fn a_base_model_has_no_template() {
    assert!(ChatTemplate::from_metadata(&Metadata::new()).unwrap().is_none());
    let mut metadata = Metadata::new();
    metadata.insert("tokenizer.chat_template", "").unwrap();
    assert!(ChatTemplate::from_metadata(&metadata).unwrap().is_none());
}

#[test]
fn a_template_that_ignores_the_conversation_says_so() {
    for (source, ignores) in [
        ("Hello", true),
        ("{{ message }}", true),
        ("{{ 'messages' }}", true),
        ("{% for m in messages %}{% endfor %}", false),
        ("{% macro f() %}{{ messages|length }}{% endmacro %}", false),
    ] {
        assert_eq!(ChatTemplate::new(source).unwrap().ignores_messages(), ignores, "{source}");
    }
}

#[test]
fn tokens_come_from_the_vocabulary() {
    let mut metadata = Metadata::new();
    metadata.insert("tokenizer.chat_template", "{{ bos_token }}|{{ eos_token }}").unwrap();
    metadata.insert("tokenizer.ggml.tokens", vec!["<s>", "</s>"]).unwrap();
    metadata.insert("tokenizer.ggml.bos_token_id", 0u32).unwrap();
    metadata.insert("tokenizer.ggml.eos_token_id", 7u32).unwrap();
    let template = ChatTemplate::from_metadata(&metadata).unwrap().unwrap();
    assert_eq!(template.render(&[], None, false).unwrap(), "<s>|");
}

#[test]
fn calls_and_answers_of_functions_have_the_form_of_transformers() {
    let template = ChatTemplate::new("{{ tools | tojson }}{{ messages | tojson }}").unwrap();
    let call = ToolCall::new("c1", "weather", r#"{"zone": 1, "city": "Oslo"}"#);
    let messages = [
        Message::assistant("").with_tool_call(call).with_tool_call(ToolCall::new("c2", "f", "{broken")),
        Message::tool("c1", "rain"),
    ];
    let tool = Tool::new("weather", Json::parse(r#"{"type": "object", "a": 1}"#).unwrap());
    let prompt = breakers_core::ChatFormat::render(&template, &messages, &[tool.with_description("d")]);
    let expected = concat!(
        r#"[{"type": "function", "function": {"name": "weather", "description": "d", "#,
        r#""parameters": {"type": "object", "a": 1}}}]"#,
        r#"[{"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": "#,
        r#"{"name": "weather", "arguments": {"zone": 1, "city": "Oslo"}}}, {"id": "c2", "type": "function", "#,
        r#""function": {"name": "f", "arguments": "{broken"}}]}, "#,
        r#"{"role": "tool", "content": "rain", "tool_call_id": "c1"}]"#,
    );
    assert_eq!(prompt.unwrap(), expected);
}

#[test]
fn broken_templates_are_typed_errors() {
    for source in [
        "{% for m in messages %}",
        "{{ 1 / 0 }}",
        "{{ messages.nothing.more }}",
        "{{ messages | tojson(indent=1000000) }}",
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ strftime_now(1) }}",
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ 'x'.ljust(10 ** 12) }}",
        "{{ '%999999999999d' % 1 }}",
        "{{ 'a' * 10 ** 15 }}",
        "{{ [1] | batch(10 ** 12, 1) | list }}",
        "{{ 2 ** 119 * 4 }}",
        "{% set ns = namespace(x='aa') %}{% for i in range(1000) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
        "{% include 'other' %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    ] {
        let rendered = ChatTemplate::new(source).and_then(|template| template.render(&[], None, false));
        assert!(matches!(rendered, Err(Error::ChatTemplate { .. })), "{source}: {rendered:?}");
    }
}

proptest! {
    #[test]
    fn any_source_gives_a_text_or_an_error(source in "(\\{%-? ?|-?%\\}|\\{\\{|\\}\\}|generation|if|for|a|in| |\\n|[^a]|'){0,30}") {
        if let Ok(template) = ChatTemplate::new(source) {
            let _ = template.render(&[Message::new("user", "x")], None, true);
        }
    }
}
