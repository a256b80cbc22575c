//! The server as its users meet it: clients that others wrote, and its page in a browser.
//!
//! The scripts are in `benches`, the versions of the clients in `benches/clients`. What they need is
//! installed in the build folder. What the machine lacks is skipped and said; `BREAKERS_REQUIRE_CLIENTS=1`
//! makes it a failure.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::{Result, fetch, workspace};

/// What is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Python's clients.
    Python,
    /// Node's clients.
    Node,
    /// The page in Chromium, with models that follow a script.
    Page,
    /// The page in Chromium, with `breakers serve` and a real model.
    Model,
}

/// What to check, and with what.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Only these parts [default: all].
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// The program `breakers` [default: built here, with the release profile].
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Write a picture of the page with a real model.
    #[arg(long, value_name = "FILE.png")]
    screenshot: Option<PathBuf>,
}

/// Python's packages that belong together: a list in `benches/clients`, and those of them that
/// `clients_frameworks.py` must find.
const SETS: [(&str, &[&str]); 3] = [
    ("newest", &["langchain-openai", "litellm", "openai-agents", "pydantic-ai-slim"]),
    ("instructor", &["instructor"]),
    ("first", &[]),
];

/// The key of the server that clients talk to.
const KEY: &str = "secret";

/// What a machine lacks.
struct Missing(String);

/// Runs a part, unless the machine lacks what it needs.
type Attempt = Result<std::result::Result<(), Missing>>;

pub(crate) fn run(options: &Options) -> Result {
    let folder = workspace::target().join("serving");
    let run = folder.join("run");
    if run.exists() {
        std::fs::remove_dir_all(&run)?;
    }
    std::fs::create_dir_all(&run)?;
    let examples = Examples::build()?;
    let wants = |part| options.only.is_empty() || options.only.contains(&part);
    let mut skipped = Vec::new();
    let mut take = |part: Part, work: &dyn Fn() -> Attempt| -> Result {
        if wants(part)
            && let Err(Missing(reason)) = work()?
        {
            if std::env::var("BREAKERS_REQUIRE_CLIENTS").is_ok_and(|value| value == "1") {
                return Err(format!("{part:?}: {reason}").into());
            }
            println!("{part:?}: SKIPPED: {reason}");
            skipped.push(format!("{part:?}: {reason}"));
        }
        Ok(())
    };
    take(Part::Python, &|| python(&folder, &examples))?;
    take(Part::Node, &|| node(&folder, &examples))?;
    take(Part::Page, &|| page(&folder, &examples))?;
    take(Part::Model, &|| model(&folder, options))?;
    std::fs::remove_dir_all(&run)?;
    for reason in skipped {
        println!("NOT CHECKED: {reason}");
    }
    Ok(())
}

/// Servers without weights.
struct Examples {
    folder: PathBuf,
}

impl Examples {
    fn build() -> Result<Self> {
        let mut build = workspace::cargo();
        build.args(["build", "--package", "breakers-serve", "--features", "batches,registry"]);
        workspace::run(build.args(["--example", "scripted", "--example", "registry"]))?;
        Ok(Self { folder: workspace::target().join("debug/examples") })
    }

    /// A server whose answers are known; without a key if it is empty.
    fn scripted(&self, key: &str, data: &Path) -> Result<Server> {
        Server::start(Command::new(self.folder.join("scripted")).args(["127.0.0.1:0", key]).arg(data))
    }

    /// A server with two versions of a model, `one.gguf` and `two.gguf`.
    fn registry(&self, data: &Path) -> Result<Server> {
        std::fs::create_dir_all(data)?;
        Server::start(Command::new(self.folder.join("registry")).arg(data).arg("127.0.0.1:0"))
    }
}

/// A server that runs until this is dropped.
struct Server {
    child: Child,
    /// `http://` and the address.
    url: String,
}

impl Server {
    /// Starts a program and waits until it says where it listens.
    fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("cannot start {name}: {error}"))?;
        let output = child.stderr.take();
        let mut server = Self { child, url: String::new() };
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            // Read to the end, or the server would wait for a reader.
            for line in output
                .into_iter()
                .flat_map(|output| BufReader::new(output).lines())
                .map_while(std::result::Result::ok)
            {
                match url_in(&line) {
                    Some(url) => drop(sender.send(url)),
                    None => eprintln!("  {line}"),
                }
            }
        });
        server.url = receiver
            .recv_timeout(Duration::from_secs(120))
            .map_err(|_| format!("{name} does not say where it listens"))?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address in a line that says where a server listens.
fn url_in(line: &str) -> Option<String> {
    let url = line.strip_prefix("listening on ")?;
    Some(url.strip_suffix("/v1").unwrap_or(url).to_owned())
}

