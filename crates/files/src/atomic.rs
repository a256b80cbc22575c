//! Replacing a file as a whole: readers see the old content or the new one, even after a crash.
//!
//! The new content is written to a temporary file in the same folder and synced. Then the file is renamed
//! over the old one, and the folder is synced. Writers of one path never share a temporary file, whether they
//! are threads or processes; the last one to finish wins.
//!
//! # What is replaced
//! A regular file keeps its permissions. A symbolic link is itself replaced; its target stays as it is.
//! Anything that is not a file (a folder, a device, a pipe) is refused, because an administrator could
//! otherwise replace `/dev/null`.
//!
//! # Leftovers
//! A process that is killed leaves its temporary file behind. [`clean`] removes such files from a folder, and
//! no others: the name has a form that only this crate uses, and nobody holds the lock that a writer keeps on
//! the file.

use crate::{Disk, Error, OsDisk, Result, lock::try_lock};
use std::{
    ffi::OsStr,
    fs::{File, FileType, OpenOptions, Permissions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const SUFFIX: &str = ".breakers-tmp";
/// Endings of the files that SQLite keeps next to a database.
const SIDECARS: [&str; 3] = ["-journal", "-wal", "-shm"];
/// A temporary file that cannot be locked by its writer counts as a leftover after this time without a
/// change.
const LEFTOVER: Duration = Duration::from_secs(600);
/// At most this many bytes of the final name are repeated in the temporary name.
const MAX_STEM: usize = 100;
/// Attempts to find a free name, each with a new number.
const MAX_TRIES: usize = 16;

/// Writes a file, replacing the one at the path if there is one.
///
/// ```
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("report.json");
/// breakers_files::replace(&path, b"{}")?;
/// breakers_files::replace(&path, b"[]")?;
/// assert_eq!(std::fs::read(&path).unwrap(), b"[]");
/// # Ok::<(), breakers_files::Error>(())
/// ```
///
/// # Errors
/// [`Error::NotAFile`], [`Error::Io`]; the old file is then still there. If only the sync of the folder
/// failed, the new file is in place, but after a system crash it may be the old one again.
pub fn replace(path: impl AsRef<Path>, content: &[u8]) -> Result<()> {
    let mut file = Replacement::new(path)?;
    file.put(content)?;
    file.commit()
}

/// A file that is being written and will replace another. If it is dropped without [`commit`](Self::commit),
/// it leaves nothing behind.
///
/// Writes are not buffered; put a [`BufWriter`](io::BufWriter) around it for small pieces.
///
/// ```
/// use breakers_files::Replacement;
/// use std::io::Write as _;
///
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("table.csv");
/// let mut file = Replacement::new(&path)?;
/// writeln!(file, "a,b").unwrap();
/// assert!(!path.exists());
/// file.commit()?;
/// assert_eq!(std::fs::read_to_string(&path).unwrap(), "a,b\n");
/// # Ok::<(), breakers_files::Error>(())
/// ```
#[derive(Debug)]
pub struct Replacement<'a> {
    disk: &'a dyn Disk,
    path: PathBuf,
    temporary: PathBuf,
    /// Kept open, since it holds the lock.
    file: File,
    permissions: Option<Permissions>,
    by_name: bool,
    committed: bool,
}

impl Replacement<'static> {
    /// Starts a file on the operating system's disk.
    ///
    /// # Errors
    /// [`Error::NotAFile`], [`Error::Io`].
    pub fn new(path: impl AsRef<Path>) -> Result<Self> {
        Self::on(&OsDisk, path)
    }

    /// As [`new`](Self::new), for content that other code writes and for which it needs a path: see
    /// [`temporary`](Self::temporary).
    ///
    /// # Errors
    /// [`Error::NotAFile`], [`Error::Io`].
    pub fn by_name(path: impl AsRef<Path>) -> Result<Self> {
        Self::by_name_on(&OsDisk, path)
    }
}

impl<'a> Replacement<'a> {
    /// As [`new`](Self::new), on another disk.
    ///
    /// # Errors
    /// [`Error::NotAFile`], [`Error::Io`].
    pub fn on(disk: &'a dyn Disk, path: impl AsRef<Path>) -> Result<Self> {
        Self::begin(disk, path.as_ref(), false)
    }

    /// As [`by_name`](Self::by_name), on another disk.
    ///
    /// # Errors
    /// [`Error::NotAFile`], [`Error::Io`].
    pub fn by_name_on(disk: &'a dyn Disk, path: impl AsRef<Path>) -> Result<Self> {
        Self::begin(disk, path.as_ref(), true)
    }

