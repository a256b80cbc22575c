//! Beginnings of texts in files, which outlive the program.
//!
//! A file holds the tokens of one text and what they have left in its sequence ([`Snapshot`]). It is written
//! by a thread of its own, beside the old ones, synced and renamed, so that a crash leaves whole files only;
//! and it is used only if its checksums are right. Whatever is in doubt is a file less, and the tokens are
//! computed again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use breakers_core::{LanguageModel, SequenceId, Snapshot, TokenId};
use breakers_files::sections::{SectionFile, write_pieces};
use breakers_files::{Buffer, OsDisk};
use serde::{Deserialize, Serialize};

use super::prefixes::common;

/// Where beginnings of texts are kept over restarts ([`Engine::with_saved_prefixes`]).
///
/// [`Engine::with_saved_prefixes`]: super::Engine::with_saved_prefixes
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SavedPrefixes {
    /// The folder; it is created if it is missing, for its owner alone. Its files hold what users have
    /// written. Several models may share it.
    pub folder: PathBuf,
    /// Bytes that the files may take. The one that was not used for longest goes first.
    pub max_bytes: u64,
    /// Tokens that a file has to save: a text is written that is longer by so many than what the files hold
    /// of its beginning.
    pub least_tokens: usize,
}

impl SavedPrefixes {
    /// Up to 4 GB of beginnings of 256 tokens or more.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), max_bytes: 4_000_000_000, least_tokens: 256 }
    }
}

/// Why beginnings of texts cannot be kept in files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SavedPrefixesError {
    /// The model's sequences cannot be written down.
    #[error("the sequences of {model} cannot be written down: only plain caches (f16, f32) on the CPU can")]
    Model {
        /// The model's name.
        model: String,
    },
    /// Nothing tells the model's weights from others.
    #[error("{model} has no revision, and without one files of other weights could be taken for its own")]
    NoRevision {
        /// The model's name.
        model: String,
    },
    /// The folder cannot be used.
    #[error("{}: {source}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
}

const EXTENSION: &str = "prefix";
const TOKENS: &str = "tokens";
const STATE: &str = "state";

/// What a file says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Info {
    /// The weights, and all else that the state depends on.
    identity: String,
    tenant: String,
    n_tokens: usize,
}

/// A file that is there.
struct Entry {
    path: PathBuf,
    bytes: u64,
    /// `None` for files of other models.
    text: Option<Text>,
}

/// What the driver and the writing thread know of the files. The one used last comes last.
#[derive(Default)]
struct Index(Mutex<Vec<Entry>>);

impl Index {
    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tokens, and whose they are.
#[derive(Clone, PartialEq)]
struct Text {
    tenant: Arc<str>,
    tokens: Vec<TokenId>,
}

/// A text that is to be written.
struct Writing {
    text: Text,
    snapshot: Box<dyn Snapshot>,
}

/// What is being written, so that it is not written twice.
#[derive(Default)]
struct Pending(Mutex<Vec<Text>>);

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Vec<Text>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files of one model, and the thread that writes them. When this is dropped, what was handed in is
/// written first.
pub(super) struct PrefixFiles {
    config: SavedPrefixes,
    identity: String,
    index: Arc<Index>,
    pending: Arc<Pending>,
    n_saved: Arc<AtomicU64>,
    n_restored: u64,
    queue: Option<SyncSender<Writing>>,
    thread: Option<JoinHandle<()>>,
}

/// The name of a file that is there.
pub(super) type FileId = PathBuf;

impl PrefixFiles {
    /// Reads what the files of a folder hold. Those that are damaged are removed.
    pub(super) fn open(
        config: SavedPrefixes,
        model: &impl LanguageModel,
        revision: Option<&str>,
    ) -> Result<Self, SavedPrefixesError> {
        let name = || model.info().name.clone();
        let kind = model.snapshot_kind().ok_or_else(|| SavedPrefixesError::Model { model: name() })?;
        let revision = revision.ok_or_else(|| SavedPrefixesError::NoRevision { model: name() })?;
        let identity = format!("{revision}; {kind}");
        let entries = read_folder(&config.folder, &identity)
            .map_err(|source| SavedPrefixesError::Folder { folder: config.folder.clone(), source })?;
        let index = Arc::new(Index(Mutex::new(entries)));
        // One is written while another one waits; what comes meanwhile is not.
        let (queue, jobs) = sync_channel(1);
        let (pending, n_saved) = (Arc::<Pending>::default(), Arc::<AtomicU64>::default());
        let writer = Writer {
            config: config.clone(),
            identity: identity.clone(),
            index: index.clone(),
            pending: pending.clone(),
            n_saved: n_saved.clone(),
        };
        let thread = std::thread::Builder::new().name("saved-prefixes".to_owned());
        let thread = thread
            .spawn(move || writer.run(&jobs))
            .map_err(|source| SavedPrefixesError::Folder { folder: config.folder.clone(), source })?;
        let (queue, thread) = (Some(queue), Some(thread));
        Ok(Self { config, identity, index, pending, n_saved, n_restored: 0, queue, thread })
    }

