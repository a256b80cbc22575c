//! Attention of many rows over the pages of one layer: how the work is cut into tasks and put together.
//!
//! Keys are taken in *chunks* of [`CHUNK_TOKENS`] at multiples of it. A row's softmax is computed for each
//! chunk from scratch, page by page, and the chunks' results are joined in ascending order: always, on one
//! thread too. So a row's bits depend neither on where the work is cut nor on the other rows.
//!
//! The rows of a token tree see their ancestors at the slots these would have in a chain: pages that reach
//! into the step are put together for each row.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use breakers_cpu::Isa;
use breakers_cpu::pool::{self, DisjointMut};
use half::f16;

use super::page::{Partial, Rows, Span};
use super::workspace::{Workspace, grow};
use super::{packed, page as kernel};
use crate::attention::visible::TreeRows;
use crate::pages::packed::layer::PackedLayer;
use crate::pages::page::{LANES, Line, PAGE_TOKENS, Page, PageLayout, copy_token};
use crate::{Element, Visible};
use breakers_cpu::simd::{self, Kernel, Simd, Stored};

/// Keys whose softmax is computed together. A multiple of [`PAGE_TOKENS`].
pub(crate) const CHUNK_TOKENS: usize = 256;
/// Query rows of a task, about: their queries and sums are to stay in the first- and second-level cache.
const TASK_ROWS: usize = 48;
/// Tasks for each thread that are enough to keep all threads busy to the end.
const TASKS_PER_THREAD: usize = 4;
/// Products below which forking costs more than it saves: some microseconds of work.
const FORK_PRODUCTS: usize = 500_000;

/// Attention of some rows over one layer.
pub(crate) struct Job<'a> {
    pub(crate) layout: PageLayout,
    pub(crate) pages: &'a [Arc<Page>],
    /// `[n_rows, n_heads, head_dim]`
    pub(crate) q: &'a [f32],
    pub(crate) n_heads: usize,
    pub(crate) scale: f32,
    pub(crate) visible: &'a Visible,
    /// The pages that rows see packed.
    pub(crate) packed: Option<Packed<'a>>,
}

