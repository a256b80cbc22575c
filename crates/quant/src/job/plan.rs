//! Which matrix gets which format.

use std::collections::BTreeMap;

use breakers_gguf as gguf;
use breakers_gguf::{Encoding, Format, GroupFormat};

use crate::Error;

/// Formats of a model's matrices by name. Vectors (norms, biases) are not changed.
///
/// If rows are not whole blocks or groups of a format, the nearest format that fits replaces it, and a note
/// says so: IQ4_NL for k-quants of two and three bits, Q5_0, Q5_1 and Q8_0 for four, five and six, as in
/// files of llama.cpp; F16 if rows are not even whole blocks of 32; halves, quarters and so on of groups,
/// down to 32.
///
/// # Example
/// ```no_run
/// use breakers_gguf::{File, Format};
/// use breakers_quant::job::Plan;
///
/// # fn main() -> Result<(), breakers_quant::Error> {
/// let file = File::open("model.gguf")?;
/// let mut plan = Plan::uniform(&file, Format::Q4_K);
/// plan.set("output.weight", Format::Q6_K, file.require("output.weight")?.n_cols());
/// println!("{} bytes", plan.bytes(&file));
/// plan.notes().iter().for_each(|note| println!("{note}"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    encodings: BTreeMap<String, Encoding>,
    /// What was asked for and what it became, by the length of rows.
    replaced: BTreeMap<(String, usize), Encoding>,
}

impl Plan {
    /// One format for all matrices, including the embeddings and the head.
    pub fn uniform(file: &gguf::File, encoding: impl Into<Encoding>) -> Self {
        let encoding = encoding.into();
        Self::by(file, |_, _| encoding)
    }

    /// A format for each matrix, chosen by its name and its format in the source.
    pub fn by<E: Into<Encoding>>(file: &gguf::File, choose: impl Fn(&str, Format) -> E) -> Self {
        let mut plan = Self::default();
        for view in file.tensors().filter(is_matrix) {
            plan.set(view.name(), choose(view.name(), view.format()), view.n_cols());
        }
        plan
    }

    /// The formats of another file of the same model, for a file of the same size with differently chosen
    /// weights.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when that file lacks a matrix.
    pub fn like(file: &gguf::File, other: &gguf::File) -> Result<Self, Error> {
        let encodings = file.tensors().filter(is_matrix).map(|view| {
            let other = other.tensor(view.name());
            let other = other.ok_or_else(|| Error::MissingTensor { name: view.name().to_owned() })?;
            Ok((view.name().to_owned(), other.format().into()))
        });
        Ok(Self { encodings: encodings.collect::<Result<_, Error>>()?, replaced: BTreeMap::new() })
    }

    /// The format of a tensor, if it is a matrix of the plan.
    pub fn encoding(&self, name: &str) -> Option<Encoding> {
        self.encodings.get(name).copied()
    }

    /// Gives a tensor with rows of `n_cols` values another format, or the nearest one that fits.
    pub fn set(&mut self, name: &str, encoding: impl Into<Encoding>, n_cols: usize) {
        let wanted = encoding.into();
        let found = fitting(wanted, n_cols);
        if found != wanted {
            self.replaced.insert((wanted.name(), n_cols), found);
        }
        self.encodings.insert(name.to_owned(), found);
    }

    /// All matrices and their formats.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Encoding)> {
        self.encodings.iter().map(|(name, encoding)| (&**name, *encoding))
    }

    /// Bytes of all matrices in these formats.
    pub fn bytes(&self, file: &gguf::File) -> u64 {
        let matrix = |(name, encoding): (&String, &Encoding)| {
            let view = file.tensor(name)?;
            Some(encoding.matrix_bytes(view.n_rows(), view.n_cols()).ok()? as u64)
        };
        self.encodings.iter().filter_map(matrix).sum()
    }

    /// Which formats had to be replaced, in words.
    pub fn notes(&self) -> Vec<String> {
        let note = |((wanted, n_cols), found): (&(String, usize), &Encoding)| {
            format!("rows of {n_cols} become {found} in place of {wanted}")
        };
        self.replaced.iter().map(note).collect()
    }
}

fn is_matrix(view: &gguf::TensorView<'_>) -> bool {
    view.shape().len() == 2
}

/// The format, or the one that replaces it; see [`Plan`]. If none fits, it stays, and is refused by name when
/// it is used.
pub(super) fn fitting(encoding: Encoding, n_cols: usize) -> Encoding {
    let halved = |group: usize| {
        let mut halves = std::iter::successors(Some(group), |group| Some(group / 2));
        let fits = |group: &usize| n_cols.is_multiple_of((*group).max(1));
        // Smaller groups have no product.
        halves.by_ref().take_while(|group| *group >= 32).find(fits).unwrap_or(group)
    };
    match encoding {
        Encoding::Groups(GroupFormat::Affine { bits, group }) => {
            GroupFormat::Affine { bits, group: halved(group) }.into()
        }
        Encoding::Groups(GroupFormat::Symmetric { bits, group }) => {
            GroupFormat::Symmetric { bits, group: halved(group) }.into()
        }
        Encoding::Gguf(format) if n_cols.is_multiple_of(format.block_size()) => encoding,
        Encoding::Gguf(_) if !n_cols.is_multiple_of(32) => Format::F16.into(),
        Encoding::Gguf(Format::Q4_K) => Format::Q5_0.into(),
        Encoding::Gguf(Format::Q5_K) => Format::Q5_1.into(),
        Encoding::Gguf(Format::Q6_K) => Format::Q8_0.into(),
        Encoding::Gguf(_) => Format::IQ4_NL.into(),
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
            assert_eq!(fitting(affine(group), n_cols), affine(expected), "{group} in {n_cols}");
        }
    }
}
