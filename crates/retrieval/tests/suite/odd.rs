//! What users write that nobody expects: conditions, queries, batches, names, folders and files. Each kind is
//! a table.

use std::{collections::BTreeSet, path::Path};

use breakers_retrieval::{
    Error, Metric,
    store::{Collection, Config, Filter, Indexed, MAX_ID, Options, Point, Query, Store},
};
use serde_json::{Value, json};

fn config(metric: Metric) -> Config {
    Config { links: 4, build_effort: 16, ..Config::new(2, metric) }
}

fn plain() -> Options {
    let mut options = Options::default();
    options.save_on_close = false;
    options
}

fn found(collection: &Collection, query: &Query) -> BTreeSet<u64> {
    collection.search(query).unwrap().iter().map(|hit| hit.id).collect()
}

/// What each condition finds, whether from the table of fields or from payloads.
#[test]
fn conditions_mean_what_they_say() {
    let payloads = [
        json!({"a": 1, "b": {"c": "x"}, "t": ["x", "y"], "z": null, "f": true}),
        json!({"a": 1.0, "b": {"c": ["x", {"d": 2}]}, "t": [], "f": 1}),
        json!({"a": "1", "t": "x", "f": "true"}),
        json!({"a": [1, 2, 3], "b.c": "x"}),
        json!({"a": -0.0}),
        json!({"a": 0}),
        json!({}),
        json!({"a": 9_007_199_254_740_993u64}),
        json!({"a": u64::MAX}),
        json!({"a": {"b": {"": 5}}, "": 7}),
        json!({"a": [[1], [{"x": null}]]}),
        json!({"Ä": "ä", "e\u{301}": 1}),
    ];
    let all: Vec<u64> = (0..12).collect();
    let eq = |field: &str, value: Value| json!({"eq": {"field": field, "value": value}});
    let exists = |field: &str| json!({"exists": {"field": field}});
    let not = |filter: Value| json!({"not": filter});
    let within = |field: &str, bounds: Value| {
        let mut inner = bounds;
        inner["field"] = json!(field);
        json!({"range": inner})
    };
    let cases: Vec<(Value, Vec<u64>)> = vec![
        (eq("a", json!(1)), vec![0, 1, 3, 10]),
        (eq("a", json!(1.0)), vec![0, 1, 3, 10]),
        (eq("a", json!("1")), vec![2]),
        (eq("a", json!(true)), vec![]),
        (eq("f", json!(true)), vec![0]),
        (eq("f", json!(1)), vec![1]),
        (eq("f", json!("true")), vec![2]),
        (json!({"in": {"field": "a", "values": []}}), vec![]),
        (not(json!({"in": {"field": "a", "values": []}})), all.clone()),
        (json!({"in": {"field": "a", "values": [1, "1", 1.0]}}), vec![0, 1, 2, 3, 10]),
        (json!({"in": {"field": "f", "values": [true, false]}}), vec![0]),
        (exists("z"), vec![]),
        (not(exists("z")), all.clone()),
        (exists("t"), vec![0, 2]),
        (exists("b"), vec![]),
        (exists("b.c"), vec![0, 1, 3]),
        (exists("a.x"), vec![]),
        (exists("b."), vec![]),
        (eq("b.c", json!("x")), vec![0, 1, 3]),
        (eq("b.c.d", json!(2)), vec![1]),
        (eq("a", json!(0)), vec![4, 5]),
        (eq("a", json!(-0.0)), vec![4, 5]),
        (within("a", json!({"at_least": 0, "at_most": -0.0})), vec![4, 5]),
        (within("a", json!({"above": -0.0, "below": 2})), vec![0, 1, 3, 10]),
        (within("a", json!({"above": 9_007_199_254_740_992u64})), vec![7, 8]),
        (within("a", json!({"above": 1, "below": 3})), vec![3]),
        (within("a", json!({"above": 3, "below": 1})), vec![]),
        (within("a", json!({})), vec![0, 1, 3, 4, 5, 7, 8, 10]),
        (within("a", json!({"at_least": null})), vec![0, 1, 3, 4, 5, 7, 8, 10]),
        (not(within("a", json!({}))), vec![2, 6, 9, 11]),
        (within("a", json!({"at_least": "-inf", "below": "inf"})), vec![0, 1, 3, 4, 5, 7, 8, 10]),
        (eq("a", json!(u64::MAX)), vec![8]),
        (eq("a", json!(18_446_744_073_709_551_616.0)), vec![]),
        (eq("", json!(7)), vec![9]),
        (eq("a.b.", json!(5)), vec![9]),
        (eq("Ä", json!("ä")), vec![11]),
        (eq("Ä", json!("a\u{308}")), vec![]),
        (exists("e\u{301}"), vec![11]),
        (exists("é"), vec![]),
        (json!({"and": [eq("t", json!("x")), eq("t", json!("y"))]}), vec![0]),
        (json!({"or": [eq("f", json!(1)), eq("t", json!("y"))]}), vec![0, 1]),
        (json!({"and": []}), all.clone()),
        (json!({"or": []}), vec![]),
        (not(not(eq("a", json!("1")))), vec![2]),
    ];
    for indexed in [Indexed::All, Indexed::Only(vec![]), Indexed::Only(vec!["a".into(), "b.c".into()])] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with(folder.path(), plain()).unwrap();
        let collection = store.create("c", &config(Metric::L2).indexed(indexed.clone())).unwrap();
        for (payload, id) in payloads.iter().zip(0..) {
            let point = Point::new(id, [id as f32, 0.0]);
            // Without a payload is the same as with an empty one.
            let point = if id == 6 { point } else { point.with_payload(payload.clone()).unwrap() };
            collection.upsert(&[point]).unwrap();
        }
        for (text, expected) in &cases {
            let filter: Filter =
                serde_json::from_value(text.clone()).unwrap_or_else(|e| panic!("{text}: {e}"));
            let expected: BTreeSet<u64> = expected.iter().copied().collect();
            let context = format!("{text}, {indexed:?}");
            let query = Query::new([0.0, 0.0], 100).filter(filter.clone());
            assert_eq!(found(&collection, &query), expected, "{context}");
            assert_eq!(found(&collection, &query.exact()), expected, "{context}");
            assert_eq!(collection.count(&filter).unwrap(), expected.len(), "{context}");
            let scrolled = collection.scroll(0, 100, Some(&filter)).unwrap();
            assert!(scrolled.iter().map(|p| p.id).eq(expected), "{context}");
        }
    }
}

