//! Statistics and reports for benchmarks of language models.
//!
//! [`stats`] holds the numbers that a benchmark may claim: medians, quantiles, and confidence intervals by a
//! seeded bootstrap, also for the ratio of two programs measured in turn. [`report`] puts them, with charts and
//! with the [`Provenance`] of the run, into `report.json`, `report.md` and SVG files.
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

mod error;
pub mod report;
pub mod stats;

pub use error::{Error, Result};
pub use report::{BarChart, Cell, Chart, Column, HeatMap, LineChart, ModelFile, Provenance, Report, Table};
pub use stats::{BootstrapConfig, Estimate};