    /// The file that holds most of a text's beginning, and how many of its tokens. At least one token is left
    /// to feed.
    pub(super) fn best(&self, tenant: &str, prompt: &[TokenId]) -> Option<(FileId, usize)> {
        let most = prompt.len().saturating_sub(1);
        let entries = self.index.lock();
        let of_tenant = entries.iter().filter_map(|entry| {
            let text = entry.text.as_ref().filter(|text| *text.tenant == *tenant)?;
            Some((entry, common(prompt, &text.tokens).min(most)))
        });
        let (entry, len) = of_tenant.max_by_key(|(_, len)| *len)?;
        (len > 0).then(|| (entry.path.clone(), len))
    }

    /// Opens a sequence with the first tokens of a file; `None` if the file is not what it should be.
    pub(super) fn restore<M: LanguageModel>(
        &mut self,
        model: &mut M,
        path: &Path,
        len: usize,
    ) -> Option<SequenceId> {
        match self.read(model, path, len) {
            Ok(sequence) => {
                self.n_restored += 1;
                let mut entries = self.index.lock();
                if let Some(at) = entries.iter().position(|entry| entry.path == path) {
                    entries[at..].rotate_left(1);
                }
                drop(entries);
                // Only the order in which files go hangs on it.
                let _ = File::options().append(true).open(path).and_then(|file| file.set_modified(now()));
                Some(sequence)
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "a saved beginning is not used");
                remove(path);
                self.index.lock().retain(|entry| entry.path != path);
                None
            }
        }
    }

    fn read<M: LanguageModel>(
        &self,
        model: &mut M,
        path: &Path,
        len: usize,
    ) -> Result<SequenceId, breakers_core::BoxError> {
        let file = SectionFile::<Info>::open_lazily(path)?;
        if file.info.identity != self.identity {
            return Err("it is of another model".into());
        }
        let n_bytes = file.section_bytes(STATE).ok_or("it holds no state")?;
        let state = file.array::<u8>(STATE, n_bytes)?;
        Ok(model.restore(Arc::new(Mapped(state)), file.info.n_tokens, len)?)
    }

    /// Writes a text's sequence, if it is worth a file and the writer has time.
    pub(super) fn offer<M: LanguageModel>(
        &self,
        model: &M,
        tenant: &Arc<str>,
        sequence: SequenceId,
        tokens: &[TokenId],
    ) {
        let Some(queue) = &self.queue else { return };
        let held = self.best(tenant, tokens).map_or(0, |(_, len)| len);
        let mut pending = self.pending.lock();
        let of_tenant = pending.iter().filter(|text| text.tenant == *tenant);
        let soon = of_tenant.map(|text| common(tokens, &text.tokens)).max().unwrap_or(0);
        if tokens.len() < held.max(soon).saturating_add(self.config.least_tokens.max(1)) {
            return;
        }
        let Ok(snapshot) = model.snapshot(sequence) else { return };
        let text = Text { tenant: tenant.clone(), tokens: tokens.to_vec() };
        pending.push(text.clone());
        if queue.try_send(Writing { text, snapshot }).is_err() {
            pending.pop();
        }
    }

    /// Texts that were written, and texts that began with what a file held.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.n_saved.load(Relaxed), self.n_restored)
    }
}