/// Whether a program can be started.
fn is_there(program: impl AsRef<OsStr>) -> bool {
    let mut version = Command::new(program);
    version.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

/// Runs a command that installs something; it fails where there is no network, for example.
fn install(command: &mut Command) -> std::result::Result<(), Missing> {
    workspace::run(command).map_err(|error| Missing(error.to_string()))
}

fn script(name: &str) -> PathBuf {
    workspace::root().join("benches").join(name)
}

fn python(folder: &Path, examples: &Examples) -> Attempt {
    if !is_there("python3") {
        return Ok(Err(Missing("python3 is not installed".to_owned())));
    }
    for (set, needed) in SETS {
        let python = match environment(folder, set)? {
            Ok(python) => python,
            Err(missing) => return Ok(Err(missing)),
        };
        // Lists of files and batches begin empty.
        let server = examples.scripted(KEY, &folder.join("run").join(set))?;
        let url = format!("{}/v1", server.url);
        let command = |name: &str| {
            let mut command = Command::new(&python);
            command.arg(script(name)).args(["--url", &url, "--key", KEY]);
            command
        };
        workspace::run(&mut command("clients_openai.py"))?;
        if !needed.is_empty() {
            workspace::run(command("clients_frameworks.py").arg("--need").args(needed))?;
        }
    }
    Ok(Ok(()))
}

/// The Python with a set's packages, which are installed if they are not those of its list.
fn environment(folder: &Path, set: &str) -> Result<std::result::Result<PathBuf, Missing>> {
    let list = script("clients").join(format!("{set}.txt"));
    let wanted = std::fs::read_to_string(&list)?;
    let place = folder.join(format!("python-{set}"));
    let (python, stamp) = (place.join("bin/python"), place.join("installed.txt"));
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(Ok(python));
    }
    if place.exists() {
        std::fs::remove_dir_all(&place)?;
    }
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(&list);
    let installed =
        install(Command::new("python3").args(["-m", "venv"]).arg(&place)).and_then(|()| install(&mut pip));
    if let Err(missing) = installed {
        return Ok(Err(missing));
    }
    std::fs::write(stamp, wanted)?;
    Ok(Ok(python))
}

/// The folder with Node's packages, which are installed if they are not those of `benches/clients`.
fn packages(folder: &Path) -> Result<std::result::Result<PathBuf, Missing>> {
    for program in ["node", "npm"] {
        if !is_there(program) {
            return Ok(Err(Missing(format!("{program} is not installed"))));
        }
    }
    let wanted = std::fs::read_to_string(script("clients/package.json"))?;
    let place = folder.join("node");
    let stamp = place.join("installed.json");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(Ok(place));
    }
    if place.exists() {
        std::fs::remove_dir_all(&place)?;
    }
    std::fs::create_dir_all(&place)?;
    std::fs::write(place.join("package.json"), &wanted)?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]);
    if let Err(missing) = install(npm.current_dir(&place)) {
        return Ok(Err(missing));
    }
    std::fs::write(stamp, wanted)?;
    Ok(Ok(place))
}

fn node(folder: &Path, examples: &Examples) -> Attempt {
    let place = match packages(folder)? {
        Ok(place) => place,
        Err(missing) => return Ok(Err(missing)),
    };
    let server = examples.scripted(KEY, &folder.join("run/node"))?;
    let mut command = Command::new("node");
    command.arg(script("clients_openai.mjs")).arg(format!("{}/v1", server.url)).arg(KEY);
    workspace::run(command.current_dir(place))?;
    Ok(Ok(()))
}

/// The command that drives the page of a server.
fn browser(folder: &Path) -> Result<std::result::Result<impl Fn(&Server) -> Command + use<>, Missing>> {
    let place = match packages(folder)? {
        Ok(place) => place,
        Err(missing) => return Ok(Err(missing)),
    };
    // A browser that is named is used, or none.
    let names = match std::env::var_os("CHROMIUM") {
        Some(given) => vec![given],
        None => ["chromium", "chromium-browser", "google-chrome"].map(Into::into).to_vec(),
    };
    let Some(chromium) = names.iter().find_map(|name| find_program(name)) else {
        return Ok(Err(Missing(format!(
            "none of {names:?} is installed; the variable CHROMIUM may name a Chromium"
        ))));
    };
    Ok(Ok(move |server: &Server| {
        let mut command = Command::new("node");
        command.arg(script("page.mjs")).arg(&server.url).current_dir(&place).env("CHROMIUM", &chromium);
        command
    }))
}

