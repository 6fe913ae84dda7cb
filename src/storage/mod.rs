//! The bytes of files and the names around them: the one place that touches the host.
//!
//! [`Storage`] is one file, [`Host`] the folders around it. [`FileStorage`] and [`LocalHost`] are the
//! machine's own; [`MemStorage`] keeps bytes in memory. Implement the traits to read images from
//! elsewhere, an object store for instance.

#[cfg(unix)]
mod beneath;
mod draft;
mod file;
mod identity;
mod local;
mod mem;
mod overlay;
#[cfg(target_os = "linux")]
mod proc_locks;
mod reading;
mod real;
mod temporary;

use std::ffi::OsStr;
use std::fmt::Debug;
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
pub(crate) use identity::{Removal, is_file, remove};
pub use local::LocalHost;
pub use mem::MemStorage;
pub(crate) use overlay::{Overlay, Patch};
pub(crate) use reading::Reading;
pub(crate) use real::real_place;
pub(crate) use temporary::{draft_mark, is_temporary_name, temporary_name};

/// Bytes that are written at once to reserve space.
const RESERVE_STEP: u64 = 1 << 20;

/// The bytes of one file on the host.
pub trait Storage: Debug + Send + Sync {
    /// What errors call this file, usually its path.
    fn name(&self) -> &str;

    /// Where the file lies, if it lies in a folder, without symbolic links on the way: parents and children
    /// are looked for from there.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// The name that it was opened by, where symbolic links led from that to [`path`](Self::path): parents and
    /// children are looked for from there too.
    fn via(&self) -> Option<&Path> {
        None
    }

