//! The engines that are measured: our indexes, `hnsw_rs`, and a scan of SQLite's own rows.

use std::time::Instant;

use breakers_cli::{Bar, Error, Result};
use breakers_retrieval::{
    Metric, distance,
    index::{DeviceScan, Exact, Graph, GraphConfig, HnswRs, Index, Ivf, IvfConfig, Rabitq, Search, TopK},
    store::{Collection, Config, Point, Query, Store},
};
use burn::tensor::Device;
use rusqlite::Connection;
use serde_json::json;

use crate::corpus::Corpus;

/// Neighbors asked for.
pub(crate) const K: usize = 10;
/// Links and build effort of every graph, ours and others'.
pub(crate) const LINKS: usize = 16;
pub(crate) const BUILD_EFFORT: usize = 200;
/// Widths of the beam.
pub(crate) const EFFORTS: [usize; 10] = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384];

/// Lists of an inverted file that are scanned.
const PROBES: [usize; 5] = [1, 4, 16, 64, 256];

/// One setting of an engine: queries per second of each round, and the neighbors found.
pub(crate) struct Measured {
    pub(crate) effort: usize,
    pub(crate) qps: Vec<f64>,
    pub(crate) ids: Vec<Vec<u64>>,
}

/// An engine, over all of its settings.
pub(crate) struct Engine {
    pub(crate) name: String,
    pub(crate) ours: bool,
    pub(crate) build_s: f64,
    /// Bytes of the index: in memory, or on disk for an engine that keeps it there.
    pub(crate) bytes: Option<u64>,
    pub(crate) settings: Vec<Measured>,
}

/// Runs all queries `repeat` times, one after the other.
fn rounds(
    queries: &[&[f32]],
    repeat: usize,
    effort: usize,
    mut search: impl FnMut(&[f32]) -> Result<Vec<u64>>,
) -> Result<Measured> {
    let (mut qps, mut ids) = (Vec::new(), Vec::new());
    for _ in 0..repeat {
        ids.clear();
        let start = Instant::now();
        for query in queries {
            ids.push(search(query)?);
        }
        qps.push(queries.len() as f64 / start.elapsed().as_secs_f64());
    }
    Ok(Measured { effort, qps, ids })
}

fn index_engine(
    mut index: impl Index,
    name: &str,
    ours: bool,
    corpus: &Corpus,
    repeat: usize,
    efforts: &[usize],
) -> Result<Engine> {
    let start = Instant::now();
    for vector in corpus.base() {
        index.insert(vector)?;
    }
    let build_s = start.elapsed().as_secs_f64();
    let queries: Vec<&[f32]> = corpus.queries().collect();
    let mut settings = Vec::new();
    for &effort in efforts {
        let search = if effort == 0 { Search::new(K) } else { Search::new(K).effort(effort) };
        settings.push(rounds(&queries, repeat, effort, |query| {
            Ok(index.search(query, &search)?.iter().map(|n| n.slot.into()).collect())
        })?);
    }
    let bytes = Some(index.bytes() as u64 + corpus.base.len() as u64 * 4);
    Ok(Engine { name: name.to_owned(), ours, build_s, bytes, settings })
}

/// The store with all points in it, in `folder`.
pub(crate) fn filled_store(corpus: &Corpus, folder: &std::path::Path) -> Result<(Store, Collection, f64)> {
    let store = Store::open(folder)?;
    let collection = store.create("vectors", &Config::new(corpus.dimension, Metric::Cosine))?;
    let start = Instant::now();
    let points: Vec<&[f32]> = corpus.base().collect();
    for (chunk, vectors) in points.chunks(1000).enumerate() {
        let batch: Vec<Point> = vectors
            .iter()
            .enumerate()
            .map(|(i, vector)| {
                let id = (chunk * 1000 + i) as u64;
                // A field for each selectivity, and one that depends on the vector.
                Point::new(id, *vector).with_payload(json!({
                    "half": id % 2, "tenth": id % 10, "percent": id % 100, "permille": id % 1000, "rare": id % 10_000,
                    "side": i64::from(distance::dot(vector, corpus.axis()) > corpus.axis_median),
                }))
            })
            .collect::<std::result::Result<_, _>>()?;
        collection.upsert(&batch)?;
    }
    let build_s = start.elapsed().as_secs_f64();
    store.checkpoint()?;
    Ok((store, collection, build_s))
}

/// The engines of this process.
pub(crate) const ENGINES: &str = "graph,exact,rabitq,ivf,store,hnsw_rs,sqlite";

