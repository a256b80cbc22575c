//! Writes a model's file with its matrices in smaller formats.
//!
//! ```sh
//! cargo run --release --example quantize -- --model qwen2.5-coder-0.5b \
//!     --method gptq --bits 4 --text prose.txt --out small.gguf
//! cargo run --release --example quantize -- --model qwen2.5-coder-0.5b \
//!     --job gptq+rotation:Q4_0 --text prose.txt --out small.gguf
//! ```
//! The job is a method (`rtn`, `imatrix`, `awq`, `gptq`, `hqq`), a colon and a format for all matrices of the
//! blocks, `like=FILE` for the formats of another file, or `budget=MB` for those that lose least within so
//! many megabytes (`budget=MB:Q3_K+nf4` chooses among these). `rtn` and `hqq` read no text. `+rotation`
//! behind the method rotates the hidden states in the weights, `+online` the inputs of each matrix as the
//! model runs. With `--out NAME.gguf` the file runs here and in llama.cpp. Formats of our own, such as
//! `int4-g128`, `sym3-g64`, `nf4` or `nvfp4`, need `--out NAME.safetensors`: what differs from the model's
//! file, which other examples lay over it with `--matrices`. Embeddings and head that are the same numbers
//! are written once with `+tie`; single matrices get other formats by `,ffn_up=IQ4_NL` behind the first.
//! Interrupted, it goes on where it was when the same command is given again.

use std::process::ExitCode;

use breakers::cli::quantize::{QuantizeArgs, quantize};
use breakers::cli::run;
use clap::Parser;

/// Quantizes a model.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    quantize: QuantizeArgs,
}

fn main() -> ExitCode {
    run(|| quantize(&Arguments::parse().quantize))
}
