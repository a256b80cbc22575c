//! The workspace as cargo sees it, and running programs in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Result;

/// The root folder of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // Build scripts that look at the variables with which cargo describes this program's own package would
    // run again.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    command
}

/// The build folder.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Runs a command to its end. Its output goes to standard error, which keeps standard output readable by
/// programs.
pub(crate) fn run(command: &mut Command) -> Result {
    eprintln!("$ {}", show(command));
    let status = command.stdout(std::io::stderr()).status().map_err(|e| cannot_start(command, &e))?;
    if status.success() { Ok(()) } else { Err(format!("`{}` failed: {status}", show(command)).into()) }
}

/// Runs a command to its end and returns its standard output; standard error passes through.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().map_err(|e| cannot_start(command, &e))?;
    if !output.status.success() {
        return Err(format!("`{}` failed: {}", show(command), output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn cannot_start(command: &Command, error: &std::io::Error) -> String {
    format!("cannot start `{}`: {error}", command.get_program().to_string_lossy())
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A package that cargo knows of.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) license: Option<String>,
    pub(crate) source: Option<String>,
    /// `Cargo.toml` as JSON, as `cargo metadata` shows it.
    pub(crate) manifest: Value,
    /// Names of direct dependencies, of all kinds.
    pub(crate) dependencies: Vec<String>,
    pub(crate) features: BTreeMap<String, Vec<String>>,
    pub(crate) is_member: bool,
}

impl Package {
    /// The name inside the workspace: `kv-cache` for `breakers-kv-cache`.
    pub(crate) fn room(&self) -> &str {
        self.name.strip_prefix("breakers-").unwrap_or(&self.name)
    }

    /// The folder of the package.
    pub(crate) fn folder(&self) -> &Path {
        let manifest = self.manifest["manifest_path"].as_str().unwrap_or_default();
        Path::new(manifest).parent().unwrap_or(Path::new("."))
    }

    /// Whether it may go to a registry.
    pub(crate) fn is_published(&self) -> bool {
        self.is_member && self.manifest["publish"].is_null()
    }
}

/// All packages that the workspace can depend on, with any features.
pub(crate) fn packages() -> Result<Vec<Package>> {
    let json = output(cargo().args(["metadata", "--format-version", "1", "--all-features"]))?;
    parse_metadata(&serde_json::from_str(&json)?)
}

pub(crate) fn parse_metadata(metadata: &Value) -> Result<Vec<Package>> {
    let members = metadata["workspace_members"].as_array().ok_or("metadata without members")?;
    let packages = metadata["packages"].as_array().ok_or("metadata without packages")?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    packages
        .iter()
        .map(|p| {
            let dependencies = p["dependencies"].as_array().ok_or("package without dependencies")?;
            let features = p["features"].as_object().ok_or("package without features")?;
            let list = |v: &Value| v.as_array().into_iter().flatten().filter_map(text).collect();
            Ok(Package {
                name: text(&p["name"]).ok_or("package without name")?,
                license: text(&p["license"]),
                source: text(&p["source"]),
                manifest: p.clone(),
                dependencies: dependencies.iter().filter_map(|d| text(&d["name"])).collect(),
                features: features.iter().map(|(name, on)| (name.clone(), list(on))).collect(),
                is_member: members.contains(&p["id"]),
            })
        })
        .collect()
}
