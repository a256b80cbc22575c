//! Which CPU instructions the kernels use: detected at run time, or forced, for tests.

use crate::{Error, Result};
use std::{
    cell::Cell,
    fmt,
    str::FromStr,
    sync::{
        OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

/// A family of kernel implementations, by the instructions it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust that runs everywhere; the reference for the others.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI, and everything in [`Isa::Avx2`].
    Avx512,
    /// 64-bit Arm with Advanced SIMD.
    Neon,
}

impl Isa {
    /// Every path that exists, whether this machine can run it or not.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Neon];

    /// The name used in `BREAKERS_ISA` and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }

    /// Whether this machine can run the path. Cheap enough to be called by a kernel that takes a few
    /// nanoseconds.
    #[inline]
    pub fn is_available(self) -> bool {
        /// A bit for each path, 0 before the first check.
        static AVAILABLE: AtomicU8 = AtomicU8::new(0);
        #[cold]
        fn look() -> u8 {
            let found = Isa::ALL.into_iter().filter(|isa| isa.is_found());
            let available = found.fold(0, |bits, isa| bits | 1 << isa as u8);
            AVAILABLE.store(available, Ordering::Relaxed);
            available
        }
        let known = AVAILABLE.load(Ordering::Relaxed);
        (if known == 0 { look() } else { known }) >> self as u8 & 1 == 1
    }

    /// Whether the processor reports the instructions.
    fn is_found(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::avx2(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => x86::avx512(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    pub(crate) fn list(isas: &[Self]) -> String {
        isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
    }

    fn from_index(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|isa| isa.name().eq_ignore_ascii_case(name.trim()))
            .ok_or_else(|| Error::UnknownIsa { name: name.to_owned() })
    }
}

/// The widest path that this machine can run.
pub fn detect() -> Isa {
    static DETECTED: OnceLock<Isa> = OnceLock::new();
    *DETECTED.get_or_init(|| {
        [Isa::Avx512, Isa::Avx2, Isa::Neon].into_iter().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    })
}

/// Every path that this machine can run, the plain one first. Tests loop over them.
pub fn available() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
}

const UNSET: u8 = u8::MAX;
static CHOSEN: AtomicU8 = AtomicU8::new(UNSET);
thread_local!(static OVERRIDE: Cell<Option<Isa>> = const { Cell::new(None) });

/// The path that kernels take: the override of [`with_isa`] on this thread, else what [`force`] or
/// `BREAKERS_ISA` chose, else [`detect`].
pub fn isa() -> Isa {
    if let Some(isa) = OVERRIDE.get() {
        return isa;
    }
    Isa::from_index(CHOSEN.load(Ordering::Relaxed)).unwrap_or_else(choose)
}

#[cold]
fn choose() -> Isa {
    let isa = match std::env::var("BREAKERS_ISA") {
        Err(_) => detect(),
        Ok(name) => from_environment(&name).unwrap_or_else(|error| {
            tracing::warn!("BREAKERS_ISA is ignored: {error}");
            detect()
        }),
    };
    // A `force` that came first wins.
    let _ = CHOSEN.compare_exchange(UNSET, isa as u8, Ordering::Relaxed, Ordering::Relaxed);
    Isa::from_index(CHOSEN.load(Ordering::Relaxed)).unwrap_or(isa)
}

fn from_environment(name: &str) -> Result<Isa> {
    checked(name.parse()?)
}

fn checked(isa: Isa) -> Result<Isa> {
    if isa.is_available() {
        Ok(isa)
    } else {
        Err(Error::IsaUnavailable { requested: isa, available: available() })
    }
}

/// Makes every kernel in the process take this path, starting with its next call.
///
/// # Errors
/// [`Error::IsaUnavailable`] if the machine lacks the instructions.
pub fn force(isa: Isa) -> Result<()> {
    CHOSEN.store(checked(isa)? as u8, Ordering::Relaxed);
    Ok(())
}

/// Runs `f` with every kernel called from this thread taking the path `isa`.
///
/// # Errors
/// [`Error::IsaUnavailable`] if the machine lacks the instructions; `f` is not called then.
///
/// # Example
/// ```
/// use breakers_cpu::{Isa, with_isa};
///
/// // The path that every machine can take; its results have the same bits as those of the others.
/// assert!(Isa::Scalar.is_available());
/// assert_eq!(with_isa(Isa::Scalar, breakers_cpu::isa)?, Isa::Scalar);
/// # Ok::<(), breakers_cpu::Error>(())
/// ```
pub fn with_isa<R>(isa: Isa, f: impl FnOnce() -> R) -> Result<R> {
    struct Restore(Option<Isa>);
    impl Drop for Restore {
        fn drop(&mut self) {
            OVERRIDE.set(self.0);
        }
    }
    let isa = checked(isa)?;
    let _restore = Restore(OVERRIDE.replace(Some(isa)));
    Ok(f())
}

/// Whether the machine has AVX-512 BF16 in addition to everything in [`Isa::Avx512`].
pub fn has_avx512_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return x86::avx512() && std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether the machine has the 256-bit AVX-VNNI dot products in addition to everything in [`Isa::Avx2`].
pub fn has_avx_vnni() -> bool {
    #[cfg(target_arch = "x86_64")]
    return x86::avx2() && std::arch::is_x86_feature_detected!("avxvnni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::is_x86_feature_detected;

    pub(super) fn avx2() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    }

    pub(super) fn avx512() -> bool {
        avx2()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse::<Isa>(), Ok(isa));
            assert_eq!(isa.to_string().to_uppercase().parse::<Isa>(), Ok(isa));
        }
        for name in ["", "sse9", "avx-512"] {
            assert_eq!(name.parse::<Isa>(), Err(Error::UnknownIsa { name: name.to_owned() }));
        }
    }

    #[test]
    fn what_is_available_is_what_the_processor_has() {
        for _ in 0..2 {
            assert!(Isa::ALL.into_iter().all(|isa| isa.is_available() == isa.is_found()));
        }
        assert!(Isa::Scalar.is_available());
    }

    #[test]
    fn every_available_path_can_be_chosen_on_a_thread() {
        let outside = isa();
        for path in available() {
            assert_eq!(with_isa(path, isa), Ok(path));
            let inner = with_isa(path, || with_isa(Isa::Scalar, isa));
            assert_eq!(inner, Ok(Ok(Isa::Scalar)));
        }
        assert_eq!(isa(), outside);
        assert!(available().contains(&detect()));
    }

    #[test]
    fn paths_beyond_the_machine_are_refused() {
        for path in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
            let expected = Error::IsaUnavailable { requested: path, available: available() };
            assert_eq!(with_isa(path, || ()), Err(expected.clone()));
            assert_eq!(force(path), Err(expected.clone()));
            assert_eq!(from_environment(path.name()), Err(expected));
        }
        assert!(from_environment("pentium").is_err());
    }

    #[test]
    fn the_override_ends_with_a_panic() {
        let outside = isa();
        let caught = std::panic::catch_unwind(|| with_isa(Isa::Scalar, || panic!("on purpose")));
        assert!(caught.is_err());
        assert_eq!(OVERRIDE.get(), None);
        assert_eq!(isa(), outside);
    }
}
