//! The tokenizer, which uses the algorithm that a file names.

pub mod alphabet;
mod bpe;
mod conversation;
mod gguf;
mod parts;
mod pretokenize;
mod shared;
mod special;
mod spm;
mod stream;
mod unicode;
mod unicode_table;
mod vocab;

use std::{borrow::Cow, sync::Arc};

use breakers_core::TokenId;

use self::{
    bpe::ByteLevelBpe,
    special::{Fragment, SpecialTokens},
    spm::SentencePiece,
    vocab::{Attributes, SPECIAL, Vocab},
};
use crate::{Error, Result};

pub use self::gguf::END_NAMES;
pub use self::parts::{Control, Encode, Piece, TokenizerParts};
pub use self::stream::TextStream;
pub use breakers_core::EncodeOptions;

/// How tokens become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecodeOptions {
    /// Omit control tokens; otherwise their spelling is part of the text.
    pub skip_special: bool,
    /// The tokens continue a text. Some models (Llama 2) put a space before every text, which decoding
    /// removes only at the beginning of a text.
    pub continues: bool,
}

impl Default for DecodeOptions {
    /// A whole text, without control tokens.
    fn default() -> Self {
        Self { skip_special: true, continues: false }
    }
}

/// Turns text into token ids and back. Cheap to clone.
///
/// # Example
/// ```
/// use breakers_tokenizer::{DecodeOptions, EncodeOptions, Tokenizer};
///
/// // A model's own comes from its file: `Tokenizer::from_gguf`. This one has a token for each byte.
/// let tokenizer = Tokenizer::bytes();
/// let tokens = tokenizer.encode("Hi!", EncodeOptions::default())?;
/// assert_eq!(tokens, [72, 105, 33]);
/// assert_eq!(tokenizer.decode(&tokens, DecodeOptions::default())?, "Hi!");
/// assert_eq!(tokenizer.token_bytes(72), Some(&b"H"[..]));
/// # Ok::<(), breakers_tokenizer::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    vocab: Vocab,
    algorithm: Algorithm,
    specials: SpecialTokens,
    roles: Roles,
    /// Added before and after a text.
    prefix: Vec<TokenId>,
    suffix: Vec<TokenId>,
    /// Ascending.
    end_tokens: Vec<TokenId>,
    add_space_prefix: bool,
}

#[derive(Debug)]
enum Algorithm {
    ByteLevelBpe(Box<ByteLevelBpe>),
    SentencePiece(Box<SentencePiece>),
    Other(Box<dyn Encode>),
}

/// Tokens with a special role.
#[derive(Clone, Copy, Debug, Default)]
struct Roles {
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    unknown: Option<TokenId>,
    padding: Option<TokenId>,
}

impl Tokenizer {
    /// A tokenizer without a vocabulary: each byte is a token, and there are no special tokens.
    pub fn bytes() -> Self {
        let mut vocab = Vocab::with_capacity(256);
        (0..=255).for_each(|byte| vocab.push(Attributes::NORMAL, |out| out.push(byte)));
        Self(Arc::new(Inner {
            vocab,
            algorithm: Algorithm::ByteLevelBpe(Box::new(ByteLevelBpe {
                pre_tokenizer: pretokenize::PreTokenizer::Gpt2,
                byte_tokens: std::array::from_fn(|byte| Some(byte as TokenId)),
                merges: bpe::Merges::new(),
                whole_words: None,
            })),
            specials: SpecialTokens::new(Vec::new()),
            roles: Roles::default(),
            prefix: Vec::new(),
            suffix: Vec::new(),
            end_tokens: Vec::new(),
            add_space_prefix: false,
        }))
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// [`Error::MissingByte`] for a character that a SentencePiece vocabulary has neither as a token nor in
    /// bytes, [`Error::Tokenize`] where an [`Encode`] of another crate fails, [`Error::TextTooLong`] beyond
    /// 1.3 GiB.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<TokenId>> {
        check_length(text)?;
        let inner = &*self.0;
        let mut out = Vec::with_capacity(text.len() / 4 + 2);
        if options.add_special {
            out.extend_from_slice(&inner.prefix);
        }
        inner.encode_between(text, options.parse_special, &mut out)?;
        if options.add_special {
            out.extend_from_slice(&inner.suffix);
        }
        Ok(out)
    }

