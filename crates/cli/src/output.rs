//! Results on standard output, errors with their causes.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use breakers_eval::Report;
use serde_json::Value;

/// What an example returns.
pub type Result<T = ()> = std::result::Result<T, Error>;

/// Why an example ends early.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The command line asks for something impossible: exit code 2.
    Usage(String),
    /// Something failed: exit code 1.
    Failed(Box<dyn std::error::Error>),
    /// Nobody reads the output anymore, which is not worth a message.
    Closed,
}

impl<E: std::error::Error + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error))
    }
}

/// Warnings of the libraries as lines on standard error.
struct Warnings;

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event()
            && *metadata.level() <= tracing::Level::WARN
            && metadata.target().starts_with("breakers")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        eprintln!("warning: {}", line.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// An event's message with its fields.
struct Line(String);

impl tracing::field::Visit for Line {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => self.0 = format!("{value:?}{}", self.0),
            name => self.0 += &format!(" ({name}: {value:?})"),
        }
    }
}

/// Runs an example. Errors are shown with all their causes and become exit codes. Warnings of the libraries
/// go to standard error, unless the program has a subscriber of its own.
pub fn run(example: impl FnOnce() -> Result<ExitCode>) -> ExitCode {
    // This fails if there is already a subscriber, which then stays in charge.
    _ = tracing::subscriber::set_global_default(Warnings);
    match example() {
        Ok(code) => code,
        Err(Error::Closed) => ExitCode::SUCCESS,
        Err(Error::Usage(message)) => {
            eprintln!("error: {message}\n\nFor more information, try '--help'.");
            ExitCode::from(2)
        }
        Err(Error::Failed(error)) => {
            eprintln!("error: {}", breakers_core::chain(&*error, "\n  because: "));
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard output and flushes it.
///
/// # Errors
/// [`Error::Closed`] if it is closed, [`Error::Failed`].
pub fn print(text: &str) -> Result {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Error::Closed),
        Err(error) => Err(error.into()),
    }
}

/// Writes one JSON object to standard output.
///
/// # Errors
/// As [`print()`].
pub fn print_json(value: &Value) -> Result {
    print(&format!("{value}\n"))
}

/// Writes a report into a folder and shows it: the JSON object, if there is one, otherwise its tables.
///
/// # Errors
/// Those of [`Report::write`], and as [`print()`].
pub fn finish(report: &Report, folder: &Path, json: Option<Value>) -> Result {
    report.write(folder)?;
    match json {
        Some(json) => print_json(&json)?,
        None => {
            for table in report.tables() {
                print(&format!("{}\n{}\n", table.title(), table.to_markdown()))?;
            }
        }
    }
    eprintln!("report: {}", folder.join("report.md").display());
    Ok(())
}
