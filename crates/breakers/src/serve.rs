//! `breakers serve`: a model over HTTP.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use breakers_cli::{Error, LoadedModel, Result};
use breakers_core::{BoxError, ChatModel, ModelCard};
use breakers_model::stages::Stage;
use breakers_serve::registry::{FileFormat, Loader, Registry, RegistryConfig, Version};
use breakers_serve::upstreams::{Secret, Upstream, UpstreamNews, UpstreamStatus, UpstreamsConfig};
use breakers_serve::{BatchConfig, Keys, ServeConfig, Server};
use breakers_spec_decode::{SavedPrefixes, SavedPrefixesError};

use crate::engine::EngineArgs;
use crate::{heap, stage};

/// Flags that say something about models, of which a front has none.
const OF_MODELS: [&str; 19] = [
    "name",
    "model",
    "matrices",
    "threads",
    "ctx",
    "device",
    "isa",
    "cache",
    "draft",
    "draft_length",
    "registry",
    "alias",
    "cache_mb",
    "max_mb",
    "max_pass",
    "prefixes",
    "data",
    "stage",
    "tool_format",
];

/// Flags of `breakers serve`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// The model, instead of --model.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    name: Option<String>,
    #[command(flatten)]
    engine: EngineArgs,
    /// The address to listen on. One that other machines can reach needs keys.
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: IpAddr,
    /// The port; 0 takes a free one.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// A database of versions behind names, which is created if there is none: versions are deployed,
    /// compared and rolled back while the server runs (see docs/serving.md). MODEL is then served beside
    /// them, if one is named.
    #[arg(long, value_name = "FILE", requires = "models_dir", conflicts_with_all = ["model", "matrices"])]
    registry: Option<PathBuf>,
    /// The folder of the registry's files.
    #[arg(long, value_name = "FOLDER", requires = "registry")]
    models_dir: Option<PathBuf>,
    /// The name by which clients ask for the model [default: its own, or that of its file].
    #[arg(long, value_name = "NAME")]
    alias: Option<String>,
    /// A folder in which what texts have read is kept over restarts: keys and values, and the tokens that
    /// they are of. It is for the cache f16 or f32 on the CPU.
    #[arg(long, value_name = "FOLDER")]
    prefixes: Option<PathBuf>,
    /// Megabytes that the files in that folder may take.
    #[arg(long, default_value_t = 4000, value_name = "MB", requires = "prefixes", value_parser = clap::value_parser!(u32).range(1..))]
    prefixes_mb: u32,
    /// About how many milliseconds a pass may take while texts are being written: longer prompts are read in
    /// pieces.
    #[arg(long, default_value_t = 80, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    max_pass: u64,
    /// How many texts may wait; further ones are refused [default: four times --max-texts].
    #[arg(long, value_name = "N")]
    max_waiting: Option<usize>,
    /// A key that clients must send; may be given several times. Other users of this machine can see it:
    /// --keys is better.
    #[arg(long, value_name = "KEY", conflicts_with = "keys")]
    api_key: Vec<String>,
    /// A file of keys, or of their hashes, with limits (TOML; see docs/serving.md).
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Let everybody in who can reach the address.
    #[arg(long, conflicts_with_all = ["api_key", "keys"])]
    no_keys: bool,
    /// A name by which clients may call this machine, beside localhost and addresses; may be given several
    /// times.
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// A folder in which files, batches and jobs are kept, and which turns them on. Who may write into it may
    /// hand in jobs without a key.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// How many seconds jobs wait for each other, to share what their prompts have in common.
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS", requires = "data", value_parser = parse_seconds)]
    grace: f64,
    /// The address of a process that runs some of the model's layers (`breakers stage`); may be given several
    /// times. This process runs those before the first of them.
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["registry", "matrices", "prefixes"])]
    stage: Vec<String>,
    /// Serve no model, but pass requests on to this server of OpenAI's protocol (http://HOST:PORT); may be
    /// given several times. Requests go where their beginning has been read before, or to whoever has least
    /// to do.
    #[arg(long, value_name = "URL", conflicts_with_all = OF_MODELS, conflicts_with = "upstreams")]
    upstream: Vec<String>,
    /// The environment variable that holds the key for all --upstream.
    #[arg(long, value_name = "NAME", requires = "upstream")]
    upstream_key_env: Option<String>,
    /// The file that holds the key for all --upstream.
    #[arg(long, value_name = "FILE", requires = "upstream", conflicts_with = "upstream_key_env")]
    upstream_key_file: Option<PathBuf>,
    /// A file of servers instead, with names and keys for each (TOML; see docs/serving.md).
    #[arg(long, value_name = "FILE", conflicts_with_all = OF_MODELS)]
    upstreams: Option<PathBuf>,
}

