//! Tables and a chart of the runs.

use breakers_cli::Result;
use breakers_eval::{BarChart, BootstrapConfig, Cell, Column, Provenance, Report, Table, stats};
use breakers_spec_decode::{DraftLength, Stats, theory};

use crate::measure::Measurement;

/// The report of a measurement; the machine's part of the provenance is given.
pub(crate) fn build(measurement: &Measurement, mut provenance: Provenance) -> Result<Report> {
    let config = &measurement.config;
    let n_rounds = measurement.runs[0][0].len();
    let length = match config.draft_length {
        DraftLength::Fixed(n) => n.to_string(),
        DraftLength::Adaptive { max } => format!("adaptive, {max} at most"),
        _ => "other".to_owned(),
    };
    for (name, value) in [
        ("max tokens", config.max_tokens.to_string()),
        ("temperature", config.sampling.temperature.to_string()),
        ("draft length", length),
        ("rounds", n_rounds.to_string()),
    ] {
        provenance.settings.insert(name.to_owned(), value);
    }
    let mut report = Report::new("Plain against speculative decoding", provenance);
    report
        .paragraph(format!(
            "{} The prompt and the first token are not in the times; texts that share passes share their time by \
             rows. \"Accepted per step\" counts draft tokens over the steps that verified a draft, \"tokens per step\" \
             all tokens over all steps.",
            match n_rounds {
                1 => "A single round.".to_owned(),
                n => format!("Medians of {n} rounds, in which all took turns; speed-ups with a 95 % interval."),
            }
        ))
        .table(speed_table(measurement, "speed", "Speed", measurement.groups())?)
        .table(cost_table(measurement)?)
        .table(formula_table(measurement)?)
        .chart("speed", chart(measurement)?.into());
    if measurement.groups().len() < measurement.prompts.len() {
        let names: Vec<String> = measurement
            .prompts
            .iter()
            .enumerate()
            .map(|(p, prompt)| format!("{p}: {}", prompt.name))
            .collect();
        let each = names.iter().enumerate().map(|(p, name)| (name.as_str(), vec![p])).collect();
        report.table(speed_table(measurement, "prompts", "Speed, prompt by prompt", each)?);
    }
    Ok(report)
}

fn rates(stats: &[Stats]) -> Vec<f64> {
    stats.iter().map(Stats::decode_tokens_per_second).collect()
}

/// A line for each group of prompts and each contestant.
fn speed_table(
    measurement: &Measurement,
    name: &str,
    title: &str,
    mut groups: Vec<(&str, Vec<usize>)>,
) -> Result<Table> {
    let mut table = Table::new(name, title);
    table
        .column(Column::new("prompt"))
        .column(Column::new("drafter"))
        .column(Column::new("decode").unit("token/s").decimals(1))
        .column(Column::new("speed-up"))
        .column(Column::new("accepted per step"))
        .column(Column::new("tokens per step"))
        .column(Column::new("tokens"))
        .column(Column::new("same tokens"));
    if groups.len() > 1 {
        groups.push(("all", (0..measurement.prompts.len()).collect()));
    }
    for (name, prompts) in groups {
        let plain = rates(&measurement.stats(0, &prompts));
        for (c, contestant) in measurement.contestants.iter().enumerate() {
            let rounds = measurement.stats(c, &prompts);
            let speeds = rates(&rounds);
            // A text of a single token has no decoding steps, hence no speed to compare.
            let ratio = match (c, speeds.len()) {
                (0, _) => None,
                (_, 1) => Some(Cell::from(speeds[0] / plain[0])),
                _ => {
                    stats::ratio_of_medians(&speeds, &plain, &BootstrapConfig::default()).ok().map(Cell::from)
                }
            };
            let mut sum = Stats::default();
            rounds.iter().for_each(|s| sum.merge(s));
            let same: Option<bool> = prompts
                .iter()
                .map(|&p| measurement.same_tokens(c, p))
                .collect::<Option<Vec<bool>>>()
                .map(|all| all.iter().all(|same| *same));
            table.row(vec![
                Cell::from(name),
                contestant.name.as_str().into(),
                stats::median(&speeds)?.into(),
                ratio.unwrap_or(Cell::Missing),
                (sum.speculative_steps > 0).then(|| sum.accepted_per_step()).into(),
                sum.tokens_per_step().into(),
                rounds[0].emitted.into(),
                same.into(),
            ])?;
        }
    }
    Ok(table)
}

