//! Running the user's own `pip` and `npm`.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::catalog::Package;
use crate::error::{Error, Result, TriedCommand};

/// How much of a tool's standard error is kept for the error message.
const TAIL_BYTES: usize = 4096;
/// How often a running tool is polled.
const POLL: Duration = Duration::from_millis(20);

/// Which tool a source needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolKind {
    Pip,
    Npm,
}

impl ToolKind {
    fn name(self) -> &'static str {
        match self {
            Self::Pip => "pip",
            Self::Npm => "npm",
        }
    }

    /// The file extension of the archives that the tool downloads.
    pub(crate) fn archive_ending(self) -> &'static str {
        match self {
            Self::Pip => ".whl",
            Self::Npm => ".tgz",
        }
    }
}

/// A tool that was found to work.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    kind: ToolKind,
    program: OsString,
    leading: Vec<&'static str>,
}

impl Tool {
    /// Finds the tool: only the given program or, if none is given, the first usual command that works.
    pub(crate) fn find(kind: ToolKind, chosen: Option<&Path>) -> Result<Self> {
        let new =
            |program: OsString, leading: &[&'static str]| Self { kind, program, leading: leading.to_vec() };
        let candidates = match (kind, chosen) {
            (ToolKind::Pip, Some(python)) => vec![new(absolute(python), &["-m", "pip"])],
            (ToolKind::Npm, Some(npm)) => vec![new(absolute(npm), &[])],
            (ToolKind::Pip, None) => vec![
                new("python3".into(), &["-m", "pip"]),
                new("python".into(), &["-m", "pip"]),
                new("pip3".into(), &[]),
                new("pip".into(), &[]),
            ],
            (ToolKind::Npm, None) => vec![new(if cfg!(windows) { "npm.cmd" } else { "npm" }.into(), &[])],
        };
        let mut tried = Vec::new();
        for tool in candidates {
            match tool.answers() {
                Ok(()) => return Ok(tool),
                Err(reason) => tried.push(TriedCommand { command: tool.label(), reason }),
            }
        }
        Err(Error::ToolMissing { tool: kind.name(), tried })
    }

    /// The command in words.
    pub(crate) fn label(&self) -> String {
        let mut label = self.program.to_string_lossy().into_owned();
        for word in &self.leading {
            label.push(' ');
            label.push_str(word);
        }
        label
    }

    fn answers(&self) -> std::result::Result<(), String> {
        let output = Command::new(&self.program)
            .args(&self.leading)
            .arg("--version")
            // Python puts the current folder on its module path, where a stray `pip.py` would win.
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let tail = tail_lines(&output.stderr);
                let last = tail.lines().last().unwrap_or("no message");
                Err(format!("{} ({last})", describe(output.status)))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err("not found".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Downloads one package's archive to `work/archive`. The tool's own temporary files go below `work` too,
    /// so that their growth can be watched and nothing is left behind.
    pub(crate) fn download(&self, package: &Package, work: &Path, cancel: &AtomicBool) -> Result<PathBuf> {
        let archive_folder = work.join("archive");
        let temporary = work.join("tmp");
        for folder in [&archive_folder, &temporary] {
            std::fs::create_dir_all(folder).map_err(|error| Error::io("create the folder", folder, error))?;
        }
        let mut command = Command::new(&self.program);
        command.args(&self.leading).current_dir(work).env("NO_COLOR", "1");
        for variable in ["TMPDIR", "TMP", "TEMP"] {
            command.env(variable, &temporary);
        }
        match self.kind {
            ToolKind::Pip => command
                .args([
                    "download",
                    "--no-deps",
                    "--only-binary=:all:",
                    "--no-cache-dir",
                    "--progress-bar=off",
                ])
                .args(["--no-input", "--disable-pip-version-check", "--quiet"])
                // Nothing is installed, and an interrupted fetch can be resumed, so give up quickly without a
                // network.
                .arg("--retries=2")
                .arg("--dest")
                .arg(&archive_folder)
                .arg(format!("{}=={}", package.name, package.version))
                .env("PIP_REQUIRE_VIRTUALENV", "0"),
            ToolKind::Npm => command
                .args(["pack", "--ignore-scripts", "--fetch-retries=1", "--loglevel=error"])
                .arg("--pack-destination")
                .arg(&archive_folder)
                .arg("--cache")
                .arg(temporary.join("cache"))
                .arg(format!("{}@{}", package.name, package.version)),
        };
        self.run(&mut command, package, cancel)?;
        self.only_archive(&archive_folder)
    }

    fn run(&self, command: &mut Command, package: &Package, cancel: &AtomicBool) -> Result<()> {
        let label = format!("{} … {}", self.label(), package.name);
        let failed = |status: String, stderr_tail: String| Error::ToolFailed {
            command: label.clone(),
            status,
            stderr_tail,
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string(), String::new()))?;
        let mut stderr = child.stderr.take();
        let reader = thread::spawn(move || {
            let mut tail = Vec::new();
            let mut chunk = [0; 1024];
            while let Some(n_bytes) = stderr.as_mut().and_then(|pipe| pipe.read(&mut chunk).ok()) {
                if n_bytes == 0 {
                    break;
                }
                tail.extend_from_slice(&chunk[..n_bytes]);
                let surplus = tail.len().saturating_sub(TAIL_BYTES);
                tail.drain(..surplus);
            }
            tail
        });
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Ok(status),
                Ok(None) if cancel.load(Ordering::Relaxed) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(Error::Interrupted { name: package.name.clone() });
                }
                Ok(None) => thread::sleep(POLL),
                Err(error) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    break Err(error);
                }
            }
        };
        let tail = || tail_lines(&reader.join().unwrap_or_default());
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => {
                let tail = tail();
                if tail.contains("No space left on device") || tail.contains("ENOSPC") {
                    let path = command.get_current_dir().unwrap_or(Path::new("")).to_path_buf();
                    return Err(Error::DiskFull { path, needed: None, available: None });
                }
                Err(failed(describe(status), tail))
            }
            Err(error) => Err(failed(error.to_string(), String::new())),
        }
    }

    fn only_archive(&self, folder: &Path) -> Result<PathBuf> {
        let ending = self.kind.archive_ending();
        let mut archives: Vec<PathBuf> = std::fs::read_dir(folder)
            .map_err(|error| Error::io("list", folder, error))?
            .filter_map(|item| item.ok())
            .filter(|item| item.file_type().is_ok_and(|kind| kind.is_file()))
            .filter(|item| item.file_name().to_string_lossy().ends_with(ending))
            .map(|item| item.path())
            .collect();
        match archives.pop() {
            Some(archive) if archives.is_empty() => Ok(archive),
            last => Err(Error::ToolOutput {
                command: self.label(),
                expected: ending,
                found: archives.len() + usize::from(last.is_some()),
            }),
        }
    }
}

/// A path that contains a folder must not be relative to the child's current folder.
fn absolute(program: &Path) -> OsString {
    if program.components().count() > 1 {
        std::path::absolute(program).map_or_else(|_| program.into(), PathBuf::into_os_string)
    } else {
        program.into()
    }
}

fn describe(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit code {code}"),
        None => status.to_string(),
    }
}

/// The last lines, without control characters.
fn tail_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let clean = |line: &str| line.chars().filter(|letter| !letter.is_control()).collect::<String>();
    let lines: Vec<String> = text.lines().map(clean).filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
