//! Tokenizers from a tokenizer.json, the format of Hugging Face.
//!
//! Normalizer, pre-tokenizer, model and added tokens are those of the crate `tokenizers`, so that ids are
//! Hugging Face's. The rest is ours: the checks of a file (`check`), the tokens around a text (`template`),
//! which tokens steer a model, and decoding (`pieces`), which a stream needs token by token.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use breakers_core::{BoxError, TokenId};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokenizers::{
    AddedToken, AddedVocabulary, Model, ModelWrapper, NormalizerWrapper, OffsetType, PreTokenizer,
    PreTokenizerWrapper,
};

use breakers_tokenizer::{Control, END_NAMES, Encode, Piece, Tokenizer, TokenizerParts, alphabet};

use crate::error::{kind, unexpected};
use crate::template::Template;
use crate::{Error, Result, check, pieces};

/// Names of tokens that begin a text, for files without a template that says so.
const BOS_NAMES: &[&str] = &["<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[CLS]"];
/// Names of padding tokens, for files without settings for them.
const PADDING_NAMES: &[&str] = &["[PAD]", "<pad>", "<|pad|>"];

/// The parts of Hugging Face's pipeline that lead from text to ids.
#[derive(Debug)]
struct JsonTokenizer {
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    model: ModelWrapper,
    /// Finds all added tokens in a text.
    parsed: AddedVocabulary,
    /// Finds those that are not special.
    plain: AddedVocabulary,
    is_lossless: bool,
}

impl Encode for JsonTokenizer {
    fn encode(&self, text: &str, parse_special: bool, out: &mut Vec<TokenId>) -> Result<(), BoxError> {
        let added = if parse_special { &self.parsed } else { &self.plain };
        let tokenize = || -> Result<_, BoxError> {
            let mut split = added.extract_and_normalize(self.normalizer.as_ref(), text);
            if let Some(pre_tokenizer) = &self.pre_tokenizer {
                pre_tokenizer.pre_tokenize(&mut split)?;
            }
            split.tokenize(|word| self.model.tokenize(word.get()))?;
            split.into_encoding(None, 0, OffsetType::None)
        };
        out.extend_from_slice(guarded(tokenize).flatten()?.get_ids());
        Ok(())
    }

    fn is_lossless(&self) -> bool {
        self.is_lossless
    }
}

/// Reads a tokenizer.json from its bytes. The ids equal those of Hugging Face's `tokenizers` without
/// truncation and padding.
///
/// A tokenizer.json does not say which tokens begin and end a text. [`Tokenizer::bos`] and [`Tokenizer::eos`]
/// are those of the file's template or, without one, tokens with common names.
///
/// # Errors
/// [`Error::Json`] if it is not JSON or not of this format; [`Error::TokenizerJson`] for settings that cannot
/// be honored; [`Error::UnknownTokenizer`]; [`Error::InvalidMerge`]; [`Error::Tokenizer`] for special tokens
/// out of range.
///
/// # Example
/// ```
/// let words = br#"{ "model": { "type": "WordLevel", "unk_token": "?", "vocab": { "?": 0, "yes": 1 } } }"#;
/// let tokenizer = breakers_tokenizer_json::from_slice(words)?;
/// assert_eq!(tokenizer.encode("yes", Default::default())?, [1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn from_slice(json: &[u8]) -> Result<Tokenizer> {
    let file: Value =
        serde_json::from_slice(json).map_err(|source| Error::Json { what: "tokenizer.json", source })?;
    let Value::Object(file) = file else {
        return Err(unexpected("the file", kind(&file), "an object"));
    };
    guarded(|| load(file)).unwrap_or_else(|error| {
        Err(unexpected("one of the rules", error.to_string(), "rules that can be applied"))
    })
}

/// Reads a tokenizer.json on disk.
///
/// # Errors
/// [`Error::Io`], and those of [`from_slice`].
pub fn from_file(path: impl AsRef<Path>) -> Result<Tokenizer> {
    let path = path.as_ref();
    let json = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    from_slice(&json)
}

