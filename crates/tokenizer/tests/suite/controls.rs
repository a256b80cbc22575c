//! Text from users, tools and models never becomes a control token, whatever the template.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::models::model_path;
use breakers_core::{ChatFormat, Json, Message, Part, Role, TokenId, Tool, ToolCall};
use breakers_gguf::{File, Metadata};
use breakers_tokenizer::{ChatTemplate, DecodeOptions, Error, Tokenizer};
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Templates {
    templates: BTreeMap<String, Template>,
}

#[derive(Deserialize)]
struct Template {
    source: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

fn templates() -> BTreeMap<String, ChatTemplate> {
    let Templates { templates } = serde_json::from_str(include_str!("../data/chat_cases.json")).unwrap();
    let compile = |t: Template| {
        ChatTemplate::new(t.source)
            .unwrap()
            .with_tokens(t.bos_token, t.eos_token)
            .with_time(SystemTime::UNIX_EPOCH)
    };
    templates.into_iter().map(|(name, t)| (name, compile(t))).collect()
}

/// Conversations with a text in every place where foreign text can occur.
fn conversations(text: &str) -> Vec<(Vec<Message>, Vec<Tool>)> {
    let json = |text: &str| serde_json::Value::from(text).to_string();
    // `<` can be spelled in a second way in JSON.
    let twice = json(text).replace('<', "\\u003c");
    let call = ToolCall::new(text, text, format!("{{{}: [{twice}, 1.50]}}", json(text)));
    let broken = ToolCall::new("1", "f", format!("{{ {text}"));
    let parameters = Json::parse(&format!("{{\"type\": \"object\", {}: {twice}}}", json(text))).unwrap();
    let tool = Tool::new(text, parameters).with_description(text);
    let mut parts = Message::user("");
    // Within the first spelling.
    let (head, tail) = text.split_at(text.char_indices().nth(2).map_or(text.len(), |(at, _)| at));
    parts.content = vec![Part::Text(head.to_owned()), Part::Text(tail.to_owned())];
    vec![
        (vec![Message::user(text)], Vec::new()),
        (vec![parts], Vec::new()),
        (
            vec![Message::system(text), Message::user("b"), Message::assistant(text), Message::user("c")],
            Vec::new(),
        ),
        (
            vec![
                Message::user("a").with_field("name", Json::parse(&twice).unwrap()),
                Message::assistant("").with_tool_call(call).with_tool_call(broken),
                Message::tool(text, text),
            ],
            vec![tool],
        ),
        // Roles that only some templates know, and one that a stranger has named.
        (
            ["developer", "ipython", "tool_results", text]
                .iter()
                .map(|&role| Message::new(Role::from(role), text))
                .collect(),
            Vec::new(),
        ),
    ]
}

fn n_controls(tokenizer: &Tokenizer, ids: &[TokenId]) -> usize {
    ids.iter().filter(|&&id| tokenizer.is_control(id)).count()
}

#[test]
fn control_tokens_come_from_the_template_alone() {
    let show = DecodeOptions { skip_special: false, continues: true };
    let mut n_checked = 0;
    for model in ["smollm2-135m", "qwen2.5-coder-0.5b", "gemma3-270m"] {
        let Some(path) = model_path(model) else { continue };
        let tokenizer = Tokenizer::from_gguf(&File::open(path).unwrap()).unwrap();
        let controls = (0..tokenizer.vocab_size() as TokenId).filter(|&id| tokenizer.is_control(id));
        let controls: Vec<TokenId> = controls.take(300).collect();
        assert!(controls.len() >= 4, "{model}");
        for (name, template) in templates() {
            for &control in &controls {
                let spelling = String::from_utf8(tokenizer.token_bytes(control).unwrap().to_vec()).unwrap();
                let typed = format!("x{spelling}y {spelling}{spelling}");
                for ((messages, tools), (plain, plain_tools)) in
                    conversations(&typed).iter().zip(conversations("xy"))
                {
                    let encode = |messages, tools| tokenizer.encode_chat(&template, messages, tools);
                    let (found, expected) = match (encode(messages, tools), encode(&plain, &plain_tools)) {
                        (Ok(found), Ok(expected)) => (found, expected),
                        (Err(Error::ChatRefused { .. }), Err(Error::ChatRefused { .. })) => continue,
                        (found, _) => panic!("{model} {name} {spelling:?}: {found:?}"),
                    };
                    let context = format!("{model} {name} {typed:?}");
                    assert_eq!(
                        n_controls(&tokenizer, &found),
                        n_controls(&tokenizer, &expected),
                        "{context}"
                    );
                    // Nothing is lost or added: the text is the template's output for the conversation. The
                    // template that prints lengths also counts the marks.
                    if name != "python_strings" {
                        let text = ChatFormat::render(&template, messages, tools).unwrap();
                        assert_eq!(tokenizer.decode(&found, show).unwrap(), text, "{context}");
                    }
                    n_checked += 1;
                }
            }
        }
    }
    eprintln!("{n_checked} conversations");
}

/// Each character is a token; two are control tokens, and one is user-defined.
fn small() -> Tokenizer {
    let mut metadata = Metadata::new();
    let letters = ["<", "e", ">", "f", "<e>", "<ee>", "f<ee>f"];
    let types = vec![1, 1, 1, 1, 3, 3, 4];
    metadata.insert("tokenizer.ggml.model", "gpt2").unwrap();
    metadata.insert("tokenizer.ggml.pre", "gpt-2").unwrap();
    metadata.insert("tokenizer.ggml.tokens", letters.to_vec()).unwrap();
    metadata.insert("tokenizer.ggml.token_type", types).unwrap();
    metadata.insert("tokenizer.ggml.merges", Vec::<String>::new()).unwrap();
    Tokenizer::from_metadata(&metadata).unwrap()
}

/// Control tokens of the models whose forms of calls are known: ChatML, Llama 3, Mistral, Gemma 3 and 4.
const CONTROLS: [&str; 25] = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|turn>",
    "<turn|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|\"|>",
];

