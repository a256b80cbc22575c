//! Times attention over the plain cache: decoding at several depths, verification of a few rows, prefill, and
//! (`many`) one row of each of eight sequences in one call, compared with eight rows of one sequence.
//!
//! `cargo bench -p breakers-kv-cache --bench attention -- [filter] [--threads N] [--f32 | --cache NAME]`
//!
//! A step runs through all layers of the model's shape, so that the cache comes from memory as it does in a
//! real model, and includes the append and Burn's overhead. Times are the median of the repeats. In brackets
//! is the mean over layers of each layer's best time, which other programs on the machine disturb less. `cpu`
//! is the calling thread's processor time, if the system reports it. GB/s: bytes of keys and values that the
//! step sees ÷ time. GFLOP/s: 4 · head_dim · visible keys · query heads ÷ time. With `--cache`, a
//! compression's name, the bytes are still those of 16-bit floats.
#![allow(clippy::print_stdout)] // A report for the terminal.

use std::time::{Duration, Instant};

use breakers_cpu::{self as cpu, pool};
use breakers_kv_cache::{
    CacheShape, Compression, Element, KvCache, LayerShape, PlainCache, QuantizedCache, Segment, attend_many,
};
use burn::tensor::{Device, Distribution, Tensor};

struct Model {
    name: &'static str,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

const MODELS: [Model; 4] = [
    Model { name: "smollm2-135m", n_layers: 30, n_heads: 9, n_kv_heads: 3, head_dim: 64 },
    Model { name: "gemma3-270m", n_layers: 18, n_heads: 4, n_kv_heads: 1, head_dim: 256 },
    Model { name: "qwen2.5-0.5b", n_layers: 24, n_heads: 14, n_kv_heads: 2, head_dim: 64 },
    Model { name: "qwen2.5-1.5b", n_layers: 28, n_heads: 12, n_kv_heads: 2, head_dim: 128 },
];

/// (what, tokens before the step, rows of the step)
const CASES: [(&str, usize, usize); 7] = [
    ("decode", 0, 1),
    ("decode", 128, 1),
    ("decode", 2048, 1),
    ("decode", 8192, 1),
    ("verify", 2048, 8),
    ("prefill", 0, 512),
    ("prefill", 2048, 512),
];

struct Inputs {
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
}

impl Inputs {
    fn random(model: &Model, n_rows: usize, n_heads: usize) -> Self {
        let random = |n_heads| {
            let spread = Distribution::Normal(0.0, 1.0);
            Tensor::<3>::random([n_rows, n_heads, model.head_dim], spread, &Device::flex())
        };
        Self { q: random(n_heads), k: random(model.n_kv_heads), v: random(model.n_kv_heads) }
    }

    fn step(&self, cache: &mut dyn KvCache, scale: f32, best: &mut [f64]) {
        let n_rows = self.q.dims()[0];
        cache.begin(n_rows, None).unwrap();
        for layer in 0..cache.shape().layers.len() {
            let begin = Instant::now();
            let out = cache.attend(layer, self.q.clone(), self.k.clone(), self.v.clone(), scale).unwrap();
            std::hint::black_box(&out);
            best[layer] = best[layer].min(begin.elapsed().as_secs_f64());
        }
        cache.end().unwrap();
    }
}

/// Processor time of this thread in seconds.
fn cpu_time() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split_whitespace().next()?.parse::<u64>().ok()? as f64 * 1e-9)
}

/// What is timed.
enum Kind {
    Plain(Element),
    Compressed(Box<Compression>),
}

impl Kind {
    fn cache(&self, shape: CacheShape) -> Box<dyn KvCache> {
        let device = Device::flex();
        match self {
            Self::Plain(element) => Box::new(PlainCache::new(shape, *element, &device).unwrap()),
            Self::Compressed(kind) => Box::new(QuantizedCache::new(shape, kind, &device).unwrap()),
        }
    }

    fn element_bytes(&self) -> usize {
        if let Self::Plain(element) = self { element.bytes() } else { Element::F16.bytes() }
    }
}

fn run(model: &Model, (what, depth, n_rows): (&str, usize, usize), kind: &Kind) {
    let n_layers = if n_rows > 16 { 4 } else { model.n_layers };
    let layer = LayerShape::new(model.n_kv_heads, model.head_dim);
    let shape = CacheShape::uniform(n_layers, layer, depth + n_rows);
    let mut cache = kind.cache(shape);
    let scale = 1.0 / (model.head_dim as f32).sqrt();
    while cache.len() < depth {
        let n = (depth - cache.len()).min(512);
        Inputs::random(model, n, model.n_kv_heads).step(&mut *cache, scale, &mut vec![0.0; n_layers]);
        cache.commit(n).unwrap();
    }
    let inputs = Inputs::random(model, n_rows, model.n_heads);
    let (mut times, mut best) = (Vec::new(), vec![f64::MAX; n_layers]);
    let (start, cpu) = (Instant::now(), cpu_time());
    while times.len() < 5 || start.elapsed() < Duration::from_millis(700) && times.len() < 500 {
        let begin = Instant::now();
        inputs.step(&mut *cache, scale, &mut best);
        times.push(begin.elapsed().as_secs_f64());
        cache.truncate(depth).unwrap();
    }
    let cpu = cpu_time().zip(cpu).map_or(f64::NAN, |(end, start)| (end - start) / times.len() as f64);
    times.sort_unstable_by(f64::total_cmp);
    let (median, best) = (times[times.len() / 2], best.iter().sum::<f64>());
    let per_token = (2 * model.n_kv_heads * model.head_dim * kind.element_bytes() * n_layers) as f64;
    let bytes = per_token * (depth + n_rows) as f64;
    let keys = (depth * n_rows + n_rows * (n_rows + 1) / 2) as f64;
    let flops = 4.0 * keys * (model.head_dim * model.n_heads * n_layers) as f64;
    println!(
        "{:14} {what:8} {depth:5} + {n_rows:3}  {:9.1} us/layer ({:9.1}, cpu {:9.1})  {:5.1} ({:5.1}) GB/s  {:5.1} ({:5.1}, cpu {:5.1}) GFLOP/s",
        model.name,
        median / n_layers as f64 * 1e6,
        best / n_layers as f64 * 1e6,
        cpu / n_layers as f64 * 1e6,
        bytes / median / 1e9,
        bytes / best / 1e9,
        flops / median / 1e9,
        flops / best / 1e9,
        flops / cpu / 1e9,
    );
}

