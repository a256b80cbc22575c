#![doc = include_str!("../README.md")]

mod atomic;
mod buffer;
mod disk;
mod error;
pub mod journal;
mod lock;
pub mod sections;
#[cfg(feature = "testing")]
pub mod testing;

pub use atomic::{Replacement, clean, is_temporary, open, put_in_place, regular, replace};
pub use buffer::Buffer;
pub use disk::{Disk, OsDisk};
pub use error::{Error, Result};
pub use lock::FileLock;
