//! The header of a safetensors file, read without the rest of the file.
//!
//! # Source
//! <https://github.com/huggingface/safetensors#format>

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use super::RegistryError;
use super::validate::Findings;

/// The longest header that other readers take.
const MAX_HEADER: u64 = 100_000_000;
/// The most errors that are listed.
const MAX_ERRORS: usize = 8;

/// The entries of an object in their order, with those that are there twice.
struct Entries(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(All)
    }
}

/// What is wrong with a file's header, and with where it says that tensors are.
pub(super) fn check(path: &Path, findings: &mut Findings) -> Result<(), RegistryError> {
    let failed = |source| RegistryError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let mut length = Vec::new();
    (&mut file).take(8).read_to_end(&mut length).map_err(failed)?;
    let Ok(length) = length.try_into().map(u64::from_le_bytes) else {
        findings.error("file", format!("{bytes} bytes are no safetensors file"));
        return Ok(());
    };
    if length > MAX_HEADER || length > bytes.saturating_sub(8) {
        findings.error("file", format!("the header has {length} bytes, the file {bytes}"));
        return Ok(());
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(failed)?;
    match serde_json::from_slice(&header) {
        Ok(entries) => tensors(&entries, bytes - 8 - length, findings),
        Err(error) => findings.error("file", format!("the header is no JSON object: {error}")),
    }
    Ok(())
}

fn tensors(entries: &Entries, n_data: u64, findings: &mut Findings) {
    let mut errors: Vec<(&str, String)> = Vec::new();
    let mut ranges: Vec<(u64, u64, &str)> = Vec::new();
    let mut names: Vec<&str> = entries.0.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    for pair in names.windows(2).filter(|pair| pair[0] == pair[1]) {
        errors.push(("key", format!("{:.80?} is there twice", pair[0])));
    }
    for (name, value) in &entries.0 {
        if name == "__metadata__" {
            if serde_json::from_str::<std::collections::BTreeMap<String, String>>(value.get()).is_err() {
                errors.push(("key", "`__metadata__` is no object of texts".to_owned()));
            }
            continue;
        }
        let info: TensorInfo = match serde_json::from_str(value.get()) {
            Ok(info) => info,
            Err(error) => {
                errors.push(("tensor", format!("{name:.80?}: {error}")));
                continue;
            }
        };
        let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let n_bits = info.shape.iter().try_fold(info.dtype.bitsize(), |n, &dim| n.checked_mul(dim));
        match n_bits {
            None => errors.push(("tensor", format!("{name:.80?}: the shape {:?} is too large", info.shape))),
            Some(n) if !n.is_multiple_of(8) => {
                errors.push(("tensor", format!("{name:.80?}: {n} bits are no whole bytes")));
            }
            Some(n) if end.checked_sub(begin) != Some(n as u64 / 8) => {
                let message = format!(
                    "{name:.80?}: {:?} of {:?} takes {} bytes, the file has them from {begin} to {end}",
                    info.shape,
                    info.dtype,
                    n / 8
                );
                errors.push(("tensor", message));
            }
            Some(_) if end > n_data => {
                errors.push(("tensor", format!("{name:.80?} ends at {end}, the data at {n_data}")));
            }
            Some(_) => ranges.push((begin, end, name)),
        }
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2).filter(|pair| pair[1].0 < pair[0].1) {
        errors.push(("tensor", format!("{:.80?} and {:.80?} overlap", pair[0].2, pair[1].2)));
    }
    if errors.is_empty() {
        let used: u64 = ranges.iter().map(|range| range.1 - range.0).sum();
        if used != n_data {
            errors.push(("file", format!("{} bytes belong to no tensor", n_data - used)));
        }
        if ranges.is_empty() {
            errors.push(("tensor", "the file has no tensors".to_owned()));
        }
    }
    let n_errors = errors.len();
    for (about, message) in errors.into_iter().take(MAX_ERRORS) {
        findings.error(about, message);
    }
    if n_errors > MAX_ERRORS {
        findings.error("file", format!("{} more errors", n_errors - MAX_ERRORS));
    }
}
