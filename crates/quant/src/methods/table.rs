//! All methods by name.

use std::sync::Arc;

use super::{Awq, AwqConfig, Gptq, GptqConfig, Hqq, HqqConfig, RoundToNearest};
use crate::quantizer::Quantizer;
use crate::{Error, Result};

/// A method with its defaults, by name.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The name, lower case, as in `gptq:Q4_0`; the quantizer's own [`name`](Quantizer::name).
    pub name: &'static str,
    /// The paper, or a description if there is none.
    pub paper: &'static str,
    /// Creates it. A method has no format of its own: each matrix of a model may have a different one.
    pub build: fn() -> Arc<dyn Quantizer>,
}

const fn entry(name: &'static str, paper: &'static str, build: fn() -> Arc<dyn Quantizer>) -> Entry {
    Entry { name, paper, build }
}

/// Every method of this crate that whole models can be quantized with. A new one needs a file and a line
/// here.
///
/// (Rotations are separate words in a [`JobSpec`](crate::job::JobSpec), because they work with every method.)
pub const METHODS: &[Entry] = &[
    entry("rtn", "rounding to the nearest value: what every method has to beat", || {
        Arc::new(RoundToNearest::new().unweighted())
    }),
    entry("imatrix", "LeCun et al. 1990, \"Optimal brain damage\"", || Arc::new(RoundToNearest::new())),
    entry("hqq", "Badri and Shaji 2023, mobiusml.github.io/hqq_blog", || {
        Arc::new(Hqq::new(HqqConfig::default()))
    }),
    entry("awq", "Lin et al. 2023, arXiv 2306.00978", || Arc::new(Awq::new(AwqConfig::default()))),
    entry("gptq", "Frantar et al. 2022, arXiv 2210.17323", || Arc::new(Gptq::new(GptqConfig::default()))),
];

/// The method with this name.
///
/// # Errors
/// [`Error::Words`], which lists all names.
///
/// # Example
/// ```
/// use breakers_quant::methods::named;
///
/// assert_eq!(named("gptq")?.name(), "gptq");
/// assert!(named("magic").is_err());
/// # Ok::<(), breakers_quant::Error>(())
/// ```
pub fn named(name: &str) -> Result<Arc<dyn Quantizer>> {
    let found = METHODS.iter().find(|entry| entry.name == name);
    let names = || METHODS.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ");
    found.map(|entry| (entry.build)()).ok_or_else(|| Error::Words {
        what: "method",
        expected: names(),
        found: name.to_owned(),
    })
}
