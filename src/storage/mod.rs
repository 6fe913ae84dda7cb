//! Files and folders: the only module that accesses the host.
//!
//! [`Storage`] is one file, [`Host`] the folders around it. [`FileStorage`] and [`LocalHost`] are those of
//! this machine; [`MemStorage`] keeps its bytes in memory. Implement the traits to read images from
//! elsewhere, for instance an object store.

#[cfg(unix)]
mod beneath;
mod draft;
mod file;
mod identity;
mod local;
mod mem;
#[cfg(target_os = "linux")]
mod mount;
mod overlay;
#[cfg(target_os = "linux")]
mod qemu_locks;
mod read_only;
mod real;
mod scratch;
#[cfg(target_os = "linux")]
mod sharing;
mod temporary;

use std::ffi::OsStr;
use std::fmt::{self, Debug};
use std::io::{self, ErrorKind, IoSliceMut};
use std::ops::Range;
#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::error::{self, Error, Result};

pub use draft::Draft;
pub use file::FileStorage;
pub(crate) use identity::{Removal, exchange, is_file, remove};
pub use local::LocalHost;
pub use mem::MemStorage;
pub(crate) use overlay::{Overlay, Patch};
pub(crate) use read_only::ReadOnly;
pub(crate) use real::real_place;
pub(crate) use scratch::{ChangedRange, Scratch};
pub(crate) use temporary::{cut_name, draft_mark, is_temporary_name, temporary_name};

/// How many bytes are written at once to reserve space.
const RESERVE_STEP: u64 = 1 << 20;

/// A file on the host.
pub trait Storage: Debug + Send + Sync {
    /// The name of the file in errors, usually its path.
    fn name(&self) -> &str;

    /// The path of the file without symbolic links, if it has one. Parents and children are searched for relative to
    /// it.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// The path by which it was opened, if symbolic links led from there to [`path`](Self::path). Parents and
    /// children are searched for relative to it too.
    fn via(&self) -> Option<&Path> {
        None
    }

    /// Learns that an operation gave its file the name `path`. Returns whether [`path`](Self::path) and
    /// [`name`](Self::name) are that from now on; if not, the file keeps its old name.
    fn renamed(&self, path: &Path) -> bool {
        let _ = path;
        false
    }

