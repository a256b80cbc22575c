// A tokenizer whose tokens are bytes. Included by the tests and by an example in the crate's documentation.

use breakers_core::{BoxError, ChatFormat, EncodeOptions, Message, TokenId, Tokenizer, Tool, Vocabulary};

/// Each byte is a token, and there are no special ones.
pub(crate) struct Bytes;

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
        BYTES.len()
    }
    fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        BYTES.get(token as usize..token as usize + 1)
    }
    fn is_control(&self, _token: TokenId) -> bool {
        false
    }
    fn end_tokens(&self) -> &[TokenId] {
        &[]
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
