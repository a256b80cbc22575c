//! Pages and comments: every link has a target, and lines fit.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::Result;

/// The greatest width of a comment: the width in rustfmt.toml, because rustfmt leaves comments alone.
const WIDTH: usize = 110;

/// Folders whose files pages name in backticks, as paths from the root.
const SOURCES: [&str; 4] = ["crates/", "docs/", "examples/", "benches/"];

/// Says what is wrong with the Markdown files among `files`, which are paths from the root.
pub(crate) fn page_problems(root: &Path, files: &[&str]) -> Result<Vec<String>> {
    let known = with_folders(files);
    let mut problems = Vec::new();
    // Markdown files among sources are the expected results of tests.
    for file in files.iter().filter(|file| file.ends_with(".md") && !file.contains("/src/")) {
        let page = root.join(file);
        // A file that is deleted but not yet committed has no links.
        if page.exists() {
            problems.extend(broken_links(file, &std::fs::read_to_string(page)?, &known));
        }
    }
    let summary = std::fs::read_to_string(root.join("docs/SUMMARY.md"))?;
    let listed: BTreeSet<&str> = links(&summary).map(|(_, target)| target).collect();
    for file in files {
        if let Some(page) = file.strip_prefix("docs/").filter(|page| page.ends_with(".md"))
            && page != "SUMMARY.md"
            && !listed.contains(page)
        {
            problems.push(format!("docs/SUMMARY.md does not list {page}"));
        }
    }
    Ok(problems)
}

/// The files and all folders that they lie in.
fn with_folders(files: &[&str]) -> BTreeSet<PathBuf> {
    files.iter().flat_map(|file| Path::new(file).ancestors().map(Path::to_owned)).collect()
}

fn broken_links(file: &str, text: &str, known: &BTreeSet<PathBuf>) -> Vec<String> {
    let mut problems = Vec::new();
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    for (n, target) in links(text) {
        let path = target.split('#').next().unwrap_or_default();
        if target.contains(':') || path.is_empty() {
            continue;
        }
        let place = joined(folder, path);
        if !known.contains(&place) {
            problems.push(format!("{file}:{n}: the link to {target} leads nowhere"));
        } else if file.starts_with("docs/") && !place.starts_with("docs") {
            problems.push(format!("{file}:{n}: the link to {target} leads out of the book"));
        }
    }
    // The changelog may name files that are gone by now.
    if file != "CHANGELOG.md" {
        for (n, path) in named_paths(text) {
            if !known.contains(Path::new(path.trim_end_matches('/'))) {
                problems.push(format!("{file}:{n}: there is no {path}"));
            }
        }
    }
    problems
}

/// A path below a folder, without `.` and `..`.
fn joined(folder: &Path, path: &str) -> PathBuf {
    let mut joined = folder.to_owned();
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir => drop(joined.pop()),
            Component::Normal(name) => joined.push(name),
            _ => {}
        }
    }
    joined
}

/// Targets of links outside of code, with the numbers of their lines.
fn links(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let prose = prose(text);
    prose.flat_map(|(n, line)| {
        let ends = line.match_indices("](").map(move |(at, _)| &line[at + 2..]);
        ends.filter_map(move |rest| Some((n, rest.split_once(')')?.0)))
    })
}

/// Paths of sources in backticks, with the numbers of their lines.
fn named_paths(text: &str) -> impl Iterator<Item = (usize, &str)> {
    prose(text).flat_map(|(n, line)| {
        let quoted = line.split('`').skip(1).step_by(2);
        let is_path = |word: &&str| {
            SOURCES.iter().any(|folder| word.starts_with(folder))
                && word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
        };
        quoted.filter(is_path).map(move |path| (n, path))
    })
}

/// Lines outside of fenced code, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(n, line)| {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
            return None;
        }
        (!in_code).then_some((n + 1, line))
    })
}

/// Says which comments of a Rust file are too wide. Rows of tables and single words cannot be broken.
pub(crate) fn wide_comments(file: &str, text: &str) -> Vec<String> {
    let is_wide = |line: &&str| {
        let comment = line.trim_start();
        let words = comment.trim_start_matches(['/', '!']).trim_start();
        comment.starts_with("//")
            && !words.starts_with('|')
            && words.contains(' ')
            && line.chars().count() > WIDTH
    };
    let lines = text.lines().enumerate().filter(|(_, line)| is_wide(line));
    lines.map(|(n, line)| format!("{file}:{}: {} columns", n + 1, line.chars().count())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_paths() {
        let known = with_folders(&["docs/a.md", "README.md", "crates/core/src/lib.rs"]);
        let text = "See [a](a.md#part), [up](../README.md) and [web](https://a.b/c.md).\n\
                    [b](b.md) is in `crates/core/src`, not in `crates/core/lib.rs`; `crates/*/x` is a pattern.\n\
                    ```text\n[c](c.md) `docs/c.md`\n```\n[d](../../d.md)";
        let expected = [
            "docs/a.md:1: the link to ../README.md leads out of the book",
            "docs/a.md:2: the link to b.md leads nowhere",
            "docs/a.md:6: the link to ../../d.md leads nowhere",
            "docs/a.md:2: there is no crates/core/lib.rs",
        ];
        assert_eq!(broken_links("docs/a.md", text, &known), expected);
        assert_eq!(broken_links("CHANGELOG.md", "`crates/gone/a.rs` [x](docs/)", &known), [""; 0]);
        assert_eq!(broken_links("README.md", "[a](docs/a.md)", &known), [""; 0]);
    }

    #[test]
    fn comments_are_as_wide_as_code() {
        let wide = |start: &str| format!("{start}{}", "é ".repeat(60));
        for (line, n) in [
            (wide("    // "), 1),
            (wide("/// "), 1),
            (wide("//! | "), 0),
            (wide("let x = "), 0),
            (format!("// https://{}", "a".repeat(120)), 0),
            (format!("// {}", "é ".repeat(53)), 0),
        ] {
            assert_eq!(wide_comments("a.rs", &line).len(), n, "{line}");
        }
    }
}
