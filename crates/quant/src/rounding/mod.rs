//! What all methods share below them: scales and codes of every format.

mod chosen;
mod encode;
mod grid;

pub(crate) use chosen::{Chosen, group_ranges};
pub(crate) use grid::{Grid, LANES, inverse};
