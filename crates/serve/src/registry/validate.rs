//! Checks of a model's file before it is loaded. Nothing in the file is trusted.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use breakers_core::{Message, Tool, chain};
use breakers_gguf::{File as Gguf, TensorView};
use breakers_tokenizer::{ChatTemplate, Tokenizer};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{RegistryError, safetensors};

/// The most findings of one kind that are listed one by one.
const LISTED: usize = 8;
/// Values that are decoded at a time when weights are looked at.
const CHUNK: usize = 1 << 16;

/// Kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FileFormat {
    /// A GGUF file.
    Gguf,
    /// A safetensors file.
    Safetensors,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Something will not work as it might be expected to.
    Warning,
    /// The file is not loaded.
    Error,
}

/// Something that was found in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: `file`, `key`, `tensor`, `tokenizer` or `template`.
    pub about: String,
    /// What was found.
    pub message: String,
}

impl Finding {
    /// Whether it forbids to load the file.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// Findings as they are collected.
#[derive(Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, about: &str, message: impl ToString) {
        self.0.push(Finding { severity, about: about.to_owned(), message: message.to_string() });
    }

    pub(super) fn error(&mut self, about: &str, message: impl ToString) {
        self.add(Severity::Error, about, message);
    }

    pub(super) fn warn(&mut self, about: &str, message: impl ToString) {
        self.add(Severity::Warning, about, message);
    }

    /// Lists some of many.
    fn warn_all(&mut self, about: &str, what: &str, all: &[String]) {
        if all.is_empty() {
            return;
        }
        let some = all.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = match all.len().saturating_sub(LISTED) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        self.warn(about, format!("{what}: {some}{more}"));
    }
}

/// The hash and the size of a file.
pub(super) fn hash(path: &Path) -> Result<(String, u64), RegistryError> {
    let failed = |source| RegistryError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer).map_err(failed)?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        bytes += n as u64;
    }
    let hash = hash.finalize().iter().fold("sha256:".to_owned(), |out, byte| format!("{out}{byte:02x}"));
    Ok((hash, bytes))
}

/// What kind of file it is: GGUF says so in its first bytes, and safetensors has none of its own.
pub(super) fn format_of(path: &Path) -> Result<FileFormat, RegistryError> {
    let failed = |source| RegistryError::Read { path: path.to_owned(), source };
    let mut magic = Vec::new();
    File::open(path).and_then(|file| file.take(4).read_to_end(&mut magic)).map_err(failed)?;
    let is_named = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("safetensors"));
    Ok(if is_named && magic != breakers_gguf::MAGIC { FileFormat::Safetensors } else { FileFormat::Gguf })
}

/// Everything that is wrong or odd about a file.
///
/// # Errors
/// [`RegistryError::Read`] if it cannot be read; what its bytes are is a finding.
pub(super) fn check(path: &Path, format: FileFormat) -> Result<Vec<Finding>, RegistryError> {
    let mut findings = Findings::default();
    match format {
        FileFormat::Gguf => gguf(path, &mut findings)?,
        FileFormat::Safetensors => safetensors::check(path, &mut findings)?,
    }
    findings.0.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(findings.0)
}

/// Beginnings of keys that the specification and llama.cpp define, beside that of the architecture.
const KNOWN: [&str; 6] = ["general", "tokenizer", "quantize", "split", "adapter", "breakers"];

fn gguf(path: &Path, findings: &mut Findings) -> Result<(), RegistryError> {
    let file = match Gguf::open(path) {
        Ok(file) => file,
        Err(breakers_gguf::Error::Io { path, source }) => return Err(RegistryError::Read { path, source }),
        Err(error) => {
            findings.error("file", chain(&error, ": "));
            return Ok(());
        }
    };
    let metadata = file.metadata();
    let architecture = match metadata.require_str("general.architecture") {
        Ok(name) => Some(name),
        Err(error) => {
            findings.error("key", chain(&error, ": "));
            None
        }
    };
    let unknown: Vec<String> = metadata
        .iter()
        .map(|(key, _)| key)
        .filter(|key| {
            let space = key.split('.').next().unwrap_or_default();
            !KNOWN.contains(&space) && Some(space) != architecture
        })
        .map(|key| format!("{key:.80}"))
        .collect();
    findings.warn_all("key", "keys that nothing reads", &unknown);
    if file.tensors().len() == 0 {
        findings.error("tensor", "the file has no tensors");
    }
    let bad: Vec<String> =
        file.tensors().filter(|tensor| !is_finite(tensor)).map(|t| t.name().to_owned()).collect();
    for name in bad.iter().take(LISTED) {
        findings.error("tensor", format!("{name:?} has values that are no finite numbers"));
    }
    if bad.len() > LISTED {
        findings.error("tensor", format!("{} more tensors have such values", bad.len() - LISTED));
    }
    if let Err(error) = Tokenizer::from_gguf(&file) {
        findings.error("tokenizer", chain(&error, ": "));
    }
    match ChatTemplate::from_gguf(&file) {
        Ok(Some(found)) => template(&found, findings),
        Ok(None) => findings.warn("template", "there is no chat template: conversations are refused"),
        Err(error) => findings.error("template", chain(&error, ": ")),
    }
    Ok(())
}

/// Whether all values of a tensor are numbers. Its pages are given back to the system as they are read.
fn is_finite(tensor: &TensorView<'_>) -> bool {
    let (block_size, block_bytes) = (tensor.format().block_size(), tensor.format().block_bytes());
    // Rows are whole blocks, so that they can be read block by block, however long they are.
    let n_blocks = (CHUNK / block_size).max(1);
    let mut values = vec![0.0f32; n_blocks * block_size];
    for (i, bytes) in tensor.bytes().chunks(n_blocks * block_bytes).enumerate() {
        let values = &mut values[..bytes.len() / block_bytes * block_size];
        let is_decoded = tensor.format().decode_row(bytes, values).is_ok();
        let begin = i * n_blocks * block_bytes;
        tensor.advise_done_with(begin..begin + bytes.len());
        if !is_decoded || values.iter().any(|x| !x.is_finite()) {
            return false;
        }
    }
    true
}

fn template(template: &ChatTemplate, findings: &mut Findings) {
    if template.ignores_messages() {
        findings.warn("template", "the chat template does not look at the conversation");
    }
    // Templates that were made to run code on other servers; ours has no objects of Python.
    let source = template.source();
    let names: BTreeSet<String> = source
        .match_indices("__")
        .filter_map(|(at, _)| {
            let rest = source[at + 2..].split("__").next()?;
            let is_name =
                (1..=40).contains(&rest.len()) && rest.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            is_name.then(|| format!("__{rest}__"))
        })
        .filter(|name| source.contains(name.as_str()))
        .collect();
    findings.warn_all(
        "template",
        "the chat template names inner parts of Python",
        &names.into_iter().collect::<Vec<_>>(),
    );
    let probe = [Message::user("Hello")];
    match breakers_core::ChatFormat::render(template, &probe, &[] as &[Tool]) {
        Ok(prompt) if !prompt.contains("Hello") => {
            findings.warn("template", "the chat template leaves out what the user says");
        }
        Ok(_) => {}
        Err(error) => {
            let error = chain(&*error, ": ");
            findings.warn(
                "template",
                format!("the chat template refuses a conversation of one message: {error}"),
            );
        }
    }
}
