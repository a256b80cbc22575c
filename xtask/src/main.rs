//! Chores of the workspace: `cargo xtask --help`.
#![allow(clippy::print_stdout)] // A command-line program.

mod api;
mod arrows;
mod bench;
mod check;
mod cuda;
mod docs;
mod exact;
mod fetch;
mod gpu;
mod licenses;
mod lossless;
mod pages;
mod peer;
mod programs;
mod serving;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What a chore returns: an error is shown with its causes.
type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
#[command(about = "Checks, benchmarks and other chores of the workspace")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Check what the compiler does not: dependency arrows, features, licenses, metadata,
    /// links, words, comments.
    Check {
        /// Also run the checks that take too long for every change: the book, all models, clients and the
        /// page of the server, the peer, a real CUDA build.
        #[arg(long)]
        full: bool,
    },
    /// Compile each crate on its own without its default features.
    Alone {
        /// Also the crates that need Burn: minutes for each set of features.
        #[arg(long)]
        all: bool,
    },
    /// Fetch models and print the folder that `BREAKERS_TEST_MODELS` should name.
    Fetch {
        /// Names of models; `all` for every one. Default: those that the tests use.
        names: Vec<String>,
    },
    /// Measure speed against llama.cpp: same files, same thread count, in turn.
    Bench(bench::Options),
    /// Compare token ids, log-probabilities and perplexity with llama.cpp's.
    Exact(exact::Options),
    /// Compare speculative with plain decoding over many tokens: every draft length, several thread counts.
    Lossless(lossless::Options),
    /// Check the server with clients that others wrote, and its page in Chromium.
    Serving(serving::Options),
    /// Put Debian's LLVM where the CUDA build looks for its own (for machines without access to GitHub).
    CudaSetup,
    /// Build the examples for CUDA, release profile, gather them in a folder and print the programs' paths.
    CudaBuild {
        /// Link small: identical code folded, relocations packed, symbols stripped.
        #[arg(long)]
        small: bool,
        /// Also build the test programs.
        #[arg(long)]
        tests: bool,
    },
    /// The run book for a GPU: kernel tests, speed and exactness of programs built before, as a report.
    GpuReport(gpu::Options),
    /// Compare the public interface of each crate with its snapshot.
    Api(api::Options),
    /// Build the documentation: the book if mdBook is installed, and the API pages.
    Docs {
        /// The folder for the book.
        #[arg(long, default_value = "target/book")]
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    if let Some(code) = api::as_rustdoc() {
        return code;
    }
    let done = match Arguments::parse().chore {
        Chore::Check { full } => check::run(full),
        Chore::Alone { all } => check::alone(all),
        Chore::Fetch { names } => fetch::run(&names),
        Chore::Bench(options) => bench::run(&options),
        Chore::Exact(options) => exact::run(&options),
        Chore::Lossless(options) => lossless::run(&options),
        Chore::Serving(options) => serving::run(&options),
        Chore::CudaSetup => cuda::setup().map(|folder| println!("{}", folder.display())),
        Chore::CudaBuild { small, tests } => cuda::build(small, tests),
        Chore::GpuReport(options) => gpu::run(&options),
        Chore::Api(options) => api::run(&options),
        Chore::Docs { out } => docs::run(&out),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}
