//! Tables and charts.

use breakers_cli::Result;
use breakers_eval::needle::{Needle, advantage};
use breakers_eval::{Cell, Column, HeatMap, LineChart, Provenance, Report, Table};
use breakers_model::Model;

use crate::memory::Memory;
use crate::quality::{Quality, elements_per_token};
use crate::speed::Speed;

/// Everything that was measured; the first cache is the f16 one.
pub(crate) struct Measured<'a> {
    pub(crate) model: &'a Model,
    pub(crate) names: &'a [String],
    /// One for each cache, or none.
    pub(crate) quality: &'a [Quality],
    pub(crate) depths: &'a [usize],
    /// `[cache][depth]`, or none.
    pub(crate) speed: &'a [Vec<Speed>],
    pub(crate) needles: &'a [Needle],
    /// One for each cache, or none.
    pub(crate) memory: &'a [Memory],
}

pub(crate) fn build(measured: &Measured<'_>, context: usize, mut provenance: Provenance) -> Result<Report> {
    provenance.settings.insert("context".to_owned(), context.to_string());
    let mut report = Report::new("Compressed key-value caches", provenance);
    if !measured.quality.is_empty() {
        report.table(quality_table(measured)?);
        let mut chart = LineChart::new("Divergence against bytes", "bits an element", "nats a token");
        for (name, quality) in measured.names.iter().zip(measured.quality).skip(1) {
            let point = (quality.bits(), quality.mean_divergence());
            chart.series(name.clone(), vec![point])?;
        }
        report.chart("quality", chart.into());
    }
    if !measured.speed.is_empty() {
        report.table(speed_table(measured)?);
        let mut chart = LineChart::new("Decoding speed against depth", "tokens in the cache", "token/s");
        for (name, speeds) in measured.names.iter().zip(measured.speed) {
            let points = measured.depths.iter().zip(speeds);
            let points = points.map(|(depth, speed)| Ok((*depth as f64, speed.tokens_per_second()?)));
            chart.series(name.clone(), points.collect::<Result<_>>()?)?;
        }
        report.chart("speed", chart.into());
    }
    if !measured.needles.is_empty() {
        report.table(needle_table(measured)?);
        report.table(advantage_table(measured)?);
        report.chart("needles", needle_chart(measured)?.into());
    }
    if !measured.memory.is_empty() {
        report.table(memory_table(measured)?);
    }
    Ok(report)
}

/// One line for each length and depth, and their mean.
fn needle_table(measured: &Measured<'_>) -> Result<Table> {
    let mut table = Table::new("needles", "Needles found (% of the answer's tokens)");
    table.column(Column::new("length")).column(Column::new("depth").unit("%"));
    for name in measured.names {
        table.column(Column::new(name.clone()).decimals(0));
    }
    for needle in measured.needles {
        let mut cells = vec![Cell::from(needle.length), needle.depth.into()];
        cells.extend((0..measured.names.len()).map(|cache| Cell::from(100.0 * needle.part(cache))));
        table.row(cells)?;
    }
    let mut cells = vec![Cell::from("all"), Cell::Missing];
    for cache in 0..measured.names.len() {
        let sum: f64 = measured.needles.iter().map(|needle| needle.part(cache)).sum();
        cells.push((100.0 * sum / measured.needles.len() as f64).into());
    }
    table.row(cells)?;
    Ok(table)
}

/// Each cache against the f16 one, and against the last one.
fn advantage_table(measured: &Measured<'_>) -> Result<Table> {
    let mut table = Table::new("advantage", "Needles found more than by others (percentage points)");
    let last = measured.names.len() - 1;
    table
        .column(Column::new("cache"))
        .column(Column::new(format!("than {}", measured.names[0])).decimals(1))
        .column(Column::new(format!("than {}", measured.names[last])).decimals(1));
    for (cache, name) in measured.names.iter().enumerate() {
        let mut cells = vec![Cell::from(name.as_str())];
        for other in [0, last] {
            cells.push(match cache == other {
                true => Cell::Missing,
                false => advantage(measured.needles, cache, other)?.into(),
            });
        }
        table.row(cells)?;
    }
    Ok(table)
}

