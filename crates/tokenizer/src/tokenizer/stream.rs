//! Text out of tokens as they arrive.

use breakers_core::TokenId;

use super::{DecodeOptions, Tokenizer};
use crate::Result;

/// Turns tokens into text one at a time and never splits a character.
///
/// A token may end within a character; such bytes wait for the next token. All pieces together, with the
/// one that [`TextStream::finish`] gives, are what [`Tokenizer::decode`] gives for all tokens together:
/// bytes that can no longer become a character appear as U+FFFD, as in [`String::from_utf8_lossy`], so
/// that at most three bytes ever wait.
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
    /// Bytes that may be the start of a character.
    waiting: Vec<u8>,
    text: String,
    at_start: bool,
}

impl TextStream {
    pub(super) fn new(tokenizer: Tokenizer, options: DecodeOptions) -> Self {
        Self { tokenizer, options, waiting: Vec::new(), text: String::new(), at_start: true }
    }

    /// The text that `token` completes; empty if it ends within a character or is no text.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`](crate::Error::TokenOutOfRange); the stream is as before then.
    pub fn push(&mut self, token: TokenId) -> Result<&str> {
        self.text.clear();
        let piece = self.tokenizer.piece(token, self.options, &mut self.at_start)?;
        self.waiting.extend_from_slice(piece);
        let done = drain_characters(&self.waiting, &mut self.text);
        self.waiting.drain(..done);
        Ok(&self.text)
    }

    /// Ends the text: what still waits can no longer become a character.
    pub fn finish(mut self) -> String {
        self.text.clear();
        if !self.waiting.is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        self.text
    }
}

/// Appends the characters of `bytes`, U+FFFD for what cannot become one; gives the bytes consumed.
fn drain_characters(bytes: &[u8], out: &mut String) -> usize {
    let mut at = 0;
    loop {
        match std::str::from_utf8(&bytes[at..]) {
            Ok(text) => {
                out.push_str(text);
                return bytes.len();
            }
            Err(error) => {
                let valid = at + error.valid_up_to();
                out.extend(std::str::from_utf8(&bytes[at..valid]));
                let Some(invalid) = error.error_len() else { return valid };
                out.push(char::REPLACEMENT_CHARACTER);
                at = valid + invalid;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_join_to_the_lossy_text(
            chunks in prop::collection::vec(prop::collection::vec(
                prop_oneof![any::<u8>(), Just(0xf0), Just(0x9f), Just(0x98), Just(0x80), Just(0xe2)], 0..6), 0..20)
        ) {
            let (mut waiting, mut text) = (Vec::new(), String::new());
            for chunk in &chunks {
                waiting.extend_from_slice(chunk);
                let done = drain_characters(&waiting, &mut text);
                waiting.drain(..done);
                prop_assert!(waiting.len() <= 3);
            }
            if !waiting.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            let whole = chunks.concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&whole));
        }
    }
}
