//! Attention over packed pages on every device, against codes that are decoded and attended to in f64.

use breakers_backend::harness::{Inputs, Operation, Outputs, Tolerance};

use crate::coders::{CodingKind, PackedCoding};
use crate::pages::packed::{Coded, Group, SideFormat, Tile, TileCoder};
use crate::pages::page::PAGE_TOKENS;
use crate::{CacheShape, Compression, KvCache, LayerShape, QuantizedCache};
use burn::tensor::{Tensor, TensorData, f16};

#[derive(Debug)]
struct Case {
    cache: &'static str,
    /// n_heads, n_kv_heads, head_dim
    shape: [usize; 3],
    window: Option<usize>,
    /// Rows of each step; final before the next one.
    steps: &'static [usize],
}

const SCALE: f32 = 0.6;
const STEPS: &[usize] = &[100, 3, 30, 1];

fn case(cache: &'static str, shape: [usize; 3]) -> Case {
    Case { cache, shape, window: None, steps: STEPS }
}

fn kernel(case: &Case, inputs: &mut Inputs) -> Outputs {
    let [n_heads, n_kv_heads, dim] = case.shape;
    let layer = LayerShape { n_kv_heads, head_dim: dim, window: case.window };
    let compression: Compression = case.cache.parse().unwrap();
    let shape = CacheShape::uniform(1, layer, 1000);
    let mut cache = QuantizedCache::new(shape, &compression, inputs.device()).unwrap();
    let mut outputs = Outputs::default();
    for &n in case.steps {
        let [q, k, v] = [n_heads, n_kv_heads, n_kv_heads].map(|heads| inputs.tensor([n, heads, dim]));
        cache.begin(n, None).unwrap();
        outputs = outputs.and(cache.attend(0, q, k, v, SCALE).unwrap());
        cache.end().unwrap();
        cache.commit(n).unwrap();
    }
    outputs
}

/// What a slot's codes stand for, channel by channel.
fn decode(format: &SideFormat, coded: &Coded, slot: usize) -> Vec<f64> {
    let n = format.n_coded();
    let set = slot * format.n_sets() / PAGE_TOKENS;
    let number = |numbers: &[f16], at: usize, without: f64| numbers.get(at).map_or(without, |x| x.to_f64());
    let mut out = vec![0.0; n];
    for at in 0..n {
        // Codes may stand in an order of their own.
        let channel = coded.order.get(at).map_or(at, |channel| usize::from(*channel));
        let code = coded.codes[slot * n + at];
        let group = format.groups.iter().position(|group| channel < group.to).unwrap();
        let byte = match format.table_of.get(channel) {
            Some(table) => format.tables[usize::from(*table)][usize::from(code)],
            None => code,
        };
        let Group { step, offset, .. } = format.groups[group];
        let level = f64::from(step) * f64::from(byte) + f64::from(offset);
        let (of_channel, of_slot) = (set * n + at, group * PAGE_TOKENS + slot);
        let inner = number(&coded.steps, of_channel, 1.0) * level + number(&coded.lows, of_channel, 0.0);
        out[channel] = number(&coded.scales, of_slot, 1.0) * inner + number(&coded.offsets, of_slot, 0.0);
    }
    out
}

/// A row of a head, turned if there is a rotation.
fn turned(rotation: &Option<breakers_cpu::hadamard::Rotation>, row: &[f32]) -> Vec<f32> {
    let mut row = row.to_vec();
    if let Some(rotation) = rotation {
        rotation.forward(&mut row).unwrap();
    }
    row
}

fn halves(row: &[f32]) -> Vec<f32> {
    row.iter().map(|x| f16::from_f32(*x).to_f32()).collect()
}

