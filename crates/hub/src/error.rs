//! Everything that can go wrong when a name is turned into a file.

use std::fmt::{self, Write as _};
use std::io;
use std::path::{Path, PathBuf};

use crate::catalog::{Digest, Entry};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// The error of this crate. Fields hold what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No entry has this name, and there is no file at this path.
    #[error("no model or data set is called `{name}`{}; known names: {}", nearest_hint(.nearest), .known.join(", "))]
    UnknownName {
        /// What was asked for.
        name: String,
        /// The known name with the most similar spelling, if one is close.
        nearest: Option<String>,
        /// All names of the catalog.
        known: Vec<String>,
    },

    /// The caller gave a path, and there is nothing at it.
    #[error("no file or folder at `{}`", .path.display())]
    PathNotFound {
        /// The path as given.
        path: PathBuf,
    },

    /// The SHA-256 of the bytes differs from the catalog's.
    #[error("{what}: SHA-256 is {found}, expected {expected}")]
    HashMismatch {
        /// The file, or the member of a package.
        what: String,
        /// The hash in the catalog.
        expected: Digest,
        /// The hash of the actual bytes.
        found: Digest,
    },

    /// The file's size differs from the catalog's.
    #[error("{what}: {found} bytes, expected {expected}")]
    SizeMismatch {
        /// The file, or the member of a package.
        what: String,
        /// The size in the catalog.
        expected: u64,
        /// The actual size or, for a stream that is too long, the number of bytes after which reading
        /// stopped.
        found: u64,
    },

    /// A package lacks the member that the catalog names.
    #[error("{archive} holds no `{member}`")]
    MissingMember {
        /// The package.
        archive: String,
        /// The member that was looked for.
        member: String,
    },

    /// A package is not a readable archive.
    #[error("{archive} is not a readable archive: {reason}")]
    BadArchive {
        /// The package.
        archive: String,
        /// What the archive reader said.
        reason: String,
    },

    /// The disk that holds the cache is full, or would be.
    #[error("the disk is full at `{}`{}", .path.display(), space_hint(*.needed, *.available))]
    DiskFull {
        /// Where the bytes should have been written.
        path: PathBuf,
        /// Bytes still needed, if known.
        needed: Option<u64>,
        /// Bytes free, if known.
        available: Option<u64>,
    },

    /// The cache folder cannot be written or read.
    #[error(
        "no permission to {action} `{}`: {source} (the environment variable {} moves the cache)",
        .path.display(),
        crate::CACHE_VARIABLE
    )]
    Permission {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },

    /// Another input or output error.
    #[error("could not {action} `{}`: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },

    /// A file of the cache cannot be replaced.
    #[error(transparent)]
    File(Box<breakers_files::Error>),

    /// No usable program of this kind was found.
    #[error("no working `{tool}` was found ({})", join_tried(.tried))]
    ToolMissing {
        /// The tool.
        tool: &'static str,
        /// Each command that was tried.
        tried: Vec<TriedCommand>,
    },

    /// The program ran and failed.
    #[error("`{command}` failed ({status}){}", tail_hint(.stderr_tail))]
    ToolFailed {
        /// The command.
        command: String,
        /// Its exit status.
        status: String,
        /// The end of what it wrote to standard error.
        stderr_tail: String,
    },

    /// The program succeeded but left something other than the one archive it was asked for.
    #[error("`{command}` left {found} files, expected one ending in `{expected}`")]
    ToolOutput {
        /// The command.
        command: String,
        /// The ending looked for.
        expected: &'static str,
        /// The number of files that have it.
        found: usize,
    },

    /// The server did not answer in time.
    #[error("{endpoint} did not answer within {limit_ms} ms")]
    Unreachable {
        /// The server.
        endpoint: String,
        /// The limit in milliseconds.
        limit_ms: u64,
    },

    /// Hugging Face answered with an error, or the transfer broke.
    #[error("Hugging Face: {repo}/{file}: {reason}")]
    HuggingFace {
        /// The repository.
        repo: String,
        /// The file inside.
        file: String,
        /// What the client said.
        reason: String,
    },

    /// The source needs a Cargo feature that this build lacks.
    #[error("this build cannot use {source_name}: it lacks the Cargo feature `{feature}` of breakers-hub")]
    NotBuilt {
        /// The source.
        source_name: &'static str,
        /// The feature.
        feature: &'static str,
    },

    /// The chosen kinds of source do not include one that the entry has.
    #[error("`{name}` has no source of the chosen kind ({chosen}); it has: {available}")]
    NoSuchSource {
        /// The entry.
        name: String,
        /// The kinds asked for.
        chosen: String,
        /// The kinds that the entry has.
        available: String,
    },

    /// The caller stopped the fetch; what has arrived is kept.
    #[error("fetching `{name}` was interrupted; the next fetch goes on where this one stopped")]
    Interrupted {
        /// The entry.
        name: String,
    },

    /// No source could deliver; the message lists what to do.
    #[error("{0}")]
    Unavailable(Box<Unavailable>),

    /// A catalog is not valid.
    #[error("catalog entry `{entry}`: {field} {problem}")]
    InvalidCatalog {
        /// The entry, or its position.
        entry: String,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },

    /// There is no source of this name.
    #[error("`{found}` is not a source; expected auto, pypi, npm, huggingface, or several joined by commas")]
    UnknownSource {
        /// What was given.
        found: String,
    },

    /// The system names no cache folder and no home folder.
    #[error("no cache folder: neither {} nor a home folder is set", crate::CACHE_VARIABLE)]
    NoCacheFolder,
}

