//! Writing: the header is planned first, then the bytes of the tensors are streamed.

use breakers_files::Replacement;
use std::{
    collections::HashSet,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use super::{MAGIC, Metadata, Value, file::layout, value::write_string};
use crate::{Error, Format, Result};

/// llama.cpp refuses names of 64 bytes and more.
const MAX_TENSOR_NAME_BYTES: usize = 63;

/// The header of a file to be written (version 3): metadata, and the tensors that will follow.
///
/// Tensors are declared first and their bytes streamed afterwards, in the same order, so a model of any size
/// can be written with little memory.
///
/// ```
/// use breakers_gguf::{File, Format, Writer};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("tiny.gguf");
///
/// let mut plan = Writer::new();
/// plan.insert("general.architecture", "llama")?;
/// plan.declare("output_norm.weight", Format::F32, &[4])?;
/// let mut file = plan.create(&path)?;
/// for value in [1.0f32, 2.0, 3.0, 4.0] {
///     file.write("output_norm.weight", &value.to_le_bytes())?;
/// }
/// assert!(!path.exists());
/// file.finish()?; // now the file appears, whole
///
/// assert_eq!(File::open(&path)?.require("output_norm.weight")?.to_f32(), [1.0, 2.0, 3.0, 4.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Writer {
    metadata: Metadata,
    tensors: Vec<Declared>,
    names: HashSet<String>,
}

#[derive(Debug, Clone)]
struct Declared {
    name: String,
    format: Format,
    shape: Vec<usize>,
    n_bytes: usize,
}

impl Writer {
    /// A file without metadata or tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file with this metadata, for instance that of a [`File`](super::File) that is being changed.
    /// `general.alignment` is respected.
    pub fn with_metadata(metadata: Metadata) -> Self {
        Self { metadata, ..Self::default() }
    }

    /// Sets a metadata value; see [`Metadata::insert`].
    ///
    /// # Errors
    /// [`Error::CountTooLarge`] when the key is longer than the format allows.
    pub fn insert(&mut self, key: &str, value: impl Into<Value>) -> Result<()> {
        self.metadata.insert(key, value)
    }

    /// Announces a tensor. The bytes of tensors must be written in the order of these calls.
    ///
    /// # Shapes
    /// Row-major, outermost first, as [`TensorView::shape`](super::TensorView::shape) gives it.
    ///
    /// # Errors
    /// [`Error::DuplicateTensor`], [`Error::TensorName`] (longer than 63 bytes),
    /// [`Error::InvalidDimensions`], [`Error::TensorRowLength`] (rows that are not whole blocks).
    pub fn declare(&mut self, name: &str, format: Format, shape: &[usize]) -> Result<()> {
        if name.len() > MAX_TENSOR_NAME_BYTES {
            return Err(Error::TensorName {
                tensor: name.to_owned(),
                found: name.len(),
                limit: MAX_TENSOR_NAME_BYTES,
            });
        }
        let n_bytes = layout(name, format, shape)?;
        if !self.names.insert(name.to_owned()) {
            return Err(Error::DuplicateTensor { tensor: name.to_owned() });
        }
        self.tensors.push(Declared { name: name.to_owned(), format, shape: shape.to_vec(), n_bytes });
        Ok(())
    }

    /// Starts a file on disk. The bytes go to a temporary file next to `path`; [`FileWriter::finish`] renames
    /// it, so there is never a half-written file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] when the temporary file cannot be made, and those of
    /// [`write_to`](Self::write_to).
    pub fn create(self, path: impl AsRef<Path>) -> Result<FileWriter> {
        let path = path.as_ref().to_owned();
        let file = Replacement::new(&path)?;
        let inner = self.write_to(BufWriter::with_capacity(1 << 20, file))?;
        Ok(FileWriter { inner, path })
    }

