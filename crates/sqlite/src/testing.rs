//! A SQLite VFS whose n-th operation fails. It wraps the default one.

use breakers_files::testing::{Countdown, Fault};
use rusqlite::ffi;
use std::{
    ffi::{CString, c_char, c_int, c_void},
    ops::Deref,
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

/// The name of the VFS, which exists once [`sqlite_faults`] has been called.
pub const FAULTY_VFS: &str = "breakers-faulty";

/// The faults of the VFS. There is one for the whole process, since SQLite's list of VFSs is global.
static SQLITE: Countdown = Countdown::new();

/// The exclusive right to make SQLite's operations fail; tests wait for each other.
#[derive(Debug)]
pub struct SqliteFaults {
    _turn: MutexGuard<'static, ()>,
}

impl Deref for SqliteFaults {
    type Target = Countdown;

    fn deref(&self) -> &Countdown {
        &SQLITE
    }
}

impl Drop for SqliteFaults {
    fn drop(&mut self) {
        SQLITE.stop();
    }
}

/// Registers the VFS [`FAULTY_VFS`] and waits for the exclusive right to its faults. Operations that change
/// files fail when the countdown says so; a failing write is done halfway.
pub fn sqlite_faults() -> SqliteFaults {
    static TURN: Mutex<()> = Mutex::new(());
    static REGISTERED: Once = Once::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    REGISTERED.call_once(|| {
        // SAFETY: the copy keeps all functions of the default VFS but two, which call it; it lives forever.
        unsafe {
            let mut vfs = *default_vfs();
            vfs.zName = CString::new(FAULTY_VFS).expect("no zero in it").into_raw();
            vfs.szOsFile = size_of::<Shim>() as c_int;
            vfs.pNext = std::ptr::null_mut();
            vfs.xOpen = Some(open);
            vfs.xDelete = Some(delete);
            let code = ffi::sqlite3_vfs_register(Box::into_raw(Box::new(vfs)), 0);
            assert_eq!(code, ffi::SQLITE_OK, "SQLite refuses the VFS");
        }
    });
    SqliteFaults { _turn: turn }
}

/// A file of SQLite's default VFS, wrapped in ours.
#[repr(C)]
struct Shim {
    base: ffi::sqlite3_file,
    real: *mut ffi::sqlite3_file,
}

fn default_vfs() -> *mut ffi::sqlite3_vfs {
    // SAFETY: without a name the default one is returned, which lives as long as the process.
    unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) }
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
    // SAFETY: SQLite hands over `szOsFile` bytes for `file`, and the default VFS opens a
    // block of its own size.
    unsafe {
        let shim = file.cast::<Shim>();
        (*shim).base.pMethods = std::ptr::null();
        let real = ffi::sqlite3_malloc((*default_vfs()).szOsFile).cast::<ffi::sqlite3_file>();
        std::ptr::write_bytes(real.cast::<u8>(), 0, (*default_vfs()).szOsFile as usize);
        let code = (*default_vfs()).xOpen.expect("the default VFS has it")(
            default_vfs(),
            name,
            real,
            flags,
            out_flags,
        );
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
    unsafe { (*default_vfs()).xDelete.expect("the default VFS has it")(default_vfs(), name, sync) }
}

/// Calls a method of the real file.
macro_rules! forward {
    ($($name:ident = $method:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {$(
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file, $($argument: $type),*) -> $result {
            // SAFETY: SQLite calls methods of files that `open` made, with its own arguments.
            unsafe {
                let real = (*file.cast::<Shim>()).real;
                (*(*real).pMethods).$method.expect("the default VFS has it")(real, $($argument),*)
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
        let code = (*(*real).pMethods).xClose.expect("the default VFS has it")(real);
        ffi::sqlite3_free(real.cast());
        code
    }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, buffer: *const c_void, n: c_int, at: i64) -> c_int {
    if let Some(code) = failure(ffi::SQLITE_IOERR_WRITE) {
        // A torn write: half of it arrives.
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
