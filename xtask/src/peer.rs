//! Running llama.cpp (through `benches/peer_llama_cpp.py`) and our own examples on the same input.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{Result, workspace};

/// PyPI packages that the script imports.
const PACKAGES: [&str; 2] = ["llama-cpp-python", "numpy"];

/// A Python that has llama.cpp.
pub(crate) struct Peer {
    python: PathBuf,
}

impl Peer {
    /// The given Python, else that of `BREAKERS_PEER_PYTHON`, else one in the build folder, which is created
    /// if needed.
    pub(crate) fn find(python: Option<&Path>) -> Result<Self> {
        let given = python
            .map(Path::to_owned)
            .or_else(|| std::env::var_os("BREAKERS_PEER_PYTHON").map(PathBuf::from));
        if let Some(python) = given {
            return Ok(Self { python });
        }
        let folder = workspace::target().join("peer");
        let python = folder.join("bin/python");
        let has_packages = |python: &Path| {
            let probe = Command::new(python).args(["-c", "import llama_cpp, numpy"]).output();
            probe.is_ok_and(|o| o.status.success())
        };
        if !has_packages(&python) {
            eprintln!(
                "installing {} into {}: llama.cpp is compiled, which takes a while",
                PACKAGES.join(" and "),
                folder.display()
            );
            workspace::run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
            workspace::run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
        }
        Ok(Self { python })
    }

    /// Runs a command of the script and returns its answer.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = Command::new(&self.python);
        command.arg(workspace::root().join("benches/peer_llama_cpp.py")).args(arguments);
        // llama.cpp writes notes to standard error even when told to be quiet.
        let output = command.output().map_err(|e| format!("cannot start {}: {e}", self.python.display()))?;
        if !output.status.success() {
            return Err(format!("the peer failed:\n{}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// Our examples, built for speed.
pub(crate) struct Examples {
    folder: PathBuf,
}

impl Examples {
    pub(crate) fn build() -> Result<Self> {
        // The whole workspace, as `cargo run --example` does: a single package would get another set of
        // features.
        workspace::run(workspace::cargo().args(["build", "--release", "--workspace", "--examples"]))?;
        Ok(Self { folder: workspace::target().join("release/examples") })
    }

    /// Runs an example with `--json` and returns its answer.
    pub(crate) fn ask(&self, name: &str, arguments: &[&str]) -> Result<Value> {
        let mut command = Command::new(self.folder.join(name));
        let output = command.arg("--json").args(arguments).output()?;
        if !output.status.success() {
            return Err(format!("{name} failed:\n{}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// A number in an answer.
pub(crate) fn number(answer: &Value, field: &str) -> Result<f64> {
    answer[field].as_f64().ok_or_else(|| format!("the answer has no number `{field}`: {answer}").into())
}

/// A list of token ids in an answer.
pub(crate) fn ids(answer: &Value, field: &str) -> Result<Vec<u64>> {
    let list = answer[field].as_array().ok_or_else(|| format!("the answer has no list `{field}`"))?;
    list.iter().map(|id| id.as_u64().ok_or_else(|| format!("`{field}` holds {id}").into())).collect()
}

/// The project's own prose: its pages, then the documentation comments of its sources, `n_bytes` at most.
pub(crate) fn own_prose(n_bytes: usize) -> Result<String> {
    let root = workspace::root();
    let files =
        workspace::output(Command::new("git").arg("-C").arg(&root).args(["ls-files", "-z", "*.md", "*.rs"]))?;
    let (pages, sources): (Vec<&str>, Vec<&str>) =
        files.split('\0').filter(|f| !f.is_empty()).partition(|f| f.ends_with(".md"));
    let mut text = String::new();
    for page in pages {
        text += &std::fs::read_to_string(root.join(page))?;
        text.push('\n');
    }
    for source in sources {
        for line in std::fs::read_to_string(root.join(source))?.lines() {
            let line = line.trim_start();
            if let Some(comment) = line.strip_prefix("//!").or_else(|| line.strip_prefix("///")) {
                text += comment.strip_prefix(' ').unwrap_or(comment);
                text.push('\n');
            }
        }
    }
    text.truncate(text.floor_char_boundary(n_bytes));
    Ok(text)
}
