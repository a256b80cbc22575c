//! A vocabulary of bytes in which some markers are control tokens, as in the models that have them.

use breakers_core::{BoxError, ChatFormat, EncodeOptions, Message, TokenId, Tokenizer, Tool, Vocabulary};

use crate::bytes::Bytes;

/// Markers that are control tokens in the vocabularies of their models.
const MARKERS: [&str; 6] =
    ["<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call>", "<tool_call|>", "<|\"|>"];

pub(super) struct Marked;

impl Marked {
    /// A text as tokens, markers as these.
    pub(super) fn tokens(mut text: &str) -> Vec<TokenId> {
        let mut out = Vec::new();
        while let Some(first) = text.bytes().next() {
            match MARKERS.iter().position(|marker| text.starts_with(marker)) {
                Some(at) => {
                    out.push((Bytes.n_tokens() + at) as TokenId);
                    text = &text[MARKERS[at].len()..];
                }
                None => {
                    // Characters of several bytes are tokens of several bytes.
                    let n = text.chars().next().map_or(1, char::len_utf8);
                    out.extend(text.as_bytes()[..n].iter().map(|&byte| TokenId::from(byte)));
                    let _ = first;
                    text = &text[n..];
                }
            }
        }
        out
    }
}

impl Vocabulary for Marked {
    fn n_tokens(&self) -> usize {
        Bytes.n_tokens() + MARKERS.len()
    }
    fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        match (token as usize).checked_sub(Bytes.n_tokens()) {
            Some(at) => MARKERS.get(at).map(|marker| marker.as_bytes()),
            None => Bytes.token_bytes(token),
        }
    }
    fn is_control(&self, token: TokenId) -> bool {
        token as usize >= Bytes.n_tokens() || Bytes.is_control(token)
    }
    fn end_tokens(&self) -> &[TokenId] {
        Bytes.end_tokens()
    }
    fn begin_token(&self) -> Option<TokenId> {
        None
    }
}

impl Tokenizer for Marked {
    fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<TokenId>, BoxError> {
        Bytes.encode(text, options)
    }
    fn encode_chat(
        &self,
        format: &dyn ChatFormat,
        messages: &[Message],
        tools: &[Tool],
    ) -> Result<Vec<TokenId>, BoxError> {
        Bytes.encode_chat(format, messages, tools)
    }
}
