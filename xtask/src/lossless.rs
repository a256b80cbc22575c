//! Speculation against plain decoding over many tokens: every draft length, several thread counts.

use std::path::PathBuf;

use crate::peer::Examples;
use crate::{Result, fetch, workspace};

/// What to compare.
#[derive(clap::Args, Clone)]
pub(crate) struct Options {
    /// Name of the model.
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// A draft model to compare in addition to n-grams.
    #[arg(long)]
    draft: Option<String>,
    /// Numbers of threads.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// Draft lengths, from 1 to this.
    #[arg(long, default_value_t = 16)]
    max_length: usize,
    /// Tokens of each text at most.
    #[arg(long, default_value_t = 320)]
    max_tokens: usize,
    /// The folder for reports.
    #[arg(long, default_value = "target/reports/lossless")]
    out: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result {
    let examples = Examples::build()?;
    let names: Vec<&str> =
        std::iter::once(&options.model).chain(&options.draft).map(String::as_str).collect();
    let folder = fetch::fetch(&names)?;
    let path = |name: &str| folder.join(format!("{name}.gguf")).to_string_lossy().into_owned();
    let (model, draft) = (path(&options.model), options.draft.as_deref().map(path));
    let (mut n_tokens, mut n_texts) = (0, 0);
    for &threads in &options.threads {
        for length in 1..=options.max_length {
            let out = workspace::root().join(&options.out).join(format!("threads-{threads}-length-{length}"));
            let (threads, length) = (threads.to_string(), length.to_string());
            let (max_tokens, out) = (options.max_tokens.to_string(), out.to_string_lossy().into_owned());
            let mut arguments = vec!["--model", &model, "--threads", &threads, "--draft-length", &length];
            arguments.extend(["--max-tokens", &max_tokens, "--repeat", "1", "--out", &out]);
            if let Some(draft) = &draft {
                arguments.extend(["--draft", draft]);
            }
            // A difference sets the exit code, which is an error here.
            let report = examples.ask("spec_decode", &arguments)?;
            let rows = report["tables"]["speed"]["rows"].as_array().ok_or("a report without table")?;
            for row in rows.iter().filter(|row| row["drafter"] != "plain" && row["prompt"] != "all") {
                n_tokens += row["tokens"].as_u64().ok_or("a row without tokens")?;
                n_texts += 1;
            }
            eprintln!("{threads} threads, length {length}: {n_tokens} tokens so far, all the same");
        }
    }
    println!("{n_tokens} tokens in {n_texts} texts, 0 mismatches");
    Ok(())
}
