//! How vocabularies write bytes that are not text.
//!
//! Byte-level BPE writes each byte as a printable character, so that its files hold text; other vocabularies
//! have tokens like `<0x0A>`.
//!
//! # Source
//! `bytes_to_unicode` of openai/gpt-2: the printable characters of Latin-1 stand for themselves, and the
//! other 68 bytes get the characters from U+0100 on.
//!
//! # Example
//! ```
//! use breakers_tokenizer::alphabet;
//!
//! assert_eq!(alphabet::CHARS[b' ' as usize], 'Ġ');
//! assert_eq!(alphabet::byte('Ċ'), Some(b'\n'));
//! assert_eq!(alphabet::spelled_byte("<0x0A>"), Some(b'\n'));
//! ```

const fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The character of each byte.
pub const CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let (mut byte, mut next) = (0, 0x100);
    while byte < 256 {
        if is_printable(byte as u8) {
            chars[byte] = byte as u8 as char;
        } else {
            chars[byte] = match char::from_u32(next) {
                Some(c) => c,
                None => unreachable!(),
            };
            next += 1;
        }
        byte += 1;
    }
    chars
};

/// The byte of each character below U+0144.
const BYTES: [Option<u8>; 0x144] = {
    let mut bytes = [None; 0x144];
    let mut byte = 0;
    while byte < 256 {
        bytes[CHARS[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    bytes
};

/// The byte that a character stands for.
pub fn byte(c: char) -> Option<u8> {
    BYTES.get(c as usize).copied().flatten()
}

/// Appends the bytes that a token's text stands for. Returns false, and appends nothing, if a character is
/// not in this alphabet.
pub fn decode(text: &str, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    for c in text.chars() {
        match byte(c) {
            Some(b) => out.push(b),
            None => {
                out.truncate(start);
                return false;
            }
        }
    }
    true
}

/// The characters of the bytes that occur in UTF-8.
pub fn in_text() -> impl Iterator<Item = char> {
    (0..256).filter(|byte| !matches!(byte, 0xc0 | 0xc1 | 0xf5..)).map(|byte| CHARS[byte])
}

/// The byte that a token like `<0x0A>` stands for.
pub fn spelled_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    hexadecimal.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_a_bijection() {
        for expected in 0..=255u8 {
            assert_eq!(byte(CHARS[expected as usize]), Some(expected));
        }
        assert_eq!(CHARS[b' ' as usize], 'Ġ');
        assert_eq!(CHARS[b'\n' as usize], 'Ċ');
        assert_eq!(byte('\u{144}'), None);
        assert_eq!(byte(' '), None);
    }

    #[test]
    fn byte_tokens() {
        for (text, expected) in
            [("<0x0A>", Some(10)), ("<0xff>", Some(255)), ("<0x+1>", None), ("<0x123>", None), ("", None)]
        {
            assert_eq!(spelled_byte(text), expected, "{text}");
        }
    }
}