/// Sequences of [`many`].
const N_SEQUENCES: usize = 8;

/// One row each of several sequences in one call, beside as many rows of one sequence, by turns:
/// the ratio of the medians, and in brackets that of the best.
fn many(model: &Model, depth: usize, kind: &Kind) {
    let layer = LayerShape::new(model.n_kv_heads, model.head_dim);
    let n_layers = model.n_layers.min(8);
    let shape = CacheShape::uniform(n_layers, layer, depth + N_SEQUENCES);
    let scale = 1.0 / (model.head_dim as f32).sqrt();
    let filled = || {
        let mut cache = kind.cache(shape.clone());
        while cache.len() < depth {
            let n = (depth - cache.len()).min(512);
            Inputs::random(model, n, model.n_kv_heads).step(&mut *cache, scale, &mut vec![0.0; n_layers]);
            cache.commit(n).unwrap();
        }
        cache
    };
    let mut caches: Vec<Box<dyn KvCache>> = (0..N_SEQUENCES).map(|_| filled()).collect();
    let Inputs { q, k, v } = Inputs::random(model, N_SEQUENCES, model.n_heads);
    let (mut together, mut alone) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while together.len() < 5 || start.elapsed() < Duration::from_secs(2) && together.len() < 500 {
        let begin = Instant::now();
        caches.iter_mut().for_each(|cache| drop(cache.begin(1, None).unwrap()));
        for layer in 0..n_layers {
            let mut segments: Vec<Segment<'_>> =
                caches.iter_mut().map(|cache| Segment { cache: &mut **cache, n_rows: 1 }).collect();
            let out = attend_many(&mut segments, layer, q.clone(), k.clone(), v.clone(), scale).unwrap();
            std::hint::black_box(&out);
        }
        caches.iter_mut().for_each(|cache| cache.end().unwrap());
        together.push(begin.elapsed().as_secs_f64());
        caches.iter_mut().for_each(|cache| cache.truncate(depth).unwrap());
        let begin = Instant::now();
        let inputs = Inputs { q: q.clone(), k: k.clone(), v: v.clone() };
        inputs.step(&mut *caches[0], scale, &mut vec![0.0; n_layers]);
        alone.push(begin.elapsed().as_secs_f64());
        caches[0].truncate(depth).unwrap();
    }
    let median_and_best = |times: &mut Vec<f64>| {
        times.sort_unstable_by(f64::total_cmp);
        [times[times.len() / 2], times[0]].map(|time| time / n_layers as f64 * 1e6)
    };
    let [[together, best_together], [alone, best_alone]] = [&mut together, &mut alone].map(median_and_best);
    println!(
        "{:14} many     {depth:5}  {N_SEQUENCES} sequences of a row {together:9.1} us/layer ({best_together:9.1}), \
         {N_SEQUENCES} rows of one sequence {alone:9.1} ({best_alone:9.1}): ratio {:.3} ({:.3})",
        model.name,
        together / alone,
        best_together / best_alone
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let element = if arguments.iter().any(|a| a == "--f32") { Element::F32 } else { Element::F16 };
    let compression = value("--cache").map(|name| name.parse::<Compression>().map(Box::new));
    let kind = match compression.transpose() {
        Ok(compression) => compression.map_or(Kind::Plain(element), Kind::Compressed),
        Err(error) => {
            println!("{error}");
            return;
        }
    };
    let values = [value("--threads"), value("--cache")];
    let filter = arguments.iter().find(|a| !a.starts_with("--") && !values.contains(&Some(*a)));
    let threads = match value("--threads").map(|n| n.parse::<usize>()) {
        Some(Ok(n)) => vec![n],
        _ if pool::threads() > 1 => vec![1, pool::threads()],
        _ => vec![1],
    };
    for n in threads {
        if let Err(error) = pool::set_threads(n) {
            println!("{error}");
            return;
        }
        println!(
            "{} thread(s), {}, {}",
            pool::threads(),
            cpu::isa(),
            value("--cache").map_or("plain", |name| name)
        );
        for model in &MODELS {
            for case in CASES {
                let name = format!("{} {} {} {}", model.name, case.0, case.1, case.2);
                if filter.is_none_or(|filter| name.contains(filter.as_str())) {
                    run(model, case, &kind);
                }
            }
            // Not at a page's end, where a step allocates the next one.
            for depth in [160, 2080] {
                let name = format!("{} many {depth}", model.name);
                if filter.is_none_or(|filter| name.contains(filter.as_str())) {
                    many(model, depth, &kind);
                }
            }
        }
    }
}
