//! The program `breakers`: local language models from the command line.

mod batch;
mod engine;
mod form;
mod heap;
mod optimize;
mod serve;
mod stage;

use std::process::ExitCode;

use breakers_cli::{bench, generate, models, print, quantize, run};
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use self::batch::BatchCommand;
use self::form::FormArgs;
use self::optimize::OptimizeArgs;
use self::serve::ServeArgs;
use self::stage::StageArgs;

/// Local language models: fetch, run, measure, quantize.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
// A command line is parsed only once, so the enum's size does not matter.
#[allow(clippy::large_enum_variant)]
enum Command {
    /// Answer a prompt, given or piped; without one, start a chat.
    Run {
        #[command(flatten)]
        run: generate::RunArgs,
        #[command(flatten)]
        form: FormArgs,
    },
    /// Chat, with one message per line; Ctrl-C ends an answer.
    Chat {
        #[command(flatten)]
        chat: generate::ChatArgs,
        #[command(flatten)]
        form: FormArgs,
    },
    /// Serve a model over HTTP, in OpenAI's protocol, until Ctrl-C.
    Serve(ServeArgs),
    /// Run some of a model's layers for `breakers serve --stage` in another process, until Ctrl-C.
    Stage(StageArgs),
    /// Have a server answer requests when it has time, one at a time or from a file.
    #[command(subcommand)]
    Batch(BatchCommand),
    /// List models and data sets, and which of them are on this disk.
    #[command(visible_alias = "ls")]
    List(models::ListArgs),
    /// Fetch models or data sets by name.
    Pull(models::PullArgs),
    /// Remove models or data sets from this disk.
    Rm(models::RemoveArgs),
    /// Write a model's file with its matrices in smaller formats.
    Quantize(quantize::QuantizeArgs),
    /// Quantize a model that a server serves, compare the two, and let the new one answer: first some of the
    /// requests, then all.
    Optimize(OptimizeArgs),
    /// Measure a model's speed on prompts and in decoding.
    Bench(bench::BenchArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    run(|| match &command {
        Command::Run { run, form } => generate::run(run, &|loaded, template| form.of(loaded, template)),
        Command::Chat { chat, form } => generate::chat(chat, &|loaded, template| form.of(loaded, template)),
        Command::Serve(arguments) => arguments.run(),
        Command::Stage(arguments) => arguments.run(),
        Command::Batch(command) => command.run(),
        Command::List(arguments) => models::list(arguments),
        Command::Pull(arguments) => models::pull(arguments),
        Command::Rm(arguments) => models::remove(arguments),
        Command::Quantize(arguments) => quantize::quantize(arguments),
        Command::Optimize(arguments) => arguments.run(),
        Command::Bench(arguments) => bench::bench(arguments),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "breakers", &mut script);
            print(&String::from_utf8_lossy(&script))?;
            Ok(ExitCode::SUCCESS)
        }
    })
}
