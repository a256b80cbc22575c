//! Attention of many rows over the pages of one layer, or of one of its heads: the work of one task.
//!
//! Keys are taken in *chunks* of [`CHUNK_TOKENS`] at multiples of it. A row's softmax is computed for each
//! chunk from scratch, page by page, and the chunks' results are joined in ascending order: this is done even
//! with one thread. So a row's bits depend neither on how the work is divided nor on the other rows.
//!
//! The rows of a token tree see their ancestors at the slots that these would have in a chain: pages that
//! reach into the step are assembled for each row.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use breakers_cpu::Isa;
use breakers_cpu::hadamard::Rotation;
use half::f16;

use super::page::{Partial, Rows, Span};
use super::schedule::Output;
use super::workspace::Workspace;
use super::{packed, page as kernel};
use crate::attention::visible::TreeRows;
use crate::pages::page::{LANES, Line, PAGE_TOKENS, PageLayout, copy_token};
use crate::pages::source::PageSource;
use crate::{Element, Visible};
use breakers_cpu::simd::{self, Kernel, Simd, Stored};

/// Keys whose softmax is computed together. A multiple of [`PAGE_TOKENS`].
pub(crate) const CHUNK_TOKENS: usize = 256;

/// Attention of some rows over one layer.
pub(crate) struct Job<'a> {
    pub(crate) source: Box<dyn PageSource + 'a>,
    /// `[n_rows, n_heads, head_dim]`
    pub(crate) q: Cow<'a, [f32]>,
    /// Projected queries, as `q`, where the packed format has a sketch; empty otherwise.
    pub(crate) sketch: Cow<'a, [f32]>,
    pub(crate) n_heads: usize,
    pub(crate) scale: f32,
    pub(crate) visible: Arc<Visible>,
    /// The rotation that is undone in the results.
    pub(crate) turned: Option<&'a Rotation>,
    /// Row of the whole call, and element of its result, that the first row and head write to.
    pub(crate) out_row: usize,
    pub(crate) out_column: usize,
}

/// What one task computes: some rows of the query heads that share one key-value head, over some chunks.
pub(super) struct Task {
    pub(super) head: usize,
    pub(super) rows: Range<usize>,
    pub(super) chunks: Range<usize>,
}

