//! Attention of many rows over the pages of one layer: how the work is cut into tasks and put together.
//!
//! Keys are taken in *chunks* of [`CHUNK_TOKENS`] at multiples of it. A row's softmax is computed for each
//! chunk from scratch, page by page, and the chunks' results are joined in ascending order: always, on one
//! thread too. So a row's bits depend neither on where the work is cut nor on the other rows.
//!
//! The rows of a token tree see their ancestors at the slots these would have in a chain: pages that reach
//! into the step are put together for each row.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use breakers_backend::cpu::Isa;
use breakers_backend::pool::{self, DisjointMut};
use bytemuck::Zeroable;
use half::f16;

use crate::Element;
use crate::kernel::{self, Partial, Rows, Span, TILE_ROWS};
use crate::page::{LANES, Line, PAGE_TOKENS, Page, PageLayout, Stored, copy_token};
use crate::simd::{Scalar, Simd};

/// Keys whose softmax is computed together. A multiple of [`PAGE_TOKENS`].
pub(crate) const CHUNK_TOKENS: usize = 256;
/// Query rows of a task, about: their queries and sums are to stay in the first- and second-level cache.
const TASK_ROWS: usize = 48;
/// Tasks for each thread that are enough to keep all threads busy to the end.
const TASKS_PER_THREAD: usize = 4;
/// Products below which forking costs more than it saves.
const FORK_PRODUCTS: usize = 150_000;

/// The paths of a token tree's rows.
#[derive(Clone, Copy)]
pub(crate) struct TreeRows<'a> {
    /// Tokens before the step; row i of the step is kept at slot `prefix + i`.
    pub(crate) prefix: usize,
    /// For each row its ancestors, oldest first, and itself.
    pub(crate) paths: &'a [Vec<usize>],
}

/// Attention of some rows over one layer.
pub(crate) struct Job<'a> {
    pub(crate) layout: PageLayout,
    pub(crate) pages: &'a [Arc<Page>],
    /// `[n_rows, n_heads, head_dim]`
    pub(crate) q: &'a [f32],
    pub(crate) n_heads: usize,
    pub(crate) scale: f32,
    /// For each row the slots that it sees; in a tree, as if its path were a chain.
    pub(crate) spans: &'a [Range<usize>],
    pub(crate) tree: Option<TreeRows<'a>>,
}

/// What one task computes: some rows of the query heads that share one key-value head, over some chunks.
struct Task {
    head: usize,
    rows: Range<usize>,
    chunks: Range<usize>,
}

/// Where tasks write.
enum Output<'a> {
    /// Final results, `[n_rows, n_heads, head_dim]`.
    Whole(DisjointMut<'a, f32>),
    /// One softmax for each of `[n_chunks, n_rows, n_heads]`: its largest score and sum of weights in
    /// `marks`, its values in `values`.
    Chunks { marks: DisjointMut<'a, [f32; 2]>, values: DisjointMut<'a, f32>, first_chunk: usize },
}

