//! The catalog: named entries, their files, and where the files come from. It is data, read from JSON.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

const BUILTIN: &str = include_str!("entries.json");

/// A SHA-256 hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Digest {
    /// Reads 64 hexadecimal digits.
    ///
    /// ```
    /// let digest = breakers_hub::Digest::from_hex(&"ab".repeat(32)).unwrap();
    /// assert_eq!(digest.0, [0xab; 32]);
    /// assert!(breakers_hub::Digest::from_hex("ab").is_none());
    /// ```
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Self(bytes))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(&text).ok_or_else(|| serde::de::Error::custom("a SHA-256 has 64 hexadecimal digits"))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whether an entry holds weights or data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EntryKind {
    /// A model.
    Model,
    /// A data set.
    Data,
}

/// A model or data set with a name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Entry {
    /// The name that users ask for; also the name of its folder in the cache.
    pub name: String,
    /// Model or data.
    pub kind: EntryKind,
    /// A one-line description for people.
    pub title: String,
    /// The license: an SPDX identifier, or the name of the terms.
    pub license: String,
    /// A note about the license; may be empty.
    #[serde(default)]
    pub license_note: String,
    /// The files, all of which are fetched.
    pub files: Vec<FileSpec>,
    /// Where the files come from, in the order to try.
    pub sources: Vec<Source>,
}

/// A file of an entry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FileSpec {
    /// The path inside the entry's folder, with `/` between folders.
    pub name: String,
    /// The exact size.
    pub bytes: u64,
    /// The exact hash.
    pub sha256: Digest,
}

/// Where the files of an entry come from.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Source {
    /// Python packages, fetched as wheels by the user's own `pip`.
    Pypi {
        /// The packages; together they hold every file.
        packages: Vec<Package>,
    },
    /// Node packages, fetched as tarballs by the user's own `npm`.
    Npm {
        /// The packages; together they hold every file.
        packages: Vec<Package>,
    },
    /// A repository on Hugging Face.
    HuggingFace {
        /// `owner/name`.
        repo: String,
        /// A commit or branch. The hash in [`FileSpec`] pins the bytes in any case.
        revision: String,
        /// Which file of the repository corresponds to which file of the entry.
        files: Vec<RepoFile>,
        /// A note about this source.
        #[serde(default)]
        note: String,
    },
}

/// A file in a repository.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RepoFile {
    /// The entry's file.
    pub file: String,
    /// The path inside the repository.
    pub path: String,
}

/// A package of a registry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Package {
    /// Its name; never a URL.
    pub name: String,
    /// Its exact version.
    pub version: String,
    /// The size of its archive, for the progress display.
    pub bytes: u64,
    /// Set if the pieces are in a zip file inside the archive.
    #[serde(default)]
    pub nested: Option<Nested>,
    /// What it holds.
    pub pieces: Vec<Piece>,
}

/// A zip file inside a package.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Nested {
    /// Its path inside the archive.
    pub member: String,
    /// Its exact size.
    pub bytes: u64,
    /// Its exact hash.
    pub sha256: Digest,
}

/// A member of a package. It is a file of the entry or, joined with others in the order listed, a part of
/// one.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Piece {
    /// The path inside the archive.
    pub member: String,
    /// The entry's file.
    pub file: String,
    /// The exact size.
    pub bytes: u64,
    /// The exact hash.
    pub sha256: Digest,
}

/// A kind of source, for choosing between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SourceKind {
    /// Python packages.
    Pypi,
    /// Node packages.
    Npm,
    /// Hugging Face.
    HuggingFace,
}

impl SourceKind {
    /// Reads `auto` (an empty list: the catalog's order), one kind, or several joined by commas.
    ///
    /// # Errors
    /// [`Error::UnknownSource`] for any other word.
    ///
    /// ```
    /// use breakers_hub::SourceKind;
    ///
    /// let kinds = SourceKind::parse_list("huggingface,pypi").unwrap();
    /// assert_eq!(kinds, [SourceKind::HuggingFace, SourceKind::Pypi]);
    /// assert!(SourceKind::parse_list("auto").unwrap().is_empty());
    /// ```
    pub fn parse_list(text: &str) -> Result<Vec<Self>> {
        match text.trim() {
            "" | "auto" => Ok(Vec::new()),
            list => list.split(',').map(|word| word.trim().parse()).collect(),
        }
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pypi => "pypi",
            Self::Npm => "npm",
            Self::HuggingFace => "huggingface",
        })
    }
}