/// A command that was tried and why it is not usable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TriedCommand {
    /// The command line.
    pub command: String,
    /// Why it could not be used.
    pub reason: String,
}

/// A source that was tried and how it failed.
#[derive(Debug)]
#[non_exhaustive]
pub struct Attempt {
    /// The source in words.
    pub source: String,
    /// Its error.
    pub error: Error,
}

/// A file that can be placed by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WantedFile {
    /// Where the hub looks for it.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its hash.
    pub sha256: Digest,
}

/// Why an entry is not available, and what a user can do about it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unavailable {
    /// The entry.
    pub name: String,
    /// Every source with its error, in the order tried; empty if the fetch was offline.
    pub attempts: Vec<Attempt>,
    /// The files that are missing.
    pub wanted: Vec<WantedFile>,
}

impl Unavailable {
    pub(crate) fn error(entry: &Entry, folder: &Path, missing: &[usize], attempts: Vec<Attempt>) -> Error {
        let wanted = missing
            .iter()
            .map(|&file_idx| &entry.files[file_idx])
            .map(|file| WantedFile { path: folder.join(&file.name), bytes: file.bytes, sha256: file.sha256 })
            .collect();
        Error::Unavailable(Box::new(Self { name: entry.name.clone(), attempts, wanted }))
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "`{}` is not in the cache and could not be fetched.", self.name)?;
        if self.attempts.is_empty() {
            writeln!(f, "No source was tried, because the fetch was offline.")?;
        } else {
            writeln!(f, "Tried:")?;
            for Attempt { source, error } in &self.attempts {
                writeln!(f, "  - {source}: {}", error.to_string().replace('\n', "\n    "))?;
            }
        }
        writeln!(f, "What you can do:")?;
        writeln!(f, "  - check the network connection (proxy, VPN) and try again: finished parts are kept;")?;
        writeln!(
            f,
            "  - make sure that `python3 -m pip --version` (for npm sources `npm --version`) works;"
        )?;
        writeln!(f, "  - or place the file{} by hand:", if self.wanted.len() == 1 { "" } else { "s" })?;
        for WantedFile { path, bytes, sha256 } in &self.wanted {
            writeln!(f, "      {} ({bytes} bytes, SHA-256 {sha256})", path.display())?;
        }
        write!(
            f,
            "  - or give the path of a file or folder instead of a name; or set {} to a folder that holds `{}`.",
            crate::CACHE_VARIABLE,
            self.name
        )
    }
}

impl Error {
    /// Converts an I/O error into its typed variant.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path, needed: None, available: None }
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::Permission { action, path, source }
            }
            _ => Self::Io { action, path, source },
        }
    }

    /// Whether trying another source is pointless.
    pub(crate) fn is_final(&self) -> bool {
        matches!(
            self,
            Self::DiskFull { .. }
                | Self::Permission { .. }
                | Self::Io { .. }
                | Self::File(_)
                | Self::Interrupted { .. }
        )
    }

    /// Whether the same fetch may succeed if it is tried again.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::ToolFailed { .. } | Self::HuggingFace { .. })
    }
}

impl From<breakers_files::Error> for Error {
    fn from(error: breakers_files::Error) -> Self {
        match error {
            breakers_files::Error::Io { action, path, source } => Self::io(action, &path, source),
            error => Self::File(Box::new(error)),
        }
    }
}

fn nearest_hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default()
}

fn space_hint(needed: Option<u64>, available: Option<u64>) -> String {
    match (needed, available) {
        (Some(needed), Some(available)) => format!(": {needed} bytes are needed, {available} are free"),
        _ => String::new(),
    }
}

fn join_tried(tried: &[TriedCommand]) -> String {
    let mut text = String::new();
    for (idx, TriedCommand { command, reason }) in tried.iter().enumerate() {
        let _ = write!(text, "{}`{command}`: {reason}", if idx == 0 { "" } else { "; " });
    }
    text
}

fn tail_hint(tail: &str) -> String {
    if tail.is_empty() { String::new() } else { format!(":\n{tail}") }
}
