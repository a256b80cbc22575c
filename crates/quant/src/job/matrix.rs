//! The quantization of one matrix, with what its method has prepared.

use std::collections::BTreeMap;

use breakers_cpu::hadamard::Rotation;
use breakers_gguf as gguf;
use breakers_gguf::{Encoding, Format, QuantizedMatrix};

use super::TensorReport;
use super::parts::Shape;
use super::run::Job;
use crate::Error;
use crate::methods::RoundToNearest;
use crate::quantizer::{Quantized, Quantizer, WeightMatrix};
use crate::statistics::{Statistics, StatisticsConfig};

/// Rows of inputs that errors are reported on.
const REPORT_ROWS: usize = 256;
/// The largest square of a row of inputs in the statistics, as a multiple of its window's median.
const ROW_LIMIT: f32 = 4.0;

/// Which statistics to collect for a method with these needs.
pub(super) fn statistics_config(needs: StatisticsConfig) -> StatisticsConfig {
    StatisticsConfig {
        sample_rows: needs.sample_rows.max(REPORT_ROWS),
        row_limit: needs.row_limit.or(Some(ROW_LIMIT)),
        ..needs
    }
}

/// A matrix of a block.
pub(super) struct Matrix {
    pub(super) name: String,
    pub(super) values: Vec<f32>,
    pub(super) n_rows: usize,
    pub(super) n_cols: usize,
}

/// How the matrices of one place are quantized.
pub(super) struct Prepared<'a> {
    method: Method<'a>,
    statistics: Option<Statistics>,
    /// The rotation of their inputs and of the statistics.
    online: Option<(Rotation, u64)>,
}

/// The job's method, or the quantizer that it has prepared for this place.
enum Method<'a> {
    Shared(&'a dyn Quantizer),
    Own(Box<dyn Quantizer>),
}

/// Rounding, for matrices without statistics or in formats that the method does not support.
const NEAREST: &RoundToNearest = &RoundToNearest::new().unweighted();

impl Prepared<'_> {
    /// Rounding, without statistics.
    pub(super) const PLAIN: Self = Self { method: Method::Shared(NEAREST), statistics: None, online: None };

    fn method(&self) -> &dyn Quantizer {
        match &self.method {
            Method::Shared(method) => *method,
            Method::Own(method) => &**method,
        }
    }
}

impl<'a> Job<'a> {
    /// How the matrices of a place in a block are quantized.
    pub(super) fn prepared(
        &self,
        statistics: Option<Statistics>,
        n_cols: usize,
    ) -> Result<Prepared<'a>, Error> {
        let Some(seed) = self.online else { return self.prepared_as_is(statistics) };
        let rotation = Rotation::random(n_cols, seed)?;
        let rotate = |rows: &mut [f32]| Ok(rotation.forward(rows)?);
        let statistics = statistics.map(|found| found.transformed(rotate)).transpose()?;
        Ok(Prepared { online: Some((rotation, seed)), ..self.prepared_as_is(statistics)? })
    }

    /// As [`prepared`](Self::prepared), for inputs that are not rotated.
    pub(super) fn prepared_as_is(&self, statistics: Option<Statistics>) -> Result<Prepared<'a>, Error> {
        let method = match &statistics {
            None if self.rounding.needs().is_some() => return Ok(Prepared::PLAIN),
            None => None,
            Some(statistics) => self.rounding.prepare(statistics)?,
        };
        let mut prepared = Prepared { method: Method::Shared(self.rounding), statistics, online: None };
        if let Some(method) = method {
            // The prepared quantizer has taken what it needs; the rest is only for the report.
            prepared.statistics.iter_mut().for_each(Statistics::drop_hessian);
            prepared.method = Method::Own(method);
        }
        Ok(prepared)
    }

    /// Chooses the weights of a matrix.
    pub(super) fn choose(
        &self,
        name: &str,
        mut values: Vec<f32>,
        n_rows: usize,
        n_cols: usize,
        encoding: Encoding,
        prepared: &Prepared<'_>,
    ) -> Result<Quantized, Error> {
        // Checked before a rotation would spread a NaN over the row.
        WeightMatrix::new(&values, n_rows, n_cols).map_err(Error::in_tensor(name))?;
        if let Some((rotation, _)) = &prepared.online {
            rotation.forward(&mut values)?;
        }
        let weights = WeightMatrix::new(&values, n_rows, n_cols).map_err(Error::in_tensor(name))?;
        // The source's own format, which a method may keep without supporting it, stays the same under a
        // change of basis.
        let method: &dyn Quantizer = match prepared.method().check(encoding) {
            Ok(()) => prepared.method(),
            Err(_) => NEAREST,
        };
        let mut quantized = method
            .quantize(&weights, encoding, prepared.statistics.as_ref())
            .map_err(Error::in_tensor(name))?;
        // Tables are quantized in slabs of rows, for which a rotation cannot be recorded.
        let can_rotate = self.as_store && prepared.online.is_none() && name.starts_with("blk.");
        accept(method, &weights, encoding, can_rotate, &quantized.matrix).map_err(Error::in_tensor(name))?;
        if let Some((_, seed)) = prepared.online {
            quantized.matrix = quantized.matrix.of_rotated_inputs(seed).map_err(Error::in_tensor(name))?;
        }
        Ok(quantized)
    }
}