fn needle_chart(measured: &Measured<'_>) -> Result<HeatMap> {
    let mut lengths: Vec<usize> = measured.needles.iter().map(|needle| needle.length).collect();
    let mut depths: Vec<usize> = measured.needles.iter().map(|needle| needle.depth).collect();
    for places in [&mut lengths, &mut depths] {
        places.sort_unstable();
        places.dedup();
    }
    let rows = depths.iter().map(|depth| format!("{depth} %"));
    let mut chart =
        HeatMap::new("Needles found (%), depth by length", lengths.iter().map(usize::to_string), rows);
    for (cache, name) in measured.names.iter().enumerate() {
        let places = depths.iter().flat_map(|depth| lengths.iter().map(move |length| (length, depth)));
        let found = places.map(|(length, depth)| {
            let needle = measured.needles.iter().find(|n| (n.length, n.depth) == (*length, *depth));
            needle.map_or(0.0, |needle| needle.part(cache))
        });
        chart.series(name.clone(), found.collect())?;
    }
    Ok(chart)
}

fn memory_table(measured: &Measured<'_>) -> Result<Table> {
    let mut table = Table::new("memory", "Memory");
    table
        .column(Column::new("cache"))
        .column(Column::new("tokens"))
        .column(Column::new("cache's bytes"))
        .column(Column::new("size").unit("bits/element").decimals(2))
        .column(Column::new("compression").decimals(2))
        .column(Column::new("resident bytes of the process"))
        .column(Column::new("compression of these").decimals(2));
    for (name, memory) in measured.names.iter().zip(measured.memory) {
        let elements = (elements_per_token(measured.model) * memory.n_tokens) as f64;
        let ratio = |a: usize, b: usize| a as f64 / b as f64;
        let plain = measured.memory[0];
        let resident = memory.resident.zip(plain.resident);
        table.row(vec![
            Cell::from(name.as_str()),
            memory.n_tokens.into(),
            memory.bytes.into(),
            (8.0 * memory.bytes as f64 / elements).into(),
            ratio(plain.bytes, memory.bytes).into(),
            memory.resident.into(),
            resident.map(|(own, plain)| ratio(plain, own)).into(),
        ])?;
    }
    Ok(table)
}

fn quality_table(measured: &Measured<'_>) -> Result<Table> {
    let mut table = Table::new("quality", "Quality");
    table
        .column(Column::new("cache"))
        .column(Column::new("size").unit("bits/element").decimals(2))
        .column(Column::new("size at the end").unit("bits/element").decimals(2))
        .column(Column::new("compression").decimals(2))
        .column(Column::new("perplexity").decimals(3))
        .column(Column::new("change").unit("%").decimals(2))
        .column(Column::new("divergence").unit("nats").decimals(5))
        .column(Column::new("same best token").unit("%").decimals(1));
    let context = measured.quality[0];
    let per_window = context.bytes_at_end as f64 * 8.0 / 16.0;
    for (at, (name, quality)) in measured.names.iter().zip(measured.quality).enumerate() {
        let change = 100.0 * (quality.perplexity() / measured.quality[0].perplexity() - 1.0);
        table.row(vec![
            Cell::from(name.as_str()),
            quality.bits().into(),
            (8.0 * quality.bytes_at_end as f64 / per_window).into(),
            (measured.quality[0].bits() / quality.bits()).into(),
            quality.perplexity().into(),
            (at > 0).then_some(change).into(),
            (at > 0).then(|| quality.mean_divergence()).into(),
            (100.0 * quality.same_best()).into(),
        ])?;
    }
    Ok(table)
}

fn speed_table(measured: &Measured<'_>) -> Result<Table> {
    let mut table = Table::new("speed", "Speed");
    table
        .column(Column::new("depth"))
        .column(Column::new("cache"))
        .column(Column::new("bytes"))
        .column(Column::new("size").unit("bits/element").decimals(2))
        .column(Column::new("decode").unit("token/s").decimals(1))
        .column(Column::new("speed-up").decimals(2))
        .column(Column::new("prompt").unit("s").decimals(2));
    for (d, depth) in measured.depths.iter().enumerate() {
        let plain = measured.speed[0][d].tokens_per_second()?;
        for (name, speeds) in measured.names.iter().zip(measured.speed) {
            let speed = &speeds[d];
            let elements = (elements_per_token(measured.model) * depth) as f64;
            let rate = speed.tokens_per_second()?;
            table.row(vec![
                Cell::from(*depth),
                name.as_str().into(),
                speed.bytes.into(),
                (8.0 * speed.bytes as f64 / elements).into(),
                rate.into(),
                (rate / plain).into(),
                speed.prefill.into(),
            ])?;
        }
    }
    Ok(table)
}
