//! The store on a disk that fails: every operation of a whole batch fails in turn, in every way.

use std::path::Path;

use breakers_core::Usage;
use breakers_files::testing::{Fault, FaultyDisk};
use breakers_sqlite::testing::{FAULTY_VFS, sqlite_faults};

use super::*;
use crate::batches::input::Line;

const NOW: u64 = 1_800_000_000;

fn open(folder: &Path, disk: &'static FaultyDisk) -> Result<Store> {
    let mut sqlite = SqliteConfig::default();
    sqlite.vfs = Some(FAULTY_VFS.to_owned());
    Store::open_on(&BatchConfig::new(folder), disk, sqlite)
}

/// What a client was told is there.
#[derive(Default)]
struct Told {
    file: bool,
    batch: bool,
    ended: bool,
}

/// A batch of two lines from its upload to its results. It goes on where it was interrupted.
fn work(store: &Store, told: &mut Told) -> Result<()> {
    let file = FileRow {
        id: "file-a".into(),
        tenant: String::new(),
        name: "a".into(),
        purpose: "batch".into(),
        bytes: 4,
        created: NOW,
        expires: None,
    };
    if store.file("", "file-a", NOW).is_err() {
        let mut bytes = store.begin_file("file-a")?;
        bytes.put(b"{}\n\n")?;
        store.add_file(bytes, &file)?;
    }
    told.file = true;
    let new = NewBatch {
        id: "batch_a".into(),
        tenant: String::new(),
        endpoint: "/v1/completions",
        input: "file-a".into(),
        window: "24h".into(),
        metadata: None,
        models: None,
        output_seconds: 3600,
        idempotency: Some("k".into()),
        is_retry: false,
        created: NOW,
        expires: NOW + 3600,
    };
    let mut batch = store.create_batch(&new, NOW)?;
    told.batch = true;
    if batch.status == Status::Validating {
        let line =
            |number| Line { number, custom_id: format!("id {number}"), start: 0, length: 2, rank: number };
        store.validated(batch.n, Ok(vec![line(1), line(2)]), NOW)?;
    }
    for pending in store.pending(batch.n, None, 10)? {
        let (status, body) = if pending.line == 1 { (200, r#"{"a":"b"}"#) } else { (400, r#"{"error":{}}"#) };
        store.end_line(batch.n, pending.line, status, body, &Usage::new(3, 2))?;
        // A second result changes nothing.
        store.end_line(batch.n, pending.line, 200, "{}", &Usage::new(3, 2))?;
    }
    batch = store.batch("", "batch_a")?;
    if batch.status != Status::Completed {
        store.finish_batch(&batch, Ending::Completed, NOW)?;
    }
    told.ended = true;
    Ok(())
}

fn content(store: &Store, id: &str) -> String {
    std::io::read_to_string(store.open_file(id).unwrap()).unwrap()
}

/// Checks that all that was told is there, and ends the batch if it has not ended.
fn check(folder: &Path, told: &Told, expected: Option<&[String; 2]>) -> [String; 2] {
    let disk: &'static FaultyDisk = Box::leak(Box::default());
    let store = open(folder, disk).unwrap();
    assert!(!told.file || content(&store, "file-a") == "{}\n\n");
    let found = store.batch("", "batch_a");
    assert!(!told.batch || found.is_ok());
    assert!(!told.ended || found.is_ok_and(|batch| batch.status == Status::Completed));
    work(&store, &mut Told::default()).unwrap();
    let batch = store.batch("", "batch_a").unwrap();
    assert_eq!((batch.n_good, batch.n_bad, batch.usage.total()), (1, 1, 10));
    let files = [content(&store, &batch.output.unwrap()), content(&store, &batch.error.unwrap())];
    if let Some(expected) = expected {
        assert_eq!(files, *expected);
    }
    // Nothing is left of what failed.
    let mut names: Vec<_> = std::fs::read_dir(folder.join("files")).unwrap().flatten().collect();
    names.retain(|entry| !breakers_files::is_temporary(entry.path()));
    assert_eq!(names.len(), 3, "{names:?}");
    files
}

#[test]
fn a_disk_that_fails_loses_nothing_that_was_told() {
    let faults = sqlite_faults();
    let folder = tempfile::tempdir().unwrap();
    let expected = check(folder.path(), &Told::default(), None);
    assert!(expected[0].contains("\"custom_id\":\"id 1\"") && expected[1].contains("\"custom_id\":\"id 2\""));
    let mut n_faults = 0;
    for in_database in [false, true] {
        for fault in Fault::ALL {
            // The database has many operations, and each one that is met takes a whole run.
            for n in (0..).step_by(if in_database { 4 } else { 1 }) {
                let folder = tempfile::tempdir().unwrap();
                let disk: &'static FaultyDisk = Box::leak(Box::default());
                let countdown = if in_database { &*faults } else { disk.countdown() };
                let mut told = Told::default();
                countdown.start(n, fault);
                let result = open(folder.path(), disk).and_then(|store| work(&store, &mut told));
                let met = countdown.stop();
                check(folder.path(), &told, Some(&expected));
                if !met {
                    result.unwrap();
                    break;
                }
                n_faults += 1;
            }
        }
    }
    assert!(n_faults > 30, "{n_faults}");
}

#[test]
fn bytes_without_a_row_go_at_the_next_start() {
    let faults = sqlite_faults();
    let folder = tempfile::tempdir().unwrap();
    let disk: &'static FaultyDisk = Box::leak(Box::default());
    let store = open(folder.path(), disk).unwrap();
    work(&store, &mut Told::default()).unwrap();
    let mut orphan = store.begin_file("file-b").unwrap();
    orphan.put(b"x").unwrap();
    orphan.commit().unwrap();
    drop(store);
    std::fs::write(folder.path().join("files/note.txt"), "not ours").unwrap();
    let store = open(folder.path(), disk).unwrap();
    let left = |name: &str| folder.path().join("files").join(name).exists();
    assert_eq!([left("file-b"), left("file-a"), left("note.txt")], [false, true, true]);
    assert_eq!(content(&store, "file-a"), "{}\n\n");
    drop(faults);
}
