//! A store whose database or index file was changed opens, or says in a typed error why not; searches, writes
//! and checks work or fail the same way.
//!
//! Checksums would stop every change of the index file at once, so its sections are changed and
//! written anew. The input is a list of changes of four bytes: which section or the database, where
//! (two bytes), and the new byte.

#![no_main]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use breakers_files::{OsDisk, sections};
use breakers_retrieval::store::{Config, Filter, Point, Query, Store};
use breakers_retrieval::{Metric, Result};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// A whole store: its database, and its index file.
static WHOLE: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();

fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("breakers-fuzz-store-{}", std::process::id()))
}

fn vector(i: u64) -> [f32; 4] {
    std::array::from_fn(|at| ((i * 7 + at as u64 * 3) % 11) as f32 - 5.0)
}

fn build() -> Result<(Vec<u8>, Vec<u8>)> {
    let folder = folder();
    let _ = std::fs::remove_dir_all(&folder);
    {
        let store = Store::open(&folder)?;
        let points = store.create("points", &Config::new(4, Metric::L2))?;
        for i in 0..40 {
            points.upsert(&[Point::new(i, vector(i)).with_payload(json!({"n": i, "word": "a"}))?])?;
        }
        points.delete(&[3, 17])?;
        points.save_index()?;
        store.checkpoint()?;
    }
    let read = |name: &str| std::fs::read(folder.join(name)).expect("a file of the store");
    Ok((read("store.db"), read("index-1.bin")))
}

fn use_store(folder: &Path) -> Result<()> {
    let store = Store::open(folder)?;
    black_box(store.list()?);
    let points = store.collection("points")?;
    black_box((points.origin(), points.len()?, points.damaged()));
    let near = Query::new(vector(5), 3);
    points.search(&near)?;
    points.search(&near.clone().with_payload().filter(Filter::exists("n")))?;
    points.get(&[1, 3, 39])?;
    points.upsert(&[Point::new(99, vector(99))])?;
    points.delete(&[5])?;
    points.scroll(0, 100, None)?;
    store.verify()?;
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    let (database, index) = WHOLE.get_or_init(|| build().expect("a whole store can be built"));
    let (info, found) = sections::parse::<Value>(index).expect("a whole index file");
    let mut info = info;
    let mut parts: Vec<(String, Vec<u8>)> = found.into_iter().map(|(name, part)| (name, part.to_vec())).collect();
    let mut database = database.clone();
    for change in bytes.as_chunks::<4>().0 {
        let at = usize::from(u16::from_le_bytes([change[1], change[2]]));
        let n_parts = parts.len();
        let target = match usize::from(change[0]) % (n_parts + 2) {
            part if part < n_parts => &mut parts[part].1,
            part if part == n_parts => &mut database,
            _ => {
                let keys: Vec<String> = info.as_object().map(|o| o.keys().cloned().collect()).unwrap_or_default();
                if !keys.is_empty() {
                    let value = if at & 1 == 0 { json!(change[3]) } else { json!(u64::MAX / u64::from(change[3].max(1))) };
                    info[&keys[at / 2 % keys.len()]] = value;
                }
                continue;
            }
        };
        if !target.is_empty() {
            let at = at % target.len();
            target[at] = change[3];
        }
    }
    let folder = folder();
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder for files that are thrown away");
    std::fs::write(folder.join("store.db"), database).expect("a file");
    let parts: Vec<(&str, &[u8])> = parts.iter().map(|(name, part)| (name.as_str(), part.as_slice())).collect();
    sections::write(&OsDisk, &folder.join("index-1.bin"), info, &parts).expect("a file");
    if let Err(error) = use_store(&folder) {
        black_box(error.to_string());
    }
    let _ = std::fs::remove_dir_all(&folder);
});