impl FromStr for SourceKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "pypi" => Ok(Self::Pypi),
            "npm" => Ok(Self::Npm),
            "huggingface" | "hf" => Ok(Self::HuggingFace),
            _ => Err(Error::UnknownSource { found: text.to_owned() }),
        }
    }
}

impl Source {
    /// The kind of this source.
    pub fn kind(&self) -> SourceKind {
        match self {
            Self::Pypi { .. } => SourceKind::Pypi,
            Self::Npm { .. } => SourceKind::Npm,
            Self::HuggingFace { .. } => SourceKind::HuggingFace,
        }
    }

    /// This source in words.
    pub fn describe(&self) -> String {
        let packages_in = |registry: &str, packages: &[Package]| match packages {
            [only] => format!("{registry} package {}", only.name),
            [first, .., last] => format!("{registry} packages {} … {}", first.name, last.name),
            [] => format!("{registry}, no package"),
        };
        match self {
            Self::Pypi { packages } => packages_in("PyPI", packages),
            Self::Npm { packages } => packages_in("npm", packages),
            Self::HuggingFace { repo, .. } => format!("Hugging Face repository {repo}"),
        }
    }
}

impl Entry {
    /// The sum of the files' sizes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Named entries.
///
/// # Example
/// ```
/// use breakers_hub::Catalog;
///
/// let catalog = Catalog::builtin()?;
/// let entry = catalog.get("smollm2-135m").expect("it comes with this crate");
/// println!("{}: {} bytes, {}", entry.title, entry.bytes(), entry.license);
/// assert_eq!(entry.files.len(), 1);
/// # Ok::<(), breakers_hub::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Catalog {
    entries: Vec<Entry>,
}

impl Catalog {
    /// The entries that come with this crate.
    ///
    /// # Errors
    /// None in a released crate: a test reads the embedded table.
    pub fn builtin() -> Result<Self> {
        Self::from_json(BUILTIN)
    }

    pub(crate) fn empty() -> Self {
        Self { entries: Vec::new() }
    }

    /// Reads a catalog; the format is the one of `entries.json` in this crate.
    ///
    /// # Errors
    /// [`Error::InvalidCatalog`] names the entry and the field.
    pub fn from_json(json: &str) -> Result<Self> {
        let entries: Vec<Entry> = serde_json::from_str(json).map_err(|error| Error::InvalidCatalog {
            entry: "?".to_owned(),
            field: "JSON",
            problem: error.to_string(),
        })?;
        let mut names = HashSet::new();
        for entry in &entries {
            validate(entry)?;
            if !names.insert(&entry.name) {
                return Err(invalid(entry, "name", "occurs twice"));
            }
        }
        Ok(Self { entries })
    }

    /// All entries, in the order of the catalog.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of this name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// Adds the entries of another catalog. An entry of the same name replaces the existing one.
    pub fn extend(&mut self, other: Catalog) {
        for entry in other.entries {
            match self.entries.iter_mut().find(|present| present.name == entry.name) {
                Some(present) => *present = entry,
                None => self.entries.push(entry),
            }
        }
    }

    /// The error for an unknown name, with the most similar name if one is close.
    pub(crate) fn unknown(&self, name: &str) -> Error {
        let wanted = name.to_lowercase();
        let nearest = self
            .entries
            .iter()
            .map(|entry| (edit_distance(&wanted, &entry.name), entry))
            .filter(|(distance, entry)| *distance <= 2.max(entry.name.len() / 3))
            .min_by_key(|(distance, _)| *distance)
            .or_else(|| {
                let holds = |entry: &&Entry| !wanted.is_empty() && entry.name.contains(&wanted);
                self.entries.iter().find(holds).map(|entry| (0, entry))
            })
            .map(|(_, entry)| entry.name.clone());
        let known = self.entries.iter().map(|entry| entry.name.clone()).collect();
        Error::UnknownName { name: name.to_owned(), nearest, known }
    }
}