thread_local! {
    /// A task's scratch memory.
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    /// Results of chunks, on the thread that forks.
    static CHUNKS: RefCell<(Vec<[f32; 2]>, Vec<Line>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

impl Job<'_> {
    /// The result, `[n_rows, n_heads, head_dim]`.
    pub(crate) fn run(&self, isa: Isa) -> Vec<f32> {
        let n_rows = self.spans.len();
        let mut out = vec![0.0; self.q.len()];
        let group = self.n_heads / self.layout.n_kv_heads;
        let rows_per_task = (TASK_ROWS / group).max(1);
        let n_blocks = n_rows.div_ceil(rows_per_task);
        let chunks = self.chunks(0..n_rows);
        let n_whole = self.layout.n_kv_heads * n_blocks;
        let block = |i: usize| i * rows_per_task..n_rows.min((i + 1) * rows_per_task);

        let products = self.spans.iter().map(ExactSizeIterator::len).sum::<usize>()
            * self.n_heads
            * (2 * self.layout.head_dim);
        let threads = if products < FORK_PRODUCTS { 1 } else { pool::threads() };
        if threads == 1 || n_whole >= TASKS_PER_THREAD * threads || chunks.len() <= 1 {
            let task = |i: usize| {
                // Later rows see more: they come first, so that no long task is left for the end.
                let rows = block(n_blocks - 1 - i / self.layout.n_kv_heads);
                let chunks = self.chunks(rows.clone());
                Task { head: i % self.layout.n_kv_heads, rows, chunks }
            };
            let output = Output::Whole(DisjointMut::new(&mut out));
            if threads == 1 {
                (0..n_whole).for_each(|i| self.run_task(isa, &task(i), &output));
            } else {
                pool::parallel_for(n_whole, |i| self.run_task(isa, &task(i), &output));
            }
            return out;
        }

        CHUNKS.with_borrow_mut(|(marks, values)| {
            let stride = self.layout.padded_dim;
            let n_partials = chunks.len() * n_rows * self.n_heads;
            grow(marks, n_partials);
            grow(values, (n_partials * stride * size_of::<f32>()).div_ceil(size_of::<Line>()));
            let values: &mut [f32] = bytemuck::cast_slice_mut(values);
            let per_task = (chunks.len() * n_whole).div_ceil(TASKS_PER_THREAD * threads);
            let n_pieces = chunks.len().div_ceil(per_task);
            {
                let output = Output::Chunks {
                    marks: DisjointMut::new(marks),
                    values: DisjointMut::new(values),
                    first_chunk: chunks.start,
                };
                pool::parallel_for(n_whole * n_pieces, |i| {
                    let first = chunks.start + i / n_whole * per_task;
                    let chunks = first..chunks.end.min(first + per_task);
                    let rows = block(i % n_whole / self.layout.n_kv_heads);
                    let task = Task { head: i % self.layout.n_kv_heads, rows, chunks };
                    self.run_task(isa, &task, &output);
                });
            }
            self.join(isa, chunks.len(), marks, values, &mut out);
        });
        out
    }

    /// Chunks that at least one of the rows sees.
    fn chunks(&self, rows: Range<usize>) -> Range<usize> {
        let spans = &self.spans[rows];
        let from = spans.iter().map(|s| s.start).min().unwrap_or(0);
        let to = spans.iter().map(|s| s.end).max().unwrap_or(0);
        from / CHUNK_TOKENS..to.div_ceil(CHUNK_TOKENS).max(from / CHUNK_TOKENS)
    }

    fn run_task(&self, isa: Isa, task: &Task, output: &Output<'_>) {
        SCRATCH.with_borrow_mut(|scratch| match self.layout.element {
            Element::F16 => self.run_task_as::<f16>(isa, task, output, scratch),
            Element::F32 => self.run_task_as::<f32>(isa, task, output, scratch),
        });
    }

    fn run_task_as<E: Stored>(&self, isa: Isa, task: &Task, output: &Output<'_>, scratch: &mut Vec<Line>) {
        let _ = isa;
        // SAFETY: plain Rust runs everywhere.
        unsafe { self.run_task_with::<Scalar, E>(task, output, scratch) }
    }

    /// # Safety
    /// `S`'s instructions are there.
    #[inline(always)]
    unsafe fn run_task_with<S: Simd, E: Stored>(
        &self,
        task: &Task,
        output: &Output<'_>,
        scratch: &mut Vec<Line>,
    ) {
        let layout = &self.layout;
        let group = self.n_heads / layout.n_kv_heads;
        let (n_rows, stride) = (task.rows.len() * group, layout.padded_dim);
        let mut workspace = Workspace::new(scratch, n_rows, layout);
        let rows = workspace.rows();
        let spans = &self.spans[task.rows.clone()];
        let first_head = task.head * group;

        let scale = self.scale * std::f32::consts::LOG2_E;
        for (row, q) in workspace.q.chunks_exact_mut(stride).enumerate() {
            let head = (task.rows.start + row / group) * self.n_heads + first_head + row % group;
            let from = &self.q[head * layout.head_dim..][..layout.head_dim];
            q.iter_mut().zip(from).for_each(|(q, &x)| *q = x * scale);
        }
        workspace.total_max.fill(f32::NEG_INFINITY);
        for chunk in task.chunks.clone() {
            // SAFETY: the workspace has n_rows rows.
            unsafe { rows.reset(n_rows) };
            // SAFETY: the caller's promise; `rows` are the group's rows of each of `spans`.
            unsafe {
                self.attend_chunk::<S, E>(task, spans, chunk, rows, workspace.page_spans, workspace.page)
            };
            for row in 0..n_rows {
                // SAFETY: row < n_rows; `merge` and the copy stay within `stride` values.
                unsafe {
                    let sum = S::reduce_add(S::load(rows.sum.add(row * LANES)));
                    let max = *rows.max.add(row);
                    let partial = Partial { max, sum, values: rows.acc.add(row * stride) };
                    match output {
                        Output::Whole(_) => {
                            let values = workspace.total.as_mut_ptr().add(row * stride);
                            let (max, sum) = (workspace.total_max[row], workspace.total_sum[row]);
                            let mut total = Partial { max, sum, values };
                            kernel::merge::<S>(&mut total, &partial, stride);
                            (workspace.total_max[row], workspace.total_sum[row]) = (total.max, total.sum);
                        }
                        Output::Chunks { marks, values, first_chunk } => {
                            let token = task.rows.start + row / group;
                            let at = (chunk - first_chunk) * self.spans.len() + token;
                            let at = at * self.n_heads + first_head + row % group;
                            // Each chunk, row and head belongs to one task.
                            marks.write(at, [max, sum]);
                            let values = values.slice_mut(at * stride..(at + 1) * stride);
                            values.copy_from_slice(std::slice::from_raw_parts(partial.values, stride));
                        }
                    }
                }
            }
        }
        if let Output::Whole(out) = output {
            for row in 0..n_rows {
                let head = (task.rows.start + row / group) * self.n_heads + first_head + row % group;
                let at = head * layout.head_dim;
                let (max, sum) = (workspace.total_max[row], workspace.total_sum[row]);
                // SAFETY: each row and head belongs to one task; the total has `stride` values.
                unsafe {
                    let values = workspace.total.as_mut_ptr().add(row * stride);
                    let total = Partial { max, sum, values };
                    kernel::finish::<S>(&total, out.slice_mut(at..at + layout.head_dim));
                }
            }
        }
    }

    /// Lets a task's rows attend to the pages of one chunk.
    ///
    /// # Safety
    /// `S`'s instructions are there; `rows` has `group` rows for each of `spans`; `page_spans` has as many;
    /// `virtual_page` has room for a head's region of type `E`.
    #[inline(always)]
    unsafe fn attend_chunk<S: Simd, E: Stored>(
        &self,
        task: &Task,
        spans: &[Range<usize>],
        chunk: usize,
        rows: Rows,
        page_spans: &mut [Span],
        virtual_page: *mut E,
    ) {
        let group = self.n_heads / self.layout.n_kv_heads;
        let from = spans.iter().map(|s| s.start).min().unwrap_or(0).max(chunk * CHUNK_TOKENS);
        let to = spans.iter().map(|s| s.end).max().unwrap_or(0).min((chunk + 1) * CHUNK_TOKENS);
        if from >= to {
            return;
        }
        let n_real_pages = self.tree.map_or(usize::MAX, |tree| tree.prefix / PAGE_TOKENS);
        for page in from / PAGE_TOKENS..to.div_ceil(PAGE_TOKENS) {
            let start = page * PAGE_TOKENS;
            let sees = |s: &Range<usize>| s.start < start + PAGE_TOKENS && s.end > start;
            let relative = |s: &Range<usize>| Span {
                from: s.start.saturating_sub(start).min(PAGE_TOKENS) as i32,
                to: s.end.saturating_sub(start).min(PAGE_TOKENS) as i32,
            };
            if page < n_real_pages {
                let Some(first) = spans.iter().position(sees) else { continue };
                let end = spans.iter().rposition(sees).map_or(first, |last| last + 1);
                for (token, span) in spans[first..end].iter().enumerate() {
                    page_spans[token * group..][..group].fill(relative(span));
                }
                let region = self.pages[page].region::<E>(&self.layout, task.head);
                // SAFETY: the caller's promises; the rows of tokens first..end exist.
                unsafe {
                    let rows = rows.skip(first * group);
                    let page_spans = &page_spans[..(end - first) * group];
                    kernel::attend_page::<S, E>(&self.layout, region.as_ptr(), rows, page_spans);
                }
                continue;
            }
            // SAFETY: the virtual page has room for a region.
            let region =
                unsafe { std::slice::from_raw_parts_mut(virtual_page, self.layout.region_elements()) };
            let Some(tree) = self.tree else { continue };
            if start < tree.prefix {
                region.copy_from_slice(self.pages[page].region(&self.layout, task.head));
            }
            for (token, span) in spans.iter().enumerate().filter(|(_, span)| sees(span)) {
                let path = &tree.paths[task.rows.start + token];
                for slot in start.max(tree.prefix)..span.end.min(start + PAGE_TOKENS) {
                    let kept_at = tree.prefix + path[slot - tree.prefix];
                    let kept = self.pages[kept_at / PAGE_TOKENS].region::<E>(&self.layout, task.head);
                    copy_token(&self.layout, kept, kept_at % PAGE_TOKENS, region, slot - start);
                }
                page_spans[..group].fill(relative(span));
                // SAFETY: the caller's promises; the token's rows exist.
                unsafe {
                    let rows = rows.skip(token * group);
                    kernel::attend_page::<S, E>(&self.layout, region.as_ptr(), rows, &page_spans[..group]);
                }
            }
        }
    }

    /// Puts the chunks of all rows together, in ascending order.
    fn join(&self, isa: Isa, n_chunks: usize, marks: &[[f32; 2]], values: &mut [f32], out: &mut [f32]) {
        let _ = isa;
        // SAFETY: plain Rust runs everywhere.
        unsafe { self.join_with::<Scalar>(n_chunks, marks, values, out) }
    }

    /// # Safety
    /// `S`'s instructions are there.
    #[inline(always)]
    unsafe fn join_with<S: Simd>(
        &self,
        n_chunks: usize,
        marks: &[[f32; 2]],
        values: &mut [f32],
        out: &mut [f32],
    ) {
        let stride = self.layout.padded_dim;
        let n_rows = self.spans.len() * self.n_heads;
        let (first, later) = values.split_at_mut(n_rows * stride);
        for (row, out) in out.chunks_exact_mut(self.layout.head_dim).enumerate() {
            let values = &mut first[row * stride..][..stride];
            let mut total = Partial { max: marks[row][0], sum: marks[row][1], values: values.as_mut_ptr() };
            for chunk in 1..n_chunks {
                let [max, sum] = marks[chunk * n_rows + row];
                let values = &mut later[((chunk - 1) * n_rows + row) * stride..][..stride];
                let partial = Partial { max, sum, values: values.as_mut_ptr() };
                // SAFETY: the caller's promise; both have `stride` values, which do not overlap.
                unsafe { kernel::merge::<S>(&mut total, &partial, stride) };
            }
            // SAFETY: the caller's promise; the total has `stride` values, `out` at most as many.
            unsafe { kernel::finish::<S>(&total, out) };
        }
    }
}

/// Makes `buffer` hold at least `len` elements.
fn grow<T: Zeroable + Copy>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::zeroed());
    }
}

