//! The memory of caches: their own bytes, and how much the process grows.
//!
//! A cache may reuse memory that another one freed, so each is filled in a process of its own: this program
//! runs itself.

use std::process::Command;

use breakers_cli::{Bar, Error, Result, resident_memory};
use breakers_kv_cache::{CacheKind, KvCache};
use breakers_model::Model;
use burn::tensor::{Distribution, Tensor};
use serde_json::{Value, json};

/// Tokens that are appended at a time.
const ROWS: usize = 256;

/// One cache, filled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) n_tokens: usize,
    /// The bytes that the cache reports.
    pub(crate) bytes: usize,
    /// How much the process grew, where the system tells.
    pub(crate) resident: Option<usize>,
}

/// Fills each of the caches in a process of its own.
pub(crate) fn measure(names: &[String], model: &str, n_tokens: usize) -> Result<Vec<Memory>> {
    let bar = Bar::new(names.len(), "caches");
    let measure = |name: &String| {
        bar.doing(name);
        let failed = |reason: String| Error::Usage(format!("--memory-of {name}: {reason}"));
        let program = std::env::current_exe().map_err(|e| failed(e.to_string()))?;
        let n_tokens = n_tokens.to_string();
        let arguments = ["--model", model, "--memory-tokens", &n_tokens, "--memory-of", name];
        let output = Command::new(program).args(arguments).output().map_err(|e| failed(e.to_string()))?;
        bar.step();
        let found: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        let number = |key: &str| found.as_ref()?.get(key)?.as_u64().map(|n| n as usize);
        match (number("tokens"), number("bytes")) {
            (Some(n_tokens), Some(bytes)) => Ok(Memory { n_tokens, bytes, resident: number("resident") }),
            _ => Err(failed(String::from_utf8_lossy(&output.stderr).into_owned())),
        }
    };
    names.iter().map(measure).collect()
}

/// Fills one cache with random keys and values, and prints what [`measure`] reads.
pub(crate) fn fill(model: &Model, kind: &CacheKind, n_tokens: usize) -> Result<Value> {
    let shape = model.cache_shape();
    let wrong = |e: breakers_kv_cache::Error| Error::Usage(format!("--memory-tokens: {e}"));
    let feed = |cache: &mut dyn KvCache, n: usize| -> Result {
        cache.begin(n, None).map_err(wrong)?;
        for (layer, of) in shape.layers.iter().enumerate() {
            let rows = [n, of.n_kv_heads, of.head_dim];
            let [q, k, v] =
                [(); 3].map(|()| Tensor::<3>::random(rows, Distribution::Normal(0.0, 1.0), model.device()));
            cache.attend(layer, q, k, v, 0.1).map_err(wrong)?;
        }
        cache.end().and_then(|()| cache.commit(n)).map_err(wrong)
    };
    // Memory that every step needs for itself is not the cache's. Presses see the prompt in one step, as
    // models feed it.
    let rows = if matches!(kind, CacheKind::Evicting(_)) { n_tokens } else { ROWS.min(n_tokens) };
    let mut cache = kind.make(&shape, model.device()).map_err(wrong)?;
    feed(&mut *kind.make(&shape, model.device()).map_err(wrong)?, ROWS.min(n_tokens))?;
    let before = resident_memory();
    for from in (0..n_tokens).step_by(rows) {
        feed(&mut *cache, rows.min(n_tokens - from))?;
    }
    let resident = resident_memory().zip(before).map(|(after, before)| after.saturating_sub(before));
    Ok(json!({ "tokens": n_tokens, "bytes": cache.bytes(), "resident": resident }))
}
