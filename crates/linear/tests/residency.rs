//! Pages of tensors that are no longer needed leave resident memory. This is a single test in its own
//! process, because it measures the process.
#![cfg(target_os = "linux")]

use breakers_gguf as gguf;
use breakers_gguf::Format;
use breakers_linear::PackedMatrix;

const MIB: usize = 1 << 20;

/// A line of this process's status, in bytes.
fn status(key: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

/// Resident memory.
fn resident() -> usize {
    status("VmRSS:")
}

/// The most resident memory since [`forget_peak`].
fn peak() -> usize {
    status("VmHWM:")
}

fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn sum(tensor: gguf::TensorView<'_>) -> u64 {
    tensor.bytes().iter().map(|&byte| u64::from(byte)).sum()
}

/// Compares a change of resident memory with the expected one, within 2 MiB (the kernel counts in batches,
/// and maps some pages around those that are read).
#[track_caller]
fn check(what: &str, before: usize, after: usize, expected_mib: isize) {
    let change = after as isize - before as isize;
    let off = change - expected_mib * MIB as isize;
    assert!(off.unsigned_abs() <= 2 * MIB, "{what}: {change} bytes instead of {expected_mib} MiB");
}

#[test]
fn tensors_that_are_done_with_leave_resident_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("two.gguf");
    let mut plan = gguf::Writer::new();
    let names = ["first", "second"];
    for name in names {
        plan.declare(name, Format::F32, &[1024, 8192]).unwrap();
    }
    let mut writer = plan.create(&path).unwrap();
    for name in names {
        for part in 0..32u8 {
            writer.write(name, &vec![part + 1; MIB]).unwrap();
        }
    }
    writer.finish().unwrap();

    let file = gguf::File::open(&path).unwrap();
    let [first, second] = names.map(|name| file.require(name).unwrap());
    let opened = resident();
    let sums = [sum(first), sum(second)];
    let read = resident();
    check("reading both", opened, read, 64);

    first.advise_done();
    let one_done = resident();
    check("first done", read, one_done, -32);
    second.advise_done();
    let both_done = resident();
    check("second done", one_done, both_done, -32);

    // Nothing is lost, and the pages can be read again.
    assert_eq!([sum(first), sum(second)], sums);
    let again = resident();
    check("reading again", both_done, again, 64);
    file.advise_done();
    let all_done = resident();
    check("all done", again, all_done, -64);

    // Weights being repacked are not in memory twice: 32 MiB of them, and 16 of the file.
    forget_peak();
    let packed = PackedMatrix::from_gguf(&first).unwrap();
    assert_eq!(packed.bytes(), 32 * MIB);
    check("packed", all_done, resident(), 32);
    check("while packing", all_done, peak(), 32 + 16);
}
