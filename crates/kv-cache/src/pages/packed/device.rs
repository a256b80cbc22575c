//! Packed pages in a GPU's memory.

pub(crate) mod format;
pub(crate) mod packing;
pub(crate) mod tail;
pub(crate) mod words;
