// A tokenizer whose tokens are bytes, and a few words. Included by the tests and by an example in the crate's
// documentation.

use breakers_core::{BoxError, ChatFormat, EncodeOptions, Message, TokenId, Tokenizer, Tool, Vocabulary};

/// Each byte is a token, some pieces of JSON are, and one token ends a text.
pub(crate) struct Bytes;

/// The token that ends a text.
pub(crate) const END: TokenId = 256;
/// Tokens of several bytes, as real vocabularies have them.
const PIECES: [&[u8]; 8] = [b"<end>", b"{\"", b"\":", b"\",\"", b"\"}", b"true", b"}}", b" \""];

/// All bytes, so that each can be borrowed.
static BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut i = 0;
    while i < 256 {
        bytes[i] = i as u8;
        i += 1;
    }
    bytes
};

impl Vocabulary for Bytes {
    fn n_tokens(&self) -> usize {
        BYTES.len() + PIECES.len()
    }
    fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        match token {
            0..256 => BYTES.get(token as usize..token as usize + 1),
            _ => PIECES.get(token as usize - 256).copied(),
        }
    }
    fn is_control(&self, token: TokenId) -> bool {
        token == END
    }
    fn end_tokens(&self) -> &[TokenId] {
        &[END]
    }
    fn begin_token(&self) -> Option<TokenId> {
        None
    }
}

impl Tokenizer for Bytes {
    fn encode(&self, text: &str, _options: EncodeOptions) -> Result<Vec<TokenId>, BoxError> {
        Ok(text.bytes().map(TokenId::from).collect())
    }
    fn encode_chat(
        &self,
        format: &dyn ChatFormat,
        messages: &[Message],
        tools: &[Tool],
    ) -> Result<Vec<TokenId>, BoxError> {
        self.encode(&format.render(messages, tools)?, EncodeOptions::default())
    }
}
