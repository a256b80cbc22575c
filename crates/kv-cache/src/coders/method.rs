//! The list of methods, and what a cache needs to know of each.

use breakers_cpu::{hadamard::Rotation, random::SplitMix64};

use super::block::Block;
use super::kivi::{KiviKeys, KiviValues};
use super::kvarn::Kvarn;
use super::turbo_cache::{Turbo, TurboProd, is_rescaled};
use super::turbo_quant::{rotation, sketch_matrix};
use super::water_filling::WaterFillingKeys;
use super::{Estimator, KiviConfig, KvarnConfig, WaterFillingConfig};
use crate::pages::packed::{MAX_HEAD_DIM, TileCoder};
use crate::pages::page::{LANES, PAGE_TOKENS};
use crate::{Error, Result};

/// How keys and values are coded.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Method {
    /// Eight bits, a scale for every 32 elements.
    Q8_0,
    /// Four bits, a scale for every 32 elements.
    Q4_0 {
        /// Whether heads are rotated by a Walsh–Hadamard transform before.
        rotated: bool,
    },
    /// KIVI.
    Kivi(KiviConfig),
    /// TurboQuant, with the same number of bits for keys and values.
    Turbo {
        /// Bits of an element, 1 to 5; a fraction gives a part of the channels one bit more. A whole number for
        /// [`Estimator::Prod`].
        bits: f64,
        /// The estimator. *prod* is for keys alone, whose products it estimates; values are rescaled then.
        estimator: Estimator,
    },
    /// KVarN.
    Kvarn(KvarnConfig),
    /// Water filling.
    WaterFilling(WaterFillingConfig),
}

/// What a method is made of, for heads of one width.
pub(crate) struct Coders {
    pub(crate) keys: Box<dyn TileCoder>,
    pub(crate) values: Box<dyn TileCoder>,
    pub(crate) key_rotation: Option<Rotation>,
    pub(crate) value_rotation: Option<Rotation>,
    /// What rotated queries are projected with, `[head_dim, head_dim]` by rows; empty for most methods.
    pub(crate) sketch: Vec<f32>,
    pub(crate) weighs_channels: bool,
}

/// Seeds of the rotations of keys and of values, and of the sketch.
const SEEDS: [u64; 3] = [0x6b65_7973, 0x7661_6c73, 0x736b_6574];

impl Method {
    /// Newest tokens that the method itself keeps as they are.
    pub(crate) fn window(&self) -> usize {
        match self {
            Self::Kivi(config) => config.window,
            _ => 0,
        }
    }

    /// The method for heads of `dim` elements.
    ///
    /// # Errors
    /// [`Error::HeadWidth`] and [`Error::BitWidth`].
    pub(crate) fn coders(&self, dim: usize) -> Result<Coders> {
        if !dim.is_power_of_two() || !(LANES..=MAX_HEAD_DIM).contains(&dim) {
            return Err(Error::HeadWidth { expected: "a power of two from 16 to 256", found: dim });
        }
        let rotations = |rotated: bool| -> Result<_> {
            let make = |seed| rotated.then(|| rotation(dim, seed)).transpose();
            Ok((make(SEEDS[0])?, make(SEEDS[1])?))
        };
        let (mut sketch, mut weighs_channels) = (Vec::new(), false);
        let (keys, values, (key_rotation, value_rotation)): (Box<dyn TileCoder>, Box<dyn TileCoder>, _) =
            match self {
                Self::Q8_0 => (Box::new(Block::new(dim, 8)), Box::new(Block::new(dim, 8)), (None, None)),
                Self::Q4_0 { rotated } => {
                    (Box::new(Block::new(dim, 4)), Box::new(Block::new(dim, 4)), rotations(*rotated)?)
                }
                Self::Kivi(config) => {
                    whole_bits("KIVI", config.bits)?;
                    if ![32, PAGE_TOKENS].contains(&config.group) {
                        return Err(Error::GroupSize { expected: "32 or 64", found: config.group });
                    }
                    (
                        Box::new(KiviKeys::new(dim, config)),
                        Box::new(KiviValues::new(dim, config)),
                        (None, None),
                    )
                }
                Self::Turbo { bits, estimator } => {
                    check_bits("TurboQuant", "1 to 5", *bits, 1.0, 5.0)?;
                    let values = Turbo::new(dim, *bits, *estimator != Estimator::Mse)?;
                    let keys: Box<dyn TileCoder> = match estimator {
                        Estimator::Prod(kind) => {
                            if bits.fract() != 0.0 {
                                let (what, expected) = ("TurboQuant's sketch", "a whole number of");
                                return Err(Error::BitWidth { what, expected, found: *bits });
                            }
                            sketch = sketch_matrix(dim, *kind, &mut SplitMix64::new(SEEDS[2]));
                            Box::new(TurboProd::new(dim, *bits as u32, *estimator, sketch.clone())?)
                        }
                        _ => Box::new(Turbo::new(dim, *bits, is_rescaled(*estimator))?),
                    };
                    (keys, Box::new(values), rotations(true)?)
                }
                Self::Kvarn(config) => {
                    whole_bits("KVarN", config.key_bits)?;
                    whole_bits("KVarN", config.value_bits)?;
                    (
                        Box::new(Kvarn::new(dim, config.key_bits, config.rounds, true)),
                        Box::new(Kvarn::new(dim, config.value_bits, config.rounds, false)),
                        rotations(true)?,
                    )
                }
                Self::WaterFilling(config) => {
                    check_bits("water filling (keys)", "1 to 7", config.key_bits, 1.0, 7.0)?;
                    check_bits("water filling (values)", "1 to 5", config.value_bits, 1.0, 5.0)?;
                    weighs_channels = true;
                    (
                        Box::new(WaterFillingKeys::new(dim, config.key_bits)),
                        Box::new(Turbo::new(dim, config.value_bits, true)?),
                        (None, rotations(true)?.1),
                    )
                }
            };
        Ok(Coders { keys, values, key_rotation, value_rotation, sketch, weighs_channels })
    }
}

fn whole_bits(what: &'static str, bits: u32) -> Result<()> {
    check_bits(what, "1 to 8", bits.into(), 1.0, 8.0)
}

fn check_bits(what: &'static str, expected: &'static str, found: f64, least: f64, most: f64) -> Result<()> {
    // Also false for a NaN.
    if found >= least && found <= most { Ok(()) } else { Err(Error::BitWidth { what, expected, found }) }
}
