#![doc = include_str!("../README.md")]

mod atomic;
mod buffer;
mod disk;
mod error;
pub mod journal;
mod lock;
pub mod sections;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(feature = "testing")]
pub mod testing;

pub use atomic::{Replacement, clean, is_temporary, open, put_in_place, replace};
pub use buffer::Buffer;
pub use disk::{Disk, OsDisk};
pub use error::{Error, Result};
pub use lock::FileLock;
