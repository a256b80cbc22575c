use crate::{
    Error, Metric, Result,
    metric::{check_dimension, check_length},
};
use breakers_files::Buffer;
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// Vectors in full precision, to compute the distances that are returned.
///
/// They lie in memory, in a mapped file, or in a file that is read a vector at a time, so that they take no memory.
#[derive(Debug)]
pub struct Vectors {
    dimension: usize,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Buffer<f32>),
    /// The first vectors are in the file, from byte `start` on; what was added or changed since is in memory.
    File {
        file: File,
        path: PathBuf,
        start: u64,
        n: usize,
        changed: hashbrown::HashMap<u32, Box<[f32]>>,
        len: usize,
    },
}

impl Vectors {
    /// No vectors yet, in memory.
    ///
    /// # Errors
    /// [`Error::DimensionRange`].
    pub fn new(dimension: usize) -> Result<Self> {
        check_dimension(dimension)?;
        Ok(Self { dimension, place: Place::Memory(Buffer::new()) })
    }

    pub(crate) fn from_buffer(dimension: usize, values: Buffer<f32>) -> Self {
        Self { dimension, place: Place::Memory(values) }
    }

    /// `n` vectors in a file from byte `start` on, which are read when they are needed.
    pub(crate) fn from_file(dimension: usize, path: &Path, start: u64, n: usize) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let (path, changed) = (path.to_owned(), hashbrown::HashMap::new());
        Ok(Self { dimension, place: Place::File { file, path, start, n, changed, len: n } })
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        match &self.place {
            Place::Memory(values) => values.len() / self.dimension,
            Place::File { len, .. } => *len,
        }
    }

    /// Whether there is no vector.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers of a vector.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Bytes that vectors take in memory or in a mapping.
    pub fn bytes(&self) -> usize {
        4 * match &self.place {
            Place::Memory(values) => values.len(),
            Place::File { changed, .. } => changed.len() * self.dimension,
        }
    }

    pub(crate) fn push(&mut self, vector: &[f32]) -> Result<()> {
        check_length("the vector", vector, self.dimension)?;
        match &mut self.place {
            Place::Memory(values) => values.extend(vector),
            Place::File { changed, len, .. } => {
                changed.insert(*len as u32, vector.into());
                *len += 1;
            }
        }
        Ok(())
    }

    pub(crate) fn set(&mut self, slot: u32, vector: &[f32]) -> Result<()> {
        check_length("the vector", vector, self.dimension)?;
        match &mut self.place {
            Place::Memory(values) => {
                values.make_mut()[slot as usize * self.dimension..][..self.dimension].copy_from_slice(vector);
            }
            Place::File { changed, .. } => {
                changed.insert(slot, vector.into());
            }
        }
        Ok(())
    }

    pub(crate) fn in_memory(&self) -> Option<&[f32]> {
        match &self.place {
            Place::Memory(values) => Some(values),
            Place::File { .. } => None,
        }
    }

    /// Calls `f` with the vector of a slot; `scratch` is used if it has to be read from a file.
    pub(crate) fn with<R>(
        &self,
        slot: u32,
        scratch: &mut Vec<f32>,
        f: impl FnOnce(&[f32]) -> R,
    ) -> Result<R> {
        match &self.place {
            Place::Memory(values) => Ok(f(&values[slot as usize * self.dimension..][..self.dimension])),
            Place::File { changed, .. } if changed.contains_key(&slot) => Ok(f(&changed[&slot])),
            Place::File { file, path, start, n, .. } => {
                if slot as usize >= *n {
                    return Err(Error::UnknownPoint { id: slot.into() });
                }
                scratch.resize(self.dimension, 0.0);
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(scratch);
                let at = start + u64::from(slot) * bytes.len() as u64;
                read_at(file, bytes, at).map_err(Error::io(path))?;
                Ok(f(scratch))
            }
        }
    }

    /// Asks for a vector before it is needed.
    pub(crate) fn prefetch(&self, slot: u32) {
        if let Place::Memory(values) = &self.place {
            let at = slot as usize * self.dimension;
            crate::distance::prefetch(values.as_ptr().wrapping_add(at).cast(), 4 * self.dimension);
        }
    }

    /// Computes the distance of a slot's vector.
    pub(crate) fn distance(
        &self,
        metric: Metric,
        query: &[f32],
        slot: u32,
        scratch: &mut Vec<f32>,
    ) -> Result<f32> {
        self.with(slot, scratch, |vector| metric.distance(query, vector))
    }
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(not(unix))]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    use std::io::{Read as _, Seek as _};
    let mut file = file.try_clone()?;
    file.seek(std::io::SeekFrom::Start(at))?;
    file.read_exact(bytes)
}
