//! Predicts what an operation will do.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Host, folder_of};

/// What an operation will read, write and free, computed before it starts.
///
/// ```no_run
/// use avhdx::OpenOptions;
/// use avhdx::ops::Checkpoint;
///
/// let chain = OpenOptions::new().writable(true).open("web_77F0.avhdx")?;
/// let forecast = Checkpoint::new().forecast(&chain)?;
/// println!("{} bytes of space are needed, {:?} are free", forecast.peak, forecast.available);
/// forecast.check()?;
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Forecast {
    /// Bytes of data that will be read, also by the host. Reads of tables are not included.
    pub read: u64,
    /// Bytes that will be written to payload blocks, including zeros for a disk of another size. For a
    /// new image, the length of its file, most of which is holes; for a new parent, the changed pages of the
    /// metadata. Headers, logs and other tables are not included.
    pub written: u64,
    /// Total length of the files that will be removed, in bytes.
    pub freed: u64,
    /// Peak of the additional space on the target volume in bytes: new blocks count in full, filled holes as far as
    /// they are filled, and freed space only if it is known not to be a hole. File systems that share extents need
    /// less. Holes in tables and logs that get filled are not included, nor are the holes that a file which is written
    /// to ends in until it is closed: up to 64 MiB, or one block if that is more.
    pub peak: u64,
    /// Bytes by which the disk gets shorter.
    pub cut: u64,
    /// How many of those bytes some lower layer holds data for, which will be lost.
    pub cut_data: u64,
    /// Bytes of data in the removed files that no point in time shows afterwards.
    pub lost: u64,
    /// Free bytes on the target volume, if the host can tell.
    pub available: Option<u64>,
    /// The files that will change.
    pub files: Vec<FileChange>,
    /// Whether the caller agreed to lose `cut_data`.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(super) may_cut: bool,
    /// A path on the target volume.
    #[cfg_attr(feature = "serde", serde(skip))]
    on: PathBuf,
}

/// A file that an operation changes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct FileChange {
    /// Its path.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::types::shown"))]
    pub path: PathBuf,
    /// What happens to it.
    pub kind: FileChangeKind,
}

/// What happens to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum FileChangeKind {
    /// It is created.
    Created,
    /// It is written to.
    Changed,
    /// Its name is removed.
    Removed,
}

impl Forecast {
    /// An empty forecast for an operation that needs space on the volume of `path`.
    pub(super) fn on(host: &dyn Host, path: &Path) -> Result<Self> {
        let available = host.free_space(folder_of(path)).map_err(|error| {
            Error::io("op.free-space", "cannot tell how much space is free", error).in_path(path)
        })?;
        Ok(Self { available, on: path.to_owned(), ..Self::in_place() })
    }

    /// An empty forecast for an operation that needs no space.
    pub(super) fn in_place() -> Self {
        Self {
            read: 0,
            written: 0,
            freed: 0,
            peak: 0,
            cut: 0,
            cut_data: 0,
            lost: 0,
            available: None,
            files: Vec::new(),
            may_cut: false,
            on: PathBuf::new(),
        }
    }

    pub(super) fn add(&mut self, path: &Path, kind: FileChangeKind) {
        self.files.push(FileChange { path: path.to_owned(), kind });
    }

    /// Refuses an operation that would cut off data without consent or needs more space than there is.
    ///
    /// # Errors
    /// [`ErrorKind::WouldLose`], see [`Merge::shrink`](super::Merge::shrink); [`ErrorKind::NoSpace`], which states the
    /// bytes needed, free and missing.
    pub fn check(&self) -> Result<()> {
        if self.cut_data > 0 && !self.may_cut {
            let message =
                "the merged layer's disk is smaller, and data beyond its end would be cut off";
            return Err(Error::new(ErrorKind::WouldLose, "merge.shrinks", message)
                .in_path(&self.on)
                .with_section("2.6.2.2")
                .with_found(format_args!("{} bytes of data there", self.cut_data))
                .with_expected("no data there, or consent to lose it"));
        }
        check_space(self.peak, self.available, &self.on)
    }
}

/// Refuses an operation that needs more space on the volume of a path than is free there, as far as that is known.
pub(super) fn check_space(peak: u64, available: Option<u64>, on: &Path) -> Result<()> {
    let Some(available) = available.filter(|available| *available < peak) else {
        return Ok(());
    };
    let short = peak - available;
    let message = format!("{short} bytes of space are missing; nothing was changed");
    Err(Error::new(ErrorKind::NoSpace, "op.space", message)
        .in_path(on)
        .with_found(format_args!("{available} bytes free"))
        .with_expected(format_args!("at least {peak}")))
}

/// Refuses a file in a folder in which the host does not allow names to be made and removed, as far as it can tell
/// without doing so.
pub(super) fn check_removable(host: &dyn Host, path: &Path) -> Result<()> {
    let denials = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
    match host.create_unnamed(path) {
        Err(error) if denials.contains(&error.kind()) => {
            let message = "cannot remove the file: its folder may not be written to";
            Err(Error::io("op.remove", message, error).in_path(path))
        }
        _ => Ok(()),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::storage::LocalHost;

    #[test]
    fn what_does_not_fit_is_refused_and_says_by_how_much() {
        let folder = tempfile::tempdir().unwrap();
        let mut forecast = Forecast::on(&LocalHost, &folder.path().join("new")).unwrap();
        assert!(forecast.available.is_some_and(|bytes| bytes > 0) || !cfg!(unix));
        (forecast.peak, forecast.available) = (1000, Some(1000));
        forecast.check().unwrap();
        forecast.available = None;
        forecast.check().unwrap();
        forecast.available = Some(988);
        let error = forecast.check().unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::NoSpace, "op.space"));
        assert!(error.to_string().contains("12 bytes of space are missing"), "{error}");
        assert_eq!(error.found(), Some("988 bytes free"));
    }
}
