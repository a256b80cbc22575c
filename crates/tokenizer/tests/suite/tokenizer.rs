//! Token ids and texts compared with llama.cpp's, on cases written by `data/make_tokenizer_cases.py`.
//!
//! The vocabularies are those of real models, which [`model_path`] finds.
//! `BREAKERS_TOKENIZER_CASES` names another file of cases, for comparisons on more text.

use std::collections::BTreeMap;

use crate::models::model_path;
use breakers_gguf::File;
use breakers_tokenizer::{DecodeOptions, EncodeOptions, Tokenizer};
use serde::Deserialize;

#[derive(Deserialize)]
struct Cases {
    texts: Vec<String>,
    models: BTreeMap<String, ModelCases>,
}

#[derive(Deserialize)]
struct ModelCases {
    end_tokens: Vec<u32>,
    cases: Vec<Case>,
}

/// llama.cpp's results for one text.
#[derive(Deserialize)]
struct Case {
    /// Nothing added, nothing parsed.
    ids: Vec<u32>,
    /// With special tokens added, if that differs.
    added: Option<Vec<u32>>,
    /// With special tokens parsed, if that differs.
    parsed: Option<Vec<u32>>,
    /// The text of the parsed ids, if it is not the text itself.
    text: Option<String>,
    /// The same with special tokens shown.
    text_with_special: Option<String>,
}

fn check(name: &str) {
    let Some(path) = model_path(name) else { return };
    let file = File::open(path).unwrap();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    let cases = std::env::var_os("BREAKERS_TOKENIZER_CASES").map_or_else(
        || include_str!("../data/tokenizer_cases.json").to_owned(),
        |path| std::fs::read_to_string(path).unwrap(),
    );
    let Cases { texts, mut models } = serde_json::from_str(&cases).unwrap();
    let ModelCases { end_tokens, cases } = models.remove(name).unwrap();
    assert_eq!(tokenizer.end_tokens(), end_tokens);
    assert_eq!(texts.len(), cases.len());
    for (text, case) in texts.iter().zip(cases) {
        let encode = |add_special, parse_special| {
            tokenizer.encode(text, EncodeOptions { add_special, parse_special }).unwrap()
        };
        assert_eq!(encode(false, false), case.ids, "{text:?}");
        assert_eq!(encode(true, false), case.added.unwrap_or_else(|| case.ids.clone()), "{text:?}, added");
        let parsed = encode(false, true);
        assert_eq!(parsed, case.parsed.unwrap_or_else(|| case.ids.clone()), "{text:?}, parsed");
        for (skip_special, expected) in [(true, case.text), (false, case.text_with_special)] {
            let options = DecodeOptions { skip_special, ..DecodeOptions::default() };
            let expected = expected.as_ref().unwrap_or(text);
            assert_eq!(tokenizer.decode(&parsed, options).unwrap(), *expected, "{text:?}, decoded");
            let mut stream = tokenizer.stream(options);
            let mut streamed = String::new();
            for &token in &parsed {
                streamed.push_str(stream.push(token).unwrap());
            }
            streamed.push_str(&stream.finish());
            assert_eq!(streamed, *expected, "{text:?}, streamed");
        }
    }
}

#[test]
fn smollm2_equals_llama_cpp() {
    check("smollm2-135m");
}

#[test]
fn qwen2_equals_llama_cpp() {
    check("qwen2.5-coder-0.5b");
}

#[test]
fn gemma3_equals_llama_cpp() {
    check("gemma3-270m");
}

#[test]
fn only_complete_vocabularies_are_lossless() {
    for (name, expected) in [("smollm2-135m", false), ("qwen2.5-coder-0.5b", true), ("gemma3-270m", false)] {
        let Some(path) = model_path(name) else { continue };
        let file = File::open(path).unwrap();
        assert_eq!(Tokenizer::from_gguf(&file).unwrap().is_lossless(), expected, "{name}");
    }
}
