#![doc = include_str!("../README.md")]

mod database;
mod error;
#[cfg(feature = "testing")]
pub mod testing;

pub use database::{
    Durability, Schema, SqliteConfig, connect, failed, library_version, open, open_copy, write,
};
pub use error::{Error, Result};
