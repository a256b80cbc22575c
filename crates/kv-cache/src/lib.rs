//! Key-value caches of transformer sequences, and attention over them.
//!
//! [`KvCache`] is the interface: a forward pass appends keys and values layer by layer and attends in the
//! same call. Its tokens stay provisional until they are committed, so speculation can take them back.
//!
//! | to | use |
//! |---|---|
//! | keep every token exactly, as 16- or 32-bit floats, in pages that forks share | [`PlainCache`] |
//! | keep the same tokens in 2 to 8 bits per element | [`QuantizedCache`] with a [`Compression`]; methods are in [`coders`] |
//! | keep fewer tokens | [`EvictingCache`] with an [`Eviction`]; methods are in [`presses`] |
//! | choose any of them by name, such as `snapkv-25+water-4` | [`CacheSpec`] |
//! | attend for many sequences in one call | [`attend_many`] |
//! | compute attention without a cache | [`attention()`] |
//!
//! A row's result has the same bits, whatever else is in the call: see [`KvCache`].
//!
//! # Example
//! Decoding token by token gives the bits of one big step:
//! ```
//! use breakers_kv_cache::{CacheShape, Element, KvCache, LayerShape, PlainCache};
//! use burn::tensor::{Device, Distribution, Tensor};
//!
//! # fn main() -> Result<(), breakers_kv_cache::Error> {
//! let device = Device::flex();
//! let shape = CacheShape::uniform(1, LayerShape::new(1, 64), 1024);
//! let random = |heads| Tensor::<3>::random([3, heads, 64], Distribution::Default, &device);
//! let (q, k, v) = (random(2), random(1), random(1));
//!
//! let mut at_once = PlainCache::new(shape.clone(), Element::F16, &device)?;
//! at_once.begin(3, None)?;
//! let expected = at_once.attend(0, q.clone(), k.clone(), v.clone(), 0.125)?;
//! at_once.end()?;
//!
//! let mut one_by_one = PlainCache::new(shape, Element::F16, &device)?;
//! for row in 0..3 {
//!     let pick = |t: &Tensor<3>| t.clone().narrow(0, row, 1);
//!     one_by_one.begin(1, None)?;
//!     let out = one_by_one.attend(0, pick(&q), pick(&k), pick(&v), 0.125)?;
//!     one_by_one.end()?;
//!     one_by_one.commit(1)?;
//!     assert_eq!(out.into_data(), expected.clone().narrow(0, row, 1).into_data());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A coder of your own: keys and values as bytes, with one scale for each page.
//! ```
//! use breakers_kv_cache::coders::{Coder, Coding, PageCoder};
//! use breakers_kv_cache::{CacheShape, Compression, KvCache, LayerShape, QuantizedCache, Result};
//! use burn::tensor::{Device, Distribution, Tensor};
//!
//! #[derive(Debug)]
//! struct Bytes;
//!
//! impl Coder for Bytes {
//!     fn name(&self) -> String {
//!         "bytes".to_owned()
//!     }
//!     fn coding(&self, head_dim: usize) -> Result<Coding> {
//!         Ok(Coding::pages(Page { head_dim }, Page { head_dim }))
//!     }
//! }
//!
//! struct Page {
//!     head_dim: usize,
//! }
//!
//! impl PageCoder for Page {
//!     fn page_bytes(&self) -> usize {
//!         4 + breakers_kv_cache::coders::PAGE_TOKENS * self.head_dim
//!     }
//!     fn encode(&self, rows: &[f32], bytes: &mut [u8]) {
//!         let scale = rows.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
//!         let (head, codes) = bytes.split_at_mut(4);
//!         head.copy_from_slice(&scale.to_le_bytes());
//!         for (code, x) in codes.iter_mut().zip(rows) {
//!             *code = (x / scale.max(f32::MIN_POSITIVE)).round() as i8 as u8;
//!         }
//!     }
//!     fn decode(&self, bytes: &[u8], rows: &mut [f32]) {
//!         let (head, codes) = bytes.split_at(4);
//!         let scale = f32::from_le_bytes(head.try_into().unwrap_or_default());
//!         rows.iter_mut().zip(codes).for_each(|(x, code)| *x = f32::from(*code as i8) * scale);
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! let device = Device::flex();
//! let shape = CacheShape::uniform(1, LayerShape::new(2, 64), 4096);
//! let mut cache = QuantizedCache::new(shape, &Compression::new(Bytes), &device)?;
//! let random = |heads| Tensor::<3>::random([256, heads, 64], Distribution::Default, &device);
//! cache.begin(256, None)?;
//! cache.attend(0, random(4), random(2), random(2), 0.125)?;
//! cache.end()?;
//! cache.commit(256)?;
//! // About eight bits an element, where 16-bit floats would take twice as much.
//! assert!(cache.bytes() < 256 * 2 * 2 * 64 * 3 / 2);
//! # Ok(())
//! # }
//! ```

mod attention;
mod cache;
mod checks;
pub mod coders;
mod error;
mod pages;
pub mod presses;
mod shape;
mod tree;

pub use attention::visible::Visible;
pub use attention::{AttentionOps, attention, attention_reference};
pub use cache::KvCache;
pub use cache::driver::{Cache, Segment, attend_many};
pub use cache::evicting::{Budget, EvictingCache, Eviction};
pub use cache::plain::PlainCache;
pub use cache::quantized::{Compression, QuantizedCache};
pub use cache::spec::{CacheKind, CacheSpec};
pub use error::{Error, Result, SegmentError};
pub use pages::meter::PageMeter;
pub use shape::{CacheShape, Element, LayerShape};
