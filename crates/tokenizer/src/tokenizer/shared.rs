//! Implements the traits of `breakers-core` for the tokenizer.

use breakers_core::{BoxError, ChatFormat, EncodeOptions, Message, TokenId, Tool, Vocabulary};

use super::Tokenizer;

impl Vocabulary for Tokenizer {
    fn n_tokens(&self) -> usize {
        self.vocab_size()
    }
    fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        Tokenizer::token_bytes(self, token)
    }
    fn is_control(&self, token: TokenId) -> bool {
        Tokenizer::is_control(self, token)
    }
    fn end_tokens(&self) -> &[TokenId] {
        Tokenizer::end_tokens(self)
    }
    fn begin_token(&self) -> Option<TokenId> {
        self.bos()
    }
}

impl breakers_core::Tokenizer for Tokenizer {
    fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<TokenId>, BoxError> {
        Ok(Tokenizer::encode(self, text, options)?)
    }

    fn encode_chat(
        &self,
        format: &dyn ChatFormat,
        messages: &[Message],
        tools: &[Tool],
    ) -> Result<Vec<TokenId>, BoxError> {
        self.encode_in_format(format, messages, tools)
    }
}
