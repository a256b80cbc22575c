//! The tokens of a model: the bytes that each stands for, and which of them are special.

use std::hash::BuildHasher;

use breakers_core::TokenId;
use breakers_gguf::StringArray;
use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};

use crate::{Error, Result};

/// Token ids by their text.
///
/// # Memory
/// Five to ten bytes per token, in addition to the texts themselves.
#[derive(Clone, Debug)]
pub(super) struct TokenTable {
    texts: StringArray,
    ids: HashTable<TokenId>,
    hasher: DefaultHashBuilder,
}

impl TokenTable {
    /// The ids of all texts. Empty ones are left out: they stand for ids that are not in use.
    ///
    /// # Errors
    /// [`Error::DuplicateToken`].
    pub(super) fn new(texts: StringArray) -> Result<Self> {
        let hasher = DefaultHashBuilder::default();
        let mut ids = HashTable::with_capacity(texts.len());
        for (id, text) in texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
            let same = |&other: &TokenId| texts.get(other as usize) == Some(text);
            let hash = |&other: &TokenId| hasher.hash_one(texts.get(other as usize).unwrap_or_default());
            match ids.entry(hasher.hash_one(text), same, hash) {
                Entry::Vacant(place) => _ = place.insert(id as TokenId),
                Entry::Occupied(first) => {
                    return Err(Error::DuplicateToken {
                        text: text.to_owned(),
                        first: *first.get(),
                        second: id as TokenId,
                    });
                }
            }
        }
        Ok(Self { texts, ids, hasher })
    }

    pub(super) fn texts(&self) -> &StringArray {
        &self.texts
    }

    /// The id of a text.
    pub(super) fn get(&self, text: &str) -> Option<TokenId> {
        let same = |&id: &TokenId| self.texts.get(id as usize) == Some(text);
        self.ids.find(self.hasher.hash_one(text), same).copied()
    }
}

/// Properties of a token, as a set of flags, because they may come from both a file's type and a token's
/// text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes(u8);

impl Attributes {
    pub(super) const NONE: Self = Self(0);
    pub(super) const NORMAL: Self = Self(1);
    pub(super) const UNKNOWN: Self = Self(2);
    pub(super) const CONTROL: Self = Self(4);
    pub(super) const USER_DEFINED: Self = Self(8);
    pub(super) const BYTE: Self = Self(16);

    /// From `tokenizer.ggml.token_type`; unused (5) and unknown types have no attributes.
    pub(super) fn from_gguf(token_type: i32) -> Self {
        match token_type {
            1 => Self::NORMAL,
            2 => Self::UNKNOWN,
            3 => Self::CONTROL,
            4 => Self::USER_DEFINED,
            6 => Self::BYTE,
            _ => Self::NONE,
        }
    }

    pub(super) fn is(self, any_of: Self) -> bool {
        self.0 & any_of.0 != 0
    }

    pub(super) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Unknown and control tokens: not text, whatever their pieces are.
pub(super) const SPECIAL: Attributes = Attributes(Attributes::UNKNOWN.0 | Attributes::CONTROL.0);

/// Pieces and attributes of all tokens.
#[derive(Debug, Default)]
pub(super) struct Vocab {
    bytes: Vec<u8>,
    /// `ends[i]` is where the piece of token `i` ends within `bytes`.
    ends: Vec<u32>,
    attributes: Vec<Attributes>,
}

impl Vocab {
    pub(super) fn with_capacity(n_tokens: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(n_tokens * 8),
            ends: Vec::with_capacity(n_tokens),
            attributes: Vec::with_capacity(n_tokens),
        }
    }

    /// Adds the next token; `write` appends its piece.
    pub(super) fn push(&mut self, attributes: Attributes, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        // A piece is never longer than its text, and a file's texts stay below 4 GiB together.
        self.ends.push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
        self.attributes.push(attributes);
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn piece(&self, token: TokenId) -> Option<&[u8]> {
        let index = token as usize;
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        self.bytes.get(start..end)
    }

    pub(super) fn attributes(&self, token: TokenId) -> Option<Attributes> {
        self.attributes.get(token as usize).copied()
    }

    pub(super) fn check(&self, token: TokenId) -> Result<()> {
        if (token as usize) < self.len() {
            Ok(())
        } else {
            Err(Error::TokenOutOfRange { token, vocab_size: self.len() })
        }
    }
}
