//! The filters that format text: `wordwrap`, `pprint` and `urlize`.

use super::error::Result;
use super::operators::escape;
use super::text::repr;
use super::value::Value;

/// Python's `textwrap.wrap` on one line.
pub(super) fn wrap(line: &str, width: usize, break_long: bool, on_hyphens: bool) -> Vec<String> {
    let mut chunks: Vec<String> = chunks(line, on_hyphens);
    chunks.reverse();
    let len = |text: &str| text.chars().count();
    let mut out: Vec<String> = Vec::new();
    while !chunks.is_empty() {
        let mut current: Vec<String> = Vec::new();
        let mut used = 0;
        if !out.is_empty() && chunks.last().is_some_and(|chunk| chunk.trim().is_empty()) {
            chunks.pop();
        }
        while let Some(chunk) = chunks.last() {
            if used + len(chunk) > width {
                break;
            }
            used += len(chunk);
            current.extend(chunks.pop());
        }
        if let Some(chunk) = chunks.last().filter(|chunk| len(chunk) > width).cloned() {
            if break_long {
                let mut room = width - used.min(width);
                if room == 0 && current.is_empty() {
                    room = 1;
                }
                // After a hyphen if there is one.
                let kept: String = chunk.chars().take(room).collect();
                let kept = match kept
                    .rfind('-')
                    .filter(|at| on_hyphens && *at > 0 && kept[..*at].contains(|c| c != '-'))
                {
                    Some(at) => kept[..=at].to_owned(),
                    None => kept,
                };
                let rest = chunk[kept.len()..].to_owned();
                chunks.pop();
                if !rest.is_empty() {
                    chunks.push(rest);
                }
                current.push(kept);
            } else if current.is_empty() {
                current.extend(chunks.pop());
            }
        }
        if current.last().is_some_and(|chunk| chunk.trim().is_empty()) {
            current.pop();
        }
        if !current.is_empty() {
            out.push(current.concat());
        }
    }
    out
}

/// Words, the whitespace between them, and parts after hyphens.
fn chunks(line: &str, on_hyphens: bool) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let chars: Vec<char> = line.chars().collect();
    let mut current = String::new();
    for (i, &c) in chars.iter().enumerate() {
        if let Some(last) = current.chars().next_back() {
            let letter =
                |at: Option<usize>| at.and_then(|at| chars.get(at)).is_some_and(|c| c.is_alphabetic());
            let behind_hyphen = on_hyphens
                && last == '-'
                && letter(Some(i))
                && letter(i.checked_sub(2))
                && (letter(i.checked_sub(3)) || i.checked_sub(3).is_none_or(|at| !chars[at].is_whitespace()))
                && letter(Some(i + 1));
            if last.is_whitespace() != c.is_whitespace() || behind_hyphen {
                out.push(std::mem::take(&mut current));
            }
        }
        current.push(c);
    }
    if !current.is_empty() {
        out.push(current);
    }
    out
}

/// Python's `pprint.pformat`: keys are sorted, and each item gets a line of its own if 80 columns are not
/// enough.
pub(super) fn pretty(value: &Value) -> Result<String> {
    let mut out = String::new();
    write_pretty(value, 0, 0, 0, &mut out)?;
    Ok(out)
}

fn sorted(value: &Value) -> Result {
    Ok(match value {
        Value::List(items) => Value::list(items.items.iter().map(sorted).collect::<Result<_>>()?),
        Value::Tuple(items) => Value::tuple(items.items.iter().map(sorted).collect::<Result<_>>()?),
        Value::Dict(dict) => {
            let mut entries: Vec<(Value, Value)> = dict.entries().to_vec();
            if super::lists::sort_by(&mut entries, |entry| &entry.0).is_err() {
                entries = dict.entries().to_vec();
                entries.sort_by_key(|(key, _)| key.kind());
            }
            let entries: Vec<_> =
                entries.into_iter().map(|(key, value)| Ok((key, sorted(&value)?))).collect::<Result<_>>()?;
            Value::dict(entries)?
        }
        _ => value.clone(),
    })
}

