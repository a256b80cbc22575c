#![doc = include_str!("../README.md")]

mod bert;
mod error;
mod weights;

pub use bert::{Bert, SeeInputs};
pub use error::{Error, Result};
