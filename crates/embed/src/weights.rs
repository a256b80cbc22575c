//! Tensors from safetensors files.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use crate::Error;

/// A memory-mapped safetensors file.
pub(crate) struct WeightFile {
    path: PathBuf,
    map: Mmap,
}

impl WeightFile {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Io { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        // SAFETY: the map is only read; as with every mapped file, nobody may change it meanwhile.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// Its tensors, all of which are within the file.
    ///
    /// # Errors
    /// [`Error::Safetensors`].
    pub(crate) fn tensors(&self) -> Result<Weights<'_>, Error> {
        match SafeTensors::deserialize(&self.map) {
            Ok(tensors) => Ok(Weights { tensors }),
            Err(source) => Err(Error::Safetensors { path: self.path.clone(), source }),
        }
    }
}

/// The tensors of a file.
pub(crate) struct Weights<'a> {
    tensors: SafeTensors<'a>,
}

impl Weights<'_> {
    /// The numbers of a tensor with a known shape, under the first of several names that is in the file.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] with the first name, [`Error::TensorShape`], [`Error::TensorType`].
    pub(crate) fn floats(&self, names: &[&str], expected: &[usize]) -> Result<Vec<f32>, Error> {
        let name = names.first().copied().unwrap_or_default().to_owned();
        let Some(view) = names.iter().find_map(|name| self.tensors.tensor(name).ok()) else {
            return Err(Error::MissingTensor { name });
        };
        if view.shape() != expected {
            let found = view.shape().to_vec();
            return Err(Error::TensorShape { name, expected: expected.to_vec(), found });
        }
        let data = view.data();
        match view.dtype() {
            Dtype::F32 => Ok(data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()),
            Dtype::F16 => {
                Ok(data.as_chunks().0.iter().map(|&bytes| half::f16::from_le_bytes(bytes).to_f32()).collect())
            }
            Dtype::BF16 => Ok(data
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| half::bf16::from_le_bytes(bytes).to_f32())
                .collect()),
            other => Err(Error::TensorType { name, found: format!("{other:?}") }),
        }
    }
}

/// A vector on a device.
pub(crate) fn vector(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), device)
}
