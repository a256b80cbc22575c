//! Weights in the memory of a device.

use crate::{Error, MatrixSpec, QuantizedLinearOps, Result, records};
use breakers_backend::device;
use breakers_gguf::Encoding;
use burn::{
    backend::Dispatch,
    tensor::{DType, Device, Int, Tensor, TensorData},
};
use std::borrow::Cow;

/// The most bytes of a buffer: the kernels compute offsets in 32 bits.
const MAX_BYTES: usize = u32::MAX as usize & !3;

/// Rows of a matrix as they are in a GGUF file, or the [`records`] of a format of our own.
pub(crate) struct Rows<'a> {
    pub(crate) encoding: Encoding,
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    pub(crate) bytes: Cow<'a, [u8]>,
}

/// One buffer of a device and the matrix in it.
#[derive(Debug, Clone)]
pub(crate) struct DeviceMatrix {
    words: Tensor<1, Int>,
    spec: MatrixSpec,
}

impl DeviceMatrix {
    /// # Shapes
    /// `x`: `[n_rows, n_cols]`; the result: `[n_rows, rows of the matrix]`.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let (x, words) = (x.into_dispatch(), self.words.clone().into_dispatch());
        Tensor::from_dispatch(Dispatch::quantized_linear_on_device(x, words, self.spec))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.words.dims()[0] * 4
    }

    pub(crate) fn device(&self) -> Device {
        self.words.device()
    }

    fn new(spec: MatrixSpec, bytes: &[u8], device: &Device) -> Self {
        let words = to_words(bytes);
        let len = words.len();
        Self { words: Tensor::from_data(TensorData::new(words, [len]), (device, DType::I32)), spec }
    }
}

/// Copies matrices with the same number of columns to a device, in their order.
pub(crate) fn place<'a>(parts: impl Iterator<Item = Rows<'a>>, device: &Device) -> Result<Vec<DeviceMatrix>> {
    place_within(parts, device, device::max_buffer_bytes(device).min(MAX_BYTES))
}

/// As [`place`], with buffers of at most `limit` bytes.
fn place_within<'a>(
    parts: impl Iterator<Item = Rows<'a>>,
    device: &Device,
    limit: usize,
) -> Result<Vec<DeviceMatrix>> {
    let mut placed = Vec::new();
    // The next buffer: what it will hold, and its bytes.
    let mut next: Option<(MatrixSpec, Vec<u8>)> = None;
    for part in parts {
        let row_bytes = records::row_bytes(part.encoding, part.n_cols)?;
        if row_bytes > limit {
            return Err(Error::DeviceBuffer { row_bytes, limit });
        }
        let mut from = 0;
        while from < part.n_rows {
            let (spec, bytes) = match &mut next {
                Some(next) if next.0.encoding == part.encoding && next.1.len() + row_bytes <= limit => next,
                _ => {
                    placed.extend(next.take().map(|(spec, bytes)| DeviceMatrix::new(spec, &bytes, device)));
                    let spec = MatrixSpec { encoding: part.encoding, n_rows: 0, n_cols: part.n_cols };
                    next.insert((spec, Vec::new()))
                }
            };
            let room = (limit - bytes.len()).checked_div(row_bytes).unwrap_or(usize::MAX);
            let n_rows = room.min(part.n_rows - from);
            spec.n_rows += n_rows;
            bytes.extend_from_slice(&part.bytes[from * row_bytes..(from + n_rows) * row_bytes]);
            from += n_rows;
        }
        if part.n_rows == 0 && next.is_none() {
            let spec = MatrixSpec { encoding: part.encoding, n_rows: 0, n_cols: part.n_cols };
            next = Some((spec, Vec::new()));
        }
    }
    placed.extend(next.map(|(spec, bytes)| DeviceMatrix::new(spec, &bytes, device)));
    Ok(placed)
}

/// Bytes as little-endian words, the last one padded with zeros; at least one, since devices do not support
/// empty buffers.
fn to_words(bytes: &[u8]) -> Vec<i32> {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let last = (!rest.is_empty() || bytes.is_empty()).then_some(last);
    words.iter().chain(&last).map(|&word| i32::from_le_bytes(word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use breakers_gguf::Format;

    fn rows(format: Format, n_rows: usize, first: u8) -> Rows<'static> {
        let n_bytes = n_rows * format.row_bytes(64).unwrap();
        let bytes: Vec<u8> = (0..n_bytes).map(|i| first.wrapping_add(i as u8)).collect();
        Rows { encoding: Encoding::Gguf(format), n_rows, n_cols: 64, bytes: bytes.into() }
    }

    /// The bytes of all buffers and the rows in each, by format.
    fn placed(parts: &[(Format, usize)], limit: usize) -> (Vec<u8>, Vec<(Format, usize)>) {
        let parts = parts.iter().enumerate().map(|(i, &(format, n_rows))| rows(format, n_rows, i as u8));
        let placed = place_within(parts, &Device::flex(), limit).unwrap();
        let mut all = Vec::new();
        for matrix in &placed {
            let words = matrix.words.clone().into_data().try_into_vec::<i32>().unwrap();
            let bytes: Vec<u8> = words.into_iter().flat_map(i32::to_le_bytes).collect();
            let n_bytes = matrix.spec.n_rows * records::row_bytes(matrix.spec.encoding, 64).unwrap();
            assert!(n_bytes <= limit && bytes.len() == n_bytes.next_multiple_of(4).max(4));
            all.extend_from_slice(&bytes[..n_bytes]);
        }
        (
            all,
            placed
                .iter()
                .map(|matrix| match matrix.spec.encoding {
                    Encoding::Gguf(format) => (format, matrix.spec.n_rows),
                    other => panic!("{other:?}"),
                })
                .collect(),
        )
    }

    #[test]
    fn neighbors_share_a_buffer_and_large_matrices_are_divided() {
        let (a, b) = (Format::Q8_0, Format::Q4_1);
        let check = |parts: &[(Format, usize)], limit, expected: &[(Format, usize)]| {
            let (bytes, found) = placed(parts, limit);
            assert_eq!(found, expected, "{parts:?} in buffers of {limit} bytes");
            let sources = parts.iter().enumerate().map(|(i, part)| rows(part.0, part.1, i as u8));
            let expected: Vec<u8> = sources.flat_map(|rows| rows.bytes.into_owned()).collect();
            assert_eq!(bytes, expected, "{parts:?} in buffers of {limit} bytes");
        };
        // A row has 68 bytes as Q8_0 and 40 as Q4_1.
        check(&[(a, 3), (a, 2)], 1000, &[(a, 5)]);
        check(&[(a, 3), (b, 2), (b, 1), (a, 1)], 1000, &[(a, 3), (b, 3), (a, 1)]);
        check(&[(a, 7)], 68 * 3 + 67, &[(a, 3), (a, 3), (a, 1)]);
        check(&[(a, 2), (a, 3)], 68 * 3, &[(a, 3), (a, 2)]);
        check(&[(b, 0)], 40, &[(b, 0)]);
        check(&[(b, 2), (b, 0), (b, 1)], 40, &[(b, 1), (b, 1), (b, 1)]);
    }

    #[test]
    fn a_row_that_fits_no_buffer_is_refused() {
        let found = place_within([rows(Format::Q8_0, 1, 0)].into_iter(), &Device::flex(), 67);
        assert!(matches!(found, Err(Error::DeviceBuffer { row_bytes: 68, limit: 67 })), "{found:?}");
    }
}
