//! Methods that quantize the weights of language models, one matrix or a whole model at a time.
//!
//! | to | use |
//! |---|---|
//! | quantize a model's file by a job such as `gptq+online:int4-g128` | [`job::JobSpec`] |
//! | do the same with a plan and settings of your own | [`job::quantize`] |
//! | find the formats that lose least within a number of bytes | [`job::Sensitivities`] |
//! | quantize one matrix | a method of [`methods`], which are all a [`Quantizer`](quantizer::Quantizer) |
//! | collect the statistics of a layer's inputs that a method needs | [`statistics::Statistics`] |
//!
//! # One matrix
//! ```
//! use breakers_gguf::GroupFormat;
//! use breakers_quant::quantizer::{Quantizer, WeightMatrix};
//! use breakers_quant::methods::RoundToNearest;
//!
//! # fn main() -> Result<(), breakers_quant::Error> {
//! let values: Vec<f32> = (0..2 * 64).map(|i| (i as f32 * 0.1).sin()).collect();
//! let weights = WeightMatrix::new(&values, 2, 64)?;
//! let int4 = GroupFormat::Affine { bits: 4, group: 32 };
//! let quantized = RoundToNearest::new().quantize(&weights, int4.into(), None)?;
//! assert_eq!(quantized.matrix.bytes(), 2 * 64 / 2 + 4 * 4);
//! assert!(quantized.report.weight_error < 0.01);
//! # Ok(())
//! # }
//! ```
//!
//! # A whole model, with your own method
//! A job takes any [`Quantizer`](quantizer::Quantizer). This one clips outliers and leaves the rest to
//! rounding.
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/tiny_model.rs"));
//! use std::sync::Arc;
//!
//! use breakers_gguf::{Encoding, File, Format};
//! use breakers_quant::Result;
//! use breakers_quant::job::{JobSpec, Plan, QuantizeOptions, quantize};
//! use breakers_quant::methods::RoundToNearest;
//! use breakers_quant::quantizer::{QuantizationReport, Quantized, Quantizer, WeightMatrix};
//! use breakers_quant::statistics::Statistics;
//!
//! /// Rounding of weights that are cut off at some standard deviations.
//! #[derive(Debug)]
//! struct Clipped {
//!     deviations: f32,
//! }
//!
//! impl Quantizer for Clipped {
//!     fn name(&self) -> String {
//!         "clipped".to_owned()
//!     }
//!
//!     fn quantize(
//!         &self,
//!         weights: &WeightMatrix<'_>,
//!         encoding: Encoding,
//!         statistics: Option<&Statistics>,
//!     ) -> Result<Quantized> {
//!         let squares: f32 = weights.values().iter().map(|x| x * x).sum();
//!         let limit = self.deviations * (squares / weights.values().len() as f32).sqrt();
//!         let clipped: Vec<f32> = weights.values().iter().map(|x| x.clamp(-limit, limit)).collect();
//!         let clipped = WeightMatrix::new(&clipped, weights.n_rows(), weights.n_cols())?;
//!         let rounded = RoundToNearest::new().quantize(&clipped, encoding, statistics)?;
//!         // The errors are those of the weights that were given.
//!         let mut report = QuantizationReport::default();
//!         report.method = format!("{} {encoding}", self.name());
//!         Quantized::new(rounded.matrix, weights, statistics, report)
//!     }
//! }
//!
//! # fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let (source, out) = (folder.path().join("source.gguf"), folder.path().join("out.gguf"));
//! # write_model(&source, TINY);
//! // A plan gives each matrix a format.
//! let plan = Plan::uniform(&File::open(&source)?, Format::Q4_0);
//! let options = QuantizeOptions::new(Arc::new(Clipped { deviations: 2.5 }), Vec::new());
//! let report = quantize(&source, &out, &plan, &options, &mut |_| ())?;
//! assert!(report.tensors.iter().all(|tensor| tensor.to == Format::Q4_0.into()));
//! assert!(File::open(&out)?.len_bytes() < File::open(&source)?.len_bytes() / 6);
//!
//! // Or in the place of another method in a job's words.
//! let words: JobSpec = "rtn:Q4_K".parse()?;
//! let job = JobSpec { quantizer: Arc::new(Clipped { deviations: 3.0 }), ..words };
//! assert_eq!(job.to_string(), "clipped:Q4_K");
//! # Ok(())
//! # }
//! ```

mod error;
pub mod job;
mod linalg;
pub mod methods;
pub mod quantizer;
mod rounding;
pub mod statistics;

pub use error::{Error, Result};

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