fn invalid(entry: &Entry, field: &'static str, problem: impl Into<String>) -> Error {
    Error::InvalidCatalog { entry: entry.name.clone(), field, problem: problem.into() }
}

/// Checks what later code relies on: names must be safe as file names and as program arguments, and pieces
/// must add up to their files.
fn validate(entry: &Entry) -> Result<()> {
    if !is_word(&entry.name) {
        return Err(invalid(
            entry,
            "name",
            "must be letters, digits, `.`, `_` or `-`, and start with one of the first two",
        ));
    }
    if entry.files.is_empty() {
        return Err(invalid(entry, "files", "must not be empty"));
    }
    let mut file_names = HashSet::new();
    for file in &entry.files {
        if !file.name.split('/').all(is_word) {
            return Err(invalid(entry, "files", format!("has the unsafe path `{}`", file.name)));
        }
        if file.bytes == 0 {
            return Err(invalid(entry, "files", format!("hold the empty `{}`", file.name)));
        }
        if !file_names.insert(file.name.as_str()) {
            return Err(invalid(entry, "files", format!("names `{}` twice", file.name)));
        }
    }
    entry
        .files
        .iter()
        .try_fold(0_u64, |sum, file| sum.checked_add(file.bytes))
        .ok_or_else(|| invalid(entry, "files", "have an absurd size"))?;
    for source in &entry.sources {
        match source {
            Source::Pypi { packages } | Source::Npm { packages } => validate_packages(entry, packages)?,
            Source::HuggingFace { repo, revision, files, .. } => {
                let is_repo = repo.split('/').count() == 2 && repo.split('/').all(is_word);
                if !is_repo || !is_word(revision) {
                    return Err(invalid(entry, "repo", "must be `owner/name` with a plain revision"));
                }
                let mapped: HashSet<_> = files.iter().map(|file| file.file.as_str()).collect();
                if mapped != file_names || files.len() != file_names.len() {
                    return Err(invalid(entry, "sources", format!("of {repo} must name every file once")));
                }
                if !files.iter().all(|file| file.path.split('/').all(is_word)) {
                    return Err(invalid(entry, "sources", format!("of {repo} have an unsafe path")));
                }
            }
        }
    }
    Ok(())
}

fn validate_packages(entry: &Entry, packages: &[Package]) -> Result<()> {
    for package in packages {
        if !is_word(&package.name) || !is_word(&package.version) {
            return Err(invalid(entry, "packages", format!("has the unsafe name `{}`", package.name)));
        }
        if package.pieces.is_empty() {
            return Err(invalid(entry, "pieces", format!("of {} must not be empty", package.name)));
        }
    }
    packages
        .iter()
        .try_fold(0_u64, |sum, package| sum.checked_add(package.bytes))
        .ok_or_else(|| invalid(entry, "packages", "have an absurd size"))?;
    let pieces = || packages.iter().flat_map(|package| &package.pieces);
    for file in &entry.files {
        let mine = || pieces().filter(|piece| piece.file == file.name);
        let sum = mine().try_fold(0_u64, |sum, piece| sum.checked_add(piece.bytes));
        if sum != Some(file.bytes) {
            return Err(invalid(entry, "pieces", format!("of `{}` do not add up to its size", file.name)));
        }
    }
    match pieces().find(|piece| entry.files.iter().all(|file| file.name != piece.file)) {
        Some(piece) => Err(invalid(entry, "pieces", format!("belong to the unknown file `{}`", piece.file))),
        None if pieces().any(|piece| piece.bytes == 0) => Err(invalid(entry, "pieces", "must not be empty")),
        None => Ok(()),
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-'))
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter_a) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, letter_b) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (above + 1).min(row[j] + 1).min(diagonal + usize::from(letter_a != *letter_b));
            diagonal = above;
        }
    }
    row[b.len()]
}
