//! What the program and the examples share: flags, models by name, progress bars, answers as JSON, and error
//! messages that say what to do.
//!
//! # Output
//! Standard output holds only the result, with `--json` exactly one JSON object; progress and notes go to
//! standard error. Exit codes: 0, done; 1, something failed or differs; 2, the command line is wrong.
//!
//! # Example
//! ```
//! use breakers_cli::ModelArgs;
//! use clap::Parser;
//!
//! #[derive(Parser)]
//! struct Arguments {
//!     #[command(flatten)]
//!     model: ModelArgs,
//! }
//! let arguments = Arguments::parse_from(["example", "--threads", "2"]);
//! assert_eq!(arguments.model.model, "smollm2-135m");
//! assert_eq!(arguments.model.threads, Some(2));
//! ```

pub mod bench;
mod cache;
mod draft;
pub mod generate;
mod input;
mod memory;
mod model;
pub mod models;
mod output;
mod progress;
mod quantization;
pub mod quantize;
mod steps;

pub use cache::{CacheArgs, cache_named, runner_over};
pub use draft::{DraftArgs, MAX_DRAFT, draft_model};
pub use input::{Ids, PromptArgs, SamplingArgs, Seed, read_ids, read_text};
pub use memory::{peak_memory, reset_peak_memory, resident_memory};
pub use model::{LoadedModel, ModelArgs};
pub use output::{Error, Result, finish, print, print_json, run};
pub use progress::{Bar, FetchBar};
pub use quantization::quantize_with_bar;
pub use steps::{N_TOP, ScoredStep, step_json, tokens_per_second};
