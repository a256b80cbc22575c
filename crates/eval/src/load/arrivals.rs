use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Gamma};
use serde::Deserialize;

use crate::{Error, Result};

/// When requests come.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Arrivals {
    /// Independent users: exponential waiting times.
    Poisson {
        /// Requests a second.
        rate: f64,
    },
    /// Waiting times of a gamma distribution: in bursts below a burstiness of 1, evenly above it.
    Bursty {
        /// Requests a second.
        rate: f64,
        /// The distribution's shape; 1 is [`Poisson`](Self::Poisson).
        burstiness: f64,
    },
    /// Equal waiting times.
    Constant {
        /// Requests a second.
        rate: f64,
    },
    /// Users who ask again as soon as they are answered. They have no plan: the server's pace is theirs.
    ClosedLoop {
        /// How many.
        users: usize,
    },
    /// Moments in seconds from the start, in ascending order.
    Trace(Vec<f64>),
}

impl Arrivals {
    /// Reads a trace: on each line either seconds from the start, or a JSON object whose `timestamp` is in
    /// milliseconds, as in the traces of Mooncake. The first request comes at 0.
    ///
    /// # Errors
    /// [`Error::Line`] for a line that is neither, for times that go back, and for a trace without lines.
    ///
    /// # Example
    /// ```
    /// use breakers_eval::load::Arrivals;
    ///
    /// let trace = Arrivals::read_trace("{\"timestamp\": 27000}\n{\"timestamp\": 30500}\n")?;
    /// assert_eq!(trace, Arrivals::Trace(vec![0.0, 3.5]));
    /// # Ok::<(), breakers_eval::Error>(())
    /// ```
    pub fn read_trace(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Event {
            timestamp: f64,
        }
        let mut times: Vec<f64> = Vec::new();
        let wrong = |line, reason: String| Error::Line { what: "the trace", line, reason };
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let time = match line.trim_start().starts_with('{') {
                true => serde_json::from_str::<Event>(line).map(|event| event.timestamp / 1000.0),
                false => serde_json::from_str::<f64>(line),
            };
            let time = time.map_err(|error| wrong(i + 1, error.to_string()))?;
            if times.last().is_some_and(|last| *last > time) {
                return Err(wrong(i + 1, "it is before the line above it".to_owned()));
            }
            times.push(time);
        }
        let first = *times.first().ok_or_else(|| wrong(1, "it is empty".to_owned()))?;
        Ok(Self::Trace(times.iter().map(|time| time - first).collect()))
    }

    /// The moments of `n` requests in seconds from the start; `None` for a closed loop.
    ///
    /// Random waiting times are scaled so that the last request comes at `n / rate`, as vLLM's benchmark
    /// does: runs with different seeds have the same rate.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a rate or a burstiness that is not positive and finite, no users, a trace
    /// with fewer than `n` moments or not in order.
    ///
    /// # Source
    /// `get_request` in vLLM's `benchmarks/serve.py`: gamma with shape b and scale 1 / (rate · b).
    pub fn plan(&self, n: usize, seed: u64) -> Result<Option<Vec<f64>>> {
        let positive = |name, found: f64| match found.is_finite() && found > 0.0 {
            true => Ok(found),
            false => Err(Error::Parameter { name, found, expected: "a positive number" }),
        };
        Ok(Some(match *self {
            Self::Poisson { rate } => gamma(n, positive("rate", rate)?, 1.0, seed)?,
            Self::Bursty { rate, burstiness } => {
                gamma(n, positive("rate", rate)?, positive("burstiness", burstiness)?, seed)?
            }
            Self::Constant { rate } => {
                let rate = positive("rate", rate)?;
                (0..n).map(|i| i as f64 / rate).collect()
            }
            Self::ClosedLoop { users } => {
                positive("users", users as f64)?;
                return Ok(None);
            }
            Self::Trace(ref times) => {
                if times.len() < n {
                    let expected = "as many as there are requests";
                    return Err(Error::Parameter { name: "trace", found: times.len() as f64, expected });
                }
                let is_ordered = times.windows(2).all(|pair| pair[0] <= pair[1]);
                if let Some(&bad) = times.iter().find(|time| !(time.is_finite() && **time >= 0.0)) {
                    return Err(Error::Parameter { name: "trace", found: bad, expected: "at least 0" });
                }
                if !is_ordered {
                    let expected = "moments in ascending order";
                    return Err(Error::Parameter { name: "trace", found: times.len() as f64, expected });
                }
                times[..n].to_vec()
            }
        }))
    }
}

