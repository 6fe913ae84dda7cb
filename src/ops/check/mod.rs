//! Checks an image and its parents against the format.
//!
//! A check reports and repairs nothing. It uses the parsers that open an image, but where
//! opening stops at the first error, a check continues.

mod bits;
mod blocks;
mod chain;
mod findings;
mod layer;
mod log;
mod meaning;
mod metadata;
mod regions;
mod root;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::chain::FoundBy;
use crate::error::{Error, Result};
use crate::image::refuse_by_name;
use crate::options::OpenOptions;
use crate::storage::{Access, Storage};

pub use findings::{Finding, Severity, Unlisted};

/// Checks an image and its parents, or the image alone, against every rule of the format.
///
/// Works on images that cannot be opened. Nothing is written: a pending log is replayed in memory
/// and the rest is checked in that state. Time and reads grow with the tables, never with the payload.
///
/// ```no_run
/// use avhdx::ops::{Check, Severity};
///
/// let report = Check::new().run("web_1A2B.avhdx")?;
/// for finding in &report.findings {
///     println!("{:?} {}: {}", finding.severity, finding.code, finding.meaning);
/// }
/// assert_eq!(report.count(Severity::Error), 0);
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Check {
    options: OpenOptions,
    alone: bool,
    most_per_code: usize,
}

/// The result of a check.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The layers checked, from the tip down.
    pub layers: Vec<CheckedLayer>,
    /// The findings, ordered by layer, and within a layer in the order of examination.
    pub findings: Vec<Finding>,
    /// Findings that are not listed because there are too many of their kind.
    pub unlisted: Vec<Unlisted>,
}

/// A layer that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckedLayer {
    /// The name of its file in findings.
    pub name: String,
    /// The path of the file, if it has one.
    pub path: Option<PathBuf>,
    /// How it was found from the layer above; `None` for the tip.
    pub found_by: Option<FoundBy>,
    /// Length of the file in bytes, including growth from a log replayed in memory.
    pub file_len: u64,
    /// Its identity, if a header can be read.
    pub data_write_guid: Option<Uuid>,
    /// Size of the disk in bytes, if the metadata can be read.
    pub size: Option<u64>,
    /// How many blocks have space in the file, if the block allocation table can be read.
    pub allocated_blocks: Option<u64>,
    /// Unreferenced bytes of the file, if they can be determined.
    pub leaked: Option<u64>,
}

/// Codes of findings about data that may be lost, not examined, or changed during the check.
const DOUBTS: &[&str] = &[
    "bat.lost",
    "bat.not-checked",
    "bat.too-far",
    "bitmap.hidden",
    "lock.failed",
    "lock.in-use",
    "log.not-replayed",
    "parent.linkage-ignored",
];

impl Check {
    /// Checks the whole chain.
    pub fn new() -> Self {
        Self { options: OpenOptions::new(), alone: false, most_per_code: 1000 }
    }

    /// How to open, lock and find files. Images are never opened for writing, and a log is
    /// replayed in memory unless the options ignore it.
    pub fn options(mut self, options: OpenOptions) -> Self {
        self.options = options;
        self
    }

    /// Whether to check the image without its parents.
    pub fn alone(mut self, yes: bool) -> Self {
        self.alone = yes;
        self
    }

    /// How many findings to list for each code; the rest is counted. The default is 1000.
    pub fn most_per_code(mut self, most: usize) -> Self {
        self.most_per_code = most;
        self
    }

    /// Checks the image at `path`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if it cannot be opened,
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for a VHD set (`.vhds`), and as for
    /// [`run_file`](Self::run_file).
    pub fn run(&self, path: impl AsRef<Path>) -> Result<Report> {
        let path = path.as_ref();
        refuse_by_name(self.options.host_used().as_ref(), path)?;
        let storage = self.options.host_used().open(path, Access::Read).map_err(|error| {
            Error::io("file.open", "cannot open the file", error).in_path(path).limits_named()
        })?;
        self.run_file(storage)
    }

    /// Checks the image in `storage`.
    ///
    /// # Errors
    /// [`ErrorKind::NotVhdx`](crate::ErrorKind::NotVhdx) if no part of the file is of the format,
    /// [`ErrorKind::InUse`](crate::ErrorKind::InUse) if another process writes to it, and
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if its first bytes cannot be read. Everything else that is
    /// wrong is a finding.
    pub fn run_file(&self, storage: Arc<dyn Storage>) -> Result<Report> {
        chain::check(self, storage)
    }
}

impl Default for Check {
    fn default() -> Self {
        Self::new()
    }
}

impl Report {
    /// Whether no rule of the format is broken. There may still be warnings and [doubts](Self::is_doubtful), and the
    /// contents of blocks are not read.
    pub fn is_sound(&self) -> bool {
        self.count(Severity::Error) == 0
    }

    /// Whether a finding says that data may be lost or was not examined, although no rule is broken. The absence of
    /// errors proves nothing then.
    pub fn is_doubtful(&self) -> bool {
        let doubts = |code: &str| DOUBTS.contains(&code);
        self.findings.iter().any(|finding| doubts(finding.code))
            || self.unlisted.iter().any(|more| doubts(more.code))
    }

    /// Counts the findings of a severity, including those not listed.
    pub fn count(&self, severity: Severity) -> u64 {
        let listed = self.findings.iter().filter(|finding| finding.severity == severity).count();
        let more = self.unlisted.iter().filter(|more| more.severity == severity);
        listed as u64 + more.map(|more| more.count).sum::<u64>()
    }
}