thread_local! {
    /// A task's scratch memory.
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

impl Job<'_> {
    pub(super) fn n_rows(&self) -> usize {
        self.visible.spans.len()
    }

    pub(super) fn layout(&self) -> PageLayout {
        *self.source.layout()
    }

    /// Chunks that at least one of the rows sees.
    pub(super) fn chunks(&self, rows: Range<usize>) -> Range<usize> {
        let spans = &self.visible.spans[rows];
        let from = spans.iter().map(|s| s.start).min().unwrap_or(0);
        let to = spans.iter().map(|s| s.end).max().unwrap_or(0);
        from / CHUNK_TOKENS..to.div_ceil(CHUNK_TOKENS).max(from / CHUNK_TOKENS)
    }

    pub(super) fn run_task(&self, isa: Isa, task: &Task, output: &Output<'_>, bad_row: &AtomicUsize) {
        SCRATCH.with_borrow_mut(|scratch| {
            let kernel = RunTask { job: self, isa, task, output, bad_row, scratch };
            simd::dispatch(isa, kernel);
        });
    }

    /// # Safety
    /// `S`'s instructions are there.
    #[inline(always)]
    unsafe fn run_task_as<S: Simd, E: Stored>(&self, kernel: RunTask<'_>) {
        let RunTask { isa, task, output, bad_row, scratch, .. } = kernel;
        let layout = &self.layout();
        let group = self.n_heads / layout.n_kv_heads;
        let (n_rows, stride) = (task.rows.len() * group, layout.padded_dim);
        let format = self.source.format();
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
        if let Some(format) = format.filter(|_| n_prepared > 0) {
            let sketch = |row: usize| self.sketch.get(head(row) * layout.head_dim..).unwrap_or_default();
            // SAFETY: the caller's promise; there is room for all rows.
            queries = unsafe {
                packed::queries::prepare::<S>(format, rows, n_rows, sketch, scale, workspace.prepared)
            };
        }
        workspace.total_max.fill(f32::NEG_INFINITY);
        // Kernels prefetch the next data while they compute. The first data must be prefetched here:
        // processors notice these reads too late, if at all.
        let first_page = self.source.plain(task.chunks.start * (CHUNK_TOKENS / PAGE_TOKENS));
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
                    isa,
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
                        Output::Whole { .. } => {
                            let values = workspace.total.as_mut_ptr().add(row * stride);
                            let (max, sum) = (workspace.total_max[row], workspace.total_sum[row]);
                            let mut total = Partial { max, sum, values };
                            kernel::merge::<S>(&mut total, &partial, stride);
                            (workspace.total_max[row], workspace.total_sum[row]) = (total.max, total.sum);
                        }
                        Output::Chunks { marks, values, first, first_value, first_chunk } => {
                            let at = (chunk - first_chunk) * self.n_rows() * self.n_heads + head(row);
                            // Each chunk, row and head belongs to one task.
                            marks.write(first + at, [max, sum]);
                            let at = first_value + at * stride;
                            let values = values.slice_mut(at..at + stride);
                            values.copy_from_slice(std::slice::from_raw_parts(partial.values, stride));
                        }
                    }
                }
            }
        }
        if let Output::Whole { out, width } = output {
            for row in 0..n_rows {
                let out_row = self.out_row + task.rows.start + row / group;
                let column = (task.head * group + row % group) * layout.head_dim;
                let at = out_row * width + self.out_column + column;
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
    /// `virtual_page` has room for a head's region of type `E`; `queries` are the rows' own where the
    /// packed format wants them.
    #[inline(always)]
    unsafe fn attend_chunk<S: Simd, E: Stored>(
        &self,
        isa: Isa,
        task: &Task,
        spans: &[Range<usize>],
        chunk: usize,
        rows: Rows,
        queries: packed::queries::Queries,
        page_spans: &mut [Span],
        virtual_page: *mut E,
    ) {
        let (source, layout) = (&*self.source, &self.layout());
        let group = self.n_heads / layout.n_kv_heads;
        let from = spans.iter().map(|s| s.start).min().unwrap_or(0).max(chunk * CHUNK_TOKENS);
        let to = spans.iter().map(|s| s.end).max().unwrap_or(0).min((chunk + 1) * CHUNK_TOKENS);
        if from >= to {
            return;
        }
        let n_real_pages = self.visible.tree.as_ref().map_or(usize::MAX, |tree| tree.prefix / PAGE_TOKENS);
        let region_of =
            |page: usize| source.plain(page).map(|page| page.region::<E>(layout, task.head).as_ptr());
        // After a head's last page comes the next head's first page, on this thread or another.
        let next_head = source.plain(task.chunks.start * (CHUNK_TOKENS / PAGE_TOKENS));
        let next_head =
            next_head.map(|p| p.region::<E>(layout, (task.head + 1) % layout.n_kv_heads).as_ptr());
        for page in from / PAGE_TOKENS..to.div_ceil(PAGE_TOKENS) {
            let start = page * PAGE_TOKENS;
            let sees = |s: &Range<usize>| s.start < start + PAGE_TOKENS && s.end > start;
            let Some(begin) = spans.iter().position(sees) else { continue };
            let end = spans.iter().rposition(sees).map_or(begin, |last| last + 1);
            // All tokens at once on a page of the cache; one by one on pages that each token has for itself.
            let own_page = self.visible.tree.as_ref().filter(|_| page >= n_real_pages);
            let packed_pages = |row: usize| source.n_packed_for(spans[row].end.saturating_sub(1));
            let mut next_row = begin;
            while next_row < end {
                let first = next_row;
                // Rows that see the page in the same way go together.
                let is_packed = page < packed_pages(first);
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
                if let Some((format, packed)) = source.format().zip(source.packed(page)).filter(|_| is_packed)
                {
                    // SAFETY: the caller's promises; the rows of the tokens exist, and what they see is kept.
                    unsafe {
                        let (skipped, page_spans) = (first * group, &page_spans[..at_once * group]);
                        let first_page = task.chunks.start * (CHUNK_TOKENS / PAGE_TOKENS);
                        let next = source.next(format, page, first_page, task.head);
                        let queries = queries.skip(skipped);
                        let (rows, page) = (rows.skip(skipped), (packed, task.head));
                        packed::attend_page(isa, format, page, next, rows, queries, page_spans);
                    }
                    continue;
                }
                let coded = source.bytes_format().zip(source.packed(page)).filter(|_| is_packed);
                let region = match (own_page, coded) {
                    (_, Some((format, packed))) => {
                        // SAFETY: there is room for a region, and the caller's promise.
                        unsafe {
                            let n = layout.region_elements();
                            let region = std::slice::from_raw_parts_mut(virtual_page, n);
                            format.decode::<S, E>(packed, task.head, layout, region);
                        }
                        virtual_page.cast_const()
                    }
                    (None, None) => match region_of(page) {
                        Some(region) => region,
                        // Everything that a row sees is stored, so this cannot happen.
                        None => continue,
                    },
                    (Some(tree), None) => {
                        // SAFETY: there is room for a region.
                        let region =
                            unsafe { std::slice::from_raw_parts_mut(virtual_page, layout.region_elements()) };
                        let row = task.rows.start + first;
                        let before = source.plain(page).filter(|_| start < tree.prefix);
                        if let Some(page) = before.filter(|_| row == task.rows.start + begin) {
                            region.copy_from_slice(page.region(layout, task.head));
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

    /// Copies a row's ancestors into the page that it sees, after the tokens before the step.
    fn gather<E: Stored>(
        &self,
        tree: &TreeRows,
        head: usize,
        row: usize,
        page: usize,
        end: usize,
        region: &mut [E],
    ) {
        let (layout, start) = (&self.layout(), page * PAGE_TOKENS);
        for slot in start.max(tree.prefix)..end.min(start + PAGE_TOKENS) {
            let kept_at = tree.prefix + tree.paths[row][slot - tree.prefix];
            let kept = self.source.plain(kept_at / PAGE_TOKENS).map(|page| page.region::<E>(layout, head));
            if let Some(kept) = kept {
                copy_token(layout, kept, kept_at % PAGE_TOKENS, region, slot - start);
            }
        }
    }
}

/// One task, compiled for each instruction set.
struct RunTask<'a> {
    job: &'a Job<'a>,
    isa: Isa,
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
            match self.job.layout().element {
                Element::F16 => self.job.run_task_as::<S, f16>(self),
                Element::F32 => self.job.run_task_as::<S, f32>(self),
            }
        }
    }
}