/// The engines of this process that were asked for.
pub(crate) fn measure(
    names: &str,
    corpus: &Corpus,
    repeat: usize,
    slow_queries: usize,
) -> Result<Vec<Engine>> {
    let config = GraphConfig { links: LINKS, build_effort: BUILD_EFFORT, ..GraphConfig::default() };
    let (metric, dimension) = (Metric::Cosine, corpus.dimension);
    let names: Vec<&str> = names.split(',').map(str::trim).collect();
    let bar = Bar::new(names.len(), "engines");
    let mut engines = Vec::new();
    for name in names {
        bar.doing(name);
        bar.step();
        engines.push(match name {
            "graph" => {
                let graph = Graph::new(metric, dimension, config)?;
                index_engine(graph, "graph", true, corpus, repeat, &EFFORTS)?
            }
            "exact" => index_engine(Exact::new(metric, dimension)?, "exact", true, corpus, repeat, &[0])?,
            "rabitq" => {
                let index = Rabitq::train(metric, dimension, corpus.base(), 1, 0)?;
                index_engine(index, "RaBitQ, 1 bit", true, corpus, repeat, &[K, 40, 0])?
            }
            "ivf" => {
                let config = IvfConfig { turns: 2, ..IvfConfig::default() };
                let index = Ivf::train(metric, dimension, corpus.base(), config)?;
                index_engine(index, "IVF-OPQ, re-ranked", true, corpus, repeat, &PROBES)?
            }
            "store" => store_engine(corpus, repeat)?,
            "hnsw_rs" => {
                let graph = HnswRs::new(metric, dimension, config)?;
                index_engine(graph, "hnsw_rs", false, corpus, repeat, &EFFORTS)?
            }
            "sqlite" => sqlite_scan(corpus, repeat, slow_queries)?,
            _ => {
                return Err(Error::Usage(format!("{name} is none of the engines {ENGINES}")));
            }
        });
    }
    Ok(engines)
}

/// Exact search on a device over 16-bit floats, queries in batches.
pub(crate) fn device_engine(
    device: &Device,
    name: &str,
    corpus: &Corpus,
    repeat: usize,
    n_queries: usize,
) -> Result<Engine> {
    let start = Instant::now();
    let scan = DeviceScan::new(Metric::Cosine, corpus.dimension, corpus.base(), device)?;
    let queries: Vec<&[f32]> = corpus.queries().take(n_queries).collect();
    // The first call compiles the kernels.
    scan.search(&queries[..1], K)?;
    let build_s = start.elapsed().as_secs_f64();
    let mut measured = Measured { effort: 0, qps: Vec::new(), ids: Vec::new() };
    for _ in 0..repeat {
        let start = Instant::now();
        let found = scan.search(&queries, K)?;
        measured.qps.push(queries.len() as f64 / start.elapsed().as_secs_f64());
        measured.ids = found.iter().map(|near| near.iter().map(|n| n.slot.into()).collect()).collect();
    }
    let (name, bytes) = (format!("exact, f16 on {name}, batches"), Some(scan.bytes() as u64));
    Ok(Engine { name, ours: true, build_s, bytes, settings: vec![measured] })
}

/// The whole store: the graph with ids, locks, and the check whether another process wrote.
fn store_engine(corpus: &Corpus, repeat: usize) -> Result<Engine> {
    let folder = tempfile::tempdir()?;
    let (_store, collection, build_s) = filled_store(corpus, folder.path())?;
    let queries: Vec<&[f32]> = corpus.queries().collect();
    let mut settings = Vec::new();
    for effort in EFFORTS {
        settings.push(rounds(&queries, repeat, effort, |query| {
            let hits = collection.search(&Query::new(query, K).effort(effort))?;
            Ok(hits.iter().map(|hit| hit.id).collect())
        })?);
    }
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder.path())? {
        bytes += entry?.metadata()?.len();
    }
    Ok(Engine { name: "store (on disk)".to_owned(), ours: true, build_s, bytes: Some(bytes), settings })
}

/// What an application can do without an extension: vectors as blobs, read without a copy by a prepared
/// statement, and our own distance kernel.
fn sqlite_scan(corpus: &Corpus, repeat: usize, n_queries: usize) -> Result<Engine> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("vectors.db");
    let start = Instant::now();
    let mut connection = Connection::open(&path)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; CREATE TABLE v(id INTEGER PRIMARY KEY, e BLOB NOT NULL)",
    )?;
    // All pages in memory: the best case.
    connection.execute_batch("PRAGMA cache_size = -4000000; PRAGMA mmap_size = 8000000000")?;
    let transaction = connection.transaction()?;
    for (id, vector) in corpus.base().enumerate() {
        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        transaction.prepare_cached("INSERT INTO v VALUES (?1, ?2)")?.execute((id as i64, bytes))?;
    }
    transaction.commit()?;
    let build_s = start.elapsed().as_secs_f64();
    let queries: Vec<&[f32]> = corpus.queries().take(n_queries).collect();
    let mut statement = connection.prepare("SELECT id, e FROM v")?;
    let mut copy = Vec::new();
    let measured = rounds(&queries, repeat, 0, |query| {
        let mut top = TopK::new(K);
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let bytes = row.get_ref(1)?.as_blob().unwrap_or_default();
            let vector: &[f32] = match bytemuck::try_cast_slice(bytes) {
                Ok(vector) => vector,
                // If SQLite's page puts it at an unaligned address.
                Err(_) => {
                    copy.clear();
                    copy.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
                    &copy
                }
            };
            top.push(row.get_ref(0)?.as_i64().unwrap_or_default() as u32, -distance::dot(query, vector));
        }
        Ok(top.into_neighbors().iter().map(|n| n.slot.into()).collect())
    })?;
    let bytes = std::fs::metadata(&path)?.len();
    let name = "SQLite BLOB scan".to_owned();
    Ok(Engine { name, ours: false, build_s, bytes: Some(bytes), settings: vec![measured] })
}
