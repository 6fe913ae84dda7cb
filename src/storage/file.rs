//! Files of this machine.

use std::fs::{File, TryLockError};
use std::io;
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{FileId, LockMode, LockOutcome, Storage};

/// A file of this machine, open for reading or for reading and writing.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    names: Names,
    via: Option<PathBuf>,
    is_locked: AtomicBool,
}

/// The name of a file, and those that operations gave it later. Names that were handed out stay valid.
#[derive(Debug)]
struct Names {
    name: String,
    path: Option<PathBuf>,
    next: OnceLock<Box<Names>>,
}

impl FileStorage {
    /// Wraps a file that the caller opened and whose path is unknown, for instance an inherited
    /// descriptor. `name` is used in errors.
    pub fn from_file(file: File, name: impl Into<String>) -> Self {
        Self::new(file, name.into(), None)
    }

    pub(super) fn at_path(file: File, path: &Path) -> Self {
        keep_access_time(&file);
        Self::new(file, path.display().to_string(), Some(path.to_path_buf()))
    }

    /// Records that the file was opened by `name`, from which symbolic links led to its path.
    pub(super) fn opened_by(mut self, name: &Path) -> Self {
        self.via = Some(name.to_path_buf());
        self
    }

    fn new(file: File, name: String, path: Option<PathBuf>) -> Self {
        let names = Names { name, path, next: OnceLock::new() };
        Self { file, names, via: None, is_locked: AtomicBool::new(false) }
    }
}

impl Names {
    fn last(&self) -> &Self {
        let mut names = self;
        while let Some(next) = names.next.get() {
            names = next;
        }
        names
    }
}

impl Storage for FileStorage {
    fn name(&self) -> &str {
        &self.names.last().name
    }

    fn path(&self) -> Option<&Path> {
        self.names.last().path.as_deref()
    }

    fn via(&self) -> Option<&Path> {
        // The links led to its old name.
        self.via.as_deref().filter(|_| self.names.next.get().is_none())
    }

    fn renamed(&self, path: &Path) -> bool {
        let (name, path) = (path.display().to_string(), Some(path.to_path_buf()));
        let names = Names { name, path, next: OnceLock::new() };
        self.names.last().next.set(Box::new(names)).is_ok()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        // Calls the system directly, without the retry loops of the standard library.
        #[cfg(target_os = "linux")]
        return Ok(rustix::io::pread(&self.file, buf, offset)?);
        #[cfg(all(unix, not(target_os = "linux")))]
        return std::os::unix::fs::FileExt::read_at(&self.file, buf, offset);
        #[cfg(windows)]
        return match std::os::windows::fs::FileExt::seek_read(&self.file, buf, offset) {
            // Windows reports the end of a file as an error (ERROR_HANDLE_EOF).
            Err(error) if error.raw_os_error() == Some(38) => Ok(0),
            // Another handle has the bytes locked (ERROR_LOCK_VIOLATION).
            Err(error) if error.raw_os_error() == Some(33) => {
                Err(io::Error::new(io::ErrorKind::ResourceBusy, error))
            }
            result => result,
        };
    }

    #[cfg(target_os = "linux")]
    fn read_vectored_at(&self, bufs: &mut [io::IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::preadv(&self.file, bufs, offset)?)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::write_all_at(&self.file, buf, offset)
            .map_err(|error| if is_for_reading(&error) { read_only() } else { error });
        #[cfg(windows)]
        {
            let (mut buf, mut offset) = (buf, offset);
            while !buf.is_empty() {
                match std::os::windows::fs::FileExt::seek_write(&self.file, buf, offset)? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    written => {
                        buf = &buf[written..];
                        offset += written as u64;
                    }
                }
            }
            Ok(())
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        let metadata = self.file.metadata()?;
        if metadata.is_file() {
            return Ok(metadata.len());
        }
        // A device has no length of its own; its end is where a seek to the end arrives.
        io::Seek::seek(&mut &self.file, io::SeekFrom::End(0))
    }

