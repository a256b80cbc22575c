//! Times a draw from one row of logits, beside the plain reference of the tests.
//!
//! `cargo bench -p breakers-core --bench sampling -- [filter]`
//!
//! The best of alternating runs, in microseconds. The bar: a draw at temperature 1 and top-p 0.95 takes at
//! most a tenth of a decoding step on two threads (SmolLM2-135M 4.2 ms, Qwen2.5-0.5B 12 ms, Gemma-3-270M 8 ms
//! on two cores of an AMD EPYC).
#![allow(clippy::print_stdout)] // A report for the terminal.

use std::hint::black_box;
use std::time::Instant;

use breakers_core::{Sampler, SamplingConfig, TokenMask, kullback_leibler, token_score, top_k};

#[path = "../tests/suite/reference.rs"]
mod reference;

use reference::{Shape, row};

const RUNS: usize = 31;

fn micros(run: &mut dyn FnMut()) -> f64 {
    let begun = Instant::now();
    run();
    begun.elapsed().as_secs_f64() * 1e6
}

/// The best time, which other programs on the machine disturb least.
fn best(times: Vec<f64>) -> f64 {
    times.into_iter().fold(f64::INFINITY, f64::min)
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let base = SamplingConfig::temperature(1.0);
    let configs = [
        ("top-p .95", SamplingConfig { top_p: 0.95, ..base.clone() }),
        ("top-p .95, T .7", SamplingConfig { top_p: 0.95, temperature: 0.7, ..base.clone() }),
        ("top-k 40", SamplingConfig { top_k: 40, ..base.clone() }),
        ("min-p .05", SamplingConfig { min_p: 0.05, ..base.clone() }),
        (
            "top-p .95, penalties",
            SamplingConfig { top_p: 0.95, repetition_penalty: 1.1, frequency_penalty: 0.2, ..base.clone() },
        ),
        ("no filter", base),
    ];
    println!("{:24} {:6} {:>7} {:>10} {:>10}", "settings", "logits", "vocab", "now, µs", "plain, µs");
    for vocab in [49_152, 151_936, 262_144] {
        for shape in [Shape::Text, Shape::Bell, Shape::Flat] {
            let logits = row(shape, vocab, 7);
            let history: Vec<u32> = (0..500).map(|i| i * 97 % vocab as u32).collect();
            for (name, config) in &configs {
                let label = format!("{name:24} {:6} {vocab:7}", format!("{shape:?}"));
                if !label.contains(&filter) {
                    continue;
                }
                let mut sampler = Sampler::new(config.clone(), 1);
                let (mut now, mut plain) = (Vec::new(), Vec::new());
                for _ in 0..RUNS {
                    now.push(micros(&mut || {
                        black_box(sampler.sample(black_box(&logits), &history).unwrap());
                    }));
                    plain.push(micros(&mut || {
                        let entries = reference::distribution(config, black_box(&logits), &history);
                        black_box(reference::at(&entries, 0.5));
                    }));
                }
                println!("{label} {:10.0} {:10.0}", best(now), best(plain));
            }
        }
        let logits = row(Shape::Text, vocab, 7);
        let other = row(Shape::Text, vocab, 8);
        let mask = TokenMask::all(vocab - 100);
        let top_p = SamplingConfig { top_p: 0.95, ..SamplingConfig::temperature(1.0) };
        let mut sampler = Sampler::new(top_p, 1);
        let mut masked = sampler.clone();
        let mut greedy = Sampler::new(SamplingConfig::greedy(), 1);
        let mut others: [(&str, &mut dyn FnMut()); 6] = [
            ("top-p .95 in a mask", &mut || {
                black_box(masked.sample_within(&logits, &[], Some(&mask)).unwrap());
            }),
            ("top-p .95 with 5 best", &mut || {
                let token = sampler.sample(&logits, &[]).unwrap();
                black_box(token_score(&logits, token, 5).unwrap());
            }),
            ("greedy", &mut || {
                black_box(greedy.sample(&logits, &[]).unwrap());
            }),
            ("5 best", &mut || {
                black_box(top_k(&logits, 5).unwrap());
            }),
            ("100 best", &mut || {
                black_box(top_k(&logits, 100).unwrap());
            }),
            ("divergence", &mut || {
                black_box(kullback_leibler(&logits, &other).unwrap());
            }),
        ];
        for (name, run) in &mut others {
            let label = format!("{name:24} {:6} {vocab:7}", "Text");
            if label.contains(&filter) {
                println!("{label} {:10.0}", best((0..RUNS).map(|_| micros(run)).collect()));
            }
        }
    }
}
