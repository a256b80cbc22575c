use std::collections::BTreeMap;

use serde::Serialize;

use super::{Counted, Objectives, Outcome, Record, Run, Tool};
use crate::Result;
use crate::stats::{self, BootstrapConfig, Estimate};

/// The quantiles of each figure.
pub(super) const QUANTILES: [f64; 3] = [0.5, 0.9, 0.99];
/// A share of the processors from which the client takes time from a server beside it.
const MUCH_CPU: f64 = 0.1;
/// Seconds by which a request may be sent late without a word.
const LATE: f64 = 0.005;

/// A figure of many answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Metric {
    /// Whose definition it has; `None`: time from the plan, as a user sees it.
    pub tool: Option<Tool>,
    /// Its name.
    pub name: &'static str,
    /// How many values there are.
    pub n: usize,
    /// Their mean in seconds.
    pub mean: f64,
    /// The 50th, 90th and 99th percentile in seconds, with bootstrap intervals. Values of one answer are
    /// resampled together.
    pub quantiles: [Estimate; 3],
}

/// What a run says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// Name of the endpoint.
    pub name: String,
    /// Requests that were sent. They are the sum of the next four.
    pub n_requests: usize,
    /// Answered to the end.
    pub n_done: usize,
    /// Refused, because the server had too much to do.
    pub n_refused: usize,
    /// Ended by the time limit.
    pub n_timed_out: usize,
    /// Failed otherwise.
    pub n_failed: usize,
    /// The reasons of those, and how often each was given.
    pub failures: BTreeMap<String, usize>,
    /// Seconds of the run.
    pub duration: f64,
    /// Answers a second.
    pub request_rate: f64,
    /// Tokens of all answers that were given to the end.
    pub output_tokens: u64,
    /// Those a second.
    pub output_rate: f64,
    /// Tokens of the prompts of those answers, as far as the server said.
    pub prompt_tokens: u64,
    /// How many of them were cached, as far as the server said.
    pub cached_tokens: u64,
    /// Answers whose tokens the server counted; those of the others are events.
    pub n_counted_by_usage: usize,
    /// Tokens for each event with text.
    pub tokens_per_event: f64,
    /// Answers a second that keep to the objectives, under each tool's definitions.
    pub goodput: Vec<(Tool, f64)>,
    /// How late requests were sent: the 99th percentile in seconds; `None` without a plan.
    pub lateness: Option<f64>,
    /// This program's share of all processors.
    pub client_cpu: Option<f64>,
    /// The figures, in the order of the tools.
    pub metrics: Vec<Metric>,
    /// What makes the figures doubtful.
    pub warnings: Vec<String>,
}

impl Summary {
    /// Sums up a run.
    ///
    /// # Errors
    /// [`Error::Parameter`](crate::Error::Parameter) for a bootstrap that cannot be done. A figure with fewer
    /// than two values is left out.
    pub fn new(run: &Run, objectives: &Objectives, bootstrap: &BootstrapConfig) -> Result<Self> {
        let records = &run.records;
        let count = |which: fn(&Outcome) -> bool| records.iter().filter(|r| which(&r.outcome)).count();
        let done: Vec<&Record> = records.iter().filter(|record| record.is_done()).collect();
        let mut failures = BTreeMap::new();
        for record in records {
            if let Outcome::Failed(reason) = &record.outcome {
                *failures.entry(reason.clone()).or_default() += 1;
            }
        }
        let a_second = |n: f64| if run.duration > 0.0 { n / run.duration } else { 0.0 };
        let output_tokens: u64 = done.iter().map(|record| record.output_tokens).sum();
        let n_texts: usize = done.iter().map(|record| record.texts.len()).sum();
        let lateness: Vec<f64> = records.iter().map(Record::lateness).collect();
        let lateness = (run.is_planned && !lateness.is_empty()).then(|| stats::quantile(&lateness, 0.99));
        let good = |tool: Tool| done.iter().filter(|record| tool.meets(record, objectives)).count();
        let mut summary = Self {
            name: run.target.name.clone(),
            n_requests: records.len(),
            n_done: done.len(),
            n_refused: count(|outcome| matches!(outcome, Outcome::Refused(_))),
            n_timed_out: count(|outcome| matches!(outcome, Outcome::TimedOut)),
            n_failed: count(|outcome| matches!(outcome, Outcome::Failed(_))),
            failures,
            duration: run.duration,
            request_rate: a_second(done.len() as f64),
            output_tokens,
            output_rate: a_second(output_tokens as f64),
            prompt_tokens: done.iter().filter_map(|record| record.prompt_tokens).sum(),
            cached_tokens: done.iter().filter_map(|record| record.cached_tokens).sum(),
            n_counted_by_usage: done.iter().filter(|record| record.counted == Counted::Usage).count(),
            tokens_per_event: if n_texts == 0 { 0.0 } else { output_tokens as f64 / n_texts as f64 },
            goodput: Tool::ALL.iter().map(|tool| (*tool, a_second(good(*tool) as f64))).collect(),
            lateness: lateness.transpose()?,
            client_cpu: run.client_cpu,
            metrics: metrics(&done, run.is_planned, bootstrap)?,
            warnings: Vec::new(),
        };
        summary.warnings = summary.doubts(&done);
        Ok(summary)
    }

