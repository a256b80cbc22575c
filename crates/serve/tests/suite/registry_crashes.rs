//! Every operation on the database's disk fails in turn, once or from then on as if the process were killed.
//! What was confirmed is there afterwards, and what was not is there wholly or not at all.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use breakers_files::testing::Fault;
use breakers_serve::registry::{
    ModelRoute, NewVersion, Registry, RegistryConfig, RegistryError, Share, Version,
};
use breakers_sqlite::testing::{FAULTY_VFS, sqlite_faults};

use crate::shelf::{Place, said, serve};
use crate::support::{Client, config};

fn open(place: &Place, is_faulty: bool) -> Result<Arc<Registry>, RegistryError> {
    let mut config: RegistryConfig = place.config();
    // Nothing is written but what the test asks for.
    (config.sync_time, config.usage_time) = (Duration::from_secs(3600), Duration::from_secs(3600));
    config.sqlite.vfs = is_faulty.then(|| FAULTY_VFS.to_owned());
    Registry::open(config, place.shelf.clone()).map(Arc::new)
}

/// What the database says, as somebody sees it who opens it now.
fn seen(place: &Place) -> (Vec<Version>, Vec<ModelRoute>) {
    let registry = open(place, false).unwrap();
    let history = registry.history("m").unwrap_or_default();
    (registry.versions().unwrap(), history)
}

fn contents(history: &[ModelRoute]) -> Vec<(Vec<Share>, Option<String>, Option<i64>)> {
    history.iter().map(|route| (route.shares.clone(), route.shadow.clone(), route.back)).collect()
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_change_happens_wholly_or_not_at_all() {
    let source = Place::new();
    let registry = open(&source, false).unwrap();
    let [a, b] =
        ["a", "b"].map(|name| source.add(&registry, &format!("{name}.gguf"), &format!("says {name}")));
    registry.deploy("m", &a, None).unwrap();
    registry.deploy("m", &b, None).unwrap();
    source.write("c.gguf", "says c");
    drop(registry);
    let (a, b) = (&*a, &*b);
    type Change<'a> = (&'static str, Box<dyn Fn(&Registry) -> Result<(), RegistryError> + 'a>);
    let changes: [Change<'_>; 5] = [
        ("deploy", Box::new(|registry| registry.deploy("m", a, None).map(drop))),
        ("rollback", Box::new(|registry| registry.rollback("m", None).map(drop))),
        (
            "weights",
            Box::new(|registry| {
                registry.set_weights("m", &[Share::new(a, 1), Share::new(b, 2)], None).map(drop)
            }),
        ),
        ("shadow", Box::new(|registry| registry.set_shadow("m", Some(a), None).map(drop))),
        ("register", Box::new(|registry| registry.register(&NewVersion::new("c.gguf")).map(drop))),
    ];
    let disk = sqlite_faults();
    for (what, change) in &changes {
        let before = seen(&source);
        // What it looks like if nothing fails.
        let whole = Place::new();
        copy(source.folder.path(), whole.folder.path());
        change(&open(&whole, false).unwrap()).unwrap();
        let after = seen(&whole);
        assert_ne!((before.0.len(), contents(&before.1)), (after.0.len(), contents(&after.1)), "{what}");
        for (kind, fault) in Fault::ALL.into_iter().enumerate() {
            let (mut n_failed, mut n) = (0, 0);
            loop {
                let place = Place::new();
                copy(source.folder.path(), place.folder.path());
                let registry = open(&place, true).unwrap();
                disk.start(n, fault);
                let changed = change(&registry);
                // The database is looked at as it lies there, without the process that wrote to it.
                let copied = Place::new();
                copy(place.folder.path(), copied.folder.path());
                let was_met = disk.stop();
                let found = seen(&copied);
                let is_before = contents(&found.1) == contents(&before.1);
                let is_after = contents(&found.1) == contents(&after.1);
                let context = format!("{what}, fault {kind} at {n}: {changed:?}");
                if *what == "register" {
                    assert!(is_before, "{context}");
                    assert!(found.0.len() == 2 || found.0.len() == 3, "{context}");
                    assert!(changed.is_err() || found.0.len() == 3, "{context}");
                } else {
                    assert!(is_before || is_after, "{context}: {:?}", found.1);
                    assert!(changed.is_err() || is_after, "{context}: it was confirmed");
                }
                // Requests are led where the database says, or it was not confirmed.
                let server = serve(&registry, config());
                let led = said(&Client::new(&server), "m");
                assert!(["a", "b"].contains(&led.as_str()), "{context}");
                if changed.is_err() && is_before && *what != "weights" {
                    assert_eq!(led, "b", "{context}: the old version goes on");
                }
                drop(server);
                // Whoever opens it next can go on: forward, and back.
                let next = open(&copied, false).unwrap();
                next.deploy("m", a, None).unwrap();
                next.rollback("m", None).unwrap();
                n_failed += i32::from(changed.is_err());
                n += 1;
                if !was_met {
                    changed.unwrap();
                    break;
                }
            }
            assert!(n_failed > 0 && n > 2, "{what}: {n_failed} of {n}");
        }
    }
}

#[test]
fn usage_is_counted_once_whatever_fails() {
    let source = Place::new();
    let registry = open(&source, false).unwrap();
    let version = source.add(&registry, "a.gguf", "says a");
    registry.deploy("m", &version, None).unwrap();
    drop(registry);
    let disk = sqlite_faults();
    for fault in Fault::ALL {
        for n in 0.. {
            let place = Place::new();
            copy(source.folder.path(), place.folder.path());
            let registry = open(&place, true).unwrap();
            let server = serve(&registry, config());
            let client = Client::new(&server);
            // Two rows, of which none must be written alone.
            (0..3).for_each(|_| drop(said(&client, "m")));
            (0..2).for_each(|_| drop(said(&client, &version)));
            disk.start(n, fault);
            let written = registry.flush();
            let was_met = disk.stop();
            let texts = |rows: Vec<breakers_serve::registry::UsageRow>| {
                rows.iter().map(|row| row.counts.texts).sum::<u64>()
            };
            // Others see all of it or nothing.
            let other = texts(open(&place, false).unwrap().usage(0, None, None).unwrap());
            assert!(other == 5 || (other == 0 && written.is_err()), "at {n}: {other}, {written:?}");
            // It is tried again, and nothing counts twice.
            assert_eq!(texts(registry.usage(0, None, None).unwrap()), 5, "at {n}: {written:?}");
            drop((server, registry));
            assert_eq!(texts(open(&place, false).unwrap().usage(0, None, None).unwrap()), 5, "at {n}");
            if !was_met {
                written.unwrap();
                assert!(n > 1);
                break;
            }
        }
    }
}