/// What is written as JSON and would not be obeyed is an error, not another condition.
#[test]
fn json_that_would_not_be_obeyed_is_refused() {
    for filter in [
        json!({"eq": {"field": "a", "value": null}}),
        json!({"eq": {"field": "a", "value": [1]}}),
        json!({"eq": {"field": "a", "value": {"b": 1}}}),
        json!({"eq": {"field": "a"}}),
        json!({"eq": {"field": "a", "value": 1, "ignore_case": true}}),
        json!({"in": {"field": "a", "values": 1}}),
        json!({"in": {"field": "a", "values": [1, null]}}),
        json!({"range": {"field": "a", "min": 1}}),
        json!({"range": {"field": "a", "at_least": 1, "gte": 2}}),
        json!({"range": {"field": "a", "at_least": "2020-01-01"}}),
        json!({"range": {"field": "a", "at_least": true}}),
        json!({"exists": {"field": "a", "value": false}}),
        json!({"exists": "a"}),
        json!({"gt": {"field": "a", "value": 1}}),
        json!({"and": {"field": "a"}}),
        json!({"and": [], "or": []}),
        json!({"not": []}),
        json!({}),
        json!(null),
    ] {
        let read = serde_json::from_value::<Filter>(filter.clone());
        assert!(read.is_err(), "{filter} became {read:?}");
    }
    let whole = json!({"dimension": 2, "metric": "l2", "links": 16, "build_effort": 200});
    assert_eq!(serde_json::from_value::<Config>(whole.clone()).unwrap(), Config::new(2, Metric::L2));
    for (key, value) in
        [("elment", json!("f16")), ("index", json!("all")), ("effort", json!(5)), ("metric", json!("l3"))]
    {
        let mut config = whole.clone();
        config[key] = value;
        assert!(serde_json::from_value::<Config>(config.clone()).is_err(), "{config}");
    }
}

