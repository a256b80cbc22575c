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
    /// Nobody reads the output any more; not worth a message.
    Closed,
}

impl<E: std::error::Error + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error))
    }
}

/// Runs an example: its errors are shown with all causes, and become exit codes.
pub fn run(example: impl FnOnce() -> Result<ExitCode>) -> ExitCode {
    match example() {
        Ok(code) => code,
        Err(Error::Closed) => ExitCode::SUCCESS,
        Err(Error::Usage(message)) => {
            eprintln!("error: {message}\n\nFor more information, try '--help'.");
            ExitCode::from(2)
        }
        Err(Error::Failed(error)) => {
            eprintln!("error: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, a line each; a cause that only repeats its effect is left out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.ends_with(&line) {
            text += &format!("\n  because: {line}");
        }
        cause = error.source();
    }
    text
}

/// Writes to standard output at once.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl std::fmt::Display for Layer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl std::error::Error for Layer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            self.1.as_deref().map(|e| e as _)
        }
    }

    #[test]
    fn causes_are_listed_once() {
        let disk = Layer("the disk is full", None);
        let repeats = Layer("writing failed: the disk is full", Some(Box::new(disk)));
        let top = Layer("no report", Some(Box::new(repeats)));
        assert_eq!(chain(&top), "no report\n  because: writing failed: the disk is full");
    }
}
