//! What the server counts, in the form of OpenMetrics. Names and meanings are those of vLLM, with another
//! prefix, so that dashboards carry over. What is counted is texts: a request with `n` answers counts `n`
//! times.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use breakers_core::{ModelLoad, Usage};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::state::Hosted;

/// The type of what `/metrics` answers.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Model {
    model_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct End {
    model_name: String,
    finished_reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    status: u32,
    code: &'static str,
}

#[cfg(feature = "batches")]
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[cfg(feature = "batches")]
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    status: &'static str,
}

type ByModel<M> = Family<Model, M>;
type Histograms = Family<Model, Histogram, fn() -> Histogram>;

/// All counters, gauges and histograms.
pub(crate) struct Metrics {
    registry: Registry,
    accepted: ByModel<Counter>,
    running: ByModel<Gauge>,
    waiting: ByModel<Gauge>,
    ended: Family<End, Counter>,
    refused: Family<Refusal, Counter>,
    prompt_tokens: ByModel<Counter>,
    cached_tokens: ByModel<Counter>,
    generation_tokens: ByModel<Counter>,
    drafted_tokens: ByModel<Counter>,
    accepted_tokens: ByModel<Counter>,
    #[cfg(feature = "batches")]
    pub(crate) batches: BatchMetrics,
    first_token: Histograms,
    per_token: Histograms,
    end_to_end: Histograms,
    queue: Histograms,
    loads: Loads,
}

/// What models are busy with, as they say themselves.
#[derive(Default)]
struct Loads {
    pausing: ByModel<Gauge>,
    held_bytes: ByModel<Gauge>,
    max_bytes: ByModel<Gauge>,
    usage: ByModel<Gauge<f64, AtomicU64>>,
    kept: ByModel<Gauge>,
    passes: ByModel<Counter>,
    rows: ByModel<Counter>,
    pauses: ByModel<Counter>,
    evicted: ByModel<Counter>,
    saved: ByModel<Counter>,
    restored: ByModel<Counter>,
}

impl Loads {
    fn register(&self, r: &mut Registry) {
        let mut gauge =
            |name: &str, help: &str, gauge: &ByModel<Gauge>| r.register(name, help, gauge.clone());
        gauge("num_requests_paused", "Texts that have begun and wait for room", &self.pausing);
        gauge(
            "kv_cache_used_bytes",
            "Bytes of keys and values, what is shared counted once",
            &self.held_bytes,
        );
        gauge("kv_cache_limit_bytes", "Bytes that they may take, where there is a limit", &self.max_bytes);
        gauge("prefix_cache_sequences", "Sequences of ended texts that are kept", &self.kept);
        let help = "The share of them that is taken, where there is a limit, 1 for all";
        r.register("kv_cache_usage_perc", help, self.usage.clone());
        let mut counter =
            |name: &str, help: &str, counter: &ByModel<Counter>| r.register(name, help, counter.clone());
        counter("forward_passes", "Passes of the model", &self.passes);
        counter("forward_rows", "Tokens fed in passes", &self.rows);
        counter("num_preemptions", "How often a text has paused for others", &self.pauses);
        counter("prefix_cache_evictions", "Kept sequences that were given up for room", &self.evicted);
        counter("prefix_cache_saved", "Beginnings of texts that were written to a file", &self.saved);
        counter("prefix_cache_restored", "Texts that began with what a file held", &self.restored);
    }

    fn set(&self, model: &str, load: &ModelLoad) {
        let model = label(model);
        for (gauge, value) in [
            (&self.pausing, Some(load.n_pausing)),
            (&self.held_bytes, Some(load.held_bytes)),
            (&self.max_bytes, load.max_bytes),
            (&self.kept, Some(load.n_kept)),
        ] {
            if let Some(value) = value {
                gauge.get_or_create(&model).set(i64::try_from(value).unwrap_or(i64::MAX));
            }
        }
        if let Some(max) = load.max_bytes {
            self.usage.get_or_create(&model).set(load.held_bytes as f64 / max.max(1) as f64);
        }
        for (counter, value) in [
            (&self.passes, load.n_passes),
            (&self.rows, load.n_rows),
            (&self.pauses, load.n_pauses),
            (&self.evicted, load.n_evicted),
            (&self.saved, load.n_saved),
            (&self.restored, load.n_restored),
        ] {
            counter.get_or_create(&model).inner().store(value, Ordering::Relaxed);
        }
    }
}