/// The path of a program, which the script's library needs.
fn find_program(name: &OsStr) -> Option<PathBuf> {
    // Joined to any folder, an absolute path is itself.
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

fn page(folder: &Path, examples: &Examples) -> Attempt {
    let browser = match browser(folder)? {
        Ok(browser) => browser,
        Err(missing) => return Ok(Err(missing)),
    };
    let server = examples.scripted("", &folder.join("run/page"))?;
    workspace::run(&mut browser(&server))?;
    let server = examples.registry(&folder.join("run/registry"))?;
    workspace::run(browser(&server).args(["one.gguf", "two.gguf", "--only", "models"]))?;
    Ok(Ok(()))
}

fn model(folder: &Path, options: &Options) -> Attempt {
    let browser = match browser(folder)? {
        Ok(browser) => browser,
        Err(missing) => return Ok(Err(missing)),
    };
    let program = match &options.program {
        Some(program) => program.clone(),
        None => {
            // The whole workspace, or Burn would be built with another set of features.
            workspace::run(workspace::cargo().args([
                "build",
                "--release",
                "--workspace",
                "--bin",
                "breakers",
            ]))?;
            workspace::target().join("release/breakers")
        }
    };
    const NAME: &str = "smollm2-135m";
    let present = std::env::var_os("BREAKERS_TEST_MODELS").map(PathBuf::from);
    let models = match present.filter(|models| models.join(format!("{NAME}.gguf")).exists()) {
        Some(models) => models,
        None => fetch::fetch(&[NAME])?,
    };
    // Copies: a registry takes no links. The second differs in its name, and so is another version.
    let run = folder.join("run/model");
    std::fs::create_dir_all(&run)?;
    let mut bytes = std::fs::read(models.join(format!("{NAME}.gguf")))?;
    std::fs::write(run.join("first.gguf"), &bytes)?;
    rename(&mut bytes)?;
    std::fs::write(run.join("second.gguf"), bytes)?;
    let mut serve = Command::new(program);
    serve.arg("serve").arg(run.join("first.gguf")).args(["--alias", NAME, "--port", "0"]);
    serve.arg("--registry").arg(run.join("registry.db")).arg("--models-dir").arg(&run);
    let server = Server::start(&mut serve)?;
    let mut command = browser(&server);
    command.args(["first.gguf", "second.gguf"]);
    if let Some(screenshot) = &options.screenshot {
        command.arg("--screenshot").arg(std::path::absolute(screenshot)?);
    }
    workspace::run(&mut command)?;
    Ok(Ok(()))
}

/// Changes the first letter of the name in a GGUF file.
fn rename(file: &mut [u8]) -> Result {
    const KEY: &[u8] = b"general.name";
    let at = file.windows(KEY.len()).position(|window| window == KEY);
    // The key is followed by the type (4 bytes) and the length of the text (8).
    let letter = at.and_then(|at| file.get_mut(at + KEY.len() + 12)).ok_or("the file has no name")?;
    *letter = if *letter == b'X' { b'Y' } else { b'X' };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_server_listens() {
        assert_eq!(url_in("listening on http://127.0.0.1:80/v1").as_deref(), Some("http://127.0.0.1:80"));
        assert_eq!(url_in("listening on http://[::1]:8080").as_deref(), Some("http://[::1]:8080"));
        assert_eq!(url_in("note: listening on nothing"), None);
    }

    #[test]
    fn one_letter_makes_another_version() {
        let mut file = b"GGUF general.name\x08\0\0\0\x03\0\0\0\0\0\0\0Xenrest".to_vec();
        rename(&mut file).unwrap();
        assert!(file.ends_with(b"Yenrest") && file.starts_with(b"GGUF general.name\x08"));
        assert!(rename(&mut b"GGUF".to_vec()).is_err());
    }

    #[test]
    fn versions_are_exact() {
        let mut n = 0;
        for (set, needed) in SETS {
            let list = std::fs::read_to_string(script("clients").join(format!("{set}.txt"))).unwrap();
            let lines: Vec<&str> = list.lines().filter(|line| !line.starts_with('#')).collect();
            assert!(
                lines
                    .iter()
                    .all(|line| line.split_once("==").is_some_and(|(_, version)| version.contains('.')))
            );
            for name in needed {
                assert!(lines.iter().any(|line| line.starts_with(name)), "{set}: {name}");
            }
            n += lines.len();
        }
        let npm = std::fs::read_to_string(script("clients/package.json")).unwrap();
        let npm: serde_json::Value = serde_json::from_str(&npm).unwrap();
        for (name, version) in npm["dependencies"].as_object().unwrap() {
            let version = version.as_str().unwrap();
            assert!(
                version.split('.').count() == 3 && version.starts_with(|c: char| c.is_ascii_digit()),
                "{name}"
            );
            n += 1;
        }
        assert!(n >= 12, "{n}");
    }
}
