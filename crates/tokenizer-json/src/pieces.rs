//! Turning single tokens into text, by the decoder of a tokenizer.json.

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use breakers_tokenizer::alphabet;

use crate::Result;
use crate::check::flatten;
use crate::error::{kind, unexpected};

/// How the text of a token is decoded.
#[derive(Debug)]
pub(crate) struct Decoder {
    rules: Vec<Rule>,
    /// Decoding removes a space at the beginning of a text, because encoding added it.
    pub(crate) strips_first_space: bool,
}

#[derive(Debug)]
enum Rule {
    /// Each letter is a byte.
    ByteLevel,
    /// `<0x0A>` is a byte.
    ByteFallback,
    Replace {
        from: String,
        to: String,
    },
    /// There is a space before the token, unless the token begins with this.
    Words {
        inside: Option<String>,
    },
}

impl Decoder {
    /// Reads the decoder; without one, tokens are words.
    ///
    /// # Errors
    /// [`Error::TokenizerJson`](crate::Error::TokenizerJson) for those that need more than one token at a
    /// time.
    pub(crate) fn read(decoder: &Value) -> Result<Self> {
        let mut out = Self { rules: Vec::new(), strips_first_space: false };
        if decoder.is_null() {
            out.rules.push(Rule::Words { inside: None });
            out.strips_first_space = true;
        }
        let mut is_fused = false;
        for rule in flatten(decoder, "decoders") {
            let text = |field: &str| rule[field].as_str().map(str::to_owned);
            let name = rule["type"].as_str().unwrap_or_else(|| kind(rule));
            match name {
                "ByteLevel" => out.rules.push(Rule::ByteLevel),
                "ByteFallback" => out.rules.push(Rule::ByteFallback),
                "Fuse" => is_fused = true,
                "WordPiece" => {
                    out.rules.push(Rule::Words { inside: text("prefix") });
                    out.strips_first_space = true;
                }
                "Metaspace" => {
                    let from = text("replacement").unwrap_or_else(|| "▁".to_owned());
                    out.rules.push(Rule::Replace { from, to: " ".to_owned() });
                    let never = rule["prepend_scheme"] == "never" || rule["add_prefix_space"] == false;
                    out.strips_first_space = !never;
                }
                "Replace" => match (rule["pattern"]["String"].as_str(), text("content")) {
                    (Some(from), Some(to)) if !from.is_empty() => {
                        out.rules.push(Rule::Replace { from: from.to_owned(), to });
                    }
                    _ => return Err(unsupported("a Replace by an expression")),
                },
                "Strip" if is_fused && rule["content"] == " " && rule["start"] == 1 && rule["stop"] == 0 => {
                    out.strips_first_space = true;
                }
                _ => return Err(unsupported(name)),
            }
        }
        Ok(out)
    }

    /// Appends what a token adds to a text.
    pub(crate) fn write(&self, token: &str, out: &mut Vec<u8>) {
        let mut text = token.to_owned();
        for rule in &self.rules {
            match rule {
                Rule::ByteLevel => {
                    // Text outside of the alphabet is kept unchanged.
                    if alphabet::decode(&text, out) {
                        return;
                    }
                }
                Rule::ByteFallback => {
                    if let Some(byte) = alphabet::spelled_byte(&text) {
                        return out.push(byte);
                    }
                }
                Rule::Replace { from, to } => text = text.replace(from, to),
                Rule::Words { inside } => {
                    match inside.as_ref().and_then(|inside| text.strip_prefix(inside)) {
                        Some(rest) => text = rest.to_owned(),
                        None => text.insert(0, ' '),
                    }
                }
            }
        }
        out.extend_from_slice(text.as_bytes());
    }
}

fn unsupported(found: &str) -> crate::Error {
    unexpected(
        "decoder",
        found,
        "ByteLevel, WordPiece, Metaspace, or a sequence of Replace, ByteFallback, Fuse and Strip",
    )
}

/// Whether decoding restores any text exactly, provided that the vocabulary has all bytes.
pub(crate) fn is_byte_level(
    normalizer: &Value,
    pre_tokenizer: &Value,
    decoder: &Value,
    model: &Map<String, Value>,
    added: &[AddedToken],
) -> bool {
    let no_affix = |name: &str| model.get(name).is_none_or(|affix| affix.is_null() || affix == "");
    let rules = flatten(pre_tokenizer, "pretokenizers");
    let keeps_text = |rule: &&Value| match rule["type"].as_str() {
        Some("ByteLevel") => rule["add_prefix_space"] == false,
        Some("Split") => rule["behavior"] != "Removed",
        Some("Digits") => true,
        _ => false,
    };
    normalizer.is_null()
        && decoder["type"] == "ByteLevel"
        && rules.iter().all(keeps_text)
        && rules.last().is_some_and(|rule| rule["type"] == "ByteLevel")
        && no_affix("continuing_subword_prefix")
        && no_affix("end_of_word_suffix")
        && added.iter().all(|token| !token.lstrip && !token.rstrip)
}