impl Drop for PrefixFiles {
    fn drop(&mut self) {
        self.queue = None;
        // A thread that has panicked has nothing to write anymore.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A part of a file, as a model reads it.
struct Mapped(Buffer<u8>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// What the writing thread needs.
struct Writer {
    config: SavedPrefixes,
    identity: String,
    index: Arc<Index>,
    pending: Arc<Pending>,
    n_saved: Arc<AtomicU64>,
}

impl Writer {
    fn run(&self, jobs: &Receiver<Writing>) {
        for Writing { text, snapshot } in jobs {
            match self.write(&text, &*snapshot) {
                Ok(Some(entry)) => {
                    self.n_saved.fetch_add(1, Relaxed);
                    self.enter(entry);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "the beginning of a text is not kept"),
            }
            self.pending.lock().retain(|pending| *pending != text);
        }
    }

    /// `None` if it is larger than all files may be.
    fn write(&self, text: &Text, snapshot: &dyn Snapshot) -> breakers_files::Result<Option<Entry>> {
        let Text { tenant, tokens } = text;
        let mut n_bytes = 0;
        snapshot.pieces(&mut |piece| n_bytes += piece.len() as u64);
        if n_bytes > self.config.max_bytes {
            return Ok(None);
        }
        let path = self.free_path();
        let info =
            Info { identity: self.identity.clone(), tenant: tenant.to_string(), n_tokens: tokens.len() };
        let ids: Vec<u8> = tokens.iter().flat_map(|id| id.to_ne_bytes()).collect();
        write_pieces(
            &OsDisk,
            &path,
            info,
            &[(TOKENS, &|put| put(&ids)), (STATE, &|put| snapshot.pieces(put))],
        )?;
        let bytes = fs::metadata(&path).map_or(n_bytes, |file| file.len());
        Ok(Some(Entry { path, bytes, text: Some(text.clone()) }))
    }

    fn free_path(&self) -> PathBuf {
        let since = now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let name = |i: u32| format!("{since:x}-{:x}-{i}.{EXTENSION}", std::process::id());
        let paths = (0..).map(|i| self.config.folder.join(name(i)));
        paths.into_iter().find(|path| !path.exists()).unwrap_or_default()
    }

    /// Makes a file known. Those go whose text is a beginning of it, and the oldest while there are too many
    /// bytes.
    fn enter(&self, entry: Entry) {
        let mut entries = self.index.lock();
        let is_shorter = |other: &Entry| match (&other.text, &entry.text) {
            (Some(short), Some(long)) => {
                short.tenant == long.tenant && long.tokens.starts_with(&short.tokens)
            }
            _ => false,
        };
        let (shorter, mut kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *entries).into_iter().partition(is_shorter);
        kept.push(entry);
        let mut sum: u64 = kept.iter().map(|entry| entry.bytes).sum();
        let is_over = |entry: &Entry| {
            let is_over = sum > self.config.max_bytes;
            sum -= if is_over { entry.bytes } else { 0 };
            is_over
        };
        let (over, kept): (Vec<_>, Vec<_>) = kept.into_iter().partition(is_over);
        *entries = kept;
        drop(entries);
        shorter.into_iter().chain(over).for_each(|entry| remove(&entry.path));
    }
}

/// The files of a folder, the oldest first.
fn read_folder(folder: &Path, identity: &str) -> std::io::Result<Vec<Entry>> {
    create(folder)?;
    // What a crash has left half written.
    if let Err(error) = breakers_files::clean(&OsDisk, folder) {
        tracing::warn!(%error, "files that were begun are not removed");
    }
    let mut entries = Vec::new();
    for file in fs::read_dir(folder)? {
        let (path, metadata) = match file.and_then(|file| Ok((file.path(), file.metadata()?))) {
            Ok(file) => file,
            // It may be gone by now.
            Err(_) => continue,
        };
        if path.extension().is_none_or(|extension| extension != EXTENSION) {
            continue;
        }
        match text_of(&path, identity) {
            Ok(text) => {
                let used = metadata.modified().unwrap_or(UNIX_EPOCH);
                entries.push((used, Entry { path, bytes: metadata.len(), text }));
            }
            Err(error) => {
                tracing::warn!(%error, "a saved beginning is not used");
                if let breakers_files::Error::Damaged { .. } = error {
                    remove(&path);
                }
            }
        }
    }
    entries.sort_by_key(|(used, _)| *used);
    Ok(entries.into_iter().map(|(_, entry)| entry).collect())
}

/// The tokens of a file, if it is of this model.
fn text_of(path: &Path, identity: &str) -> breakers_files::Result<Option<Text>> {
    let file = SectionFile::<Info>::open_lazily(path)?;
    if file.info.identity != identity {
        return Ok(None);
    }
    let tokens = file.array::<TokenId>(TOKENS, file.info.n_tokens)?;
    Ok(Some(Text { tenant: Arc::from(&*file.info.tenant), tokens: tokens.to_vec() }))
}

/// Creates the folder, which nobody else may read.
fn create(folder: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(file = %path.display(), %error, "a saved beginning is not removed");
        }
        _ => {}
    }
}

fn now() -> SystemTime {
    SystemTime::now()
}
