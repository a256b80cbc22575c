//! A SQLite VFS and a file system whose n-th operation fails.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};

use breakers_retrieval::files::{Disk, OsDisk};
use rusqlite::ffi;

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Fault {
    /// This one alone.
    Once = 1,
    /// This one and all after it, as if the process had died or the disk were gone.
    FromThen = 2,
    /// As `FromThen`, with an error that says that the disk is full; half of what was to be written is written.
    DiskFull = 3,
}

impl Fault {
    pub(crate) const ALL: [Self; 3] = [Self::Once, Self::FromThen, Self::DiskFull];
}

/// Operations that still succeed, and what comes then. Atomics, since SQLite calls from C.
#[derive(Debug)]
pub(crate) struct Countdown {
    left: AtomicI64,
    fault: AtomicU8,
}

impl Countdown {
    pub(crate) const fn new() -> Self {
        Self { left: AtomicI64::new(i64::MAX), fault: AtomicU8::new(0) }
    }

    pub(crate) fn start(&self, n: i64, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
        self.left.store(n, Ordering::SeqCst);
    }

    /// Ends all faults; whether one was met.
    pub(crate) fn stop(&self) -> bool {
        self.left.swap(i64::MAX, Ordering::SeqCst) < 0
    }

    /// What is to become of this operation.
    fn next(&self) -> Option<Fault> {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        match self.fault.load(Ordering::SeqCst) {
            1 if left == 0 => Some(Fault::Once),
            2 if left <= 0 => Some(Fault::FromThen),
            3 if left <= 0 => Some(Fault::DiskFull),
            _ => None,
        }
    }
}

/// The file system of index files.
#[derive(Debug)]
pub(crate) struct FaultyDisk(pub(crate) Countdown);

impl FaultyDisk {
    fn check(&self) -> io::Result<()> {
        match self.0.next() {
            None => Ok(()),
            Some(Fault::DiskFull) => Err(io::Error::from(io::ErrorKind::StorageFull)),
            Some(_) => Err(io::Error::other("injected")),
        }
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.check()?;
        OsDisk.create(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let result = self.check();
        if result.is_err() {
            file.write_all(&bytes[..bytes.len() / 2])?;
        }
        result?;
        OsDisk.write(file, bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.check()?;
        OsDisk.sync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check()?;
        OsDisk.rename(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        OsDisk.sync_folder(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        OsDisk.remove(path)
    }
}

/// Faults of the VFS; tests that use it take turns.
pub(crate) static SQLITE: Countdown = Countdown::new();
pub(crate) static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// A file of SQLite's default VFS behind ours.
#[repr(C)]
struct Shim {
    base: ffi::sqlite3_file,
    real: *mut ffi::sqlite3_file,
}

fn default_vfs() -> *mut ffi::sqlite3_vfs {
    // SAFETY: without a name the default one is returned, which lives as long as the process.
    unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) }
}

/// Registers the VFS; its name.
pub(crate) fn faulty_vfs() -> &'static str {
    static REGISTERED: OnceLock<()> = OnceLock::new();
    REGISTERED.get_or_init(|| {
        // SAFETY: the copy keeps all functions of the default VFS but two, which call it; it lives forever.
        unsafe {
            let mut vfs = *default_vfs();
            vfs.zName = CString::new("faulty").unwrap().into_raw();
            vfs.szOsFile = size_of::<Shim>() as c_int;
            vfs.pNext = std::ptr::null_mut();
            vfs.xOpen = Some(open);
            vfs.xDelete = Some(delete);
            let code = ffi::sqlite3_vfs_register(Box::into_raw(Box::new(vfs)), 0);
            assert_eq!(code, ffi::SQLITE_OK);
        }
    });
    "faulty"
}

fn failure(other: c_int) -> Option<c_int> {
    SQLITE.next().map(|fault| if fault == Fault::DiskFull { ffi::SQLITE_FULL } else { other })
}

unsafe extern "C" fn open(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite hands over `szOsFile` bytes for `file`, and the default VFS opens a block of its own size.
    unsafe {
        let shim = file.cast::<Shim>();
        (*shim).base.pMethods = std::ptr::null();
        let real = ffi::sqlite3_malloc((*default_vfs()).szOsFile).cast::<ffi::sqlite3_file>();
        std::ptr::write_bytes(real.cast::<u8>(), 0, (*default_vfs()).szOsFile as usize);
        let code = (*default_vfs()).xOpen.unwrap()(default_vfs(), name, real, flags, out_flags);
        if code != ffi::SQLITE_OK {
            ffi::sqlite3_free(real.cast());
            return code;
        }
        (*shim).real = real;
        (*shim).base.pMethods = &METHODS;
        ffi::SQLITE_OK
    }
}

unsafe extern "C" fn delete(_vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    if let Some(code) = failure(ffi::SQLITE_IOERR_DELETE) {
        return code;
    }
    // SAFETY: the arguments are SQLite's.
    unsafe { (*default_vfs()).xDelete.unwrap()(default_vfs(), name, sync) }
}

/// Calls a method of the real file.
macro_rules! forward {
    ($($name:ident = $method:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {$(
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file, $($argument: $type),*) -> $result {
            // SAFETY: SQLite calls methods of files that `open` made, with its own arguments.
            unsafe {
                let real = (*file.cast::<Shim>()).real;
                (*(*real).pMethods).$method.unwrap()(real, $($argument),*)
            }
        }
    )*};
}

forward! {
    read = xRead(buffer: *mut c_void, n: c_int, at: i64) -> c_int;
    real_write = xWrite(buffer: *const c_void, n: c_int, at: i64) -> c_int;
    real_truncate = xTruncate(size: i64) -> c_int;
    real_sync = xSync(flags: c_int) -> c_int;
    file_size = xFileSize(size: *mut i64) -> c_int;
    lock = xLock(level: c_int) -> c_int;
    unlock = xUnlock(level: c_int) -> c_int;
    check_lock = xCheckReservedLock(out: *mut c_int) -> c_int;
    control = xFileControl(op: c_int, argument: *mut c_void) -> c_int;
    sector_size = xSectorSize() -> c_int;
    characteristics = xDeviceCharacteristics() -> c_int;
    shm_map = xShmMap(page: c_int, size: c_int, extend: c_int, out: *mut *mut c_void) -> c_int;
    shm_lock = xShmLock(offset: c_int, n: c_int, flags: c_int) -> c_int;
    shm_barrier = xShmBarrier() -> ();
    shm_unmap = xShmUnmap(delete: c_int) -> c_int;
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: `open` allocated the real file; SQLite closes once.
    unsafe {
        let real = (*file.cast::<Shim>()).real;
        let code = (*(*real).pMethods).xClose.unwrap()(real);
        ffi::sqlite3_free(real.cast());
        code
    }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, buffer: *const c_void, n: c_int, at: i64) -> c_int {
    if let Some(code) = failure(ffi::SQLITE_IOERR_WRITE) {
        // Torn: half of it arrives.
        // SAFETY: fewer bytes than SQLite offers.
        unsafe { real_write(file, buffer, n / 2, at) };
        return code;
    }
    // SAFETY: the arguments are SQLite's.
    unsafe { real_write(file, buffer, n, at) }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: the arguments are SQLite's.
    failure(ffi::SQLITE_IOERR_TRUNCATE).unwrap_or_else(|| unsafe { real_truncate(file, size) })
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: the arguments are SQLite's.
    failure(ffi::SQLITE_IOERR_FSYNC).unwrap_or_else(|| unsafe { real_sync(file, flags) })
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_lock),
    xFileControl: Some(control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};
