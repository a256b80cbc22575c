//! Schemas with valid and invalid instances, measured: how many are enforced, whether an instance is taken
//! for what it is not, and what masks cost.
//!
//! The lines are those of MaskBench (<https://github.com/guidance-ai/jsonschemabench>): `{name, schema,
//! tests: [{valid, data}]}`. Each instance is written as compact JSON, members in the order of the file, and
//! fed token by token with a mask before each.

use std::time::{Duration, Instant};

use breakers_core::{Constraint as _, ConstraintError, EncodeOptions, Json, TokenMask, Tokenizer};
use serde_json::Value;

use crate::{Compiler, Error, Grammar, Result, SchemaOptions};

/// A schema with instances of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Case {
    /// Its name.
    pub name: String,
    /// The schema.
    pub schema: Json,
    /// Instances as JSON, and whether each is valid.
    pub instances: Vec<(Json, bool)>,
}

impl Case {
    /// A line of a file.
    ///
    /// # Errors
    /// [`Error::Json`] if the line is no JSON or has no schema.
    pub fn parse(line: &str) -> Result<Self> {
        let row: Value = Json::parse(line)?.to()?;
        let json = |value: &Value| Json::parse(&value.to_string());
        let tests = row["tests"].as_array().into_iter().flatten();
        let instances = tests.map(|test| Ok((json(&test["data"])?, test["valid"] == true)));
        Ok(Self {
            name: row["name"].as_str().unwrap_or_default().to_owned(),
            schema: json(&row["schema"])?,
            instances: instances.collect::<Result<_>>()?,
        })
    }
}

/// What came of one schema.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// Why it is refused; `None` if it is enforced.
    pub refused: Option<Error>,
    /// Whether values are looked at when they end, because the grammar alone accepts more.
    pub is_checked: bool,
    /// Valid instances looked at.
    pub n_valid: usize,
    /// Invalid instances looked at.
    pub n_invalid: usize,
    /// Invalid instances that are accepted, as JSON.
    pub wrong_accepted: Vec<String>,
    /// Valid instances that are refused, as JSON.
    pub wrong_refused: Vec<String>,
    /// From the schema to its first mask.
    pub first_mask: Duration,
    /// Each mask after the first of a text.
    pub masks: Vec<Duration>,
}

/// Compiles a schema and feeds its instances. Without `with_masks`, instances are fed alone, which is much
/// faster.
///
/// # Errors
/// [`Error::Vocabulary`] if the tokenizer does not encode an instance.
pub fn run(
    compiler: &Compiler,
    tokenizer: &dyn Tokenizer,
    case: &Case,
    options: SchemaOptions,
    with_masks: bool,
) -> Result<Outcome> {
    let mut outcome = Outcome {
        name: case.name.clone(),
        refused: None,
        is_checked: false,
        n_valid: 0,
        n_invalid: 0,
        wrong_accepted: Vec::new(),
        wrong_refused: Vec::new(),
        first_mask: Duration::ZERO,
        masks: Vec::new(),
    };
    let mut mask = TokenMask::none(tokenizer.n_tokens());
    let grammar = Grammar::JsonSchemaWith(case.schema.clone(), options);
    let start = Instant::now();
    let first = compiler.constraint(&grammar).and_then(|mut constraint| {
        constraint.allowed(&mut mask).map_err(|error| Error::Grammar { reason: error.to_string() })?;
        Ok(constraint)
    });
    outcome.first_mask = start.elapsed();
    match first {
        Ok(constraint) => outcome.is_checked = constraint.is_checked(),
        Err(error) => {
            outcome.refused = Some(error);
            return Ok(outcome);
        }
    }
    let encoding = EncodeOptions { add_special: false, parse_special: false };
    for (instance, is_valid) in &case.instances {
        let tokens = tokenizer.encode(instance.as_str(), encoding);
        let tokens = tokens.map_err(|error| Error::Vocabulary { reason: error.to_string() })?;
        let mut constraint = compiler.constraint(&grammar)?;
        let mut is_accepted = true;
        for token in tokens {
            if with_masks {
                let start = Instant::now();
                let found = constraint.allowed(&mut mask);
                outcome.masks.push(start.elapsed());
                is_accepted = found.is_ok();
            }
            is_accepted = is_accepted
                && !matches!(
                    constraint.advance(token),
                    Err(ConstraintError::NotAllowed { .. } | ConstraintError::Failed(_))
                );
            if !is_accepted {
                break;
            }
        }
        is_accepted = is_accepted && constraint.may_end().unwrap_or(false);
        *(if *is_valid { &mut outcome.n_valid } else { &mut outcome.n_invalid }) += 1;
        match (is_accepted, is_valid) {
            (true, false) => outcome.wrong_accepted.push(instance.as_str().to_owned()),
            (false, true) => outcome.wrong_refused.push(instance.as_str().to_owned()),
            _ => {}
        }
    }
    Ok(outcome)
}

