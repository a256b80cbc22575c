//! Finished tensors on disk, until the file is put together.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;

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
        write(&mark, fingerprint.as_bytes())?;
        Ok(parts)
    }

    /// A tensor's bytes, if they are there in the right number.
    pub(super) fn read(&self, name: &str, n_bytes: usize) -> Result<Option<Vec<u8>>, Error> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(bytes) => Ok((bytes.len() == n_bytes).then_some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io(&path, error)),
        }
    }

    /// Whether a tensor is there in full.
    pub(super) fn has(&self, name: &str, n_bytes: usize) -> bool {
        fs::metadata(self.path(name)).is_ok_and(|found| found.len() == n_bytes as u64)
    }

    /// Keeps a tensor; it appears whole or not at all.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        write(&self.path(name), bytes)
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
        self.folder.join(format!("{safe}.tensor"))
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = path.with_extension("writing");
    fs::write(&temporary, bytes).map_err(|e| io(&temporary, e))?;
    fs::rename(&temporary, path).map_err(|e| io(path, e))
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), source }
}
