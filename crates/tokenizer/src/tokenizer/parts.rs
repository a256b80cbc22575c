//! Tokenizers with algorithms other than those of GGUF files.

use std::fmt::Debug;
use std::sync::Arc;

use breakers_core::{BoxError, TokenId};

use super::{
    Algorithm, Inner, Roles, Tokenizer,
    special::{SpecialToken, SpecialTokens},
    vocab::{Attributes, Vocab},
};
use crate::{Error, Result};

/// How a text becomes ids.
pub trait Encode: Debug + Send + Sync {
    /// Appends the ids of a text to `out`, without the special tokens around every text. With
    /// `parse_special`, the spelling of a control token becomes that token.
    ///
    /// # Errors
    /// Any error; [`Tokenizer::encode`] reports it as the cause of [`Error::Tokenize`].
    fn encode(&self, text: &str, parse_special: bool, out: &mut Vec<TokenId>) -> Result<(), BoxError>;

    /// Whether every text survives encoding and decoding.
    fn is_lossless(&self) -> bool {
        false
    }
}

/// What a tokenizer consists of.
///
/// # Example
/// ```
/// use breakers_core::{BoxError, TokenId};
/// use breakers_tokenizer::{Encode, Piece, Tokenizer, TokenizerParts};
///
/// /// Every character is the token 0.
/// #[derive(Debug)]
/// struct Letters;
///
/// impl Encode for Letters {
///     fn encode(&self, text: &str, _: bool, out: &mut Vec<TokenId>) -> Result<(), BoxError> {
///         out.extend(text.chars().map(|_| 0));
///         Ok(())
///     }
/// }
///
/// let pieces = vec![Piece::text("x"), Piece::control("<end>")];
/// let tokenizer = TokenizerParts { suffix: vec![1], ..TokenizerParts::new(pieces, Letters) }.build()?;
/// let ids = tokenizer.encode("abc", Default::default())?;
/// assert_eq!(ids, [0, 0, 0, 1]);
/// assert_eq!(tokenizer.decode(&ids, Default::default())?, "xxx");
/// # Ok::<(), breakers_tokenizer::Error>(())
/// ```
#[derive(Debug)]
pub struct TokenizerParts {
    /// The tokens, by id.
    pub pieces: Vec<Piece>,
    /// How a text becomes ids.
    pub encoder: Box<dyn Encode>,
    /// Added before every text.
    pub prefix: Vec<TokenId>,
    /// Added after every text.
    pub suffix: Vec<TokenId>,
    /// See [`Tokenizer::bos`].
    pub bos: Option<TokenId>,
    /// See [`Tokenizer::eos`].
    pub eos: Option<TokenId>,
    /// See [`Tokenizer::unknown`].
    pub unknown: Option<TokenId>,
    /// See [`Tokenizer::padding`].
    pub padding: Option<TokenId>,
    /// See [`Tokenizer::end_tokens`]; in any order.
    pub end_tokens: Vec<TokenId>,
    /// Control tokens and their spellings, for conversations in which some spellings are text.
    pub controls: Vec<Control>,
    /// Whether decoding removes the space at the beginning of a text, because encoding added it.
    pub strips_first_space: bool,
}

/// How a control token is spelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// The token.
    pub id: TokenId,
    /// Its spelling.
    pub text: String,
    /// Whether it includes the spaces before it.
    pub strip_left: bool,
    /// Whether it includes the spaces after it.
    pub strip_right: bool,
}

/// What a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its bytes; for a control token, its spelling. Empty for an id that is not in use.
    pub bytes: Vec<u8>,
    /// Whether it stands for something other than text: a control token, or the token for unknown text.
    pub is_control: bool,
}

impl Piece {
    /// A token of text.
    pub fn text(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), is_control: false }
    }

    /// A token that steers the model.
    pub fn control(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), is_control: true }
    }
}

impl TokenizerParts {
    /// Parts with these tokens and this encoder. There are no tokens around a text, and no token has a
    /// special role.
    pub fn new(pieces: Vec<Piece>, encoder: impl Encode + 'static) -> Self {
        Self {
            pieces,
            encoder: Box::new(encoder),
            prefix: Vec::new(),
            suffix: Vec::new(),
            bos: None,
            eos: None,
            unknown: None,
            padding: None,
            end_tokens: Vec::new(),
            controls: Vec::new(),
            strips_first_space: false,
        }
    }

    /// Builds the tokenizer.
    ///
    /// # Errors
    /// [`Error::SpecialTokenOutOfRange`] for an id without a piece.
    pub fn build(self) -> Result<Tokenizer> {
        let vocab_size = self.pieces.len();
        for (key, ids) in [
            ("prefix", &self.prefix[..]),
            ("suffix", &self.suffix),
            ("bos", self.bos.as_slice()),
            ("eos", self.eos.as_slice()),
            ("unknown", self.unknown.as_slice()),
            ("padding", self.padding.as_slice()),
            ("end_tokens", &self.end_tokens),
        ] {
            if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                return Err(Error::SpecialTokenOutOfRange {
                    key: key.to_owned(),
                    found: id.into(),
                    vocab_size,
                });
            }
        }
        if let Some(control) = self.controls.iter().find(|control| control.id as usize >= vocab_size) {
            let key = format!("control {}", control.text);
            return Err(Error::SpecialTokenOutOfRange { key, found: control.id.into(), vocab_size });
        }
        let specials = self.controls.into_iter().map(|control| SpecialToken {
            id: control.id,
            text: control.text,
            only_if_parsed: true,
            strip_left: control.strip_left,
            strip_right: control.strip_right,
        });
        let mut vocab = Vocab::with_capacity(vocab_size);
        for piece in &self.pieces {
            let attributes = if piece.is_control { Attributes::CONTROL } else { Attributes::NORMAL };
            vocab.push(attributes, |out| out.extend_from_slice(&piece.bytes));
        }
        let mut end_tokens = self.end_tokens;
        end_tokens.sort_unstable();
        end_tokens.dedup();
        Ok(Tokenizer(Arc::new(Inner {
            vocab,
            algorithm: Algorithm::Other(self.encoder),
            specials: SpecialTokens::new(specials.collect()),
            roles: Roles { bos: self.bos, eos: self.eos, unknown: self.unknown, padding: self.padding },
            prefix: self.prefix,
            suffix: self.suffix,
            end_tokens,
            add_space_prefix: self.strips_first_space,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fails;

    impl Encode for Fails {
        fn encode(&self, text: &str, _: bool, _: &mut Vec<TokenId>) -> Result<(), BoxError> {
            Err(format!("no rule for {text}").into())
        }
    }

    #[test]
    fn ids_without_a_piece_are_refused() {
        let parts = || TokenizerParts::new(vec![Piece::text("a"), Piece::text("b")], Fails);
        for parts in [
            TokenizerParts { prefix: vec![2], ..parts() },
            TokenizerParts { suffix: vec![0, 2], ..parts() },
            TokenizerParts { eos: Some(2), ..parts() },
            TokenizerParts { end_tokens: vec![1, 9], ..parts() },
        ] {
            let error = parts.build().unwrap_err();
            assert!(matches!(error, Error::SpecialTokenOutOfRange { vocab_size: 2, .. }), "{error:?}");
        }
        let tokenizer = TokenizerParts { end_tokens: vec![1, 0, 1], ..parts() }.build().unwrap();
        assert_eq!(tokenizer.end_tokens(), [0, 1]);
        let error = tokenizer.encode("x", Default::default()).unwrap_err();
        assert!(matches!(&error, Error::Tokenize { source } if source.to_string() == "no rule for x"));
    }
}