    /// Reads into `buf` from `offset` and returns the number of bytes read, which is less than asked for, or zero, only
    /// at the end of the file.
    ///
    /// # Errors
    /// Errors of the host; [`ErrorKind::ResourceBusy`] if another process's lock keeps the bytes from being read,
    /// as on Windows.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Reads into several buffers in order from `offset` and returns the number of bytes read, which may be less than
    /// asked for at the end of the file or if the host needs several steps.
    ///
    /// # Errors
    /// Errors of the host.
    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        match bufs.iter_mut().find(|buf| !buf.is_empty()) {
            Some(buf) => self.read_at(buf, offset),
            None => Ok(0),
        }
    }

    /// Writes all of `buf` at `offset`, growing the file if needed.
    ///
    /// # Errors
    /// Errors of the host; [`ErrorKind::PermissionDenied`] if the file is open for reading only.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes all writes durable, and the length of the file.
    ///
    /// # Errors
    /// Errors of the host.
    fn flush(&self) -> io::Result<()>;

    /// The length of the file in bytes.
    ///
    /// # Errors
    /// Errors of the host.
    fn len(&self) -> io::Result<u64>;

    /// Whether the length of the file is zero.
    ///
    /// # Errors
    /// Errors of the host.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Returns the first contiguous range from `from` on that the host stores data for; `None` if there is none before
    /// the end of the file. Everything outside such ranges reads as zeros. A host that
    /// cannot tell returns the rest of the file.
    ///
    /// # Errors
    /// Errors of the host.
    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let end = self.len()?;
        Ok((from < end).then_some(from..end))
    }

    /// Truncates the file to `len` bytes or extends it with zeros.
    ///
    /// # Errors
    /// Errors of the host.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Extends the file to `len` bytes with space reserved on the host, so that writes to it
    /// cannot run out of space. The file must be new, shorter than `len` and without holes; its contents stay.
    ///
    /// # Errors
    /// Errors of the host.
    fn reserve(&self, len: u64) -> io::Result<()> {
        reserve_by_writing(self, len)
    }

    /// Copies `len` bytes from `from_at` in another file to `at` without passing them through this
    /// process: the host copies or shares them. As after [`write_at`](Self::write_at), they need not be durable
    /// when this returns. `false` if the host cannot do it; the contents of the range are then
    /// unspecified, and the caller writes them.
    ///
    /// # Errors
    /// Errors of the host; [`ErrorKind::UnexpectedEof`] if the other file ends earlier.
    fn copy_from(&self, from: &dyn Storage, from_at: u64, at: u64, len: u64) -> io::Result<bool> {
        let _ = (from, from_at, at, len);
        Ok(false)
    }

    /// Whether [`copy_from`](Self::copy_from) has this file share the bytes of `from`, which takes neither time nor space,
    /// and in which unit: offsets in both files and lengths are multiples of it, a power of two, in bytes. `None` if the
    /// host copies, or cannot tell. A wrong answer costs time and space, and changes no bytes.
    fn sharing_unit(&self, from: &dyn Storage) -> Option<u64> {
        let _ = from;
        None
    }

    /// Returns the space of a range to the host. The range reads as zeros, and the length of the file stays. `false`
    /// if the host cannot do it, with nothing changed; of an empty range, if it can do it in no file.
    ///
    /// # Errors
    /// Errors of the host.
    fn punch(&self, range: Range<u64>) -> io::Result<bool> {
        let _ = range;
        Ok(false)
    }

    /// Zeros a range by the host's own means, without passing zeros through this process.
    /// Keeps the space allocated if the host can. The length of the file stays, and any part of the range beyond the
    /// end is ignored. `false` if the host cannot do it, with nothing changed.
    ///
    /// # Errors
    /// Errors of the host.
    fn zero(&self, range: Range<u64>) -> io::Result<bool> {
        let _ = range;
        Ok(false)
    }

    /// Has the host take space for all holes of a range, whose bytes stay, so that no write there runs out of it. The length
    /// of the file stays, and any part of the range beyond the end is ignored. `false` if the host cannot do it without
    /// writing, with nothing changed.
    ///
    /// # Errors
    /// Errors of the host.
    fn take_space(&self, range: Range<u64>) -> io::Result<bool> {
        let _ = range;
        Ok(false)
    }

    /// Tells the host that nobody reads the range soon, so that it need not keep its bytes in memory. Changes neither the
    /// file nor what is durable. A file whose bytes are not in memory is removed sooner.
    fn forget(&self, range: Range<u64>) {
        let _ = range;
    }

    /// Whether writes that a crash of the host loses read as zeros afterwards, where they went to bytes that
    /// [`set_len`](Self::set_len) extended the file by, a later [flush](Self::flush) made durable and nothing was
    /// written to since. A host that may show other bytes there, for instance what a removed file left, answers
    /// `false`, and so does one that cannot tell.
    ///
    /// Where this holds, a flush of an image with new blocks costs one flush of the file instead of two.
    fn lost_writes_read_as_zeros(&self) -> bool {
        false
    }

    /// Identifies the file on the host, independently of its names; `None` if the host
    /// has no such identity.
    ///
    /// # Errors
    /// Errors of the host.
    fn id(&self) -> io::Result<Option<FileId>> {
        Ok(None)
    }

    /// Copies the owner and permissions of `model`, and its security label and access list if the host
    /// has them, as far as this user may. Both are the open files themselves, whatever their names refer to
    /// by now. Set-user-id and similar bits are not copied.
    ///
    /// # Errors
    /// Errors of the host.
    fn copy_owner_from(&self, model: &dyn Storage) -> io::Result<()> {
        let _ = model;
        Ok(())
    }

    /// The descriptor of the file, for callers that execute a [`ReadPlan`](crate::ReadPlan) by other
    /// means than [`read_at`](Self::read_at), for instance io_uring; `None` if there is none. Do not write
    /// through it. Its file position is not used.
    #[cfg(unix)]
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Locks the file without waiting. The lock is held until this storage is dropped or
    /// [unlocked](Self::unlock). A lock that this storage already holds, of either mode, must be released first.
    /// On some hosts locks are mandatory: a file that is locked exclusively can then be read through this
    /// storage only, and one that is locked for reading cannot be written to.
    ///
    /// # Errors
    /// Errors of the host, with [`ErrorKind::Unsupported`] if files cannot be locked.
    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        let _ = mode;
        Err(ErrorKind::Unsupported.into())
    }

    /// Releases the lock, if there is one, before this storage is dropped.
    ///
    /// # Errors
    /// Errors of the host, with [`ErrorKind::Unsupported`] if files cannot be locked.
    fn unlock(&self) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    /// Fills `buf` from `offset`, or fails with [`ErrorKind::UnexpectedEof`].
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at).
    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match self.read_at(buf, offset) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    buf = &mut buf[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Fills several buffers in order from `offset`, or fails with [`ErrorKind::UnexpectedEof`]. The
    /// slices may be advanced afterwards.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at).
    fn read_exact_vectored_at(
        &self,
        mut bufs: &mut [IoSliceMut<'_>],
        mut offset: u64,
    ) -> io::Result<()> {
        // Skips buffers that are full or empty.
        IoSliceMut::advance_slices(&mut bufs, 0);
        while !bufs.is_empty() {
            match self.read_vectored_at(bufs, offset) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    IoSliceMut::advance_slices(&mut bufs, read);
                    offset += read as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The folders and names around files.
pub trait Host: Debug + Send + Sync {
    /// Opens a file. Never blocks, not even for the other end of a pipe. Symbolic links are resolved once, here:
    /// the storage knows [where](Storage::path) the file really lies and [by which path](Storage::via) it was
    /// opened.
    ///
    /// # Errors
    /// Errors of the host.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>>;

    /// Creates a new file and opens it for writing.
    ///
    /// # Errors
    /// Errors of the host; [`ErrorKind::AlreadyExists`] if the name is taken.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>>;

    /// Creates a file without a name, open for writing, in the folder of `path`, which it is to be named later. It
    /// disappears with the last handle unless it has been [named](Self::link) by then. `path` is its name in errors
    /// and its [`Storage::path`].
    ///
    /// # Errors
    /// Errors of the host; [`ErrorKind::Unsupported`] if it has no such files.
    fn create_unnamed(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        let _ = path;
        Err(ErrorKind::Unsupported.into())
    }

    /// Names a file that was [created without a name](Self::create_unnamed). The name must be free.
    ///
    /// # Errors
    /// Errors of the host; [`ErrorKind::AlreadyExists`] if the name is taken.
    fn link(&self, file: &dyn Storage, path: &Path) -> io::Result<()> {
        let _ = (file, path);
        Err(ErrorKind::Unsupported.into())
    }

    /// Opens a file at `path` below the folder `root`, both without links and dots. If a component of `path` has been
    /// replaced by a link, the call is refused, so that no file outside the folder is ever opened.
    ///
    /// A host that cannot guarantee this while opening checks every component before, and again after.
    ///
    /// # Errors
    /// As for [`open`](Self::open); [`ErrorKind::PermissionDenied`] if a component has become a link, or `path` is not
    /// a plain path.
    fn open_beneath(
        &self,
        root: &Path,
        path: &Path,
        access: Access,
    ) -> io::Result<Arc<dyn Storage>> {
        open_and_look_again(self, root, path, access)
    }

    /// Lists the paths in a folder, in any order.
    ///
    /// # Errors
    /// Errors of the host.
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>>;

    /// Describes what a path refers to, following symbolic links.
    ///
    /// # Errors
    /// Errors of the host.
    fn stat(&self, path: &Path) -> io::Result<Stat>;

    /// Returns the path without symbolic links, `.` and `..`.
    ///
    /// # Errors
    /// Errors of the host.
    fn canonical(&self, path: &Path) -> io::Result<PathBuf>;

    /// Whether the path itself is a symbolic link.
    ///
    /// # Errors
    /// Errors of the host.
    fn is_link(&self, path: &Path) -> io::Result<bool>;

    /// Renames a file. The new name must be free.
    ///
    /// # Errors
    /// Errors of the host; [`ErrorKind::AlreadyExists`] if the name is taken.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Exchanges the names of two files atomically.
    ///
    /// # Errors
    /// Errors of the host; [`ErrorKind::Unsupported`] if it cannot.
    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        let _ = (one, other);
        Err(ErrorKind::Unsupported.into())
    }

    /// Removes a name, whichever file it refers to. Use it for names that no other program gives to
    /// files.
    ///
    /// # Errors
    /// Errors of the host.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Returns how many bytes this user can still write to files in a folder; `None` if the host cannot tell.
    ///
    /// # Errors
    /// Errors of the host.
    fn free_space(&self, folder: &Path) -> io::Result<Option<u64>> {
        let _ = folder;
        Ok(None)
    }

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// Errors of the host.
    fn sync_dir(&self, folder: &Path) -> io::Result<()>;
}

/// The access for which a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Read-only: nothing in the file can change through this handle.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// What a lock admits besides its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockMode {
    /// Other readers.
    Shared,
    /// Nobody.
    Exclusive,
}

/// The outcome of an attempt to lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockOutcome {
    /// The lock is held.
    Locked,
    /// Another process holds the file in a conflicting way; the text says which, if known.
    InUse(String),
}

/// Identifies a file on a host, independently of its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    volume: u64,
    file: u128,
}

