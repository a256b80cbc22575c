//! Attention over the plain cache: compared with its definition, and the same bits however it is fed.

use crate::common::{Heads, Random, Tokens, bits, heads, path_to, random_parents};
use breakers_cpu::{self as cpu, pool};
use breakers_kv_cache::{Element, KvCache};

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

/// Feeds the tokens in steps whose sizes repeat `sizes`.
fn feed_in_steps(tokens: &Tokens, cache: &mut dyn KvCache, sizes: &[usize]) -> Vec<u32> {
    let mut out = Vec::new();
    let mut sizes = sizes.iter().cycle();
    let mut from = 0;
    while from < tokens.n {
        let to = tokens.n.min(from + sizes.next().unwrap());
        out.extend(bits(&tokens.range(from..to).feed(cache, None)));
        from = to;
    }
    out
}

#[test]
fn steps_of_any_size_give_the_same_bits() {
    for heads in SHAPES {
        let tokens = Tokens::random(heads, 330, 11);
        for element in [Element::F16, Element::F32] {
            let want = bits(&tokens.feed(&mut heads.cache(element), None));
            for sizes in [&[1][..], &[3, 1, 7], &[64], &[100, 29, 1], &[256, 1]] {
                let got = feed_in_steps(&tokens, &mut heads.cache(element), sizes);
                assert!(got == want, "{heads:?} {element:?} {sizes:?}");
            }
        }
    }
}

#[test]
fn instruction_sets_give_the_same_bits() {
    for heads in SHAPES {
        let tokens = Tokens::random(heads, 270, 13);
        for element in [Element::F16, Element::F32] {
            let run = |isa| {
                cpu::with_isa(isa, || feed_in_steps(&tokens, &mut heads.cache(element), &[256, 13, 1]))
                    .unwrap()
            };
            let want = run(cpu::Isa::Scalar);
            for isa in cpu::available() {
                assert!(run(isa) == want, "{heads:?} {element:?} {isa}");
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    // Large enough to be cut by rows (the first step) and by chunks of keys (the others).
    for heads in [heads(9, 3, 64), heads(4, 1, 128), heads(2, 1, 64).window(700)] {
        let tokens = Tokens::random(heads, 1500, 17);
        let run = |threads| {
            pool::set_threads(threads).unwrap();
            feed_in_steps(&tokens, &mut heads.cache(Element::F16), &[1480, 1, 8, 11])
        };
        let want = run(1);
        for threads in [2, 3, 7] {
            assert!(run(threads) == want, "{heads:?} {threads} threads");
        }
    }
}

#[test]
fn a_row_of_a_tree_has_the_bits_of_its_chain() {
    let mut random = Random::new(19);
    for heads in SHAPES {
        for prefix in [0, 1, 60, 64, 250] {
            let n_rows = 1 + random.below(20);
            let parents = random_parents(&mut random, n_rows);
            let tokens = Tokens::random(heads, prefix + n_rows + 1, 23);
            let start = || {
                let mut cache = heads.cache(Element::F16);
                if prefix > 0 {
                    tokens.range(0..prefix).feed(&mut cache, None);
                }
                cache.commit(prefix).unwrap();
                cache
            };
            let mut tree = start();
            let rows = tokens.range(prefix..prefix + n_rows);
            let out = bits(&rows.feed(&mut tree, Some(&parents)));
            let width = heads.n_heads * heads.head_dim;
            for row in 0..n_rows {
                let path = path_to(&parents, row);
                let mut chain = start();
                let want = bits(&rows.pick(&path).feed(&mut chain, None));
                let (got, want) = (&out[row * width..][..width], &want[(path.len() - 1) * width..]);
                assert!(got == want, "{heads:?} prefix {prefix} {parents:?} row {row}");

                // The path that is kept is the chain from then on.
                let mut kept = tree.fork().unwrap();
                kept.retain(&path).unwrap();
                assert_eq!(kept.len(), prefix + path.len());
                let next = tokens.range(prefix + n_rows..tokens.n);
                let want = bits(&next.feed(&mut chain, None));
                assert!(bits(&next.feed(&mut *kept, None)) == want, "{heads:?} after {path:?}");
            }
        }
    }
}

#[test]
fn later_rows_leave_earlier_ones_alone() {
    // Values so large that a weight of exactly zero must keep them out.
    let heads = heads(4, 2, 64);
    let mut tokens = Tokens::random(heads, 40, 29);
    let want = bits(&tokens.range(0..20).feed(&mut heads.cache(Element::F32), None));
    let width = 2 * 64;
    tokens.v[20 * width..].fill(f32::MAX);
    tokens.k[20 * width..].fill(1e30);
    let got = bits(&tokens.feed(&mut heads.cache(Element::F32), None));
    assert!(got[..want.len()] == want);
}

#[test]
fn extreme_scores_stay_finite() {
    let heads = heads(2, 1, 64);
    for size in [0.0, 1e-30, 1e4] {
        let mut tokens = Tokens::random(heads, 100, 31);
        tokens.q.iter_mut().for_each(|x| *x *= size);
        let out = tokens.feed(&mut heads.cache(Element::F16), None);
        assert!(out.iter().all(|x| x.is_finite()), "{size}");
    }
}
