//! What nobody should ask for, and what must not do harm when somebody does.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use breakers_retrieval::{
    Error, Metric,
    store::{Collection, Config, Filter, Options, Point, Query, Store},
};
use serde_json::json;

fn config() -> Config {
    Config { links: 4, build_effort: 16, ..Config::new(2, Metric::L2) }
}

fn plain() -> Options {
    let mut options = Options::default();
    options.save_on_close = false;
    options
}

fn open(folder: &Path, n: u64) -> (Store, Collection) {
    let store = Store::open_with(folder, plain()).unwrap();
    let collection = store.create("c", &config()).unwrap();
    let point = |id: u64| Point::new(id, [id as f32, 1.0]).with_payload(json!({"n": id})).unwrap();
    collection.upsert(&(0..n).map(point).collect::<Vec<_>>()).unwrap();
    (store, collection)
}

#[test]
fn the_largest_settings_are_only_large() {
    type Set = fn(&mut Options);
    let all: [(&str, Set); 6] = [
        ("busy_timeout", |options| options.busy_timeout = Duration::MAX),
        ("busy_timeout, sixty days", |options| options.busy_timeout = Duration::from_secs(60 * 86_400)),
        ("no busy_timeout", |options| options.busy_timeout = Duration::ZERO),
        ("refresh", |options| options.refresh = Duration::MAX),
        ("save_after", |options| options.save_after = Duration::MAX),
        ("expected_points", |options| options.expected_points = usize::MAX),
    ];
    for (name, set) in all {
        let folder = tempfile::tempdir().unwrap();
        let mut options = Options::default();
        set(&mut options);
        let store = Store::open_with(folder.path(), options).unwrap();
        let collection = store.create("c", &config()).unwrap();
        collection.upsert(&[Point::new(1, [1.0, 2.0])]).unwrap();
        assert_eq!(collection.search(&Query::new([1.0, 2.0], 5)).unwrap().len(), 1, "{name}");
    }
    for config in [
        Config::new(usize::MAX, Metric::L2),
        Config { links: usize::MAX, ..config() },
        Config { build_effort: usize::MAX, ..config() },
        Config::new(0, Metric::L2),
        Config { links: 0, ..config() },
        Config { build_effort: 0, ..config() },
    ] {
        assert!(config.code_bytes() <= config.full_bytes());
        let within = Options::default().within(1000, usize::MAX, &config);
        assert!(matches!(within, Err(Error::Parameter { .. })), "{config:?}");
        let folder = tempfile::tempdir().unwrap();
        let error = Store::open_with(folder.path(), plain()).unwrap().create("c", &config).unwrap_err();
        let is_named = matches!(error, Error::Parameter { .. } | Error::DimensionRange { .. });
        assert!(is_named, "{config:?}: {error}");
    }
}

#[test]
fn the_largest_requests_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let (_store, collection) = open(folder.path(), 40);
    let query = [1.0, 1.0];
    for k in [1, 40, 41, 100_000, usize::MAX] {
        for effort in [0, 1, usize::MAX] {
            let hits = collection.search(&Query::new(query, k).effort(effort)).unwrap();
            assert!(hits.len() <= 40 && (effort == 0 || hits.len() == k.min(40)), "k {k}, effort {effort}");
        }
        for recall in [0.0, 0.5, 1.0] {
            let tuned = collection.tune(&[query.to_vec()], k, recall).unwrap();
            assert!(tuned.effort <= 80 && tuned.recall == 1.0, "k {k}, {recall}: {tuned:?}");
        }
        for recall in [f64::NAN, f64::INFINITY, -0.1, 1.1] {
            let error = collection.tune(&[query.to_vec()], k, recall).unwrap_err();
            assert!(matches!(error, Error::Parameter { name: "recall", .. }), "{error}");
        }
    }
    let (few, filter) = (Filter::within("n", 0..=9), Filter::exists("n"));
    for (filter, limit, expected) in
        [(&few, usize::MAX, 10.0), (&few, 0, 0.0), (&few, 5, 5.0), (&filter, usize::MAX, 40.0)]
    {
        assert_eq!(collection.estimate(filter, limit).unwrap(), expected, "{limit}");
    }
    assert!(collection.scroll(u64::MAX, usize::MAX, None).unwrap().is_empty());
    assert_eq!(collection.scroll(0, usize::MAX, None).unwrap().len(), 40);
    assert_eq!(collection.get(&[u64::MAX, 3, 3]).unwrap().iter().flatten().count(), 2);
    assert_eq!(collection.delete(&[u64::MAX, 3, 3, 1 << 63]).unwrap(), 1);
    assert_eq!(collection.count(&Filter::is_in("n", 0..100_000i64)).unwrap(), 39);
}

