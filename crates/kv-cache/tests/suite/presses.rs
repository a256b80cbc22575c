//! Presses: what they keep, and how a cache behaves with them.

use crate::common::{Heads, Random, Tokens, bits, heads};
use crate::own_coder::Bytes;
use breakers_core::StepError;
use breakers_kv_cache::coders::CODERS;
use breakers_kv_cache::presses::{
    self, ExpectedAttention, H2o, HeadBudgets, HeadView, KeyDiff, Knorm, LayerBudgets, LayerView, Press,
    RandomPress, SnapKv, SnapKvConfig, StreamingLlm, Tova,
};
use breakers_kv_cache::{
    Budget, CacheKind, CacheShape, CacheSpec, Compression, Element, Error, EvictingCache, Eviction, KvCache,
    LayerShape,
};
use burn::tensor::Device;

type MakePress = fn() -> Box<dyn Press>;

const PRESSES: [MakePress; 8] = [
    || Box::new(SnapKv::default()),
    || Box::new(StreamingLlm::default()),
    || Box::new(H2o::default()),
    || Box::new(Tova),
    || Box::new(Knorm),
    || Box::new(KeyDiff),
    || Box::new(ExpectedAttention::default()),
    || Box::new(RandomPress::default()),
];

fn eviction(press: MakePress, budget: Budget) -> Eviction {
    let mut eviction = Eviction::new(Knorm, budget);
    eviction.press = press().into();
    eviction
}

fn make(heads: Heads, eviction: Eviction) -> EvictingCache {
    let shape = CacheShape::uniform(1, heads.layer(), 1 << 20);
    EvictingCache::new(shape, eviction, &Device::flex()).unwrap()
}

#[test]
fn a_full_budget_keeps_the_bits_of_the_plain_cache() {
    for press in PRESSES {
        let heads = heads(6, 3, 64);
        let tokens = Tokens::random(heads, 200, 1);
        let mut plain = heads.cache(Element::F16);
        let mut pressed = make(heads, eviction(press, Budget::Fraction(1.0)));
        for range in [0..130, 130..199, 199..200] {
            let n = range.len();
            let part = tokens.range(range);
            assert_eq!(bits(&part.feed(&mut pressed, None)), bits(&part.feed(&mut plain, None)));
            pressed.commit(n).unwrap();
            plain.commit(n).unwrap();
        }
    }
}

/// A layer's keys, values and queries as tensors of tokens.
fn view<'a>(tokens: &Tokens, queries: &'a [f32]) -> LayerView<'a> {
    let Heads { n_heads, n_kv_heads, head_dim, .. } = tokens.heads;
    let rows = |x: &[f32], head: usize| -> Vec<f32> {
        x.chunks_exact(n_kv_heads * head_dim)
            .flat_map(|row| &row[head * head_dim..][..head_dim])
            .copied()
            .collect()
    };
    let head = |head| HeadView {
        keys: rows(&tokens.k, head),
        values: rows(&tokens.v, head),
        positions: (0..tokens.n).collect(),
    };
    LayerView {
        head_dim,
        n_heads,
        scale: tokens.heads.scale(),
        heads: (0..n_kv_heads).map(head).collect(),
        queries,
        last_position: tokens.n - 1,
    }
}

/// Attention weights of query head `head` at row `row`, in f64, from the definition.
fn weights(tokens: &Tokens, head: usize, row: usize) -> Vec<f64> {
    let Heads { n_heads, n_kv_heads, head_dim, .. } = tokens.heads;
    let q = &tokens.q[(row * n_heads + head) * head_dim..][..head_dim];
    let kv = head / (n_heads / n_kv_heads);
    let score = |i: usize| -> f64 {
        let k = &tokens.k[(i * n_kv_heads + kv) * head_dim..][..head_dim];
        q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
            * f64::from(tokens.heads.scale())
    };
    let scores: Vec<f64> = (0..=row).map(score).collect();
    let most = scores.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
    (0..tokens.n).map(|i| if i <= row { (scores[i] - most).exp() / sum } else { 0.0 }).collect()
}

fn close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let close = if expected.is_infinite() {
            f64::from(*found) == *expected
        } else {
            (f64::from(*found) - expected).abs() < 1e-4 * (1.0 + expected.abs())
        };
        assert!(close, "{what}, token {at}: {found} for {expected}");
    }
}