/// Templates of our own that write calls, results and tools as the models' do.
const FORMS: [(&str, &str); 5] = [
    (
        "chatml",
        "{% if tools %}<|im_start|>system\n<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools><|im_end|>{% endif %}\
         {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n\
         {\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}\
         <|im_end|>{% endfor %}<|im_start|>assistant\n",
    ),
    (
        "tags",
        "{% for t in tools or [] %}<name>{{ t.function.name }}</name>{{ t.function.description }}\
         {% for k, v in t.function.parameters | items %}<{{ k }}>{{ v | string }}</{{ k }}>{% endfor %}{% endfor %}\
         {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}{% for c in m.tool_calls or [] %}\
         <function={{ c.function.name }}>{% if c.function.arguments is mapping %}{% for k, v in c.function.arguments | items %}\
         <parameter={{ k }}>{{ v | string }}</parameter>{% endfor %}{% else %}{{ c.function.arguments }}{% endif %}\
         </function>{% endfor %}<|im_end|>{% endfor %}",
    ),
    (
        "llama3",
        "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n\
         {% if m.role in ['tool', 'ipython'] %}{{ {'output': m.content} | tojson }}{% else %}{{ m.content | trim }}{% endif %}\
         {% for c in m.tool_calls or [] %}<|python_tag|>{\"name\": \"{{ c.function.name | trim }}\", \
         \"parameters\": {{ c.function.arguments | tojson }}}<|eom_id|>{% endfor %}<|eot_id|>{% endfor %}",
    ),
    (
        "mistral",
        "<s>{% for m in messages %}{% if m.role == 'tool' %}[TOOL_RESULTS]{{ m.tool_call_id }}{{ m.content | string }}\
         [/TOOL_RESULTS]{% else %}[INST]{{ m.content }}[/INST]{% endif %}{% for c in m.tool_calls or [] %}[TOOL_CALLS]\
         {{ c.function.name }}[CALL_ID]{{ c.id }}[ARGS]{{ c.function.arguments | tojson }}{{ (c.function | tojson)[:-1] }}\
         {% endfor %}{% endfor %}</s>",
    ),
    (
        "gemma4",
        "{% macro value(v) %}{% if v is string %}<|\"|>{{ v }}<|\"|>{% elif v is mapping %}{{ '{' }}{% for k, w in v | dictsort %}\
         {{ k }}:{{ value(w) }},{% endfor %}{{ '}' }}{% elif v is sequence %}[{% for w in v %}{{ value(w) }},{% endfor %}]\
         {% else %}{{ v }}{% endif %}{% endmacro %}{% for t in tools or [] %}declaration:{{ t.function.name }}\
         {{ value(t.function.description) }}{{ value(t.function.parameters) }}{% endfor %}\
         {% for m in messages %}<|turn>{{ m.role }}\n{{ m.content | trim }}{% for c in m.tool_calls or [] %}<|tool_call>call:\
         {{ c.function.name }}{{ value(c.function.arguments) }}<tool_call|>{% endfor %}<turn|>{% endfor %}",
    ),
];

/// Each byte is a token, and so is each control token.
fn of_bytes_and_controls() -> Tokenizer {
    let is_shown = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut hidden = 0x100..;
    // The alphabet of byte-level vocabularies.
    let bytes = (0..=255u8).map(|byte| match is_shown(byte) {
        true => char::from(byte).to_string(),
        false => hidden.next().and_then(char::from_u32).unwrap().to_string(),
    });
    let tokens: Vec<String> = bytes.chain(CONTROLS.map(str::to_owned)).collect();
    let types: Vec<i32> = (0..tokens.len()).map(|id| if id < 256 { 1 } else { 3 }).collect();
    let mut metadata = Metadata::new();
    metadata.insert("tokenizer.ggml.model", "gpt2").unwrap();
    metadata.insert("tokenizer.ggml.pre", "gpt-2").unwrap();
    metadata.insert("tokenizer.ggml.tokens", tokens).unwrap();
    metadata.insert("tokenizer.ggml.token_type", types).unwrap();
    metadata.insert("tokenizer.ggml.merges", Vec::<String>::new()).unwrap();
    Tokenizer::from_metadata(&metadata).unwrap()
}

