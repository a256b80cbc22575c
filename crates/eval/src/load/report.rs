use super::summary::QUANTILES;
use super::{LoadConfig, Objectives, Run, Summary, Tool};
use crate::{Cell, Column, Estimate, LineChart, Provenance, Report, Result, Table, stats};

/// A share by which the lengths of answers may differ without a word.
const UNEQUAL: f64 = 0.05;

/// Tables and charts of several runs under the same load, with the doubts about them.
///
/// # Errors
/// Those of [`Summary::new`].
pub fn report(
    runs: &[Run],
    config: &LoadConfig,
    objectives: &Objectives,
    provenance: Provenance,
) -> Result<(Report, Vec<Summary>)> {
    let summaries: Result<Vec<Summary>> =
        runs.iter().map(|run| Summary::new(run, objectives, &config.bootstrap)).collect();
    let summaries = summaries?;
    let mut report = Report::new("Engines under load", provenance);
    report.paragraph(format!(
        "{} requests to each endpoint in {} round(s), arrivals {:?}, at most {} new tokens each. Intervals are \
         those of a bootstrap over answers.",
        config.n_requests, config.rounds, config.arrivals, config.max_tokens
    ));
    for (name, doubt) in doubts(&summaries) {
        report.paragraph(format!("**Warning**, {name}: {doubt}."));
    }
    report.table(requests(&summaries)?);
    report.table(throughput(&summaries, objectives)?);
    report.table(latency(&summaries)?);
    for (name, title, of) in charts() {
        let mut chart = LineChart::new(title, "percentile", "ms");
        let mut is_empty = true;
        for run in runs {
            let values: Vec<f64> =
                run.records.iter().filter(|record| record.is_done()).filter_map(of).collect();
            if values.is_empty() {
                continue;
            }
            let points = (0..=99).map(|p| {
                let value = stats::quantile(&values, f64::from(p) / 100.0)?;
                Ok((f64::from(p), 1000.0 * value))
            });
            chart.series(run.target.name.clone(), points.collect::<Result<Vec<_>>>()?)?;
            is_empty = false;
        }
        if !is_empty {
            report.chart(name, chart.into());
        }
    }
    Ok((report, summaries))
}

type Figure = fn(&super::Record) -> Option<f64>;

fn charts() -> [(&'static str, &'static str, Figure); 3] {
    [
        ("ttft", "Time from the plan to the first text", |record| {
            record.texts.first().map(|first| first - record.planned)
        }),
        ("itl", "Mean time between tokens of an answer", |record| Tool::Aiperf.itl(record).first().copied()),
        ("latency", "Time from the plan to the end of the answer", |record| {
            Some(record.end - record.planned)
        }),
    ]
}

/// Doubts about each run, and about comparing them.
fn doubts(summaries: &[Summary]) -> Vec<(&str, String)> {
    let mut doubts: Vec<(&str, String)> = summaries
        .iter()
        .flat_map(|summary| summary.warnings.iter().map(|warning| (summary.name.as_str(), warning.clone())))
        .collect();
    let lengths: Vec<f64> = summaries
        .iter()
        .filter(|summary| summary.n_done > 0)
        .map(|summary| summary.output_tokens as f64 / summary.n_done as f64)
        .collect();
    let (low, high) = lengths.iter().fold((f64::INFINITY, 0f64), |(l, h), x| (l.min(*x), h.max(*x)));
    if high > low * (1.0 + UNEQUAL) {
        let text =
            format!("answers have {low:.1} to {high:.1} tokens on average, so their times do not compare");
        doubts.push(("all", text));
    }
    doubts
}

fn requests(summaries: &[Summary]) -> Result<Table> {
    let mut table = Table::new("requests", "Requests");
    for name in ["endpoint", "sent", "answered", "refused", "timed out", "failed"] {
        table.column(Column::new(name));
    }
    table
        .column(Column::new("sent late, p99").unit("ms").decimals(1))
        .column(Column::new("client").unit("% of processors").decimals(1));
    for summary in summaries {
        table.row(vec![
            Cell::from(summary.name.as_str()),
            summary.n_requests.into(),
            summary.n_done.into(),
            summary.n_refused.into(),
            summary.n_timed_out.into(),
            summary.n_failed.into(),
            optional(summary.lateness.map(|late| 1000.0 * late)),
            optional(summary.client_cpu.map(|cpu| 100.0 * cpu)),
        ])?;
    }
    Ok(table)
}

fn throughput(summaries: &[Summary], objectives: &Objectives) -> Result<Table> {
    let mut table = Table::new("throughput", "Throughput");
    table
        .column(Column::new("endpoint"))
        .column(Column::new("duration").unit("s").decimals(1))
        .column(Column::new("answers").unit("1/s"))
        .column(Column::new("new tokens").unit("1/s").decimals(1))
        .column(Column::new("new tokens an answer").decimals(1))
        .column(Column::new("counted by the server").unit("% of answers").decimals(0))
        .column(Column::new("prompt tokens cached").unit("%").decimals(0));
    let has_goodput = *objectives != Objectives::default();
    for tool in Tool::ALL.into_iter().filter(|_| has_goodput) {
        table.column(Column::new(format!("goodput, {}", tool.name())).unit("1/s"));
    }
    for summary in summaries {
        let share =
            |part: f64, all: f64| if all > 0.0 { Cell::from(100.0 * part / all) } else { Cell::Missing };
        let n_done = summary.n_done as f64;
        let mut row = vec![
            Cell::from(summary.name.as_str()),
            summary.duration.into(),
            summary.request_rate.into(),
            summary.output_rate.into(),
            optional((n_done > 0.0).then(|| summary.output_tokens as f64 / n_done)),
            share(summary.n_counted_by_usage as f64, n_done),
            share(summary.cached_tokens as f64, summary.prompt_tokens as f64),
        ];
        row.extend(summary.goodput.iter().filter(|_| has_goodput).map(|(_, rate)| Cell::from(*rate)));
        table.row(row)?;
    }
    Ok(table)
}

fn latency(summaries: &[Summary]) -> Result<Table> {
    let mut table = Table::new("latency", "Latency");
    table.column(Column::new("figure")).column(Column::new("definition")).column(Column::new("endpoint"));
    for q in QUANTILES {
        table.column(Column::new(format!("p{:.0}", 100.0 * q)).unit("ms").decimals(2));
    }
    let mut kinds: Vec<(Option<Tool>, &str)> = Vec::new();
    for metric in summaries.iter().flat_map(|summary| &summary.metrics) {
        if !kinds.contains(&(metric.tool, metric.name)) {
            kinds.push((metric.tool, metric.name));
        }
    }
    // The same figure under each definition, one below the other.
    let order = ["TTFT", "TPOT", "ITL", "latency"];
    kinds.sort_by_key(|(_, name)| order.iter().position(|one| one == name));
    for (tool, name) in kinds {
        for summary in summaries {
            let Some(metric) = summary.metric(tool, name) else { continue };
            let mut row = vec![
                Cell::from(name),
                tool.map_or("from the plan", Tool::name).into(),
                summary.name.as_str().into(),
            ];
            row.extend(metric.quantiles.iter().map(|e| Cell::from(in_ms(*e))));
            table.row(row)?;
        }
    }
    Ok(table)
}

fn in_ms(e: Estimate) -> Estimate {
    Estimate { value: 1000.0 * e.value, low: 1000.0 * e.low, high: 1000.0 * e.high, level: e.level }
}

fn optional(value: Option<f64>) -> Cell {
    value.map_or(Cell::Missing, Cell::from)
}
