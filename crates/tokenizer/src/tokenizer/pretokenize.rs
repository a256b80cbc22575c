//! Splitting text into words; byte-level BPE merges only within a word.
//!
//! Every model of this family comes with a regular expression; the few expressions in use are written out
//! here as scanners, whose time is linear in the length of any text.
//!
//! # Source
//! The expressions are those of GPT-2, Llama 3 and Qwen2, named as llama.cpp names them in
//! `tokenizer.ggml.pre`. Where llama.cpp's rules differ from the original tokenizer.json (contractions match
//! ASCII letters only), this follows llama.cpp.

use super::unicode::{Class, class, is_space};

/// The rule by which a model splits text into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// Every `\p{N}` by itself, then as [`PreTokenizer::Gpt2`].
    Gpt2Digits,
    /// Runs of `[\p{P}$+<=>^~|]` (and a backtick, if so), then as [`PreTokenizer::Gpt2`], then numbers apart
    /// from the space before them (if so), then runs of ASCII digits in threes.
    Punctuation { backtick: bool, numbers: bool },
    /// `'(?i:s|t|re|ve|m|ll|d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}|
    /// ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`, with `\p{M}` beside each `\p{L}`
    /// after the first if `marks`.
    Cased { digits: usize, marks: bool },
}

impl PreTokenizer {
    /// The rule that a value of `tokenizer.ggml.pre` stands for.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" | "jina-es"
            | "jina-de" | "jina-v1-en" | "jina-v2-es" | "jina-v2-de" | "jina-v2-code" | "roberta-bpe"
            | "gigachat" | "a.x-4.0" | "mellum" | "modern-bert" | "exaone4" => Self::Gpt2,
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b"
            | "mellum2" => Self::Gpt2Digits,
            "default" => Self::Punctuation { backtick: false, numbers: true },
            "falcon" => Self::Punctuation { backtick: true, numbers: false },
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0"
            | "lfm2" | "jina-v5-nano" | "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" => {
                Self::Cased { digits: 3, marks: false }
            }
            "qwen2" | "deepseek-r1-qwen" | "megrez" | "stablelm2" | "hunyuan" | "solar-open" | "grok-2"
            | "kormo" | "f2llmv2" => Self::Cased { digits: 1, marks: false },
            "qwen35" => Self::Cased { digits: 1, marks: true },
            _ => return None,
        })
    }

    /// Calls `word` for each word of `text` in order; together they are the text.
    pub(super) fn split<'a>(self, text: &'a str, mut word: impl FnMut(&'a str)) {
        match self {
            Self::Gpt2 => each(text, gpt2_word, word),
            Self::Gpt2Digits => each(text, number_or_rest, |piece| each(piece, gpt2_word, &mut word)),
            Self::Punctuation { backtick, numbers } => each(
                text,
                |rest| punctuation_or_rest(rest, backtick),
                |piece| {
                    each(piece, gpt2_word, |piece| {
                        if !numbers {
                            return each(piece, three_digits_or_rest, &mut word);
                        }
                        each(piece, numbers_or_rest, |piece| each(piece, three_digits_or_rest, &mut word));
                    });
                },
            ),
            Self::Cased { digits, marks } => each(text, |rest| cased_word(rest, digits, marks), word),
        }
    }
}

/// Cuts `text` into pieces of the length that `first` gives for the rest.
fn each<'a>(mut text: &'a str, first: impl Fn(&str) -> usize, mut piece: impl FnMut(&'a str)) {
    while !text.is_empty() {
        let (head, rest) = text.split_at(first(text));
        debug_assert!(!head.is_empty());
        piece(head);
        text = rest;
    }
}

/// The classes of characters that the expressions distinguish.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Letter,
    Number,
    Space,
    Mark,
    Other,
}

fn kind(c: char) -> Kind {
    if is_space(c) {
        return Kind::Space;
    }
    match class(c) {
        Class::Letter => Kind::Letter,
        Class::Number => Kind::Number,
        Class::SpacingMark | Class::NonspacingMark => Kind::Mark,
        _ => Kind::Other,
    }
}

/// Bytes of the longest start of `text` whose characters all satisfy `is`.
fn run(text: &str, mut is: impl FnMut(char) -> bool) -> usize {
    text.char_indices().find(|&(_, c)| !is(c)).map_or(text.len(), |(at, _)| at)
}

fn gpt2_word(text: &str) -> usize {
    if let Some(len) = contraction(text, false) {
        return len;
    }
    let fold = |c| if kind(c) == Kind::Mark { Kind::Other } else { kind(c) };
    let skip = usize::from(text.starts_with(' '));
    if let Some(first) = text[skip..].chars().next().map(fold).filter(|&k| k != Kind::Space) {
        return skip + run(&text[skip..], |c| fold(c) == first);
    }
    spaces(text)
}