/// What is not a backup makes no store, and leaves nothing behind.
#[test]
fn what_is_not_a_backup_is_not_restored() {
    let home = tempfile::tempdir().unwrap();
    let (store, _) = open(&home.path().join("store"), 300);
    let backup = home.path().join("backup");
    store.backup(&backup).unwrap();
    let whole = std::fs::read(&backup).unwrap();
    // It is one file, in SQLite's format without a log.
    assert_eq!(&whole[18..20], [1, 1]);
    let restore = |path: &Path, what: &str| {
        let begun = Instant::now();
        let folder = home.path().join("restored");
        let error = Store::restore(path, &folder, plain()).map(|_| ()).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {:?}", begun.elapsed());
        let left = std::fs::read_dir(&folder).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{what}: {error}");
        error
    };
    let file = home.path().join("file");
    for (what, content) in [
        ("empty", &[][..]),
        ("a byte", &whole[..1]),
        ("a header", &whole[..100]),
        ("a page", &whole[..4096]),
        ("the half", &whole[..whole.len() / 2]),
        ("all but a byte", &whole[..whole.len() - 1]),
        ("text", "not a database, ".repeat(999).as_bytes()),
        ("zeros", &[0; 8192]),
    ] {
        std::fs::write(&file, content).unwrap();
        restore(&file, what);
    }
    for (what, statement) in [
        ("another program's", "PRAGMA application_id = 7"),
        ("a later version", "PRAGMA user_version = 99"),
        ("without points", "DROP TABLE points_1"),
        ("another point", "UPDATE points_1 SET vector = zeroblob(8) WHERE id = 7"),
    ] {
        std::fs::write(&file, &whole).unwrap();
        rusqlite::Connection::open(&file).unwrap().execute_batch(statement).unwrap();
        let error = restore(&file, what);
        if what.contains("version") {
            assert!(matches!(&error, Error::SchemaVersion { path, .. } if *path == file), "{error}");
        }
    }
    restore(&home.path().join("missing"), "missing");
    restore(home.path(), "a folder");
    #[cfg(unix)]
    {
        let pipe = home.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        restore(&pipe, "a pipe");
        assert!(store.backup(&pipe).is_err());
    }
    assert_eq!(
        Store::restore(&backup, home.path().join("last"), plain()).unwrap().verify().unwrap().n_points,
        300
    );
}

/// A database with a log beside it may be open, and would be read with that log.
#[test]
fn a_backup_does_not_write_over_another_store() {
    let home = tempfile::tempdir().unwrap();
    let (store, _) = open(&home.path().join("store"), 3);
    let (other, points) = open(&home.path().join("other"), 7);
    for name in ["other/store.db", "other/../other/store.db"] {
        let error = store.backup(home.path().join(name)).unwrap_err();
        assert!(matches!(error, Error::Parameter { .. }), "{error}");
    }
    assert_eq!(other.verify().unwrap().n_points, 7);
    assert_eq!(points.len().unwrap(), 7);
    for suffix in ["-wal", "-shm", "-journal"] {
        let log = home.path().join(format!("backup{suffix}"));
        std::fs::write(&log, "of something").unwrap();
        assert!(store.backup(home.path().join("backup")).is_err(), "{suffix}");
        std::fs::remove_file(log).unwrap();
    }
    assert_eq!(store.backup(home.path().join("backup")).unwrap().n_points, 3);
}

/// Nothing is acknowledged that went into a file without a name.
#[cfg(unix)]
#[test]
fn a_database_that_is_gone_takes_no_writes() {
    type Change = fn(&Path);
    let all: [(&str, Change); 4] = [
        ("folder removed", |folder| std::fs::remove_dir_all(folder).unwrap()),
        ("folder renamed", |folder| std::fs::rename(folder, folder.with_extension("old")).unwrap()),
        ("database removed", |folder| std::fs::remove_file(folder.join("store.db")).unwrap()),
        ("database replaced", |folder| {
            std::fs::copy(folder.join("store.db"), folder.join("copy")).unwrap();
            std::fs::rename(folder.join("copy"), folder.join("store.db")).unwrap();
        }),
    ];
    for (what, change) in all {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("store");
        let (_store, collection) = open(&folder, 5);
        change(&folder);
        for result in [collection.upsert(&[Point::new(9, [1.0, 1.0])]), collection.delete(&[1]).map(|_| ())] {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Io { .. } | Error::Sqlite(_)), "{what}: {error}");
        }
        // What is in memory is as it was.
        assert_eq!(collection.explain(&Query::new([1.0, 1.0], 9)).unwrap().n_points, 5, "{what}");
    }
}

/// While a backup runs it is shown as running, also by other handles; one that was cut off is not.
#[test]
fn work_is_shown_as_it_stands() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("store");
    let (store, _) = open(&folder, 2000);
    let other = Store::open_with(&folder, plain()).unwrap();
    let mut seen = BTreeSet::new();
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            (0..10).for_each(|_| assert_eq!(store.backup(home.path().join("backup")).unwrap().n_points, 2000))
        });
        while !work.is_finished() {
            for store in [&store, &other] {
                seen.extend(store.jobs().unwrap().into_iter().map(|job| (job.kind, job.state)));
            }
        }
    });
    assert_eq!(seen, BTreeSet::from([("backup".to_owned(), "running".to_owned())]));
    let connection = rusqlite::Connection::open(folder.join("store.db")).unwrap();
    let sql = "INSERT INTO jobs(kind, state, detail) VALUES ('backup', 'running', 'x (process 4294967295)')";
    connection.execute(sql, []).unwrap();
    let states = || store.jobs().unwrap().into_iter().map(|job| job.state).collect::<Vec<_>>();
    assert_eq!(states(), if cfg!(target_os = "linux") { ["interrupted"] } else { ["running"] });
    store.backup(home.path().join("backup")).unwrap();
    assert_eq!(states().len(), usize::from(!cfg!(target_os = "linux")));
}
