//! Tokenizers from the metadata of GGUF files.
//!
//! # Source
//! The keys `tokenizer.ggml.*` of the GGUF specification. Where files are incomplete (which tokens end a
//! text, which are control tokens without being marked as such), the names are those of llama.cpp's
//! `llama-vocab.cpp`.

use std::sync::Arc;

use breakers_core::TokenId;
use breakers_gguf::{Array, File, Metadata, StringArray, Value};

use super::{
    Algorithm, Inner, Roles, Tokenizer, alphabet,
    bpe::{ByteLevelBpe, Merge, Merges},
    pretokenize::PreTokenizer,
    special::{SpecialToken, SpecialTokens},
    spm::SentencePiece,
    vocab::{Attributes, SPECIAL, TokenTable, Vocab},
};
use crate::{Error, Result};

/// Tokens that end a turn or a text, whatever type a file gives them: they become control tokens.
pub const END_NAMES: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Roles of tokens by metadata key and, where the file does not say, by name; whether one ends a text.
const NAMED_ROLES: &[(&[&str], &[&str], bool)] = &[
    (
        &["tokenizer.ggml.eot_token_id"],
        &[
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<EOT>",
            "_<EOT>",
            "[EOT]",
            "<｜end▁of▁sentence｜>",
            "<end_of_utterance>",
        ],
        true,
    ),
    (&["tokenizer.ggml.eom_token_id"], &["<|eom_id|>"], true),
    (
        &["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"],
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        false,
    ),
    (
        &["tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"],
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        false,
    ),
    (
        &["tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"],
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        false,
    ),
    (
        &["tokenizer.ggml.fim_pad_token_id"],
        &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
        true,
    ),
    (
        &["tokenizer.ggml.fim_rep_token_id"],
        &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
        true,
    ),
    (&["tokenizer.ggml.fim_sep_token_id"], &["<|file_sep|>"], true),
];

/// These are part of gpt-oss's visible text, although its files mark them as control tokens.
const VISIBLE_NAMES: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

impl Tokenizer {
    /// The tokenizer of a GGUF file.
    ///
    /// # Errors
    /// - [`Error::UnknownTokenizer`], [`Error::UnknownPreTokenizer`]: the file asks for a rule that is not
    ///   implemented;
    /// - [`Error::Gguf`]: a key is missing or of another type;
    /// - [`Error::VocabularyLength`], [`Error::DuplicateToken`], [`Error::InvalidMerge`],
    ///   [`Error::InvalidScore`], [`Error::InvalidByteToken`], [`Error::SpecialTokenOutOfRange`],
    ///   [`Error::MissingSpecialToken`]: the metadata contradicts itself.
    pub fn from_gguf(file: &File) -> Result<Self> {
        Self::from_metadata(file.metadata())
    }

    /// The tokenizer described by the metadata of a GGUF file.
    ///
    /// # Errors
    /// Those of [`Tokenizer::from_gguf`].
    ///
    /// ```
    /// use breakers_gguf::Metadata;
    /// use breakers_tokenizer::{EncodeOptions, Tokenizer};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut metadata = Metadata::new();
    /// metadata.insert("tokenizer.ggml.model", "gpt2")?;
    /// metadata.insert("tokenizer.ggml.pre", "qwen2")?;
    /// metadata.insert("tokenizer.ggml.tokens", vec!["a", "b", "ab", "<|end|>"])?;
    /// metadata.insert("tokenizer.ggml.token_type", vec![1, 1, 1, 3])?;
    /// metadata.insert("tokenizer.ggml.merges", vec!["a b"])?;
    ///
    /// let tokenizer = Tokenizer::from_metadata(&metadata)?;
    /// let options = EncodeOptions { parse_special: true, ..Default::default() };
    /// assert_eq!(tokenizer.encode("aab<|end|>", options)?, [0, 2, 3]);
    /// assert_eq!(tokenizer.end_tokens(), [3]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        match metadata.require_str("tokenizer.ggml.model")? {
            "gpt2" => byte_level(metadata),
            "llama" => sentence_piece(metadata),
            other => Err(Error::UnknownTokenizer { found: other.to_owned() }),
        }
    }
}