    /// A figure by whose definition and by its name.
    pub fn metric(&self, tool: Option<Tool>, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|metric| metric.tool == tool && metric.name == name)
    }

    fn doubts(&self, done: &[&Record]) -> Vec<String> {
        let mut doubts = Vec::new();
        if let Some(cpu) = self.client_cpu.filter(|cpu| *cpu > MUCH_CPU) {
            doubts.push(format!(
                "this program used {:.0} % of the processors: a server on the same machine had less",
                100.0 * cpu
            ));
        }
        if let Some(late) = self.lateness.filter(|late| *late > LATE) {
            doubts.push(format!(
                "1 % of the requests were sent more than {:.0} ms late: only times from the plan show what \
                 users would have seen",
                1000.0 * late
            ));
        }
        if self.n_done < 100 {
            doubts.push(format!("{} answers say little about a 99th percentile", self.n_done));
        }
        if self.n_counted_by_usage < self.n_done {
            let n = self.n_done - self.n_counted_by_usage;
            doubts.push(format!(
                "the server did not count the tokens of {n} answers: their events are counted"
            ));
        }
        if self.tokens_per_event > 1.05 {
            doubts.push(format!(
                "an event holds {:.1} tokens on average: gaps between events are not those between tokens",
                self.tokens_per_event
            ));
        }
        let early = done.iter().filter(|record| {
            let firsts = record.events.first().zip(record.texts.first());
            firsts.is_some_and(|(event, text)| text - event > 0.1 * (text - record.sent))
        });
        let n_early = early.count();
        if n_early * 10 > done.len() {
            doubts.push(format!(
                "in {n_early} answers the first event came well before the first text: vLLM's TTFT is that of \
                 the event"
            ));
        }
        let n_lost = self.n_requests - self.n_done;
        if n_lost > 0 {
            doubts.push(format!("{n_lost} requests have no answer and so no latency: look at the goodput"));
        }
        doubts
    }
}

fn metrics(done: &[&Record], is_planned: bool, bootstrap: &BootstrapConfig) -> Result<Vec<Metric>> {
    let mut out = Vec::new();
    let mut add = |tool, name, values: Vec<Vec<f64>>| -> Result<()> {
        let all: Vec<f64> = values.iter().flatten().copied().collect();
        if values.iter().filter(|values| !values.is_empty()).count() < 2 {
            return Ok(());
        }
        let estimate = |q| stats::clustered_quantile(&values, q, bootstrap);
        let [p50, p90, p99] = QUANTILES;
        let quantiles = [estimate(p50)?, estimate(p90)?, estimate(p99)?];
        out.push(Metric { tool, name, n: all.len(), mean: stats::mean(&all)?, quantiles });
        Ok(())
    };
    let each = |of: &dyn Fn(&Record) -> Option<f64>| -> Vec<Vec<f64>> {
        done.iter().map(|record| of(record).into_iter().collect()).collect()
    };
    if is_planned {
        add(None, "TTFT", each(&|record| record.texts.first().map(|first| first - record.planned)))?;
        add(None, "latency", each(&|record| Some(record.end - record.planned)))?;
    }
    for tool in Tool::ALL {
        add(Some(tool), "TTFT", each(&|record| tool.ttft(record)))?;
        add(Some(tool), "TPOT", each(&|record| tool.tpot(record)))?;
        add(Some(tool), "ITL", done.iter().map(|record| tool.itl(record)).collect())?;
        add(Some(tool), "latency", each(&|record| tool.latency(record)))?;
    }
    Ok(out)
}