    /// Starts a file in any sink, such as a `Vec<u8>`.
    ///
    /// # Errors
    /// [`Error::InvalidAlignment`] when `general.alignment` is not a power of two, [`Error::ValueType`] when
    /// it is not an integer, [`Error::InvalidDimensions`] when the sizes add up to more than 2^64 bytes,
    /// [`Error::Write`] when the sink fails.
    pub fn write_to<W: Write>(self, mut sink: W) -> Result<TensorWriter<W>> {
        let alignment = self.metadata.alignment()?;
        let mut header = MAGIC.to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in self.metadata.iter() {
            write_string(&mut header, key);
            value.write(&mut header);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            write_string(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for &dimension in tensor.shape.iter().rev() {
                header.extend((dimension as u64).to_le_bytes());
            }
            header.extend(tensor.format.to_ggml().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset = offset
                .checked_add(tensor.n_bytes as u64)
                .and_then(|end| end.checked_next_multiple_of(alignment))
                .ok_or_else(|| Error::InvalidDimensions {
                    tensor: tensor.name.clone(),
                    found: tensor.shape.iter().rev().map(|&n| n as u64).collect(),
                })?;
        }
        let header_end = header.len() as u64;
        sink.write_all(&header).map_err(sink_failed)?;
        let mut writer = TensorWriter { sink, tensors: self.tensors, next: 0, written: 0, alignment };
        writer.pad(header_end)?;
        Ok(writer)
    }
}

fn sink_failed(source: std::io::Error) -> Error {
    Error::Write { source }
}

/// Writes the bytes of the tensors that a [`Writer`] declared to any sink.
#[derive(Debug)]
pub struct TensorWriter<W> {
    sink: W,
    tensors: Vec<Declared>,
    /// The tensor that is being written.
    next: usize,
    /// How many of its bytes are already written.
    written: usize,
    alignment: u64,
}

impl<W: Write> TensorWriter<W> {
    /// Writes bytes of a tensor: all of them, or the next piece.
    ///
    /// # Errors
    /// [`Error::TensorOrder`] when another tensor is next, [`Error::Length`] when these are more bytes than
    /// the tensor has left (then nothing is written), [`Error::Write`] when the sink fails.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let next = self.tensors.get(self.next);
        let Some(tensor) = next.filter(|tensor| tensor.name == name) else {
            let expected = next.map(|tensor| tensor.name.clone()).unwrap_or_default();
            return Err(Error::TensorOrder { expected, found: name.to_owned() });
        };
        let left = tensor.n_bytes - self.written;
        if bytes.len() > left {
            return Err(Error::Length { what: "bytes of a tensor", expected: left, found: bytes.len() });
        }
        self.sink.write_all(bytes).map_err(sink_failed)?;
        self.written += bytes.len();
        if bytes.len() == left {
            let n_bytes = tensor.n_bytes as u64;
            self.next += 1;
            self.written = 0;
            self.pad(n_bytes)?;
        }
        Ok(())
    }

    /// Ends the file, flushes the sink and returns it.
    ///
    /// # Errors
    /// [`Error::Length`] when the bytes of a declared tensor are missing, [`Error::Write`] when the sink
    /// fails.
    pub fn finish(mut self) -> Result<W> {
        if let Some(tensor) = self.tensors.get(self.next) {
            return Err(Error::Length {
                what: "bytes of a tensor",
                expected: tensor.n_bytes,
                found: self.written,
            });
        }
        self.sink.flush().map_err(sink_failed)?;
        Ok(self.sink)
    }

    /// Writes zeros from `position` to the next aligned position.
    fn pad(&mut self, position: u64) -> Result<()> {
        let n_zeros = position.next_multiple_of(self.alignment) - position;
        let mut zeros = std::io::Read::take(std::io::repeat(0), n_zeros);
        std::io::copy(&mut zeros, &mut self.sink).map_err(sink_failed)?;
        Ok(())
    }
}

/// Writes the bytes of the tensors that a [`Writer`] declared to a file that appears once it is complete. If
/// it is dropped before that, it leaves nothing behind.
#[derive(Debug)]
pub struct FileWriter {
    inner: TensorWriter<BufWriter<Replacement<'static>>>,
    path: PathBuf,
}

impl FileWriter {
    /// Writes bytes of a tensor; see [`TensorWriter::write`].
    ///
    /// # Errors
    /// As [`TensorWriter::write`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.inner.write(name, bytes)
    }

    /// Ends the file, syncs it and moves it to its place, replacing any file there.
    ///
    /// # Errors
    /// [`Error::Length`] when the bytes of a declared tensor are missing, [`Error::Write`],
    /// [`Error::Io`] or [`Error::File`] when the disk or the move fails.
    pub fn finish(self) -> Result<()> {
        let path = self.path;
        let failed = |source| Error::Io { path: path.clone(), source };
        let file = self.inner.finish()?.into_inner().map_err(|error| failed(error.into_error()))?;
        Ok(file.commit()?)
    }
}
