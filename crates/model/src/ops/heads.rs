//! From the joint query/key/value projection to rotated heads.

use burn::backend::{
    Backend, Dispatch, ExtensionType, TensorMetadata, backend_extension, tensor::FloatTensor,
};
use burn::tensor::{Device, FloatDType, Shape, Slice, Tensor, TensorData};

use breakers_backend::{flex, norm::rms_norm_rows};
use breakers_cpu::{self as cpu, per_isa, pool};

/// Which coordinates rotary position embedding pairs up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RopeStyle {
    /// Neighbors (2i, 2i + 1), as in the paper and in GGUF files of the `llama` architecture.
    Interleaved,
    /// Halves (i, i + d/2), as in GPT-NeoX, Qwen and Gemma.
    Halves,
}

/// How the joint projection is laid out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadLayout {
    /// Query heads.
    pub n_heads: usize,
    /// Key heads, and as many value heads.
    pub n_kv_heads: usize,
    /// Coordinates of a head.
    pub head_dim: usize,
    /// Pairing of the rotation.
    pub rope: RopeStyle,
    /// Added to the mean square in the norms of query and key heads, if there are any.
    pub norm_eps: f32,
}

impl HeadLayout {
    /// Columns of the joint projection: queries, keys, values.
    pub fn width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }
}

/// Cosines and sines of the rotation for the rows of one forward pass.
#[derive(Clone, Debug)]
pub struct RopeTable {
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl RopeTable {
    /// Angles position · scale · base^(−2i/n_rotated) / factors\[i\].
    ///
    /// # Shapes
    /// One row for each position, `n_rotated / 2` columns. `factors`: empty or `[n_rotated / 2]`.
    ///
    /// # Source
    /// RoFormer, arXiv 2104.09864, section 3.2.2; `scale` is position interpolation (arXiv 2306.15595),
    /// `factors` are Llama 3's frequency divisors, stored in the file.
    pub fn new(
        positions: &[usize],
        n_rotated: usize,
        base: f32,
        scale: f32,
        factors: &[f32],
        device: &Device,
    ) -> Self {
        let half = n_rotated / 2;
        let frequency: Vec<f64> = (0..half)
            .map(|i| {
                let factor = factors.get(i).copied().unwrap_or(1.0) as f64;
                scale as f64 * (base as f64).powf(-2.0 * i as f64 / n_rotated as f64) / factor
            })
            .collect();
        let mut cos = Vec::with_capacity(positions.len() * half);
        let mut sin = Vec::with_capacity(positions.len() * half);
        for &position in positions {
            for f in &frequency {
                let (s, c) = (position as f64 * f).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        let tensor = |v| Tensor::from_data(TensorData::new(v, [positions.len(), half]), device);
        Self { cos: tensor(cos), sin: tensor(sin) }
    }

    #[cfg(test)]
    pub(super) fn angles(&self) -> (Tensor<2>, Tensor<2>) {
        (self.cos.clone(), self.sin.clone())
    }
}

/// Query, key and value heads.
#[derive(Clone, Debug, ExtensionType)]
pub struct HeadTensors<B: Backend> {
    /// `[rows, n_heads, head_dim]`.
    pub q: FloatTensor<B>,
    /// `[rows, n_kv_heads, head_dim]`.
    pub k: FloatTensor<B>,
    /// `[rows, n_kv_heads, head_dim]`.
    pub v: FloatTensor<B>,
}

/// Query, key and value heads of the rows of a forward pass.
#[derive(Clone, Debug)]
pub struct Heads {
    /// Queries `[rows, n_heads, head_dim]`.
    pub q: Tensor<3>,
    /// Keys `[rows, n_kv_heads, head_dim]`.
    pub k: Tensor<3>,
    /// Values `[rows, n_kv_heads, head_dim]`.
    pub v: Tensor<3>,
}

/// A vector that a model may lack, because extensions of Burn's backends cannot take an `Option`.
#[derive(Clone, Debug, ExtensionType)]
pub enum OptionalVector<B: Backend> {
    /// `[n]`.
    There(FloatTensor<B>),
    /// None.
    Absent,
}

impl<B: Backend> From<Option<FloatTensor<B>>> for OptionalVector<B> {
    fn from(vector: Option<FloatTensor<B>>) -> Self {
        vector.map_or(Self::Absent, Self::There)
    }
}

impl<B: Backend> OptionalVector<B> {
    /// The vector, if there is one.
    pub fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::There(vector) => Some(vector),
            Self::Absent => None,
        }
    }
}

/// Extension of Burn's backends: see [`split_heads`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait HeadOps: Backend {
    /// See [`split_heads`].
    fn heads(
        qkv: FloatTensor<Self>,
        #[extension_type] bias: OptionalVector<Self>,
        #[extension_type] q_norm: OptionalVector<Self>,
        #[extension_type] k_norm: OptionalVector<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        layout: HeadLayout,
    ) -> HeadTensors<Self> {
        heads_reference::<Self>(qkv, bias, q_norm, k_norm, cos, sin, layout)
    }
}