/// Packed pages beside the plain ones.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a> {
    pub(crate) layer: &'a PackedLayer,
    pub(crate) isa: Isa,
    /// Projected queries, as `q`, where the format has a sketch; empty otherwise.
    pub(crate) sketch: &'a [f32],
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
    Whole(DisjointMut<'a, MaybeUninit<f32>>),
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
    /// The result, `[n_rows, n_heads, head_dim]`; the first row with a NaN or an infinity in its query, if
    /// there is one.
    pub(crate) fn run(&self, isa: Isa) -> Result<Vec<f32>, usize> {
        let mut out = Vec::with_capacity(self.q.len());
        let bad_row = AtomicUsize::new(usize::MAX);
        self.run_into(isa, &mut out.spare_capacity_mut()[..self.q.len()], &bad_row);
        // SAFETY: `run_into` has written all of the q.len() elements.
        unsafe { out.set_len(self.q.len()) };
        match bad_row.into_inner() {
            usize::MAX => Ok(out),
            row => Err(row),
        }
    }

    /// Writes all elements of `out`.
    fn run_into(&self, isa: Isa, out: &mut [MaybeUninit<f32>], bad_row: &AtomicUsize) {
        let n_rows = self.visible.spans.len();
        let n_kv_heads = self.layout.n_kv_heads;
        let rows_per_task = (TASK_ROWS * n_kv_heads / self.n_heads).max(1);
        let n_blocks = n_rows.div_ceil(rows_per_task);
        let chunks = self.chunks(0..n_rows);
        let n_whole = n_kv_heads * n_blocks;
        let block = |i: usize| i * rows_per_task..n_rows.min((i + 1) * rows_per_task);

        let keys = self.visible.spans.iter().map(ExactSizeIterator::len).sum::<usize>();
        let products = keys * self.n_heads * 2 * self.layout.head_dim;
        let threads = if products < FORK_PRODUCTS { 1 } else { pool::threads() };
        if threads == 1 || n_whole >= TASKS_PER_THREAD * threads || chunks.len() <= 1 {
            let output = Output::Whole(DisjointMut::new(out));
            let run = |i: usize| {
                // Later rows see more: they come first, so that no long task is left for the end.
                let rows = block(n_blocks - 1 - i / n_kv_heads);
                let chunks = self.chunks(rows.clone());
                self.run_task(isa, &Task { head: i % n_kv_heads, rows, chunks }, &output, bad_row);
            };
            if threads == 1 {
                (0..n_whole).for_each(run);
            } else {
                pool::parallel_for(n_whole, run);
            }
            return;
        }

        CHUNKS.with_borrow_mut(|(marks, values)| {
            let n_partials = chunks.len() * n_rows * self.n_heads;
            grow(marks, n_partials);
            grow(values, (n_partials * self.layout.padded_dim).div_ceil(LANES));
            let values: &mut [f32] = bytemuck::cast_slice_mut(values);
            let per_task = (chunks.len() * n_whole).div_ceil(TASKS_PER_THREAD * threads);
            let n_pieces = chunks.len().div_ceil(per_task);
            let output = Output::Chunks {
                marks: DisjointMut::new(marks),
                values: DisjointMut::new(values),
                first_chunk: chunks.start,
            };
            pool::parallel_for(n_whole * n_pieces, |i| {
                let first = chunks.start + i / n_whole * per_task;
                let chunks = first..chunks.end.min(first + per_task);
                let rows = block(i % n_whole / n_kv_heads);
                let task = Task { head: i % n_kv_heads, rows, chunks };
                self.run_task(isa, &task, &output, bad_row);
            });
            simd::dispatch(isa, Join { job: self, n_chunks: chunks.len(), marks, values, out });
        });
    }

    /// Chunks that at least one of the rows sees.
    fn chunks(&self, rows: Range<usize>) -> Range<usize> {
        let spans = &self.visible.spans[rows];
        let from = spans.iter().map(|s| s.start).min().unwrap_or(0);
        let to = spans.iter().map(|s| s.end).max().unwrap_or(0);
        from / CHUNK_TOKENS..to.div_ceil(CHUNK_TOKENS).max(from / CHUNK_TOKENS)
    }

    fn run_task(&self, isa: Isa, task: &Task, output: &Output<'_>, bad_row: &AtomicUsize) {
        SCRATCH.with_borrow_mut(|scratch| {
            let kernel = RunTask { job: self, task, output, bad_row, scratch };
            simd::dispatch(isa, kernel);
        });
    }

    /// # Safety
    /// `S`'s instructions are there.
    #[inline(always)]
    unsafe fn run_task_as<S: Simd, E: Stored>(&self, kernel: RunTask<'_>) {
        let RunTask { task, output, bad_row, scratch, .. } = kernel;
        let layout = &self.layout;
        let group = self.n_heads / layout.n_kv_heads;
        let (n_rows, stride) = (task.rows.len() * group, layout.padded_dim);
        let format = self.packed.map(|packed| &packed.layer.packing.format);
        let n_prepared = format.map_or(0, |format| n_rows * packed::queries::floats(format));
        let mut workspace = Workspace::new(scratch, n_rows, layout, n_prepared);
        let spans = &self.visible.spans[task.rows.clone()];
        // The first of the rows' heads, in [n_rows, n_heads].
        let head =
            |row: usize| (task.rows.start + row / group) * self.n_heads + task.head * group + row % group;

        let scale = self.scale * std::f32::consts::LOG2_E;
        for (row, q) in workspace.q.chunks_exact_mut(stride).enumerate() {
            let from = &self.q[head(row) * layout.head_dim..][..layout.head_dim];
            // SAFETY: the caller's promise; q has `stride` elements.
            if !unsafe { kernel::scale_query::<S>(from, scale, q.as_mut_ptr()) } {
                bad_row.fetch_min(task.rows.start + row / group, Ordering::Relaxed);
            }
        }
        let rows = workspace.rows();
        let mut queries = packed::queries::Queries::none();
        if let Some((packed, format)) = self.packed.zip(format).filter(|_| n_prepared > 0) {
            let sketch = |row: usize| packed.sketch.get(head(row) * layout.head_dim..).unwrap_or_default();
            // SAFETY: the caller's promise; there is room for all rows.
            queries = unsafe {
                packed::queries::prepare::<S>(format, rows, n_rows, sketch, scale, workspace.prepared)
            };
        }
        workspace.total_max.fill(f32::NEG_INFINITY);
        // Kernels fetch what is read next while they compute. What is read first has to be fetched as well: processors
        // see these reads coming too late, if at all.
        let first_page = self.pages.get(task.chunks.start * (CHUNK_TOKENS / PAGE_TOKENS));
        if let Some(page) = first_page.filter(|page| page.bytes() > 0) {
            let region = bytemuck::cast_slice::<E, u8>(page.region(layout, task.head));
            for line in region.chunks(size_of::<Line>()) {
                // SAFETY: the caller's promise.
                unsafe { S::prefetch(line.as_ptr()) };
            }
        }
        for chunk in task.chunks.clone() {
            // SAFETY: the workspace has n_rows rows.
            unsafe { rows.reset(n_rows) };
            // SAFETY: the caller's promise; `rows` are the group's rows of each of `spans`.
            unsafe {
                self.attend_chunk::<S, E>(
                    task,
                    spans,
                    chunk,
                    rows,
                    queries,
                    workspace.page_spans,
                    workspace.page,
                )
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
                            let at =
                                (chunk - first_chunk) * self.visible.spans.len() * self.n_heads + head(row);
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
                let at = head(row) * layout.head_dim;
                let (max, sum) = (workspace.total_max[row], workspace.total_sum[row]);
                // SAFETY: each row and head belongs to one task; the total has `stride` values.
                unsafe {
                    let values = workspace.total.as_mut_ptr().add(row * stride);
                    let total = Partial { max, sum, values };
                    let out = out.slice_mut(at..at + layout.head_dim).as_mut_ptr().cast();
                    kernel::finish::<S>(&total, out, layout.head_dim);
                }
            }
        }
    }

    /// Lets a task's rows attend to the pages of one chunk.
    ///
    /// # Safety
    /// `S`'s instructions are there; `rows` has `group` rows for each of `spans`; `page_spans` has as many;
    /// `virtual_page` has room for a head's region of type `E`; `queries` are the rows' own where the packed format
    /// wants them.
    #[inline(always)]
    unsafe fn attend_chunk<S: Simd, E: Stored>(
        &self,
        task: &Task,
        spans: &[Range<usize>],
        chunk: usize,
        rows: Rows,
        queries: packed::queries::Queries,
        page_spans: &mut [Span],
        virtual_page: *mut E,
    ) {
        let layout = &self.layout;
        let group = self.n_heads / layout.n_kv_heads;
        let from = spans.iter().map(|s| s.start).min().unwrap_or(0).max(chunk * CHUNK_TOKENS);
        let to = spans.iter().map(|s| s.end).max().unwrap_or(0).min((chunk + 1) * CHUNK_TOKENS);
        if from >= to {
            return;
        }
        let n_real_pages = self.visible.tree.as_ref().map_or(usize::MAX, |tree| tree.prefix / PAGE_TOKENS);
        // A page that is packed may have no plain self.
        let stored = |page: usize| self.pages.get(page).filter(|page| page.bytes() > 0);
        let region_of = |page: usize| stored(page).map(|page| page.region::<E>(layout, task.head).as_ptr());
        // Behind a head's last page comes the next head's first one, on this thread or another.
        let next_head = stored(task.chunks.start * (CHUNK_TOKENS / PAGE_TOKENS));
        let next_head =
            next_head.map(|p| p.region::<E>(layout, (task.head + 1) % layout.n_kv_heads).as_ptr());
        for page in from / PAGE_TOKENS..to.div_ceil(PAGE_TOKENS) {
            let start = page * PAGE_TOKENS;
            let sees = |s: &Range<usize>| s.start < start + PAGE_TOKENS && s.end > start;
            let Some(begin) = spans.iter().position(sees) else { continue };
            let end = spans.iter().rposition(sees).map_or(begin, |last| last + 1);
            // All tokens at once on a page that stands in the cache, one by one where each has its own.
            let own_page = self.visible.tree.as_ref().filter(|_| page >= n_real_pages);
            let packed_pages = |row: usize| {
                self.packed.map_or(0, |packed| packed.layer.n_packed_for(spans[row].end.saturating_sub(1)))
            };
            let mut next_row = begin;
            while next_row < end {
                let first = next_row;
                // Rows that see the page in the same way go together.
                let is_packed = own_page.is_none() && page < packed_pages(first);
                let at_once = match own_page {
                    Some(_) => 1,
                    None => (first..end).take_while(|row| (page < packed_pages(*row)) == is_packed).count(),
                };
                next_row += at_once;
                let tokens = first..first + at_once;
                for (span, page_spans) in spans[tokens.clone()].iter().zip(page_spans.chunks_exact_mut(group))
                {
                    page_spans.fill(Span {
                        from: span.start.saturating_sub(start).min(PAGE_TOKENS) as i32,
                        to: span.end.saturating_sub(start).min(PAGE_TOKENS) as i32,
                    });
                }
                if let Some(Packed { layer, isa, .. }) = self.packed.filter(|_| is_packed) {
                    // SAFETY: the caller's promises; the rows of the tokens exist, and what they see is kept.
                    unsafe {
                        let (skipped, page_spans) = (first * group, &page_spans[..at_once * group]);
                        let first_page = task.chunks.start * (CHUNK_TOKENS / PAGE_TOKENS);
                        let next = layer.next(page, first_page, task.head);
                        let (format, page) = (&layer.packing.format, &layer.packed[page]);
                        let queries = queries.skip(skipped);
                        let (rows, page) = (rows.skip(skipped), (&**page, task.head));
                        packed::attend_page(isa, format, page, next, rows, queries, page_spans);
                    }
                    continue;
                }
                let region = match own_page {
                    None => self.pages[page].region::<E>(layout, task.head).as_ptr(),
                    Some(tree) => {
                        // SAFETY: there is room for a region.
                        let region =
                            unsafe { std::slice::from_raw_parts_mut(virtual_page, layout.region_elements()) };
                        let row = task.rows.start + first;
                        if row == task.rows.start + begin && start < tree.prefix {
                            region.copy_from_slice(self.pages[page].region(layout, task.head));
                        }
                        self.gather(tree, task.head, row, page, spans[first].end, region);
                        virtual_page.cast_const()
                    }
                };
                let next = region_of(page + 1).or(next_head).unwrap_or(region);
                // SAFETY: the caller's promises; the rows of the tokens exist.
                unsafe {
                    let rows = rows.skip(first * group);
                    let page_spans = &page_spans[..at_once * group];
                    kernel::attend_page::<S, E>(layout, region, next, rows, page_spans);
                }
            }
        }
    }

    /// Copies a row's ancestors into the page that it sees, behind the tokens before the step.
    fn gather<E: Stored>(
        &self,
        tree: &TreeRows,
        head: usize,
        row: usize,
        page: usize,
        end: usize,
        region: &mut [E],
    ) {
        let (layout, start) = (&self.layout, page * PAGE_TOKENS);
        for slot in start.max(tree.prefix)..end.min(start + PAGE_TOKENS) {
            let kept_at = tree.prefix + tree.paths[row][slot - tree.prefix];
            let kept = self.pages[kept_at / PAGE_TOKENS].region::<E>(layout, head);
            copy_token(layout, kept, kept_at % PAGE_TOKENS, region, slot - start);
        }
    }
}

