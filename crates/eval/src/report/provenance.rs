use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// The state of the checkout that a program was built from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GitState {
    /// Hash of the commit.
    pub commit: String,
    /// Whether tracked files differ from the commit.
    pub dirty: bool,
}

/// A model that took part in a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelFile {
    /// The name that it was requested by.
    pub name: String,
    /// SHA-256 of its file, in hexadecimal.
    pub sha256: String,
    /// Size of its file, in bytes.
    pub bytes: u64,
}

/// What others need to know to repeat a run. Fields that cannot be determined are left empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Provenance {
    /// When the run began, UTC.
    pub date: String,
    /// The command line, with only the last part of the program's path.
    pub command: Vec<String>,
    /// Version of the crates.
    pub version: String,
    /// Commit of the checkout.
    pub git: Option<GitState>,
    /// The Rust compiler that is installed.
    pub rustc: Option<String>,
    /// Operating system and processor architecture.
    pub os: String,
    /// Name of the processor.
    pub cpu: Option<String>,
    /// Hardware threads that the program may use.
    pub n_cpus: Option<usize>,
    /// Instruction set that the kernels used.
    pub isa: Option<String>,
    /// Device that held the tensors.
    pub device: Option<String>,
    /// Threads of the kernels.
    pub threads: Option<usize>,
    /// Models used.
    pub models: Vec<ModelFile>,
    /// Seeds of random choices.
    pub seeds: Vec<u64>,
    /// Everything else that matters, by name.
    pub settings: BTreeMap<String, String>,
}

impl Provenance {
    /// Collects what can be determined without the caller's help: date, command, versions, machine.
    ///
    /// `checkout` is a folder with the sources, usually `env!("CARGO_MANIFEST_DIR")`; its commit is recorded
    /// if it is still a git checkout. The environment variable `BREAKERS_COMMIT` takes precedence.
    pub fn collect(checkout: Option<&Path>) -> Self {
        let mut command: Vec<String> =
            std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
        if let Some(program) = command.first_mut() {
            let name = Path::new(&*program).file_name().map(|n| n.to_string_lossy().into_owned());
            *program = name.unwrap_or_default();
        }
        Self {
            date: date(SystemTime::now()),
            command,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            git: git_state(checkout),
            rustc: output("rustc", &["--version"]),
            os: operating_system(),
            cpu: cpu_name(),
            n_cpus: std::thread::available_parallelism().ok().map(Into::into),
            ..Self::default()
        }
    }

    pub(super) fn to_markdown(&self) -> String {
        let git = self.git.as_ref().map(|g| {
            let state = if g.dirty { ", with changes" } else { "" };
            format!("`{}`{state}", g.commit)
        });
        let cpu = self.cpu.as_ref().map(|cpu| match self.n_cpus {
            Some(n) => format!("{cpu}, {n} hardware threads"),
            None => cpu.clone(),
        });
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let mut lines = vec![
            ("date", Some(self.date.clone())),
            ("command", Some(format!("`{}`", self.command.join(" ").replace('`', "'")))),
            ("version", Some(self.version.clone())),
            ("commit", git),
            ("rustc", self.rustc.clone()),
            ("system", Some(self.os.clone())),
            ("processor", cpu),
            ("instruction set", self.isa.clone()),
            ("device", self.device.clone()),
            ("threads", self.threads.map(|n| n.to_string())),
            ("seeds", (!seeds.is_empty()).then(|| seeds.join(", "))),
        ];
        lines.extend(self.settings.iter().map(|(name, value)| (name.as_str(), Some(value.clone()))));
        let mut out: String = lines
            .iter()
            .filter_map(|(name, value)| Some(format!("- {name}: {}\n", value.as_ref()?)))
            .collect();
        for model in &self.models {
            out += &format!("- model: {}, {} bytes, SHA-256 `{}`\n", model.name, model.bytes, model.sha256);
        }
        out
    }
}

fn git_state(checkout: Option<&Path>) -> Option<GitState> {
    if let Ok(commit) = std::env::var("BREAKERS_COMMIT") {
        return Some(GitState { commit, dirty: false });
    }
    let folder = checkout?.to_str()?;
    let commit = output("git", &["-C", folder, "rev-parse", "HEAD"])?;
    let changes = output("git", &["-C", folder, "status", "--porcelain", "--untracked-files=no"])?;
    Some(GitState { commit, dirty: !changes.is_empty() })
}

/// What a command prints, if it succeeds.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn operating_system() -> String {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let distribution = read("/etc/os-release").and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="))?;
        Some(line.trim_matches('"').to_owned())
    });
    let kernel = read("/proc/sys/kernel/osrelease");
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    match (distribution, kernel) {
        (Some(distribution), Some(kernel)) => format!("{distribution}, {os} {}, {arch}", kernel.trim()),
        _ => format!("{os}, {arch}"),
    }
}

fn cpu_name() -> Option<String> {
    let value = |text: String, key: &str| {
        let line = text.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    match std::env::consts::OS {
        "linux" => std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| value(text, "model name")),
        "macos" => output("sysctl", &["-n", "machdep.cpu.brand_string"]),
        _ => std::env::var("PROCESSOR_IDENTIFIER").ok(),
    }
}

/// A time as `2026-01-31T23:59:59Z`.
fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // There are 146,097 days in 400 years. Counting years from March 1st makes the leap day the last day of
    // its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_of_known_seconds() {
        // Right column: date -u -d @seconds +%FT%TZ.
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(date(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn this_machine_is_described() {
        let here = Provenance::collect(None);
        assert_eq!(here.version, env!("CARGO_PKG_VERSION"));
        assert!(here.os.contains(std::env::consts::ARCH), "{}", here.os);
        assert!(!here.command[0].contains('/'), "{:?}", here.command);
        assert!(here.date.starts_with("20") && here.date.ends_with('Z'), "{}", here.date);
    }

    #[test]
    fn a_folder_without_checkout_has_no_commit() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(git_state(Some(folder.path())), None);
    }
}
