//! The folders of this machine.
#![allow(clippy::disallowed_methods)] // this is the module for it

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::{FileStorage, file_id};
use super::{Access, FileKind, Host, Stat, Storage};

/// The folders of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalHost;

impl Host for LocalHost {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite);
        // A pipe that a stranger put in a parent's place must not keep us waiting.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(
            &mut options,
            rustix::fs::OFlags::NONBLOCK.bits().cast_signed(),
        );
        Ok(Arc::new(FileStorage::at_path(options.open(path)?, path)))
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Arc::new(FileStorage::at_path(file, path)))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let metadata = fs::metadata(path)?;
        let kind = match metadata.file_type() {
            kind if kind.is_file() => FileKind::File,
            kind if kind.is_dir() => FileKind::Folder,
            _ => FileKind::Other,
        };
        Ok(Stat {
            kind,
            len: metadata.len(),
            allocated: allocated(&metadata),
            modified: metadata.modified().ok(),
            id: file_id(&metadata),
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
                // Some file systems cannot refuse in one step.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
                result => return Ok(result?),
            }
        }
        // A second name fails where the name is taken, which a plain rename on Unix does not. On
        // Windows, and on file systems without second names, what is left is to look first.
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

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn copy_owner(&self, model: &Path, file: &Path) -> io::Result<()> {
        let metadata = fs::metadata(model)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            // Only root may give files away; for others the file stays theirs.
            let given = std::os::unix::fs::chown(file, Some(metadata.uid()), Some(metadata.gid()));
            if let Err(error) = given
                && error.kind() != io::ErrorKind::PermissionDenied
            {
                return Err(error);
            }
            fs::set_permissions(file, metadata.permissions())?;
            #[cfg(target_os = "linux")]
            copy_labels(model, file)?;
            Ok(())
        }
        // Windows files take theirs from the folder.
        #[cfg(not(unix))]
        {
            let _ = (metadata, file);
            Ok(())
        }
    }

    #[cfg(unix)]
    fn free_space(&self, folder: &Path) -> io::Result<Option<u64>> {
        let volume = rustix::fs::statvfs(in_current(folder))?;
        Ok(Some(volume.f_bavail.saturating_mul(volume.f_frsize)))
    }

    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        let folder = in_current(folder);
        // Windows has no such call; NTFS journals names by itself.
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    }
}

/// The current folder's path is empty when it is the parent of a bare file name.
fn in_current(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() { Path::new(".") } else { folder }
}

/// Gives a file the security label and the access list of another, where there are such things and this user may.
#[cfg(target_os = "linux")]
fn copy_labels(model: &Path, file: &Path) -> io::Result<()> {
    use rustix::fs::{XattrFlags, getxattr, setxattr};
    use rustix::io::Errno;
    // A label is some words long, and the kernel takes none that is longer than this.
    let mut value = vec![0; 64 << 10];
    for name in ["security.selinux", "system.posix_acl_access"] {
        let len = match getxattr(model, name, &mut value[..]) {
            Ok(len) => len,
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => continue,
            Err(error) => return Err(error.into()),
        };
        match setxattr(file, name, &value[..len], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(unix)]
fn allocated(metadata: &fs::Metadata) -> Option<u64> {
    // The unit of st_blocks is 512 bytes whatever the file system's own block.
    Some(std::os::unix::fs::MetadataExt::blocks(metadata) * 512)
}

#[cfg(not(unix))]
fn allocated(_: &fs::Metadata) -> Option<u64> {
    None
}
