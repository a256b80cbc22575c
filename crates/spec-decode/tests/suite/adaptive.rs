//! The adaptive length in simulated worlds: its rate compared with the best fixed length and with plain
//! decoding.

use breakers_core::{Sampler, SamplingConfig};
use breakers_spec_decode::AdaptiveLength;

/// How a world looks after some number of tokens.
#[derive(Clone, Copy)]
struct World {
    /// Cost of a step over that many rows, in plain steps.
    verify: fn(usize, usize) -> f64,
    /// Cost of drafting that many tokens.
    draft: fn(usize) -> f64,
    /// A token's probability of acceptance, given where the text is and a uniform number.
    alpha: fn(usize, f64) -> f64,
    /// Whether the drafter knows that probability (and stops by itself), or says nothing.
    confident: bool,
}

const MAX: usize = 16;

struct Simulation {
    world: World,
    random: Sampler,
}

impl Simulation {
    fn new(world: World, seed: u64) -> Self {
        Self { world, random: Sampler::new(SamplingConfig::temperature(1.0), seed) }
    }

    /// Time with the noise of a shared machine: always a few percent, sometimes a lot.
    fn noisy(&mut self, seconds: f64) -> f64 {
        let spike = if self.random.uniform() < 0.02 { 4.0 } else { 1.0 };
        seconds * (1.0 + 0.06 * self.random.uniform()) * spike
    }

    /// Produces `n` tokens; `length`: fixed, or by a policy.
    fn run(&mut self, n: usize, mut policy: Result<usize, &mut AdaptiveLength>) -> f64 {
        let world = self.world;
        let (mut produced, mut time) = (0, 0.0);
        while produced < n {
            // Acceptance probabilities of the tokens that the drafter would propose here.
            let alphas: Vec<f64> = (0..MAX).map(|_| (world.alpha)(produced, self.random.uniform())).collect();
            let free = (world.draft)(1) < 0.01;
            let confidences: Vec<f32> = alphas.iter().map(|&a| a as f32).collect();
            let mut length = match &mut policy {
                Ok(length) => *length,
                Err(policy) => match policy.budget(MAX, world.confident && !free) {
                    0 => 0,
                    budget if free || !world.confident => budget,
                    budget => (1..budget).find(|&n| !policy.pays(&confidences[..n])).unwrap_or(budget),
                },
            };
            let proposed = length;
            if length > 0 {
                let seconds = self.noisy((world.draft)(length));
                time += seconds;
                if let Err(policy) = &mut policy {
                    policy.record_draft(length, seconds, 0.0);
                    length = policy.keep(length, world.confident.then_some(&confidences[..length]));
                }
            }
            let seconds = self.noisy((world.verify)(produced, length + 1));
            time += seconds;
            let right: Vec<bool> = alphas.iter().map(|&a| self.random.uniform() < a).collect();
            let accepted = right[..length].iter().take_while(|r| **r).count();
            if let Err(policy) = &mut policy {
                policy.record_step(length + 1, seconds, accepted + 1);
                // The text reveals one token beyond what was accepted, if one was proposed.
                for position in 0..(accepted + 1).min(proposed) {
                    let confidence = world.confident.then_some(confidences[position]);
                    policy.record_acceptance(position, confidence, right[position]);
                }
            }
            produced += accepted + 1;
        }
        time
    }
}

/// Rates relative to plain decoding: of the policy, and of the best fixed length.
fn rates(world: World, n: usize, seed: u64) -> (f64, f64) {
    let plain = Simulation::new(world, seed).run(n, Ok(0));
    let fixed = (1..=MAX).map(|k| Simulation::new(world, seed).run(n, Ok(k))).fold(f64::INFINITY, f64::min);
    let mut policy = AdaptiveLength::new();
    let adaptive = Simulation::new(world, seed).run(n, Err(&mut policy));
    (plain / adaptive, plain / fixed)
}

fn flat(_: usize, rows: usize) -> f64 {
    0.95 + 0.05 * rows as f64
}

fn steep(_: usize, rows: usize) -> f64 {
    0.2 + 0.8 * rows as f64
}

fn kinked(_: usize, rows: usize) -> f64 {
    if rows <= 4 { 1.0 + 0.02 * rows as f64 } else { 1.5 + 0.3 * rows as f64 }
}

fn deepening(at: usize, rows: usize) -> f64 {
    flat(at, rows) * (1.0 + at as f64 / 1000.0)
}

