//! Unix calls that work relative to open files and folders instead of paths.
#![allow(clippy::disallowed_methods)] // part of the module that wraps std::fs

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::file::FileStorage;
use super::{Access, Storage, became_a_link, plain_name};

/// Opens a file below a folder without following symbolic links.
pub(super) fn open_beneath(
    root: &Path,
    path: &Path,
    access: Access,
) -> io::Result<Arc<dyn Storage>> {
    // Refuses components that lead up or elsewhere.
    for part in path.components() {
        plain_name(part)?;
    }
    let root_fd = rustix::fs::open(root, folder_flags(), Mode::empty())?;
    // A pipe that somebody put in the file's place must not block us.
    let flags = match access {
        Access::Read => OFlags::RDONLY,
        Access::ReadWrite => OFlags::RDWR,
    } | OFlags::CLOEXEC
        | OFlags::NONBLOCK
        | OFlags::NOCTTY;
    let opened = match open_in_one_step(&root_fd, path, flags) {
        Err(Errno::NOSYS | Errno::PERM | Errno::INVAL | Errno::TOOBIG) => {
            open_name_by_name(root_fd, path, flags)
        }
        opened => opened,
    };
    match opened {
        Ok(fd) => Ok(Arc::new(FileStorage::at_path(File::from(fd), &root.join(path)))),
        Err(Errno::LOOP | Errno::XDEV | Errno::MLINK) => Err(became_a_link()),
        Err(error) => Err(error.into()),
    }
}

/// Lets the kernel refuse links and paths out of the folder.
#[cfg(target_os = "linux")]
fn open_in_one_step(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    use rustix::fs::{ResolveFlags, openat2};
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    loop {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            // A concurrent rename, or a signal.
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn open_in_one_step(_: &OwnedFd, _: &Path, _: OFlags) -> Result<OwnedFd, Errno> {
    Err(Errno::NOSYS)
}

/// The same step by step, opening each component relative to the folder before it.
fn open_name_by_name(root: OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut folder = root;
    let mut names = path.components().peekable();
    while let Some(name) = names.next() {
        let is_last = names.peek().is_none();
        let flags = if is_last { flags } else { folder_flags() } | OFlags::NOFOLLOW;
        let opened = match openat(&folder, name.as_os_str(), flags, Mode::empty()) {
            // Linux reports a link in place of a folder like this.
            Err(Errno::NOTDIR) if is_link(&folder, name.as_os_str()) => return Err(Errno::LOOP),
            opened => opened?,
        };
        if is_last {
            return Ok(opened);
        }
        folder = opened;
    }
    Err(Errno::ISDIR)
}

fn is_link(folder: &OwnedFd, name: &std::ffi::OsStr) -> bool {
    use rustix::fs::{AtFlags, FileType, statat};
    let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

/// Creates a file without a name.
#[cfg(target_os = "linux")]
pub(super) fn create_unnamed(path: &Path) -> io::Result<Arc<dyn Storage>> {
    let folder = super::folder_of(path);
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let fd = match rustix::fs::open(folder, flags, Mode::from_raw_mode(0o666)) {
        Ok(fd) => fd,
        // File systems without such files, and kernels that take the flag for `O_DIRECTORY`.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Err(error) => return Err(error.into()),
    };
    // The path through `/proc` is needed later to name the file.
    if rustix::fs::stat(proc_path(&fd)).is_err() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(Arc::new(FileStorage::at_path(File::from(fd), path)))
}

/// Names a file that was created without a name.
#[cfg(target_os = "linux")]
pub(super) fn link(file: &dyn Storage, path: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, linkat};
    let Some(fd) = file.as_fd() else { return Err(io::ErrorKind::Unsupported.into()) };
    Ok(linkat(CWD, proc_path(fd), CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// A path to an open file without a name; naming it by descriptor alone requires root.
#[cfg(target_os = "linux")]
fn proc_path(fd: impl std::os::fd::AsFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_on_the_way_is_refused_in_one_step_and_in_several() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::create_dir(folder.path().join("out")).unwrap();
        for file in ["root/a/b/f", "root/f", "out/f"] {
            std::fs::write(folder.path().join(file), file).unwrap();
        }
        std::os::unix::fs::symlink("../out", root.join("up")).unwrap();
        std::os::unix::fs::symlink("b", root.join("a/link")).unwrap();
        std::os::unix::fs::symlink("f", root.join("name")).unwrap();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let open_root = || rustix::fs::open(&root, folder_flags(), Mode::empty()).unwrap();
        for path in ["f", "a/b/f"] {
            let fd = open_in_one_step(&open_root(), path.as_ref(), flags);
            assert!(fd.is_ok() || !cfg!(target_os = "linux"), "{path}: {fd:?}");
            open_name_by_name(open_root(), path.as_ref(), flags).unwrap();
            let storage = open_beneath(&root, path.as_ref(), Access::Read).unwrap();
            assert_eq!(storage.path(), Some(root.join(path).as_path()));
        }
        for path in ["up/f", "a/link/f", "name", "a/link"] {
            let error = open_name_by_name(open_root(), path.as_ref(), flags).unwrap_err();
            assert!([Errno::LOOP, Errno::MLINK].contains(&error), "{path}: {error}");
            let error = open_beneath(&root, path.as_ref(), Access::Read).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{path}");
        }
        for path in ["../out/f", "/etc/passwd", "a/../../out/f"] {
            let error = open_beneath(&root, path.as_ref(), Access::Read).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{path}");
        }
        let error = open_beneath(&root, "none".as_ref(), Access::Read).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