    #[cfg(target_os = "linux")]
    fn next_data(&self, from: u64) -> io::Result<Option<std::ops::Range<u64>>> {
        use rustix::fs::{SeekFrom, seek};
        use rustix::io::Errno;
        // Nothing else uses the file position.
        let start = match seek(&self.file, SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // Devices, and file systems that cannot tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                let end = self.len()?;
                return Ok((from < end).then_some(from..end));
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Some(start..seek(&self.file, SeekFrom::Hole(start))?))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        // Growth beyond the limit of the process would kill it.
        #[cfg(target_os = "linux")]
        {
            use rustix::process::{Resource, getrlimit};
            let is_longer = || self.len().is_ok_and(|now| len > now);
            if getrlimit(Resource::Fsize).current.is_some_and(|most| len > most) && is_longer() {
                return Err(rustix::io::Errno::FBIG.into());
            }
        }
        self.file.set_len(len)
    }

    #[cfg(target_os = "linux")]
    fn reserve(&self, len: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        match fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            // The file system cannot reserve space: write zeros.
            Err(rustix::io::Errno::OPNOTSUPP) => super::reserve_by_writing(self, len),
            result => Ok(result?),
        }
    }

    #[cfg(target_os = "linux")]
    fn copy_from(&self, from: &dyn Storage, from_at: u64, at: u64, len: u64) -> io::Result<bool> {
        use rustix::fs::copy_file_range;
        use rustix::io::Errno;
        let Some(from) = from.as_fd() else { return Ok(false) };
        let (mut from_at, mut at, mut left) = (from_at, at, len);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            match copy_file_range(from, Some(&mut from_at), &self.file, Some(&mut at), most) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(copied) => left -= copied as u64,
                Err(Errno::INTR) => {}
                // Different or unsupported file systems; devices; kernels and sandboxes without the call.
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Known of regular files of one XFS, btrfs or bcachefs, and of overlays over them, on Linux. `None` elsewhere.
    #[cfg(target_os = "linux")]
    fn sharing_unit(&self, from: &dyn Storage) -> Option<u64> {
        super::sharing::unit(&self.file, from.as_fd()?)
    }

    #[cfg(target_os = "linux")]
    fn punch(&self, range: std::ops::Range<u64>) -> io::Result<bool> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        if range.is_empty() {
            return Ok(true);
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, range.start, range.end - range.start) {
            Ok(()) => Ok(true),
            // Devices can only discard whole blocks.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(false),
            Err(Errno::BADF) => Err(read_only()),
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(target_os = "linux")]
    fn zero(&self, range: std::ops::Range<u64>) -> io::Result<bool> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        // Beyond the end the host would allocate space.
        let range = range.start..range.end.min(self.len()?);
        if range.is_empty() {
            return Ok(true);
        }
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, range.start, range.end - range.start) {
            Ok(()) => Ok(true),
            // The file system may still be able to punch holes.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.punch(range),
            // Devices can only zero whole blocks.
            Err(Errno::INVAL) => Ok(false),
            Err(Errno::BADF) => Err(read_only()),
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(target_os = "linux")]
    fn take_space(&self, range: std::ops::Range<u64>) -> io::Result<bool> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        let range = range.start..range.end.min(self.len()?);
        if range.is_empty() {
            return Ok(true);
        }
        let len = range.end - range.start;
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, range.start, len) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(false),
            Err(Errno::BADF) => Err(read_only()),
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(target_os = "linux")]
    fn forget(&self, range: std::ops::Range<u64>) {
        use rustix::fs::{Advice, fadvise};
        // No length stands for the rest of the file.
        if let Some(len) = std::num::NonZeroU64::new(range.end.saturating_sub(range.start)) {
            // Nothing depends on it.
            let _ = fadvise(&self.file, range.start, Some(len), Advice::DontNeed);
        }
    }

    /// Known of regular files on ext4 with a journal and barriers, unless its mode is `data=writeback`, on XFS, btrfs and
    /// tmpfs, as Linux lists them. `false` elsewhere: other file systems, networks, devices, other systems.
    #[cfg(target_os = "linux")]
    fn lost_writes_read_as_zeros(&self) -> bool {
        super::mount::shows_zeros(&self.file)
    }

    fn id(&self) -> io::Result<Option<FileId>> {
        Ok(file_id(&self.file.metadata()?))
    }

    #[cfg(unix)]
    fn copy_owner_from(&self, model: &dyn Storage) -> io::Result<()> {
        use rustix::fs::{Gid, Mode, Uid, fchmod, fchown, fstat};
        use rustix::io::Errno;
        let Some(model) = model.as_fd() else { return Ok(()) };
        let stat = fstat(model)?;
        // First, because the permissions apply to the new owner, and a change of owner may clear some of them.
        // Only root may give files away; for other users the owner stays the same.
        let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        let may = |given| match given {
            Ok(()) => Ok(true),
            Err(Errno::PERM | Errno::ACCESS) => Ok(false),
            Err(error) => Err(io::Error::from(error)),
        };
        let has_group = may(fchown(&self.file, Some(owner.0), Some(owner.1)))?
            || may(fchown(&self.file, None, Some(owner.1)))?;
        let mut mode = stat.st_mode & 0o777;
        if !has_group {
            // If the group could not be copied, the new group only gets the rights that everybody has.
            mode &= 0o707 | (mode & 0o007) << 3;
        }
        fchmod(&self.file, Mode::from_raw_mode(mode))?;
        #[cfg(target_os = "linux")]
        copy_labels(model, &self.file)?;
        Ok(())
    }

    #[cfg(unix)]
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(AsFd::as_fd(&self.file))
    }

    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        let locked = match mode {
            LockMode::Shared => self.file.try_lock_shared(),
            LockMode::Exclusive => self.file.try_lock(),
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Ok(LockOutcome::InUse("another program holds a lock on it".into()));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // QEMU marks images it writes to with locks of another kind, which do not conflict
        // with the one above.
        #[cfg(target_os = "linux")]
        if super::qemu_locks::is_kept_by_qemu(&self.file, mode == LockMode::Exclusive) {
            self.file.unlock()?;
            return Ok(LockOutcome::InUse("QEMU has it open and does not share it".into()));
        }
        self.is_locked.store(true, Ordering::Release);
        Ok(LockOutcome::Locked)
    }

    fn unlock(&self) -> io::Result<()> {
        if self.is_locked.swap(false, Ordering::AcqRel) {
            self.file.unlock()?;
        }
        Ok(())
    }
}

