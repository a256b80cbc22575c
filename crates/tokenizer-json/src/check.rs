//! Which contents of a tokenizer.json are accepted.
//!
//! The crate `tokenizers` trusts its files: some contents make it panic or split characters, and others make
//! it take excessive time or memory. These are refused here, before it sees them.

use serde_json::{Map, Value};

use crate::error::{kind, unexpected};
use crate::{Error, Result, charsmap};

/// How many unused ids are allowed, in addition to the number of tokens.
const SPARE_IDS: u64 = 1 << 16;
/// The longest prefix or suffix of words, in bytes.
const AFFIX_BYTES: usize = 64;
/// The longest word in characters that WordPiece looks up; its time is quadratic.
const WORD_LETTERS: u64 = 1000;
/// The most by which replacements may lengthen a text.
const GROWTH: usize = 1024;

/// Checks the normalizer and the pre-tokenizer.
pub(crate) fn rules(normalizer: &Value, pre_tokenizer: &Value) -> Result<()> {
    let mut growth = 1usize;
    let mut rules = flatten(normalizer, "normalizers");
    rules.extend(flatten(pre_tokenizer, "pretokenizers"));
    for rule in rules {
        match rule["type"].as_str() {
            Some("Precompiled") => charsmap::check(&rule["precompiled_charsmap"])?,
            Some("Replace") => {
                let content = rule["content"].as_str().unwrap_or_default().len();
                // An expression may match the empty string, before every character and after the last.
                let one = match rule["pattern"]["String"].as_str() {
                    Some(text) if !text.is_empty() => content.div_ceil(text.len()).max(1),
                    _ => 2 * content + 1,
                };
                growth = growth.saturating_mul(one);
            }
            Some("Prepend") => {
                growth = growth.saturating_mul(rule["prepend"].as_str().unwrap_or_default().len() + 1);
            }
            // A byte may become two.
            Some("ByteLevel") => growth = growth.saturating_mul(2),
            Some("FixedLength") if rule["length"] == 0 => {
                return Err(unexpected("pre_tokenizer.length", "0", "at least 1"));
            }
            _ => {}
        }
    }
    if growth > GROWTH {
        return Err(unexpected(
            "normalizer",
            format!("rules that make a text {growth} times as long"),
            "1024 times at most",
        ));
    }
    Ok(())
}

/// A rule or, if it is a sequence, the rules of that sequence.
pub(crate) fn flatten<'a>(part: &'a Value, list: &str) -> Vec<&'a Value> {
    match part[list].as_array() {
        Some(rules) => rules.iter().flat_map(|rule| flatten(rule, list)).collect(),
        None if part.is_null() => Vec::new(),
        None => vec![part],
    }
}

/// Checks the model, whose type is `name`.
pub(crate) fn model(name: &str, model: &Map<String, Value>) -> Result<()> {
    for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
        let found = model.get(affix).and_then(Value::as_str).unwrap_or_default().len();
        if found > AFFIX_BYTES {
            return Err(unexpected("an affix of words", format!("{found} bytes"), "64 bytes at most"));
        }
    }
    if let Some(letters) = model.get("max_input_chars_per_word").and_then(Value::as_u64)
        && letters > WORD_LETTERS
    {
        return Err(unexpected("model.max_input_chars_per_word", letters.to_string(), "1000 at most"));
    }
    match (name, model.get("vocab")) {
        ("Unigram", Some(Value::Array(tokens))) if !tokens.is_empty() => Ok(()),
        ("Unigram", found) => {
            Err(unexpected("model.vocab", kind(found.unwrap_or(&Value::Null)), "a list of tokens"))
        }
        (_, Some(Value::Object(vocab))) => {
            ids(vocab)?;
            if name == "BPE" { merges(model, vocab) } else { Ok(()) }
        }
        (_, found) => Err(unexpected("model.vocab", kind(found.unwrap_or(&Value::Null)), "an object")),
    }
}

/// Ids may have gaps, but not such large ones that a table by id becomes much larger than the file.
fn ids(vocab: &Map<String, Value>) -> Result<()> {
    let limit = (2 * vocab.len() as u64 + SPARE_IDS).min(i32::MAX as u64);
    match vocab.values().find(|id| id.as_u64().is_none_or(|id| id >= limit)) {
        Some(id) => {
            Err(unexpected("model.vocab", format!("the id {id}"), "whole numbers that leave few gaps"))
        }
        None => Ok(()),
    }
}

/// Each merge consists of two tokens that form a third. If there is a prefix for the inside of words, the
/// second token has it.
fn merges(model: &Map<String, Value>, vocab: &Map<String, Value>) -> Result<()> {
    let merges = match model.get("merges") {
        Some(Value::Array(merges)) => merges,
        found => return Err(unexpected("model.merges", kind(found.unwrap_or(&Value::Null)), "a list")),
    };
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or_default();
    for (index, merge) in merges.iter().enumerate() {
        let invalid = |reason| Error::InvalidMerge { index, merge: merge.to_string(), reason };
        if merge.as_str().is_some_and(|text| text.starts_with("#version")) {
            continue;
        }
        let pair = match merge {
            Value::String(text) => text.split_once(' ').filter(|(_, right)| !right.contains(' ')),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
            _ => None,
        };
        let (left, right) = pair.ok_or_else(|| invalid("it does not name two tokens"))?;
        let inside = right.strip_prefix(prefix).ok_or_else(|| invalid("the second part lacks the prefix"))?;
        if !(vocab.contains_key(left) && vocab.contains_key(right)) {
            return Err(invalid("a part is not a token"));
        }
        if !vocab.contains_key(&format!("{left}{inside}")) {
            return Err(invalid("the parts together are not a token"));
        }
    }
    Ok(())
}