#[test]
fn snapkv_is_what_its_paper_says() {
    for (seed, window, kernel, heads) in
        [(1, 32, 5, heads(6, 2, 64)), (2, 8, 7, heads(3, 3, 16)), (3, 64, 1, heads(4, 1, 128))]
    {
        let tokens = Tokens::random(heads, 150, seed);
        let press = SnapKv(SnapKvConfig { window, kernel });
        let width = heads.n_heads * heads.head_dim;
        let scores = press.scores(&view(&tokens, &tokens.q[(150 - window) * width..]));
        let group = heads.n_heads / heads.n_kv_heads;
        for (kv, found) in scores.iter().enumerate() {
            let prefix = 150 - window;
            let mut votes = vec![0.0; prefix];
            for head in kv * group..(kv + 1) * group {
                for row in prefix..150 {
                    votes.iter_mut().zip(weights(&tokens, head, row)).for_each(|(v, w)| *v += w);
                }
            }
            let half = (kernel / 2) as isize;
            let expected: Vec<f64> = (0..150)
                .map(|at: isize| {
                    if at >= prefix as isize {
                        return f64::INFINITY;
                    }
                    let around = (at - half..=at + half).filter(|i| (0..prefix as isize).contains(i));
                    around.map(|i| votes[i as usize]).sum::<f64>() / kernel as f64
                })
                .collect();
            close(found, &expected, "SnapKV");
        }
    }
}

