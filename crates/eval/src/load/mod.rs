//! Load on an endpoint of OpenAI's protocol, and what its clients would have seen.
//!
//! Requests are sent when an arrival process says so ([`Arrivals`]), each on a thread of its own, so that a
//! slow server does not slow down those who ask it. Every event of a stream is timed ([`Record`]); from
//! these times follow the figures of several benchmark tools, each under its own definition
//! ([`Tool`]), and those of a user who was to be served at the planned time.
//!
//! # Coordinated omission
//! A client that waits for an answer before it asks again asks less while the server stands still, and so
//! leaves out the waiting that others would have seen (Gil Tene, "How NOT to Measure Latency", 2015). Here
//! times "from the plan" begin at the planned arrival, whenever the request could be sent. A closed loop
//! has no plan; there both are the same.
//!
//! # Cost
//! A thread of 128 KiB of stack for each open request. The client's own share of the processors is measured
//! ([`Run::client_cpu`]), because it may run beside the server.
//!
//! # Example
//! ```no_run
//! use breakers_eval::load::{self, Arrivals, GeneratedPrompts, LoadConfig, Objectives, Target};
//!
//! let targets = [Target::new("ours", "http://127.0.0.1:8080/v1", "smollm2-135m")];
//! let mut config = LoadConfig::new(Arrivals::Poisson { rate: 4.0 }, 200);
//! config.max_tokens = 64;
//! let prompts = GeneratedPrompts::default().make(200)?;
//! let runs = load::run(&targets, &prompts, &config, &mut |_| {})?;
//! let summary = load::Summary::new(&runs[0], &Objectives::default(), &config.bootstrap)?;
//! println!("{} of {} answered", summary.n_done, summary.n_requests);
//! # Ok::<(), breakers_eval::Error>(())
//! ```

mod arrivals;
mod endpoint;
mod prompts;
mod record;
mod report;
mod run;
mod summary;
mod tool;

pub use arrivals::Arrivals;
pub use endpoint::{Target, TargetRoute};
pub use prompts::{GeneratedPrompts, LoadPrompt, read_prompts};
pub use record::{Counted, Outcome, Record};
pub use report::report;
pub use run::{LoadConfig, Run, run};
pub use summary::{Metric, Summary};
pub use tool::{Objectives, Tool};
