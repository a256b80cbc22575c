//! How memory is returned to the system.

/// Lets all threads share one heap of the C library. By default, glibc gives each thread one of its own, and what is
/// free in one of them is neither used by others nor returned: a server of many requests grows without need. The
/// kernels allocate nothing in their loops, so that sharing costs no speed. Whoever sets `MALLOC_ARENA_MAX` decides
/// otherwise.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn share() {
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        // SAFETY: it sets a number within the C library; other threads may allocate at the same time.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }
}

/// Other systems have nothing to be set.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn share() {}
