//! Compressions by name.

use super::Compression;
use crate::coders::{Estimator, KiviConfig, KvarnConfig, Method, Sketch, WaterFillingConfig};
use crate::{Error, Result};

fn turbo(bits: f64, estimator: Estimator) -> Compression {
    Compression::new(Method::Turbo { bits, estimator })
}

fn water(key_bits: f64, value_bits: f64) -> Compression {
    Compression::new(Method::WaterFilling(WaterFillingConfig { key_bits, value_bits }))
}

fn block(method: Method) -> Compression {
    // As published: nothing is exact.
    Compression { exact_tokens: 0, ..Compression::new(method) }
}

impl Compression {
    /// Every name, with what it stands for.
    pub fn presets() -> Vec<(&'static str, Compression)> {
        let prod = Estimator::Prod(Sketch::Orthogonal);
        vec![
            ("q8_0", block(Method::Q8_0)),
            ("q4_0", block(Method::Q4_0 { rotated: false })),
            ("q4_0-rotated", block(Method::Q4_0 { rotated: true })),
            ("kivi-4", block(Method::Kivi(KiviConfig::paper(4)))),
            ("kivi-2", block(Method::Kivi(KiviConfig::paper(2)))),
            ("turbo-mse-4", turbo(4.0, Estimator::Mse)),
            ("turbo-mse-3", turbo(3.0, Estimator::Mse)),
            ("turbo-prod-4", turbo(4.0, prod)),
            ("turbo-prod-3", turbo(3.0, prod)),
            ("turbo-5", turbo(5.0, Estimator::Rescaled)),
            ("turbo-4", turbo(4.0, Estimator::Rescaled)),
            ("turbo-3.5", turbo(3.5, Estimator::Rescaled)),
            ("turbo-3", turbo(3.0, Estimator::Rescaled)),
            ("turbo-2", turbo(2.0, Estimator::Rescaled)),
            ("kvarn-4", Compression::new(Method::Kvarn(KvarnConfig::default()))),
            ("kvarn-4-2", Compression::new(Method::Kvarn(KvarnConfig::paper()))),
            ("water-5", water(4.5, 4.0)),
            ("water-4", water(3.5, 3.0)),
            ("water-3", water(3.0, 2.0)),
            ("water-2", water(2.0, 1.0)),
        ]
    }

    /// The compression of this name.
    ///
    /// # Errors
    /// [`Error::UnknownCompression`].
    pub fn named(name: &str) -> Result<Self> {
        let presets = Self::presets();
        let known: Vec<&str> = presets.iter().map(|preset| preset.0).collect();
        let known = known.join(", ");
        let found = presets.into_iter().find(|preset| preset.0 == name).map(|preset| preset.1);
        found.ok_or_else(|| Error::UnknownCompression { name: name.to_owned(), known })
    }
}
