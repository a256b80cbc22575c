use crate::{BoxError, Message, TokenId, Tool};

/// The tokens of a model: what each stands for.
pub trait Vocabulary: Send + Sync {
    /// Number of tokens; ids below it are valid.
    fn n_tokens(&self) -> usize;

    /// The bytes that a token stands for, which need not be whole characters; control tokens as they are
    /// spelled. Empty for ids that are not in use, `None` outside of the vocabulary.
    fn token_bytes(&self, token: TokenId) -> Option<&[u8]>;

    /// Whether a token is not text: a control token, or the one for unknown text.
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

    /// The tokens of a conversation in a model's form, up to where its answer begins. Control tokens are
    /// those that the form writes: what is spelled like one in a message or a tool is text, so nobody can
    /// speak for another.
    ///
    /// # Errors
    /// Those of the form and of the tokenizer.
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
    /// Adds what the model wants around a text (a token that begins it, one that ends it), if it wants any.
    pub add_special: bool,
    /// Takes the spelling of a control token for the token. Off for text of unknown origin.
    pub parse_special: bool,
}

impl Default for EncodeOptions {
    /// What the model wants around a text is added; control tokens in it are text.
    fn default() -> Self {
        Self { add_special: true, parse_special: false }
    }
}

/// The form of a conversation that a model was trained on: its chat template.
pub trait ChatFormat: Send + Sync {
    /// The prompt for a conversation, up to where the model's answer begins. It holds all control tokens as
    /// they are spelled.
    ///
    /// # Errors
    /// The format's own, for a conversation that it does not accept.
    fn render(&self, messages: &[Message], tools: &[Tool]) -> Result<String, BoxError>;
}

/// Puts characters together that arrive in pieces of bytes, and never splits one.
///
/// Bytes that can no longer become a character appear as U+FFFD, as in [`String::from_utf8_lossy`], so that
/// at most three bytes ever wait.
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

    /// Ends the text: what still waits can no longer become a character.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.waiting.is_empty() {
            self.waiting.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        &self.text
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
