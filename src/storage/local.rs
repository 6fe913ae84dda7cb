//! The file system of this machine.
#![allow(clippy::disallowed_methods)] // the module that wraps std::fs

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::{FileStorage, file_id};
use super::real::has_links;
use super::{Access, FileId, FileKind, Host, Stat, Storage};

/// How often a path is resolved again if its file changes while it is being opened.
const TRIES: usize = 3;

/// The file system of this machine.
///
/// ```no_run
/// use avhdx::storage::{Access, FileKind, Host, LocalHost};
///
/// for path in LocalHost.list("/mnt/vm".as_ref())? {
///     if LocalHost.stat(&path)?.kind == FileKind::File {
///         let file = LocalHost.open(&path, Access::Read)?;
///         println!("{}: {} bytes", file.name(), file.len()?);
///     }
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalHost;

impl Host for LocalHost {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite);
        // A pipe that somebody put in a parent's place must not block us.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(
            &mut options,
            rustix::fs::OFlags::NONBLOCK.bits().cast_signed(),
        );
        for _ in 1..TRIES {
            let file = options.open(path)?;
            match real_path(path, file_id(&file.metadata()?)) {
                Real::Itself => return Ok(Arc::new(FileStorage::at_path(file, path))),
                Real::At(real) => {
                    return Ok(Arc::new(FileStorage::at_path(file, &real).opened_by(path)));
                }
                Real::Elsewhere => {}
            }
        }
        // A link in `/proc` may lead to a file without a name.
        Ok(Arc::new(FileStorage::at_path(options.open(path)?, path)))
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        let real = match real_path(path, file_id(&file.metadata()?)) {
            Real::At(real) => real,
            Real::Itself | Real::Elsewhere => path.to_path_buf(),
        };
        Ok(Arc::new(FileStorage::at_path(file, &real)))
    }

    #[cfg(target_os = "linux")]
    fn create_unnamed(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        super::beneath::create_unnamed(path)
    }

    #[cfg(target_os = "linux")]
    fn link(&self, file: &dyn Storage, path: &Path) -> io::Result<()> {
        super::beneath::link(file, path)
    }

    #[cfg(unix)]
    fn open_beneath(
        &self,
        root: &Path,
        path: &Path,
        access: Access,
    ) -> io::Result<Arc<dyn Storage>> {
        super::beneath::open_beneath(root, path, access)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let metadata = fs::metadata(path)?;
        let kind = match metadata.file_type() {
            kind if kind.is_file() => FileKind::File,
            kind if kind.is_dir() => FileKind::Folder,
            kind => special(kind),
        };
        Ok(Stat {
            kind,
            len: metadata.len(),
            allocated: allocated(&metadata),
            modified: metadata.modified().ok(),
            id: file_id(&metadata),
            names: names(&metadata),
        })
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        fs::canonicalize(path)
    }

    fn is_link(&self, path: &Path) -> io::Result<bool> {
        Ok(fs::symlink_metadata(path)?.is_symlink())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
                // Some file systems have no rename that refuses to replace.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
                result => return Ok(result?),
            }
        }
        // Adding a second name fails if the name is taken, unlike a plain rename on Unix. On
        // Windows, and on file systems without hard links, all that remains is to check first.
        #[cfg(unix)]
        match fs::hard_link(from, to) {
            Ok(()) => return fs::remove_file(from),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            Err(_) => {}
        }
        if fs::symlink_metadata(to).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        fs::rename(from, to)
    }

    #[cfg(target_os = "linux")]
    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            done => Ok(done?),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    #[cfg(unix)]
    fn free_space(&self, folder: &Path) -> io::Result<Option<u64>> {
        let volume = rustix::fs::statvfs(in_current(folder))?;
        Ok(Some(volume.f_bavail.saturating_mul(volume.f_frsize)))
    }

    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        let folder = in_current(folder);
        // Windows has no such call; NTFS journals names itself.
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    }
}

/// Returns `.` for an empty path, which is the parent of a bare file name.
pub(super) fn in_current(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() { Path::new(".") } else { folder }
}

/// Where a file lies that was opened by a path.
enum Real {
    /// The path contains no symbolic links.
    Itself,
    At(PathBuf),
    /// The path leads to another file by now, or the file has no name.
    Elsewhere,
}

fn real_path(path: &Path, file: Option<FileId>) -> Real {
    if !has_links(&LocalHost, path) {
        return Real::Itself;
    }
    let Ok(real) = fs::canonicalize(path) else { return Real::Elsewhere };
    match fs::metadata(&real) {
        Ok(metadata) if file_id(&metadata) == file => Real::At(real),
        _ => Real::Elsewhere,
    }
}

#[cfg(unix)]
fn names(metadata: &fs::Metadata) -> Option<u64> {
    Some(std::os::unix::fs::MetadataExt::nlink(metadata))
}

#[cfg(not(unix))]
fn names(_: &fs::Metadata) -> Option<u64> {
    None
}

#[cfg(unix)]
fn allocated(metadata: &fs::Metadata) -> Option<u64> {
    // The unit of st_blocks is 512 bytes, independently of the file system's block size.
    Some(std::os::unix::fs::MetadataExt::blocks(metadata) * 512)
}

#[cfg(not(unix))]
fn allocated(_: &fs::Metadata) -> Option<u64> {
    None
}

/// What is neither a file nor a folder.
#[cfg(unix)]
fn special(kind: fs::FileType) -> FileKind {
    use std::os::unix::fs::FileTypeExt;
    match kind {
        kind if kind.is_fifo() => FileKind::Fifo,
        kind if kind.is_socket() => FileKind::Socket,
        kind if kind.is_char_device() || kind.is_block_device() => FileKind::Device,
        _ => FileKind::Other,
    }
}

#[cfg(not(unix))]
fn special(_: fs::FileType) -> FileKind {
    FileKind::Other
}
