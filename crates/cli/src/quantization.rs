//! Quantization jobs with bars.

use std::path::Path;

use breakers_core::TokenId;
use breakers_quant::Error as QuantError;
use breakers_quant::job::{JobSpec, Progress, QuantizeReport, Stage};

use super::{Bar, Error, Result};

/// Runs a job, with bars on standard error.
///
/// # Errors
/// Those of [`JobSpec::run`]; [`Error::Usage`] for a job that fits no matrix of the model, and for a budget
/// that is too small for any choice.
pub fn quantize_with_bar(
    job: &JobSpec,
    source: &Path,
    out: &Path,
    tokens: Vec<TokenId>,
    window: usize,
) -> Result<QuantizeReport> {
    let (mut measuring, mut quantizing): (Option<Bar>, Option<Bar>) = (None, None);
    let mut progress = |progress: Progress| {
        let (bar, unit) = match progress.stage {
            // Reading the text is part of a block's steps.
            Stage::Reading { .. } => return,
            Stage::Measuring => (&mut measuring, "matrices"),
            _ => {
                measuring = None;
                (&mut quantizing, "steps")
            }
        };
        bar.get_or_insert_with(|| Bar::new(progress.steps, unit)).done(progress.done);
    };
    job.run(source, out, tokens, window, &mut progress).map_err(|error| match error {
        QuantError::Words { .. } | QuantError::Budget { .. } => Error::Usage(error.to_string()),
        error => error.into(),
    })
}
