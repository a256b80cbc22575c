//! Coders that are not this crate's.

use crate::common::{Tokens, heads};
use crate::compressed::reference;
use breakers_kv_cache::coders::{Coder, Coding, PAGE_TOKENS, PageCoder};
use breakers_kv_cache::{CacheShape, Compression, KvCache, LayerShape, QuantizedCache, Result};
use burn::tensor::{Device, f16};

/// Eight bits an element, and one scale for all elements of a page.
#[derive(Debug)]
pub(crate) struct Bytes;

impl Coder for Bytes {
    fn name(&self) -> String {
        "bytes".to_owned()
    }

    fn coding(&self, head_dim: usize) -> Result<Coding> {
        Ok(Coding::pages(BytePage { head_dim }, BytePage { head_dim }))
    }
}

struct BytePage {
    head_dim: usize,
}

impl PageCoder for BytePage {
    fn page_bytes(&self) -> usize {
        4 + PAGE_TOKENS * self.head_dim
    }

    fn encode(&self, rows: &[f32], bytes: &mut [u8]) {
        let scale = rows.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
        bytes[..4].copy_from_slice(&scale.to_le_bytes());
        for (code, x) in bytes[4..].iter_mut().zip(rows) {
            *code = (x / scale).round() as i8 as u8;
        }
    }

    fn decode(&self, bytes: &[u8], rows: &mut [f32]) {
        let scale = f32::from_le_bytes(bytes[..4].try_into().unwrap());
        rows.iter_mut().zip(&bytes[4..]).for_each(|(x, code)| *x = f32::from(*code as i8) * scale);
    }
}

/// Keeps nothing: keys are zero, values are one.
#[derive(Debug)]
struct Constant;

impl Coder for Constant {
    fn name(&self) -> String {
        "constant".to_owned()
    }

    fn window(&self) -> usize {
        1
    }

    fn coding(&self, _head_dim: usize) -> Result<Coding> {
        Ok(Coding::pages(Filled(0.0), Filled(1.0)))
    }
}

struct Filled(f32);

impl PageCoder for Filled {
    fn page_bytes(&self) -> usize {
        0
    }

    fn encode(&self, _rows: &[f32], _bytes: &mut [u8]) {}

    fn decode(&self, _bytes: &[u8], rows: &mut [f32]) {
        rows.fill(self.0);
    }
}

#[test]
fn rows_see_what_a_coder_decodes_and_the_rest_as_it_is() {
    // The last row stands in the fifth page; a window of one token keeps the page before it, so that three
    // are coded. Heads of any width will do.
    for heads in [heads(4, 2, 64), heads(3, 1, 80), heads(2, 1, 7)] {
        let tokens = Tokens::random(heads, 300, 5);
        let compression = Compression::new(Constant);
        let shape = CacheShape::uniform(1, heads.layer(), 1000);
        let mut cache = QuantizedCache::new(shape, &compression, &Device::flex()).unwrap();
        let out = tokens.feed(&mut cache, None);
        let halves = |x: &[f32]| x.iter().map(|x| f16::from_f32(*x).to_f64()).collect::<Vec<_>>();
        let (mut keys, mut values) = (halves(&tokens.k), halves(&tokens.v));
        let width = heads.n_kv_heads * heads.head_dim;
        let coded = compression.exact_tokens * width..3 * PAGE_TOKENS * width;
        keys[coded.clone()].fill(0.0);
        values[coded].fill(1.0);
        let want = reference(&tokens, &keys, &values);
        let got = &out[out.len() - want.len()..];
        let worst = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-4, "{heads:?}: {worst}");
        // Exact tokens of the coded pages, two plain pages, and lists.
        cache.commit(300).unwrap();
        let (exact, plain) = (4 * 4 * width, 2 * PAGE_TOKENS * 2 * 2 * (width + 9 * heads.n_kv_heads));
        assert!(cache.bytes() < exact + plain + 2000, "{heads:?}: {} bytes", cache.bytes());
    }
}

#[test]
fn each_token_is_the_one_that_the_coder_was_given() {
    let heads = heads(4, 2, 64);
    let tokens = Tokens::random(heads, 300, 6);
    let compression = Compression::new(Bytes);
    let mut cache =
        QuantizedCache::new(CacheShape::uniform(1, heads.layer(), 1000), &compression, &Device::flex())
            .unwrap();
    let out = tokens.feed(&mut cache, None);
    let halves = |x: &[f32]| x.iter().map(|x| f16::from_f32(*x).to_f32()).collect::<Vec<_>>();
    let dim = heads.head_dim;
    // Head by head, each page's slots behind the exact ones, coded and decoded here.
    let decoded = |x: &[f32]| {
        let mut x = halves(x);
        let coder = BytePage { head_dim: dim };
        for (page, head) in (0..4).flat_map(|page| (0..heads.n_kv_heads).map(move |head| (page, head))) {
            let slots = if page == 0 { compression.exact_tokens..PAGE_TOKENS } else { 0..PAGE_TOKENS };
            let at = |slot: usize| ((page * PAGE_TOKENS + slot) * heads.n_kv_heads + head) * dim;
            let rows: Vec<f32> = slots.clone().flat_map(|slot| x[at(slot)..][..dim].to_vec()).collect();
            let (mut bytes, mut back) = (vec![0; coder.page_bytes()], vec![0.0; rows.len()]);
            coder.encode(&rows, &mut bytes);
            coder.decode(&bytes, &mut back);
            for (slot, row) in slots.zip(back.chunks_exact(dim)) {
                x[at(slot)..][..dim].copy_from_slice(row);
            }
        }
        x.into_iter().map(f64::from).collect::<Vec<_>>()
    };
    let want = reference(&tokens, &decoded(&tokens.k), &decoded(&tokens.v));
    let got = &out[out.len() - want.len()..];
    let worst = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-3, "{worst}");
}

#[test]
fn errors_of_a_coder_are_those_of_the_cache() {
    #[derive(Debug)]
    struct Wide;
    impl Coder for Wide {
        fn name(&self) -> String {
            "wide".to_owned()
        }
        fn coding(&self, head_dim: usize) -> Result<Coding> {
            let expected = "at least 128";
            Err(breakers_kv_cache::Error::HeadWidth { expected, found: head_dim })
        }
    }
    let shape = CacheShape::uniform(1, LayerShape::new(1, 64), 100);
    let found = QuantizedCache::new(shape.clone(), &Compression::new(Wide), &Device::flex()).map(|_| ());
    let expected = "at least 128";
    assert_eq!(found, Err(breakers_kv_cache::Error::HeadWidth { expected, found: 64 }));
    // Layers that are not compressed do not ask it.
    let plain = Compression { plain_layers: vec![0], ..Compression::new(Wide) };
    assert!(QuantizedCache::new(shape, &plain, &Device::flex()).unwrap().is_empty());
}
