//! The tokens of a mask after which readers of JSON would not all see the same in a text: found without
//! trying each token, because nearly none is of this kind.

use breakers_core::{TokenId, TokenMask};

use super::Checked;
use super::tracker::{DEPTH, Lexeme, PLAIN_NUMBER, open_escape};

/// Tokens that may do what texts must not do.
pub(super) struct Unsound {
    /// All, by their bytes: those that go on in a certain way stand together.
    by_bytes: Vec<TokenId>,
    /// With two quotes or more: a whole name may be in them.
    two_quotes: Vec<TokenId>,
    three_quotes: Vec<TokenId>,
    /// With an escape by number.
    escapes: Vec<TokenId>,
    /// With an exponent of three digits or more, with many digits, or with `-0`.
    numbers: Vec<TokenId>,
    /// Those of them that may end a text first.
    numbers_behind_texts: Vec<TokenId>,
    /// Digits and points that one token begins with at most.
    most_digits: usize,
    brackets: Vec<TokenId>,
    /// Brackets that one token opens at most.
    most_brackets: usize,
}

impl Unsound {
    pub(super) fn new(words: &[Vec<u8>]) -> Self {
        let all = || 0..words.len() as TokenId;
        let word = |token: TokenId| &*words[token as usize];
        let of = |is_one: &dyn Fn(&[u8]) -> bool| -> Vec<TokenId> {
            all().filter(|&token| is_one(word(token))).collect()
        };
        let quotes = |word: &[u8]| word.iter().filter(|byte| **byte == b'"').count();
        let brackets = |word: &[u8]| word.iter().filter(|byte| matches!(byte, b'[' | b'{')).count();
        let has_number = |word: &[u8]| {
            let digits = word.iter().filter(|byte| byte.is_ascii_digit()).count();
            digits >= PLAIN_NUMBER || has_long_exponent(word) || word.windows(2).any(|pair| pair == b"-0")
        };
        let mut by_bytes: Vec<TokenId> = all().collect();
        by_bytes.sort_unstable_by_key(|&token| word(token));
        Self {
            by_bytes,
            two_quotes: of(&|word| quotes(word) >= 2),
            three_quotes: of(&|word| quotes(word) >= 3),
            escapes: of(&|word| word.windows(2).any(|pair| pair == b"\\u")),
            numbers: of(&has_number),
            numbers_behind_texts: of(&|word| quotes(word) > 0 && has_number(word)),
            most_digits: words.iter().map(|word| leading_digits(word)).max().unwrap_or(0),
            brackets: of(&|word| brackets(word) > 0),
            most_brackets: words.iter().map(|word| brackets(word)).max().unwrap_or(0),
        }
    }

    /// All tokens, by their bytes.
    pub(super) fn by_bytes(&self) -> &[TokenId] {
        &self.by_bytes
    }
}

fn leading_digits(word: &[u8]) -> usize {
    word.iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'.').count()
}

fn has_long_exponent(word: &[u8]) -> bool {
    let mut rest = word;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'e' | b'E')) {
        rest = &rest[at + 1..];
        let digits = rest.strip_prefix(b"+").or_else(|| rest.strip_prefix(b"-")).unwrap_or(rest);
        if digits.iter().take_while(|byte| byte.is_ascii_digit()).count() > 2 {
            return true;
        }
    }
    false
}