/// A task's scratch memory, cut into its arrays.
struct Workspace<'a, E> {
    q: &'a mut [f32],
    acc: &'a mut [f32],
    total: &'a mut [f32],
    sum: &'a mut [f32],
    weights: &'a mut [f32],
    max: &'a mut [f32],
    total_max: &'a mut [f32],
    total_sum: &'a mut [f32],
    page_spans: &'a mut [Span],
    page: *mut E,
    stride: usize,
}

impl<'a, E: Stored> Workspace<'a, E> {
    fn new(scratch: &'a mut Vec<Line>, n_rows: usize, layout: &PageLayout) -> Self {
        let stride = layout.padded_dim;
        let wide = n_rows * stride;
        let narrow = n_rows.next_multiple_of(LANES);
        let n_floats = 3 * wide + n_rows * LANES + TILE_ROWS * PAGE_TOKENS + 5 * narrow;
        let n_lines = n_floats / LANES;
        let page_lines = (layout.region_elements() * size_of::<E>()).div_ceil(size_of::<Line>());
        grow(scratch, n_lines + page_lines);
        let (floats, page) = scratch.split_at_mut(n_lines);
        let mut rest: &mut [f32] = bytemuck::cast_slice_mut(floats);
        let mut take = |n: usize| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(n);
            rest = tail;
            head
        };
        Self {
            q: take(wide),
            acc: take(wide),
            total: take(wide),
            sum: take(n_rows * LANES),
            weights: take(TILE_ROWS * PAGE_TOKENS),
            max: take(narrow),
            total_max: take(narrow),
            total_sum: take(narrow),
            page_spans: &mut bytemuck::cast_slice_mut(take(2 * narrow))[..n_rows],
            page: page.as_mut_ptr().cast(),
            stride,
        }
    }

    fn rows(&mut self) -> Rows {
        Rows {
            stride: self.stride,
            q: self.q.as_ptr(),
            acc: self.acc.as_mut_ptr(),
            max: self.max.as_mut_ptr(),
            sum: self.sum.as_mut_ptr(),
            weights: self.weights.as_mut_ptr(),
        }
    }
}
