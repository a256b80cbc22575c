//! What all methods have in common: the scales and codes of every format.

mod chosen;
mod encode;
mod grid;

pub(crate) use chosen::{Chosen, group_ranges};
pub(crate) use grid::{Grid, LANES, inverse};
