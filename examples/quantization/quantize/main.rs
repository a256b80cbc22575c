//! Writes a model's file with its matrices in smaller formats.
//!
//! ```sh
//! cargo run --release --example quantize -- --model qwen2.5-coder-0.5b \
//!     --method gptq --bits 4 --text prose.txt --out small.gguf
//! cargo run --release --example quantize -- --model qwen2.5-coder-0.5b \
//!     --job gptq+rotation:Q4_0 --text prose.txt --out small.gguf
//! ```
//! The job is a method (`rtn`, `imatrix`, `awq`, `gptq`, `hqq`), a colon and a format for all matrices of the
//! blocks, `like=FILE` for the formats of another file, or `budget=MB` for the formats that lose least within
//! this many megabytes (`budget=MB:Q3_K+nf4` chooses among these). `rtn` and `hqq` read no text. `+rotation`
//! after the method rotates the hidden states in the weights, and `+online` rotates the inputs of each matrix
//! while the model runs. With `--out NAME.gguf` the file runs here and in llama.cpp. Formats of our own, such
//! as `int4-g128`, `sym3-g64`, `nf4` or `nvfp4`, need `--out NAME.safetensors`, which holds only the matrices
//! that differ from the model's file; other examples lay it over that file with `--matrices`. With `+tie`,
//! embeddings and head that are the same numbers are written once. `,ffn_up=IQ4_NL` after the first format
//! gives single matrices another one. After an interruption, the same command goes on where it stopped.

use std::process::ExitCode;

use breakers_cli::quantize::{QuantizeArgs, quantize};
use breakers_cli::run;
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
