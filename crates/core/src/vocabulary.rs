use crate::{BoxError, Message, TokenId, Tool};

/// The tokens of a model and what each stands for.
pub trait Vocabulary: Send + Sync {
    /// Number of tokens; ids below it are valid.
    fn n_tokens(&self) -> usize;

    /// The bytes that a token stands for, which need not be whole characters; for a control token, its
    /// spelling. Empty for ids that are not in use, `None` outside of the vocabulary.
    fn token_bytes(&self, token: TokenId) -> Option<&[u8]>;

    /// Whether a token stands for something other than text: a control token, or the token for unknown text.
    fn is_control(&self, token: TokenId) -> bool;

    /// Tokens after which a text ends, in ascending order.
    fn end_tokens(&self) -> &[TokenId];

    /// The token that begins a text, if there is one.
    fn begin_token(&self) -> Option<TokenId>;
}

/// Turns text into tokens. Its [`Vocabulary`] turns them back.
pub trait Tokenizer: Vocabulary {
    /// The tokens of a text.
    ///
    /// # Errors
    /// The tokenizer's own, for a text that its vocabulary cannot express.
    fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<TokenId>, BoxError>;

    /// The tokens of a conversation in the model's chat format, up to where its answer begins. Only the
    /// format itself writes control tokens: what looks like one in a message or a tool is encoded as text, so
    /// that no message can pose as another speaker.
    ///
    /// # Errors
    /// Those of the chat format and of the tokenizer.
    fn encode_chat(
        &self,
        format: &dyn ChatFormat,
        messages: &[Message],
        tools: &[Tool],
    ) -> Result<Vec<TokenId>, BoxError>;
}

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EncodeOptions {
    /// Add the tokens that the model expects around a text (to begin it, to end it), if any.
    pub add_special: bool,
    /// Read the spelling of a control token as that token. Leave it off for text of unknown origin.
    pub parse_special: bool,
}

impl Default for EncodeOptions {
    /// Adds the tokens that the model expects around a text; reads control tokens in it as text.
    fn default() -> Self {
        Self { add_special: true, parse_special: false }
    }
}

/// The conversation format that a model was trained on: its chat template.
pub trait ChatFormat: Send + Sync {
    /// The prompt for a conversation, up to where the model's answer begins, with control tokens spelled out.
    ///
    /// # Errors
    /// The format's own error, for a conversation that it does not accept.
    fn render(&self, messages: &[Message], tools: &[Tool]) -> Result<String, BoxError>;
}

/// Assembles whole characters from bytes that arrive in pieces.
///
/// Bytes that can no longer become a character appear as U+FFFD, as in [`String::from_utf8_lossy`], so at
/// most three bytes are ever held back.
///
/// # Example
/// ```
/// use breakers_core::Utf8Stream;
///
/// let mut stream = Utf8Stream::default();
/// assert_eq!(stream.push(b"caf\xc3"), "caf");
/// assert_eq!(stream.push(b"\xa9"), "é");
/// assert_eq!(stream.finish(), "");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// Bytes that may be the start of a character.
    waiting: Vec<u8>,
    text: String,
}

impl Utf8Stream {
    /// The text that `bytes` complete; empty if they end within a character.
    pub fn push(&mut self, bytes: &[u8]) -> &str {
        self.text.clear();
        self.waiting.extend_from_slice(bytes);
        let done = drain_characters(&self.waiting, &mut self.text);
        self.waiting.drain(..done);
        &self.text
    }

    /// Ends the text: bytes still held back can no longer become a character.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.waiting.is_empty() {
            self.waiting.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        &self.text
    }
}

/// Appends the characters of `bytes`, with U+FFFD for what cannot become one; returns the number of bytes
/// consumed.
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
            let (mut stream, mut text) = (Utf8Stream::default(), String::new());
            for chunk in &chunks {
                text += stream.push(chunk);
                prop_assert!(stream.waiting.len() <= 3);
            }
            text += stream.finish();
            let whole = chunks.concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&whole));
        }
    }
}
