//! The process's own memory.

/// The peak of resident memory since the start, or since [`reset_peak_memory`], in bytes; `None` on systems
/// that do not report it.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Resets [`peak_memory`], if the system supports that.
pub fn reset_peak_memory() {
    // Without permission the peak stays that of the whole run.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The resident memory now, in bytes, after freed memory is returned to the system; `None` on systems that do
/// not report it.
pub fn resident_memory() -> Option<u64> {
    give_back();
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Makes the allocator return free memory to the system.
fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            safe fn malloc_trim(pad: usize) -> i32;
        }
        // Whether there was anything to return.
        let _ = malloc_trim(0);
    }
}