    fn begin(disk: &'a dyn Disk, path: &Path, by_name: bool) -> Result<Self> {
        let old = regular(path)?;
        let (file, temporary) = create(disk, path, by_name)?;
        // From here on `drop` removes it.
        let mut begun = Self {
            disk,
            path: path.to_owned(),
            temporary,
            file,
            permissions: None,
            by_name,
            committed: false,
        };
        let permissions = match old {
            Some(permissions) => {
                // Set before there is content, so that nobody can read what the old file's permissions would
                // have hidden.
                let now = if by_name { writable(permissions.clone()) } else { permissions.clone() };
                let set = begun.file.set_permissions(now);
                set.map_err(Error::io("set the permissions of", &begun.temporary))?;
                permissions
            }
            None => begun.file.metadata().map_err(Error::io("read", &begun.temporary))?.permissions(),
        };
        begun.permissions = Some(permissions);
        Ok(begun)
    }

    /// The file that will be replaced.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The temporary file, which is empty at first. Code that takes a path may write to it or replace it, but
    /// only if this was started with [`by_name`](Self::by_name): a file put in its place has no lock, so
    /// leftovers of that kind are also recognized by their age.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Writes bytes at the end; as [`Write::write_all`], with an error that names the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.disk.write(&mut self.file, bytes).map_err(Error::io("write", &self.path))
    }

    /// Brings the content to the disk and puts it in place.
    ///
    /// # Errors
    /// As [`replace`].
    pub fn commit(mut self) -> Result<()> {
        if self.by_name {
            let opened = OpenOptions::new().write(true).open(&self.temporary);
            let written = opened.map_err(Error::io("open", &self.temporary))?;
            if let Some(permissions) = self.permissions.take() {
                let set = written.set_permissions(permissions);
                set.map_err(Error::io("set the permissions of", &self.temporary))?;
            }
            self.disk.sync(&written).map_err(Error::io("sync", &self.path))?;
        } else {
            self.disk.sync(&self.file).map_err(Error::io("sync", &self.path))?;
        }
        self.disk.rename(&self.temporary, &self.path).map_err(Error::io("replace", &self.path))?;
        self.committed = true;
        self.disk.sync_folder(folder_of(&self.path)).map_err(Error::io("sync the folder of", &self.path))
    }
}

impl Write for Replacement<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write(&mut self.file, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Replacement<'_> {
    fn drop(&mut self) {
        if !self.committed {
            // The caller must see the first error; `clean` finds what is left.
            let _ = self.disk.remove(&self.temporary);
        }
    }
}

/// Moves a finished file to its place in another folder on the same disk. The file is synced before the move,
/// its new folder after it.
///
/// # Errors
/// [`Error::NotAFile`] if one of the two is not a regular file, [`Error::Io`].
pub fn put_in_place(disk: &dyn Disk, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    regular(to)?;
    regular(from)?;
    let file = OpenOptions::new().write(true).open(from).map_err(Error::io("open", from))?;
    disk.sync(&file).map_err(Error::io("sync", from))?;
    drop(file);
    disk.rename(from, to).map_err(Error::io("replace", to))?;
    disk.sync_folder(folder_of(to)).map_err(Error::io("sync the folder of", to))
}

/// Opens a file to read it. Anything but a regular file is refused, so that a pipe cannot make the caller
/// wait forever.
///
/// # Errors
/// [`Error::NotAFile`], [`Error::Io`].
pub fn open(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    regular(path)?;
    File::open(path).map_err(Error::io("open", path))
}

/// Removes the temporary files of writers that are gone from a folder, and returns how many there were. Files
/// of other programs, and files that are being written, stay.
///
/// ```
/// use breakers_files::{OsDisk, Replacement, clean};
///
/// let folder = tempfile::tempdir().unwrap();
/// std::fs::write(folder.path().join("thesis.tmp"), "not ours").unwrap();
/// let being_written = Replacement::new(folder.path().join("a"))?;
/// assert_eq!(clean(&OsDisk, folder.path())?, 0);
/// being_written.commit()?;
/// # Ok::<(), breakers_files::Error>(())
/// ```
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read. A file that cannot be removed stays until the next time.
pub fn clean(disk: &dyn Disk, folder: impl AsRef<Path>) -> Result<usize> {
    let folder = folder.as_ref();
    let entries = std::fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let mut n_removed = 0;
    for entry in entries.flatten() {
        let Some(kind) = Leftover::of(&entry.file_name()) else { continue };
        if entry.file_type().is_ok_and(|file_type| file_type.is_file()) {
            n_removed += usize::from(remove_if_left(disk, &entry.path(), kind));
        }
    }
    Ok(n_removed)
}

/// Whether a file's name has the form that this crate uses for temporary files.
pub fn is_temporary(path: impl AsRef<Path>) -> bool {
    path.as_ref().file_name().is_some_and(|name| Leftover::of(name).is_some())
}

