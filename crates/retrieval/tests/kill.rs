//! A process that writes is killed at a random moment, again and again; a ledger outside of it knows what was
//! acknowledged. `BREAKERS_SOAK=1000` sets how often.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use breakers_retrieval::{
    Metric,
    store::{Config, Filter, Options, Point, Query, Store},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

const FOLDER: &str = "BREAKERS_TEST_KILL_FOLDER";
const SEED: &str = "BREAKERS_TEST_KILL_SEED";

fn point(id: u64, value: u64) -> Point {
    let x = (id * 31 + value * 17) as f32;
    let vector: Vec<f32> = (0..16).map(|i| (x * (i + 1) as f32).sin()).collect();
    Point::new(id, vector).with_payload(json!({"value": value})).unwrap()
}

fn open(folder: &str) -> Store {
    Store::open_with(folder, Options::default()).unwrap()
}

fn config() -> Config {
    Config { links: 4, build_effort: 16, ..Config::new(16, Metric::L2) }
}

/// Not a test but the program of the killed process. It announces every operation and acknowledges it once it
/// is done.
#[test]
fn child() {
    let (Ok(folder), Ok(seed)) = (std::env::var(FOLDER), std::env::var(SEED)) else { return };
    let mut random = StdRng::seed_from_u64(seed.parse().unwrap());
    let say = |line: Value| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n@{line}").unwrap();
        out.flush().unwrap();
    };
    let store = open(&folder);
    let collection = store.create("c", &config()).unwrap();
    for value in 0.. {
        let value = seed.parse::<u64>().unwrap() * 100_000 + value;
        let ids: Vec<u64> = (0..random.random_range(1..20)).map(|_| random.random_range(0..200)).collect();
        match random.random_range(0..20) {
            0..11 => {
                say(json!({"upsert": ids, "value": value}));
                collection.upsert(&ids.iter().map(|&id| point(id, value)).collect::<Vec<_>>()).unwrap();
            }
            11..16 => {
                say(json!({"delete": ids}));
                collection.delete(&ids).unwrap();
            }
            16 => {
                say(json!({}));
                collection.save_index().unwrap();
            }
            17 => {
                say(json!({}));
                collection.rebuild_index().unwrap();
            }
            18 => {
                say(json!({}));
                store.backup(format!("{folder}/backup")).unwrap();
            }
            _ => {
                say(json!({}));
                store.compact().unwrap();
            }
        }
        say(json!("done"));
    }
}

type Ledger = BTreeMap<u64, u64>;

fn apply(ledger: &mut Ledger, operation: &Value) {
    let ids = |key: &str| -> Vec<u64> {
        operation[key].as_array().into_iter().flatten().map(|id| id.as_u64().unwrap()).collect()
    };
    for id in ids("upsert") {
        ledger.insert(id, operation["value"].as_u64().unwrap());
    }
    for id in ids("delete") {
        ledger.remove(&id);
    }
}

fn content(store: &Store) -> Ledger {
    store.verify().unwrap();
    let collection = store.create("c", &config()).unwrap();
    let mut content = Ledger::new();
    for found in collection.scroll(0, usize::MAX, None).unwrap() {
        let value = found.payload.as_ref().unwrap()["value"].as_u64().unwrap();
        assert_eq!(found, point(found.id, value), "a point is not as it was written");
        content.insert(found.id, value);
    }
    assert_eq!(collection.len().unwrap(), content.len());
    // The index finds exactly these.
    let hits = collection.search(&Query::new(vec![0.5; 16], 1000)).unwrap();
    let mut ids: Vec<u64> = hits.iter().map(|hit| hit.id).collect();
    ids.sort_unstable();
    assert!(ids.iter().eq(content.keys()), "the index holds others");
    if let Some((_, &value)) = content.first_key_value() {
        let expected = content.values().filter(|&&v| v == value).count();
        assert_eq!(collection.count(&Filter::eq("value", value as i64)).unwrap(), expected);
    }
    content
}

#[test]
fn a_killed_process_loses_nothing_that_it_acknowledged() {
    let n_kills: u64 = std::env::var("BREAKERS_SOAK").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let mut random = StdRng::seed_from_u64(99);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let mut ledger = Ledger::new();
    let mut n_acknowledged = 0;
    for kill in 0..n_kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads", "1"])
            .env(FOLDER, path)
            .env(SEED, kill.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let pid = child.id();
        let delay = Duration::from_micros(random.random_range(500..60_000));
        // The moment is counted from the first operation on, in another thread, whatever the child does then.
        let (started, wait) = std::sync::mpsc::channel();
        let killer = std::thread::spawn(move || {
            let _ = wait.recv();
            std::thread::sleep(delay);
            child.kill().unwrap();
            child.wait().unwrap()
        });
        let mut pending = None;
        let mut lines = Vec::new();
        for line in out.lines() {
            let Ok(line) = line else { break };
            let Some(text) = line.strip_prefix('@') else { continue };
            let _ = started.send(());
            // The last line may be cut off.
            let Ok(said) = serde_json::from_str::<Value>(text) else { break };
            if said == json!("done") {
                if let Some(operation) = pending.take() {
                    apply(&mut ledger, &operation);
                    n_acknowledged += 1;
                }
            } else {
                pending = Some(said.clone());
            }
            lines.push(said);
        }
        drop(started);
        let status = killer.join().unwrap();
        assert!(status.code().is_none(), "process {pid} ended by itself: {status}, {:?}", lines.last());
        let found = content(&open(path));
        if found != ledger {
            // The operation that was under way may have been done, but only as a whole.
            let mut with_pending = ledger.clone();
            apply(&mut with_pending, &pending.unwrap_or_default());
            assert_eq!(found, with_pending, "kill {kill} after {lines:?}");
            ledger = with_pending;
        }
        let backup = folder.path().join("backup");
        if kill % 16 == 0 && backup.exists() {
            // A backup that has got its name is complete.
            let restored =
                Store::restore(&backup, folder.path().join(format!("r{kill}")), Options::default()).unwrap();
            content(&restored);
        }
    }
    eprintln!("{n_kills} kills, {n_acknowledged} operations acknowledged, none lost");
    assert!(n_acknowledged > n_kills, "{n_acknowledged} operations in {n_kills} processes");
}
