//! Quantizers of keys and values: fewer bits for each element.
//!
//! | file | method |
//! |---|---|
//! | `block` | Q8_0 and Q4_0: a scale for every 32 elements of a token |
//! | `kivi` | KIVI: keys by channels, values by tokens |
//! | `lloyd_max` | the best scalar codebooks for rotated vectors, computed |
//! | `turbo_quant` | TurboQuant: rotation and codebook; plain, rescaled, and with a sketch of signs |
//! | `turbo_cache` | the same in a cache's pages |
//! | `kvarn` | KVarN: equal spreads along tokens and channels, then rounding |
//! | `water_filling` | bits for each channel of the keys by what its errors cost |
//! | `table` | all of them by name: [`CODERS`] |
//!
//! [`Compression`](crate::Compression) turns a method into a cache. Your own method implements [`Coder`].

mod block;
mod coder;
mod kivi;
mod kvarn;
mod lloyd_max;
mod table;
mod turbo_cache;
mod turbo_quant;
mod water_filling;

pub use block::BlockConfig;
pub use coder::{Coder, Coding, PageCoder};
pub use kivi::KiviConfig;
pub use kvarn::KvarnConfig;
pub use lloyd_max::{Codebook, MAX_CODEBOOK_BITS};
pub use table::{CODERS, Entry};
pub use turbo_cache::TurboConfig;
pub use turbo_quant::{Estimator, RotationKind, Sketch, TurboCode, TurboQuant, TurboQuantConfig};
pub use water_filling::WaterFillingConfig;

pub(crate) use coder::{CodingKind, PackedCoding};

/// Tokens of a page.
pub const PAGE_TOKENS: usize = crate::pages::page::PAGE_TOKENS;
