//! Models for tests and benchmarks, in one folder with predictable names.

use std::path::{Path, PathBuf};

use breakers_hub::{FetchOptions, Hub, Progress};

use crate::{Result, workspace};

/// The models that the tests of a change use.
const TEST_MODELS: [&str; 3] = ["smollm2-135m", "gemma3-270m", "minilm"];

/// The models that generate text.
pub(crate) const GENERATORS: [&str; 4] =
    ["smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"];

pub(crate) fn run(names: &[String]) -> Result {
    let all: Vec<&str> = GENERATORS.into_iter().chain(["minilm"]).collect();
    let names: Vec<&str> = match names {
        [] => TEST_MODELS.to_vec(),
        [one] if one == "all" => all,
        names => names.iter().map(String::as_str).collect(),
    };
    println!("{}", fetch(&names)?.display());
    Ok(())
}

/// Fetches models and links them into a folder: `<name>.gguf` for a file, `<name>/` for several.
pub(crate) fn fetch(names: &[&str]) -> Result<PathBuf> {
    let hub = Hub::new()?;
    let options = FetchOptions::from_env()?;
    let folder = workspace::target().join("models");
    std::fs::create_dir_all(&folder)?;
    for name in names {
        let resolved = hub.resolve(name, &options, &mut Lines::default())?;
        let mut link = folder.join(name);
        if resolved.path.is_file() {
            let extension = resolved.path.extension().unwrap_or_default().to_string_lossy();
            link = folder.join(format!("{name}.{extension}"));
        }
        replace_link(&resolved.path, &link).map_err(|e| format!("cannot link {}: {e}", link.display()))?;
    }
    Ok(folder)
}

/// Points `link` to `target`, whatever it pointed to before.
fn replace_link(target: &Path, link: &Path) -> std::io::Result<()> {
    if link.read_link().is_ok_and(|present| present == target) {
        return Ok(());
    }
    if link.symlink_metadata().is_ok() {
        if link.is_dir() && link.read_link().is_err() {
            std::fs::remove_dir_all(link)?;
        } else {
            std::fs::remove_file(link)?;
        }
    }
    #[cfg(unix)]
    return std::os::unix::fs::symlink(target, link);
    // Symbolic links need a privilege on Windows; hard links do not.
    #[cfg(not(unix))]
    if target.is_dir() {
        std::fs::create_dir(link)?;
        for entry in std::fs::read_dir(target)? {
            let entry = entry?;
            std::fs::hard_link(entry.path(), link.join(entry.file_name()))?;
        }
        Ok(())
    } else {
        std::fs::hard_link(target, link)
    }
}

/// Prints a line on standard error for each tenth.
#[derive(Default)]
struct Lines {
    name: String,
    total: u64,
    tenths: u64,
}

impl Progress for Lines {
    fn started(&mut self, name: &str, total_bytes: u64) {
        (self.name, self.total, self.tenths) = (name.to_owned(), total_bytes, 0);
    }

    fn advanced(&mut self, done_bytes: u64) {
        let tenths = (10 * done_bytes).checked_div(self.total).unwrap_or(10);
        if tenths > self.tenths {
            self.tenths = tenths;
            eprintln!("{}: {} % of {} MB", self.name, 10 * tenths, self.total / 1_000_000);
        }
    }

    fn message(&mut self, text: &str) {
        eprintln!("{text}");
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_made_kept_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, link] = ["a", "b", "link"].map(|n| folder.path().join(n));
        std::fs::write(&a, "a").unwrap();
        std::fs::write(&b, "b").unwrap();
        for (target, content) in [(&a, "a"), (&a, "a"), (&b, "b")] {
            replace_link(target, &link).unwrap();
            assert_eq!(std::fs::read_to_string(&link).unwrap(), content);
        }
        std::fs::remove_file(&b).unwrap();
        replace_link(&a, &link).unwrap();
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "a", "a dangling link is replaced");
    }
}