fn cost_table(measurement: &Measurement) -> Result<Table> {
    let mut table = Table::new("cost", "Where the time goes, all prompts and rounds");
    table
        .column(Column::new("drafter"))
        .column(Column::new("steps"))
        .column(Column::new("with a draft"))
        .column(Column::new("accepted").unit("%").decimals(1))
        .column(Column::new("a draft").unit("ms").decimals(3))
        .column(Column::new("a verification").unit("ms").decimals(3))
        .column(Column::new("a plain step").unit("ms").decimals(3));
    let all: Vec<usize> = (0..measurement.prompts.len()).collect();
    for (c, contestant) in measurement.contestants.iter().enumerate() {
        let mut sum = Stats::default();
        measurement.stats(c, &all).iter().for_each(|s| sum.merge(s));
        let per = |seconds: f64, n: usize| (n > 0).then(|| 1000.0 * seconds / n as f64);
        table.row(vec![
            Cell::from(contestant.name.as_str()),
            sum.steps.into(),
            sum.speculative_steps.into(),
            (sum.drafted > 0).then(|| 100.0 * sum.acceptance_rate()).into(),
            per(sum.draft_seconds, sum.speculative_steps).into(),
            per(sum.verify_seconds, sum.speculative_steps).into(),
            per(sum.plain_seconds, sum.steps - sum.speculative_steps).into(),
        ])?;
    }
    Ok(table)
}

/// The best speed-up that the formula of speculative decoding promises for the measured acceptance and costs.
fn formula_table(measurement: &Measurement) -> Result<Table> {
    let mut table =
        Table::new("formula", "Against the best length of the formula (arXiv 2211.17192, theorem 3.8)");
    table
        .column(Column::new("prompt"))
        .column(Column::new("drafter"))
        .column(Column::new("α").decimals(3))
        .column(Column::new("a draft token").unit("plain steps").decimals(3))
        .column(Column::new("best length"))
        .column(Column::new("formula").decimals(2))
        .column(Column::new("measured").decimals(2))
        .column(Column::new("share").unit("%").decimals(0));
    let total = |c: usize, prompts: &[usize]| {
        let mut sum = Stats::default();
        measurement.stats(c, prompts).iter().for_each(|s| sum.merge(s));
        sum
    };
    let all: Vec<usize> = (0..measurement.prompts.len()).collect();
    for (name, prompts) in measurement.groups().into_iter().chain([("all", all)]) {
        let plain = total(0, &prompts);
        let Some(plain_step) = plain.step_seconds(1) else { continue };
        for (c, contestant) in
            measurement.contestants.iter().enumerate().filter(|(_, c)| c.batch == 1).skip(1)
        {
            let sum = total(c, &prompts);
            if sum.drafted == 0 {
                continue;
            }
            let token = sum.draft_seconds / sum.drafted as f64 / plain_step;
            let (length, promised) = theory::best_length(
                sum.alpha(),
                measurement.config.draft_length.max(),
                |n| n as f64 * token,
                |rows| verification_seconds(&plain, &sum, rows) / plain_step,
            );
            let measured = sum.decode_tokens_per_second() / plain.decode_tokens_per_second();
            table.row(vec![
                Cell::from(name),
                contestant.name.as_str().into(),
                sum.alpha().into(),
                token.into(),
                length.into(),
                promised.into(),
                measured.into(),
                (100.0 * measured / promised).into(),
            ])?;
        }
    }
    Ok(table)
}

/// The time of a step over this many rows: measured, interpolated between measured neighbors, or beyond the
/// last one in proportion to the rows. Fewer rows never take longer than more.
fn verification_seconds(plain: &Stats, speculative: &Stats, rows: usize) -> f64 {
    let mut known: Vec<(f64, f64)> = speculative
        .rows
        .iter()
        .filter(|r| r.rows > 1)
        .map(|r| (r.rows as f64, r.seconds / r.steps as f64))
        .collect();
    known.extend(plain.step_seconds(1).map(|seconds| (1.0, seconds)));
    known.sort_by(|a, b| a.0.total_cmp(&b.0));
    for i in (1..known.len()).rev() {
        known[i - 1].1 = known[i - 1].1.min(known[i].1);
    }
    let rows = rows as f64;
    let after = known.partition_point(|k| k.0 < rows);
    match (after.checked_sub(1).map(|before| known[before]), known.get(after)) {
        (Some((r0, s0)), Some(&(r1, s1))) => s0 + (s1 - s0) * (rows - r0) / (r1 - r0),
        (Some((r, s)), None) => s * rows / r,
        (None, found) => found.map_or(f64::NAN, |k| k.1),
    }
}

fn chart(measurement: &Measurement) -> Result<BarChart> {
    let groups = measurement.groups();
    let mut chart = BarChart::new("Decoding speed by prompt", "token/s", groups.iter().map(|group| group.0));
    for (c, contestant) in measurement.contestants.iter().enumerate() {
        let medians = groups
            .iter()
            .map(|(_, prompts)| Ok(Some(stats::median(&rates(&measurement.stats(c, prompts)))?)))
            .collect::<Result<Vec<_>>>()?;
        chart.series(contestant.name.clone(), medians)?;
    }
    Ok(chart)
}