fn byte_level(metadata: &Metadata) -> Result<Tokenizer> {
    let name = metadata.str("tokenizer.ggml.pre")?;
    if name.is_none() {
        tracing::warn!(
            "the file does not say how its tokenizer splits words (tokenizer.ggml.pre); GPT-2's rule is taken"
        );
    }
    let name = name.unwrap_or("default");
    let pre_tokenizer =
        PreTokenizer::from_name(name).ok_or_else(|| Error::UnknownPreTokenizer { found: name.to_owned() })?;
    let is_llama_3 = matches!(
        name,
        "llama3"
            | "llama-v3"
            | "llama-bpe"
            | "falcon3"
            | "falcon-h1"
            | "pixtral"
            | "midm-2.0"
            | "lfm2"
            | "jina-v5-nano"
    );
    let tokens = Tokens::read(metadata)?;
    let mut vocab = Vocab::with_capacity(tokens.len());
    for (text, attributes) in tokens.iter() {
        if attributes.is(SPECIAL.or(Attributes::USER_DEFINED)) {
            vocab.push(attributes, |out| out.extend_from_slice(text.as_bytes()));
        } else if attributes.is(Attributes::NORMAL) {
            // Text outside of the alphabet stands for itself.
            vocab.push(attributes, |out| {
                if !alphabet::decode(text, out) {
                    out.extend_from_slice(text.as_bytes());
                }
            });
        } else {
            push_byte_or_nothing(&mut vocab, text, attributes)?;
        }
    }
    let mut byte_tokens = [None; 256];
    for (byte, c) in alphabet::CHARS.iter().enumerate() {
        byte_tokens[byte] = tokens.table.get(c.encode_utf8(&mut [0; 4]));
    }
    let whole_words = (is_llama_3 || name == "glm4").then(|| {
        let bytes = |text: &str| {
            let mut bytes = Vec::with_capacity(text.len());
            alphabet::decode(text, &mut bytes).then(|| bytes.into_boxed_slice())
        };
        let texts = tokens.table.texts().iter().zip(0..);
        texts.filter(|(text, _)| !text.is_empty()).filter_map(|(text, id)| Some((bytes(text)?, id))).collect()
    });
    let merges = read_merges(metadata.require_strings("tokenizer.ggml.merges")?, &tokens.table)?;
    let algorithm =
        Algorithm::ByteLevelBpe(Box::new(ByteLevelBpe { pre_tokenizer, byte_tokens, merges, whole_words }));
    assemble(metadata, &tokens, vocab, algorithm, Defaults { add_bos: is_llama_3, ..Defaults::default() })
}

fn sentence_piece(metadata: &Metadata) -> Result<Tokenizer> {
    let tokens = Tokens::read(metadata)?;
    let scores = read_scores(metadata, tokens.len())?;
    let mut vocab = Vocab::with_capacity(tokens.len());
    for (text, attributes) in tokens.iter() {
        if attributes.is(SPECIAL.or(Attributes::USER_DEFINED)) {
            vocab.push(attributes, |out| out.extend_from_slice(text.as_bytes()));
        } else if attributes.is(Attributes::NORMAL) {
            vocab.push(attributes, |out| push_unescaped(text, out));
        } else {
            push_byte_or_nothing(&mut vocab, text, attributes)?;
        }
    }
    let mut byte_tokens = Box::new([None; 256]);
    for (byte, token) in byte_tokens.iter_mut().enumerate() {
        *token = tokens.table.get(&format!("<0x{byte:02X}>"));
        if token.is_none() && byte < 0x80 {
            *token = tokens.table.get(char::from(byte as u8).encode_utf8(&mut [0; 4]));
        }
    }
    let in_range = |id: TokenId| Some(id).filter(|&id| (id as usize) < tokens.len());
    let defaults = Defaults {
        add_bos: true,
        add_space_prefix: true,
        bos: in_range(1),
        eos: in_range(2),
        unknown: in_range(0),
    };
    let unknown = tokens.role(metadata, "tokenizer.ggml.unknown_token_id")?.or(defaults.unknown);
    let table = tokens.table.clone();
    let algorithm =
        Algorithm::SentencePiece(Box::new(SentencePiece::new(table, scores, byte_tokens, unknown)));
    assemble(metadata, &tokens, vocab, algorithm, defaults)
}

/// Defaults for what the metadata does not say.
#[derive(Default)]
struct Defaults {
    add_bos: bool,
    add_space_prefix: bool,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    unknown: Option<TokenId>,
}

