//! The data of a tile of rows: the head's region, the rows, and scratch memory.

use breakers_cpu::Isa;
use half::f16;

use super::accumulate::ROWS;
use super::factors::Rounded;
use super::queries::Queries;
use super::values::Values;
use crate::attention::flex::page::{Rows, Span};
use crate::pages::packed::run::{Place, QUAD};
use crate::pages::packed::{MAX_CODED, MAX_GROUPS, MAX_HEAD_DIM, PackedFormat};
use crate::pages::page::PAGE_TOKENS;
use breakers_cpu::simd::Quad;

/// One head's region of a packed page, and what all tiles need of it.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) format: &'a PackedFormat,
    pub(super) words: *const u32,
    pub(super) halves: *const f16,
    pub(super) exact: &'a [f16],
    /// Of an adaptive format: the channels in their order, and where their quads stand.
    pub(super) order: &'a [u8],
    pub(super) places: &'a [Place],
    pub(super) values: &'a Values,
    /// The region that is read next.
    pub(super) next: *const u32,
}

/// A tile's scratch memory, `[ROWS, …]` each. Nothing is read before it is written.
#[repr(align(64))]
pub(super) struct Scratch {
    /// Queries' elements times the channels' steps.
    pub(super) factors: [f32; ROWS * MAX_CODED],
    /// Factors as integers.
    pub(super) quads: [Quad; ROWS * MAX_CODED / QUAD],
    /// Sums over codes: scores, then values.
    pub(super) sums: [i32; ROWS * MAX_HEAD_DIM],
    /// What the integers of a query stand for, of each group of channels.
    pub(super) rounded: [Rounded; ROWS * MAX_GROUPS],
    /// Sums of the query times the channels' low ends.
    pub(super) low: [f32; ROWS],
    /// What the integers of the weights stand for.
    pub(super) weights: [Rounded; ROWS],
    /// Sums of the weights times the slots' offsets.
    pub(super) offset: [f32; ROWS],
    /// What this page's sums are multiplied by.
    pub(super) share: [f32; ROWS],
    /// What the sums so far are multiplied by.
    pub(super) rescale: [f32; ROWS],
    /// Weights of the exact slots.
    pub(super) exact: [f32; ROWS * PAGE_TOKENS],
}

/// Some rows against one head's region.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) isa: Isa,
    pub(super) head: Head<'a>,
    pub(super) rows: Rows,
    pub(super) queries: Queries,
    pub(super) spans: &'a [Span],
}