/// Queries that have no answer are typed errors from every function; all others have as many hits as there
/// are points that match.
#[test]
fn queries_are_answered_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_with(folder.path(), plain()).unwrap();
    let filters = [None, Some(Filter::eq("a", 1)), Some(Filter::exists("b")), Some(Filter::eq("none", 1))];
    for metric in Metric::ALL {
        let collection = store.create(metric.name(), &config(metric)).unwrap();
        for n in [0, 1, 40] {
            let points: Vec<Point> = (0..n)
                .map(|id| {
                    let payload = json!({"a": id % 2, "b": 0});
                    Point::new(id, [1.0 + id as f32, 2.0]).with_payload(payload).unwrap()
                })
                .collect();
            collection.upsert(&points).unwrap();
            let mut bad = vec![
                vec![f32::NAN, 0.0],
                vec![0.0, f32::INFINITY],
                vec![f32::MAX, 1.0],
                vec![1.0],
                vec![1.0; 3],
                vec![],
            ];
            if metric == Metric::Cosine {
                bad.extend([vec![0.0, 0.0], vec![-0.0, 0.0]]);
            }
            for vector in bad {
                let query = Query::new(vector.clone(), 3);
                for error in [
                    collection.search(&query).unwrap_err(),
                    collection.search(&query.clone().exact()).unwrap_err(),
                    collection.search(&Query { k: 0, ..query.clone() }).unwrap_err(),
                    collection.search(&query.clone().filter(Filter::eq("none", 1))).unwrap_err(),
                    collection.explain(&query).unwrap_err(),
                    collection.upsert(&[Point::new(3, vector.clone())]).unwrap_err(),
                ] {
                    assert!(
                        matches!(
                            error,
                            Error::NotFinite { .. } | Error::Dimension { .. } | Error::ZeroVector { .. }
                        ),
                        "{vector:?}: {error:?}"
                    );
                }
            }
            for filter in &filters {
                let matching = |point: &&Point| match filter {
                    Some(filter) => filter.matches(point.payload.as_ref().unwrap()),
                    None => true,
                };
                let n_matching = points.iter().filter(matching).count();
                for k in [0, 1, n as usize, n as usize + 1, 1 << 40, usize::MAX] {
                    for effort in [None, Some(0), Some(1), Some(1000), Some(usize::MAX)] {
                        let query = Query { filter: filter.clone(), effort, ..Query::new([1.0, -0.0], k) };
                        for query in [query.clone(), query.clone().exact(), query.with_payload()] {
                            let hits = collection.search(&query).unwrap();
                            assert_eq!(hits.len(), n_matching.min(k), "{metric}, {query:?}");
                            assert!(hits.is_sorted_by(|a, b| a.distance <= b.distance), "{query:?}");
                        }
                    }
                }
            }
        }
    }
}

/// One bad point in a batch: nothing of it is written.
#[test]
fn a_batch_is_written_whole_or_not_at_all() {
    let good = |id| Point::new(id, [1.0, 2.0]).with_payload(json!({"a": id})).unwrap();
    let mut deep = json!(1);
    (0..200).for_each(|_| deep = json!([deep]));
    for (what, bad) in [
        ("NaN", Point::new(5, [f32::NAN, 1.0])),
        ("infinite", Point::new(5, [1.0, f32::NEG_INFINITY])),
        ("short", Point::new(5, [1.0])),
        ("long", Point::new(5, [1.0, 2.0, 3.0])),
        ("empty", Point::new(5, [])),
        ("without direction", Point::new(5, [0.0, 0.0])),
        ("an id beyond SQLite's", Point::new(MAX_ID + 1, [1.0, 1.0])),
        ("the largest id of all", Point::new(u64::MAX, [1.0, 1.0])),
        ("deep", Point::new(5, [1.0, 1.0]).with_payload(json!({"a": deep})).unwrap()),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with(folder.path(), plain()).unwrap();
        let collection = store.create("c", &config(Metric::Cosine)).unwrap();
        collection.upsert(&[good(1)]).unwrap();
        for at in 0..3 {
            let mut batch = vec![Point::new(1, [-1.0, 0.0]), good(2)];
            batch.insert(at, bad.clone());
            assert!(collection.upsert(&batch).is_err(), "{what}");
            assert_eq!(collection.scroll(0, 9, None).unwrap(), [good(1)], "{what}");
            assert_eq!(found(&collection, &Query::new([1.0, 0.0], 9)), BTreeSet::from([1]), "{what}");
        }
        collection.upsert(&[good(MAX_ID), good(0)]).unwrap();
        assert_eq!(found(&collection, &Query::new([1.0, 0.0], 9)), BTreeSet::from([0, 1, MAX_ID]));
        assert_eq!(collection.get(&[u64::MAX, MAX_ID]).unwrap(), [None, Some(good(MAX_ID))]);
        assert!(collection.scroll(u64::MAX, 9, None).unwrap().is_empty());
        // An id that is named twice is there once.
        assert_eq!(collection.delete(&[0, 0, u64::MAX, 77]).unwrap(), 1, "{what}");
        store.verify().unwrap();
    }
}

