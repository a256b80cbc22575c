//! How many schemas of a file are enforced, by ours and by the peers from PyPI.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use breakers_cli::{Bar, Error, Result};
use breakers_core::Tokenizer;
use breakers_eval::{Cell, Column, Report, Table};
use breakers_structured::Compiler;
use breakers_structured::maskbench::{Case, Outcome, Summary, percentile, run};
use serde::Deserialize;
use serde_json::json;

use crate::Arguments;

/// What one engine made of a file of schemas; times in microseconds.
#[derive(Deserialize)]
pub(crate) struct Coverage {
    engine: String,
    schemas: usize,
    compiled: usize,
    refused: usize,
    pub(crate) wrong_accepted: usize,
    wrong_refused: usize,
    mask_mean_us: f64,
    mask_p99_us: f64,
    mask_p99_9_us: f64,
    first_mask_p50_us: f64,
    first_mask_p99_us: f64,
}

/// Measures ours, and the peers if a Python is given.
pub(crate) fn measure(
    arguments: &Arguments,
    file: &Path,
    tokenizer: &(impl Tokenizer + Clone + 'static),
) -> Result<Vec<Coverage>> {
    let mut text = String::new();
    let mut reader = BufReader::new(
        std::fs::File::open(file)
            .map_err(|error| Error::Usage(format!("--schemas {}: {error}", file.display())))?,
    );
    match file.extension().is_some_and(|extension| extension == "gz") {
        true => flate2::read::GzDecoder::new(reader).read_to_string(&mut text)?,
        false => reader.read_to_string(&mut text)?,
    };
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let compiler = Compiler::new(Arc::new(tokenizer.clone()))?;
    let options = arguments.options();
    let bar = Bar::new(lines.len(), "schemas");
    let mut outcomes: Vec<Outcome> = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let case = Case::parse(line).map_err(|error| {
            Error::Usage(format!("--schemas {}, line {}: {error}", file.display(), i + 1))
        })?;
        outcomes.push(run(&compiler, tokenizer, &case, options, true)?);
        bar.step();
    }
    drop(bar);
    let sum: Summary = outcomes.iter().collect();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let mut found = vec![Coverage {
        engine: "breakers".to_owned(),
        schemas: sum.schemas,
        compiled: sum.compiled,
        refused: sum.refused,
        wrong_accepted: sum.wrong_accepted,
        wrong_refused: sum.wrong_refused,
        mask_mean_us: micros(sum.mean_mask()),
        mask_p99_us: micros(percentile(&sum.masks, 0.99)),
        mask_p99_9_us: micros(percentile(&sum.masks, 0.999)),
        first_mask_p50_us: micros(percentile(&sum.first_masks, 0.5)),
        first_mask_p99_us: micros(percentile(&sum.first_masks, 0.99)),
    }];
    if let Some(python) = &arguments.python {
        found.extend(peers(python, &arguments.engines, &text, tokenizer)?);
    }
    Ok(found)
}

/// The peers over the same lines and the same vocabulary; their progress goes to standard error.
fn peers(python: &Path, engines: &str, lines: &str, tokenizer: &impl Tokenizer) -> Result<Vec<Coverage>> {
    let script = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/peer_structured.py"));
    let folder = tempfile::tempdir()?;
    let (schemas, vocabulary) = (folder.path().join("schemas.jsonl"), folder.path().join("vocabulary.json"));
    std::fs::write(&schemas, lines)?;
    let n = u32::try_from(tokenizer.n_tokens()).unwrap_or(u32::MAX);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let tokens: Vec<String> = (0..n).map(|id| hex(tokenizer.token_bytes(id).unwrap_or_default())).collect();
    let controls: Vec<u32> = (0..n).filter(|id| tokenizer.is_control(*id)).collect();
    let ends = tokenizer.end_tokens();
    let mut file = std::fs::File::create(&vocabulary)?;
    write!(file, "{}", json!({ "tokens": tokens, "controls": controls, "ends": ends }))?;
    let mut child = Command::new(python)
        .arg(script)
        .arg("--schemas")
        .arg(&schemas)
        .arg("--vocabulary")
        .arg(&vocabulary)
        .args(["--engines", engines])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Error::Usage(format!("--python {}: {error}", python.display())))?;
    let mut found = Vec::new();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            found.push(serde_json::from_str(&line?)?);
        }
    }
    if !child.wait()?.success() {
        return Err(Error::Usage("--python: the peers ended with an error, see above".to_owned()));
    }
    Ok(found)
}

/// The table of all engines.
pub(crate) fn add_to(report: &mut Report, found: &[Coverage]) -> Result {
    let mut table = Table::new("schemas", "Schemas of the file");
    for column in [
        Column::new("engine"),
        Column::new("schemas"),
        Column::new("compiled"),
        Column::new("refused"),
        Column::new("wrong_accepted"),
        Column::new("wrong_refused"),
        Column::new("mask_mean").unit("us").decimals(1),
        Column::new("mask_p99").unit("us").decimals(0),
        Column::new("mask_p99_9").unit("us").decimals(0),
        Column::new("first_mask_p50").unit("us").decimals(0),
        Column::new("first_mask_p99").unit("us").decimals(0),
    ] {
        table.column(column);
    }
    for c in found {
        let counts = [c.schemas, c.compiled, c.refused, c.wrong_accepted, c.wrong_refused];
        let times =
            [c.mask_mean_us, c.mask_p99_us, c.mask_p99_9_us, c.first_mask_p50_us, c.first_mask_p99_us];
        let counts = counts.map(|count| Cell::Number(count as f64));
        table.row(
            [Cell::from(&*c.engine)].into_iter().chain(counts).chain(times.map(Cell::Number)).collect(),
        )?;
    }
    report.table(table);
    Ok(())
}
