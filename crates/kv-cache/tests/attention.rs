//! Attention over the plain cache: against the plain definition, and the same bits however it is fed.

mod common;

use breakers_kv_cache::{Element, KvCache};
use common::{Heads, Tokens, bits, heads};

/// Largest difference to attention in f64 over the same stored keys and values (all about 1 in size): what
/// sums of a few hundred products in f32 cost.
const TOLERANCE: f64 = 1e-5;

const SHAPES: [Heads; 9] = [
    heads(9, 3, 64),
    heads(4, 1, 256),
    heads(12, 2, 128),
    heads(1, 1, 16),
    heads(3, 3, 7),
    heads(4, 2, 80),
    heads(14, 2, 65),
    heads(4, 1, 64).window(100),
    heads(2, 1, 32).window(1),
];

fn check_against_reference(heads: Heads, n_tokens: usize, element: Element) {
    let tokens = Tokens::random(heads, n_tokens, 7);
    let out = tokens.feed(&mut heads.cache(element), None);
    let width = heads.n_heads * heads.head_dim;
    for row in (0..n_tokens).step_by(13).chain([n_tokens - 1]) {
        let window = heads.window.unwrap_or(usize::MAX);
        let want = tokens.reference(row, element, |i| i <= row && row - i < window);
        for (got, want) in out[row * width..][..width].iter().zip(&want) {
            let error = (*got as f64 - want).abs();
            assert!(error <= TOLERANCE, "{heads:?} {element:?} row {row}: {got} for {want}");
        }
    }
}

#[test]
fn attention_equals_its_definition() {
    for heads in SHAPES {
        for n_tokens in [1, 5, 64, 65, 300] {
            for element in [Element::F16, Element::F32] {
                check_against_reference(heads, n_tokens, element);
            }
        }
    }
}

#[test]
fn steps_of_any_size_give_the_same_bits() {
    for heads in SHAPES {
        let tokens = Tokens::random(heads, 330, 11);
        let want = bits(&tokens.feed(&mut heads.cache(Element::F16), None));
        for sizes in [&[1][..], &[3, 1, 7], &[64], &[100, 29, 1], &[256, 1]] {
            let mut cache = heads.cache(Element::F16);
            let mut got = Vec::new();
            let mut sizes = sizes.iter().cycle();
            while cache.len() < tokens.n {
                let from = cache.len();
                let to = tokens.n.min(from + sizes.next().unwrap());
                got.extend(bits(&tokens.range(from..to).feed(&mut cache, None)));
            }
            assert!(got == want, "{heads:?}");
        }
    }
}