#[test]
fn other_presses_are_what_their_papers_say() {
    let heads = heads(6, 2, 32);
    let tokens = Tokens::random(heads, 90, 5);
    let all = view(&tokens, &tokens.q);
    let one = view(&tokens, &tokens.q[89 * 6 * 32..]);
    let key = |kv: usize, at: usize| -> Vec<f64> {
        tokens.k[(at * 2 + kv) * 32..][..32].iter().map(|x| f64::from(*x)).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for kv in 0..2 {
        let norms: Vec<f64> = (0..90).map(|at| dot(&key(kv, at), &key(kv, at)).sqrt()).collect();
        close(&Knorm.scores(&all)[kv], &norms.iter().map(|n| -n).collect::<Vec<_>>(), "Knorm");

        let mut anchor = vec![0.0; 32];
        for at in 0..90 {
            anchor.iter_mut().zip(key(kv, at)).for_each(|(a, k)| *a += k / norms[at]);
        }
        let size = dot(&anchor, &anchor).sqrt();
        let cosines: Vec<f64> = (0..90).map(|at| -dot(&anchor, &key(kv, at)) / (size * norms[at])).collect();
        close(&KeyDiff.scores(&all)[kv], &cosines, "KeyDiff");

        let mut last = vec![0.0; 90];
        (0..6).for_each(|head| last.iter_mut().zip(weights(&tokens, head, 89)).for_each(|(l, w)| *l += w));
        last[89] = f64::INFINITY;
        close(&Tova.scores(&one)[kv], &last, "TOVA");

        let mut sums = vec![0.0; 90];
        for head in kv * 3..kv * 3 + 3 {
            for row in 0..90 {
                sums.iter_mut().zip(weights(&tokens, head, row)).for_each(|(s, w)| *s += w);
            }
        }
        sums.iter_mut().enumerate().for_each(|(at, sum)| *sum /= (90 - at) as f64);
        sums[80..].fill(f64::INFINITY);
        close(&H2o { window: 10 }.scores(&all)[kv], &sums, "H2O");

        // Expected attention, by averaging over the queries' own distribution: mean and
        // covariance spelled out.
        let press = ExpectedAttention { window: 90, n_sinks: 2, epsilon: 0.01 };
        let scale = f64::from(heads.scale());
        let mut expected = vec![0.0; 90];
        for head in kv * 3..kv * 3 + 3 {
            let q = |row: usize, i: usize| f64::from(tokens.q[(row * 6 + head) * 32 + i]);
            let mean: Vec<f64> = (0..32).map(|i| (0..90).map(|row| q(row, i)).sum::<f64>() / 90.0).collect();
            let mut covariance = vec![0.0; 32 * 32];
            for row in 0..90 {
                for i in 0..32 {
                    for j in 0..32 {
                        covariance[i * 32 + j] += (q(row, i) - mean[i]) * (q(row, j) - mean[j]) / 90.0;
                    }
                }
            }
            let logit = |at: usize| {
                let k = key(kv, at);
                let spread: f64 = (0..32).map(|i| k[i] * dot(&covariance[i * 32..][..32], &k)).sum();
                scale * dot(&mean, &k) + 0.5 * scale * scale * spread
            };
            let logits: Vec<f64> = (0..90).map(logit).collect();
            let most = logits.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = logits.iter().map(|x| (x - most).exp()).sum();
            expected.iter_mut().zip(&logits).for_each(|(e, x)| *e += (x - most).exp() / total / 3.0);
        }
        for (at, expected) in expected.iter_mut().enumerate() {
            let value: Vec<f64> =
                tokens.v[(at * 2 + kv) * 32..][..32].iter().map(|x| f64::from(*x)).collect();
            *expected = (*expected + 0.01) * dot(&value, &value).sqrt();
        }
        expected[..2].fill(f64::INFINITY);
        close(&press.scores(&all)[kv], &expected, "ExpectedAttention");
    }
    let streaming = StreamingLlm::default().scores(&all);
    assert!(
        streaming[0][..4].iter().all(|s| s.is_infinite())
            && streaming[0].windows(2).skip(4).all(|p| p[0] < p[1])
    );
}

#[test]
fn attention_goes_over_what_is_kept() {
    for (press, head_budgets) in PRESSES.into_iter().flat_map(|press| {
        [HeadBudgets::Uniform, HeadBudgets::Adaptive { safeguard: 0.2 }].map(|budgets| (press, budgets))
    }) {
        let heads = heads(6, 2, 64);
        let tokens = Tokens::random(heads, 301, 7);
        let mut eviction = eviction(press, Budget::Fraction(0.3));
        eviction.heads = head_budgets;
        let name = eviction.press.name();
        let mut cache = make(heads, eviction);
        tokens.range(0..300).feed(&mut cache, None);
        // Two tokens are not final, and stay.
        cache.commit(298).unwrap();
        let kept: Vec<Vec<usize>> = (0..2).map(|head| cache.kept(0, head)).collect();
        assert_eq!(kept.iter().map(Vec::len).sum::<usize>(), 2 * (89 + 2), "{name}");
        assert!(
            kept.iter()
                .all(|kept| kept.windows(2).all(|pair| pair[0] < pair[1]) && kept.ends_with(&[298, 299]))
        );
        let out = tokens.range(300..301).feed(&mut cache, None);
        let group = 3;
        for head in 0..6 {
            let sees = |i: usize| i == 300 || kept[head / group].contains(&i);
            let want = &tokens.reference(300, Element::F16, sees)[head * 64..(head + 1) * 64];
            close(&out[head * 64..(head + 1) * 64], want, &name);
        }
        // Forks go on alike; what was let go does not come back.
        assert_eq!(
            cache.truncate(200),
            Err(StepError::TruncateEvicted { requested: 200, evicted_from: 0 }.into())
        );
        cache.truncate(300).unwrap();
        let mut fork = cache.fork().unwrap();
        let again = tokens.range(300..301);
        assert_eq!(bits(&again.feed(&mut *fork, None)), bits(&out), "{name}");
        cache.truncate(0).unwrap();
        let fresh = bits(&tokens.range(0..50).feed(&mut cache, None));
        assert_eq!(fresh, bits(&tokens.range(0..50).feed(&mut heads.cache(Element::F16), None)), "{name}");
    }
}

/// Bits of keys and values of an element, by the formulas of the methods.
fn bits_of(compression: Option<&str>, dim: f64) -> f64 {
    match compression {
        None => 32.0,
        Some("q8_0") => 2.0 * (8.0 + 0.5),
        Some("turbo-4") => 2.0 * (4.0 + 16.0 / dim),
        Some("water-4") => 3.5 + 41.0 / 64.0 + 3.0 + 16.0 / dim,
        Some(other) => panic!("{other}"),
    }
}

#[test]
fn a_quarter_of_the_budget_takes_a_quarter_of_the_bytes() {
    let (heads, n) = (heads(2, 2, 64), 8192);
    let tokens = Tokens::random(heads, n, 3);
    let page = 64;
    for (budgets, fraction, compression) in [
        (HeadBudgets::Uniform, 0.25, None),
        (HeadBudgets::Adaptive { safeguard: 0.2 }, 0.25, None),
        (HeadBudgets::Adaptive { safeguard: 0.2 }, 0.5, Some("q8_0")),
        (HeadBudgets::Uniform, 0.25, Some("turbo-4")),
        (HeadBudgets::Adaptive { safeguard: 0.2 }, 0.25, Some("water-4")),
    ] {
        let mut eviction = eviction(PRESSES[0], Budget::Fraction(fraction));
        eviction.heads = budgets;
        eviction.compression = compression.map(|name| name.parse::<Compression>().unwrap());
        let n_exact = eviction.compression.as_ref().map_or(0, |c| c.exact_tokens);
        let what = format!("{:?}, {fraction}, {compression:?}", eviction.heads);
        let mut cache = make(heads, eviction);
        tokens.feed(&mut cache, None);
        cache.commit(n).unwrap();
        let kept = [0, 1].map(|head| cache.kept(0, head).len());
        assert_eq!(kept[0] + kept[1], (2.0 * fraction * n as f64) as usize, "{what}");
        assert!(what.starts_with("Uniform") || kept[0] != kept[1], "{what}: {kept:?}");
        // Whole pages in few bits, the one that is not full and the exact tokens in 16.
        let bytes = |bits: f64, tokens: usize| bits / 8.0 * (tokens * heads.head_dim) as f64;
        let expected: f64 = kept
            .iter()
            .map(|kept| {
                let coded = bytes(bits_of(compression, 64.0), kept / page * page);
                coded + bytes(32.0, kept.next_multiple_of(page) - kept / page * page + n_exact)
            })
            .sum();
        let off = cache.bytes() as f64 / expected - 1.0;
        assert!(off.abs() < 0.05, "{what}: {} bytes for {expected}, {off}", cache.bytes());
        let plain = bytes(32.0, 2 * n);
        let ratio = plain * fraction * bits_of(compression, 64.0) / 32.0 / cache.bytes() as f64;
        assert!((0.85..1.02).contains(&ratio), "{what}: {ratio} of what the budget frees");
    }
}

#[test]
fn repeated_presses_keep_the_budget() {
    let heads = heads(4, 2, 64);
    let mut eviction = eviction(PRESSES[0], Budget::Tokens(100));
    eviction.every = Some(64);
    let mut cache = make(heads, eviction);
    let tokens = Tokens::random(heads, 600, 11);
    for at in 0..600 {
        tokens.range(at..at + 1).feed(&mut cache, None);
        cache.commit(1).unwrap();
        for head in 0..2 {
            let kept = cache.kept(0, head);
            assert!(kept.len() <= 100 + 64 && kept.last() == Some(&at), "{at}: {}", kept.len());
        }
    }
    assert!(cache.kept(0, 0).len() >= 100);
    let shape = || CacheShape::uniform(1, heads.layer(), 1 << 20);
    let mut both = Eviction::new(Knorm, Budget::Tokens(100));
    (both.every, both.compression) = (Some(64), Some("q8_0".parse::<Compression>().unwrap()));
    assert_eq!(EvictingCache::new(shape(), both, &Device::flex()).map(|_| ()), Err(Error::RepeatedEviction));
}

/// The results of an evicting cache for tokens in steps of these sizes, each final before the next, and what
/// its heads keep in the end.
fn decode(tokens: &Tokens, eviction: Eviction, sizes: &[usize]) -> (Vec<f32>, Vec<Vec<usize>>) {
    let mut cache = make(tokens.heads, eviction);
    let (mut out, mut from) = (Vec::new(), 0);
    for size in sizes.iter().cycle() {
        let to = tokens.n.min(from + size);
        out.extend(tokens.range(from..to).feed(&mut cache, None));
        cache.commit(to - from).unwrap();
        from = to;
        if from == tokens.n {
            break;
        }
    }
    (out, (0..tokens.heads.n_kv_heads).map(|head| cache.kept(0, head)).collect())
}

#[test]
fn every_press_works_with_every_compression_however_tokens_come() {
    let heads = heads(2, 1, 32);
    // Enough for a quarter of them to be more than a window of 32.
    let tokens = Tokens::random(heads, 200, 19);
    // A prompt token by token, in chunks, and a chat: turns in one piece, answers token by token.
    let chat = [&[70][..], &[1; 9], &[90], &[1; 31]].concat();
    for press in presses::PRESSES {
        for sizes in [&[1][..], &[64, 1, 30], &[135, 65], &chat] {
            let eviction = || (press.build)(Budget::Fraction(0.25));
            let (_, want) = decode(&tokens, eviction(), sizes);
            let own = std::iter::once(("of somebody else's", Compression::new(Bytes)));
            for (name, compression) in CODERS.iter().map(|entry| (entry.name, (entry.build)())).chain(own) {
                let mut eviction = eviction();
                let what = format!("{} + {name}, {sizes:?}", press.name);
                eviction.compression = Some(compression);
                let (out, kept) = decode(&tokens, eviction, sizes);
                assert!(out.iter().all(|x| x.is_finite()), "{what}");
                assert!(kept[0].len() < 200, "{what}: nothing was let go");
                // Rotated keys are rounded in another way, so that close scores may change places.
                if name.starts_with('q') && !name.ends_with("rotated") || name.starts_with("kivi") {
                    assert_eq!(kept, want, "{what}");
                } else {
                    assert_eq!(kept[0].len(), want[0].len(), "{what}");
                }
            }
        }
    }
}

/// The rows of a table of names and papers, as the documentation prints them.
fn rows<'a>(entries: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    entries.map(|(name, paper)| format!("| `{name}` | {paper} |\n")).collect()
}

