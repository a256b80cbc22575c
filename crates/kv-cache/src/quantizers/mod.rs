//! Quantizers of keys and values: fewer bits for each element.
//!
//! | file | method |
//! |---|---|
//! | `lloyd_max` | the best scalar codebooks for rotated vectors, computed |
//! | `turbo_quant` | TurboQuant: rotation and codebook; plain, rescaled, and with a sketch of signs |

mod lloyd_max;
mod random;
mod turbo_quant;

pub use lloyd_max::{Codebook, MAX_CODEBOOK_BITS};
pub use turbo_quant::{Estimator, RotationKind, Sketch, TurboCode, TurboQuant, TurboQuantConfig};