/// Names of collections are data.
#[test]
fn a_collection_may_have_any_name() {
    let folder = tempfile::tempdir().unwrap();
    let names = [
        "".to_owned(),
        " ".to_owned(),
        "a/b".to_owned(),
        "..".to_owned(),
        "a\0b".to_owned(),
        "a".to_owned(),
        "A".to_owned(),
        "points_1".to_owned(),
        "sqlite_master".to_owned(),
        "'; DROP TABLE collections; --".to_owned(),
        "é".to_owned(),
        "e\u{301}".to_owned(),
        "long".repeat(10_000),
    ];
    for round in 0..2 {
        let store = Store::open(folder.path()).unwrap();
        for (name, id) in names.iter().zip(0..) {
            let collection = store.create(name, &config(Metric::L2)).unwrap();
            assert_eq!(collection.len().unwrap(), round, "{name:.20}");
            collection.upsert(&[Point::new(id, [id as f32, 0.0])]).unwrap();
            assert_eq!(found(&collection, &Query::new([0.0, 0.0], 9)), BTreeSet::from([id]), "{name:.20}");
        }
        let mut sorted = names.to_vec();
        sorted.sort();
        assert_eq!(store.list().unwrap(), sorted);
        assert_eq!(store.verify().unwrap().n_points, names.len());
    }
    let store = Store::open(folder.path()).unwrap();
    for name in &names {
        assert!(store.remove(name).unwrap() && !store.remove(name).unwrap(), "{name:.20}");
        assert!(matches!(store.collection(name), Err(Error::UnknownCollection { .. })), "{name:.20}");
    }
    assert!(store.list().unwrap().is_empty());
}

/// Folders of any name hold stores, backups and restored stores.
#[test]
fn a_folder_may_have_any_name() {
    #[allow(unused_mut)]
    let mut names: Vec<std::ffi::OsString> = [
        "a b",
        "a?mode=memory",
        "a#b",
        "a%20b",
        "file:x",
        "ü",
        "a'b",
        "a\"b",
        "...",
        "-x",
        "a\nb",
        ":memory:",
    ]
    .map(Into::into)
    .to_vec();
    #[cfg(target_os = "linux")]
    names.push(std::os::unix::ffi::OsStringExt::from_vec(vec![b'a', 0xff, b'b']));
    for name in names {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(&name).join("within").join(&name);
        let write = |store: &Store, id: u64| {
            let collection = store.create("c", &config(Metric::L2)).unwrap();
            collection.upsert(&[Point::new(id, [1.0, 2.0])]).unwrap();
            collection.len().unwrap()
        };
        assert_eq!(write(&Store::open(&folder).unwrap(), 1), 1, "{name:?}");
        let store = Store::open(&folder).unwrap();
        assert_eq!(write(&store, 2), 2, "{name:?}");
        assert!(folder.join("store.db").exists(), "{name:?}");
        let backup = folder.join("backup");
        match store.backup(&backup) {
            // SQLite names files in UTF-8.
            Err(Error::Parameter { .. }) if name.to_str().is_none() => continue,
            result => assert_eq!(result.unwrap().n_points, 2, "{name:?}"),
        }
        let restored = Store::restore(&backup, folder.join("again"), plain()).unwrap();
        assert_eq!(write(&restored, 3), 3, "{name:?}");
        assert_eq!(store.collection("c").unwrap().len().unwrap(), 2, "{name:?}");
    }
}