impl ServeArgs {
    /// Serves until the program is asked to end. Exit code 1 if answers were cut off then.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        heap::tend();
        // What is wrong with flags is told before a model is loaded.
        let config = self.config()?;
        if self.prefixes.is_some() && self.engine.cache_mb == 0 {
            return Err(Error::Usage("--prefixes keeps what --cache-mb keeps, which is 0".to_owned()));
        }
        if self.registry.is_some() && self.name.is_none() && self.alias.is_some() {
            return Err(Error::Usage("--alias names MODEL, and none is given".to_owned()));
        }
        let mut engine = self.engine.clone();
        if let Some(name) = &self.name {
            engine.model.model.clone_from(name);
        }
        if let Some(mut upstreams) = self.upstreams()? {
            upstreams.observer = Some(Arc::new(tell));
            return Self::run_server(Server::new(config).with_upstreams(upstreams));
        }
        let mut server = Server::new(config);
        if self.registry.is_none() || self.name.is_some() {
            let stages = stage::connect(&self.stage)?;
            engine.model.layers = stages.iter().map(|stage| stage.layers().start).min().map(|end| 0..end);
            let loaded = engine.model.load()?;
            let card = engine.card(&loaded, self.alias.as_deref())?;
            server = server.with_model(self.hosted(&engine, loaded, card, stages)?);
        }
        if let (Some(database), Some(folder)) = (&self.registry, &self.models_dir) {
            let config = RegistryConfig::new(database, folder);
            let registry = Registry::open(config, Arc::new(Files(self.clone())))
                .map_err(|error| Error::Usage(error.to_string()))?;
            server = server.with_registry(Arc::new(registry));
        }
        Self::run_server(server)
    }

    fn run_server(server: Server) -> Result<ExitCode> {
        let ended = server.run(|address| eprintln!("listening on http://{address}/v1"))?;
        if ended.n_cut > 0 {
            eprintln!("{} connections were cut off", ended.n_cut);
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn config(&self) -> Result<ServeConfig> {
        let usage = |error: breakers_serve::Error| Error::Usage(error.to_string());
        let mut config = ServeConfig::default();
        config.address = (self.host, self.port).into();
        config.keys = match &self.keys {
            Some(file) => Some(Keys::read(file).map_err(usage)?),
            None if self.api_key.is_empty() => None,
            None => Some(Keys::from_plain(&self.api_key).map_err(usage)?),
        };
        config.allow_no_keys = self.no_keys;
        config.hosts.clone_from(&self.allow_host);
        config.limits.max_texts = self.engine.max_texts;
        config.limits.max_waiting = self.max_waiting.unwrap_or(self.engine.max_texts.saturating_mul(4));
        config.batches = self.data.as_ref().map(|folder| {
            let mut batches = BatchConfig::new(folder);
            batches.grace = Duration::from_secs_f64(self.grace);
            batches
        });
        config.validate().map_err(usage)?;
        Ok(config)
    }

    /// The servers of a front, if this is one.
    fn upstreams(&self) -> Result<Option<UpstreamsConfig>> {
        let usage = |error: breakers_serve::Error| Error::Usage(error.to_string());
        if let Some(file) = &self.upstreams {
            return UpstreamsConfig::read(file).map(Some).map_err(usage);
        }
        if self.upstream.is_empty() {
            return Ok(None);
        }
        let key = match (&self.upstream_key_env, &self.upstream_key_file) {
            (Some(name), _) => Some(Secret::from_env(name).map_err(usage)?),
            (None, Some(file)) => Some(Secret::from_file(file).map_err(usage)?),
            (None, None) => None,
        };
        let upstreams = self.upstream.iter().map(|url| {
            let mut upstream = Upstream::new(url);
            upstream.key.clone_from(&key);
            upstream
        });
        let config = UpstreamsConfig::new(upstreams);
        config.validate().map_err(usage)?;
        Ok(Some(config))
    }

    fn hosted(
        &self,
        engine: &EngineArgs,
        loaded: LoadedModel,
        card: ModelCard,
        stages: Vec<Stage>,
    ) -> Result<Arc<dyn ChatModel>> {
        let mut config = engine.config();
        config.max_pass = Some(Duration::from_millis(self.max_pass));
        let mut engine = engine.engine(loaded, card, stages, config)?;
        if let Some(folder) = &self.prefixes {
            let mut saved = SavedPrefixes::new(folder);
            saved.max_bytes = u64::from(self.prefixes_mb) * 1_000_000;
            let refused = |error: SavedPrefixesError| Error::Usage(format!("--prefixes: {error}"));
            engine = engine.with_saved_prefixes(saved).map_err(refused)?;
        }
        Ok(Arc::new(engine))
    }
}

/// Loads versions of the registry with the flags of this program.
struct Files(ServeArgs);

impl Loader for Files {
    fn load(&self, path: &Path, version: &Version) -> std::result::Result<Arc<dyn ChatModel>, BoxError> {
        if version.format != FileFormat::Gguf {
            return Err("only GGUF files are served".into());
        }
        let mut engine = self.0.engine.clone();
        engine.model.model = path.to_str().ok_or("the path is not UTF-8")?.to_owned();
        let told = |error| match error {
            Error::Usage(message) => message,
            Error::Failed(error) => breakers_core::chain(&*error, ": "),
            error => format!("{error:?}"),
        };
        let loaded = engine.model.load().map_err(told)?;
        let mut card = ModelCard::new(&version.name);
        card.revision = Some(engine.revision(&version.name));
        Ok(self.0.hosted(&engine, loaded, card, Vec::new()).map_err(told)?)
    }
}

/// Prints how the servers of a front are.
fn tell(news: UpstreamNews<'_>) {
    let line = |status: &UpstreamStatus| {
        let reason = status.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
        format!("{} is {}{reason}", status.name, status.condition)
    };
    match news {
        UpstreamNews::Start(all) => {
            for (i, status) in all.iter().enumerate() {
                let models = match status.models.is_empty() {
                    true => "no models".to_owned(),
                    false => status.models.join(", "),
                };
                eprintln!("upstream {}: {} at {}: {models}", i + 1, line(status), status.url);
            }
        }
        UpstreamNews::Changed(status) => eprintln!("{}", line(status)),
        _ => {}
    }
}

fn parse_seconds(text: &str) -> std::result::Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.0..=3600.0).contains(seconds));
    seconds.ok_or_else(|| "expected 0 to 3600".to_owned())
}