fn assemble(
    metadata: &Metadata,
    tokens: &Tokens,
    vocab: Vocab,
    algorithm: Algorithm,
    defaults: Defaults,
) -> Result<Tokenizer> {
    let role = |key| tokens.role(metadata, key);
    let roles = Roles {
        bos: role("tokenizer.ggml.bos_token_id")?.or(defaults.bos),
        eos: role("tokenizer.ggml.eos_token_id")?.or(defaults.eos),
        unknown: role("tokenizer.ggml.unknown_token_id")?.or(defaults.unknown),
        padding: role("tokenizer.ggml.padding_token_id")?,
    };
    let wanted = |flag: &'static str, default, token: Option<TokenId>, name| match (
        metadata.bool(flag)?.unwrap_or(default),
        token,
    ) {
        (false, _) => Ok(Vec::new()),
        (true, Some(token)) => Ok(vec![token]),
        (true, None) => Err(Error::MissingSpecialToken { flag, token: name }),
    };
    let prefix = wanted("tokenizer.ggml.add_bos_token", defaults.add_bos, roles.bos, "BOS")?;
    let suffix = wanted("tokenizer.ggml.add_eos_token", false, roles.eos, "EOS")?;
    let add_space_prefix = match algorithm {
        Algorithm::SentencePiece(_) => {
            metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(defaults.add_space_prefix)
        }
        _ => false,
    };
    let mut end_tokens = tokens.end_tokens.clone();
    end_tokens.extend(roles.eos);
    end_tokens.sort_unstable();
    end_tokens.dedup();
    // Phi-3's special tokens swallow the spaces after them, which its files do not say.
    let name = metadata.str("general.name")?.unwrap_or_default().to_lowercase();
    let strips = name.contains("phi-3") || name.contains("phi3");
    let specials = tokens
        .iter()
        .enumerate()
        .filter(|(_, (_, attributes))| attributes.is(SPECIAL.or(Attributes::USER_DEFINED)))
        .map(|(id, (text, attributes))| SpecialToken {
            id: id as TokenId,
            text: text.to_owned(),
            only_if_parsed: attributes.is(SPECIAL),
            strip_left: false,
            strip_right: strips && !matches!(text, "<unk>" | "<s>" | "<|endoftext|>"),
        })
        .collect();
    Ok(Tokenizer(Arc::new(Inner {
        vocab,
        algorithm,
        specials: SpecialTokens::new(specials),
        roles,
        prefix,
        suffix,
        end_tokens,
        add_space_prefix,
    })))
}

/// The vocabulary as the file writes it.
struct Tokens {
    table: TokenTable,
    attributes: Vec<Attributes>,
    /// Tokens that end a text because of their name or role, apart from the EOS token.
    end_tokens: Vec<TokenId>,
}

impl Tokens {
    fn read(metadata: &Metadata) -> Result<Self> {
        let texts = metadata.require_strings("tokenizer.ggml.tokens")?;
        let limit = i32::MAX as usize;
        if texts.len() > limit {
            return Err(Error::VocabularyLength { what: "tokens", expected: limit, found: texts.len() });
        }
        let attributes = match metadata.i32s("tokenizer.ggml.token_type")? {
            None => vec![Attributes::NORMAL; texts.len()],
            Some(types) if types.len() == texts.len() => {
                types.iter().map(|&token_type| Attributes::from_gguf(token_type)).collect()
            }
            Some(types) => {
                return Err(Error::VocabularyLength {
                    what: "tokenizer.ggml.token_type",
                    expected: texts.len(),
                    found: types.len(),
                });
            }
        };
        let table = TokenTable::new(texts.clone())?;
        let mut tokens = Self { table, attributes, end_tokens: Vec::new() };
        tokens.read_roles(metadata)?;
        Ok(tokens)
    }

    /// Turns tokens that look like control tokens into such, and finds those that end a text.
    fn read_roles(&mut self, metadata: &Metadata) -> Result<()> {
        for &(keys, names, ends) in NAMED_ROLES {
            let mut token = None;
            for key in keys {
                token = token.or(self.role(metadata, key)?);
            }
            if token.is_none() {
                // If several names are in the vocabulary, the lowest id has the role.
                token = names.iter().filter_map(|name| self.table.get(name)).min();
                if let Some(token) = token {
                    self.add_attribute(token, Attributes::CONTROL);
                }
            }
            self.end_tokens.extend(token.filter(|_| ends));
        }
        for name in END_NAMES {
            if let Some(token) = self.table.get(name) {
                self.add_attribute(token, Attributes::CONTROL);
                self.end_tokens.push(token);
            }
        }
        for name in VISIBLE_NAMES {
            if let Some(token) = self.table.get(name) {
                self.attributes[token as usize] = Attributes::USER_DEFINED;
            }
        }
        // If there are other tokens that end a turn, `<|end|>` only ends a part of it.
        let has = |name: &str| self.table.get(name).is_some();
        let call = has("<|call|>") || has("<|calls|>");
        if (call && (has("<|return|>") || has("<|flush|>")))
            && let Some(token) = self.table.get("<|end|>")
        {
            self.end_tokens.retain(|&other| other != token);
            self.attributes[token as usize] = Attributes::USER_DEFINED;
        }
        Ok(())
    }

