use std::path::PathBuf;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a measurement, a statistic or a report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A language model failed, or was asked for something that it cannot do.
    #[error(transparent)]
    Model(#[from] breakers_core::Error),
    /// The model gives a token of the text no probability, so the text's likelihood is zero.
    #[error("the model gives token {token} of the text no probability at all")]
    Impossible {
        /// The token.
        token: breakers_core::TokenId,
    },
    /// A text could not be turned into tokens.
    #[error("the text could not be turned into tokens: {0}")]
    Tokenizer(#[source] breakers_core::BoxError),
    /// Too few values for the statistic.
    #[error("{what} needs at least {expected} values, got {found}")]
    TooFewValues {
        /// The statistic.
        what: &'static str,
        /// Values needed.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// A value is NaN or infinite.
    #[error("value {index} is {value}, expected a finite number")]
    NotFinite {
        /// Its index.
        index: usize,
        /// What was found.
        value: f64,
    },
    /// Paired samples differ in length.
    #[error("paired samples have {expected} and {found} values")]
    Unpaired {
        /// Length of the first sample.
        expected: usize,
        /// Length of the second sample.
        found: usize,
    },
    /// A parameter is outside of its range.
    #[error("{name} is {found}, expected {expected}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// Value given.
        found: f64,
        /// The range.
        expected: &'static str,
    },
    /// A ratio's denominator is zero.
    #[error("the median of the denominator is zero")]
    ZeroDenominator,
    /// A row does not fit its table, or a series its chart.
    #[error("{what} `{name}` has {found} entries, expected {expected}")]
    Length {
        /// A description of the row or the series.
        what: &'static str,
        /// Name of the table or the series.
        name: String,
        /// Columns or groups.
        expected: usize,
        /// Entries given.
        found: usize,
    },
    /// Two tables or charts of a report have the same name.
    #[error("two parts of the report are named `{name}`")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// A chart could not be drawn.
    #[error("chart `{name}` could not be drawn: {reason}")]
    Chart {
        /// Name of the chart.
        name: String,
        /// What the drawing library said.
        reason: String,
    },
    /// The folder of the report could not be made.
    #[error("cannot write {path}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file of the report could not be replaced.
    #[error(transparent)]
    File(#[from] breakers_files::Error),
    /// The report could not be turned into JSON.
    #[error("the report could not be turned into JSON")]
    Json(#[from] serde_json::Error),
    /// A line of an input cannot be read.
    #[error("{what}, line {line}: {reason}")]
    Line {
        /// The input.
        what: &'static str,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// An endpoint does not answer as it should.
    #[error("{url}: {reason}")]
    Endpoint {
        /// The endpoint.
        url: String,
        /// What it did.
        reason: String,
    },
    /// The system has no more threads.
    #[error("a thread for a request could not be started")]
    Thread {
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}
