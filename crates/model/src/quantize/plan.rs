//! Which matrix gets which format.

use std::collections::BTreeMap;

use breakers_quant::quantizer::Encoding;
use breakers_quant::{Format, GroupFormat, gguf};

use crate::Error;

/// Formats of a model's matrices by name. Vectors (norms, biases) stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    formats: BTreeMap<String, Format>,
}

impl Plan {
    /// One format for all matrices, the embeddings and the head included.
    pub fn uniform(file: &gguf::File, format: Format) -> Self {
        Self::by(file, |_, _| format)
    }

    /// A format for each matrix, chosen by its name and its format in the source.
    pub fn by(file: &gguf::File, choose: impl Fn(&str, Format) -> Format) -> Self {
        let matrices = file.tensors().filter(is_matrix);
        Self {
            formats: matrices
                .map(|view| {
                    let format = fitting(choose(view.name(), view.format()), view.n_cols());
                    (view.name().to_owned(), format)
                })
                .collect(),
        }
    }

    /// The formats of another file of the same model: its size, chosen otherwise.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when that file lacks a matrix.
    pub fn like(file: &gguf::File, other: &gguf::File) -> Result<Self, Error> {
        let formats = file.tensors().filter(is_matrix).map(|view| {
            let other = other.tensor(view.name());
            let other = other.ok_or_else(|| Error::MissingTensor { name: view.name().to_owned() })?;
            Ok((view.name().to_owned(), other.format()))
        });
        Ok(Self { formats: formats.collect::<Result<_, Error>>()? })
    }

    /// The format of a tensor, if it is a matrix of the plan.
    pub fn format(&self, name: &str) -> Option<Format> {
        self.formats.get(name).copied()
    }

    /// Gives a tensor another format; what its rows cannot be is replaced by the nearest format that fits them.
    pub fn set(&mut self, name: &str, format: Format, n_cols: usize) {
        self.formats.insert(name.to_owned(), fitting(format, n_cols));
    }

    /// All matrices and their formats.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Format)> {
        self.formats.iter().map(|(name, format)| (&**name, *format))
    }

    /// Bytes of all matrices in these formats.
    pub fn bytes(&self, file: &gguf::File) -> u64 {
        let matrix = |(name, format): (&String, &Format)| {
            let view = file.tensor(name)?;
            Some((view.n_rows() * format.row_bytes(view.n_cols()).ok()?) as u64)
        };
        self.formats.iter().filter_map(matrix).sum()
    }
}

fn is_matrix(view: &gguf::TensorView<'_>) -> bool {
    view.shape().len() == 2
}

/// The format, or where rows are not whole blocks of it the one that takes its place in files of llama.cpp too: IQ4_NL for two
/// and three bits, Q5_0, Q5_1 and Q8_0 for four, five and six; F16 for rows that are not even whole blocks of 32.
pub(super) fn fitting(format: Format, n_cols: usize) -> Format {
    if n_cols.is_multiple_of(format.block_size()) {
        return format;
    }
    if !n_cols.is_multiple_of(32) {
        return Format::F16;
    }
    match format {
        Format::Q4_K => Format::Q5_0,
        Format::Q5_K => Format::Q5_1,
        Format::Q6_K => Format::Q8_0,
        _ => Format::IQ4_NL,
    }
}

/// The encoding, or where groups do not divide rows, the one with the largest half, quarter and so on of them that does; groups of
/// less than 32 have no product.
pub(super) fn fitting_groups(encoding: Encoding, n_cols: usize) -> Encoding {
    let halved = |group: usize| {
        let mut halves = std::iter::successors(Some(group), |group| Some(group / 2));
        let fits = |group: &usize| n_cols.is_multiple_of((*group).max(1));
        halves.by_ref().take_while(|group| *group >= 32).find(fits).unwrap_or(group)
    };
    match encoding {
        Encoding::Groups(GroupFormat::Affine { bits, group }) => {
            Encoding::Groups(GroupFormat::Affine { bits, group: halved(group) })
        }
        Encoding::Groups(GroupFormat::Symmetric { bits, group }) => {
            Encoding::Groups(GroupFormat::Symmetric { bits, group: halved(group) })
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_divide_no_row_are_halved() {
        let affine = |group| Encoding::Groups(GroupFormat::Affine { bits: 4, group });
        for (group, n_cols, expected) in [
            (128, 1536, 128),
            (128, 576, 64),
            (128, 96, 32),
            (48, 576, 48),
            (128, 100, 128),
            (0, 64, 0),
            (usize::MAX, 64, usize::MAX),
        ] {
            assert_eq!(fitting_groups(affine(group), n_cols), affine(expected), "{group} in {n_cols}");
        }
        assert_eq!(fitting_groups(Encoding::Gguf(Format::Q4_K), 576), Encoding::Gguf(Format::Q4_K));
    }
}
