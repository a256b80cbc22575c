//! The tokens that the post-processor of a tokenizer.json puts around a text.

use breakers_core::TokenId;
use serde_json::Value;

use crate::Result;
use crate::check::flatten;
use crate::error::{kind, unexpected};

/// The most tokens around a text; models have two or three.
const MOST: usize = 1024;

/// The tokens before and after every text.
#[derive(Debug, Default)]
pub(crate) struct Template {
    pub(crate) prefix: Vec<TokenId>,
    pub(crate) suffix: Vec<TokenId>,
}

impl Template {
    /// Reads the post-processor; the ids are below `vocab_size`.
    pub(crate) fn read(processor: &Value, vocab_size: usize) -> Result<Self> {
        let mut template = None;
        for rule in flatten(processor, "processors") {
            let found = match rule["type"].as_str().unwrap_or_else(|| kind(rule)) {
                // It changes only the offsets of tokens.
                "ByteLevel" => continue,
                "BertProcessing" | "RobertaProcessing" => {
                    Self { prefix: vec![id(&rule["cls"][1])?], suffix: vec![id(&rule["sep"][1])?] }
                }
                "TemplateProcessing" => Self::read_pieces(rule)?,
                other => {
                    return Err(unexpected("post_processor", other, "one that puts tokens around a text"));
                }
            };
            if template.replace(found).is_some() {
                return Err(unexpected("post_processor", "several templates", "one"));
            }
        }
        let template = template.unwrap_or_default();
        match template.prefix.iter().chain(&template.suffix).find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(breakers_tokenizer::Error::SpecialTokenOutOfRange {
                key: "post_processor".to_owned(),
                found: id.into(),
                vocab_size,
            }
            .into()),
            None => Ok(template),
        }
    }

    fn read_pieces(rule: &Value) -> Result<Self> {
        const PIECES: &str = "the text A once and known special tokens around it, 1024 at most";
        let pieces = rule["single"].as_array().map_or(&[][..], Vec::as_slice);
        let (mut ids, mut text_at) = (Vec::new(), None);
        for piece in pieces {
            if piece["Sequence"]["id"] == "A" {
                if text_at.replace(ids.len()).is_some() {
                    return Err(unexpected("post_processor.single", "the text twice", PIECES));
                }
                continue;
            }
            let tokens =
                piece["SpecialToken"]["id"].as_str().and_then(|name| rule["special_tokens"].get(name));
            let Some(tokens) = tokens.and_then(|tokens| tokens["ids"].as_array()) else {
                return Err(unexpected("post_processor.single", "a piece that is neither", PIECES));
            };
            if ids.len() + tokens.len() > MOST {
                return Err(unexpected("post_processor.single", "more special tokens", PIECES));
            }
            for token in tokens {
                ids.push(id(token)?);
            }
        }
        let at = text_at.ok_or_else(|| unexpected("post_processor.single", "no text", PIECES))?;
        let suffix = ids.split_off(at);
        Ok(Self { prefix: ids, suffix })
    }
}

fn id(value: &Value) -> Result<TokenId> {
    let id = value.as_u64().and_then(|id| TokenId::try_from(id).ok());
    id.ok_or_else(|| unexpected("post_processor", value.to_string(), "the id of a token"))
}
