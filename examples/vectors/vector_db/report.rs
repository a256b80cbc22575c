//! Tables and charts of the measurements.

use breakers_cli::Result;
use breakers_eval::{Cell, Column, LineChart, Provenance, Report, Table, stats};

use crate::corpus::Corpus;
use crate::engines::{BUILD_EFFORT, Engine, K, LINKS, Measured};
use crate::filters::{Churn, Filtered};

/// Recalls that engines are compared at.
const TARGETS: [f64; 2] = [0.95, 0.99];

/// Share of the true neighbors of each query of a range that a setting found.
fn recall(measured: &Measured, truth: &[Vec<u64>], range: std::ops::Range<usize>) -> f64 {
    // Slow engines ran fewer queries.
    let range = range.start.min(measured.ids.len())..range.end.min(measured.ids.len());
    let (mut hits, mut all) = (0, 0);
    for (found, truth) in measured.ids[range.clone()].iter().zip(&truth[range]) {
        hits += truth.iter().filter(|id| found.contains(id)).count();
        all += truth.len();
    }
    if all == 0 { f64::NAN } else { hits as f64 / all as f64 }
}

/// A setting chosen on the first half of the queries.
pub(crate) struct Choice<'a> {
    pub(crate) setting: &'a Measured,
    /// On the second half.
    pub(crate) recall: f64,
    pub(crate) qps: f64,
}

/// The fastest setting that reaches a recall on the first half of the queries.
pub(crate) fn choose<'a>(engine: &'a Engine, truth: &[Vec<u64>], target: f64) -> Option<Choice<'a>> {
    let qps = |m: &Measured| stats::median(&m.qps).unwrap_or(0.0);
    let good = engine.settings.iter().filter(|m| recall(m, truth, 0..m.ids.len() / 2) >= target);
    let setting = good.max_by(|a, b| qps(a).total_cmp(&qps(b)))?;
    let recall = recall(setting, truth, setting.ids.len() / 2..setting.ids.len());
    Some(Choice { setting, recall, qps: qps(setting) })
}

pub(crate) fn build(
    corpus: &Corpus,
    truth: &[Vec<u64>],
    engines: &[Engine],
    missing: &[String],
    filtered: &[Filtered],
    churn: Option<&Churn>,
    mut provenance: Provenance,
) -> Result<Report> {
    for (name, value) in [
        (
            "vectors",
            format!("{} × {} ({})", corpus.base.len() / corpus.dimension, corpus.dimension, corpus.name),
        ),
        ("queries", truth.len().to_string()),
        ("k", K.to_string()),
        ("links", LINKS.to_string()),
        ("build effort", BUILD_EFFORT.to_string()),
    ] {
        provenance.settings.insert(name.to_owned(), value);
    }
    let mut report = Report::new("Vector indexes", provenance);
    report.paragraph(format!(
        "One thread, one query a call, cosine distance, recall of the nearest {K}. Queries a second are medians of the \
         rounds. A setting is chosen on the first half of the queries and reported on the second. Peers run in Python, \
         whose calls cost them a microsecond or two a query.{}",
        if missing.is_empty() { String::new() } else { format!(" Missing: {}.", missing.join("; ")) }
    ));
    report.table(summary(truth, engines)?).table(verdicts(truth, engines)?);
    if let Some(churn) = churn {
        report.table(filter_table(filtered)?).table(churn_table(churn)?);
    }
    report.table(curves(truth, engines)?);
    let mut chart =
        LineChart::new("Queries a second at a recall", "recall of the nearest 10", "queries a second");
    let mut n_series = 0;
    for engine in engines.iter().filter(|e| e.settings.len() > 1) {
        let points = engine.settings.iter().filter_map(|m| {
            let found = recall(m, truth, 0..m.ids.len());
            (found >= 0.85).then(|| Some((found, stats::median(&m.qps).ok()?))).flatten()
        });
        let points: Vec<(f64, f64)> = points.collect();
        if !points.is_empty() {
            chart.series(engine.name.clone(), points)?;
            n_series += 1;
        }
    }
    if n_series > 0 {
        report.chart("recall", breakers_eval::Chart::Line(chart));
    }
    Ok(report)
}

/// One line for each engine: its costs, and its speed at the recalls asked for.
fn summary(truth: &[Vec<u64>], engines: &[Engine]) -> Result<Table> {
    let mut table = Table::new("engines", "Engines");
    table.column(Column::new("engine")).column(Column::new("ours"));
    table.column(Column::new("build").unit("s")).column(Column::new("size").unit("MB").decimals(1));
    for target in TARGETS {
        table.column(Column::new(format!("speed at {target}")).unit("queries/s").decimals(0));
        table.column(Column::new(format!("recall at {target}")).decimals(4));
        table.column(Column::new(format!("effort at {target}")));
    }
    for engine in engines {
        let mut row: Vec<Cell> = vec![
            engine.name.clone().into(),
            engine.ours.into(),
            engine.build_s.into(),
            engine.bytes.map(|bytes| bytes as f64 / 1e6).into(),
        ];
        for target in TARGETS {
            match choose(engine, truth, target) {
                Some(choice) => {
                    row.extend([choice.qps.into(), choice.recall.into(), choice.setting.effort.into()])
                }
                None => row.extend([Cell::Missing, Cell::Missing, Cell::Missing]),
            }
        }
        table.row(row)?;
    }
    Ok(table)
}

