//! `breakers batch`: requests that a server answers when it has time, one at a time or from a file.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use breakers_cli::{Bar, Error, Result, print, read_text};
use breakers_serve::client::{ChatJob, Client, ClientConfig, JobAnswer, Progress};

/// Commands of `breakers batch`.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum BatchCommand {
    /// Hand in one request, wait for its answer and print it. Requests that come within a short time run
    /// together, and share what their prompts have in common. Made for cron: the request survives restarts,
    /// and with --data a server that is down.
    Submit(SubmitArgs),
    /// Print the answer of a request that was handed in with --no-wait.
    Get(GetArgs),
    /// Run a file of requests in OpenAI's batch form and write their answers.
    Run(RunArgs),
}

/// Which server, and who asks.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// The address of the server's routes.
    #[arg(long, default_value = "http://127.0.0.1:8080/v1", value_name = "URL")]
    url: String,
    /// A file that holds the API key [default: the environment variable BREAKERS_API_KEY].
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Where the server is.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct EndpointArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The folder that `breakers serve` has as its --data, if it runs on this machine: requests wait there
    /// while it is down.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
}

impl ServerArgs {
    fn config(&self) -> Result<ClientConfig> {
        let mut config = ClientConfig::new(&self.url);
        config.key = match &self.key_file {
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|error| Error::Usage(format!("--key-file {}: {error}", file.display())))?;
                Some(text.trim().to_owned())
            }
            None => std::env::var("BREAKERS_API_KEY").ok(),
        };
        Ok(config)
    }

    pub(crate) fn client(&self) -> Result<Client> {
        Ok(Client::new(self.config()?))
    }
}

impl EndpointArgs {
    fn client(&self) -> Result<Client> {
        let mut config = self.server.config()?;
        config.data.clone_from(&self.data);
        Ok(Client::new(config))
    }
}

/// Flags of `breakers batch submit`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SubmitArgs {
    /// The message to answer.
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,
    /// A file that holds the message; - reads standard input.
    #[arg(short = 'f', long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<String>,
    /// A file that holds a whole request, as the endpoint reads it (JSON); - reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_file", "model", "system", "max_tokens", "temperature", "seed"])]
    request: Option<String>,
    /// The route that answers the request.
    #[arg(long, default_value = "/v1/chat/completions", value_name = "PATH", requires = "request")]
    endpoint: String,
    /// The model.
    #[arg(short, long, value_name = "NAME", required_unless_present = "request")]
    model: Option<String>,
    /// Instructions that stand before the message.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The most tokens of the answer.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,
    /// Divide logits by this; 0 always takes the most likely token [default: the server's, 1].
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// The seed of the answer [default: one that belongs to the request].
    #[arg(long, value_name = "SEED", allow_negative_numbers = true)]
    seed: Option<i64>,
    /// Print the ticket at once; `breakers batch get` fetches the answer.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    shown: ShownArgs,
    #[command(flatten)]
    endpoint_args: EndpointArgs,
}

/// Flags of `breakers batch get`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GetArgs {
    /// What `breakers batch submit --no-wait` has printed.
    #[arg(value_name = "TICKET")]
    ticket: String,
    #[command(flatten)]
    shown: ShownArgs,
    #[command(flatten)]
    endpoint_args: EndpointArgs,
}

/// How long to wait for an answer, and how it is shown.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ShownArgs {
    /// How many seconds to wait for the answer. The request goes on afterwards.
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    timeout: u64,
    /// Print the whole answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Flags of `breakers batch run`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// The requests, one in each line.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where to write the answers, in the order of the requests.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Where to write what failed [default: the output's name with .errors at its end].
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
    /// The route that answers the requests.
    #[arg(long, default_value = "/v1/chat/completions", value_name = "PATH")]
    endpoint: String,
    /// The time in which the requests must be answered.
    #[arg(long, default_value = "24h", value_name = "HOURS")]
    window: String,
    #[command(flatten)]
    endpoint_args: EndpointArgs,
}

impl BatchCommand {
    /// Exit code 1 if the request failed, or a line of the file.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        match self {
            Self::Submit(arguments) => arguments.run(),
            Self::Get(arguments) => arguments.run(),
            Self::Run(arguments) => arguments.run(),
        }
    }
}

impl SubmitArgs {
    fn run(&self) -> Result<ExitCode> {
        let client = self.endpoint_args.client()?;
        let ticket = client.submit(&self.endpoint, &self.body()?)?;
        if self.no_wait {
            print(&format!("{}\n", ticket.name))?;
            return Ok(ExitCode::SUCCESS);
        }
        if ticket.is_spooled {
            eprintln!("the server cannot be reached; the request {} waits for it", ticket.name);
        }
        self.shown.show(&client, &ticket.name)
    }

    fn body(&self) -> Result<String> {
        if let Some(file) = &self.request {
            return read_text(file);
        }
        let prompt = match (&self.prompt, &self.prompt_file) {
            (Some(prompt), _) => prompt.clone(),
            (None, Some(file)) => read_text(file)?,
            (None, None) => read_text("-")?,
        };
        let mut job = ChatJob::new(self.model.as_deref().unwrap_or_default(), prompt);
        job.system.clone_from(&self.system);
        (job.max_tokens, job.temperature, job.seed) = (self.max_tokens, self.temperature, self.seed);
        Ok(job.to_json())
    }
}

impl GetArgs {
    fn run(&self) -> Result<ExitCode> {
        self.shown.show(&self.endpoint_args.client()?, &self.ticket)
    }
}

impl ShownArgs {
    /// Waits for an answer and prints it.
    fn show(&self, client: &Client, ticket: &str) -> Result<ExitCode> {
        let answer = client.wait(ticket, Some(Duration::from_secs(self.timeout)))?;
        let failed = answer.status != 200;
        if failed {
            eprintln!("error: {} ({})", answer.error().unwrap_or_default(), answer.status);
        }
        if self.json || !failed {
            print(&self.text(&answer))?;
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn text(&self, answer: &JobAnswer) -> String {
        // What has no text (calls of functions, vectors) is shown whole.
        let text = answer.text().filter(|_| !self.json).unwrap_or_else(|| answer.body.get().to_owned());
        if text.ends_with('\n') { text } else { text + "\n" }
    }
}

impl RunArgs {
    fn run(&self) -> Result<ExitCode> {
        let client = self.endpoint_args.client()?;
        let mut errors = self.output.clone().into_os_string();
        errors.push(".errors");
        let errors = self.errors.clone().unwrap_or_else(|| errors.into());
        let mut bar: Option<Bar> = None;
        let mut show = |progress: &Progress| {
            if progress.total > 0 {
                let bar = bar.get_or_insert_with(|| Bar::new(progress.total, "requests"));
                bar.done(progress.completed + progress.failed);
            }
        };
        let done =
            client.run_batch(&self.file, &self.endpoint, &self.window, &self.output, &errors, &mut show)?;
        drop(bar);
        eprintln!("{} of {} requests have answers: {}", done.completed, done.total, self.output.display());
        if done.failed > 0 {
            eprintln!("{} failed: {}", done.failed, errors.display());
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }
}
