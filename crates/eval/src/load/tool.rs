use serde::Serialize;

use super::Record;

/// A benchmark tool, whose definitions of the same names differ.
///
/// | | vLLM | guidellm | AIPerf |
/// |---|---|---|---|
/// | TTFT | first event with a choice − sent | first text − sent | first text − sent |
/// | TPOT | (last event − first event) / (n − 1) | (last text − sent) / n | – |
/// | ITL | each gap between events | (last text − first text) / (n − 1) | the same |
/// | latency | last event − sent | end − sent | last text − sent |
///
/// The first event of a chat names only who speaks; a server may send it long before the first token, and
/// vLLM's TTFT is then that of the event.
///
/// # Source
/// vLLM `benchmarks/lib/endpoint_request_func.py` and `benchmarks/serve.py`; guidellm
/// `schemas/request_stats.py`; AIPerf `metrics/types/{ttft,inter_token_latency,request_latency}_metric.py`.
/// All in the second half of 2026.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Tool {
    /// `vllm bench serve`.
    Vllm,
    /// `guidellm benchmark`.
    Guidellm,
    /// `aiperf profile`, the successor of genai-perf.
    Aiperf,
}

impl Tool {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Vllm, Self::Guidellm, Self::Aiperf];

    /// The name as its makers write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vLLM",
            Self::Guidellm => "guidellm",
            Self::Aiperf => "AIPerf",
        }
    }

    /// Time to the first token in seconds; `None` if there was none.
    pub fn ttft(self, record: &Record) -> Option<f64> {
        let first = match self {
            Self::Vllm => record.events.first(),
            Self::Guidellm | Self::Aiperf => record.texts.first(),
        };
        first.map(|first| first - record.sent)
    }

    /// Time per token of the answer in seconds; `None` for too short answers, and for AIPerf, which has no
    /// such figure.
    pub fn tpot(self, record: &Record) -> Option<f64> {
        let n = record.output_tokens as f64;
        match self {
            Self::Vllm if n > 1.0 => Some((record.events.last()? - record.events.first()?) / (n - 1.0)),
            Self::Guidellm if n > 0.0 => Some((record.texts.last()? - record.sent) / n),
            _ => None,
        }
    }

    /// Times between tokens in seconds: for vLLM each gap between events, for the others one mean for each
    /// answer. Empty for too short answers.
    pub fn itl(self, record: &Record) -> Vec<f64> {
        match self {
            Self::Vllm => record.events.windows(2).map(|pair| pair[1] - pair[0]).collect(),
            Self::Guidellm | Self::Aiperf => {
                let n = record.output_tokens as f64;
                let ends = record.texts.first().zip(record.texts.last()).filter(|_| n > 1.0);
                ends.map(|(first, last)| (last - first) / (n - 1.0)).into_iter().collect()
            }
        }
    }

    /// Time of the whole request in seconds.
    pub fn latency(self, record: &Record) -> Option<f64> {
        let end = match self {
            Self::Vllm => record.events.last(),
            Self::Guidellm => Some(&record.end),
            Self::Aiperf => record.texts.last(),
        };
        end.map(|end| end - record.sent)
    }

    /// Whether an answer keeps to the objectives, as this tool's goodput counts it. guidellm and AIPerf hold
    /// their mean ITL to the objective for TPOT.
    pub fn meets(self, record: &Record, objectives: &Objectives) -> bool {
        let within = |found: Option<f64>, limit: Option<f64>| {
            // A figure that an answer does not have, such as the TPOT of a single token, exceeds nothing.
            limit.is_none_or(|limit| found.is_none_or(|found| found <= limit))
        };
        let per_token = match self {
            Self::Vllm => self.tpot(record),
            Self::Guidellm | Self::Aiperf => self.itl(record).first().copied(),
        };
        record.is_done()
            && within(self.ttft(record), objectives.ttft)
            && within(per_token, objectives.tpot)
            && within(self.latency(record), objectives.latency)
    }
}

/// What an answer must keep to so that it counts as good.
///
/// # Units
/// Seconds; `None`: no such objective.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Objectives {
    /// Time to the first token.
    pub ttft: Option<f64>,
    /// Time per token after the first.
    pub tpot: Option<f64>,
    /// Time of the whole request.
    pub latency: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Counted, Outcome};

    /// Sent at 1; the role at 1.1, four tokens in three events at 2, 2.5 and 4, the reason why it ended at
    /// 4.2, the end at 5.
    fn record() -> Record {
        Record {
            planned: 0.5,
            sent: 1.0,
            events: vec![1.1, 2.0, 2.5, 4.0, 4.2],
            texts: vec![2.0, 2.5, 4.0],
            end: 5.0,
            outcome: Outcome::Done,
            prompt_tokens: None,
            cached_tokens: None,
            output_tokens: 4,
            counted: Counted::Usage,
        }
    }

    fn close(found: Option<f64>, expected: f64) {
        assert!(found.is_some_and(|found| (found - expected).abs() < 1e-12), "{found:?}, not {expected}");
    }

    #[test]
    fn each_tool_by_its_own_definition() {
        let record = record();
        close(Tool::Vllm.ttft(&record), 0.1);
        close(Tool::Guidellm.ttft(&record), 1.0);
        close(Tool::Aiperf.ttft(&record), 1.0);
        close(Tool::Vllm.tpot(&record), 3.1 / 3.0);
        close(Tool::Guidellm.tpot(&record), 3.0 / 4.0);
        assert_eq!(Tool::Aiperf.tpot(&record), None);
        assert_eq!(Tool::Vllm.itl(&record).len(), 4);
        close(Tool::Vllm.itl(&record).first().copied(), 0.9);
        for tool in [Tool::Guidellm, Tool::Aiperf] {
            assert_eq!(tool.itl(&record).len(), 1);
            close(tool.itl(&record).first().copied(), 2.0 / 3.0);
        }
        close(Tool::Vllm.latency(&record), 3.2);
        close(Tool::Guidellm.latency(&record), 4.0);
        close(Tool::Aiperf.latency(&record), 3.0);
    }

    #[test]
    fn goodput_holds_each_figure_to_its_objective() {
        let record = record();
        let only = |ttft, tpot, latency| Objectives { ttft, tpot, latency };
        for (tool, objectives, expected) in [
            (Tool::Vllm, only(Some(0.5), None, None), true),
            (Tool::Aiperf, only(Some(0.5), None, None), false),
            (Tool::Vllm, only(None, Some(1.0), None), false),
            (Tool::Guidellm, only(None, Some(0.7), None), true),
            (Tool::Guidellm, only(None, None, Some(3.5)), false),
            (Tool::Aiperf, only(None, None, Some(3.5)), true),
            (Tool::Aiperf, Objectives::default(), true),
        ] {
            assert_eq!(tool.meets(&record, &objectives), expected, "{tool:?} {objectives:?}");
        }
        let failed = Record { outcome: Outcome::TimedOut, ..record };
        assert!(!Tool::Vllm.meets(&failed, &Objectives::default()));
    }

    #[test]
    fn answers_without_tokens_have_no_figures() {
        let empty = Record { events: vec![], texts: vec![], output_tokens: 0, ..record() };
        for tool in Tool::ALL {
            assert_eq!((tool.ttft(&empty), tool.tpot(&empty), tool.itl(&empty)), (None, None, vec![]));
        }
        let one = Record { events: vec![2.0, 2.1], texts: vec![2.0], output_tokens: 1, ..record() };
        assert_eq!((Tool::Vllm.tpot(&one), Tool::Aiperf.itl(&one)), (None, vec![]));
        close(Tool::Guidellm.tpot(&one), 1.0);
    }
}