/// All outcomes of a file together.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Summary {
    /// Schemas.
    pub schemas: usize,
    /// Schemas that are enforced.
    pub compiled: usize,
    /// Those among them that need checks.
    pub checked: usize,
    /// Schemas that are refused.
    pub refused: usize,
    /// Valid instances of compiled schemas.
    pub n_valid: usize,
    /// Invalid instances of compiled schemas.
    pub n_invalid: usize,
    /// Invalid instances that are accepted.
    pub wrong_accepted: usize,
    /// Valid instances that are refused.
    pub wrong_refused: usize,
    /// Times of masks, sorted.
    pub masks: Vec<Duration>,
    /// Times to the first mask, sorted.
    pub first_masks: Vec<Duration>,
}

impl<'a> FromIterator<&'a Outcome> for Summary {
    fn from_iter<I: IntoIterator<Item = &'a Outcome>>(outcomes: I) -> Self {
        let mut sum = Self::default();
        for outcome in outcomes {
            sum.schemas += 1;
            let is_refused = outcome.refused.is_some();
            sum.refused += usize::from(is_refused);
            sum.compiled += usize::from(!is_refused);
            sum.checked += usize::from(outcome.is_checked);
            sum.n_valid += outcome.n_valid;
            sum.n_invalid += outcome.n_invalid;
            sum.wrong_accepted += outcome.wrong_accepted.len();
            sum.wrong_refused += outcome.wrong_refused.len();
            sum.masks.extend(&outcome.masks);
            sum.first_masks.extend((!is_refused).then_some(outcome.first_mask));
        }
        sum.masks.sort_unstable();
        sum.first_masks.sort_unstable();
        sum
    }
}

/// The time that a share of sorted times does not exceed; zero for none.
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get(((last as f64) * share).ceil() as usize).copied().unwrap_or_default()
}

impl Summary {
    /// The mean time of a mask; zero for none.
    pub fn mean_mask(&self) -> Duration {
        let n = u32::try_from(self.masks.len().max(1)).unwrap_or(u32::MAX);
        self.masks.iter().sum::<Duration>() / n
    }

    /// Counts and times as JSON, times in microseconds.
    pub fn to_json(&self) -> String {
        let micros = |time: Duration| (time.as_nanos() as f64 / 100.0).round() / 10.0;
        serde_json::json!({
            "schemas": self.schemas,
            "compiled": self.compiled,
            "checked": self.checked,
            "refused": self.refused,
            "valid": self.n_valid,
            "invalid": self.n_invalid,
            "wrong_accepted": self.wrong_accepted,
            "wrong_refused": self.wrong_refused,
            "masks": self.masks.len(),
            "mask_us": {
                "mean": micros(self.mean_mask()),
                "p50": micros(percentile(&self.masks, 0.5)),
                "p99": micros(percentile(&self.masks, 0.99)),
                "p99_9": micros(percentile(&self.masks, 0.999)),
                "max": micros(percentile(&self.masks, 1.0)),
            },
            "first_mask_us": {
                "p50": micros(percentile(&self.first_masks, 0.5)),
                "p99": micros(percentile(&self.first_masks, 0.99)),
                "max": micros(percentile(&self.first_masks, 1.0)),
            },
        })
        .to_string()
    }
}
