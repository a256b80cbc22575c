//! Many jobs at once, each the attention of some rows over their own pages: how the work is divided among
//! threads.
//!
//! A task is a number of rows of one key-value head of one job. A job with so much work that its tasks would
//! keep some threads waiting is also divided by chunks of keys; this does not change a single bit.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use breakers_cpu::Isa;
use breakers_cpu::pool::{self, DisjointMut};

use super::job::{Job, Task};
use super::page::{self as kernel, Partial};
use super::workspace::grow;
use crate::pages::page::{LANES, Line, PageLayout};
use breakers_cpu::simd::{self, Kernel, Simd};

/// Approximate number of query rows of a task; their queries and sums should stay in the first- and
/// second-level cache.
const TASK_ROWS: usize = 48;
/// Tasks for each thread that are enough to keep all threads busy to the end.
const TASKS_PER_THREAD: usize = 4;
/// With fewer products than this, a few microseconds of work, forking costs more than it saves.
const FORK_PRODUCTS: usize = 500_000;

/// Where tasks write.
pub(super) enum Output<'a> {
    /// Final results, `[n_rows, width]`.
    Whole { out: &'a DisjointMut<'a, MaybeUninit<f32>>, width: usize },
    /// One softmax for each of `[n_chunks, n_rows, n_heads]`, the first one at `first`: its largest score and
    /// sum of weights in `marks`, its values in `values`, from `first_value` on.
    Chunks {
        marks: &'a DisjointMut<'a, [f32; 2]>,
        values: &'a DisjointMut<'a, f32>,
        first: usize,
        first_value: usize,
        first_chunk: usize,
    },
}

