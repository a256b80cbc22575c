//! A graph in a file: its links, and the center of its codes. Vectors stay with their owner, and codes are
//! computed from them.

use super::{Graph, GraphConfig, NONE};
use crate::{
    Bitset, MAX_MAGNITUDE, Metric, Result,
    index::{Exact, MAX_SLOTS, slots::Slots},
    metric::check_dimension,
};
use breakers_files::{
    Buffer, Disk,
    sections::{self, Pieces, SectionFile},
};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The version of codes, rotation and links; a file of another version is rebuilt.
const VERSION: u32 = 2;

/// The header of a file.
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
    has_center: bool,
    /// The owner's part of the header.
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
            has_center: !flat.codes.center().is_empty(),
            extra,
        };
        let whole = |bytes: &[u8], put: &mut dyn FnMut(&[u8])| put(bytes);
        let degrees =
            |put: &mut dyn FnMut(&[u8])| pack(self.packed_rows().map(|row| row.len() as u32), 2, put);
        let (n, bytes) = (flat.n_slots() as u32, slot_bytes(flat.n_slots()));
        let number = |slot: u32| if slot == NONE { n } else { slot };
        let links = |put: &mut dyn FnMut(&[u8])| pack(self.packed_rows().flatten().copied(), bytes, put);
        let parents = |put: &mut dyn FnMut(&[u8])| pack(self.parents.iter().copied().map(number), bytes, put);
        let owned = sections.iter().map(|&(name, content)| (name, content));
        let small: Vec<(&str, _)> = [
            ("center", bytemuck::cast_slice(flat.codes.center())),
            ("live", bytemuck::cast_slice(flat.slots.live.words())),
            ("pivots", bytemuck::cast_slice(&self.pivots)),
        ]
        .into_iter()
        .chain(owned)
        .map(|(name, content)| (name, move |put: &mut dyn FnMut(&[u8])| whole(content, put)))
        .collect();
        let mut all: Vec<(&str, Pieces<'_>)> =
            vec![("degrees", &degrees), ("links", &links), ("parents", &parents)];
        all.extend(small.iter().map(|(name, pieces)| (*name, pieces as Pieces<'_>)));
        Ok(sections::write_pieces(disk, path, info, &all)?)
    }

    /// The links of all slots; of those that are not part of the graph, none.
    fn packed_rows(&self) -> impl Iterator<Item = &[u32]> {
        (0..self.flat.n_slots() as u32)
            .map(|slot| if self.linked.contains(slot) { self.links_of(slot) } else { &[] })
    }

    /// Reads a graph from an opened file. Opening checked that the file is whole; its content is checked all
    /// the same.
    ///
    /// It has no vectors yet: each that is live is to be [set](Exact::set), and then
    /// [`complete`](Self::complete) called. `lean` leaves them with their owner.
    ///
    /// # Errors
    /// [`Error::Damaged`](crate::Error::Damaged), [`Error::Io`](crate::Error::Io).
    pub(crate) fn read<X>(file: &SectionFile<GraphInfo<X>>, lean: bool) -> Result<Self>
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
        let mut flat =
            if lean { Exact::lean(info.metric, dimension)? } else { Exact::new(info.metric, dimension)? };
        let center = file.array::<f32>("center", if info.has_center { dimension } else { 0 })?.to_vec();
        if center.iter().any(|x| x.is_nan() || x.abs() >= MAX_MAGNITUDE) {
            return Err(file.damaged("center", "finite numbers", "others").into());
        }
        let live = Bitset::from_words(file.array::<u64>("live", n.div_ceil(64))?.to_vec(), n);
        let (mut links, parents) = unpack(file, n, 2 * config.links)?;
        let pivots = file.array::<u32>("pivots", info.n_pivots)?.to_vec();
        let n_live = live.count();
        let sound = pivots.iter().all(|&slot| (slot as usize) < n && live.contains(slot))
            && if n_live == 0 { info.root == NONE } else { live.contains(info.root) && !pivots.is_empty() };
        if !sound {
            return Err(file.damaged("links", &format!("slots below {n}"), "others").into());
        }
        // Links to removed vectors are dropped at once, so that their slots need not wait for a sweep.
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
        let linked = live.clone();
        flat.codes = flat.codes.around(center, n);
        flat.vectors.grow(n);
        flat.slots = Slots { live, n_live, free };
        let (root, n_linked) = (info.root, n_live);
        Ok(Self { links, parents, pivots, root, linked, n_linked, ..Self::over(flat, config)? })
    }

    /// Completes what [`read`](Self::read) began: `lost` are live slots whose vectors no longer exist.
    pub(crate) fn complete(&mut self, lost: &[u32]) {
        self.codes_are_new();
        self.forget(lost);
    }
}

/// Bytes of a slot's number, of `n` slots; `n` itself stands for none.
fn slot_bytes(n: usize) -> usize {
    (usize::BITS - n.leading_zeros()).div_ceil(8).max(1) as usize
}

/// Hands out numbers in so many bytes each, a piece at a time.
fn pack(numbers: impl Iterator<Item = u32>, bytes: usize, put: &mut dyn FnMut(&[u8])) {
    const PIECE: usize = 1 << 16;
    let mut piece = Vec::with_capacity(PIECE);
    for number in numbers {
        if piece.len() + bytes > PIECE {
            put(&piece);
            piece.clear();
        }
        piece.extend_from_slice(&number.to_le_bytes()[..bytes]);
    }
    put(&piece);
}

/// Links `[n, width]` and parents `[n]`, which a file has without room for links that there are not, and in
/// as few bytes a slot as there need be.
fn unpack<X: serde::de::DeserializeOwned>(
    file: &SectionFile<X>,
    n: usize,
    width: usize,
) -> Result<(Buffer<u32>, Buffer<u32>)> {
    let bytes = slot_bytes(n);
    let get = |packed: &[u8]| {
        let mut number = [0; 4];
        number[..bytes].copy_from_slice(packed);
        u32::from_le_bytes(number)
    };
    let degrees = file.array::<u16>("degrees", n)?;
    let n_links = degrees.iter().map(|&degree| usize::from(degree)).sum::<usize>();
    let packed = file.array::<u8>("links", n_links * bytes)?;
    let mut packed = packed.chunks_exact(bytes).map(get);
    let mut links = Buffer::new();
    links.extend_zeroed(n.saturating_mul(width));
    links.make_mut().fill(NONE);
    let mut sound = true;
    for (row, &degree) in links.make_mut().chunks_exact_mut(width).zip(&*degrees) {
        sound &= usize::from(degree) <= width;
        for (to, link) in row.iter_mut().zip(packed.by_ref().take(degree.into())) {
            sound &= (link as usize) < n;
            *to = link;
        }
    }
    let packed = file.array::<u8>("parents", n.saturating_mul(bytes))?;
    let mut parents = Buffer::new();
    parents.extend_zeroed(n);
    for (to, parent) in parents.make_mut().iter_mut().zip(packed.chunks_exact(bytes).map(get)) {
        sound &= parent as usize <= n;
        *to = if parent as usize == n { NONE } else { parent };
    }
    if sound {
        Ok((links, parents))
    } else {
        Err(file.damaged("links", &format!("up to {width} slots below {n}"), "others").into())
    }
}
