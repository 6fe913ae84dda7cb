//! Folders and files of this machine by their paths, where it has no way to go by open folders.
#![allow(clippy::disallowed_methods)] // times of files that were just made

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use avhdx::storage::LocalHost;
use avhdx_files::Time;

use super::facts::Facts;

/// A folder.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

/// A file that gets its name once it is complete. It is removed unless it is published.
#[derive(Debug)]
pub(super) struct Draft(avhdx::storage::Draft<'static>);

/// What tells a folder from all others, whose names may differ in case alone.
pub(super) type Place = String;

/// A file that was made.
#[derive(Debug)]
pub(super) struct Made(PathBuf);

/// Devices and pipes are not made here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device;

/// Files have no owners of Unix here.
pub(super) fn own() -> Option<(u32, u32)> {
    None
}

impl Device {
    pub(super) fn of(_: &str, _: Option<(u32, u32)>) -> Option<Self> {
        None
    }
}

impl Folder {
    /// Takes a folder that the user named: links are followed.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let at = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match std::fs::metadata(at)?.is_dir() {
            true => Ok(Self(path.to_path_buf())),
            false => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Fails if nothing can be made here, where that can be told.
    pub(super) fn check_writable(&self) -> io::Result<()> {
        Ok(())
    }

    /// Makes a folder, or takes one that is there. Returns whether it was made.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if something else has the name.
    pub(super) fn make(&self, name: &OsStr) -> io::Result<(Self, bool)> {
        let path = self.0.join(name);
        match std::fs::create_dir(&path) {
            Ok(()) => Ok((Self(path), true)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let is_folder = std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
                if is_folder { Ok((Self(path), false)) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn place(&self) -> io::Result<Place> {
        Ok(self.0.to_string_lossy().to_lowercase())
    }

    /// Whether anything has the name.
    pub(super) fn has(&self, name: &OsStr) -> bool {
        std::fs::symlink_metadata(self.0.join(name)).is_ok()
    }

    /// Links are not made here.
    pub(super) fn link(&self, _: &[u8], _: &OsStr) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn set_link(&self, _: &OsStr, _: &Facts) -> io::Result<()> {
        Ok(())
    }

    /// Gives a file that was made a further name.
    pub(super) fn name_again(&self, made: &Made, name: &OsStr) -> io::Result<()> {
        std::fs::hard_link(&made.0, self.0.join(name))
    }

    pub(super) fn make_device(
        &self,
        _: Device,
        _: &OsStr,
        _: &Facts,
    ) -> io::Result<Option<io::Error>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Starts a file that will get this name.
    pub(super) fn start(&self, name: &OsStr) -> io::Result<Draft> {
        Ok(Draft(avhdx::storage::Draft::new(&LocalHost, self.0.join(name))?))
    }

    /// Gives a folder that was made here its facts.
    pub(super) fn set(&self, facts: &Facts) -> io::Result<()> {
        set(&self.0, facts)
    }
}

impl Draft {
    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.storage().set_len(len)
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.storage().write_at(bytes, offset)
    }

    /// Gives the file its name, and then its facts. Returns why those could not be set.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if something has the name.
    pub(super) fn publish(&self, _: &OsStr, facts: &Facts) -> io::Result<Option<io::Error>> {
        self.0.publish(None)?;
        Ok(set(self.0.target(), facts).err())
    }

    /// The file, to know it again at `path`.
    pub(super) fn made(&self, path: &Path) -> Option<Made> {
        Some(Made(path.to_path_buf()))
    }

    pub(super) fn discard(&self) {
        self.0.discard();
    }
}

fn set(at: &Path, facts: &Facts) -> io::Result<()> {
    let mut times = std::fs::FileTimes::new();
    if let Some(modified) = facts.modified.and_then(moment) {
        times = times.set_modified(modified);
    }
    if let Some(accessed) = facts.accessed.and_then(moment) {
        times = times.set_accessed(accessed);
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true);
    #[cfg(windows)]
    {
        use std::os::windows::fs::OpenOptionsExt;
        const FILE_WRITE_ATTRIBUTES: u32 = 0x100;
        const FILE_FLAG_OPEN_REPARSE_POINT: u32 = 0x0020_0000;
        const FILE_FLAG_BACKUP_SEMANTICS: u32 = 0x0200_0000; // folders too
        options.access_mode(FILE_WRITE_ATTRIBUTES);
        options.custom_flags(FILE_FLAG_OPEN_REPARSE_POINT | FILE_FLAG_BACKUP_SEMANTICS);
    }
    options.open(at)?.set_times(times)
}

fn moment(time: Time) -> Option<SystemTime> {
    let since = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = match time.seconds < 0 {
        true => UNIX_EPOCH.checked_sub(since),
        false => UNIX_EPOCH.checked_add(since),
    };
    whole?.checked_add(Duration::from_nanos(time.nanoseconds.into()))
}