/// The reference, in tensor operations.
pub fn heads_reference<B: Backend>(
    qkv: FloatTensor<B>,
    bias: OptionalVector<B>,
    q_norm: OptionalVector<B>,
    k_norm: OptionalVector<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    layout: HeadLayout,
) -> HeadTensors<B> {
    let rows = qkv.shape()[0];
    let d = layout.head_dim;
    let half = cos.shape()[1];
    if rows * d == 0 {
        let empty = |heads| {
            let shape = Shape::new([rows, heads, d]);
            B::float_zeros(shape, &qkv.device(), FloatDType::F32)
        };
        let (n_heads, n_kv_heads) = (layout.n_heads, layout.n_kv_heads);
        return HeadTensors { q: empty(n_heads), k: empty(n_kv_heads), v: empty(n_kv_heads) };
    }
    let qkv = match bias.into_option() {
        None => qkv,
        Some(bias) => B::float_add(qkv, B::float_reshape(bias, Shape::new([1, layout.width()]))),
    };
    let part = |from: usize, heads: usize| {
        let part =
            B::float_slice(qkv.clone(), &[Slice::from(0..rows), Slice::from(from * d..(from + heads) * d)]);
        B::float_reshape(part, Shape::new([rows, heads, d]))
    };
    let normed = |x: FloatTensor<B>, weight: OptionalVector<B>| match weight.into_option() {
        None => x,
        Some(weight) => {
            let mean = B::float_mean_dim(B::float_mul(x.clone(), x.clone()), 2);
            let root = B::float_sqrt(B::float_add_scalar(mean, layout.norm_eps.into()));
            B::float_mul(B::float_div(x, root), B::float_reshape(weight, Shape::new([1, 1, d])))
        }
    };
    let rotated = |x: FloatTensor<B>| {
        let heads = x.shape()[1];
        let pick = |x: &FloatTensor<B>, range: std::ops::Range<usize>| {
            B::float_slice(x.clone(), &[Slice::from(0..rows), Slice::from(0..heads), Slice::from(range)])
        };
        let turned = pick(&x, 0..2 * half);
        // [rows, heads, half, 2] or [rows, heads, 2, half]: the pair runs along `axis`.
        let (paired, axis, angles) = match layout.rope {
            RopeStyle::Interleaved => ([rows, heads, half, 2], 3, [rows, 1, half, 1]),
            RopeStyle::Halves => ([rows, heads, 2, half], 2, [rows, 1, 1, half]),
        };
        let pairs = B::float_reshape(turned, Shape::new(paired));
        let member = |i: usize| {
            let mut at = paired.map(|n| Slice::from(0..n));
            at[axis] = Slice::from(i..i + 1);
            B::float_slice(pairs.clone(), &at)
        };
        let (a, b) = (member(0), member(1));
        let cos = B::float_reshape(cos.clone(), Shape::new(angles));
        let sin = B::float_reshape(sin.clone(), Shape::new(angles));
        let first = B::float_sub(B::float_mul(a.clone(), cos.clone()), B::float_mul(b.clone(), sin.clone()));
        let second = B::float_add(B::float_mul(a, sin), B::float_mul(b, cos));
        let turned =
            B::float_reshape(B::float_cat(vec![first, second], axis), Shape::new([rows, heads, 2 * half]));
        if 2 * half == d { turned } else { B::float_cat(vec![turned, pick(&x, 2 * half..d)], 2) }
    };
    HeadTensors {
        q: rotated(normed(part(0, layout.n_heads), q_norm)),
        k: rotated(normed(part(layout.n_heads, layout.n_kv_heads), k_norm)),
        v: part(layout.n_heads + layout.n_kv_heads, layout.n_kv_heads),
    }
}