impl FileId {
    /// An identity made of a volume and a number of up to 128 bits that is unique within it.
    pub const fn new(volume: u64, file: u128) -> Self {
        Self { volume, file }
    }

    /// The volume of the file.
    pub(crate) const fn volume(self) -> u64 {
        self.volume
    }
}

/// The kind of object that a path refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A FIFO, also called a named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A device.
    Device,
    /// Anything else.
    Other,
}

/// Completes the sentence "this is …".
impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "a file",
            Self::Folder => "a folder",
            Self::Fifo => "a FIFO",
            Self::Socket => "a socket",
            Self::Device => "a device",
            Self::Other => "neither a file nor a folder",
        })
    }
}

/// What a host knows about a path.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stat {
    /// The kind of object.
    pub kind: FileKind,
    /// Length in bytes.
    pub len: u64,
    /// Bytes that the file takes up on its volume, if the host can tell.
    pub allocated: Option<u64>,
    /// When the contents last changed, if the host can tell.
    pub modified: Option<SystemTime>,
    /// The identity of the file, if the host has one.
    pub id: Option<FileId>,
    /// How many names (hard links) the file has, if the host can tell.
    pub names: Option<u64>,
}

impl Stat {
    /// A file or folder about which nothing more is known.
    pub const fn new(kind: FileKind, len: u64) -> Self {
        Self { kind, len, allocated: None, modified: None, id: None, names: None }
    }
}

