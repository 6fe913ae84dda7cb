//! What an operation is going to do.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Host, folder_of};

/// What an operation is going to read, write and free, before anything of it is done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Forecast {
    /// Bytes of data that are going to be read, be it by the host. What is looked up in tables comes to that.
    pub read: u64,
    /// Bytes that are going to be written to blocks of the disk, zeros for a disk of another size included; for a
    /// new image the length of its file, which is holes for the most part; for another parent the pages of the
    /// metadata that change. What headers, logs and other tables take comes to that.
    pub written: u64,
    /// Bytes of files that are going to be removed, by their lengths.
    pub freed: u64,
    /// So many bytes more than now the files take up at their most, on the volume that is written to: a new block
    /// counts as a whole, a hole that is filled as far as it is, and as given back what is known to be no hole.
    /// File systems that share bytes need less, and pages of tables and logs that are holes come to that.
    pub peak: u64,
    /// Bytes by which the disk gets shorter at its end.
    pub cut: u64,
    /// Of those, bytes that any of the layers below holds data for, which is lost.
    pub cut_data: u64,
    /// Bytes that are free there, where the host tells.
    pub available: Option<u64>,
    /// The files that are going to change.
    pub files: Vec<FileChange>,
    /// Whether data may be cut off.
    pub(super) may_cut: bool,
    /// Where the space is needed.
    on: PathBuf,
}

/// A file that an operation touches.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileChange {
    /// Where it lies.
    pub path: PathBuf,
    /// What becomes of it.
    pub kind: FileChangeKind,
}

/// What becomes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileChangeKind {
    /// It is made.
    Created,
    /// It is written to.
    Changed,
    /// Its name is removed.
    Removed,
}

impl Forecast {
    /// Of an operation that takes space where this file lies, or is going to.
    pub(super) fn on(host: &dyn Host, path: &Path) -> Result<Self> {
        let available = host.free_space(folder_of(path)).map_err(|error| {
            Error::io("op.free-space", "cannot tell how much space is free", error).in_path(path)
        })?;
        Ok(Self {
            read: 0,
            written: 0,
            freed: 0,
            peak: 0,
            cut: 0,
            cut_data: 0,
            available,
            files: Vec::new(),
            may_cut: false,
            on: path.to_owned(),
        })
    }

    pub(super) fn add(&mut self, path: &Path, kind: FileChangeKind) {
        self.files.push(FileChange { path: path.to_owned(), kind });
    }

    /// Refuses an operation that would cut off data without consent, or that there is not the space for.
    ///
    /// # Errors
    /// [`ErrorKind::WouldLose`], see [`Merge::shrink`](super::Merge::shrink); [`ErrorKind::NoSpace`], with what is needed, what is free, and by how much that falls short, in bytes.
    pub fn check(&self) -> Result<()> {
        if self.cut_data > 0 && !self.may_cut {
            let message =
                "the merged layer's disk is smaller, and data behind its end would be cut off";
            return Err(Error::new(ErrorKind::WouldLose, "merge.shrinks", message)
                .in_path(&self.on)
                .with_section("2.6.2.2")
                .with_found(format_args!("{} bytes of data there", self.cut_data))
                .with_expected("none, or the consent to lose them"));
        }
        let Some(available) = self.available.filter(|available| *available < self.peak) else {
            return Ok(());
        };
        let short = self.peak - available;
        let message = format!("the space falls short by {short} bytes, and nothing was done");
        Err(Error::new(ErrorKind::NoSpace, "op.space", message)
            .in_path(&self.on)
            .with_found(format_args!("{available} bytes free"))
            .with_expected(format_args!("at least {}", self.peak)))
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
        assert!(error.to_string().contains("by 12 bytes"), "{error}");
        assert_eq!(error.found(), Some("988 bytes free"));
    }
}
