//! Tokenizers from a tokenizer.json, the format of Hugging Face.
//!
//! Normalizer, pre-tokenizer, model and added tokens are those of the crate `tokenizers`, so that ids are Hugging
//! Face's. What stands around them is ours: what a file may ask for ([`check`]), the tokens around a text
//! ([`template`]), which tokens steer a model, and text out of tokens ([`pieces`]), because a stream needs it token by
//! token.
//!
//! # Deviations
//! - The settings `truncation` and `padding` of a file are ignored: texts are encoded whole.
//! - Tokenization at random (`dropout`), which is for training, is off.
//! - Decoding never tidies text up: WordPiece's `cleanup` is ignored, and of a text's leading spaces at most one is
//!   taken away.

mod charsmap;
mod check;
mod pieces;
mod template;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use breakers_core::{BoxError, TokenId};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokenizers::{
    AddedToken, AddedVocabulary, Model, ModelWrapper, NormalizerWrapper, OffsetType, PreTokenizer,
    PreTokenizerWrapper,
};

use self::template::Template;
use super::{
    Algorithm, Inner, Roles, Tokenizer,
    gguf::END_NAMES,
    special::{SpecialToken, SpecialTokens},
    vocab::{Attributes, Vocab},
};
use crate::{Error, Result};

/// Tokens that begin a text, where the file has no template that says so.
const BOS_NAMES: &[&str] = &["<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[CLS]"];
/// Tokens that fill up a batch, where the file has no settings for it.
const PADDING_NAMES: &[&str] = &["[PAD]", "<pad>", "<|pad|>"];

/// The parts of Hugging Face's pipeline that lead from text to ids.
#[derive(Debug)]
pub(super) struct JsonTokenizer {
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    model: ModelWrapper,
    /// Finds all added tokens in a text.
    parsed: AddedVocabulary,
    /// Finds those that are not special.
    plain: AddedVocabulary,
    pub(super) is_lossless: bool,
}

impl JsonTokenizer {
    pub(super) fn encode(&self, text: &str, parse_special: bool, out: &mut Vec<TokenId>) -> Result<()> {
        let added = if parse_special { &self.parsed } else { &self.plain };
        let tokenize = || -> Result<_, BoxError> {
            let mut split = added.extract_and_normalize(self.normalizer.as_ref(), text);
            if let Some(pre_tokenizer) = &self.pre_tokenizer {
                pre_tokenizer.pre_tokenize(&mut split)?;
            }
            split.tokenize(|word| self.model.tokenize(word.get()))?;
            split.into_encoding(None, 0, OffsetType::None)
        };
        let encoding = guarded(tokenize).flatten().map_err(|source| Error::Tokenize { source })?;
        out.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}

impl Tokenizer {
    /// The tokenizer of a tokenizer.json, given its bytes. WordPiece, byte-pair encoding, Unigram and word-level
    /// vocabularies are read; ids equal those of Hugging Face's `tokenizers` without truncation and padding.
    ///
    /// A tokenizer.json does not say which tokens begin and end a text. [`Tokenizer::bos`] and [`Tokenizer::eos`]
    /// are those of the template that it puts around a text, or else tokens with a usual name.
    ///
    /// # Errors
    /// [`Error::Json`] for what is not JSON, or not of the format; [`Error::TokenizerJson`] for what cannot be
    /// honored; [`Error::UnknownTokenizer`]; [`Error::InvalidMerge`]; [`Error::SpecialTokenOutOfRange`].
    ///
    /// # Example
    /// ```
    /// use breakers_tokenizer::{DecodeOptions, Tokenizer};
    ///
    /// # fn main() -> Result<(), breakers_tokenizer::Error> {
    /// let tokenizer = Tokenizer::from_tokenizer_json(
    ///     br###"{
    ///         "pre_tokenizer": { "type": "BertPreTokenizer" },
    ///         "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
    ///         "model": {
    ///             "type": "WordPiece", "unk_token": "?",
    ///             "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
    ///             "vocab": { "?": 0, "break": 1, "##er": 2, "##s": 3, "!": 4 }
    ///         }
    ///     }"###,
    /// )?;
    /// let ids = tokenizer.encode("breakers!", Default::default())?;
    /// assert_eq!(ids, [1, 2, 3, 4]);
    /// assert_eq!(tokenizer.decode(&ids, DecodeOptions::default())?, "breakers !");
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_tokenizer_json(json: &[u8]) -> Result<Self> {
        let file: Value =
            serde_json::from_slice(json).map_err(|source| Error::Json { what: "tokenizer.json", source })?;
        let Value::Object(file) = file else {
            return Err(unexpected("the file", kind(&file), "an object"));
        };
        guarded(|| load(file)).unwrap_or_else(|error| {
            Err(unexpected("one of the rules", error.to_string(), "rules that can be applied"))
        })
    }

