//! Between Flex tensors and the slices that CPU kernels work on.
//!
//! A [`FlexTensor`] is a view: its storage may be larger than the tensor and start before it. The helpers
//! here take the view's offset into account; a kernel that read `storage()` directly would not.
//!
//! # Example
//! ```
//! use breakers_backend::flex;
//!
//! let matrix = flex::from_vec(vec![1.0, 2.0, 3.0, 4.0], [2, 2]);
//! let second_row = flex::contiguous(matrix.narrow(0, 1, 1));
//! assert_eq!(flex::as_slice(&second_row), [3.0, 4.0]);
//! ```

use burn::tensor::{Bytes, DType, Element, Shape, bf16, f16};
use burn_flex::{FlexTensor, Layout};

/// The tensor with its elements in row-major order without gaps; copied only if they are not so already.
///
/// The result may still start at an offset of its storage: read it through [`as_slice`].
pub fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// The tensor in row-major order and in `f32`, converted where it is `f16`, `bf16` or `f64`.
///
/// # Panics
/// If the tensor holds no floating-point elements.
pub fn contiguous_f32(tensor: FlexTensor) -> FlexTensor {
    let tensor = contiguous(tensor);
    let values: Vec<f32> = match tensor.dtype() {
        DType::F32 => return tensor,
        DType::F16 => typed_slice::<f16>(&tensor).iter().map(|v| v.to_f32()).collect(),
        DType::BF16 => typed_slice::<bf16>(&tensor).iter().map(|v| v.to_f32()).collect(),
        DType::F64 => typed_slice::<f64>(&tensor).iter().map(|v| *v as f32).collect(),
        other => panic!("a floating-point tensor is needed, {other:?} was given"),
    };
    from_vec(values, tensor.layout().shape().clone())
}

/// The elements of a contiguous `f32` tensor, taking the view's offset into account.
///
/// # Panics
/// If the tensor is not contiguous (see [`contiguous`]) or not `f32` (see [`contiguous_f32`]).
pub fn as_slice(tensor: &FlexTensor) -> &[f32] {
    typed_slice(tensor)
}

/// The elements of a contiguous tensor of any element type, taking the view's offset into account.
///
/// # Panics
/// If the tensor is not contiguous or holds another element type.
pub fn typed_slice<E: Element + bytemuck::Pod>(tensor: &FlexTensor) -> &[E] {
    assert!(tensor.is_contiguous(), "the tensor has gaps or permuted axes; make it contiguous first");
    let n_elements = tensor.layout().num_elements();
    if n_elements == 0 {
        return &[];
    }
    &tensor.storage::<E>()[tensor.layout().start_offset()..][..n_elements]
}

/// A tensor that takes over the elements of `values`, in row-major order.
///
/// # Panics
/// If the shape does not hold as many elements as `values`.
pub fn from_vec(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    typed_from_vec(values, shape)
}

/// As [`from_vec`], with the elements rounded to another floating-point type.
///
/// # Panics
/// If the shape does not hold as many elements as `values`, or if `dtype` is not a floating-point type.
pub fn from_f32(values: Vec<f32>, shape: impl Into<Shape>, dtype: DType) -> FlexTensor {
    match dtype {
        DType::F32 => from_vec(values, shape),
        DType::F16 => typed_from_vec(values.into_iter().map(f16::from_f32).collect(), shape),
        DType::BF16 => typed_from_vec(values.into_iter().map(bf16::from_f32).collect(), shape),
        DType::F64 => typed_from_vec(values.into_iter().map(f64::from).collect(), shape),
        other => panic!("a floating-point type is needed, {other:?} was given"),
    }
}

/// As [`from_vec`], for any element type.
///
/// # Panics
/// If the shape does not hold as many elements as `values`.
pub fn typed_from_vec<E: Element + bytemuck::Pod + Send + Sync>(
    values: Vec<E>,
    shape: impl Into<Shape>,
) -> FlexTensor {
    let shape = shape.into();
    assert_eq!(values.len(), shape.num_elements(), "elements and shape {shape:?} differ");
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), E::dtype())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(rows: usize, columns: usize) -> FlexTensor {
        from_vec((0..rows * columns).map(|i| i as f32).collect(), [rows, columns])
    }

    #[test]
    fn views_read_their_own_elements() {
        let check = |tensor: FlexTensor, expected: &[f32]| {
            assert_eq!(as_slice(&contiguous(tensor.clone())), expected);
            assert_eq!(as_slice(&contiguous_f32(tensor)), expected);
        };
        check(ramp(2, 3), &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        check(ramp(3, 2).narrow(0, 1, 2), &[2.0, 3.0, 4.0, 5.0]);
        check(ramp(2, 3).narrow(1, 1, 2), &[1.0, 2.0, 4.0, 5.0]);
        check(ramp(2, 3).transpose(0, 1), &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        check(ramp(3, 2).narrow(0, 3, 0), &[]);
        check(ramp(0, 4), &[]);
    }

    #[test]
    fn contiguous_tensors_are_not_copied() {
        let tensor = ramp(4, 4);
        let view = contiguous(tensor.narrow(0, 2, 1));
        assert_eq!(as_slice(&view).as_ptr(), &raw const as_slice(&tensor)[8]);
    }

    #[test]
    fn other_float_types_are_converted() {
        let values = [1.5f32, -0.25, 1024.0];
        let halves = typed_from_vec(values.map(f16::from_f32).to_vec(), [3]);
        let brains = typed_from_vec(values.map(bf16::from_f32).to_vec(), [3]);
        let doubles = typed_from_vec(values.map(f64::from).to_vec(), [3]);
        for tensor in [halves, brains, doubles] {
            let back = from_f32(values.to_vec(), [3], tensor.dtype());
            assert_eq!((back.dtype(), back.bytes()), (tensor.dtype(), tensor.bytes()));
            assert_eq!(as_slice(&contiguous_f32(tensor)), values);
        }
    }
}
