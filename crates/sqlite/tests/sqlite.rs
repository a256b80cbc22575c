//! Databases: the library's version, concurrent opening, foreign files, faults while migrating.

use breakers_files::testing::Fault;
use breakers_sqlite::testing::{FAULTY_VFS, sqlite_faults};
use breakers_sqlite::{self as sqlite, Durability, Error, Schema, SqliteConfig};
use rusqlite::Connection;
use std::{
    path::Path,
    time::{Duration, Instant},
};

const FIRST: Schema = Schema { application_id: 77, migrations: &["CREATE TABLE a (x INTEGER)"] };
const SECOND: Schema = Schema {
    application_id: 77,
    migrations: &["CREATE TABLE a (x INTEGER)", "CREATE TABLE b (y INTEGER); INSERT INTO b VALUES (1)"],
};

fn config() -> SqliteConfig {
    SqliteConfig::default()
}

fn version_of(path: &Path) -> i64 {
    Connection::open(path).unwrap().query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
}

#[test]
fn the_library_keeps_its_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let connection = sqlite::open(folder.path().join("d"), &config(), &FIRST).unwrap();
    let version: String = connection.query_row("SELECT sqlite_version()", [], |row| row.get(0)).unwrap();
    assert_eq!(version, sqlite::library_version());
    let numbers: Vec<u32> = version.split('.').map(|part| part.parse().unwrap()).collect();
    assert!(numbers.as_slice() >= [3, 51, 3].as_slice(), "{version}");
}

#[test]
fn settings_are_as_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d");
    for (durability, expected) in [(Durability::Full, 2), (Durability::Process, 1)] {
        let mut config = config();
        config.durability = durability;
        let first = sqlite::open(&path, &config, &FIRST).unwrap();
        for connection in [first, sqlite::connect(&path, &config).unwrap()] {
            let ask = |what: &str| -> rusqlite::types::Value {
                connection.query_row(&format!("PRAGMA {what}"), [], |row| row.get(0)).unwrap()
            };
            assert_eq!(ask("journal_mode"), "wal".to_owned().into());
            assert_eq!(ask("synchronous"), i64::from(expected).into());
            assert_eq!(ask("trusted_schema"), 0i64.into());
            assert_eq!(ask("busy_timeout"), 30_000i64.into());
        }
    }
    let error = sqlite::open(":memory:", &config(), &FIRST).unwrap_err();
    assert!(matches!(error, Error::Setting { setting: "journal_mode", .. }), "{error}");
    assert!(matches!(
        sqlite::open(folder.path(), &config(), &FIRST),
        Err(Error::Files(breakers_files::Error::NotAFile { .. }))
    ));
}

#[test]
fn many_open_a_new_database_at_once() {
    for _ in 0..5 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d");
        std::thread::scope(|scope| {
            for i in 0..12 {
                let path = &path;
                scope.spawn(move || {
                    let mut connection = sqlite::open(path, &config(), &SECOND).unwrap();
                    sqlite::write(&mut connection, path, |transaction| {
                        transaction.execute("INSERT INTO a VALUES (?1)", [i]).map_err(sqlite::failed(path))
                    })
                    .unwrap();
                });
            }
        });
        let connection = sqlite::open(&path, &config(), &SECOND).unwrap();
        let sum: i64 = connection.query_row("SELECT sum(x) FROM a", [], |row| row.get(0)).unwrap();
        assert_eq!(sum, 66);
    }
}

#[test]
fn opening_does_not_wait_for_a_writer_and_writing_has_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d");
    let mut config = config();
    config.busy_timeout = Duration::from_millis(100);
    let mut writer = sqlite::open(&path, &config, &FIRST).unwrap();
    let held = writer.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    held.execute("INSERT INTO a VALUES (1)", []).unwrap();
    let mut second = sqlite::open(&path, &config, &FIRST).unwrap();
    let begun = Instant::now();
    let nothing = |_: &rusqlite::Transaction<'_>| Ok::<(), Error>(());
    let error = sqlite::write(&mut second, &path, nothing).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    assert!(begun.elapsed() >= Duration::from_millis(90));
    // One that must migrate needs the lock.
    assert!(matches!(sqlite::open(&path, &config, &SECOND), Err(Error::Locked { .. })));
    held.commit().unwrap();
    sqlite::open(&path, &config, &SECOND).unwrap();
    assert_eq!(version_of(&path), 2);
}

#[test]
fn work_that_fails_is_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d");
    let mut connection = sqlite::open(&path, &config(), &FIRST).unwrap();
    let failed = sqlite::write(&mut connection, &path, |transaction| {
        transaction.execute("INSERT INTO a VALUES (1)", []).map_err(sqlite::failed(&path))?;
        transaction.execute("INSERT INTO missing VALUES (1)", []).map_err(sqlite::failed(&path))
    });
    assert!(matches!(failed, Err(Error::Sqlite { .. })));
    let n: i64 = connection.query_row("SELECT count(*) FROM a", [], |row| row.get(0)).unwrap();
    assert_eq!(n, 0);
}

#[test]
fn databases_of_others_are_refused_and_left_as_they_were() {
    let cases = [
        ("PRAGMA user_version = 99", true),
        ("PRAGMA application_id = 78", true),
        ("CREATE TABLE other (x)", true),
        ("PRAGMA application_id = 77; PRAGMA user_version = 3", false),
        ("PRAGMA application_id = 77; PRAGMA user_version = -1", false),
    ];
    for (statements, is_foreign) in cases {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d");
        Connection::open(&path).unwrap().execute_batch(statements).unwrap();
        let before = std::fs::read(&path).unwrap();
        let error = sqlite::open(&path, &config(), &SECOND).unwrap_err();
        let Error::Schema { foreign, expected: 2, .. } = error else { panic!("{statements}: {error}") };
        assert_eq!(foreign, is_foreign, "{statements}");
        assert_eq!(std::fs::read(&path).unwrap(), before, "{statements}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d");
    std::fs::write(&path, [7; 5000]).unwrap();
    assert!(matches!(sqlite::open(&path, &config(), &SECOND), Err(Error::Sqlite { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), [7; 5000]);
}

#[test]
fn every_failing_call_of_a_migration_leaves_the_old_version_or_the_new_one() {
    let faults = sqlite_faults();
    let mut config = config();
    config.vfs = Some(FAULTY_VFS.to_owned());
    for fault in Fault::ALL {
        for n in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("d");
            drop(sqlite::open(&path, &config, &FIRST).unwrap());
            faults.start(n, fault);
            let opened = sqlite::open(&path, &config, &SECOND).map(drop);
            let met = faults.stop();
            let version = version_of(&path);
            assert!(version == 2 || (version == 1 && opened.is_err()), "{fault:?} at {n}: {opened:?}");
            let connection = sqlite::open(&path, &config, &SECOND).unwrap();
            let n_rows: i64 = connection.query_row("SELECT count(*) FROM b", [], |row| row.get(0)).unwrap();
            assert_eq!(n_rows, 1, "{fault:?} at {n}");
            if !met {
                opened.unwrap();
                assert!(n > 3, "{n}");
                break;
            }
        }
    }
}