/// One task, compiled for each instruction set.
struct RunTask<'a> {
    job: &'a Job<'a>,
    task: &'a Task,
    output: &'a Output<'a>,
    bad_row: &'a AtomicUsize,
    scratch: &'a mut Vec<Line>,
}

impl Kernel for RunTask<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.job.layout.element {
                Element::F16 => self.job.run_task_as::<S, f16>(self),
                Element::F32 => self.job.run_task_as::<S, f32>(self),
            }
        }
    }
}

/// Puts the chunks of all rows together, in ascending order.
struct Join<'a> {
    job: &'a Job<'a>,
    n_chunks: usize,
    marks: &'a [[f32; 2]],
    values: &'a mut [f32],
    out: &'a mut [MaybeUninit<f32>],
}

impl Kernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let PageLayout { head_dim, padded_dim: stride, .. } = self.job.layout;
        let n_rows = self.job.visible.spans.len() * self.job.n_heads;
        let (first, later) = self.values.split_at_mut(n_rows * stride);
        for (row, out) in self.out.chunks_exact_mut(head_dim).enumerate() {
            let [max, sum] = self.marks[row];
            let values = first[row * stride..][..stride].as_mut_ptr();
            let mut total = Partial { max, sum, values };
            for chunk in 1..self.n_chunks {
                let [max, sum] = self.marks[chunk * n_rows + row];
                let at = ((chunk - 1) * n_rows + row) * stride;
                let partial = Partial { max, sum, values: later[at..][..stride].as_mut_ptr() };
                // SAFETY: the caller's promise; both have `stride` values, which do not overlap.
                unsafe { kernel::merge::<S>(&mut total, &partial, stride) };
            }
            // SAFETY: the caller's promise; the total has `stride` values, `out` has head_dim elements.
            unsafe { kernel::finish::<S>(&total, out.as_mut_ptr().cast(), head_dim) };
        }
    }
}
