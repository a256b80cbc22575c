//! Evaluation of language models: scores of given texts, and statistics and reports for benchmarks.
//!
//! | for | use |
//! |---|---|
//! | log-probabilities of a given text | [`score::score`] |
//! | perplexity of a text | [`score::perplexity`] |
//! | how far one model's predictions are from another's | [`divergence::divergence`] |
//! | whether a fact in a long text is found | [`needle::needles`] |
//! | what the users of a server would see under load | `load`, with the feature of that name |
//! | medians, quantiles, bootstrap intervals | [`stats`] |
//! | tables and charts as JSON, Markdown, HTML and SVG | [`Report`], with the [`Provenance`] of the run |
//!
//! Measurements take any [`LanguageModel`](breakers_core::LanguageModel); there is no model in this crate.
//! Confidence intervals come from a seeded bootstrap, even for the ratio of two programs that are measured in
//! turn.
//!
//! # Example
//! ```
//! use breakers_eval::{Cell, Column, Provenance, Report, Table, stats};
//!
//! let seconds = [0.52, 0.50, 0.51, 0.90, 0.49];
//! let mut table = Table::new("latency", "Latency of a request");
//! table.column(Column::new("program"));
//! table.column(Column::new("median").unit("s").decimals(2));
//! table.row(vec![Cell::from("ours"), Cell::from(stats::median(&seconds)?)])?;
//!
//! let mut report = Report::new("A benchmark", Provenance::collect(None));
//! report.table(table);
//! assert!(report.to_markdown().contains("| ours    |       0.51 |"));
//! # Ok::<(), breakers_eval::Error>(())
//! ```

pub mod divergence;
mod error;
mod feed;
#[cfg(feature = "load")]
pub mod load;
pub mod needle;
pub mod report;
pub mod score;
pub mod stats;

pub use error::{Error, Result};
pub use report::{BarChart, Cell, Chart, Column, HeatMap, LineChart, ModelFile, Provenance, Report, Table};
pub use stats::{BootstrapConfig, Estimate};

/// The README, so that its examples are compiled and run.
#[cfg(all(doctest, feature = "load"))]
#[doc = include_str!("../README.md")]
struct Readme;