fn cased_word(text: &str, digits: usize, marks: bool) -> usize {
    if let Some(len) = contraction(text, true) {
        return len;
    }
    let is_letter = |c: char| match kind(c) {
        Kind::Letter => true,
        Kind::Mark => marks,
        _ => false,
    };
    let is_other = |c: char| match kind(c) {
        Kind::Other => true,
        Kind::Mark => !marks,
        _ => false,
    };
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    let second = chars.next();
    let first_is_number = kind(first) == Kind::Number;
    if !matches!(first, '\r' | '\n')
        && !first_is_number
        && (is_letter(first) || second.is_some_and(is_letter))
    {
        let skip = first.len_utf8();
        return skip + run(&text[skip..], is_letter);
    }
    if first_is_number {
        let mut left = digits;
        return run(text, |c| {
            let more = left > 0 && kind(c) == Kind::Number;
            left = left.saturating_sub(1);
            more
        });
    }
    let skip = usize::from(first == ' ');
    let others = run(&text[skip..], is_other);
    if others > 0 {
        let end = skip + others;
        return end + run(&text[end..], |c| matches!(c, '\r' | '\n'));
    }
    let end = run(text, is_space);
    match text[..end].rfind(['\r', '\n']) {
        Some(newline) => newline + 1,
        None => spaces(text),
    }
}

/// `\s+(?!\S)|\s+`: the last space before a word belongs to the word.
fn spaces(text: &str) -> usize {
    let end = run(text, is_space);
    let last = text[..end].chars().next_back().map_or(0, char::len_utf8);
    if end < text.len() && end > last { end - last } else { end }
}

/// `'s|'t|'re|'ve|'m|'ll|'d`
fn contraction(text: &str, any_case: bool) -> Option<usize> {
    let bytes = text.as_bytes();
    if bytes.first() != Some(&b'\'') {
        return None;
    }
    let at = |i: usize| bytes.get(i).map(|b| if any_case { b.to_ascii_lowercase() } else { *b });
    match (at(1), at(2)) {
        (Some(b's' | b't' | b'm' | b'd'), _) => Some(2),
        (Some(b'r' | b'v'), Some(b'e')) | (Some(b'l'), Some(b'l')) => Some(3),
        _ => None,
    }
}

fn is_number(c: char) -> bool {
    kind(c) == Kind::Number
}

/// One number, or all that comes before the next.
fn number_or_rest(text: &str) -> usize {
    let first = text.chars().next().filter(|&c| is_number(c));
    first.map_or_else(|| run(text, |c| !is_number(c)), char::len_utf8)
}

/// A run of numbers, or all that comes before the next.
fn numbers_or_rest(text: &str) -> usize {
    let first = text.starts_with(is_number);
    run(text, |c| is_number(c) == first)
}

/// A run of punctuation, or all that comes before the next.
fn punctuation_or_rest(text: &str, backtick: bool) -> usize {
    let is = |c: char| {
        matches!(c, '$' | '+' | '<' | '=' | '>' | '^' | '~' | '|')
            || (c == '`' && backtick)
            || class(c) == Class::Punctuation
    };
    let first = text.starts_with(is);
    run(text, |c| is(c) == first)
}

/// Three ASCII digits, or all that comes before the next three.
fn three_digits_or_rest(text: &str) -> usize {
    let digits = |window: &[u8]| window.iter().all(u8::is_ascii_digit);
    match text.as_bytes().windows(3).position(digits) {
        Some(0) => 3,
        Some(at) => at,
        None => text.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: PreTokenizer, words: &[&str]) {
        let mut found = Vec::new();
        let text = words.concat();
        rule.split(&text, |word| found.push(word));
        assert_eq!(found, words, "{rule:?}");
    }

    #[test]
    fn words_of_each_rule() {
        let qwen = PreTokenizer::Cased { digits: 1, marks: false };
        let llama = PreTokenizer::Cased { digits: 3, marks: false };
        for (rule, words) in [
            (PreTokenizer::Gpt2, &["I", "'ll", " do", "  ", " 123", " +=", "\n", "x", "'", "S"][..]),
            (PreTokenizer::Gpt2, &["a", "\n\n", "\n", "b", "   "]),
            (PreTokenizer::Gpt2Digits, &["a", "  ", "1", "2", "b", " '", "s"]),
            (
                PreTokenizer::Punctuation { backtick: false, numbers: true },
                &["a", " ", "123", "45", ".", "`"],
            ),
            (PreTokenizer::Punctuation { backtick: true, numbers: false }, &["a", " ", "123", "45", ".`"]),
            (qwen, &["I", "'LL", "(x", " ", " ", "1", "2", " +=\r\n", " \n", "  ", " b", "\t"]),
            (llama, &["123", "45", "e", "\u{301}x"]),
            (PreTokenizer::Cased { digits: 1, marks: true }, &["e\u{301}x", " \u{301}"]),
        ] {
            check(rule, words);
        }
    }
}