impl HeadOps for burn_flex::Flex {
    fn heads(
        qkv: burn_flex::FlexTensor,
        bias: OptionalVector<Self>,
        q_norm: OptionalVector<Self>,
        k_norm: OptionalVector<Self>,
        cos: burn_flex::FlexTensor,
        sin: burn_flex::FlexTensor,
        layout: HeadLayout,
    ) -> HeadTensors<Self> {
        let [qkv, cos, sin] = [qkv, cos, sin].map(flex::contiguous);
        let [bias, q_norm, k_norm] = [bias, q_norm, k_norm].map(|x| x.into_option().map(flex::contiguous));
        let isa = cpu::isa();
        let rows = qkv.layout().shape()[0];
        let half = cos.layout().shape()[1];
        let (d, width) = (layout.head_dim, layout.width());
        let (q_width, kv_width) = (layout.n_heads * d, layout.n_kv_heads * d);
        let mut q = vec![0.0; rows * q_width];
        let mut k = vec![0.0; rows * kv_width];
        let mut v = vec![0.0; rows * kv_width];
        {
            let [qkv, cos, sin] = [&qkv, &cos, &sin].map(flex::as_slice);
            let [bias, q_norm, k_norm] = [&bias, &q_norm, &k_norm].map(|x| x.as_ref().map(flex::as_slice));
            let (q, k, v) = (
                pool::DisjointMut::new(&mut q),
                pool::DisjointMut::new(&mut k),
                pool::DisjointMut::new(&mut v),
            );
            pool::parallel_chunks(rows, 1.max(8192 / width.max(1)), |rows| {
                for row in rows {
                    // SAFETY: every row is visited by one task only.
                    let (q, k, v) = unsafe {
                        (
                            q.slice_mut(row * q_width..(row + 1) * q_width),
                            k.slice_mut(row * kv_width..(row + 1) * kv_width),
                            v.slice_mut(row * kv_width..(row + 1) * kv_width),
                        )
                    };
                    let x = &qkv[row * width..(row + 1) * width];
                    let (cos, sin) = (&cos[row * half..(row + 1) * half], &sin[row * half..(row + 1) * half]);
                    let mut from = 0;
                    for part in [&mut *q, &mut *k, v] {
                        let columns = from..from + part.len();
                        match bias {
                            Some(bias) => add(&x[columns.clone()], &bias[columns], part),
                            None => part.copy_from_slice(&x[columns]),
                        }
                        from += part.len();
                    }
                    for (heads, norm) in [(q, q_norm), (k, k_norm)] {
                        if let Some(norm) = norm {
                            let plain = heads.to_vec();
                            rms_norm_rows(isa, &plain, norm, 0.0, layout.norm_eps, heads);
                        }
                        per_isa!(isa, || {
                            heads.chunks_exact_mut(d).for_each(|head| rotate(head, cos, sin, layout.rope));
                        });
                    }
                }
            });
        }
        HeadTensors {
            q: flex::from_vec(q, Shape::new([rows, layout.n_heads, d])),
            k: flex::from_vec(k, Shape::new([rows, layout.n_kv_heads, d])),
            v: flex::from_vec(v, Shape::new([rows, layout.n_kv_heads, d])),
        }
    }
}

fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
    for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
        *o = a + b;
    }
}

#[inline(always)]
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], style: RopeStyle) {
    let half = cos.len();
    match style {
        RopeStyle::Interleaved => {
            for ((pair, c), s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                let (a, b) = (pair[0], pair[1]);
                pair[0] = a * c - b * s;
                pair[1] = a * s + b * c;
            }
        }
        RopeStyle::Halves => {
            let (first, second) = head[..2 * half].split_at_mut(half);
            for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
            }
        }
    }
}

pub(super) fn optional<const N: usize>(vectors: [Option<Tensor<1>>; N]) -> [OptionalVector<Dispatch>; N] {
    vectors.map(|vector| vector.map(Tensor::into_dispatch).into())
}

/// Adds the bias, splits into heads, normalizes and rotates queries and keys.
///
/// # Shapes
/// `qkv`: `[rows, (n_heads + 2·n_kv_heads)·head_dim]`, queries first, then keys, then values. `bias`: the
/// same without rows. `norms`, of query and key heads by their root mean square: `[head_dim]` each. `rope`: a
/// row of angles for each row.
///
/// # Panics
/// If the shapes do not match.
pub fn split_heads(
    qkv: Tensor<2>,
    bias: Option<Tensor<1>>,
    norms: [Option<Tensor<1>>; 2],
    rope: &RopeTable,
    layout: HeadLayout,
) -> Heads {
    assert_eq!(qkv.dims()[1], layout.width(), "columns of the joint projection");
    assert_eq!(qkv.dims()[0], rope.cos.dims()[0], "rows of the projection and of the angles");
    if let Some(bias) = &bias {
        assert_eq!(bias.dims()[0], layout.width(), "length of the bias");
    }
    for norm in norms.iter().flatten() {
        assert_eq!(norm.dims()[0], layout.head_dim, "length of a head's norm");
    }
    let [q_norm, k_norm] = norms;
    let [bias, q_norm, k_norm] = optional([bias, q_norm, k_norm]);
    let heads = Dispatch::heads(
        qkv.into_dispatch(),
        bias,
        q_norm,
        k_norm,
        rope.cos.clone().into_dispatch(),
        rope.sin.clone().into_dispatch(),
        layout,
    );
    Heads {
        q: Tensor::from_dispatch(heads.q),
        k: Tensor::from_dispatch(heads.k),
        v: Tensor::from_dispatch(heads.v),
    }
}