/// When a text passed its stations, since it was accepted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stations {
    /// A slot was free.
    pub(crate) started: Duration,
    /// The first piece of the answer came.
    pub(crate) first: Option<Duration>,
    /// The answer ended.
    pub(crate) ended: Duration,
}

fn latencies() -> Histogram {
    // vLLM's limits for latencies of whole requests, and those below one second of its first tokens.
    Histogram::new([
        0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 7.5, 10.0,
        20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
    ])
}

fn token_times() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0,
        7.5, 10.0, 20.0, 40.0, 80.0,
    ])
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let latency = || Histograms::new_with_constructor(latencies as fn() -> Histogram);
        let mut metrics = Self {
            registry: Registry::with_prefix("breakers"),
            accepted: Family::default(),
            running: Family::default(),
            waiting: Family::default(),
            ended: Family::default(),
            refused: Family::default(),
            prompt_tokens: Family::default(),
            cached_tokens: Family::default(),
            generation_tokens: Family::default(),
            drafted_tokens: Family::default(),
            accepted_tokens: Family::default(),
            #[cfg(feature = "batches")]
            batches: BatchMetrics::default(),
            first_token: latency(),
            per_token: Histograms::new_with_constructor(token_times as fn() -> Histogram),
            end_to_end: latency(),
            queue: latency(),
            loads: Loads::default(),
        };
        let m = &mut metrics;
        let r = &mut m.registry;
        r.register("num_requests_running", "Texts that are being generated", m.running.clone());
        r.register("num_requests_waiting", "Texts that wait for a slot", m.waiting.clone());
        r.register("requests_accepted", "Texts that were accepted", m.accepted.clone());
        let help =
            "Texts that ended, by reason; with those that run and wait they are all that were accepted";
        r.register("request_ended", help, m.ended.clone());
        r.register("request_refused", "Requests that were refused", m.refused.clone());
        r.register("prompt_tokens", "Tokens of prompts", m.prompt_tokens.clone());
        let help = "Tokens of prompts that were cached and did not have to be computed";
        r.register("prompt_tokens_cached", help, m.cached_tokens.clone());
        r.register("generation_tokens", "Tokens generated", m.generation_tokens.clone());
        r.register("spec_decode_num_draft_tokens", "Tokens drafted", m.drafted_tokens.clone());
        let help = "Drafted tokens that became output";
        r.register("spec_decode_num_accepted_tokens", help, m.accepted_tokens.clone());
        #[cfg(feature = "batches")]
        m.batches.register(r);
        let mut seconds = |name: &str, help: &str, histograms: &Histograms| {
            r.register_with_unit(name, help, Unit::Seconds, histograms.clone());
        };
        seconds("time_to_first_token", "From the request to its first token", &m.first_token);
        seconds("time_per_output_token", "Time for each further token, as a mean over a text", &m.per_token);
        seconds("e2e_request_latency", "From the request to its last token", &m.end_to_end);
        seconds("request_queue_time", "From the request to a free slot", &m.queue);
        m.loads.register(r);
        metrics
    }

    /// Where others add what they count.
    #[cfg(feature = "upstreams")]
    pub(crate) fn registry_mut(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// A text was accepted and waits.
    pub(crate) fn accept(&self, model: &str) {
        self.accepted.get_or_create(&label(model)).inc();
        self.waiting.get_or_create(&label(model)).inc();
    }

    /// A text that waited has a slot.
    pub(crate) fn start(&self, model: &str) {
        self.waiting.get_or_create(&label(model)).dec();
        self.running.get_or_create(&label(model)).inc();
    }

    /// A text has ended.
    pub(crate) fn end(&self, model: &str, reason: &'static str, was_running: bool) {
        let gauge = if was_running { &self.running } else { &self.waiting };
        gauge.get_or_create(&label(model)).dec();
        let end = End { model_name: model.to_owned(), finished_reason: reason };
        self.ended.get_or_create(&end).inc();
    }

    /// A request was refused.
    pub(crate) fn refuse(&self, status: u16, code: &'static str) {
        self.refused.get_or_create(&Refusal { status: status.into(), code }).inc();
    }

    /// What a text used and how long it took.
    pub(crate) fn measure(&self, model: &str, usage: &Usage, times: &Stations) {
        let model = label(model);
        self.prompt_tokens.get_or_create(&model).inc_by(usage.prompt);
        self.cached_tokens.get_or_create(&model).inc_by(usage.cached_prompt);
        self.generation_tokens.get_or_create(&model).inc_by(usage.completion);
        self.drafted_tokens.get_or_create(&model).inc_by(usage.drafted);
        self.accepted_tokens.get_or_create(&model).inc_by(usage.accepted);
        self.queue.get_or_create(&model).observe(times.started.as_secs_f64());
        self.end_to_end.get_or_create(&model).observe(times.ended.as_secs_f64());
        if let Some(first) = times.first {
            self.first_token.get_or_create(&model).observe(first.as_secs_f64());
            if usage.completion > 1 {
                let rest = times.ended.saturating_sub(first).as_secs_f64();
                self.per_token.get_or_create(&model).observe(rest / (usage.completion - 1) as f64);
            }
        }
    }

    /// Everything as text. Models tell what they are busy with now.
    pub(crate) fn encode(&self, models: &[Arc<Hosted>]) -> String {
        for hosted in models {
            if let Some(load) = hosted.model.load() {
                self.loads.set(&hosted.model.card().id, &load);
            }
        }
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

fn label(model: &str) -> Model {
    Model { model_name: model.to_owned() }
}

/// What the dispatcher of batches and jobs counts.
#[cfg(feature = "batches")]
#[derive(Default)]
pub(crate) struct BatchMetrics {
    open: Family<Status, Gauge>,
    open_lines: Gauge,
    open_jobs: Gauge,
    lines: Family<Outcome, Counter>,
    jobs: Family<Outcome, Counter>,
    retries: Counter,
}

#[cfg(feature = "batches")]
impl BatchMetrics {
    fn register(&self, registry: &mut Registry) {
        let help = "Batches that have not ended, by status";
        registry.register("num_batches", help, self.open.clone());
        let help = "Lines of batches without a result, those that run included";
        registry.register("num_batch_lines_open", help, self.open_lines.clone());
        let help = "Jobs without an answer, those that run included";
        registry.register("num_jobs_open", help, self.open_jobs.clone());
        registry.register("batch_lines", "Lines of batches that got a result", self.lines.clone());
        registry.register("jobs", "Jobs that got an answer", self.jobs.clone());
        let help = "How often lines and jobs were tried again";
        registry.register("batch_retries", help, self.retries.clone());
    }

    /// What there is to do: how many batches have each status, and how many lines and jobs are open.
    pub(crate) fn show(&self, batches: &[(&'static str, i64)], n_lines: u64, n_jobs: usize) {
        for &(status, n) in batches {
            self.open.get_or_create(&Status { status }).set(n);
        }
        self.open_lines.set(i64::try_from(n_lines).unwrap_or(i64::MAX));
        self.open_jobs.set(i64::try_from(n_jobs).unwrap_or(i64::MAX));
    }

    /// A line or a job has a result, which is kept.
    pub(crate) fn end(&self, is_line: bool, is_good: bool) {
        let outcomes = if is_line { &self.lines } else { &self.jobs };
        outcomes.get_or_create(&Outcome { outcome: if is_good { "completed" } else { "failed" } }).inc();
    }

    /// A line or a job is tried again.
    pub(crate) fn retry(&self) {
        self.retries.inc();
    }
}