/// What is not a store is refused, and stays as it was.
#[test]
fn what_is_not_a_store_is_not_touched() {
    type Make = fn(&Path);
    let all: [(&str, Make); 7] = [
        ("a text", |path| std::fs::write(path, "not a database, ".repeat(400)).unwrap()),
        ("zeros", |path| std::fs::write(path, [0; 8192]).unwrap()),
        ("a short text", |path| std::fs::write(path, "mine, not a database").unwrap()),
        ("another program's database", |path| {
            let sql =
                "CREATE TABLE notes (text); INSERT INTO notes VALUES ('dear'); PRAGMA application_id = 7";
            rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
        }),
        ("a database without a mark", |path| {
            let sql = "CREATE TABLE notes (text); INSERT INTO notes VALUES ('dear')";
            rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
        }),
        ("a later version", |path| {
            drop(Store::open(path.parent().unwrap()).unwrap());
            rusqlite::Connection::open(path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
        }),
        ("a folder", |path| std::fs::create_dir(path).unwrap()),
    ];
    for (what, make) in all {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("store.db");
        make(&path);
        let content = std::fs::read(&path).ok();
        let error = Store::open(home.path()).map(|_| ()).expect_err(what);
        let is_typed = matches!(
            error,
            Error::Sqlite(_)
                | Error::SchemaVersion { .. }
                | Error::Io { .. }
                | Error::Database(_)
                | Error::Files(_)
        );
        assert!(is_typed, "{what}: {error:?}");
        assert_eq!(std::fs::read(&path).ok(), content, "{what}");
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1, "{what}");
    }
    // A file in the folder's place.
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("file");
    std::fs::write(&path, "mine").unwrap();
    for folder in [path.clone(), path.join("below")] {
        assert!(matches!(Store::open(folder), Err(Error::Io { .. })));
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

/// Where backups cannot be written or stores restored, an error says so and nothing is lost.
#[test]
fn backups_go_where_files_go() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("store");
    let store = Store::open(&folder).unwrap();
    let collection = store.create("c", &config(Metric::L2)).unwrap();
    collection.upsert(&[Point::new(1, [1.0, 2.0])]).unwrap();
    let at = |name: &str| home.path().join(name);
    std::fs::create_dir(at("sub")).unwrap();
    std::fs::write(at("file"), "mine").unwrap();
    #[allow(unused_mut)]
    let mut refused =
        vec![at("sub"), at("missing").join("backup"), at("file").join("backup"), "".into(), folder.clone()];
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink(at("sub"), at("link to a folder")).unwrap();
        symlink(at("store"), at("link to the store")).unwrap();
        refused.extend([
            at("link to a folder"),
            at("link to the store").join("store.db"),
            "/dev/null".into(),
        ]);
    }
    for path in refused {
        assert!(store.backup(&path).is_err(), "{}", path.display());
        assert_eq!(store.verify().unwrap().n_points, 1, "{}", path.display());
        assert!(store.jobs().unwrap().is_empty(), "{}", path.display());
    }
    #[cfg(unix)]
    {
        // A link is replaced; what it leads to stays.
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("dangling")).unwrap();
        for name in ["link", "dangling"] {
            assert_eq!(store.backup(at(name)).unwrap().n_points, 1);
            assert!(!std::fs::symlink_metadata(at(name)).unwrap().is_symlink());
        }
        assert!(!at("nowhere").exists());
        std::fs::hard_link(at("file"), at("hard")).unwrap();
        store.backup(at("hard")).unwrap();
    }
    assert_eq!(std::fs::read(at("file")).unwrap(), b"mine");
    store.backup(at("backup")).unwrap();
    // Restored over a store, open or closed, into a file, and over another one's files.
    for target in [folder.clone(), at("file"), at("file").join("below")] {
        assert!(Store::restore(at("backup"), &target, plain()).is_err(), "{}", target.display());
    }
    collection.upsert(&[Point::new(2, [1.0, 2.0])]).unwrap();
    drop((collection, store));
    assert!(matches!(Store::restore(at("backup"), &folder, plain()), Err(Error::Parameter { .. })));
    assert_eq!(Store::open(&folder).unwrap().verify().unwrap().n_points, 2);
    assert_eq!(std::fs::read(at("file")).unwrap(), b"mine");
    std::fs::write(at("sub").join("notes.txt"), "mine").unwrap();
    assert_eq!(Store::restore(at("backup"), at("sub"), plain()).unwrap().verify().unwrap().n_points, 1);
    assert_eq!(std::fs::read(at("sub").join("notes.txt")).unwrap(), b"mine");
}
