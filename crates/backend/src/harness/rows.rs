use super::{Devices, Inputs, Outputs, Place, View, compare_bits, values};
use crate::{Result, device};
use breakers_cpu::{self as cpu, pool};
use burn::tensor::{Device, Tensor};
use std::sync::{Mutex, PoisonError};

/// The number of rows up to which a GPU kernel promises equal bits.
const GPU_ROWS: usize = 32;
/// Numbers of threads that are tried on the CPU.
const THREADS: [usize; 3] = [1, 2, 3];

/// Checks that every row of `operation`'s result has the same bits whether the row is computed alone, with
/// some of the other rows or with all of them. On the CPU it is checked with every instruction set and with
/// 1, 2 and 3 threads; on a GPU for up to 32 rows.
///
/// `sizes` are pairs (rows, width); the first axis of the result must be the rows.
///
/// # Errors
/// [`Error::LegDiffers`](crate::Error::LegDiffers) for the first difference, and as
/// [`Operation::compare`](super::Operation::compare).
///
/// # Panics
/// If the operation does.
pub fn compare_rows<const D: usize>(
    name: &str,
    sizes: &[(usize, usize)],
    operation: impl Fn(Tensor<2>) -> Tensor<D>,
) -> Result<()> {
    let flex = device::open("flex")?;
    for isa in cpu::available() {
        with_threads(&THREADS, |threads| {
            let leg = format!("flex with {isa} and {threads} threads");
            cpu::with_isa(isa, || compare_on(name, &leg, &flex, usize::MAX, sizes, &operation))?
        })?;
    }
    for (leg, gpu) in Devices::find()?.gpus {
        compare_on(name, &leg, &gpu, GPU_ROWS, sizes, &operation)?;
    }
    Ok(())
}

/// As [`compare_rows`], for tests.
///
/// # Panics
/// With the error, if `compare_rows` has one.
#[track_caller]
pub fn check_rows<const D: usize>(
    name: &str,
    sizes: &[(usize, usize)],
    operation: impl Fn(Tensor<2>) -> Tensor<D>,
) {
    compare_rows(name, sizes, operation).unwrap_or_else(|error| panic!("{error}"));
}

fn compare_on<const D: usize>(
    name: &str,
    leg: &str,
    device: &Device,
    max_rows: usize,
    sizes: &[(usize, usize)],
    operation: &impl Fn(Tensor<2>) -> Tensor<D>,
) -> Result<()> {
    for &(n_rows, width) in sizes {
        let n_rows = n_rows.min(max_rows);
        let x = Inputs::new(width as u64, View::Whole, device.clone()).values(n_rows * width);
        let run = |start: usize, n: usize| {
            let rows = x[start * width..(start + n) * width].to_vec();
            let inputs = Inputs::new(0, View::Whole, device.clone());
            values(operation(inputs.place(rows, [n, width])))
        };
        let together = run(0, n_rows);
        if together.is_empty() {
            continue;
        }
        let out_width = together.len() / n_rows;
        // Single rows, an even part, an odd part.
        for part in [1, 2, 7] {
            for start in (0..n_rows).step_by(part) {
                let n = part.min(n_rows - start);
                let expected = Outputs::from(together[start * out_width..(start + n) * out_width].to_vec());
                let case = format!("rows {start}..{} of {n_rows} rows of {width}", start + n);
                let place = || Place { operation: name.to_owned(), leg: leg.to_owned(), case: case.clone() };
                compare_bits(&Outputs::from(run(start, n)), &expected, place)?;
            }
        }
    }
    Ok(())
}

/// Calls `f` with each number of threads set, one caller at a time, and restores the number.
fn with_threads(numbers: &[usize], f: impl Fn(usize) -> Result<()>) -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let before = pool::threads();
    let result = numbers.iter().try_for_each(|n| {
        pool::set_threads(*n)?;
        f(*n)
    });
    pool::set_threads(before)?;
    result
}
