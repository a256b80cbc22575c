//! Models and data sets of the catalog: list, fetch, remove.

use std::process::ExitCode;

use breakers_hub::{EntryKind, FetchOptions, Hub};
use serde_json::{Value, json};

use super::{Error, FetchBar, Result, print, print_json};

/// Flags of `breakers list`.
#[derive(Clone, Debug, clap::Args)]
pub struct ListArgs {
    /// Only what is on this disk.
    #[arg(long)]
    pub cached: bool,
    /// Answer with one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `breakers pull`.
#[derive(Clone, Debug, clap::Args)]
pub struct PullArgs {
    /// Names from `breakers list`.
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Check the hashes of files that are already there.
    #[arg(long)]
    pub verify: bool,
}

/// Flags of `breakers rm`.
#[derive(Clone, Debug, clap::Args)]
pub struct RemoveArgs {
    /// Names from `breakers list`.
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// Lists the catalog, and which entries are on this disk.
///
/// # Errors
/// The hub's own; as [`print()`].
pub fn list(arguments: &ListArgs) -> Result<ExitCode> {
    let hub = Hub::new()?;
    let mut rows = Vec::new();
    for entry in hub.entries() {
        let cached = if hub.cache().is_some() { hub.cached(&entry.name)? } else { None };
        if cached.is_some() || !arguments.cached {
            rows.push((entry, cached));
        }
    }
    if arguments.json {
        let entries: Vec<Value> = rows
            .iter()
            .map(|(entry, cached)| {
                json!({
                    "name": entry.name, "kind": kind(entry.kind), "title": entry.title, "bytes": entry.bytes(),
                    "license": entry.license, "path": cached.as_ref().map(|cached| &cached.path),
                })
            })
            .collect();
        print_json(&json!({ "cache": hub.cache(), "entries": entries }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let widest = rows.iter().map(|(entry, _)| entry.name.len()).max().unwrap_or(0);
    for (entry, cached) in &rows {
        let here = if cached.is_some() { "here" } else { "" };
        print(&format!(
            "{:widest$}  {:5}  {:>8}  {here:4}  {} ({})\n",
            entry.name,
            kind(entry.kind),
            megabytes(entry.bytes()),
            entry.title,
            entry.license
        ))?;
    }
    match hub.cache() {
        Some(folder) => eprintln!("cache: {}", folder.display()),
        None => eprintln!("no cache: the system names no folder for it, and BREAKERS_CACHE none either"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Fetches entries that are not there yet.
///
/// # Errors
/// [`Error::Usage`] for a name that the catalog lacks; the hub's own.
pub fn pull(arguments: &PullArgs) -> Result<ExitCode> {
    let hub = Hub::new()?;
    check(&hub, &arguments.names)?;
    let options = FetchOptions::from_env()?;
    for name in &arguments.names {
        if arguments.verify && hub.cached(name)?.is_some() {
            hub.verify(name, &mut FetchBar::new())?;
        }
        let resolved = hub.resolve(name, &options, &mut FetchBar::new())?;
        print(&format!("{}\n", resolved.path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes entries from the disk.
///
/// # Errors
/// [`Error::Usage`] for a name that the catalog lacks; the hub's own.
pub fn remove(arguments: &RemoveArgs) -> Result<ExitCode> {
    let hub = Hub::new()?;
    check(&hub, &arguments.names)?;
    for name in &arguments.names {
        match hub.remove(name, &mut FetchBar::new())? {
            0 => eprintln!("{name}: was not on this disk"),
            bytes => eprintln!("{name}: {} freed", megabytes(bytes)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks all names first, so that a misspelled one does not end the command halfway.
fn check(hub: &Hub, names: &[String]) -> Result {
    names.iter().try_for_each(|name| match hub.entry(name) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Usage(error.to_string())),
    })
}

const fn kind(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Model => "model",
        EntryKind::Data => "data",
        _ => "other",
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}
