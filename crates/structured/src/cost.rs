//! What an expression would cost, told from its text before the engine sees it.

/// Steps of an expression, its repetitions written out: more than these take the engine seconds.
pub(crate) const STEPS: usize = 200_000;

/// Steps of an expression or of a grammar of Lark, its repetitions written out: `(a{10}b){5}` has 55. Texts
/// in quotes are one step, if there are some.
pub(crate) fn steps(text: &str, has_strings: bool) -> usize {
    // Of each group that is open: its steps without those of the latest part, and those.
    let mut groups = vec![(0usize, 0usize)];
    let mut rest = text.bytes().enumerate();
    while let Some((at, byte)) = rest.next() {
        let part = match byte {
            b'\\' => {
                let escape = rest.next().map(|(_, byte)| byte);
                if matches!(escape, Some(b'p' | b'P' | b'x' | b'u' | b'k'))
                    && text.as_bytes().get(at + 2) == Some(&b'{')
                {
                    rest.by_ref().find(|(_, byte)| *byte == b'}');
                }
                1
            }
            b'"' if has_strings => {
                while rest
                    .by_ref()
                    .find(|(_, byte)| matches!(byte, b'"' | b'\\'))
                    .is_some_and(|(_, byte)| byte == b'\\')
                {
                    rest.next();
                }
                1
            }
            // Classes of one kind within another are rare, and count a little more.
            b'[' => {
                while rest
                    .by_ref()
                    .find(|(_, byte)| matches!(byte, b']' | b'\\'))
                    .is_some_and(|(_, byte)| byte == b'\\')
                {
                    rest.next();
                }
                1
            }
            b'(' => {
                groups.push((0, 0));
                continue;
            }
            b')' => match groups.len() {
                1 => 1,
                _ => groups.pop().map_or(1, |(sum, latest)| sum.saturating_add(latest).max(1)),
            },
            b'{' => {
                if let Some((most, length)) = repetition(&text[at..])
                    && let Some((_, latest)) = groups.last_mut()
                {
                    *latest = latest.saturating_mul(most.max(1));
                    rest.by_ref().take(length - 1).for_each(drop);
                    continue;
                }
                1
            }
            b'*' | b'+' | b'?' | b'|' => continue,
            _ => 1,
        };
        if let Some((sum, latest)) = groups.last_mut() {
            *sum = sum.saturating_add(*latest);
            *latest = part;
        }
    }
    groups.into_iter().fold(0usize, |all, (sum, latest)| all.saturating_add(sum).saturating_add(latest))
}

/// The most that `{2}`, `{2,}` or `{2,5}` at the beginning of a text asks for, and its length.
fn repetition(text: &str) -> Option<(usize, usize)> {
    let end = text.find('}')?;
    let (least, most) = text[1..end].split_once(',').unwrap_or((&text[1..end], ""));
    let number = |text: &str| -> Option<usize> {
        let text = text.trim();
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().unwrap_or(usize::MAX))
    };
    let least = match number(least) {
        // `{,5}` is Lark's.
        None if least.trim().is_empty() && !most.is_empty() => 0,
        least => least?,
    };
    let most = if most.trim().is_empty() { 0 } else { number(most)? };
    Some((least.max(most), end + 1))
}

#[cfg(test)]
mod tests {
    use super::{repetition, steps};

    #[test]
    fn repetitions_are_written_out() {
        for (text, expected) in [
            ("", 0),
            ("abc", 3),
            ("a{10}", 10),
            ("(a{10}b){5}", 55),
            ("(?:a{2,}|[x{9}\\]]{3}){4}", 4 * (1 + 2 + 3)),
            ("\\p{Lu}{7}\\{3}", 7 + 1 + 2),
            ("(a{1000}){1000}", 1_000_000),
            ("a{99999999999999999999999}", usize::MAX),
            ("x{,5}", 5),
            ("{a}", 3),
        ] {
            assert_eq!(steps(text, false), expected, "{text}");
        }
        assert_eq!(steps("\"a{9}\\\"\"{2}", true), 2);
        assert_eq!(repetition("{2, 3}x"), Some((3, 6)));
    }
}
