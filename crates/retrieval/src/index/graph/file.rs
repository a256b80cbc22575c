//! A graph in a file.

use super::{Graph, GraphConfig, NONE};
use crate::{
    Bitset, Metric, Result,
    index::{Exact, MAX_SLOTS, Vectors},
    metric::check_dimension,
    quantize::{CoarseCodes, ScalarCodes, Tail},
};
use breakers_files::{
    Disk,
    sections::{self, SectionFile},
};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, path::Path};

/// The version of codes, rotation and links; another one is rebuilt.
const VERSION: u32 = 1;

/// What a file says about itself, beside its sections.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GraphInfo<X> {
    version: u32,
    metric: Metric,
    dimension: usize,
    n_slots: usize,
    links: usize,
    build_effort: usize,
    effort: usize,
    occlusion: f32,
    root: u32,
    n_pivots: usize,
    /// What the owner of the graph adds.
    pub(crate) extra: X,
}

impl Graph {
    /// Writes the graph; `extra` and `sections` come from its owner.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub(crate) fn write<X: Serialize>(
        &self,
        disk: &dyn Disk,
        path: &Path,
        extra: X,
        sections: &[(&str, &[u8])],
    ) -> Result<()> {
        let flat = &self.flat;
        let info = GraphInfo {
            version: VERSION,
            metric: flat.codes.metric(),
            dimension: flat.codes.dimension(),
            n_slots: flat.n_slots(),
            links: self.config.links,
            build_effort: self.config.build_effort,
            effort: self.config.effort,
            occlusion: self.config.occlusion,
            root: self.root,
            n_pivots: self.pivots.len(),
            extra,
        };
        let vectors = flat.vectors.all()?;
        let mut all = vec![
            ("codes", flat.codes.codes()),
            ("tails", bytemuck::cast_slice(flat.codes.tails())),
            ("vectors", bytemuck::cast_slice(&vectors)),
            ("live", bytemuck::cast_slice(flat.live.words())),
            ("links", bytemuck::cast_slice(&self.links)),
            ("parents", bytemuck::cast_slice(&self.parents)),
            ("pivots", bytemuck::cast_slice(&self.pivots)),
        ];
        all.extend_from_slice(sections);
        Ok(sections::write(disk, path, info, &all)?)
    }

    /// Takes a graph out of a file that was opened, and so is whole; what it says is checked nevertheless.
    ///
    /// `on_disk` leaves the full vectors in the file, to be read when they are needed.
    ///
    /// # Errors
    /// [`Error::Damaged`](crate::Error::Damaged), [`Error::Io`](crate::Error::Io).
    pub(crate) fn read<X>(file: &SectionFile<GraphInfo<X>>, on_disk: bool) -> Result<Self>
    where
        X: serde::de::DeserializeOwned,
    {
        let info = &file.info;
        if info.version != VERSION {
            return Err(file.damaged("version", &VERSION.to_string(), &info.version.to_string()).into());
        }
        let (n, dimension) = (info.n_slots, info.dimension);
        let config = GraphConfig {
            links: info.links,
            build_effort: info.build_effort,
            effort: info.effort,
            occlusion: info.occlusion,
        };
        let settings = config.check().and_then(|()| check_dimension(dimension));
        if let Err(error) = settings {
            return Err(file.damaged("settings", "settings in range", &error.to_string()).into());
        }
        if n > MAX_SLOTS || info.n_pivots > n {
            return Err(file.damaged("slots", &format!("at most {MAX_SLOTS}"), &n.to_string()).into());
        }
        let empty = ScalarCodes::new(info.metric, dimension)?;
        let tails = file.array::<Tail>("tails", n)?;
        let codes = file.array::<u8>("codes", n.saturating_mul(empty.stride()))?;
        let codes = ScalarCodes::from_buffers(info.metric, dimension, codes, tails)?;
        let n_numbers = n.saturating_mul(dimension);
        let vectors = if on_disk {
            Vectors::from_file(dimension, file.path(), file.place::<f32>("vectors", n_numbers)?, n)?
        } else {
            Vectors::from_buffer(dimension, file.array::<f32>("vectors", n_numbers)?)
        };
        let live = Bitset::from_words(file.array::<u64>("live", n.div_ceil(64))?.to_vec(), n);
        let mut links = file.array::<u32>("links", n.saturating_mul(2 * config.links))?;
        let parents = file.array::<u32>("parents", n)?;
        let pivots = file.array::<u32>("pivots", info.n_pivots)?.to_vec();
        let exists = |slot: u32| slot == NONE || (slot as usize) < n;
        let n_live = live.count();
        let sound = links.iter().all(|&slot| exists(slot))
            && parents.iter().all(|&slot| exists(slot))
            && pivots.iter().all(|&slot| (slot as usize) < n && live.contains(slot))
            && if n_live == 0 { info.root == NONE } else { live.contains(info.root) && !pivots.is_empty() };
        if !sound {
            return Err(file.damaged("links", &format!("slots below {n}"), "others").into());
        }
        let pivot_codes = pivots.iter().flat_map(|&slot| codes.row(slot as usize)).copied().collect();
        let pivot_tails = pivots.iter().map(|&slot| codes.tails()[slot as usize]).collect();
        // What is left of removed vectors is taken away at once, so that their slots need not wait for a sweep.
        let width = 2 * config.links;
        for slot in live.iter() {
            let row = slot as usize * width..(slot as usize + 1) * width;
            let dead = |&link: &u32| link != NONE && !live.contains(link);
            if links[row.clone()].iter().any(dead) {
                let left: Vec<u32> = links[row.clone()].iter().copied().filter(|link| !dead(link)).collect();
                let row = &mut links.make_mut()[row];
                row.fill(NONE);
                row[..left.len()].copy_from_slice(&left);
            }
        }
        let free = (0..n as u32).rev().filter(|&slot| !live.contains(slot)).collect();
        Ok(Self {
            linked: live.clone(),
            n_linked: n_live,
            // Full vectors are left on the disk where memory is short; four bits are for where it is not.
            flat: Exact {
                coarse: (!on_disk).then(|| CoarseCodes::of(&codes)),
                codes,
                vectors,
                live,
                n_live,
                free,
            },
            config,
            links,
            parents,
            pivots,
            pivot_codes,
            pivot_tails,
            root: info.root,
            retired: VecDeque::new(),
            swept: 0,
            scratch: None,
            watches: Default::default(),
        })
    }
}

impl Vectors {
    /// All vectors, to write them.
    fn all(&self) -> Result<std::borrow::Cow<'_, [f32]>> {
        if let Some(values) = self.in_memory() {
            return Ok(values.into());
        }
        let mut all = Vec::with_capacity(self.len() * self.dimension());
        let mut scratch = Vec::new();
        for slot in 0..self.len() as u32 {
            self.with(slot, &mut scratch, |vector| all.extend_from_slice(vector))?;
        }
        Ok(all.into())
    }
}