    /// The tokenizer of a tokenizer.json on disk.
    ///
    /// # Errors
    /// [`Error::Io`], and those of [`Tokenizer::from_tokenizer_json`].
    pub fn from_tokenizer_json_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let json = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Self::from_tokenizer_json(&json)
    }
}

/// Runs code of the crate `tokenizers`; a panic there becomes an error.
///
/// Known causes are refused beforehand, but rules can be combined in more ways than can be foreseen: an expression that
/// matches nothing, followed by one that takes accents away, makes it lose count of its offsets. What a panic leaves
/// behind is safe to use, since only caches change while texts are tokenized.
fn guarded<T>(code: impl FnOnce() -> T) -> Result<T, BoxError> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|panic| {
        let reason = panic.downcast_ref::<String>().cloned();
        let reason = reason.or_else(|| panic.downcast_ref::<&str>().map(|reason| (*reason).to_owned()));
        format!("the tokenizer panicked: {}", reason.unwrap_or_default()).into()
    })
}

fn load(mut file: Map<String, Value>) -> Result<Tokenizer> {
    let mut take = |part: &str| file.remove(part).unwrap_or(Value::Null);
    let [version, model, normalizer, pre_tokenizer, post_processor, decoder, added, padding] = [
        "version",
        "model",
        "normalizer",
        "pre_tokenizer",
        "post_processor",
        "decoder",
        "added_tokens",
        "padding",
    ]
    .map(&mut take);
    if !(version.is_null() || version == "1.0") {
        return Err(unexpected("version", version.to_string(), "\"1.0\""));
    }
    check::rules(&normalizer, &pre_tokenizer)?;
    let added = read_added(added)?;
    let Value::Object(model) = model else {
        return Err(unexpected("model", kind(&model), "an object"));
    };
    let byte_level = pieces::is_byte_level(&normalizer, &pre_tokenizer, &decoder, &model, &added);
    let decoder = pieces::Decoder::read(&decoder)?;
    let (model, unknown) = read_model(model)?;
    let normalizer: Option<NormalizerWrapper> = read_part("normalizer of tokenizer.json", normalizer)?;
    let pre_tokenizer = read_part("pre-tokenizer of tokenizer.json", pre_tokenizer)?;
    let mut parsed = AddedVocabulary::new();
    parsed.add_tokens(added, &model, normalizer.as_ref()).map_err(|e| {
        unexpected("added_tokens", format!("a list that fails: {e}"), "tokens that are distinct")
    })?;
    let mut plain = parsed.clone();
    plain.set_encode_special_tokens(true);

    let tokens = collect_tokens(&model, &parsed)?;
    let vocab_size = tokens.last_key_value().map_or(0, |(&id, _)| id as usize + 1);
    let Template { prefix, suffix } = Template::read(&post_processor, vocab_size)?;
    // The crate finds these itself, except where some of them are to be overlooked.
    let specials = parsed.get_added_tokens_decoder().iter().filter(|(_, token)| token.special);
    let specials = specials.map(|(&id, token)| SpecialToken {
        id,
        text: token.content.clone(),
        only_if_parsed: true,
        strip_left: token.lstrip,
        strip_right: token.rstrip,
    });
    let specials = SpecialTokens::new(specials.collect());
    let id_of = |name: &str| parsed.token_to_id(name, &model);
    let special = |names: &[&str]| {
        names.iter().filter(|name| parsed.is_special_token(name)).find_map(|name| id_of(name))
    };
    let roles = Roles {
        bos: prefix.first().copied().or_else(|| special(BOS_NAMES)),
        eos: suffix.last().copied().or_else(|| special(END_NAMES)),
        unknown: match unknown {
            Unknown::Named(name) => id_of(&name),
            Unknown::Id(id) => id,
        },
        padding: padding["pad_token"].as_str().and_then(id_of).or_else(|| special(PADDING_NAMES)),
    };
    let mut end_tokens: Vec<TokenId> = END_NAMES
        .iter()
        .filter(|name| parsed.is_special_token(name))
        .filter_map(|name| id_of(name))
        .collect();
    end_tokens.extend(roles.eos);
    end_tokens.sort_unstable();
    end_tokens.dedup();

    let mut vocab = Vocab::with_capacity(vocab_size);
    for (id, (text, mut attributes)) in tokens {
        while vocab.len() < id as usize {
            vocab.push(Attributes::NONE, |_| ());
        }
        if roles.unknown == Some(id) {
            attributes = attributes.or(Attributes::UNKNOWN);
        }
        vocab.push(attributes, |out| decoder.write(&text, out));
    }
    let is_lossless = byte_level && pieces::ALPHABET.iter().all(|name| id_of(name).is_some());
    Ok(Tokenizer(Arc::new(Inner {
        vocab,
        algorithm: Algorithm::Json(Box::new(JsonTokenizer {
            normalizer,
            pre_tokenizer,
            model,
            parsed,
            plain,
            is_lossless,
        })),
        specials,
        roles,
        prefix,
        suffix,
        end_tokens,
        add_space_prefix: decoder.strips_first_space,
    })))
}

