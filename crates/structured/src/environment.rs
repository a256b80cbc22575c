//! A vocabulary as the engine wants it: a tree of all tokens, and a tokenizer for what is determined.

use std::sync::Arc;

use breakers_core::{EncodeOptions, TokenId, Tokenizer};
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use crate::check::Tokens;
use crate::{Error, Result};

/// Texts of the kind that grammars determine. A tokenizer that gives them back byte for byte adds nothing of
/// its own.
const PROBES: [&str; 6] = ["{\"name\": \"", "\": [", "true", "a", " a", "\n</tool_call>"];

struct Environment {
    tokenizer: Arc<dyn Tokenizer>,
    trie: TokTrie,
    is_canonical: bool,
}

impl Environment {
    fn encode(&self, text: &str) -> Option<Vec<TokenId>> {
        let options = EncodeOptions { add_special: false, parse_special: false };
        let tokens = self.tokenizer.encode(text, options).ok()?;
        let bytes: Vec<u8> =
            tokens.iter().filter_map(|&token| self.tokenizer.token_bytes(token)).flatten().copied().collect();
        let is_text = tokens.iter().all(|&token| !self.tokenizer.is_control(token));
        (is_text && bytes == text.as_bytes()).then_some(tokens)
    }
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let tokens = std::str::from_utf8(bytes).ok().and_then(|text| self.encode(text));
        tokens.unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.is_canonical
    }
}

/// With the bytes of the tokens that texts are made of.
///
/// # Errors
/// [`Error::NoEndToken`].
pub(crate) fn environment(tokenizer: Arc<dyn Tokenizer>) -> Result<(TokEnv, Tokens)> {
    let n_tokens = tokenizer.n_tokens();
    let end_tokens = tokenizer.end_tokens().to_vec();
    let Some(&end) = end_tokens.first() else { return Err(Error::NoEndToken { n_tokens }) };
    let word = |token: TokenId| {
        let bytes = tokenizer.token_bytes(token).unwrap_or_default();
        // The engine's mark of tokens that no text spells.
        if tokenizer.is_control(token) {
            [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
        } else {
            bytes.to_vec()
        }
    };
    let words: Vec<Vec<u8>> = (0..n_tokens as TokenId).map(word).collect();
    let trie = TokTrie::from(&TokRxInfo::new(n_tokens as u32, end), &words).with_eos_tokens(&end_tokens);
    let tokens = Tokens::new(words, end_tokens);
    let mut environment = Environment { tokenizer, trie, is_canonical: false };
    environment.is_canonical = PROBES.iter().all(|text| environment.encode(text).is_some());
    Ok((Arc::new(environment), tokens))
}