/// Runs code of the crate `tokenizers`; a panic there becomes an error.
///
/// Known causes are refused beforehand, but rules can be combined in more ways than can be foreseen: an
/// expression that matches the empty string, followed by one that removes accents, makes it lose track of its
/// offsets. The tokenizer is safe to use after a panic, since only caches change during tokenization.
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
    // The crate finds these itself, except where some of them must be ignored.
    let controls = parsed.get_added_tokens_decoder().iter().filter(|(_, token)| token.special);
    let controls = controls.map(|(&id, token)| Control {
        id,
        text: token.content.clone(),
        strip_left: token.lstrip,
        strip_right: token.rstrip,
    });
    let controls = controls.collect();
    let id_of = |name: &str| parsed.token_to_id(name, &model);
    let special = |names: &[&str]| {
        names.iter().filter(|name| parsed.is_special_token(name)).find_map(|name| id_of(name))
    };
    let eos = suffix.last().copied().or_else(|| special(END_NAMES));
    let ends = END_NAMES.iter().filter(|name| parsed.is_special_token(name)).filter_map(|name| id_of(name));
    let end_tokens = ends.chain(eos).collect();
    let unknown = match unknown {
        Unknown::Named(name) => id_of(&name),
        Unknown::Id(id) => id,
    };
    let bos = prefix.first().copied().or_else(|| special(BOS_NAMES));
    let padding = padding["pad_token"].as_str().and_then(id_of).or_else(|| special(PADDING_NAMES));

    let mut pieces = vec![Piece::text([]); vocab_size];
    for (id, (text, is_control)) in tokens {
        let piece = &mut pieces[id as usize];
        decoder.write(&text, &mut piece.bytes);
        piece.is_control = is_control || unknown == Some(id);
    }
    let is_lossless = byte_level && alphabet::in_text().all(|c| id_of(c.encode_utf8(&mut [0; 4])).is_some());
    let encoder = JsonTokenizer { normalizer, pre_tokenizer, model, parsed, plain, is_lossless };
    let strips_first_space = decoder.strips_first_space;
    let parts = TokenizerParts::new(pieces, encoder);
    let parts = TokenizerParts { prefix, suffix, bos, eos, unknown, padding, ..parts };
    Ok(TokenizerParts { end_tokens, strips_first_space, controls, ..parts }.build()?)
}

/// Which token stands for unknown text.
enum Unknown {
    Named(String),
    Id(Option<TokenId>),
}

fn read_model(mut model: Map<String, Value>) -> Result<(ModelWrapper, Unknown)> {
    // The oldest files do not name the type.
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

/// The list `added_tokens`, in the order in which ids are assigned.
fn read_added(added: Value) -> Result<Vec<AddedToken>> {
    let list = match added {
        Value::Null => Vec::new(),
        Value::Array(list) => list,
        other => return Err(unexpected("added_tokens", kind(&other), "a list")),
    };
    list.into_iter().map(|token| from_value("added token of tokenizer.json", token)).collect()
}

/// Every token's text, and whether it steers the model, by id.
fn collect_tokens(
    model: &ModelWrapper,
    added: &AddedVocabulary,
) -> Result<BTreeMap<TokenId, (String, bool)>> {
    let mut tokens = BTreeMap::new();
    for (text, id) in model.get_vocab() {
        if let Some((other, _)) = tokens.insert(id, (text, false)) {
            return Err(unexpected(
                "model.vocab",
                format!("id {id} for {other:?} twice"),
                "one id for each token",
            ));
        }
    }
    for (&id, token) in added.get_added_tokens_decoder() {
        tokens.insert(id, (token.content.clone(), token.special));
    }
    Ok(tokens)
}

fn read_part<T: DeserializeOwned>(what: &'static str, part: Value) -> Result<Option<T>> {
    if part.is_null() { Ok(None) } else { from_value(what, part).map(Some) }
}

fn from_value<T: DeserializeOwned>(what: &'static str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|source| Error::Json { what, source })
}