    /// Reads into `buf` from `offset` and returns how many bytes: fewer than asked, or none, at the
    /// end of the file.
    ///
    /// # Errors
    /// What the host says; [`ErrorKind::ResourceBusy`] where somebody else's lock keeps the bytes from being read,
    /// as on Windows.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Reads into one buffer after the other from `offset` and returns how many bytes: fewer than asked at
    /// the end of the file, or where the host takes several steps for it.
    ///
    /// # Errors
    /// What the host says.
    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        match bufs.iter_mut().find(|buf| !buf.is_empty()) {
            Some(buf) => self.read_at(buf, offset),
            None => Ok(0),
        }
    }

    /// Writes all of `buf` at `offset`, growing the file where needed.
    ///
    /// # Errors
    /// What the host says; [`ErrorKind::PermissionDenied`] when opened for reading.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes what was written durable, the length included.
    ///
    /// # Errors
    /// What the host says.
    fn flush(&self) -> io::Result<()>;

    /// The length of the file in bytes.
    ///
    /// # Errors
    /// What the host says.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file holds no byte.
    ///
    /// # Errors
    /// What the host says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// The first bytes from `from` on that the host holds, in one piece; `None` when there are none up to
    /// the end of the file. What lies before, between and behind such pieces reads as zeros. A host that
    /// does not tell answers with all the rest of the file.
    ///
    /// # Errors
    /// What the host says.
    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let end = self.len()?;
        Ok((from < end).then_some(from..end))
    }

    /// Cuts the file to `len` bytes or extends it with zeros.
    ///
    /// # Errors
    /// What the host says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the file `len` bytes long with space on the host for all of them, so that writing there
    /// cannot run out of it. Only for a new file that is shorter and has no holes; what it holds stays.
    ///
    /// # Errors
    /// What the host says.
    fn reserve(&self, len: u64) -> io::Result<()> {
        reserve_by_writing(self, len)
    }

    /// Writes `len` bytes at `at` as they stand in another file at `from_at`, without handing them through this
    /// process: the host copies them, or has both files share them where it can. They need not be durable
    /// when it returns, as after [`write_at`](Self::write_at). `false` where the host cannot; what lies there
    /// is then unspecified and for the caller to write.
    ///
    /// # Errors
    /// What the host says; [`ErrorKind::UnexpectedEof`] when the other file ends before.
    fn copy_from(&self, from: &dyn Storage, from_at: u64, at: u64, len: u64) -> io::Result<bool> {
        let _ = (from, from_at, at, len);
        Ok(false)
    }

    /// Gives the space of a range back to the host: it reads as zeros then, and the length stays. `false`
    /// where the host cannot, with nothing changed.
    ///
    /// # Errors
    /// What the host says.
    fn punch(&self, range: Range<u64>) -> io::Result<bool> {
        let _ = range;
        Ok(false)
    }

    /// Has a range of the file read as zeros by the host's own means, with no zeros handed through this process.
    /// Its space is kept where the host has a way to. The length stays, and what of the range lies past the end
    /// is left alone. `false` where the host cannot, with nothing changed.
    ///
    /// # Errors
    /// What the host says.
    fn zero(&self, range: Range<u64>) -> io::Result<bool> {
        let _ = range;
        Ok(false)
    }

    /// What tells this file from all others on the host, however it is named; `None` where the host
    /// has no such thing.
    ///
    /// # Errors
    /// What the host says.
    fn id(&self) -> io::Result<Option<FileId>> {
        Ok(None)
    }

    /// Gives the file the owner and the permissions of `model`, and its security label and access list where the host
    /// has such things, as far as this user may. Both are the open files themselves, whatever their names lead to
    /// by now. No right to act as the owner (set-user-id and its like) goes with them.
    ///
    /// # Errors
    /// What the host says.
    fn copy_owner_from(&self, model: &dyn Storage) -> io::Result<()> {
        let _ = model;
        Ok(())
    }

    /// The descriptor of the file, for callers that read where a [`ReadPlan`](crate::ReadPlan) says by other
    /// means than [`read_at`](Self::read_at), io_uring for instance; `None` where there is none. Nothing may be
    /// written through it, and nobody relies on its position.
    #[cfg(unix)]
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Takes a lock on the file without waiting, held until this storage is dropped or
    /// [unlocked](Self::unlock). A lock that this storage has must be given up first, be it of another sort or not.
    /// Some hosts have locks bind those who do not ask for any: what is locked alone can then be read by this
    /// storage and no other, and what is locked for readers be written by none.
    ///
    /// # Errors
    /// What the host says, with [`ErrorKind::Unsupported`] where files cannot be locked.
    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        let _ = mode;
        Err(ErrorKind::Unsupported.into())
    }

    /// Gives up the lock on the file, if there is one, before this storage is dropped.
    ///
    /// # Errors
    /// What the host says, with [`ErrorKind::Unsupported`] where files cannot be locked.
    fn unlock(&self) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    /// Fills `buf` from `offset`, or fails with [`ErrorKind::UnexpectedEof`].
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
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

    /// Fills one buffer after the other from `offset`, or fails with [`ErrorKind::UnexpectedEof`]. The
    /// slices may point elsewhere afterwards.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    fn read_exact_vectored_at(
        &self,
        mut bufs: &mut [IoSliceMut<'_>],
        mut offset: u64,
    ) -> io::Result<()> {
        // Those that are full, or were empty from the start, are left behind.
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

/// The names around the files: folders, and what may be done to names in them.
pub trait Host: Debug + Send + Sync {
    /// Opens a file. Never waits, not even for the other end of a pipe. Symbolic links are resolved once, here:
    /// the storage says [where](Storage::path) the file really lies and [by which name](Storage::via) it was
    /// opened.
    ///
    /// # Errors
    /// What the host says.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>>;

    /// Creates a file that was not there, for writing.
    ///
    /// # Errors
    /// What the host says; [`ErrorKind::AlreadyExists`] when the name is taken.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>>;

    /// Creates a file without a name, for writing, in the folder where it is going to be called `path`. It is gone
    /// with the last handle unless it was [given a name](Self::link) by then. Errors call it by that path, which
    /// is also its [`Storage::path`].
    ///
    /// # Errors
    /// What the host says; [`ErrorKind::Unsupported`] where it has no such files.
    fn create_unnamed(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        let _ = path;
        Err(ErrorKind::Unsupported.into())
    }

    /// Gives a file that was [created without a name](Self::create_unnamed) its first one, which must not be taken.
    ///
    /// # Errors
    /// What the host says; [`ErrorKind::AlreadyExists`] when the name is taken.
    fn link(&self, file: &dyn Storage, path: &Path) -> io::Result<()> {
        let _ = (file, path);
        Err(ErrorKind::Unsupported.into())
    }

    /// Opens the file at `path` below the folder `root`, both without links and dots: a link that took the place of
    /// any name of `path` meanwhile is refused, so that nothing outside the folder is ever opened.
    ///
    /// A host that cannot have this seen to while it opens looks at each name before, and at all of them after.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`ErrorKind::PermissionDenied`] where a name became a link, or `path` is no plain
    /// path.
    fn open_beneath(
        &self,
        root: &Path,
        path: &Path,
        access: Access,
    ) -> io::Result<Arc<dyn Storage>> {
        open_and_look_again(self, root, path, access)
    }

    /// The names in a folder, in no order.
    ///
    /// # Errors
    /// What the host says.
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>>;

    /// What a name stands for, symbolic links followed.
    ///
    /// # Errors
    /// What the host says.
    fn stat(&self, path: &Path) -> io::Result<Stat>;

    /// The path without symbolic links, `.` and `..`.
    ///
    /// # Errors
    /// What the host says.
    fn canonical(&self, path: &Path) -> io::Result<PathBuf>;

    /// Whether the name itself is a symbolic link.
    ///
    /// # Errors
    /// What the host says.
    fn is_link(&self, path: &Path) -> io::Result<bool>;

    /// Gives a file a new name, which must not be taken.
    ///
    /// # Errors
    /// What the host says; [`ErrorKind::AlreadyExists`] when the name is taken.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives two files each other's names, in one step.
    ///
    /// # Errors
    /// What the host says; [`ErrorKind::Unsupported`] where it cannot.
    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        let _ = (one, other);
        Err(ErrorKind::Unsupported.into())
    }

    /// Removes a file's name. Whose name it is by then is not looked at: it should be one that nobody else gives to
    /// a file.
    ///
    /// # Errors
    /// What the host says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Bytes that this user can still write to files in a folder; `None` where the host does not tell.
    ///
    /// # Errors
    /// What the host says.
    fn free_space(&self, folder: &Path) -> io::Result<Option<u64>> {
        let _ = folder;
        Ok(None)
    }

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// What the host says.
    fn sync_dir(&self, folder: &Path) -> io::Result<()>;
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Reading only: nothing of the file can change through this handle.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// Who else a lock admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockMode {
    /// Other readers.
    Shared,
    /// Nobody.
    Exclusive,
}