impl Checked {
    /// Forbids the tokens after which the text would not be sound.
    pub(super) fn restrict_to_sound(&mut self, mask: &mut TokenMask) {
        let tokens = self.tokens.clone();
        let unsound = &tokens.unsound;
        let mut suspects: Vec<TokenId> = Vec::new();
        let mut add = |tokens: &[TokenId]| {
            suspects.extend(tokens.iter().filter(|&&token| mask.is_allowed(token)));
        };
        match self.place.lexeme {
            Lexeme::Text { .. } => add(&unsound.numbers_behind_texts),
            _ => add(&unsound.numbers),
        }
        let depth = self.place.frame.as_ref().map_or(0, |frame| frame.depth + 1);
        if depth + unsound.most_brackets > DEPTH {
            add(&unsound.brackets);
        }
        let mut repeated = Vec::new();
        match self.place.lexeme {
            Lexeme::Text { start, is_name: true, is_escaped } => {
                let name = &self.text[start..];
                if is_escaped || open_escape(name).is_some_and(|digits| digits.len() < 4) {
                    suspects.extend(mask.iter());
                } else {
                    add(&unsound.escapes);
                    add(&unsound.three_quotes);
                    repeated = self.repetitions(name);
                }
            }
            Lexeme::Text { .. } => add(&unsound.three_quotes),
            Lexeme::Scalar { start } => {
                add(&unsound.two_quotes);
                let number = &self.text[start..];
                let is_long = number.len() + unsound.most_digits > PLAIN_NUMBER;
                if is_long
                    || number == b"-"
                    || number == b"-0"
                    || number.iter().any(|byte| matches!(byte, b'e' | b'E'))
                {
                    let goes_on =
                        |byte: &u8| number == b"-0" || byte.is_ascii_digit() || b"eE+-.".contains(byte);
                    suspects.extend(mask.iter().filter(|&token| {
                        tokens.words.get(token as usize).is_some_and(|word| word.first().is_some_and(goes_on))
                    }));
                }
            }
            Lexeme::None | Lexeme::Announced => add(&unsound.two_quotes),
        }
        repeated.iter().for_each(|&token| mask.forbid(token));
        for token in suspects {
            let Some(word) = tokens.words.get(token as usize) else { continue };
            if !tokens.end_tokens.contains(&token) && !self.is_sound(word) {
                mask.forbid(token);
            }
        }
    }

    /// The tokens that end the name that is open as one of those before it.
    fn repetitions(&self, name: &[u8]) -> Vec<TokenId> {
        let tokens = &self.tokens;
        let word = |token: TokenId| &*tokens.words[token as usize];
        let by_bytes = &tokens.unsound.by_bytes;
        let mut found = Vec::new();
        for child in self.place.frame.iter().flat_map(|frame| frame.children()) {
            let Some(quoted) = child.key.as_deref().and_then(|key| serde_json::to_string(key).ok()) else {
                continue;
            };
            let Some(rest) = quoted.as_bytes()[1..].strip_prefix(name) else { continue };
            let from = by_bytes.partition_point(|&token| word(token) < rest);
            found.extend(by_bytes[from..].iter().take_while(|&&token| word(token).starts_with(rest)));
        }
        found
    }

    /// Whether the text ends with a zero below zero, which must not be all of a number.
    pub(crate) fn is_below_zero(&self) -> bool {
        matches!(self.place.lexeme, Lexeme::Scalar { start } if &self.text[start..] == b"-0")
    }

    /// The tokens of a mask that may make it so.
    pub(crate) fn zeros(&self, mask: &TokenMask) -> Vec<TokenId> {
        let is_signed = matches!(self.place.lexeme, Lexeme::Scalar { start } if &self.text[start..] == b"-");
        let numbers = match self.place.lexeme {
            Lexeme::Text { .. } => &self.tokens.unsound.numbers_behind_texts,
            _ => &self.tokens.unsound.numbers,
        };
        let numbers = numbers.iter().copied();
        let minus_zeros = numbers.filter(|&token| mask.is_allowed(token));
        let word = |token: TokenId| &*self.tokens.words[token as usize];
        let mut found: Vec<TokenId> = minus_zeros.filter(|&token| word(token).ends_with(b"-0")).collect();
        if is_signed {
            let zero =
                |token: &TokenId| self.tokens.words.get(*token as usize).is_some_and(|word| word == b"0");
            found.extend(mask.iter().filter(zero));
        }
        found
    }

    fn is_sound(&mut self, word: &[u8]) -> bool {
        let check = self.check.take();
        let is_sound = self.try_word(word, false);
        self.check = check;
        is_sound
    }
}
