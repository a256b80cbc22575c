//! Hugging Face, through the blocking client of the `hf-hub` crate.
//!
//! The client has no time limits of its own, so it runs on a thread that is abandoned if no answer or no byte
//! comes. It keeps the partial file in a private folder below `.parts` and resumes there the next time. The
//! complete file is moved out and checked like any other.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::archive::expect_digest;
use crate::cache::EntryFolder;
use crate::catalog::{Digest, Entry, EntryKind, FileSpec, RepoFile};
use crate::error::{Error, Result};
use crate::hub::FetchOptions;
use crate::package::proceed;
use crate::progress::Progress;
use crate::retry::Retry;

const PUBLIC_ENDPOINT: &str = "https://huggingface.co";
const POLL: Duration = Duration::from_millis(100);

/// The repository of an entry.
#[derive(Debug)]
pub(crate) struct Remote<'a> {
    pub(crate) repo: &'a str,
    pub(crate) revision: &'a str,
    pub(crate) files: &'a [RepoFile],
}

/// One fetch from one repository.
struct Session<'a> {
    entry: &'a Entry,
    remote: &'a Remote<'a>,
    api: Api,
    repo: Repo,
    private_cache: Cache,
    endpoint: String,
    options: &'a FetchOptions,
}

/// Downloads the `missing` files of the entry into its folder.
pub(crate) fn fetch(
    entry: &Entry,
    remote: &Remote<'_>,
    missing: &[usize],
    folder: &EntryFolder,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<()> {
    let private = folder.parts().join("huggingface").join("hub");
    std::fs::create_dir_all(&private).map_err(|error| Error::io("create the folder", &private, error))?;
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let endpoint = options
        .endpoint
        .clone()
        .or_else(|| variable("HF_ENDPOINT"))
        .unwrap_or_else(|| PUBLIC_ENDPOINT.to_owned());
    let endpoint = endpoint.trim_end_matches('/').to_owned();
    // The client panics if it finds no home folder.
    let has_home = variable("HF_HOME").is_some() || std::env::home_dir().is_some();
    let token = variable("HF_TOKEN").or_else(|| if has_home { Cache::from_env().token() } else { None });
    let private_cache = Cache::new(private);
    let api = ApiBuilder::from_cache(private_cache.clone())
        .with_endpoint(endpoint.clone())
        .with_token(token)
        .with_progress(false)
        .build();
    let repo_type = match entry.kind {
        EntryKind::Model => RepoType::Model,
        EntryKind::Data => RepoType::Dataset,
    };
    let repo = Repo::with_revision(remote.repo.to_owned(), repo_type, remote.revision.to_owned());
    let api = api.map_err(|error| failed(remote, "", error.to_string()))?;
    let session = Session { entry, remote, api, repo, private_cache, endpoint, options };

    progress.started(&entry.name, missing.iter().map(|&file_idx| entry.files[file_idx].bytes).sum());
    let mut done = 0;
    let mut limit = options.connect_timeout;
    let result = missing.iter().try_for_each(|&file_idx| {
        let spec = &entry.files[file_idx];
        session.fetch_file(spec, folder, limit, done, progress)?;
        done += spec.bytes;
        progress.advanced(done);
        // The server has answered once, so from here on it is only slow.
        limit = options.stall_timeout;
        Ok(())
    });
    progress.finished();
    result
}

fn failed(remote: &Remote<'_>, file: &str, reason: impl Into<String>) -> Error {
    let mut reason = reason.into();
    if reason.contains("status: 401") || reason.contains("status: 403") {
        reason.push_str(" (the repository asks for an access token in HF_TOKEN and consent to its terms)");
    }
    Error::HuggingFace { repo: remote.repo.to_owned(), file: file.to_owned(), reason }
}

impl Session<'_> {
    fn fetch_file(
        &self,
        spec: &FileSpec,
        folder: &EntryFolder,
        limit: Duration,
        done: u64,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        // The catalog was validated: every file has a path.
        let mapped = self.remote.files.iter().find(|file| file.file == spec.name);
        let path = mapped.map_or(spec.name.as_str(), |file| file.path.as_str());
        let blob = self.look_up(spec, path, limit, progress)?;
        let part = blob.with_extension("part");
        let mut from_start = false;
        loop {
            let kept = part.metadata().map_or(0, |metadata| metadata.len());
            if kept > spec.bytes {
                let _ = std::fs::remove_file(&part);
            }
            if kept == spec.bytes {
                // The process ended after the last byte, but before the client renamed the file.
                self.take(&part, spec, folder)?;
            } else {
                folder.check_room(spec.bytes.saturating_sub(kept))?;
                self.transfer(path, &part, done, progress)?;
                self.take(&blob, spec, folder)?;
            }
            match folder.promote(spec, &mut |_| proceed(self.entry, progress)) {
                // The partial file may have been bad, or the server may not support byte ranges: start again
                // from 0.
                Err(Error::HashMismatch { .. } | Error::SizeMismatch { .. }) if kept > 0 && !from_start => {
                    let _ = std::fs::remove_file(folder.partial(spec));
                    from_start = true;
                }
                result => return result,
            }
        }
    }

    /// Asks for size and hash before any byte is transferred, and returns where the client will put the file.
    fn look_up(
        &self,
        spec: &FileSpec,
        path: &str,
        limit: Duration,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf> {
        let (answer, inbox) = mpsc::channel();
        let (api, url) = (self.api.clone(), self.repo_api().url(path));
        thread::spawn(move || answer.send(api.metadata(&url)));
        let begun = Instant::now();
        let metadata = loop {
            match inbox.recv_timeout(POLL.min(limit)) {
                Ok(Ok(metadata)) => break metadata,
                Ok(Err(error)) => return Err(failed(self.remote, path, error.to_string())),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(failed(self.remote, path, "the answer is not one of Hugging Face"));
                }
                Err(RecvTimeoutError::Timeout) => proceed(self.entry, progress)?,
            }
            if begun.elapsed() >= limit {
                let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                return Err(Error::Unreachable { endpoint: self.endpoint.clone(), limit_ms });
            }
        };
        let what = format!("Hugging Face: {}/{path}", self.remote.repo);
        let found = metadata.size() as u64;
        if found != spec.bytes {
            return Err(Error::SizeMismatch { what, expected: spec.bytes, found });
        }
        // Large files have their SHA-256 as ETag, small ones a Git hash.
        let etag = metadata.etag();
        if let Some(digest) = Digest::from_hex(etag) {
            expect_digest(&what, spec.sha256, digest)?;
        }
        // The client uses these two as file names.
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_plain(etag) || !is_plain(metadata.commit_hash()) {
            return Err(failed(self.remote, path, "the answer has an unsafe ETag or commit"));
        }
        Ok(self.private_cache.repo(self.repo.clone()).blob_path(etag))
    }

    /// Transfers the missing part of the file, and resumes if the connection breaks.
    fn transfer(&self, path: &str, part: &Path, done: u64, progress: &mut dyn Progress) -> Result<()> {
        let part_bytes = || part.metadata().map_or(0, |metadata| metadata.len());
        // The bytes before the last attempt; each attempt must make progress.
        let mut state = (0, progress);
        let attempt = |(before, progress): &mut (u64, &mut dyn Progress)| {
            // The client fails on links to a file that was moved away.
            let snapshots = self.private_cache.repo(self.repo.clone()).pointer_path("");
            let _ = std::fs::remove_dir_all(snapshots);
            *before = part_bytes();
            self.transfer_once(path, done, *progress)
        };
        let helped = |(before, progress): &mut (u64, &mut dyn Progress), error: &Error| {
            let helped = part_bytes() > *before;
            if helped && let Error::HuggingFace { reason, .. } = error {
                progress.message(&format!("{}: {reason}; going on", self.entry.name));
            }
            helped
        };
        Retry::TRANSFER.run(&mut state, attempt, helped, |(_, progress)| progress.keep_going())
    }

    fn transfer_once(&self, path: &str, done: u64, progress: &mut dyn Progress) -> Result<()> {
        enum Event {
            Bytes(u64),
            Ended(std::result::Result<PathBuf, String>),
        }
        struct Watcher {
            events: mpsc::Sender<Event>,
            cancel: Arc<AtomicBool>,
        }
        impl hf_hub::api::Progress for Watcher {
            fn init(&mut self, _size: usize, _filename: &str) {}
            fn update(&mut self, size: usize) {
                let _ = self.events.send(Event::Bytes(size as u64));
                if cfg!(panic = "unwind") && self.cancel.load(Ordering::Relaxed) {
                    // The client offers no other way to cancel a transfer. This runs no panic hook and prints
                    // no message.
                    std::panic::resume_unwind(Box::new("cancelled"));
                }
            }
            fn finish(&mut self) {}
        }

        let cancel = Arc::new(AtomicBool::new(false));
        let (events, inbox) = mpsc::channel();
        let watcher = Watcher { events: events.clone(), cancel: cancel.clone() };
        let (repo, remote_path) = (self.repo_api(), path.to_owned());
        thread::spawn(move || {
            let result =
                repo.download_with_progress(&remote_path, watcher).map_err(|error| error.to_string());
            let _ = events.send(Event::Ended(result));
        });
        let mut arrived = 0;
        let mut last_byte = Instant::now();
        let result = loop {
            match inbox.recv_timeout(POLL) {
                Ok(Event::Bytes(n_bytes)) => {
                    arrived += n_bytes;
                    last_byte = Instant::now();
                    progress.advanced(done + arrived);
                }
                Ok(Event::Ended(Ok(_))) => break Ok(()),
                Ok(Event::Ended(Err(reason))) => break Err(failed(self.remote, path, reason)),
                Err(RecvTimeoutError::Disconnected) => {
                    break Err(failed(self.remote, path, "the client ended without an answer"));
                }
                Err(RecvTimeoutError::Timeout) if last_byte.elapsed() >= self.options.stall_timeout => {
                    let seconds = self.options.stall_timeout.as_secs();
                    break Err(failed(self.remote, path, format!("no byte came for {seconds} s")));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Err(interrupted) = proceed(self.entry, progress) {
                break Err(interrupted);
            }
        };
        cancel.store(true, Ordering::Relaxed);
        result
    }

    /// Moves a file out of the client's folder.
    fn take(&self, from: &Path, spec: &FileSpec, folder: &EntryFolder) -> Result<()> {
        let to = folder.partial(spec);
        std::fs::rename(from, &to).map_err(|error| Error::io("move a file to", &to, error))
    }

    fn repo_api(&self) -> ApiRepo {
        self.api.repo(self.repo.clone())
    }
}
