//! Storage of keys and values: pages of 64 tokens, plain or packed, in the host's memory or on a device.
//!
//! There is no attention here: [`attention`](crate::attention) reads pages, and [`cache`](crate::cache) owns
//! them.

pub(crate) mod device;
pub(crate) mod layer;
pub(crate) mod meter;
pub(crate) mod packed;
pub(crate) mod page;
pub(crate) mod saved;
pub(crate) mod source;
