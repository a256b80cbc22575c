//! Turning tokens into text as they arrive.

use breakers_core::{TokenId, Utf8Stream};

use super::{DecodeOptions, Tokenizer};
use crate::Result;

/// Turns tokens into text one at a time and never splits a character.
///
/// A token may end within a character; such bytes are held back until the next token. All pieces together,
/// including that of [`TextStream::finish`], are what [`Tokenizer::decode`] returns for all tokens: bytes
/// that can no longer become a character appear as U+FFFD, as in [`String::from_utf8_lossy`], so at most
/// three bytes are ever held back.
///
/// ```
/// use breakers_tokenizer::{DecodeOptions, Tokenizer};
///
/// # fn main() -> Result<(), breakers_tokenizer::Error> {
/// // Each byte is a token here, and "é" is two of them.
/// let mut stream = Tokenizer::bytes().stream(DecodeOptions::default());
/// assert_eq!(stream.push(0x6e)?, "n");
/// assert_eq!(stream.push(0xc3)?, "");
/// assert_eq!(stream.push(0xa9)?, "é");
/// assert_eq!(stream.finish(), "");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    options: DecodeOptions,
    characters: Utf8Stream,
    at_start: bool,
}

impl TextStream {
    pub(super) fn new(tokenizer: Tokenizer, options: DecodeOptions) -> Self {
        Self { tokenizer, options, characters: Utf8Stream::default(), at_start: true }
    }

    /// The text that `token` completes; empty if it ends within a character or is not text.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`](crate::Error::TokenOutOfRange); the stream is then unchanged.
    pub fn push(&mut self, token: TokenId) -> Result<&str> {
        let piece = self.tokenizer.piece(token, self.options, &mut self.at_start)?;
        Ok(self.characters.push(piece))
    }

    /// Ends the text: bytes still held back can no longer become a character.
    pub fn finish(mut self) -> String {
        self.characters.finish().to_owned()
    }
}
