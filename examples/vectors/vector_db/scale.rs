//! Many vectors, drawn from the statistics of the real ones: costs and speed of a large store.

use std::time::Instant;

use breakers_cli::{Bar, Result};
use breakers_eval::{Column, Provenance, Report, Table};
use breakers_retrieval::{
    Metric,
    store::{Config, Durability, Indexed, Options, Point, Query, Store},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::corpus::Corpus;
use crate::engines::{EFFORTS, K};

/// Points of a transaction.
const BATCH: usize = 10_000;
/// The share of the second real vector in a drawn one. The squares of the weights sum to one, which preserves
/// the means and covariances of centered vectors.
const MIX: f32 = 0.3;

/// A mixture of two real vectors.
fn draw(corpus: &Corpus, random: &mut StdRng) -> Vec<f32> {
    let n = corpus.base.len() / corpus.dimension;
    let mut row = || &corpus.base[random.random_range(0..n) * corpus.dimension..][..corpus.dimension];
    let (a, b) = (row(), row());
    a.iter().zip(b).map(|(a, b)| (1.0 - MIX).sqrt() * a + MIX.sqrt() * b).collect()
}

/// Memory that the process has in use, as the operating system counts it.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

pub(crate) fn measure(corpus: &Corpus, n: usize, n_queries: usize, provenance: Provenance) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let config = Config::new(corpus.dimension, Metric::Cosine).indexed(Indexed::Only(Vec::new()));
    let mut random = StdRng::seed_from_u64(7);
    let build_s = {
        let mut options = Options::default();
        options.durability = Durability::Process;
        let store = Store::open_with(folder.path(), options)?;
        let collection = store.create("vectors", &config)?;
        let bar = Bar::new(n, "vectors");
        let start = Instant::now();
        for first in (0..n).step_by(BATCH) {
            let points: Vec<Point> = (first..n.min(first + BATCH))
                .map(|id| Point::new(id as u64, draw(corpus, &mut random)))
                .collect();
            collection.upsert(&points)?;
            bar.done(first + points.len());
        }
        store.checkpoint()?;
        start.elapsed().as_secs_f64()
    };
    let on_disk: u64 =
        std::fs::read_dir(folder.path())?.map(|e| Ok(e?.metadata()?.len())).sum::<std::io::Result<u64>>()?;
    let before = resident();
    let mut options = Options::default().within(800_000_000, n, &config)?;
    options.vectors_on_disk = true;
    let start = Instant::now();
    let store = Store::open_with(folder.path(), options)?;
    let collection = store.collection("vectors")?;
    let open_s = start.elapsed().as_secs_f64();
    let queries: Vec<Vec<f32>> = (0..n_queries).map(|_| draw(corpus, &mut random)).collect();
    let mut truth = Vec::new();
    let start = Instant::now();
    for query in &queries {
        truth.push(collection.search(&Query::new(query.clone(), K).exact())?);
    }
    let exact_qps = n_queries as f64 / start.elapsed().as_secs_f64();

    let mut report = Report::new(format!("{n} vectors of {}", corpus.dimension), provenance);
    let mut curve = Table::new("recall", "Recall and speed, full vectors on disk");
    curve.column(Column::new("effort")).column(Column::new("recall").decimals(4));
    curve.column(Column::new("speed").unit("queries/s").decimals(0));
    for effort in EFFORTS {
        let start = Instant::now();
        let mut found = Vec::new();
        for query in &queries {
            found.push(collection.search(&Query::new(query.clone(), K).effort(effort))?);
        }
        let qps = n_queries as f64 / start.elapsed().as_secs_f64();
        let hits = found
            .iter()
            .zip(&truth)
            .map(|(found, truth)| found.iter().filter(|f| truth.iter().any(|t| t.id == f.id)).count());
        let recall = hits.sum::<usize>() as f64 / (K * n_queries) as f64;
        curve.row(vec![effort.into(), recall.into(), qps.into()])?;
    }
    let mut costs = Table::new("costs", "What it takes");
    costs.column(Column::new("what")).column(Column::new("measured").decimals(2));
    let megabytes = |bytes: Option<u64>| bytes.map(|b| b as f64 / 1e6);
    for (what, value) in [
        ("insert and index, s", Some(build_s)),
        ("on disk, MB", megabytes(Some(on_disk))),
        ("open the index, s", Some(open_s)),
        ("exact search, queries/s", Some(exact_qps)),
        ("resident before opening, MB (the corpus, and what the build left)", megabytes(before)),
        ("resident at the end, MB", megabytes(resident())),
        ("index in memory, MB", megabytes(Some(collection.index_bytes() as u64))),
    ] {
        costs.row(vec![what.into(), value.into()])?;
    }
    report.table(costs).table(curve);
    Ok(report)
}