#[test]
fn the_tables_of_methods_parse_and_are_those_in_the_documentation() {
    for entry in CODERS {
        let spec: CacheSpec = entry.name.parse().unwrap();
        assert_eq!(spec.to_string(), entry.name);
        let CacheKind::Quantized(found) = spec.kind() else { panic!("{}", entry.name) };
        let built = (entry.build)();
        assert_eq!(format!("{found:?}"), format!("{built:?}"));
        // No two names mean the same.
        let same = CODERS.iter().filter(|other| format!("{:?}", (other.build)()) == format!("{built:?}"));
        assert_eq!(same.count(), 1, "{}", entry.name);
    }
    for press in presses::PRESSES {
        for name in [format!("{}-12.5", press.name), format!("{}-25+kivi-2", press.name)] {
            let spec: CacheSpec = name.parse().unwrap();
            assert_eq!(spec.to_string(), name);
            let CacheKind::Evicting(eviction) = spec.kind() else { panic!("{name}") };
            assert_eq!(eviction.compression.is_some(), name.contains('+'));
            let shape = CacheShape::uniform(2, heads(2, 1, 32).layer(), 100);
            assert!(spec.make(&shape, &Device::flex()).unwrap().shareable());
        }
    }
    for name in CacheSpec::names() {
        assert_eq!(name.parse::<CacheSpec>().unwrap().to_string(), name);
    }
    for name in ["snapkv-0", "snapkv-101", "tova-x", "h2o-NaN"] {
        assert!(matches!(name.parse::<CacheSpec>(), Err(Error::Percentage { .. })), "{name}");
    }
    for name in ["", "snapkv", "water-99", "tova-5+water-99", "f16+water-4", "snapkv-25+f16"] {
        let Err(Error::UnknownCompression { known, .. }) = name.parse::<CacheSpec>() else {
            panic!("{name}")
        };
        assert!(known.contains("snapkv-25, ") && known.contains("water-4, "), "{known}");
    }
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/kv-cache.md");
    let page = std::fs::read_to_string(page).unwrap();
    for (what, table) in [
        ("press", rows(presses::PRESSES.iter().map(|press| (press.name, press.paper)))),
        ("coder", rows(CODERS.iter().map(|coder| (coder.name, coder.paper)))),
    ] {
        assert!(
            page.contains(&format!("| {what} | paper |\n|---|---|\n{table}\n")),
            "docs/kv-cache.md lacks:\n{table}"
        );
    }
}