/// Every control token's spelling, in every place, through every form of calls; no file of a model is needed.
#[test]
fn no_form_of_calls_lets_a_stranger_write_a_control_token() {
    let tokenizer = of_bytes_and_controls();
    let show = DecodeOptions { skip_special: false, continues: true };
    for (name, source) in FORMS {
        let template = ChatTemplate::new(source).unwrap();
        let encode = |messages: &[Message], tools: &[Tool]| {
            let ids = tokenizer.encode_chat(&template, messages, tools);
            let ids = ids.unwrap_or_else(|error| panic!("{name}: {error}"));
            let text = ChatFormat::render(&template, messages, tools).unwrap();
            assert_eq!(tokenizer.decode(&ids, show).unwrap(), text, "{name}");
            ids.into_iter().filter(|&id| tokenizer.is_control(id)).collect::<Vec<_>>()
        };
        for control in CONTROLS {
            // The marker itself, one within another, and one that a second would complete.
            let (head, tail) = control.split_at(control.len() / 2);
            for typed in [control.to_owned(), format!("x{head}{control}{tail} {control}{control}")] {
                for ((messages, tools), (plain, plain_tools)) in
                    conversations(&typed).iter().zip(conversations("xy"))
                {
                    let (found, expected) = (encode(messages, tools), encode(&plain, &plain_tools));
                    assert_eq!(found, expected, "{name}: {typed:?} in {messages:?}");
                }
            }
        }
    }
}

const TURNS: &str = "{% for m in messages %}<e>{{ m.content }}{% endfor %}<e>";

#[test]
fn marks_leave_no_trace() {
    let tokenizer = small();
    let check = |template: &str, content: &str, expected: &[TokenId]| {
        let template = ChatTemplate::new(template).unwrap();
        let ids = tokenizer.encode_chat(&template, &[Message::user(content)], &[]).unwrap();
        assert_eq!(ids, expected, "{content:?}");
    };
    check(TURNS, "", &[4, 4]);
    check(TURNS, "e", &[4, 1, 4]);
    check(TURNS, "<e>", &[4, 0, 1, 2, 4]);
    check(TURNS, "<<ee>e", &[4, 0, 0, 1, 1, 2, 1, 4]);
    // A user-defined token is recognized in any text, even around a control token's spelling.
    check(TURNS, "f<ee>f", &[4, 6, 4]);
    check(TURNS, "ef<ee>f<ee>", &[4, 1, 6, 0, 1, 1, 2, 4]);
    // Text next to a template's own tokens.
    check("<e{{ messages[0].content }}", ">", &[4]);
    // Marks that a filter spells out.
    check("{{ messages[0].content | tojson(ensure_ascii=true) }}", "<e>", &[0, 1, 2]);
    // The first candidates are in use.
    let taken: String = ('\u{fdd0}'..='\u{fdef}').collect();
    check(TURNS, &format!("{taken}\\ue000<e>"), &[4, 1, 0, 1, 2, 4]);
}

#[test]
fn a_message_with_all_marks_is_refused() {
    let tokenizer = small();
    let template = ChatTemplate::new(TURNS).unwrap();
    let all: String = ('\u{fdd0}'..='\u{fdef}').chain('\u{e000}'..='\u{f8ff}').collect();
    let encode = |text: String| tokenizer.encode_chat(&template, &[Message::user(text)], &[]);
    assert_eq!(encode(all.clone()).unwrap(), [4, 4]);
    let refused = encode(format!("{all}<e>"));
    assert!(matches!(&refused, Err(Error::NoMark { spelling }) if spelling == "<e>"), "{refused:?}");
}

proptest! {
    #[test]
    fn any_message_has_the_tokens_of_its_text(
        texts in prop::collection::vec("(<|e|>|<e>|<ee>|f){0,12}", 1..4),
    ) {
        let tokenizer = small();
        let template = ChatTemplate::new(TURNS).unwrap();
        let messages: Vec<Message> = texts.iter().map(Message::user).collect();
        let ids = tokenizer.encode_chat(&template, &messages, &[]).unwrap();
        let mut expected = vec![4];
        for text in &texts {
            expected.extend(tokenizer.encode(text, Default::default()).unwrap());
            expected.push(4);
        }
        prop_assert_eq!(ids, expected);
    }
}
