//! Programs built for a device, gathered in one folder that can be carried to another machine.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Result, workspace};

/// The file that lists a folder's programs.
const LIST: &str = "programs.json";

/// The purpose of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// An example.
    Example,
    /// The unit tests of a library.
    UnitTests,
    /// A test program of `tests`.
    Tests,
}

/// A built program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) kind: Kind,
    /// The package that it belongs to, without version.
    pub(crate) package: String,
    /// The example or the test program.
    pub(crate) name: String,
    /// The file, relative to the folder of the list.
    pub(crate) file: PathBuf,
}

/// The folder of the programs for a device feature.
pub(crate) fn folder(feature: &str) -> PathBuf {
    workspace::target().join("gpu").join(feature)
}

/// Reads a folder's list.
pub(crate) fn read(folder: &Path) -> Result<Vec<Program>> {
    let path = folder.join(LIST);
    let text = std::fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    Ok(serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?)
}

/// Gathers the programs that cargo built, according to its output with `--message-format json`, and writes
/// the list.
pub(crate) fn gather(messages: &str, feature: &str) -> Result<Vec<(Program, PathBuf)>> {
    let folder = folder(feature);
    std::fs::create_dir_all(&folder)?;
    let mut programs: Vec<(Program, PathBuf)> = Vec::new();
    for line in messages.lines().filter(|l| l.starts_with('{')) {
        let Some((program, built)) = built_program(&serde_json::from_str(line)?)? else { continue };
        let place = folder.join(&program.file);
        remove_file(&place)?;
        // A link takes no space; on another file system it must be a copy.
        std::fs::hard_link(&built, &place).or_else(|_| std::fs::copy(&built, &place).map(|_| ()))?;
        programs.push((program, place));
    }
    if programs.is_empty() {
        return Err("cargo built no program".into());
    }
    let list: Vec<&Program> = programs.iter().map(|p| &p.0).collect();
    std::fs::write(folder.join(LIST), serde_json::to_string_pretty(&list)?)?;
    Ok(programs)
}

fn remove_file(path: &Path) -> Result {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// The program that a message of cargo's describes, if it describes one.
fn built_program(message: &serde_json::Value) -> Result<Option<(Program, PathBuf)>> {
    let Some(built) = message["executable"].as_str().map(PathBuf::from) else { return Ok(None) };
    let name = message["target"]["name"].as_str().ok_or("a program without name")?.to_owned();
    let kind = match message["target"]["kind"][0].as_str() {
        Some("example") => Kind::Example,
        Some("lib") => Kind::UnitTests,
        Some("test") => Kind::Tests,
        _ => return Ok(None),
    };
    let package = package_name(message["package_id"].as_str().unwrap_or_default()).to_owned();
    let file = match kind {
        Kind::Example => name.clone(),
        Kind::UnitTests => format!("{package}-unit-tests"),
        Kind::Tests => format!("{package}-{name}"),
    };
    Ok(Some((Program { kind, package, name, file: file.into() }, built)))
}

/// The name in a package id: `path+file:///a/crates/core#breakers-core@0.1.0`, or `…/xtask#0.1.0` where the
/// folder has the package's name.
fn package_name(id: &str) -> &str {
    let (place, version) = id.rsplit_once('#').unwrap_or((id, ""));
    match version.split_once('@') {
        Some((name, _)) => name,
        None => place.rsplit('/').next().unwrap_or(place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages_of_cargo_become_programs() {
        let message = |kind: &str, id: &str| {
            json!({"reason": "compiler-artifact", "package_id": id, "executable": "/x/y-1",
            "target": {"kind": [kind], "name": "suite"}})
        };
        let id = "path+file:///w/crates/linear#breakers-linear@0.1.0";
        for (kind, expected, file) in [
            ("example", Some(Kind::Example), "suite"),
            ("lib", Some(Kind::UnitTests), "breakers-linear-unit-tests"),
            ("test", Some(Kind::Tests), "breakers-linear-suite"),
            ("bench", None, ""),
        ] {
            let found = built_program(&message(kind, id)).unwrap();
            assert_eq!(found.as_ref().map(|p| p.0.kind), expected);
            assert_eq!(found.map_or_else(PathBuf::new, |p| p.0.file), PathBuf::from(file));
        }
        assert_eq!(built_program(&json!({"reason": "build-finished", "success": true})).unwrap(), None);
        assert_eq!(package_name("path+file:///w/xtask#0.1.0"), "xtask");
    }
}
