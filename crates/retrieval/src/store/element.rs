//! How the numbers of a vector are kept in the database.

use crate::{Error, Result};
use half::f16;
use serde::{Deserialize, Serialize};

/// How a collection keeps its vectors. All distances are of what was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Element {
    /// 32-bit floats: what was given.
    #[default]
    F32,
    /// 16-bit floats: half the bytes, three decimal digits. Vectors with a number beyond ±65,504, or with all
    /// numbers below 6·10⁻⁵, are refused, because they would not keep three digits.
    F16,
    /// Eight bits for each number, and one step for the vector.
    I8,
    /// One bit for each number, its sign: −1 for negative numbers, +1 for the others.
    Binary,
}

impl Element {
    /// Every element type, for tests and reports.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::I8, Self::Binary];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::I8 => "i8",
            Self::Binary => "binary",
        }
    }

    /// Bytes of a vector.
    pub const fn bytes(self, dimension: usize) -> usize {
        match self {
            Self::F32 => 4 * dimension,
            Self::F16 => 2 * dimension,
            Self::I8 => 4 + dimension,
            Self::Binary => dimension.div_ceil(8),
        }
    }

    /// The bytes of a vector of finite numbers.
    ///
    /// # Errors
    /// [`Error::ElementRange`].
    pub(crate) fn encode(self, vector: &[f32]) -> Result<Vec<u8>> {
        self.check(vector)?;
        Ok(match self {
            Self::F32 => vector.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::F16 => vector.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Self::I8 => {
                let step = vector.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
                // In 64 bits, in which the inverse of every step is finite.
                let factor = if step > 0.0 { 1.0 / f64::from(step) } else { 0.0 };
                let code = |x: f32| (f64::from(x) * factor).round_ties_even().clamp(-127.0, 127.0) as i8;
                let codes = vector.iter().map(|&x| code(x) as u8);
                step.to_le_bytes().into_iter().chain(codes).collect()
            }
            Self::Binary => {
                let byte =
                    |bits: &[f32]| bits.iter().enumerate().fold(0, |b, (i, x)| b | u8::from(*x >= 0.0) << i);
                vector.chunks(8).map(byte).collect()
            }
        })
    }

    /// The largest magnitude of a vector's numbers must be within these.
    fn magnitudes(self) -> std::ops::RangeInclusive<f32> {
        match self {
            Self::F16 => f16::MIN_POSITIVE.to_f32()..=f16::MAX.to_f32(),
            // A step must be a normal number, with all its digits.
            Self::I8 => 127.0 * f32::MIN_POSITIVE..=f32::MAX,
            Self::F32 | Self::Binary => 0.0..=f32::MAX,
        }
    }

    fn check(self, vector: &[f32]) -> Result<()> {
        let mut largest = (0, 0.0);
        for (index, &x) in vector.iter().enumerate() {
            if x.abs() > f32::abs(largest.1) {
                largest = (index, x);
            }
        }
        let (index, value) = largest;
        let allowed = self.magnitudes();
        if value == 0.0 || allowed.contains(&value.abs()) {
            return Ok(());
        }
        let (least, most) = allowed.into_inner();
        Err(Error::ElementRange { element: self.name(), index, value, least, most })
    }

    /// # Errors
    /// [`Error::Corrupt`] for another number of bytes.
    pub(crate) fn decode(self, bytes: &[u8], dimension: usize) -> Result<Vec<f32>> {
        if bytes.len() != self.bytes(dimension) {
            return Err(Error::Corrupt {
                what: format!("a vector of {dimension} × {}", self.name()),
                expected: format!("{} bytes", self.bytes(dimension)),
                found: format!("{} bytes", bytes.len()),
            });
        }
        Ok(match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Self::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Self::I8 => {
                let step = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                bytes[4..].iter().map(|&b| f32::from(b as i8) * step).collect()
            }
            Self::Binary => {
                (0..dimension).map(|i| if bytes[i / 8] >> (i % 8) & 1 == 1 { 1.0 } else { -1.0 }).collect()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn vectors_come_back_as_near_as_their_type_allows(vector in prop::collection::vec(-1000.0f32..1000.0, 1..70)) {
            let largest = vector.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            for element in Element::ALL {
                let bytes = element.encode(&vector).unwrap();
                prop_assert_eq!(bytes.len(), element.bytes(vector.len()));
                let back = element.decode(&bytes, vector.len()).unwrap();
                for (x, y) in vector.iter().zip(&back) {
                    let error = match element {
                        Element::F32 => 0.0,
                        Element::F16 => x.abs() / 2048.0 + 1e-7,
                        Element::I8 => largest / 253.0,
                        Element::Binary => (x - if *x >= 0.0 { 1.0 } else { -1.0 }).abs(),
                    };
                    prop_assert!((x - y).abs() <= error, "{:?}: {} and {}", element, x, y);
                }
                // A stored vector is stored again unchanged.
                prop_assert_eq!(element.decode(&element.encode(&back).unwrap(), vector.len()).unwrap().len(), back.len());
                prop_assert!(element.decode(&bytes[1..], vector.len()).is_err());
            }
        }
    }

    #[test]
    fn what_would_come_back_as_another_vector_is_refused() {
        let encode = |element: Element, vector: &[f32]| element.encode(vector).map(|_| ());
        for vector in [[1e6, 0.0], [0.0, -65_520.0], [1e14, 1.0], [1e-6, -6e-5]] {
            let error = encode(Element::F16, &vector).unwrap_err();
            assert!(matches!(error, Error::ElementRange { element: "f16", .. }), "{vector:?}: {error}");
        }
        for vector in [[65_504.0, 1.0], [0.0, 0.0], [1e-7, 1.0], [-6.2e-5, 0.0]] {
            encode(Element::F16, &vector).unwrap();
        }
        assert!(matches!(encode(Element::I8, &[1e-40, 0.0]), Err(Error::ElementRange { index: 0, .. })));
        for scale in [1e-35, 1e-20, 1.0, 9e14] {
            let vector = [scale, -0.5 * scale, 0.0];
            let back = Element::I8.decode(&Element::I8.encode(&vector).unwrap(), 3).unwrap();
            for (x, y) in vector.iter().zip(back) {
                assert!((x - y).abs() <= scale / 250.0, "{x} and {y}");
            }
        }
    }
}
