//! One line: an object, and the checksum as its last member.

use crate::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;

/// The checksum's member, before its eight digits and after them.
const BEFORE: &str = "\"crc32\":\"";
const AFTER: &str = "\"}";
/// Length of the member: `"crc32":"01234567"}`.
const MEMBER: usize = BEFORE.len() + 8 + AFTER.len();

/// Writes a record as a line, including its line end.
pub(super) fn write<T: Serialize + ?Sized>(
    record: &T,
    bytes: &mut Vec<u8>,
    max_line: usize,
    path: &Path,
) -> Result<()> {
    let start = bytes.len();
    let failed = |source| Error::Json { path: path.to_owned(), source };
    serde_json::to_writer(&mut *bytes, record).map_err(failed)?;
    let refused = |expected: String, found: String| Error::Record { path: path.to_owned(), expected, found };
    let json = &mut bytes[start..];
    // In JSON, line ends occur only between tokens; text that was serialized elsewhere may contain them.
    json.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
    if json.first() != Some(&b'{') || json.last() != Some(&b'}') {
        let found = String::from_utf8_lossy(&json[..json.len().min(40)]).into_owned();
        bytes.truncate(start);
        return Err(refused("a JSON object".to_owned(), found));
    }
    bytes.pop();
    if !is_empty_object(&bytes[start..]) {
        bytes.push(b',');
    }
    let crc = crc32fast::hash(&bytes[start..]);
    bytes.extend(format!("{BEFORE}{crc:08x}{AFTER}\n").bytes());
    let found = bytes.len() - start;
    if found > max_line {
        bytes.truncate(start);
        return Err(refused(format!("at most {max_line} bytes"), format!("{found} bytes")));
    }
    Ok(())
}

/// Whether the object has no members.
fn is_empty_object(open: &[u8]) -> bool {
    open[1..].iter().all(u8::is_ascii_whitespace)
}

/// What a line holds: its text before the checksum, or why there is none.
pub(super) enum Checked<'a> {
    /// The checksum fits; the text lacks the closing brace.
    Good(&'a str),
    /// There is no checksum.
    Unchecked(&'a str),
    /// What was expected, and what was found.
    Bad(String, String),
}

/// Checks a line, given without its line end.
pub(super) fn check(line: &[u8]) -> Checked<'_> {
    let Ok(text) = std::str::from_utf8(line) else {
        return Checked::Bad("UTF-8".to_owned(), "other bytes".to_owned());
    };
    let member = text.len().checked_sub(MEMBER).and_then(|at| text.split_at_checked(at));
    let parts =
        member.and_then(|(before, member)| Some((before, member.strip_prefix(BEFORE)?.strip_suffix(AFTER)?)));
    let Some((before, digits)) = parts else { return Checked::Unchecked(text) };
    let found = format!("{:08x}", crc32fast::hash(before.as_bytes()));
    if digits == found { Checked::Good(before) } else { Checked::Bad(format!("checksum {digits}"), found) }
}

/// Whether a text is one JSON object.
pub(super) fn is_object(text: &str) -> bool {
    text.trim_start().starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// The object of a line, without the checksum.
pub(super) fn object(before_checksum: &str, text: &mut String) {
    text.clear();
    text.push_str(before_checksum.strip_suffix(',').unwrap_or(before_checksum));
    text.push('}');
}

/// Parses a record from an object's text.
pub(super) fn record<T: DeserializeOwned>(text: &str, path: &Path, line: u64) -> Result<T> {
    serde_json::from_str(text).map_err(|error| Error::DamagedLine {
        path: path.to_owned(),
        line,
        expected: "a record of the journal's type".to_owned(),
        found: error.to_string(),
    })
}