/// How to tell that the writer is gone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leftover {
    /// The lock is free.
    Unlocked,
    /// The lock is free, and the file has not changed for a while.
    UnlockedAndOld,
}

impl Leftover {
    /// `.NAME.PID-TIME-NUMBER.breakers-tmp`, with an `n` after the number if others write by name.
    fn of(name: &OsStr) -> Option<Self> {
        let name = name.to_str()?;
        let sidecar = SIDECARS.iter().find_map(|ending| name.strip_suffix(ending));
        let id = sidecar.unwrap_or(name).strip_prefix('.')?.strip_suffix(SUFFIX)?.rsplit('.').next()?;
        let (id, by_name) = id.strip_suffix('n').map_or((id, false), |id| (id, true));
        let mut parts = id.split('-');
        let (pid, time, number) = (parts.next()?, parts.next()?, parts.next()?);
        let all = |text: &str, radix| !text.is_empty() && text.chars().all(|c: char| c.is_digit(radix));
        let ours = all(pid, 10) && all(time, 16) && all(number, 10) && parts.next().is_none();
        let kind = if by_name || sidecar.is_some() { Self::UnlockedAndOld } else { Self::Unlocked };
        ours.then_some(kind)
    }
}

fn remove_if_left(disk: &dyn Disk, path: &Path, kind: Leftover) -> bool {
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { return false };
    let modified = file.metadata().and_then(|metadata| metadata.modified());
    let old = modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > LEFTOVER));
    // Where there are no locks between processes, only the age tells.
    let needs_age = kind == Leftover::UnlockedAndOld || !cfg!(unix);
    // The lock is held while the file is removed, so that a writer who has just made it notices.
    let unlocked = try_lock(&file, path).unwrap_or(false);
    unlocked && (old || !needs_age) && disk.remove(path).is_ok()
}

/// Creates a locked temporary file in the folder of `path`.
fn create(disk: &dyn Disk, path: &Path, by_name: bool) -> Result<(File, PathBuf)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = &name[..name.floor_char_boundary(MAX_STEM)];
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let (pid, mark) = (std::process::id(), if by_name { "n" } else { "" });
    let mut taken = io::Error::from(io::ErrorKind::AlreadyExists);
    for _ in 0..MAX_TRIES {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let temporary = folder_of(path).join(format!(".{stem}.{pid}-{since:x}-{number}{mark}{SUFFIX}"));
        let file = match disk.create(&temporary) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                taken = error;
                continue;
            }
            Err(error) => return Err(Error::io("write", path)(error)),
        };
        // On other systems a lock would keep out the code that writes by name.
        if !cfg!(unix) {
            return Ok((file, temporary));
        }
        // A process that cleans up may have removed it meanwhile.
        match try_lock(&file, &temporary) {
            Ok(true) if temporary.exists() => return Ok((file, temporary)),
            Ok(_) => {}
            Err(error) => {
                let _ = disk.remove(&temporary);
                return Err(error);
            }
        }
    }
    Err(Error::io("find a temporary name for", path)(taken))
}

/// The permissions of the regular file at a path, or `None` if nothing is there. Anything but a regular file
/// is an error.
///
/// # Errors
/// [`Error::NotAFile`] for a folder, a device, a pipe or a link that leads to one; [`Error::Io`].
///
/// # Example
/// ```
/// use breakers_files::{Error, regular};
///
/// let folder = tempfile::tempdir().unwrap();
/// assert!(regular(&folder.path().join("none"))?.is_none());
/// assert!(matches!(regular(folder.path()), Err(Error::NotAFile { .. })));
/// # Ok::<(), Error>(())
/// ```
pub fn regular(path: &Path) -> Result<Option<Permissions>> {
    let refused = |found| Err(Error::NotAFile { path: path.to_owned(), found });
    if path.file_name().is_none() {
        return refused("a path without a file name");
    }
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata.permissions())),
        Ok(metadata) => refused(name_of(metadata.file_type())),
        // Also a link that leads nowhere.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

fn name_of(file_type: FileType) -> &'static str {
    if file_type.is_dir() {
        return "a folder";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        if file_type.is_fifo() {
            return "a pipe";
        }
        if file_type.is_socket() {
            return "a socket";
        }
        if file_type.is_char_device() || file_type.is_block_device() {
            return "a device";
        }
    }
    "something else"
}

/// The same permissions, but the owner may read and write.
fn writable(mut permissions: Permissions) -> Permissions {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        permissions.set_mode(permissions.mode() | 0o600);
    }
    #[cfg(not(unix))]
    permissions.set_readonly(false);
    permissions
}

/// The folder that a path's name is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