/// What became of an attempt to lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockOutcome {
    /// The lock is held.
    Locked,
    /// Somebody else holds the file in a way that does not admit this; who, as far as is known.
    InUse(String),
}

/// Tells a file from all others on a host, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    volume: u64,
    file: u128,
}

impl FileId {
    /// The file that a host tells from the others of a volume by a number of up to 128 bits.
    pub const fn new(volume: u64, file: u128) -> Self {
        Self { volume, file }
    }

    /// What tells the file's volume from others.
    pub(crate) const fn volume(self) -> u64 {
        self.volume
    }
}

/// What kind of thing a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A device, pipe, socket or anything else.
    Other,
}

/// What a host knows of a name.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stat {
    /// What the name stands for.
    pub kind: FileKind,
    /// Length in bytes.
    pub len: u64,
    /// Bytes that the file takes up on its volume, where the host tells.
    pub allocated: Option<u64>,
    /// When the contents last changed, where the host tells.
    pub modified: Option<SystemTime>,
    /// What tells the file from others, where the host has such a thing.
    pub id: Option<FileId>,
    /// Names that the file has on its volume (hard links), where the host tells.
    pub names: Option<u64>,
}

impl Stat {
    /// Facts of a file or folder of which nothing more is known.
    pub const fn new(kind: FileKind, len: u64) -> Self {
        Self { kind, len, allocated: None, modified: None, id: None, names: None }
    }
}

/// The length of a file, which is none that arithmetic on places in it could leave the numbers with.
pub(crate) fn length_of(storage: &dyn Storage) -> Result<u64> {
    let len = storage
        .len()
        .map_err(|error| Error::io("file.length", "cannot tell the length of the file", error))?;
    if i64::try_from(len).is_err() {
        let message = "a file longer than any host has";
        return Err(Error::new(error::ErrorKind::Limit, "limit.file-length", message)
            .with_found(format_args!("{len} bytes"))
            .with_expected(format_args!("at most {}", i64::MAX)));
    }
    Ok(len)
}

/// The folder that a file lies in; a bare name lies in the current one.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Opens a file below a folder with a look at each name before and after.
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

/// The name that a part of a path below a folder is, no dots and nothing that leads elsewhere.
fn plain_name(part: Component<'_>) -> io::Result<&OsStr> {
    match part {
        Component::Normal(name) => Ok(name),
        _ => Err(io::Error::new(ErrorKind::PermissionDenied, "not a plain path below the folder")),
    }
}

fn became_a_link() -> io::Error {
    io::Error::new(ErrorKind::PermissionDenied, "a name of its path was replaced meanwhile")
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
