//! General categories of characters, as far as tokenizers distinguish them.
//!
//! The table holds Unicode 15.1, the version that llama.cpp's tokenizers use: a later version would assign
//! characters to other classes that were unassigned before, and so change ids.

use super::unicode_table::RUNS;

/// The major general category of a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Unassigned,
    Letter,
    Number,
    Punctuation,
    Symbol,
    Separator,
    /// Spacing and enclosing marks.
    SpacingMark,
    NonspacingMark,
    /// Control, format, private use.
    Other,
}

const CLASSES: [Class; 9] = [
    Class::Unassigned,
    Class::Letter,
    Class::Number,
    Class::Punctuation,
    Class::Symbol,
    Class::Separator,
    Class::SpacingMark,
    Class::NonspacingMark,
    Class::Other,
];

const ASCII: [Class; 128] = {
    let mut table = [Class::Unassigned; 128];
    let (mut code, mut run) = (0, 0);
    while code < 128 {
        while (RUNS[run + 1] >> 4) as usize <= code {
            run += 1;
        }
        table[code] = CLASSES[(RUNS[run] & 15) as usize];
        code += 1;
    }
    table
};

pub(super) fn class(c: char) -> Class {
    if let Some(&known) = ASCII.get(c as usize) {
        return known;
    }
    let after = RUNS.partition_point(|&run| run >> 4 <= c as u32);
    CLASSES[(RUNS[after - 1] & 15) as usize]
}

/// `\s`: the characters with the property White_Space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_known_characters() {
        for (c, expected) in [
            ('\0', Class::Other),
            (' ', Class::Separator),
            ('a', Class::Letter),
            ('7', Class::Number),
            ('_', Class::Punctuation),
            ('+', Class::Symbol),
            ('\u{7f}', Class::Other),
            ('²', Class::Number),
            ('漢', Class::Letter),
            ('\u{301}', Class::NonspacingMark),
            ('\u{903}', Class::SpacingMark),
            ('€', Class::Symbol),
            ('\u{2028}', Class::Separator),
            ('\u{200d}', Class::Other),
            ('\u{1f600}', Class::Symbol),
            ('\u{2ebf0}', Class::Letter),
            ('\u{1c89}', Class::Unassigned),
            ('\u{10ffff}', Class::Unassigned),
        ] {
            assert_eq!(class(c), expected, "{c:?}");
        }
    }
}