#[test]
fn final_tokens_before_a_press_can_be_taken_back() {
    let heads = heads(4, 2, 64);
    let tokens = Tokens::random(heads, 180, 23);
    let make = || {
        let mut eviction = eviction(PRESSES[0], Budget::Tokens(150));
        eviction.compression = Some("water-4".parse::<Compression>().unwrap());
        make(heads, eviction)
    };
    let mut cache = make();
    for at in 0..140 {
        tokens.range(at..at + 1).feed(&mut cache, None);
        cache.commit(1).unwrap();
    }
    cache.truncate(100).unwrap();
    let mut fresh = make();
    tokens.range(0..100).feed(&mut fresh, None);
    fresh.commit(100).unwrap();
    for range in [100..180, 179..180] {
        let (n, part) = (range.len(), tokens.range(range));
        assert_eq!(bits(&part.feed(&mut cache, None)), bits(&part.feed(&mut fresh, None)));
        cache.commit(n).unwrap();
        fresh.commit(n).unwrap();
        assert_eq!(cache.kept(0, 1), fresh.kept(0, 1));
    }
}

#[test]
fn speculation_over_a_pressed_cache_is_plain_decoding() {
    let heads = heads(4, 2, 64);
    for compression in [None, Some("water-4"), Some("turbo-prod-4"), Some("kivi-4")] {
        let start = || {
            let mut eviction = eviction(PRESSES[0], Budget::Fraction(0.5));
            eviction.compression = compression.map(|name| name.parse::<Compression>().unwrap());
            let mut cache = make(heads, eviction);
            Tokens::random(heads, 500, 13).feed(&mut cache, None);
            cache.commit(500).unwrap();
            cache
        };
        let tokens = Tokens::random(heads, 100, 17);
        let mut plain = start();
        let mut want = Vec::new();
        for at in 0..100 {
            want.extend(bits(&tokens.range(at..at + 1).feed(&mut plain, None)));
            plain.commit(1).unwrap();
        }
        let mut speculative = start();
        let (mut got, mut at, mut random) = (Vec::<u32>::new(), 0, Random::new(3));
        while at < 100 {
            // A draft of which some is right, in a tree with wrong branches.
            let right = (1 + random.below(7)).min(100 - at);
            let wrong = Tokens::random(heads, 4, at as u64);
            let mut step = tokens.range(at..at + right);
            step.n += 4;
            step.q.extend(&wrong.q);
            step.k.extend(&wrong.k);
            step.v.extend(&wrong.v);
            let mut parents: Vec<Option<usize>> = (0..right).map(|row| row.checked_sub(1)).collect();
            parents.extend((0..4).map(|row| (row + right - 1).checked_sub(2)));
            let out = bits(&step.feed(&mut speculative, Some(&parents)));
            got.extend(&out[..right * 4 * 64]);
            speculative.retain(&(0..right).collect::<Vec<_>>()).unwrap();
            speculative.commit(right).unwrap();
            at += right;
        }
        assert!(got == want, "{compression:?}");
    }
}

#[test]
fn impossible_budgets_are_refused() {
    let make = |eviction: Eviction| {
        let shape = CacheShape::uniform(1, LayerShape::new(1, 64), 100);
        EvictingCache::new(shape, eviction, &Device::flex()).map(|_| ())
    };
    let snapkv = |budget| Eviction::new(SnapKv::default(), budget);
    assert_eq!(make(snapkv(Budget::Tokens(32))), Err(Error::Budget { least: 33, found: 32 }));
    assert_eq!(make(snapkv(Budget::Tokens(0))), Err(Error::Budget { least: 33, found: 0 }));
    for found in [0.0, -0.5, 1.01, f64::INFINITY] {
        assert_eq!(make(snapkv(Budget::Fraction(found))), Err(Error::BudgetFraction { found }));
    }
    assert!(matches!(make(snapkv(Budget::Fraction(f64::NAN))), Err(Error::BudgetFraction { .. })));
    let mut layers = snapkv(Budget::Fraction(0.5));
    layers.layers = LayerBudgets::Pyramid { steepness: 20.0 };
    assert_eq!(make(layers), Ok(()));
}
