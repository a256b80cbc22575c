use std::path::PathBuf;

use super::Finding;

/// Why the registry refuses something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The database failed.
    #[error(transparent)]
    Database(#[from] breakers_sqlite::Error),
    /// A row of the database is not what this program writes.
    #[error("the registry's {what} is not readable: {message}")]
    Row {
        /// The part of the row.
        what: &'static str,
        /// What is wrong.
        message: String,
    },
    /// A file or the folder of models cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A path leads out of the folder of models.
    #[error("{path} is not within the folder of models", path = path.display())]
    Outside {
        /// The path as it was given.
        path: PathBuf,
    },
    /// A setting is out of its range.
    #[error("{name} is {found}; expected {expected}")]
    Parameter {
        /// The setting.
        name: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// There is no such version.
    #[error("no version {name:?}")]
    NoVersion {
        /// The name asked for.
        name: String,
    },
    /// The beginning of a name fits several versions.
    #[error("{name:?} fits several versions")]
    Ambiguous {
        /// The beginning.
        name: String,
    },
    /// There is no such alias.
    #[error("no alias {alias:?}")]
    NoAlias {
        /// The name asked for.
        alias: String,
    },
    /// A model or another thing of the server has the name already.
    #[error("{alias:?} is the name of something that the registry does not manage")]
    Taken {
        /// The name.
        alias: String,
    },
    /// There is no earlier state to go back to.
    #[error("{alias:?} has no earlier state")]
    NothingBefore {
        /// The alias.
        alias: String,
    },
    /// Somebody else changed the alias in the meantime. Nothing was changed now.
    #[error("{alias:?} was changed by somebody else; its state is now number {found}")]
    Conflict {
        /// The alias.
        alias: String,
        /// The number of its present state; 0 if it has none.
        found: i64,
    },
    /// The file has findings that forbid to load it.
    #[error("{version} is not valid: {}", first(.findings))]
    Invalid {
        /// The version.
        version: String,
        /// All findings.
        findings: Vec<Finding>,
    },
    /// The file is no longer the one that was registered.
    #[error("the file of {version} was changed: it has the hash {found}")]
    Changed {
        /// The version.
        version: String,
        /// The hash that the file has now.
        found: String,
    },
    /// The version could not be loaded.
    #[error("{version} could not be loaded: {message}")]
    Load {
        /// The version.
        version: String,
        /// What the loader says.
        message: String,
    },
    /// The version does not give the answer that is recorded.
    #[error("{version} failed its canary: {message}")]
    Canary {
        /// The version.
        version: String,
        /// What differs.
        message: String,
    },
    /// The registry's thread cannot be started.
    #[error("cannot start the registry's thread: {source}")]
    Thread {
        /// What the system says.
        source: std::io::Error,
    },
}

fn first(findings: &[Finding]) -> String {
    let errors: Vec<&Finding> = findings.iter().filter(|finding| finding.is_error()).collect();
    match errors.split_first() {
        None => "no errors".to_owned(),
        Some((first, [])) => first.message.clone(),
        Some((first, rest)) => format!("{} (and {} more)", first.message, rest.len()),
    }
}
