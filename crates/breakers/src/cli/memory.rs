//! The process's own memory.

/// The most memory that was resident since the start, or since [`reset_peak_memory`], in bytes; nothing on
/// systems that do not say so.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Lets [`peak_memory`] begin anew, where the system can.
pub fn reset_peak_memory() {
    // Without the permission the peak stays that of the whole run.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The memory that is resident now, in bytes, with nothing freed held back; nothing on systems that do not
/// say so.
pub fn resident_memory() -> Option<u64> {
    give_back();
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Has the allocator return what is free to the system.
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
