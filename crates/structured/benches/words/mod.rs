//! A vocabulary of the size of those in use, cut from texts.

use std::collections::{BTreeSet, HashMap};

use breakers_core::{BoxError, ChatFormat, EncodeOptions, Message, TokenId, Tokenizer, Tool, Vocabulary};

/// Tokens: all bytes, one that ends a text, and pieces of texts. Texts are cut greedily.
pub(crate) struct Words {
    words: Vec<Vec<u8>>,
    ids: HashMap<Vec<u8>, TokenId>,
    longest: usize,
}

const N_TOKENS: usize = 151_936;
const END: TokenId = 256;

impl Words {
    /// Pieces of texts: words with a space or signs before them, runs of signs, and syllables put together
    /// until there are enough.
    pub(crate) fn cut_from(texts: &[String]) -> Self {
        let mut pieces: BTreeSet<Vec<u8>> = BTreeSet::new();
        for text in texts {
            let mut piece = Vec::new();
            for c in text.chars() {
                let is_start = piece.last().is_some_and(|last: &u8| last.is_ascii_alphanumeric())
                    != c.is_alphanumeric()
                    && !piece.is_empty()
                    && piece != b" ";
                if is_start || piece.len() > 12 {
                    pieces.insert(std::mem::take(&mut piece));
                }
                piece.extend(c.to_string().bytes());
            }
            if pieces.len() > N_TOKENS / 2 {
                break;
            }
        }
        const SYLLABLES: [&str; 24] = [
            "al", "ber", "co", "den", "er", "fi", "ga", "ho", "in", "ju", "ka", "lo", "ment", "na", "or",
            "per", "qui", "re", "sta", "tion", "un", "ver", "wi", "zu",
        ];
        let mut state = 1u64;
        let mut draw = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        const ENDS: [&str; 16] = [
            "\"", "\",", "\":", "\"}", "\"]", "\"\n", ",", "}", "]", ".", ");", "();", "\\n", ": ", "()", "'",
        ];
        while pieces.len() < N_TOKENS - 257 {
            let n = 1 + draw(4);
            let mut word: String = if draw(2) == 0 { " ".to_owned() } else { String::new() };
            (0..n).for_each(|_| word.push_str(SYLLABLES[draw(SYLLABLES.len())]));
            // A few hold signs, as pieces of code do.
            if draw(24) == 0 {
                word.push_str(ENDS[draw(ENDS.len())]);
            }
            pieces.insert(word.into_bytes());
        }
        let bytes = (0..=255u8).map(|byte| vec![byte]).chain([b"<end>".to_vec()]);
        let mut words: Vec<Vec<u8>> = bytes.collect();
        words.extend(pieces.into_iter().filter(|piece| piece.len() > 1));
        words.truncate(N_TOKENS);
        let ids = words.iter().enumerate().filter(|(id, _)| *id != END as usize);
        let ids = ids.map(|(id, word)| (word.clone(), id as TokenId)).collect();
        let longest = words.iter().map(Vec::len).max().unwrap_or(1);
        Self { words, ids, longest }
    }
}

impl Vocabulary for Words {
    fn n_tokens(&self) -> usize {
        self.words.len()
    }
    fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        self.words.get(token as usize).map(Vec::as_slice)
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

impl Tokenizer for Words {
    fn encode(&self, text: &str, _options: EncodeOptions) -> Result<Vec<TokenId>, BoxError> {
        let (mut rest, mut tokens) = (text.as_bytes(), Vec::new());
        while !rest.is_empty() {
            let lengths = (1..=rest.len().min(self.longest)).rev();
            let found = lengths.into_iter().find_map(|n| Some((n, *self.ids.get(&rest[..n])?)));
            let (n, token) = found.ok_or("a byte is missing")?;
            tokens.push(token);
            rest = &rest[n..];
        }
        Ok(tokens)
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
