//! The methods, one file each, and all of them by name.
//!
//! | method | needs | idea |
//! |---|---|---|
//! | [`RoundToNearest`] | nothing; mean squares if there are any | the scales with the least error, the nearest code |
//! | [`Hqq`] | nothing | offsets that minimize a robust norm of the error |
//! | [`Awq`] | a sample of inputs | columns with large inputs are scaled up before they are rounded |
//! | [`Gptq`] | the Hessian | each column compensates the errors of those before it |
//! | [`Rotated`] | what the other method needs | a rotation of the inputs first, which removes outliers |

mod awq;
mod gptq;
mod hqq;
mod rotated;
mod round_to_nearest;
mod table;

pub use awq::{Awq, AwqConfig};
pub use gptq::{ColumnOrder, Gptq, GptqConfig, GptqFactor, ScaleImportance, ScaleTime};
pub use hqq::{Hqq, HqqConfig};
pub use rotated::Rotated;
pub use round_to_nearest::RoundToNearest;
pub use table::{Entry, METHODS, named};
