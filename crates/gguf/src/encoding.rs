use crate::{Format, GroupFormat, Result};

/// The format that weights are packed in.
///
/// ```
/// use breakers_gguf::{Encoding, Format, GroupFormat};
///
/// let groups = GroupFormat::Affine { bits: 4, group: 128 };
/// assert_eq!(Encoding::parse("int4-g128"), Some(Encoding::Groups(groups)));
/// assert_eq!(Encoding::parse("q4_k"), Some(Encoding::Gguf(Format::Q4_K)));
/// assert_eq!(Encoding::Groups(groups).to_string(), "int4-g128");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
// Exhaustive on purpose, like the two enums that it consists of.
pub enum Encoding {
    /// Blocks of a GGUF file.
    Gguf(Format),
    /// A format of our own.
    Groups(GroupFormat),
}

impl Encoding {
    /// The name of the format.
    pub fn name(self) -> String {
        match self {
            Encoding::Gguf(format) => format.name().to_owned(),
            Encoding::Groups(format) => format.name(),
        }
    }

    /// Checks that rows of `n_cols` values can be packed.
    ///
    /// # Errors
    /// [`Error::RowLength`](crate::Error::RowLength), [`Error::GroupSize`](crate::Error::GroupSize),
    /// [`Error::Bits`](crate::Error::Bits).
    pub fn check(self, n_cols: usize) -> Result<()> {
        match self {
            Encoding::Gguf(format) => format.row_bytes(n_cols).map(|_| ()),
            Encoding::Groups(format) => format.check(n_cols),
        }
    }

    /// The size of a matrix in bytes: codes and scales as stored in files.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn matrix_bytes(self, n_rows: usize, n_cols: usize) -> Result<usize> {
        match self {
            Encoding::Gguf(format) => Ok(format.row_bytes(n_cols)?.saturating_mul(n_rows)),
            Encoding::Groups(format) => {
                format.check(n_cols)?;
                Ok(format.matrix_bytes(n_rows, n_cols))
            }
        }
    }

    /// The format with this [`name`](Self::name). Upper and lower case are the same for GGUF's formats.
    pub fn parse(name: &str) -> Option<Self> {
        let gguf = Format::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(name));
        gguf.map(Encoding::Gguf).or_else(|| GroupFormat::parse(name).map(Encoding::Groups))
    }
}

impl std::fmt::Display for Encoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

impl From<Format> for Encoding {
    fn from(format: Format) -> Self {
        Encoding::Gguf(format)
    }
}

impl From<GroupFormat> for Encoding {
    fn from(format: GroupFormat) -> Self {
        Encoding::Groups(format)
    }
}
