#![doc = include_str!("../README.md")]

mod charsmap;
mod check;
mod error;
mod load;
mod pieces;
mod template;

pub use error::{Error, Result};
pub use load::{from_file, from_slice};
