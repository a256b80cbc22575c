//! Peers in Python, through `benches/peer_vectors.py`.

use std::path::Path;
use std::process::Command;

use breakers_cli::{Error, Result};
use serde_json::Value;

use crate::corpus::Corpus;
use crate::engines::{BUILD_EFFORT, Engine, LINKS, Measured};

/// Runs the peers that this Python has; the second list names those that it lacks.
pub(crate) fn measure(
    python: &str,
    engines: &str,
    corpus: &Corpus,
    repeat: usize,
    slow_queries: usize,
) -> Result<(Vec<Engine>, Vec<String>)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/peer_vectors.py");
    let out = tempfile::NamedTempFile::new()?;
    let status = Command::new(python)
        .arg(script)
        .args(["--engines", engines, "--base"])
        .arg(&corpus.files[0])
        .arg("--queries")
        .arg(&corpus.files[1])
        .arg("--out")
        .arg(out.path())
        .args(["--repeat", &repeat.to_string(), "--slow-queries", &slow_queries.to_string()])
        .args(["--links", &LINKS.to_string(), "--build-effort", &BUILD_EFFORT.to_string()])
        .status()?;
    if !status.success() {
        return Err(Error::Usage(format!(
            "the peers' {python} ended with {status}; it needs numpy, hnswlib, faiss-cpu, usearch, sqlite-vec, apsw and \
             qdrant-edge-py from PyPI (--python names another one, --peers none leaves them out)"
        )));
    }
    let report: Value = serde_json::from_slice(&std::fs::read(out.path())?)?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let numbers = |value: &Value| list(value).iter().filter_map(Value::as_f64).collect::<Vec<_>>();
    let engines = list(&report["engines"]);
    let engines = engines.iter().map(|engine| Engine {
        name: engine["name"].as_str().unwrap_or_default().to_owned(),
        ours: false,
        build_s: engine["build_s"].as_f64().unwrap_or(f64::NAN),
        bytes: engine["bytes"].as_u64(),
        settings: list(&engine["points"])
            .iter()
            .map(|point| Measured {
                effort: point["effort"].as_u64().unwrap_or_default() as usize,
                qps: numbers(&point["qps"]),
                ids: list(&point["ids"])
                    .iter()
                    .map(|ids| list(ids).iter().filter_map(Value::as_u64).collect())
                    .collect(),
            })
            .collect(),
    });
    let missing = report["missing"].as_object().into_iter().flatten();
    Ok((engines.collect(), missing.map(|(name, why)| format!("{name}: {why}")).collect()))
}
