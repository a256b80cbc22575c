//! Finished tensors on disk, until the file is assembled.

use std::fs;
use std::path::{Path, PathBuf};

use breakers_gguf::{Encoding, MatrixFile, QuantizedMatrix, matrix_file};

use crate::Error;

/// A tensor's format, rows and columns.
pub(super) type Shape = (Encoding, [usize; 2]);

/// A folder of finished tensors that belongs to one job.
pub(super) struct Parts {
    folder: PathBuf,
}

impl Parts {
    /// Opens the folder, and clears it unless it is that of a job with the same fingerprint.
    pub(super) fn open(folder: PathBuf, fingerprint: &str) -> Result<Self, Error> {
        let parts = Self { folder };
        let mark = parts.folder.join("job");
        if fs::read_to_string(&mark).is_ok_and(|found| found == fingerprint) {
            return Ok(parts);
        }
        if parts.folder.exists() {
            fs::remove_dir_all(&parts.folder).map_err(|e| io(&parts.folder, e))?;
        }
        fs::create_dir_all(&parts.folder).map_err(|e| io(&parts.folder, e))?;
        // A partial mark counts as that of another job.
        fs::write(&mark, fingerprint).map_err(|e| io(&mark, e))?;
        Ok(parts)
    }

    /// A tensor, if it is there in this format and shape.
    pub(super) fn read(&self, name: &str, expected: Shape) -> Result<Option<QuantizedMatrix>, Error> {
        self.store(name, expected)?.map(|store| Ok(store.matrix(name)?)).transpose()
    }

    /// Whether a tensor is there in this format and shape.
    pub(super) fn has(&self, name: &str, expected: Shape) -> Result<bool, Error> {
        Ok(self.store(name, expected)?.is_some())
    }

    /// The file of a tensor. Partial files, and those of another job, count as missing.
    pub(super) fn store(&self, name: &str, (encoding, shape): Shape) -> Result<Option<MatrixFile>, Error> {
        let path = self.path(name);
        match MatrixFile::open(&path) {
            Ok(store) => {
                let is_it = store.encoding(name) == Some(encoding) && store.shape(name) == Some(shape);
                Ok(is_it.then_some(store))
            }
            Err(breakers_gguf::Error::Io { source, .. }) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(io(&path, source))
            }
            Err(_) => Ok(None),
        }
    }

    /// Stores a tensor, completely or not at all.
    pub(super) fn write(&self, name: &str, tensor: &QuantizedMatrix) -> Result<(), Error> {
        Ok(matrix_file::write_intermediate(self.path(name), [(name, tensor)])?)
    }

    /// Ends the job.
    pub(super) fn remove(self) -> Result<(), Error> {
        fs::remove_dir_all(&self.folder).map_err(|e| io(&self.folder, e))
    }

    fn path(&self, name: &str) -> PathBuf {
        // Names come from a file that may be hostile: nothing but these characters reaches the file system.
        let safe: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '+' })
            .collect();
        self.folder.join(format!("{safe}.safetensors"))
    }
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), source }
}