    fn add_attribute(&mut self, token: TokenId, attribute: Attributes) {
        let attributes = &mut self.attributes[token as usize];
        *attributes = attributes.or(attribute);
    }

    fn len(&self) -> usize {
        self.attributes.len()
    }

    fn iter(&self) -> impl Iterator<Item = (&str, Attributes)> {
        self.table.texts().iter().zip(self.attributes.iter().copied())
    }

    /// The token id at `key`.
    fn role(&self, metadata: &Metadata, key: &str) -> Result<Option<TokenId>> {
        let Some(value) = metadata.get(key) else { return Ok(None) };
        match value.as_integer() {
            Some(found) if (0..self.len() as i128).contains(&found) => Ok(Some(found as TokenId)),
            // Real files write 4294967295 or -1 for "none"; no text depends on it.
            Some(found) => {
                let len = self.len();
                tracing::warn!("{key} is {found}, outside of the vocabulary of {len}; it is left out");
                Ok(None)
            }
            None => Ok(metadata.u64(key)?.map(|found| found as TokenId)),
        }
    }
}

/// Byte tokens stand for their byte, tokens without a type for nothing.
fn push_byte_or_nothing(vocab: &mut Vocab, text: &str, attributes: Attributes) -> Result<()> {
    let byte = match attributes.is(Attributes::BYTE) {
        true => Some(alphabet::spelled_byte(text).ok_or_else(|| Error::InvalidByteToken {
            token: vocab.len() as TokenId,
            text: text.to_owned(),
        })?),
        false => None,
    };
    vocab.push(attributes, |out| out.extend(byte));
    Ok(())
}

/// Appends a SentencePiece token's text with spaces for `▁`.
fn push_unescaped(text: &str, out: &mut Vec<u8>) {
    for (part, piece) in text.split(super::spm::SPACE).enumerate() {
        if part > 0 {
            out.push(b' ');
        }
        out.extend_from_slice(piece.as_bytes());
    }
}

fn read_scores(metadata: &Metadata, n_tokens: usize) -> Result<Vec<f32>> {
    const KEY: &str = "tokenizer.ggml.scores";
    let scores = match metadata.get(KEY) {
        None => vec![0.0; n_tokens],
        Some(Value::Array(Array::I32(whole))) => whole.iter().map(|&score| score as f32).collect(),
        Some(_) => metadata.f32s(KEY)?.unwrap_or_default().into_owned(),
    };
    if scores.len() != n_tokens {
        return Err(Error::VocabularyLength { what: KEY, expected: n_tokens, found: scores.len() });
    }
    match scores.iter().position(|score| score.is_nan()) {
        Some(token) => Err(Error::InvalidScore { token: token as TokenId }),
        None => Ok(scores),
    }
}

/// Merge rules, each two tokens with a space between them.
fn read_merges(rules: &StringArray, tokens: &TokenTable) -> Result<Merges> {
    let mut merges = Merges::with_capacity(rules.len());
    let mut joined = String::new();
    for (index, rule) in rules.iter().enumerate() {
        let invalid = |reason| Error::InvalidMerge { index, merge: rule.to_owned(), reason };
        // A space at the start is part of the first token.
        let space = rule.bytes().skip(1).position(|byte| byte == b' ');
        let (left, right) = match space {
            Some(at) => (&rule[..at + 1], &rule[at + 2..]),
            None => return Err(invalid("there is no space between two tokens")),
        };
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        let id = |text: &str, reason| tokens.get(text).ok_or_else(|| invalid(reason));
        let pair = (id(left, "the first part is not a token")?, id(right, "the second part is not a token")?);
        let token = id(&joined, "the parts together are not a token")?;
        // If a rule occurs twice, the first one counts.
        merges.entry(pair).or_insert(Merge { rank: index as u32, token });
    }
    Ok(merges)
}