const NO_COST: fn(usize) -> f64 = |_| 1e-5;
const TENTH: fn(usize) -> f64 = |n| 0.1 * n as f64;
const HALF: fn(usize) -> f64 = |n| 0.5 * n as f64;

/// Most tokens are hopeless and some nearly certain, as with occasional copies.
const COPIES: fn(usize, f64) -> f64 = |at, u| if at / 40 % 3 == 0 { 0.97 } else { 0.3 * u };
const MIXED: fn(usize, f64) -> f64 = |_, u| if u < 0.7 { 0.95 } else { 0.35 };

#[test]
fn near_the_best_fixed_length_and_never_far_below_plain() {
    let worlds: Vec<(&str, World, f64)> = vec![
        (
            "free, always right",
            World { verify: flat, draft: NO_COST, alpha: |_, _| 0.98, confident: true },
            0.93,
        ),
        ("free, hopeless", World { verify: flat, draft: NO_COST, alpha: |_, _| 0.02, confident: true }, 0.95),
        (
            "free, hopeless and steep",
            World { verify: steep, draft: NO_COST, alpha: |_, _| 0.3, confident: true },
            0.95,
        ),
        (
            "free, right but steep",
            World { verify: steep, draft: NO_COST, alpha: |_, _| 0.9, confident: true },
            0.93,
        ),
        ("free, copies", World { verify: flat, draft: NO_COST, alpha: COPIES, confident: true }, 1.0),
        (
            "free, copies, kinked",
            World { verify: kinked, draft: NO_COST, alpha: COPIES, confident: true },
            0.96,
        ),
        ("cheap model", World { verify: flat, draft: TENTH, alpha: |_, _| 0.8, confident: false }, 0.92),
        ("cheap model, mixed", World { verify: flat, draft: TENTH, alpha: MIXED, confident: true }, 1.0),
        (
            "cheap model, deepening",
            World { verify: deepening, draft: TENTH, alpha: |_, _| 0.8, confident: false },
            0.9,
        ),
        (
            "costly model, good",
            World { verify: flat, draft: HALF, alpha: |_, _| 0.9, confident: false },
            0.92,
        ),
        ("costly model, mixed", World { verify: flat, draft: HALF, alpha: MIXED, confident: true }, 0.98),
        (
            "costly model, poor",
            World { verify: flat, draft: HALF, alpha: |_, _| 0.3, confident: false },
            0.95,
        ),
        (
            "costly model, steep",
            World { verify: steep, draft: HALF, alpha: |_, _| 0.9, confident: true },
            0.95,
        ),
    ];
    let mut failures = Vec::new();
    for (name, world, share) in worlds {
        // Means over seeds, so that single spikes don't decide.
        let all: Vec<(f64, f64)> = (0..8).map(|seed| rates(world, 3000, seed)).collect();
        let mean = |f: fn(&(f64, f64)) -> f64| all.iter().map(f).sum::<f64>() / all.len() as f64;
        let (adaptive, fixed) = (mean(|r| r.0), mean(|r| r.1));
        let line = format!("{name}: {adaptive:.3} of plain, best fixed length {fixed:.3}");
        if adaptive < share * fixed.max(1.0) || adaptive < 0.97 {
            failures.push(line);
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_short_text_loses_little_even_without_experience() {
    // 128 tokens with a costly and poor draft model: the worst case for learning.
    let world = World { verify: flat, draft: HALF, alpha: |_, _| 0.1, confident: true };
    let all: Vec<f64> = (0..40).map(|seed| rates(world, 128, seed).0).collect();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    assert!(mean > 0.96, "{mean:.3} of plain");
}

#[test]
fn it_follows_a_change_of_the_text() {
    // Useless for 1500 tokens, then right.
    let world = World {
        verify: flat,
        draft: TENTH,
        alpha: |at, _| if at < 1500 { 0.05 } else { 0.9 },
        confident: false,
    };
    let (adaptive, fixed) = rates(world, 6000, 3);
    assert!(adaptive > 0.8 * fixed && adaptive > 1.3, "{adaptive:.3}, best fixed {fixed:.3}");
}

#[test]
fn the_first_step_is_plain_and_limits_hold() {
    let mut policy = AdaptiveLength::new();
    assert_eq!(policy.budget(16, false), 0);
    policy.record_step(1, 1.0, 1);
    for limit in [0, 1, 3, 16] {
        assert!(policy.budget(limit, true) <= limit);
        assert!(policy.keep(limit, None) <= limit);
    }
}