thread_local! {
    /// Results of chunks, on the thread that forks.
    static CHUNKS: RefCell<(Vec<[f32; 2]>, Vec<Line>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// How one job is cut.
struct Plan {
    rows_per_task: usize,
    n_blocks: usize,
    n_kv_heads: usize,
    /// Chunks that its rows see.
    chunks: Range<usize>,
    products: usize,
    /// Chunks of a task, if the job is cut by chunks.
    chunks_per_task: Option<usize>,
    /// Tasks of all jobs up to this one's last.
    end_task: usize,
    /// Where its chunks' results begin, in numbers of softmaxes and in values.
    first_mark: usize,
    first_value: usize,
}

impl Plan {
    fn new(job: &Job<'_>) -> Self {
        let layout = job.layout();
        let (n_rows, n_kv_heads) = (job.n_rows(), layout.n_kv_heads);
        let rows_per_task = (TASK_ROWS * n_kv_heads / job.n_heads).max(1);
        let keys = job.visible.spans.iter().map(ExactSizeIterator::len).sum::<usize>();
        Self {
            rows_per_task,
            n_blocks: n_rows.div_ceil(rows_per_task),
            n_kv_heads,
            chunks: job.chunks(0..n_rows),
            products: keys * job.n_heads * 2 * layout.head_dim,
            chunks_per_task: None,
            end_task: 0,
            first_mark: 0,
            first_value: 0,
        }
    }

    /// Tasks if it is not cut by chunks.
    fn n_whole(&self) -> usize {
        self.n_blocks * self.n_kv_heads
    }

    fn rows(&self, block: usize, n_rows: usize) -> Range<usize> {
        block * self.rows_per_task..n_rows.min((block + 1) * self.rows_per_task)
    }

    /// The task of this number.
    fn task(&self, job: &Job<'_>, i: usize) -> Task {
        let (n_whole, head) = (self.n_whole(), i % self.n_kv_heads);
        match self.chunks_per_task {
            None => {
                // Later rows see more, so they come first; this way no long task is left for the end.
                let rows = self.rows(self.n_blocks - 1 - i / self.n_kv_heads, job.n_rows());
                let chunks = job.chunks(rows.clone());
                Task { head, rows, chunks }
            }
            Some(n) => {
                let first = self.chunks.start + i / n_whole * n;
                let rows = self.rows(i % n_whole / self.n_kv_heads, job.n_rows());
                Task { head, rows, chunks: first..self.chunks.end.min(first + n) }
            }
        }
    }
}

/// The results of all jobs, `[n_rows, width]`, of which each job fills its part and all together the whole;
/// or the first row of the call with a NaN or an infinity in its query.
pub(crate) fn run(isa: Isa, jobs: &[Job<'_>], [n_rows, width]: [usize; 2]) -> Result<Vec<f32>, usize> {
    let filled: usize = jobs.iter().map(|job| job.q.len()).sum();
    debug_assert_eq!(filled, n_rows * width);
    let mut out = Vec::with_capacity(n_rows * width);
    let room = &mut out.spare_capacity_mut()[..n_rows * width];
    run_into(isa, jobs, room, width)?;
    // SAFETY: the jobs, which fill the whole, have written all elements.
    unsafe { out.set_len(n_rows * width) };
    for job in jobs {
        let Some(rotation) = job.turned else { continue };
        let n = job.q.len() / job.n_rows().max(1);
        for row in out.chunks_exact_mut(width).skip(job.out_row).take(job.n_rows()) {
            // The part is whole heads, whose width the rotation was made for.
            let turned = rotation.inverse(&mut row[job.out_column..][..n]);
            debug_assert!(turned.is_ok());
        }
    }
    Ok(out)
}

/// Writes the jobs' parts of `out`.
fn run_into(isa: Isa, jobs: &[Job<'_>], out: &mut [MaybeUninit<f32>], width: usize) -> Result<(), usize> {
    let mut plans: Vec<Plan> = jobs.iter().map(Plan::new).collect();
    let products: usize = plans.iter().map(|plan| plan.products).sum();
    let threads = if products < FORK_PRODUCTS { 1 } else { pool::threads() };
    let wanted = TASKS_PER_THREAD * threads;
    let (mut n_tasks, mut n_marks, mut n_values) = (0, 0, 0);
    for (plan, job) in plans.iter_mut().zip(jobs) {
        let (n_whole, n_chunks) = (plan.n_whole(), plan.chunks.len());
        // Tasks that are the job's by its share of the work.
        let share = wanted as f64 * plan.products as f64 / products.max(1) as f64;
        if threads > 1 && n_chunks > 1 && (n_whole as f64) < share {
            plan.chunks_per_task = Some((((n_chunks * n_whole) as f64 / share).ceil() as usize).max(1));
            (plan.first_mark, plan.first_value) = (n_marks, n_values);
            let n_partials = n_chunks * job.n_rows() * job.n_heads;
            n_marks += n_partials;
            n_values += n_partials * job.layout().padded_dim;
        }
        n_tasks += plan.chunks_per_task.map_or(1, |n| n_chunks.div_ceil(n)) * n_whole;
        plan.end_task = n_tasks;
    }
    let bad_row = AtomicUsize::new(usize::MAX);
    CHUNKS.with_borrow_mut(|(marks, values)| {
        grow(marks, n_marks);
        grow(values, n_values.div_ceil(LANES));
        let values: &mut [f32] = bytemuck::cast_slice_mut(values);
        {
            let (out, marks) = (DisjointMut::new(&mut *out), DisjointMut::new(marks));
            let values = DisjointMut::new(&mut *values);
            let run = |i: usize| {
                let at = plans.partition_point(|plan| plan.end_task <= i);
                let (plan, job) = (&plans[at], &jobs[at]);
                let first_task = at.checked_sub(1).map_or(0, |before| plans[before].end_task);
                let output = match plan.chunks_per_task {
                    None => Output::Whole { out: &out, width },
                    Some(_) => Output::Chunks {
                        marks: &marks,
                        values: &values,
                        first: plan.first_mark,
                        first_value: plan.first_value,
                        first_chunk: plan.chunks.start,
                    },
                };
                let bad = AtomicUsize::new(usize::MAX);
                job.run_task(isa, &plan.task(job, i - first_task), &output, &bad);
                bad_row.fetch_min(bad.into_inner().saturating_add(job.out_row), Ordering::Relaxed);
            };
            if threads == 1 {
                (0..n_tasks).for_each(run);
            } else {
                pool::parallel_for(n_tasks, run);
            }
        }
        for (plan, job) in plans.iter().zip(jobs).filter(|(plan, _)| plan.chunks_per_task.is_some()) {
            let n_rows = job.n_rows() * job.n_heads;
            let n = plan.chunks.len() * n_rows;
            let marks = &marks[plan.first_mark..][..n];
            let values = &mut values[plan.first_value..][..n * job.layout().padded_dim];
            simd::dispatch(isa, Join { job, n_chunks: plan.chunks.len(), marks, values, out, width });
        }
    });
    match bad_row.into_inner() {
        usize::MAX => Ok(()),
        row => Err(row),
    }
}

/// Puts the chunks of a job's rows together, in ascending order.
struct Join<'a> {
    job: &'a Job<'a>,
    n_chunks: usize,
    marks: &'a [[f32; 2]],
    values: &'a mut [f32],
    out: &'a mut [MaybeUninit<f32>],
    width: usize,
}

impl Kernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let PageLayout { head_dim, padded_dim: stride, .. } = self.job.layout();
        let n_heads = self.job.n_heads;
        let n_rows = self.job.n_rows() * n_heads;
        let (first, later) = self.values.split_at_mut(n_rows * stride);
        for row in 0..n_rows {
            let at = (self.job.out_row + row / n_heads) * self.width + self.job.out_column;
            let out = &mut self.out[at + row % n_heads * head_dim..][..head_dim];
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