    /// At most `limit` tokens of a text, including the special tokens around it. If there are too many, the
    /// text is cut short, never the special tokens.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_at_most(&self, limit: usize, text: &str, parse_special: bool) -> Result<Vec<TokenId>> {
        let Inner { prefix, suffix, .. } = &*self.0;
        let mut out = self.encode(text, EncodeOptions { add_special: true, parse_special })?;
        if out.len() > limit {
            out.truncate(limit.saturating_sub(suffix.len()).max(prefix.len()));
            out.extend_from_slice(suffix);
        }
        Ok(out)
    }

    /// The text of tokens. Bytes that are not UTF-8 become U+FFFD; [`Tokenizer::decode_bytes`] keeps them.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`].
    pub fn decode(&self, tokens: &[TokenId], options: DecodeOptions) -> Result<String> {
        let bytes = self.decode_bytes(tokens, options)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// The bytes of tokens, which need not be whole characters.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`].
    pub fn decode_bytes(&self, tokens: &[TokenId], options: DecodeOptions) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(tokens.len() * 4);
        let mut at_start = true;
        for &token in tokens {
            out.extend_from_slice(self.piece(token, options, &mut at_start)?);
        }
        Ok(out)
    }

    /// Turns tokens into text as they arrive.
    pub fn stream(&self, options: DecodeOptions) -> TextStream {
        TextStream::new(self.clone(), options)
    }

    /// The bytes that a token stands for; for a control token, its spelling. Empty for ids that are not in
    /// use, `None` outside of the vocabulary.
    pub fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        self.0.vocab.piece(token)
    }

    /// Whether a token is not text: a control token or the one for unknown text.
    pub fn is_control(&self, token: TokenId) -> bool {
        self.0.vocab.attributes(token).is_some_and(|attributes| attributes.is(SPECIAL))
    }

    /// The token that begins a text, if the vocabulary names one (it need not be used: see
    /// [`Tokenizer::adds_bos`]).
    pub fn bos(&self) -> Option<TokenId> {
        self.0.roles.bos
    }

    /// Whether a text begins with [`Tokenizer::bos`] when special tokens are added.
    pub fn adds_bos(&self) -> bool {
        self.0.roles.bos.is_some() && self.0.prefix.first().copied() == self.0.roles.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<TokenId> {
        self.0.roles.eos
    }

    /// The token for text that the vocabulary cannot express.
    pub fn unknown(&self) -> Option<TokenId> {
        self.0.roles.unknown
    }

    /// The token that fills up short texts of a batch.
    pub fn padding(&self) -> Option<TokenId> {
        self.0.roles.padding
    }

    /// All tokens after which generation ends, in ascending order.
    pub fn end_tokens(&self) -> &[TokenId] {
        &self.0.end_tokens
    }

    /// Number of tokens; ids below it are valid.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab.len()
    }

    /// Whether every text survives encoding and decoding.
    ///
    /// Byte-level vocabularies need a token for each byte that occurs in UTF-8. SentencePiece loses the
    /// difference between a space and `▁`, so it is never lossless in this strict sense. For a tokenizer.json
    /// this is true only if its parts guarantee it, as byte-level vocabularies without a normalizer do.
    pub fn is_lossless(&self) -> bool {
        match &self.0.algorithm {
            Algorithm::ByteLevelBpe(bpe) => {
                let occurs = |byte: usize| !matches!(byte, 0xc0 | 0xc1 | 0xf5..);
                (0..256).all(|byte| bpe.byte_tokens[byte].is_some() || !occurs(byte))
            }
            Algorithm::SentencePiece(_) => false,
            Algorithm::Other(encoder) => encoder.is_lossless(),
        }
    }

    /// What a token adds to a text.
    fn piece(&self, token: TokenId, options: DecodeOptions, at_start: &mut bool) -> Result<&[u8]> {
        let inner = &*self.0;
        inner.vocab.check(token)?;
        if self.is_control(token) && options.skip_special {
            return Ok(&[]);
        }
        let piece = inner.vocab.piece(token).unwrap_or_default();
        let first = std::mem::replace(at_start, false) && !options.continues && inner.add_space_prefix;
        Ok(if first { piece.strip_prefix(b" ").unwrap_or(piece) } else { piece })
    }
}

/// Positions in a text are kept in 32 bits.
fn check_length(text: &str) -> Result<()> {
    let limit = u32::MAX as usize / 3;
    if text.len() < limit { Ok(()) } else { Err(Error::TextTooLong { found: text.len(), limit }) }
}

impl Inner {
    /// Encodes a text without the special tokens around it.
    fn encode_between(&self, text: &str, parse_special: bool, out: &mut Vec<TokenId>) -> Result<()> {
        if let Algorithm::Other(encoder) = &self.algorithm {
            return encoder.encode(text, parse_special, out).map_err(|source| Error::Tokenize { source });
        }
        self.encode_fragments(text, self.specials.split(text, parse_special), &mut true, out)
    }

    /// Encodes the fragments of a text. If `after_token` is set, text after a token counts as the start of a
    /// text.
    fn encode_fragments(
        &self,
        text: &str,
        fragments: Vec<Fragment>,
        after_token: &mut bool,
        out: &mut Vec<TokenId>,
    ) -> Result<()> {
        for fragment in fragments {
            match fragment {
                Fragment::Token(token) => {
                    out.push(token);
                    *after_token = true;
                }
                Fragment::Text(range) => {
                    self.encode_stretch(&text[range], *after_token, out)?;
                    *after_token = false;
                }
            }
        }
        Ok(())
    }

    /// Encodes text that holds no special token.
    fn encode_stretch(&self, text: &str, starts: bool, out: &mut Vec<TokenId>) -> Result<()> {
        match &self.algorithm {
            Algorithm::ByteLevelBpe(bpe) => bpe.encode(text, out),
            Algorithm::SentencePiece(spm) => {
                let mut escaped = Cow::Borrowed(text);
                if starts && self.add_space_prefix {
                    escaped = format!("{}{text}", spm::SPACE).into();
                }
                if escaped.contains(' ') {
                    escaped = escaped.replace(' ', "▁").into();
                }
                spm.encode(&escaped, out)?;
            }
            Algorithm::Other(encoder) => {
                encoder.encode(text, false, out).map_err(|source| Error::Tokenize { source })?;
            }
        }
        Ok(())
    }
}
