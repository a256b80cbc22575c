//! Quantized matrices in memory, with the same contents as in files.

use crate::{Encoding, Error, Format, GroupMatrix, Result, TensorView};
use breakers_cpu::{hadamard::Rotation, pool};

/// A quantized matrix: packed weights, and what is done to the inputs before the product.
///
/// # Example
/// ```
/// use breakers_gguf::{Format, QuantizedMatrix};
///
/// // A row of 32 columns in Q8_0: a scale of 1 in half precision, then signed bytes.
/// let row = [&[0x00, 0x3c][..], &[2; 32]].concat();
/// let matrix = QuantizedMatrix::from_bytes(Format::Q8_0, 1, 32, row)?;
/// assert_eq!((matrix.n_rows(), matrix.n_cols(), matrix.bytes()), (1, 32, 34));
/// assert_eq!(matrix.to_f32(), [2.0; 32]);
/// # Ok::<(), breakers_gguf::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct QuantizedMatrix {
    n_rows: usize,
    n_cols: usize,
    body: Body,
    /// Inputs are divided by these first.
    input_scales: Option<Vec<f32>>,
    /// Inputs are rotated first (after the division), with this seed.
    rotation: Option<(Rotation, u64)>,
}

#[derive(Debug, Clone)]
enum Body {
    Blocks(Format, Vec<u8>),
    Groups(GroupMatrix),
}

/// The stored contents of a matrix.
#[derive(Debug, Clone, Copy)]
pub enum Parts<'a> {
    /// Rows of blocks as in a GGUF file.
    Blocks(Format, &'a [u8]),
    /// Groups of a format of our own.
    Groups(&'a GroupMatrix),
}

impl QuantizedMatrix {
    /// Output features.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Input features.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// The format.
    pub fn encoding(&self) -> Encoding {
        match &self.body {
            Body::Blocks(format, _) => Encoding::Gguf(*format),
            Body::Groups(groups) => Encoding::Groups(groups.format()),
        }
    }

    /// The size in bytes of codes, scales and input divisors.
    pub fn bytes(&self) -> usize {
        let body = match &self.body {
            Body::Blocks(_, bytes) => bytes.len(),
            Body::Groups(groups) => groups.bytes(),
        };
        body + self.input_scales.as_ref().map_or(0, |scales| 4 * scales.len())
    }

    /// The blocks as in a GGUF file, if the format is one of GGUF's.
    pub fn blocks(&self) -> Option<&[u8]> {
        match &self.body {
            Body::Blocks(_, bytes) => Some(bytes),
            Body::Groups(_) => None,
        }
    }

    /// The divisors of the inputs before the product; `None` means ones.
    pub fn input_scales(&self) -> Option<&[f32]> {
        self.input_scales.as_deref()
    }

    /// The rotation of the inputs (after the division) before the product.
    pub fn rotation(&self) -> Option<&Rotation> {
        self.rotation.as_ref().map(|(rotation, _)| rotation)
    }

    /// The seed of the rotation, which [`Rotation::random`] makes it from.
    pub fn rotation_seed(&self) -> Option<u64> {
        self.rotation.as_ref().map(|(_, seed)| *seed)
    }

    /// A tensor of a GGUF file, with its blocks copied.
    pub fn from_gguf(view: &TensorView<'_>) -> Self {
        Self::from_blocks(view.format(), view.n_rows(), view.n_cols(), view.bytes().to_vec())
    }

    /// Rows of blocks as in a GGUF file.
    ///
    /// # Errors
    /// [`Error::RowLength`]; [`Error::Length`] when the number of bytes does not match the rows.
    pub fn from_bytes(format: Format, n_rows: usize, n_cols: usize, bytes: Vec<u8>) -> Result<Self> {
        let expected = Encoding::Gguf(format).matrix_bytes(n_rows, n_cols)?;
        if bytes.len() != expected {
            return Err(Error::Length { what: "bytes of a matrix", expected, found: bytes.len() });
        }
        Ok(Self::from_blocks(format, n_rows, n_cols, bytes))
    }

    /// Codes and scales.
    pub fn parts(&self) -> Parts<'_> {
        match &self.body {
            Body::Blocks(format, bytes) => Parts::Blocks(*format, bytes),
            Body::Groups(groups) => Parts::Groups(groups),
        }
    }

    /// Blocks of a format, as many as the rows have.
    pub(crate) fn from_blocks(format: Format, n_rows: usize, n_cols: usize, bytes: Vec<u8>) -> Self {
        let body = Body::Blocks(format, bytes);
        Self { n_rows, n_cols, body, input_scales: None, rotation: None }
    }

    /// A matrix in a format of our own.
    pub fn from_groups(groups: GroupMatrix) -> Self {
        let (n_rows, n_cols) = (groups.n_rows(), groups.n_cols());
        Self { n_rows, n_cols, body: Body::Groups(groups), input_scales: None, rotation: None }
    }

    /// The same stored weights, for inputs that are first rotated by [`Rotation::random`] with this seed.
    ///
    /// # Errors
    /// [`Error::Rotation`] for rows that have no rotation.
    pub fn of_rotated_inputs(mut self, seed: u64) -> Result<Self> {
        let rotation =
            Rotation::random(self.n_cols, seed).map_err(|error| Error::Rotation(Box::new(error)))?;
        self.rotation = Some((rotation, seed));
        Ok(self)
    }

    /// The same stored weights, for inputs that are first divided by `divisors` (before any rotation).
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one divisor for each column, [`Error::Divisor`] for one that is not
    /// a finite number above zero.
    pub fn of_divided_inputs(mut self, divisors: Vec<f32>) -> Result<Self> {
        if divisors.len() != self.n_cols {
            let (expected, found) = (self.n_cols, divisors.len());
            return Err(Error::Length { what: "divisors of inputs", expected, found });
        }
        if let Some(col) = divisors.iter().position(|x| !(x.is_finite() && *x > 0.0)) {
            return Err(Error::Divisor { col, found: divisors[col] });
        }
        self.input_scales = Some(divisors);
        Ok(self)
    }

    /// The stored weights, `[n_rows, n_cols]`, which apply to divided and rotated inputs.
    pub fn stored_f32(&self) -> Vec<f32> {
        match &self.body {
            Body::Blocks(format, bytes) => {
                let mut out = vec![0.0; self.n_rows * self.n_cols];
                let row_bytes = bytes.len() / self.n_rows.max(1);
                pool::parallel_chunks_mut(&mut out, 8 * self.n_cols, |start, out| {
                    let first = start / self.n_cols * row_bytes;
                    let bytes = &bytes[first..first + out.len() / self.n_cols * row_bytes];
                    let decoded = format.decode_row(bytes, out);
                    debug_assert!(decoded.is_ok(), "{decoded:?}");
                });
                out
            }
            Body::Groups(groups) => groups.to_f32(),
        }
    }

    /// The approximation of the original weights, `[n_rows, n_cols]`, with rotation and divisors undone.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = self.stored_f32();
        if let Some(rotation) = self.rotation() {
            // Rows of the stored matrix are rotated rows of the original one.
            let undone = rotation.inverse(&mut values);
            debug_assert!(undone.is_ok(), "{undone:?}");
        }
        // The stored weights were multiplied by what the inputs are divided by.
        if let Some(scales) = &self.input_scales {
            for row in values.chunks_exact_mut(self.n_cols) {
                row.iter_mut().zip(scales).for_each(|(x, scale)| *x /= scale);
            }
        }
        values
    }
}
