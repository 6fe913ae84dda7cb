//! Is the image, with its parents, as the format wants it?
//!
//! Finds, and repairs nothing. The same parsers that open an image judge its structures here; where
//! opening stops at the first error, a check goes on.

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
/// Works on images that do not open. Nothing is written, a log that is not empty is replayed in memory
/// and the rest checked as it reads then. Time and reads grow with the tables, never with the payload.
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

/// What a check found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The layers looked at, from the tip down.
    pub layers: Vec<CheckedLayer>,
    /// In the order of the layers, and within one in the order of looking.
    pub findings: Vec<Finding>,
    /// What of the findings is not listed, because there are too many of a kind.
    pub unlisted: Vec<Unlisted>,
}

/// One layer that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckedLayer {
    /// What findings call its file.
    pub name: String,
    /// Where the file lies, if it lies in a folder.
    pub path: Option<PathBuf>,
    /// How it was found from the layer above; `None` for the tip.
    pub found_by: Option<FoundBy>,
    /// Length of the file, a log replayed in memory included.
    pub file_len: u64,
    /// Its identity, as far as a header can be read.
    pub data_write_guid: Option<Uuid>,
    /// Bytes of the disk, as far as the metadata can be read.
    pub size: Option<u64>,
    /// Blocks that the file has bytes for, where the block allocation table can be read.
    pub allocated_blocks: Option<u64>,
    /// Bytes of the file that nothing names, where that can be told.
    pub leaked: Option<u64>,
}

/// Findings of data that may be lost, and of what was not examined or may have changed meanwhile.
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
    /// A check of the whole chain.
    pub fn new() -> Self {
        Self { options: OpenOptions::new(), alone: false, most_per_code: 1000 }
    }

    /// How files are opened, locked and found. Images are never opened for writing, and a log is
    /// replayed in memory unless it is to be ignored.
    pub fn options(mut self, options: OpenOptions) -> Self {
        self.options = options;
        self
    }

    /// Whether the image is checked without its parents.
    pub fn alone(mut self, yes: bool) -> Self {
        self.alone = yes;
        self
    }

    /// Findings of one code that are listed, 1000 unless told otherwise; the rest is only counted.
    pub fn most_per_code(mut self, most: usize) -> Self {
        self.most_per_code = most;
        self
    }

    /// Checks the image at `path`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) when it cannot be opened,
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for a VHD set (`.vhds`), and as
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
    /// [`ErrorKind::NotVhdx`](crate::ErrorKind::NotVhdx) when nothing of the file is of the format,
    /// [`ErrorKind::InUse`](crate::ErrorKind::InUse) when somebody writes to it, and
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) when its first bytes cannot be read. All else that is
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
    /// Whether no rule is broken: there may be warnings all the same, and [doubts](Self::is_doubtful). What blocks
    /// hold is not read.
    pub fn is_sound(&self) -> bool {
        self.count(Severity::Error) == 0
    }

    /// Whether a finding that breaks no rule says that data may be lost, or that something was not examined: then
    /// that no rule is broken is no comfort.
    pub fn is_doubtful(&self) -> bool {
        let doubts = |code: &str| DOUBTS.contains(&code);
        self.findings.iter().any(|finding| doubts(finding.code))
            || self.unlisted.iter().any(|more| doubts(more.code))
    }

    /// How many findings there are of a severity, those not listed included.
    pub fn count(&self, severity: Severity) -> u64 {
        let listed = self.findings.iter().filter(|finding| finding.severity == severity).count();
        let more = self.unlisted.iter().filter(|more| more.severity == severity);
        listed as u64 + more.map(|more| more.count).sum::<u64>()
    }
}