/// The ratios that this example is meant to show.
fn verdicts(truth: &[Vec<u64>], engines: &[Engine]) -> Result<Table> {
    let mut table = Table::new("ratios", "Against the peers");
    table.column(Column::new("ratio")).column(Column::new("wanted").decimals(1));
    table.column(Column::new("measured"));
    let speed = |name: &str, target: f64| {
        let engine = engines.iter().find(|e| e.name == name)?;
        Some(choose(engine, truth, target)?.qps)
    };
    let best =
        |names: &[&str], target| names.iter().filter_map(|name| speed(name, target)).max_by(f64::total_cmp);
    let build = |name: &str| Some(engines.iter().find(|e| e.name == name)?.build_s);
    let quick = ["faiss HNSW-SQ8", "usearch bf16"];
    let lines = [
        ("exact to sqlite-vec".to_owned(), 20.0, ratio(speed("exact", 0.99), speed("sqlite-vec", 0.99))),
        (
            "exact to the BLOB scan".to_owned(),
            10.0,
            ratio(speed("exact", 0.99), speed("SQLite BLOB scan", 0.99)),
        ),
        (
            "graph to the BLOB scan, .99".to_owned(),
            100.0,
            ratio(speed("graph", 0.99), speed("SQLite BLOB scan", 0.99)),
        ),
        ("graph to hnsw_rs, .95".to_owned(), 2.0, ratio(speed("graph", 0.95), speed("hnsw_rs", 0.95))),
        ("graph to hnsw_rs, .99".to_owned(), 2.0, ratio(speed("graph", 0.99), speed("hnsw_rs", 0.99))),
        (
            "graph to the best of faiss SQ8 and usearch bf16, .95".to_owned(),
            1.1,
            ratio(speed("graph", 0.95), best(&quick, 0.95)),
        ),
        (
            "graph to the best of faiss SQ8 and usearch bf16, .99".to_owned(),
            1.1,
            ratio(speed("graph", 0.99), best(&quick, 0.99)),
        ),
        ("build speed to hnswlib".to_owned(), 1.0, ratio(build("hnswlib"), build("graph"))),
    ];
    for (name, wanted, measured) in lines {
        table.row(vec![name.into(), wanted.into(), measured.into()])?;
    }
    Ok(table)
}

fn ratio(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? / b?)
}

fn filter_table(filtered: &[Filtered]) -> Result<Table> {
    let mut table = Table::new("filters", "Searches with a filter, through the store");
    table.column(Column::new("filter")).column(Column::new("matching").unit("%").decimals(3));
    table.column(Column::new("plan")).column(Column::new("recall").decimals(4));
    table.column(Column::new("speed").unit("queries/s").decimals(0)).column(Column::new("too few results"));
    for f in filtered {
        table.row(vec![
            f.name.clone().into(),
            (100.0 * f.share).into(),
            f.strategy.clone().into(),
            f.recall.into(),
            f.qps.into(),
            f.under_returns.into(),
        ])?;
    }
    Ok(table)
}

fn churn_table(churn: &Churn) -> Result<Table> {
    let title = format!(
        "Ten cycles of removing a tenth and adding a tenth (beam of {}; a removal takes {:.3} ms, at the 99th percentile \
         {:.3} ms)",
        churn.effort, churn.removal_p50_ms, churn.removal_p99_ms
    );
    let mut table = Table::new("churn", title);
    table.column(Column::new("cycles")).column(Column::new("recall").decimals(4));
    for (cycles, recall) in churn.recall.iter().enumerate() {
        table.row(vec![cycles.into(), (*recall).into()])?;
    }
    Ok(table)
}

fn curves(truth: &[Vec<u64>], engines: &[Engine]) -> Result<Table> {
    let mut table = Table::new("settings", "Every setting");
    table.column(Column::new("engine")).column(Column::new("effort"));
    table
        .column(Column::new("recall").decimals(4))
        .column(Column::new("speed").unit("queries/s").decimals(0));
    for engine in engines {
        for m in &engine.settings {
            let found = recall(m, truth, 0..m.ids.len());
            table.row(vec![
                engine.name.clone().into(),
                m.effort.into(),
                found.into(),
                stats::median(&m.qps)?.into(),
            ])?;
        }
    }
    Ok(table)
}