/// Fails unless a quantizer returned what was requested and the output can store it.
fn accept(
    method: &dyn Quantizer,
    weights: &WeightMatrix<'_>,
    encoding: Encoding,
    can_rotate: bool,
    matrix: &QuantizedMatrix,
) -> Result<(), Error> {
    let wrong =
        |expected: String, found: String| Err(Error::WrongMatrix { method: method.name(), expected, found });
    let expected = (encoding, weights.n_rows(), weights.n_cols());
    let found = (matrix.encoding(), matrix.n_rows(), matrix.n_cols());
    if found != expected {
        let words = |(encoding, n_rows, n_cols): (Encoding, usize, usize)| {
            format!("{n_rows} rows of {n_cols} in {encoding}")
        };
        return wrong(words(expected), words(found));
    }
    if matrix.input_scales().is_some() {
        return wrong("a matrix for inputs as they are".to_owned(), "one for divided inputs".to_owned());
    }
    if matrix.rotation_seed().is_some() && !can_rotate {
        return wrong("a matrix for inputs as they are".to_owned(), "one for rotated inputs".to_owned());
    }
    Ok(())
}

/// A file in memory with new contents for some tensors; those in formats of our own are decoded to half
/// precision.
pub(super) fn file_of(tensors: &[(&gguf::TensorView<'_>, QuantizedMatrix)]) -> Result<gguf::File, Error> {
    let mut writer = gguf::Writer::new();
    for (view, tensor) in tensors {
        let format = match tensor.encoding() {
            Encoding::Gguf(format) if tensor.rotation_seed().is_none() => format,
            _ => Format::F16,
        };
        writer.declare(view.name(), format, view.shape())?;
    }
    let mut sink = writer.write_to(Vec::new())?;
    for (view, tensor) in tensors {
        match tensor.blocks() {
            Some(bytes) if tensor.rotation_seed().is_none() => sink.write(view.name(), bytes)?,
            _ => {
                let halves = tensor.to_f32().into_iter().flat_map(|x| half::f16::from_f32(x).to_le_bytes());
                sink.write(view.name(), &halves.collect::<Vec<u8>>())?;
            }
        }
    }
    Ok(gguf::File::from_bytes(sink.finish()?)?)
}

/// A vector as a matrix of one row.
pub(super) fn vector(values: &[f32]) -> Result<QuantizedMatrix, Error> {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    Ok(QuantizedMatrix::from_bytes(Format::F32, 1, values.len(), bytes)?)
}

pub(super) fn kept(view: &gguf::TensorView<'_>) -> TensorReport {
    TensorReport {
        name: view.name().to_owned(),
        from: view.format(),
        to: view.format().into(),
        kept: true,
        weight_error: 0.0,
        output_error: None,
        damping: None,
    }
}

pub(super) fn shape(view: &gguf::TensorView<'_>, encoding: Encoding) -> Shape {
    (encoding, [view.n_rows(), view.n_cols()])
}

pub(super) fn require<'a, T>(found: &'a mut BTreeMap<String, T>, name: &str) -> Result<&'a mut T, Error> {
    found.get_mut(name).ok_or_else(|| Error::MissingTensor { name: name.to_owned() })
}
