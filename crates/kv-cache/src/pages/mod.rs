//! Storage of keys and values: pages of 64 tokens, plain or packed, in the host's memory or on a device.
//!
//! Nothing here attends: [`attention`](crate::attention) reads pages, [`cache`](crate::cache) owns them.

pub(crate) mod device;
pub(crate) mod layer;
pub(crate) mod meter;
pub(crate) mod packed;
pub(crate) mod page;
pub(crate) mod source;
