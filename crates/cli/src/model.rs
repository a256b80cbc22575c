//! Models by name or path.

use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use breakers_backend::device;
use breakers_cpu::{self as cpu, pool};
use breakers_eval::{ModelFile, Provenance};
use breakers_hub::{FetchOptions, Hub};
use breakers_model::{LoadOptions, Model};
use sha2::{Digest as _, Sha256};

use super::input::at_home;
use super::{Error, FetchBar, Result};

/// Flags that choose a model and what it runs on.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelArgs {
    /// Model: smollm2-135m, gemma3-270m, qwen2.5-coder-0.5b, qwen2.5-coder-1.5b, or the path of a GGUF file.
    #[arg(short, long, default_value = "smollm2-135m", value_name = "NAME|PATH")]
    pub model: String,
    /// A file of matrices that replace the model's, in formats of our own, as written by `quantize --out
    /// FILE.safetensors`.
    #[arg(long, value_name = "FILE")]
    pub matrices: Option<PathBuf>,
    /// Threads of the kernels [default: all hardware threads].
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,
    /// The most tokens in a conversation, up to what the model was trained for [default: that many].
    #[arg(short, long, visible_alias = "ctx-size", value_name = "N")]
    pub ctx: Option<usize>,
    /// Device: cpu (also called flex), wgpu, vulkan, cuda or metal, with a number if there are several
    /// (cuda:1). All but flex need the feature of the same name.
    #[arg(long, default_value = "flex")]
    pub device: String,
    /// Instruction set of the CPU kernels, for measurements: scalar, avx2, avx512, neon.
    #[arg(long, hide = true)]
    pub isa: Option<String>,
    /// The layers to load, where others are in other processes.
    #[arg(skip)]
    pub layers: Option<Range<usize>>,
}

/// A loaded model, and where it came from.
#[derive(Debug)]
pub struct LoadedModel {
    /// The model.
    pub model: Model,
    /// The name or path that the user gave.
    pub name: String,
    /// The hash in the catalog, for models that are listed there.
    pinned: Option<String>,
}

impl ModelArgs {
    /// Fetches the model if necessary and loads it; progress goes to standard error.
    ///
    /// # Errors
    /// [`Error::Usage`] for flags that this build or machine cannot obey; the hub's and the model's own.
    pub fn load(&self) -> Result<LoadedModel> {
        self.load_with(&self.model, self.matrices.as_deref(), self.layers.clone())
    }

    /// Fetches and loads another model, to run on the same device.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_other(&self, name: &str) -> Result<LoadedModel> {
        self.load_with(name, None, None)
    }

    /// Fetches and loads the model, with matrices replaced by those of another file.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_under(&self, matrices: &Path) -> Result<LoadedModel> {
        self.load_with(&self.model, Some(matrices), None)
    }

    fn load_with(
        &self,
        name: &str,
        matrices: Option<&Path>,
        layers: Option<Range<usize>>,
    ) -> Result<LoadedModel> {
        let matrices =
            matrices.map(|path| path.to_str().map_or_else(|| path.to_owned(), |p| at_home(p).into()));
        self.apply()?;
        let device = device::open(&self.device).map_err(usage)?;
        let path = resolve(name)?;
        let options = LoadOptions { matrices, max_context: self.ctx, layers, ..LoadOptions::on(device) };
        let model = Model::load(&path, &options)?;
        Ok(LoadedModel { model, name: name.to_owned(), pinned: pinned_hash(name)? })
    }

    /// Fetches the model's file or folder without loading it.
    ///
    /// # Errors
    /// The hub's own.
    pub fn file(&self) -> Result<PathBuf> {
        resolve(&self.model)
    }

    /// Sets the threads and the instruction set. Loading a model also does this.
    ///
    /// # Errors
    /// [`Error::Usage`] for settings that this machine does not support.
    pub fn apply(&self) -> Result {
        if let Some(threads) = self.threads {
            pool::set_threads(threads).map_err(usage)?;
        }
        if let Some(name) = &self.isa {
            let available = cpu::available();
            let isa = available.iter().find(|isa| isa.to_string().eq_ignore_ascii_case(name));
            let Some(isa) = isa else {
                let known: Vec<String> = available.iter().map(ToString::to_string).collect();
                return Err(Error::Usage(format!("--isa {name}: this machine has {}", known.join(", "))));
            };
            cpu::force(*isa).map_err(usage)?;
        }
        Ok(())
    }

    /// Provenance of a run with these flags and models.
    ///
    /// # Errors
    /// If a model file cannot be read for its hash.
    pub fn provenance(&self, models: &[&LoadedModel]) -> Result<Provenance> {
        let mut provenance = Provenance::collect(Some(Path::new(env!("CARGO_MANIFEST_DIR"))));
        let devices = device::available();
        let device = devices.iter().find(|d| d.name == self.device || d.name == format!("{}:0", self.device));
        provenance.device = Some(match device {
            Some(device) => format!("{} ({})", self.device, device.hardware),
            None => self.device.clone(),
        });
        provenance.isa = Some(cpu::isa().to_string());
        provenance.threads = Some(pool::threads());
        provenance.models = models.iter().map(|m| m.file()).collect::<Result<_>>()?;
        Ok(provenance)
    }
}

impl LoadedModel {
    /// Name, hash and size. A file without a name in the catalog is hashed here.
    fn file(&self) -> Result<ModelFile> {
        let path = self.model.path();
        let sha256 = match &self.pinned {
            Some(hash) => hash.clone(),
            None => sha256(path)?,
        };
        // Only the last part of a path: the rest is specific to one machine.
        let name =
            Path::new(&self.name).file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        Ok(ModelFile { name, sha256, bytes: std::fs::metadata(path)?.len() })
    }
}

fn usage(error: impl std::fmt::Display) -> Error {
    Error::Usage(error.to_string())
}

fn resolve(name: &str) -> Result<PathBuf> {
    match Hub::new()?.resolve(at_home(name), &FetchOptions::from_env()?, &mut FetchBar::new()) {
        Ok(resolved) => Ok(resolved.path),
        Err(error @ (breakers_hub::Error::UnknownName { .. } | breakers_hub::Error::PathNotFound { .. })) => {
            Err(usage(error))
        }
        Err(error) => Err(error.into()),
    }
}

/// The hash that the catalog pins a model's file to.
fn pinned_hash(name: &str) -> Result<Option<String>> {
    let hub = Hub::new()?;
    let entry = hub.entries().iter().find(|entry| entry.name == name);
    Ok(entry.and_then(|entry| entry.files.first()).map(|file| file.sha256.to_string()))
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_hashed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(file.path()).unwrap(), expected);
    }

    #[test]
    fn flags_that_cannot_be_obeyed_are_usage_errors() {
        let arguments = |device: &str, isa: Option<&str>| ModelArgs {
            model: "no-such-model".to_owned(),
            matrices: None,
            threads: None,
            ctx: None,
            device: device.to_owned(),
            isa: isa.map(str::to_owned),
            layers: None,
        };
        for arguments in
            [arguments("warp-drive", None), arguments("flex", Some("mmx")), arguments("flex", None)]
        {
            assert!(matches!(arguments.load(), Err(Error::Usage(_))), "{arguments:?}");
        }
    }

    #[test]
    fn names_of_the_catalog_have_pinned_hashes() {
        let hash = pinned_hash("smollm2-135m").unwrap().unwrap();
        assert!(hash.starts_with("b179c952") && hash.len() == 64);
        assert_eq!(pinned_hash("somewhere/model.gguf").unwrap(), None);
    }
}
