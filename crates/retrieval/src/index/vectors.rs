use crate::{
    Error, Metric, Result,
    metric::{check_dimension, check_length},
};
use breakers_files::Buffer;
use std::fmt;

/// Vectors in full precision, to compute the distances that are returned.
///
/// They are in memory, or with the owner of the index, which passes a `Source` to every search.
#[derive(Debug)]
pub struct Vectors {
    dimension: usize,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Buffer<f32>),
    /// With the owner; the number of vectors.
    Elsewhere(usize),
}

/// The owner of vectors that are not in memory.
pub(crate) trait Source: fmt::Debug {
    /// Reads the prepared vector of a slot that searches return.
    ///
    /// # Errors
    /// Those of reading.
    fn read(&self, slot: u32) -> Result<Vec<f32>>;
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

    /// No vectors yet; they will stay with the owner.
    ///
    /// # Errors
    /// [`Error::DimensionRange`].
    pub(crate) fn elsewhere(dimension: usize) -> Result<Self> {
        check_dimension(dimension)?;
        Ok(Self { dimension, place: Place::Elsewhere(0) })
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        match &self.place {
            Place::Memory(values) => values.len() / self.dimension,
            Place::Elsewhere(n) => *n,
        }
    }

    /// Whether there are no vectors.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers of a vector.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Bytes that vectors take in memory.
    pub fn bytes(&self) -> usize {
        match &self.place {
            Place::Memory(values) => size_of_val(&**values),
            Place::Elsewhere(_) => 0,
        }
    }

    /// Whether they are in memory.
    pub(crate) fn are_here(&self) -> bool {
        matches!(self.place, Place::Memory(_))
    }

    /// Reserves room for `n` vectors.
    pub(crate) fn reserve(&mut self, n: usize) {
        if let Place::Memory(values) = &mut self.place {
            values.reserve(n.saturating_mul(self.dimension));
        }
    }

    /// Grows to at least `n` vectors; new ones are zero until they are set.
    pub(crate) fn grow(&mut self, n: usize) {
        let missing = n.saturating_sub(self.len());
        match &mut self.place {
            Place::Memory(values) => values.extend_zeroed(missing * self.dimension),
            Place::Elsewhere(len) => *len += missing,
        }
    }

    /// Sets the vector of an existing slot, or of the one after the last.
    pub(crate) fn set(&mut self, slot: u32, vector: &[f32]) -> Result<()> {
        check_length("the vector", vector, self.dimension)?;
        self.grow(slot as usize + 1);
        if let Place::Memory(values) = &mut self.place {
            values.make_mut()[slot as usize * self.dimension..][..self.dimension].copy_from_slice(vector);
        }
        Ok(())
    }

    /// The vector of a slot, if it is in memory.
    pub(crate) fn get(&self, slot: u32) -> Option<&[f32]> {
        match &self.place {
            Place::Memory(values) => values.get(slot as usize * self.dimension..)?.get(..self.dimension),
            Place::Elsewhere(_) => None,
        }
    }

    /// Prefetches a vector.
    pub(crate) fn prefetch(&self, slot: u32) {
        if let Place::Memory(values) = &self.place {
            let at = slot as usize * self.dimension;
            crate::distance::prefetch(values.as_ptr().wrapping_add(at).cast(), 4 * self.dimension);
        }
    }

    /// Computes the distance of a slot's vector, which is read from `source` if it is not here.
    ///
    /// # Errors
    /// Those of reading; [`Error::UnknownPoint`] for a vector that is nowhere.
    pub(crate) fn distance(
        &self,
        metric: Metric,
        query: &[f32],
        slot: u32,
        source: Option<&dyn Source>,
    ) -> Result<f32> {
        match (self.get(slot), source) {
            (Some(vector), _) => Ok(metric.distance(query, vector)),
            (None, Some(source)) => Ok(metric.distance(query, &source.read(slot)?)),
            (None, None) => Err(Error::UnknownPoint { id: slot.into() }),
        }
    }
}