fn gamma(n: usize, rate: f64, shape: f64, seed: u64) -> Result<Vec<f64>> {
    let wrong = Error::Parameter { name: "burstiness", found: shape, expected: "a positive number" };
    let waits = Gamma::new(shape, 1.0 / (rate * shape)).map_err(|_| wrong)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut now = 0.0;
    let mut times: Vec<f64> = (0..n)
        .map(|_| {
            now += waits.sample(&mut rng);
            now
        })
        .collect();
    // With extreme shapes all waiting times may be 0; then all requests come at once, as was asked.
    if now > 0.0 && now.is_finite() {
        let scale = n as f64 / rate / now;
        times.iter_mut().for_each(|time| *time *= scale);
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{mean, standard_deviation};

    fn waits(arrivals: &Arrivals) -> Vec<f64> {
        let times = arrivals.plan(20_000, 3).unwrap().unwrap();
        std::iter::once(times[0]).chain(times.windows(2).map(|pair| pair[1] - pair[0])).collect()
    }

    #[test]
    fn waiting_times_have_the_mean_and_spread_of_their_distribution() {
        // The coefficient of variation of a gamma distribution of shape b is 1 / sqrt(b).
        for (arrivals, variation) in [
            (Arrivals::Poisson { rate: 4.0 }, 1.0),
            (Arrivals::Bursty { rate: 4.0, burstiness: 0.25 }, 2.0),
            (Arrivals::Bursty { rate: 4.0, burstiness: 16.0 }, 0.25),
            (Arrivals::Constant { rate: 4.0 }, 0.0),
        ] {
            let waits = waits(&arrivals);
            let (mean, deviation) = (mean(&waits).unwrap(), standard_deviation(&waits).unwrap());
            assert!((mean - 0.25).abs() < 1e-4, "{arrivals:?}: mean {mean}");
            assert!((deviation / mean - variation).abs() < 0.06, "{arrivals:?}: {deviation} of {mean}");
        }
        let share = waits(&Arrivals::Poisson { rate: 4.0 }).iter().filter(|wait| **wait > 0.25).count();
        // Of exponential waiting times, 1/e is longer than their mean.
        assert!((share as f64 / 20_000.0 - (-1f64).exp()).abs() < 0.01, "{share}");
    }

    #[test]
    fn seeds_fix_the_plan() {
        let poisson = Arrivals::Poisson { rate: 2.0 };
        assert_eq!(poisson.plan(50, 1).unwrap(), poisson.plan(50, 1).unwrap());
        assert_ne!(poisson.plan(50, 1).unwrap(), poisson.plan(50, 2).unwrap());
        let last = *poisson.plan(50, 2).unwrap().unwrap().last().unwrap();
        assert!((last - 25.0).abs() < 1e-9, "the rate is exact: {last}");
        assert_eq!(Arrivals::ClosedLoop { users: 2 }.plan(50, 1).unwrap(), None);
    }

    #[test]
    fn impossible_plans_are_refused() {
        let wrong = |arrivals: Arrivals, name: &str| match arrivals.plan(3, 0) {
            Err(Error::Parameter { name: found, .. }) => assert_eq!(found, name),
            other => panic!("{arrivals:?}: {other:?}"),
        };
        wrong(Arrivals::Poisson { rate: 0.0 }, "rate");
        wrong(Arrivals::Constant { rate: f64::NAN }, "rate");
        wrong(Arrivals::Bursty { rate: 1.0, burstiness: f64::INFINITY }, "burstiness");
        wrong(Arrivals::ClosedLoop { users: 0 }, "users");
        wrong(Arrivals::Trace(vec![0.0, 1.0]), "trace");
        wrong(Arrivals::Trace(vec![0.0, 2.0, 1.0]), "trace");
        wrong(Arrivals::Trace(vec![0.0, f64::NAN, 1.0]), "trace");
        assert!(Arrivals::Bursty { rate: 1.0, burstiness: 1e-300 }.plan(3, 0).is_ok());
    }

    #[test]
    fn traces() {
        assert_eq!(Arrivals::read_trace("2\n\n2.5\n4e0").unwrap(), Arrivals::Trace(vec![0.0, 0.5, 2.0]));
        for (text, bad) in [("", 1), ("1\nx", 2), ("1\n0", 2), ("{\"time\": 1}", 1), ("1 2", 1)] {
            match Arrivals::read_trace(text) {
                Err(Error::Line { line, .. }) => assert_eq!(line, bad, "{text:?}"),
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }
}
