//! All presses by name.

use super::{
    ExpectedAttention, H2o, HeadBudgets, KeyDiff, Knorm, LayerBudgets, RandomPress, SnapKv, StreamingLlm,
    Tova,
};
use crate::{Budget, Eviction};

/// A method of eviction by name: a press with its defaults, and how its budget is divided.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The name, lower case, as in `snapkv-25`.
    pub name: &'static str,
    /// The paper, or a description if there is none.
    pub paper: &'static str,
    /// Creates it for a budget.
    pub build: fn(Budget) -> Eviction,
}

const fn entry(name: &'static str, paper: &'static str, build: fn(Budget) -> Eviction) -> Entry {
    Entry { name, paper, build }
}

/// All presses of this crate. A new one needs a file and a line here.
pub const PRESSES: &[Entry] = &[
    entry("snapkv", "Li et al. 2024, arXiv 2404.14469", |budget| Eviction::new(SnapKv::default(), budget)),
    entry("adakv", "Feng et al. 2024, arXiv 2407.11550", |budget| Eviction {
        heads: HeadBudgets::Adaptive { safeguard: 0.2 },
        ..Eviction::new(SnapKv::default(), budget)
    }),
    entry("pyramidkv", "Cai et al. 2024, arXiv 2406.02069", |budget| Eviction {
        layers: LayerBudgets::Pyramid { steepness: 20.0 },
        ..Eviction::new(SnapKv::default(), budget)
    }),
    entry("streaming", "Xiao et al. 2023, arXiv 2309.17453", |budget| {
        Eviction::new(StreamingLlm::default(), budget)
    }),
    entry("h2o", "Zhang et al. 2023, arXiv 2306.14048", |budget| Eviction::new(H2o::default(), budget)),
    entry("tova", "Oren et al. 2024, arXiv 2401.06104", |budget| Eviction::new(Tova, budget)),
    entry("knorm", "Devoto et al. 2024, arXiv 2406.11430", |budget| Eviction::new(Knorm, budget)),
    entry("keydiff", "Park et al. 2025, arXiv 2504.15364", |budget| Eviction::new(KeyDiff, budget)),
    entry("expected", "Devoto et al. 2025, arXiv 2510.00636", |budget| {
        Eviction::new(ExpectedAttention::default(), budget)
    }),
    entry("random", "tokens at random: what every press has to beat", |budget| {
        Eviction::new(RandomPress::default(), budget)
    }),
];
