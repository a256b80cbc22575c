//! A search for words in the files of a folder.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::tools::{Function, FunctionError};
use breakers_core::{Json, Tool};

/// Bytes of a file that are looked at.
const MOST_BYTES: u64 = 1 << 20;
/// Files that are looked at.
const MOST_FILES: usize = 10_000;
/// Lines that are given.
const MOST_LINES: usize = 20;
/// Characters of a line that are given.
const MOST_CHARS: usize = 200;

/// Finds lines that hold all of some words, in the text files of one folder and those below it.
///
/// Symbolic links are not followed, so that nothing outside of the folder is read. What is longer than 1 MiB
/// is read up to there; 10,000 files are looked at, and 20 lines are given: the answer says so where there is
/// more.
#[derive(Clone, Debug)]
pub struct FileSearch {
    folder: PathBuf,
}

impl FileSearch {
    /// A search in this folder.
    ///
    /// # Errors
    /// Those of the file system, for a folder that is not there.
    pub fn new(folder: impl AsRef<Path>) -> std::io::Result<Self> {
        Ok(Self { folder: folder.as_ref().canonicalize()? })
    }

    fn search(&self, words: &str) -> Result<String, FunctionError> {
        let words: Vec<String> = words.split_whitespace().map(str::to_lowercase).collect();
        if words.is_empty() {
            return Err("expected a word to look for".into());
        }
        let (mut folders, mut out, mut n_lines, mut n_files) =
            (vec![self.folder.clone()], String::new(), 0, 0);
        while let Some(folder) = folders.pop() {
            let mut entries: Vec<_> = fs::read_dir(&folder)?.collect::<Result<_, _>>()?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                // That of the entry itself: a link is neither a folder nor a file.
                let kind = entry.file_type()?;
                let path = entry.path();
                if kind.is_dir() {
                    folders.push(path);
                    continue;
                }
                if !kind.is_file() {
                    continue;
                }
                n_files += 1;
                if n_files > MOST_FILES {
                    out += &format!("(only the first {MOST_FILES} files)\n");
                    return Ok(out);
                }
                let mut bytes = Vec::new();
                File::open(&path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
                if bytes.contains(&0) {
                    continue;
                }
                let name = path.strip_prefix(&self.folder).unwrap_or(&path).display().to_string();
                for (number, line) in String::from_utf8_lossy(&bytes).lines().enumerate() {
                    let lower = line.to_lowercase();
                    if !words.iter().all(|word| lower.contains(word)) {
                        continue;
                    }
                    if n_lines == MOST_LINES {
                        out += &format!("(only the first {MOST_LINES} lines)\n");
                        return Ok(out);
                    }
                    n_lines += 1;
                    let line: String = line.trim().chars().take(MOST_CHARS).collect();
                    out += &format!("{name}:{}: {line}\n", number + 1);
                }
            }
        }
        Ok(if out.is_empty() { "no line holds these words".to_owned() } else { out })
    }
}

impl Function for FileSearch {
    fn tool(&self) -> Tool {
        let parameters = r#"{"type": "object", "properties": {"words": {"type": "string",
            "description": "words that a line must hold, all of them"}}, "required": ["words"], "additionalProperties": false}"#;
        let parameters = Json::parse(parameters).expect("the constant is JSON");
        Tool::new("search_files", parameters).with_description("Finds lines in the files of the project")
    }

    fn call(&self, arguments: &Json) -> Result<String, FunctionError> {
        let arguments: serde_json::Value = arguments.to()?;
        self.search(arguments["words"].as_str().ok_or("expected a text \"words\"")?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_and_nothing_outside() {
        let outside = tempfile::tempdir().unwrap();
        let folder = outside.path().join("folder");
        fs::create_dir_all(folder.join("below")).unwrap();
        fs::write(outside.path().join("secret.txt"), "the apple outside\n").unwrap();
        fs::write(folder.join("a.txt"), "An Apple a day\n\n  the red APPLE  \nno fruit\n").unwrap();
        fs::write(folder.join("below/b.md"), "apple\u{e9} pie\n").unwrap();
        fs::write(folder.join("c.bin"), b"apple\0apple\n").unwrap();
        fs::write(folder.join("d.txt"), [b"apple \xff\n".as_slice(), "x".repeat(500).as_bytes()].concat())
            .unwrap();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(outside.path(), folder.join("link")).unwrap();
            std::os::unix::fs::symlink(outside.path().join("secret.txt"), folder.join("link.txt")).unwrap();
        }
        let search = FileSearch::new(&folder).unwrap();
        let call = |json: &str| search.call(&Json::parse(json).unwrap()).map_err(|error| error.to_string());
        let found = call(r#"{"words": "apple"}"#).unwrap();
        let expected = ["a.txt:1: An Apple a day", "a.txt:3: the red APPLE", "d.txt:1: apple \u{fffd}"];
        for line in
            expected.iter().copied().chain([&*format!("{}: appleé pie", Path::new("below/b.md:1").display())])
        {
            assert!(found.contains(line), "{line} in {found}");
        }
        assert_eq!(found.lines().count(), 4, "{found}");
        assert_eq!(call(r#"{"words": "apple red"}"#).unwrap(), "a.txt:3: the red APPLE\n");
        assert_eq!(call(r#"{"words": "outside"}"#).unwrap(), "no line holds these words");
        assert_eq!(call(r#"{"words": "../secret.txt"}"#).unwrap(), "no line holds these words");
        assert!(call(r#"{"words": " "}"#).unwrap_err().contains("a word"));
        assert!(call(r#"{"words": 3}"#).unwrap_err().contains("\"words\""));
        fs::write(folder.join("e.txt"), "apple\n".repeat(100)).unwrap();
        assert!(call(r#"{"words": "apple"}"#).unwrap().ends_with("(only the first 20 lines)\n"));
    }
}