fn write_pretty(
    value: &Value,
    indent: usize,
    allowance: usize,
    depth: usize,
    out: &mut String,
) -> Result<()> {
    let value = sorted(value)?;
    let line = repr(&value)?;
    if line.chars().count() + indent + allowance <= 80 || depth > 100 {
        out.push_str(&line);
        return Ok(());
    }
    let separator = format!(",\n{}", " ".repeat(indent + 1));
    match &value {
        Value::Dict(dict) => {
            out.push('{');
            for (i, (key, value)) in dict.entries().iter().enumerate() {
                if i > 0 {
                    out.push_str(&separator);
                }
                let key = repr(key)?;
                out.push_str(&key);
                out.push_str(": ");
                let is_last = i + 1 == dict.entries().len();
                let behind = if is_last { allowance + 1 } else { 1 };
                write_pretty(value, indent + 1 + key.chars().count() + 2, behind, depth + 1, out)?;
            }
            out.push('}');
        }
        Value::List(items) | Value::Tuple(items) => {
            let is_list = matches!(value, Value::List(_));
            out.push(if is_list { '[' } else { '(' });
            for (i, item) in items.items.iter().enumerate() {
                if i > 0 {
                    out.push_str(&separator);
                }
                let is_last = i + 1 == items.items.len();
                write_pretty(item, indent + 1, if is_last { allowance + 1 } else { 1 }, depth + 1, out)?;
            }
            out.push_str(match (is_list, items.items.len()) {
                (true, _) => "]",
                (false, 1) => ",)",
                (false, _) => ")",
            });
        }
        _ => out.push_str(&line),
    }
    Ok(())
}

/// Turns the URLs in a text into links.
pub(super) fn urlize(
    text: &str,
    limit: Option<usize>,
    no_follow: bool,
    target: Option<&str>,
    rel: Option<&str>,
) -> String {
    let mut rels: Vec<&str> = rel.into_iter().flat_map(str::split_whitespace).collect();
    rels.extend(no_follow.then_some("nofollow"));
    rels.push("noopener");
    rels.sort_unstable();
    rels.dedup();
    let rel = format!(" rel=\"{}\"", escape(&rels.join(" ")));
    let target = target.map(|target| format!(" target=\"{}\"", escape(target))).unwrap_or_default();
    let text = escape(text);
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().map(Some).chain([None]) {
        match c {
            Some(c) if !c.is_whitespace() => word.push(c),
            _ => {
                out.push_str(&link(&std::mem::take(&mut word), limit, &rel, &target));
                out.extend(c);
            }
        }
    }
    out
}

fn link(word: &str, limit: Option<usize>, rel: &str, target: &str) -> String {
    let start = word.len() - word.trim_start_matches(['(', '<']).trim_start_matches("&lt;").len();
    let (head, middle) = word.split_at(start);
    let end = middle.trim_end_matches("&gt;").trim_end_matches([')', '>', '.', ',', '\n']);
    let (middle, tail) = middle.split_at(end.len());
    let shown = match limit {
        Some(limit) if middle.chars().count() > limit => {
            middle.chars().take(limit).collect::<String>() + "..."
        }
        _ => middle.to_owned(),
    };
    let has_host = |rest: &str| {
        rest.split(['/', ':', '?', '#'])
            .next()
            .is_some_and(|host| host.contains('.') && !host.starts_with('.') && !host.ends_with('.'))
    };
    let is_url = ["https://", "http://"].iter().any(|scheme| {
        middle.strip_prefix(scheme).is_some_and(|rest| has_host(rest) || rest.starts_with("localhost"))
    });
    let known_end = [".com", ".org", ".net"]
        .iter()
        .any(|end| middle.split('/').next().is_some_and(|host| host.ends_with(end)));
    let linked = if is_url {
        format!("<a href=\"{middle}\"{rel}{target}>{shown}</a>")
    } else if !middle.contains('@') && (middle.starts_with("www.") && has_host(&middle[4..]) || known_end) {
        format!("<a href=\"https://{middle}\"{rel}{target}>{shown}</a>")
    } else if middle.contains('@') && !middle.starts_with("www.") && !middle.contains(':') && is_mail(middle)
    {
        format!("<a href=\"mailto:{middle}\">{middle}</a>")
    } else {
        middle.to_owned()
    };
    format!("{head}{linked}{tail}")
}

fn is_mail(text: &str) -> bool {
    let Some((name, host)) = text.split_once('@') else { return false };
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-');
    !name.is_empty()
        && !host.contains('@')
        && host.chars().all(is_word)
        && host.trim_matches('.').contains('.')
}
