//! Every write, sync, rename and removal fails once, at every place. Nothing acknowledged is lost, nothing is
//! half done, and what an index file lacks comes from the database.

use std::collections::BTreeMap;
use std::sync::Arc;

use breakers_files::{
    is_temporary,
    testing::{Fault, FaultyDisk},
};
use breakers_retrieval::{
    Metric,
    store::{Config, Filter, Options, Origin, Point, Query, SCHEMA_VERSION, Store},
};
use breakers_sqlite::testing::{FAULTY_VFS, sqlite_faults};
use rusqlite::Connection;
use serde_json::json;

/// A point whose vector and payload follow from two numbers.
fn point(id: u64, value: u64) -> Point {
    let x = (id * 7 + value * 13) as f32;
    Point::new(id, [x.sin(), x.cos(), (2.0 * x).sin(), 0.5])
        .with_payload(json!({"value": value, "text": "t".repeat(value as usize % 300)}))
        .unwrap()
}

fn config() -> Config {
    Config { links: 4, build_effort: 16, ..Config::new(4, Metric::Cosine) }
}

fn plain() -> Options {
    let mut options = Options::default();
    options.save_on_close = false;
    options
}

/// The ids and values that a store has, after everything in it was compared: checksums, index, fields.
fn content(store: &Store) -> BTreeMap<u64, u64> {
    store.verify().unwrap();
    let collection = store.create("c", &config()).unwrap();
    let points = collection.scroll(0, usize::MAX, None).unwrap();
    let mut content = BTreeMap::new();
    for found in points {
        let value = found.payload.as_ref().unwrap()["value"].as_u64().unwrap();
        assert_eq!(found, point(found.id, value));
        let query = Query::new(found.vector.clone(), 1);
        let hit = &collection.search(&query).unwrap()[0];
        assert!(hit.distance.abs() < 1e-6, "{found:?} is not in the index");
        content.insert(found.id, value);
    }
    assert_eq!(collection.len().unwrap(), content.len());
    for value in content.values() {
        let expected = content.values().filter(|v| *v == value).count();
        assert_eq!(collection.count(&Filter::eq("value", *value as i64)).unwrap(), expected);
    }
    content
}

#[test]
fn every_failing_call_of_sqlite_leaves_old_or_new() {
    let sqlite = sqlite_faults();
    for fault in Fault::ALL {
        let mut n = 0;
        let mut met = 0;
        // Over all places until there is none left; short runs take larger steps later on.
        loop {
            let folder = tempfile::tempdir().unwrap();
            let before: BTreeMap<u64, u64> = (0..20).map(|id| (id, 1)).collect();
            {
                let store = Store::open_with(folder.path(), plain()).unwrap();
                let points: Vec<Point> = before.iter().map(|(&id, &value)| point(id, value)).collect();
                store.create("c", &config()).unwrap().upsert(&points).unwrap();
            }
            // What must be there, and what may be there instead if an operation failed.
            let (mut sure, mut maybe) = (before.clone(), before.clone());
            let mut options = plain();
            options.vfs = Some(FAULTY_VFS.to_owned());
            sqlite.start(n, fault);
            let done = (|| {
                let store = Store::open_with(folder.path(), options.clone())?;
                let collection = store.create("c", &config())?;
                let points: Vec<Point> = (10..30).map(|id| point(id, 2)).collect();
                maybe.extend((10..30).map(|id| (id, 2)));
                collection.upsert(&points)?;
                sure.clone_from(&maybe);
                maybe.retain(|id, _| id % 3 != 0);
                collection.delete(&(0..30).filter(|id| id % 3 == 0).collect::<Vec<_>>())?;
                sure.clone_from(&maybe);
                store.compact()?;
                let copy = folder.path().join("copy");
                store.backup(&copy)?;
                Ok::<_, breakers_retrieval::Error>(())
            })();
            let was_met = sqlite.stop();
            let store = Store::open_with(folder.path(), plain()).unwrap();
            let found = content(&store);
            assert!(
                found == sure || found == maybe,
                "{fault:?} at {n}: {done:?}\n{found:?}\n{sure:?}\n{maybe:?}"
            );
            let copy = folder.path().join("copy");
            if copy.exists() {
                let restored = Store::restore(&copy, folder.path().join("restored"), plain()).unwrap();
                assert_eq!(content(&restored), sure, "{fault:?} at {n}");
            }
            if !was_met {
                done.unwrap();
                break;
            }
            met += 1;
            n += if std::env::var_os("BREAKERS_SOAK").is_some() { 1 } else { 1 + n / 10 };
        }
        eprintln!("{fault:?}: {met} of SQLite's calls failed");
        assert!(met > 20, "{met} faults met");
    }
}