/// Which token stands for unknown text.
enum Unknown {
    Named(String),
    Id(Option<TokenId>),
}

fn read_model(mut model: Map<String, Value>) -> Result<(ModelWrapper, Unknown)> {
    // The oldest files do not name it.
    let name = match model.remove("type") {
        Some(Value::String(name)) => name,
        None if model.contains_key("merges") => "BPE".to_owned(),
        None if model.contains_key("max_input_chars_per_word") => "WordPiece".to_owned(),
        found => return Err(unexpected("model.type", format!("{found:?}"), "a name")),
    };
    check::model(&name, &model)?;
    let unknown = match name.as_str() {
        "Unigram" => Unknown::Id(model.get("unk_id").and_then(Value::as_u64).map(|id| id as TokenId)),
        _ => Unknown::Named(model.get("unk_token").and_then(Value::as_str).unwrap_or_default().to_owned()),
    };
    let model = Value::Object(model);
    let what = "model of tokenizer.json";
    let model = match name.as_str() {
        "BPE" => {
            let mut bpe: tokenizers::models::bpe::BPE = from_value(what, model)?;
            bpe.dropout = None;
            ModelWrapper::BPE(bpe)
        }
        "WordPiece" => ModelWrapper::WordPiece(from_value(what, model)?),
        "WordLevel" => ModelWrapper::WordLevel(from_value(what, model)?),
        "Unigram" => ModelWrapper::Unigram(from_value(what, model)?),
        _ => return Err(Error::UnknownTokenizer { found: name }),
    };
    Ok((model, unknown))
}

/// The list `added_tokens`, in the order in which ids are given.
fn read_added(added: Value) -> Result<Vec<AddedToken>> {
    let list = match added {
        Value::Null => Vec::new(),
        Value::Array(list) => list,
        other => return Err(unexpected("added_tokens", kind(&other), "a list")),
    };
    list.into_iter().map(|token| from_value("added token of tokenizer.json", token)).collect()
}

/// Every token's text and attributes, by id.
fn collect_tokens(
    model: &ModelWrapper,
    added: &AddedVocabulary,
) -> Result<BTreeMap<TokenId, (String, Attributes)>> {
    let mut tokens = BTreeMap::new();
    for (text, id) in model.get_vocab() {
        if let Some((other, _)) = tokens.insert(id, (text, Attributes::NORMAL)) {
            return Err(unexpected(
                "model.vocab",
                format!("id {id} for {other:?} twice"),
                "one id for each token",
            ));
        }
    }
    for (&id, token) in added.get_added_tokens_decoder() {
        let attributes = if token.special { Attributes::CONTROL } else { Attributes::USER_DEFINED };
        tokens.insert(id, (token.content.clone(), attributes));
    }
    Ok(tokens)
}

fn read_part<T: DeserializeOwned>(what: &'static str, part: Value) -> Result<Option<T>> {
    if part.is_null() { Ok(None) } else { from_value(what, part).map(Some) }
}

fn from_value<T: DeserializeOwned>(what: &'static str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|source| Error::Json { what, source })
}

fn unexpected(what: &'static str, found: impl Into<String>, expected: &'static str) -> Error {
    Error::TokenizerJson { what, found: found.into(), expected }
}

/// What a JSON value is, in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "missing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
