//! The GPU kernels: attention over packed pages and the plain tail, and rotations.
//!
//! A row's softmax is computed separately for each split of [`SPLIT_PAGES`] packed pages, page by page
//! (Milakov and Gimelshein 2018, arXiv 1805.02867), so that a long context keeps a whole GPU busy. Then
//! another kernel joins these parts in ascending order and continues with the keys that the row sees plain,
//! in chunks of a page. Where splits and chunks begin depends only on positions, so a row's bits depend only
//! on what it sees.
//!
//! A cube takes a tile of queries, several heads that share keys and values, and rows, over the pages of one
//! split. For each page it goes through four stages, between which it waits for all its units:
//!
//! | stage | a unit does | where |
//! |---|---|---|
//! | load | every 64th of the page's steps and scales | [`page`] |
//! | score | the scores of one slot's key with all queries | [`page`] |
//! | softmax | its share of the largest scores, then its slot's weights | [`tile`] |
//! | sum | the sums of one channel of the values, or of several | [`page`] |
//!
//! Codes become numbers in registers, once for the tile; neighboring units read neighboring words.

pub(crate) mod join;
pub(crate) mod launch;
mod page;
mod tile;

use cubecl::prelude::*;

use self::page::{load, new_page, score, sum};
use self::tile::{new_tile, softmax, write_parts};
use crate::attention::cube::online::UNITS;
use crate::pages::packed::device::format::Spec;
use crate::pages::packed::device::words::SPLIT_PAGES;
use crate::pages::page::PAGE_TOKENS;

// A cube's units are as many as a page has slots.
const _: () = assert!(UNITS == PAGE_TOKENS);
/// The most queries of a tile.
pub(crate) const MAX_TILE: usize = 8;
/// Units that share the sums over a tile's query.
pub(crate) const PART: usize = UNITS / MAX_TILE;
/// Numbers before a row's path in the table of visible slots: its first slot, the one after the last that it
/// sees packed, and the one after its last.
pub(crate) const SPAN: usize = 3;
/// Numbers after a part's sums: the largest score and the sum of weights.
pub(crate) const MARKS: usize = 2;

#[cube]
pub(crate) fn at_most(number: usize, limit: usize) -> usize {
    select(number < limit, number, limit)
}

#[cube]
pub(crate) fn at_least(number: usize, limit: usize) -> usize {
    select(number > limit, number, limit)
}

/// The queries that a cube has, and the parts that it writes.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Place {
    /// The key-value head, which all queries of the tile read.
    pub(crate) head: usize,
    /// The tile's first query among those of the head: rows, and in each the heads of the group.
    pub(crate) first_query: usize,
    /// Queries of the head.
    pub(crate) n_queries: usize,
    pub(crate) n_heads: usize,
    /// Query heads that share the key-value head.
    pub(crate) group: usize,
    /// The first row of this launch.
    pub(crate) first_row: usize,
    pub(crate) n_rows: usize,
    /// The split among those of this launch.
    pub(crate) split: usize,
}

#[cube(launch_unchecked)]
pub(crate) fn packed_kernel(
    q: &Tensor<f32>,
    words: &Tensor<u32>,
    meta: &Tensor<u32>,
    tables: &Tensor<f32>,
    seen: &Tensor<i32>,
    parts: &mut Tensor<f32>,
    first_page: u32,
    split: u32,
    first_split: u32,
    first_row: u32,
    n_rows: u32,
    n_kv_heads: u32,
    n_exact: u32,
    scale: f32,
    #[comptime] tile_size: usize,
    #[comptime] spec: Spec,
) {
    let (n_rows, n_kv_heads) = (n_rows as usize, n_kv_heads as usize);
    let n_heads = q.shape(1);
    let group = n_heads / n_kv_heads;
    let split = split as usize + CUBE_POS_Y as usize;
    let place = Place {
        head: CUBE_POS_X as usize % n_kv_heads,
        first_query: CUBE_POS_X as usize / n_kv_heads * tile_size,
        n_queries: n_rows * group,
        n_heads,
        group,
        first_row: first_row as usize,
        n_rows,
        split: split - first_split as usize,
    };
    let mut page = new_page(tables, spec);
    let mut tile = new_tile(q, seen, &place, n_exact, scale, tile_size, spec);
    // Pages of the split that some row sees.
    let mut at = (split + 1) * comptime!(SPLIT_PAGES);
    let mut end = split * comptime!(SPLIT_PAGES);
    #[unroll]
    for j in 0..tile_size {
        at = at_most(at, tile.froms[j] as usize / comptime!(UNITS));
        end = at_least(end, tile.tos[j] as usize / comptime!(UNITS));
    }
    at = at_least(at, split * comptime!(SPLIT_PAGES));
    end = at_most(end, (split + 1) * comptime!(SPLIT_PAGES));

    while at < end {
        let region = ((at - first_page as usize) * n_kv_heads + place.head) * comptime!(spec.region_words);
        load(words, region, &mut page, spec);
        sync_cube();
        score(words, meta, region, &page, &mut tile, tile_size, spec);
        softmax(&mut tile, (at * comptime!(UNITS) + UNIT_POS as usize) as u32, tile_size, spec);
        sync_cube();
        sum(words, meta, region, &page, &mut tile, tile_size, spec);
        at += 1;
        // The next page overwrites what this one reads.
        sync_cube();
    }
    write_parts(&mut tile, &place, parts, tile_size, spec);
}