#[test]
fn every_failing_call_on_index_files_leaves_the_store_whole() {
    for fault in Fault::ALL {
        for n in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let disk = Arc::new(FaultyDisk::default());
            let mut options = plain();
            options.disk = Arc::clone(&disk) as _;
            let expected: BTreeMap<u64, u64> = (0..40).map(|id| (id, u64::from(id >= 20))).collect();
            let saved = {
                let store = Store::open_with(folder.path(), options).unwrap();
                let collection = store.create("c", &config()).unwrap();
                let points =
                    |ids: std::ops::Range<u64>| ids.map(|id| point(id, expected[&id])).collect::<Vec<_>>();
                collection.upsert(&points(0..20)).unwrap();
                collection.save_index().unwrap();
                collection.upsert(&points(20..40)).unwrap();
                disk.countdown().start(n, fault);
                let saved = collection.save_index();
                // It goes on with what is in memory.
                assert_eq!(collection.search(&Query::new(point(30, 1).vector, 40)).unwrap().len(), 40);
                saved
            };
            let met = disk.countdown().stop();
            let store = Store::open_with(folder.path(), plain()).unwrap();
            let origin = store.collection("c").unwrap().origin();
            assert!(matches!(origin, Origin::File { caught_up: 0 | 20 }), "{fault:?} at {n}: {origin:?}");
            assert_eq!(content(&store), expected);
            let leftovers = std::fs::read_dir(folder.path()).unwrap().flatten();
            let n_leftovers = leftovers.filter(|e| is_temporary(e.path())).count();
            assert!(n_leftovers == 0 || fault != Fault::Once, "{n_leftovers} after {fault:?} at {n}");
            if !met {
                eprintln!("{fault:?}: {n} calls on index files failed");
                saved.unwrap();
                assert_eq!(origin, Origin::File { caught_up: 0 });
                assert!(n > 5);
                break;
            }
        }
    }
}

#[test]
fn every_flipped_byte_of_an_index_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_with(folder.path(), plain()).unwrap();
    let points: Vec<Point> = (0..9).map(|id| point(id, 3)).collect();
    let query = Query::new(point(4, 3).vector, 9);
    let expected = {
        let collection = store.create("c", &config()).unwrap();
        collection.upsert(&points).unwrap();
        collection.save_index().unwrap();
        collection.search(&query).unwrap()
    };
    let path = folder.path().join("index-1.bin");
    let good = std::fs::read(&path).unwrap();
    drop(store);
    let open = |bytes: &[u8], rebuilt: bool, what: &str| {
        std::fs::write(&path, bytes).unwrap();
        let store = Store::open_with(folder.path(), plain()).unwrap();
        let collection = store.collection("c").unwrap();
        assert_eq!(matches!(collection.origin(), Origin::Rebuilt { .. }), rebuilt, "{what}");
        assert_eq!(collection.search(&query).unwrap(), expected, "{what}");
    };
    open(&good, false, "as it was");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        open(&bad, true, &format!("byte {at}"));
    }
    for length in (0..good.len()).step_by(97) {
        open(&good[..length], true, &format!("{length} bytes"));
    }
    open(&good, false, "as it was");
    {
        let store = Store::open_with(folder.path(), plain()).unwrap();
        store.collection("c").unwrap().delete(&[0]).unwrap();
        store.collection("c").unwrap().upsert(&points[..1]).unwrap();
    }
    open(&good, false, "older than the database");
}

#[test]
fn every_failing_call_of_a_migration_leaves_old_or_new() {
    let sqlite = sqlite_faults();
    for fault in Fault::ALL {
        for n in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("store.db");
            drop(Store::open_with(folder.path(), plain()).unwrap());
            {
                // Version 1 had no jobs.
                let old = Connection::open(&path).unwrap();
                old.execute_batch("DROP TABLE jobs; PRAGMA user_version = 1; PRAGMA journal_mode = DELETE")
                    .unwrap();
            }
            let mut options = plain();
            options.vfs = Some(FAULTY_VFS.to_owned());
            sqlite.start(n, fault);
            let opened = Store::open_with(folder.path(), options).map(|_| ());
            let met = sqlite.stop();
            let version: i64 = Connection::open(&path)
                .unwrap()
                .query_row("PRAGMA user_version", [], |row| row.get(0))
                .unwrap();
            assert!([1, SCHEMA_VERSION].contains(&version) && (opened.is_err() || version == SCHEMA_VERSION));
            let store = Store::open_with(folder.path(), plain()).unwrap();
            assert!(store.jobs().unwrap().is_empty());
            assert!(content(&store).is_empty());
            if !met {
                eprintln!("{fault:?}: {n} calls of a migration failed");
                opened.unwrap();
                assert!(n > 3);
                break;
            }
        }
    }
}

#[test]
fn databases_of_others_are_refused() {
    for statements in ["PRAGMA user_version = 99", "CREATE TABLE other(x)", "PRAGMA user_version = 1"] {
        let folder = tempfile::tempdir().unwrap();
        Connection::open(folder.path().join("store.db")).unwrap().execute_batch(statements).unwrap();
        let error = Store::open_with(folder.path(), plain()).unwrap_err();
        assert!(matches!(error, breakers_retrieval::Error::SchemaVersion { .. }), "{statements}: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("store.db"), [7; 5000]).unwrap();
    assert!(matches!(Store::open(folder.path()), Err(breakers_retrieval::Error::Sqlite(_))));
    assert!(Store::restore(folder.path().join("store.db"), folder.path().join("new"), plain()).is_err());
    assert!(!folder.path().join("new/store.db").exists());
}
