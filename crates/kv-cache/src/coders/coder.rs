//! The interface between a method and a cache.

use std::fmt;

use breakers_cpu::hadamard::Rotation;

use super::turbo_quant::rotation;
use crate::pages::packed::{MAX_HEAD_DIM, TileCoder};
use crate::pages::page::LANES;
use crate::{Error, Result};

/// A way to code keys and values in fewer bits.
///
/// This crate's own methods are settings that implement it, such as [`KiviConfig`](super::KiviConfig). Your
/// own method works in every cache on the CPU: it turns pages of tokens into bytes and back ([`PageCoder`]).
///
/// The [crate's front page](crate) has an example.
pub trait Coder: fmt::Debug + Send + Sync {
    /// A name for reports and errors.
    fn name(&self) -> String;

    /// Newest tokens that the method itself keeps as they are.
    fn window(&self) -> usize {
        0
    }

    /// The method for heads of `head_dim` elements.
    ///
    /// # Errors
    /// The method's own; those of this crate: [`Error::HeadWidth`], [`Error::BitWidth`],
    /// [`Error::GroupSize`].
    fn coding(&self, head_dim: usize) -> Result<Coding>;
}

/// Codes keys, or values, of one head: the tokens of a page into bytes and back.
///
/// # Numbers
/// The numbers that [`decode`](Self::decode) returns are rounded to 16-bit floats and must be finite. The
/// same bytes must always give the same numbers, or rows would depend on how their prefix was fed.
///
/// # Cost
/// A page is decoded again for every step that reads it, and for every group of query rows of a step; the
/// kernels of this crate's methods read codes directly.
pub trait PageCoder: Send + Sync {
    /// Bytes of a page: of [`PAGE_TOKENS`](super::PAGE_TOKENS) tokens.
    fn page_bytes(&self) -> usize;

    /// Codes `rows`, `[n_tokens, head_dim]`. There are as many tokens as a page has, without those of the
    /// first page that stay exact. `bytes` are zero, and as many as [`page_bytes`](Self::page_bytes) says.
    fn encode(&self, rows: &[f32], bytes: &mut [u8]);

    /// Fills the same rows from their bytes.
    fn decode(&self, bytes: &[u8], rows: &mut [f32]);
}

/// A method for heads of one width.
pub struct Coding(pub(crate) CodingKind);

/// How pages are coded.
#[allow(clippy::large_enum_variant)] // Taken apart where it is made; its size does not matter.
pub(crate) enum CodingKind {
    /// In this crate's packed format, which kernels read as it is.
    Packed(PackedCoding),
    /// In bytes that only the coders can read: of keys and of values.
    Pages(Box<dyn PageCoder>, Box<dyn PageCoder>),
}

/// A method that packs pages.
pub(crate) struct PackedCoding {
    pub(crate) keys: Box<dyn TileCoder>,
    pub(crate) values: Box<dyn TileCoder>,
    pub(crate) key_rotation: Option<Rotation>,
    pub(crate) value_rotation: Option<Rotation>,
    /// What rotated queries are projected with, `[head_dim, head_dim]` by rows; empty for most methods.
    pub(crate) sketch: Vec<f32>,
    pub(crate) weighs_channels: bool,
}

impl Coding {
    /// Coders of keys and of values.
    pub fn pages(keys: impl PageCoder + 'static, values: impl PageCoder + 'static) -> Self {
        Self(CodingKind::Pages(Box::new(keys), Box::new(values)))
    }
}

impl fmt::Debug for Coding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            CodingKind::Packed(_) => "Coding(packed)",
            CodingKind::Pages(..) => "Coding(pages)",
        })
    }
}

impl PackedCoding {
    /// A method of which heads are not rotated.
    pub(super) fn new(keys: impl TileCoder + 'static, values: impl TileCoder + 'static) -> Self {
        Self {
            keys: Box::new(keys),
            values: Box::new(values),
            key_rotation: None,
            value_rotation: None,
            sketch: Vec::new(),
            weighs_channels: false,
        }
    }

    /// The same with keys and values, or values alone, rotated by Walsh–Hadamard transforms.
    pub(super) fn rotated(self, dim: usize, keys: bool) -> Result<Self> {
        let key_rotation = keys.then(|| rotation(dim, KEY_SEED)).transpose()?;
        Ok(Self { key_rotation, value_rotation: Some(rotation(dim, VALUE_SEED)?), ..self })
    }
}

impl From<PackedCoding> for Coding {
    fn from(coding: PackedCoding) -> Self {
        Self(CodingKind::Packed(coding))
    }
}

/// Seeds of the rotations of keys and of values.
const KEY_SEED: u64 = 0x6b65_7973;
const VALUE_SEED: u64 = 0x7661_6c73;

/// Fails for heads that packed pages cannot hold.
pub(super) fn check_width(dim: usize) -> Result<()> {
    if dim.is_power_of_two() && (LANES..=MAX_HEAD_DIM).contains(&dim) {
        return Ok(());
    }
    Err(Error::HeadWidth { expected: "a power of two from 16 to 256", found: dim })
}

/// Fails for other numbers of bits than 1 to 8.
pub(super) fn whole_bits(what: &'static str, bits: u32) -> Result<()> {
    check_bits(what, "1 to 8", bits.into(), 1.0, 8.0)
}

/// Fails for a number of bits out of range.
pub(super) fn check_bits(
    what: &'static str,
    expected: &'static str,
    found: f64,
    least: f64,
    most: f64,
) -> Result<()> {
    // Also false for a NaN.
    if found >= least && found <= most { Ok(()) } else { Err(Error::BitWidth { what, expected, found }) }
}
