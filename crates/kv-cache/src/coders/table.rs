//! All methods by name.

use super::{
    BlockConfig, Coder, Estimator, KiviConfig, KvarnConfig, Sketch, TurboConfig, WaterFillingConfig,
};
use crate::Compression;

/// A method with its settings, by name.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The name, lower case, as in `--cache kivi-4`.
    pub name: &'static str,
    /// The paper, or a description if there is none.
    pub paper: &'static str,
    /// Creates it.
    pub build: fn() -> Compression,
}

const fn entry(name: &'static str, paper: &'static str, build: fn() -> Compression) -> Entry {
    Entry { name, paper, build }
}

const GGML: &str = "the block formats of ggml";
const QUAROT: &str = "Ashkboos et al. 2024, arXiv 2404.00456";
const KIVI: &str = "Liu et al. 2024, arXiv 2402.02750";
const TURBO: &str = "Zandieh et al. 2025, arXiv 2504.19874";
const RESCALED: &str = "arXiv 2604.19528, after TurboQuant";
const KVARN: &str = "arXiv 2606.03458";
const WATER: &str = "this project, after KIVI and TurboQuant";
const PROD: Estimator = Estimator::Prod(Sketch::Orthogonal);

/// All methods of this crate, with the settings that have a name. A new one needs a file and a line here.
pub const CODERS: &[Entry] = &[
    entry("q8_0", GGML, || published(BlockConfig::q8_0())),
    entry("q4_0", GGML, || published(BlockConfig::q4_0())),
    entry("q4_0-rotated", QUAROT, || published(BlockConfig { rotated: true, ..BlockConfig::q4_0() })),
    entry("kivi-4", KIVI, || published(KiviConfig::paper(4))),
    entry("kivi-2", KIVI, || published(KiviConfig::paper(2))),
    entry("turbo-mse-4", TURBO, || turbo(4.0, Estimator::Mse)),
    entry("turbo-mse-3", TURBO, || turbo(3.0, Estimator::Mse)),
    entry("turbo-prod-4", TURBO, || turbo(4.0, PROD)),
    entry("turbo-prod-3", TURBO, || turbo(3.0, PROD)),
    entry("turbo-5", RESCALED, || turbo(5.0, Estimator::Rescaled)),
    entry("turbo-4", RESCALED, || turbo(4.0, Estimator::Rescaled)),
    entry("turbo-3.5", RESCALED, || turbo(3.5, Estimator::Rescaled)),
    entry("turbo-3", RESCALED, || turbo(3.0, Estimator::Rescaled)),
    entry("turbo-2", RESCALED, || turbo(2.0, Estimator::Rescaled)),
    entry("kvarn-4", KVARN, || Compression::new(KvarnConfig::default())),
    entry("kvarn-4-2", KVARN, || Compression::new(KvarnConfig::paper())),
    entry("water-5", WATER, || water(4.5, 4.0)),
    entry("water-4", WATER, || water(3.5, 3.0)),
    entry("water-3", WATER, || water(3.0, 2.0)),
    entry("water-2", WATER, || water(2.0, 1.0)),
];

/// As their sources have them: nothing is exact.
fn published(coder: impl Coder + 'static) -> Compression {
    Compression { exact_tokens: 0, ..Compression::new(coder) }
}

fn turbo(bits: f64, estimator: Estimator) -> Compression {
    Compression::new(TurboConfig { bits, estimator })
}

fn water(key_bits: f64, value_bits: f64) -> Compression {
    Compression::new(WaterFillingConfig { key_bits, value_bits })
}