/// Whether a write was refused because the file is open for reading only (EBADF).
#[cfg(unix)]
fn is_for_reading(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::BADF.raw_os_error())
}

#[cfg(unix)]
fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the file is open for reading only")
}

/// Keeps reads from updating the access time: they should change nothing, and need not pay for it. Only
/// the file's owner and root may ask for this.
#[cfg(target_os = "linux")]
fn keep_access_time(file: &File) {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    if let Ok(flags) = fcntl_getfl(file) {
        let _ = fcntl_setfl(file, flags | OFlags::NOATIME);
    }
}

#[cfg(not(target_os = "linux"))]
fn keep_access_time(_: &File) {}

impl Drop for FileStorage {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that is being spawned shares the open file, and with
        // it the lock, until its program starts.
        if *self.is_locked.get_mut() {
            drop(self.file.unlock());
        }
    }
}

/// Copies the security label and the access list of a file, if it has any and this user may.
#[cfg(target_os = "linux")]
fn copy_labels(model: BorrowedFd<'_>, file: &File) -> io::Result<()> {
    use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
    use rustix::io::Errno;
    // The kernel accepts no attribute longer than this.
    let mut value = vec![0; 64 << 10];
    for name in ["security.selinux", "system.posix_acl_access"] {
        let len = match fgetxattr(model, name, &mut value[..]) {
            Ok(len) => len,
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => continue,
            Err(error) => return Err(error.into()),
        };
        match fsetxattr(file, name, &value[..len], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(unix)]
pub(super) fn file_id(metadata: &std::fs::Metadata) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    Some(FileId::new(metadata.dev(), metadata.ino().into()))
}

/// Stable Rust does not expose file identities on Windows; chains distinguish layers by their GUIDs there.
#[cfg(not(unix))]
pub(super) fn file_id(_: &std::fs::Metadata) -> Option<FileId> {
    None
}

#[cfg(not(any(unix, windows)))]
compile_error!("reading at an offset needs Unix or Windows");
