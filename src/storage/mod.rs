//! The bytes of files and the names around them: the one place that touches the host.
//!
//! [`Storage`] is one file, [`Host`] the folders around it. [`FileStorage`] and [`LocalHost`] are the
//! machine's own; [`MemStorage`] keeps bytes in memory. Implement the traits to read images from
//! elsewhere, an object store for instance.

mod file;
mod local;
mod mem;
mod overlay;
#[cfg(target_os = "linux")]
mod proc_locks;
mod temporary;

use std::fmt::Debug;
use std::io::{self, ErrorKind, IoSliceMut};
use std::ops::Range;
#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

pub use file::FileStorage;
pub use local::LocalHost;
pub use mem::MemStorage;
pub(crate) use overlay::{Overlay, Patch};
pub(crate) use temporary::{is_temporary_name, temporary_name};

/// Bytes that are written at once to reserve space.
const RESERVE_STEP: u64 = 1 << 20;

/// The bytes of one file on the host.
pub trait Storage: Debug + Send + Sync {
    /// What errors call this file, usually its path.
    fn name(&self) -> &str;

    /// Where the file lies, if it lies in a folder: parents are looked for from there.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// Reads into `buf` from `offset` and returns how many bytes: fewer than asked, or none, at the
    /// end of the file.
    ///
    /// # Errors
    /// What the host says.
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
    /// cannot run out of it. Only for a new, empty file.
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

    /// What tells this file from all others on the host, however it is named; `None` where the host
    /// has no such thing.
    ///
    /// # Errors
    /// What the host says.
    fn id(&self) -> io::Result<Option<FileId>> {
        Ok(None)
    }

    /// The descriptor of the file, for callers that read where a [`ReadPlan`](crate::ReadPlan) says by other
    /// means than [`read_at`](Self::read_at), io_uring for instance; `None` where there is none. Nothing may be
    /// written through it, and nobody relies on its position.
    #[cfg(unix)]
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Takes a lock on the file without waiting, held until this storage is dropped or
    /// [unlocked](Self::unlock). A lock of another sort must be given up first.
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
    /// Opens a file. Never waits, not even for the other end of a pipe.
    ///
    /// # Errors
    /// What the host says.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>>;

    /// Creates a file that was not there, for writing.
    ///
    /// # Errors
    /// What the host says; [`ErrorKind::AlreadyExists`] when the name is taken.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>>;

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

    /// Gives a file a new name and takes that name from whatever file had it, in one step.
    ///
    /// # Errors
    /// What the host says.
    fn replace(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name.
    ///
    /// # Errors
    /// What the host says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Gives `file` the mode and owner of `model`, and its security label and access list where the host has such
    /// things, as far as this user may.
    ///
    /// # Errors
    /// What the host says.
    fn copy_owner(&self, model: &Path, file: &Path) -> io::Result<()> {
        let _ = (model, file);
        Ok(())
    }

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

/// Tells a file from all others on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// The volume the file lies on.
    pub volume: u64,
    /// The file on that volume.
    pub file: u64,
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
}

impl Stat {
    /// Facts of a file or folder of which nothing more is known.
    pub const fn new(kind: FileKind, len: u64) -> Self {
        Self { kind, len, allocated: None, modified: None, id: None }
    }
}

/// The folder that a file lies in; a bare name lies in the current one.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Reserves space by writing zeros to all of it.
fn reserve_by_writing<S: Storage + ?Sized>(storage: &S, len: u64) -> io::Result<()> {
    let zeros = vec![0; RESERVE_STEP as usize];
    let mut at = 0;
    while at < len {
        let step = (len - at).min(RESERVE_STEP);
        storage.write_at(&zeros[..step as usize], at)?;
        at += step;
    }
    Ok(())
}