fn reference(case: &Case, inputs: &mut Inputs) -> Outputs {
    let [n_heads, n_kv_heads, dim] = case.shape;
    let compression: Compression = case.cache.parse().unwrap();
    let (lag, group) = (compression.lag().unwrap(), n_heads / n_kv_heads);
    let CodingKind::Packed(coding) = compression.coder.coding(dim).unwrap().0 else {
        panic!("{}: no packed pages", case.cache)
    };
    let PackedCoding { keys, values, key_rotation, value_rotation, sketch, weighs_channels } = coding;
    let mut all = [const { Vec::new() }; 3];
    for &n in case.steps {
        for (all, heads) in all.iter_mut().zip([n_heads, n_kv_heads, n_kv_heads]) {
            all.extend(inputs.values(n * heads * dim));
        }
    }
    let [q, k, v] = &all;
    let n_tokens: usize = case.steps.iter().sum();
    // [heads][tokens] rows.
    let rows = |x: &[f32], heads: usize, rotation, round: bool| -> Vec<Vec<Vec<f32>>> {
        let row = |head: usize, token: usize| {
            let row = turned(rotation, &x[(token * heads + head) * dim..][..dim]);
            if round { halves(&row) } else { row }
        };
        (0..heads).map(|head| (0..n_tokens).map(|token| row(head, token)).collect()).collect()
    };
    let q = rows(q, n_heads, &key_rotation, false);
    let (k, v) = (rows(k, n_kv_heads, &key_rotation, true), rows(v, n_kv_heads, &value_rotation, true));
    let mut out = vec![0.0f32; n_tokens * n_heads * dim];
    for kv in 0..n_kv_heads {
        let heads = kv * group..(kv + 1) * group;
        let mut weights = vec![1.0f32; dim];
        if weighs_channels {
            let squares = |channel: usize| -> f32 {
                let slots = compression.exact_tokens..PAGE_TOKENS.min(n_tokens);
                heads
                    .clone()
                    .flat_map(|head| slots.clone().map(move |slot| (head, slot)))
                    .map(|(head, slot)| q[head][slot][channel].powi(2))
                    .sum()
            };
            weights = (0..dim).map(squares).collect();
        }
        let code =
            |coder: &dyn TileCoder, rows: &[Vec<f32>], page: usize, weights: &[f32]| -> Vec<Vec<f64>> {
                let n_exact = if page == 0 { compression.exact_tokens } else { 0 };
                let rows = rows[page * PAGE_TOKENS..(page + 1) * PAGE_TOKENS].concat();
                let mut coded = Coded::new(coder.format());
                coder.code(&Tile { rows: &rows, head_dim: dim, n_exact, weights }, &mut coded);
                (0..PAGE_TOKENS).map(|slot| decode(coder.format(), &coded, slot)).collect()
            };
        let pages = 0..n_tokens / PAGE_TOKENS;
        let packed_keys: Vec<_> =
            pages.clone().flat_map(|page| code(&*keys, &k[kv], page, &weights)).collect();
        let packed_values: Vec<_> =
            pages.flat_map(|page| code(&*values, &v[kv], page, &vec![1.0; dim])).collect();
        for (head, token) in heads.flat_map(|head| (0..n_tokens).map(move |token| (head, token))) {
            let query: Vec<f64> = q[head][token].iter().map(|x| f64::from(*x)).collect();
            // As coded keys need it.
            let mut coded = query.clone();
            if !sketch.is_empty() {
                let product = |row: &[f32]| row.iter().zip(&query).map(|(a, b)| f64::from(*a) * b).sum();
                let projected: Vec<f64> = sketch.chunks_exact(dim).map(product).collect();
                if keys.format().n_coded() == dim {
                    coded.clear();
                }
                coded.extend(projected);
            }
            let first = case.window.map_or(0, |window| (token + 1).saturating_sub(window));
            let packed = (token / PAGE_TOKENS).saturating_sub(lag) * PAGE_TOKENS;
            let is_packed = |slot: usize| slot < packed && slot >= compression.exact_tokens;
            let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
            let wide = |row: &[f32]| -> Vec<f64> { row.iter().map(|x| f64::from(*x)).collect() };
            let scores: Vec<f64> = (first..=token)
                .map(|slot| match is_packed(slot) {
                    true => dot(&coded, &packed_keys[slot]),
                    false => dot(&query, &wide(&k[kv][slot])),
                })
                .map(|score| score * f64::from(SCALE))
                .collect();
            let most = scores.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = scores.iter().map(|score| (score - most).exp()).sum();
            let mut sum = vec![0.0f64; dim];
            for (slot, score) in (first..=token).zip(&scores) {
                let value = if is_packed(slot) { packed_values[slot].clone() } else { wide(&v[kv][slot]) };
                let weight = (score - most).exp() / total;
                sum.iter_mut().zip(&value).for_each(|(sum, x)| *sum += weight * x);
            }
            let mut sum: Vec<f32> = sum.into_iter().map(|x| x as f32).collect();
            if let Some(rotation) = &value_rotation {
                rotation.inverse(&mut sum).unwrap();
            }
            out[(token * n_heads + head) * dim..][..dim].copy_from_slice(&sum);
        }
    }
    let (mut outputs, mut from) = (Outputs::default(), 0);
    for &n in case.steps {
        let width = n_heads * dim;
        let rows = out[from * width..(from + n) * width].to_vec();
        from += n;
        outputs = outputs.and(Tensor::<2>::from_data(TensorData::new(rows, [n, width]), inputs.device()));
    }
    outputs
}

#[test]
fn every_method_is_what_its_codes_say_on_every_device() {
    let tolerance = Tolerance::new("numbers between two halves, or two levels, may go either way", 1e-3, 0.0);
    let cpu = Tolerance::new("queries and weights as integers", 3e-2, 0.0);
    Operation {
        name: "attention over packed pages",
        cases: &[
            case("turbo-4", [3, 1, 64]),
            case("water-4", [4, 2, 64]),
            Case { window: Some(90), ..case("water-5", [4, 1, 256]) },
            Case { window: Some(70), ..case("turbo-3.5", [4, 2, 128]) },
            case("turbo-prod-3", [2, 2, 32]),
            case("q4_0-rotated", [6, 2, 64]),
            case("q8_0", [9, 1, 16]),
            Case { steps: &[200, 17, 1], ..case("kivi-2", [2, 1, 64]) },
            case("kvarn-4-2", [2, 1, 128]),
            // Softmax is joined over more than one split of pages.
            Case { steps: &[600, 30, 1], ..case("turbo-4", [3, 1, 64]) },
            Case { steps: &[600, 30, 1], window: Some(300), ..case("water-4", [4, 2, 32]) },
        ],
        cpu,
        gpu: tolerance,
        same_bits: true,
        reference: &reference,
        kernel: &kernel,
    }
    .check();
}
