//! How memory that is not needed anymore is returned to the system.

/// Keeps the process no larger than what it holds. By default, glibc gives each thread a heap of its own, and
/// what is free in one is neither used by others nor returned. Here all share one (the kernels allocate
/// nothing in their loops, so that this costs no speed), and what is free in it is returned every few
/// seconds. Whoever sets `MALLOC_ARENA_MAX` decides otherwise.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn tend() {
    const PAUSE: std::time::Duration = std::time::Duration::from_secs(10);
    if std::env::var_os("MALLOC_ARENA_MAX").is_some() {
        return;
    }
    // SAFETY: it sets a number within the C library, and no thread but this one has begun.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    let tender = std::thread::Builder::new().name("breakers-heap".to_owned());
    // Without the thread, the process is only larger.
    let _ = tender.spawn(|| {
        loop {
            std::thread::sleep(PAUSE);
            // SAFETY: it returns free pages; other threads may allocate at the same time.
            unsafe { libc::malloc_trim(0) };
        }
    });
}

/// Other systems need nothing.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn tend() {}