/// Returns the length of the file, bounded so that arithmetic on offsets cannot overflow.
pub(crate) fn length_of(storage: &dyn Storage) -> Result<u64> {
    let len = storage.len().map_err(|error| {
        Error::io("file.length", "cannot determine the length of the file", error)
    })?;
    if i64::try_from(len).is_err() {
        let message = "the file is longer than any host supports";
        return Err(Error::new(error::ErrorKind::Limit, "limit.file-length", message)
            .with_found(format_args!("{len} bytes"))
            .with_expected(format_args!("at most {}", i64::MAX)));
    }
    Ok(len)
}

/// Returns the folder of a path; `.` for a bare name.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Opens a file below a folder, checking every component before and after.
fn open_and_look_again<H: Host + ?Sized>(
    host: &H,
    root: &Path,
    path: &Path,
    access: Access,
) -> io::Result<Arc<dyn Storage>> {
    let refuse_links = || {
        let mut place = root.to_path_buf();
        for part in path.components() {
            place.push(plain_name(part)?);
            if host.is_link(&place)? {
                return Err(became_a_link());
            }
        }
        Ok(place)
    };
    let place = refuse_links()?;
    let storage = host.open(&place, access)?;
    let id = host.stat(&refuse_links()?)?.id;
    if storage.id()? != id || host.canonical(&place)? != place {
        return Err(became_a_link());
    }
    Ok(storage)
}

/// Returns the name in a path component; refuses dots and roots.
fn plain_name(part: Component<'_>) -> io::Result<&OsStr> {
    match part {
        Component::Normal(name) => Ok(name),
        _ => Err(io::Error::new(ErrorKind::PermissionDenied, "not a plain path below the folder")),
    }
}

fn became_a_link() -> io::Error {
    io::Error::new(ErrorKind::PermissionDenied, "a component of the path was replaced")
}

/// Reserves space by writing zeros to all of it.
fn reserve_by_writing<S: Storage + ?Sized>(storage: &S, len: u64) -> io::Result<()> {
    let zeros = vec![0; RESERVE_STEP as usize];
    let mut at = storage.len()?;
    while at < len {
        let step = (len - at).min(RESERVE_STEP);
        storage.write_at(&zeros[..step as usize], at)?;
        at += step;
    }
    Ok(())
}
