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
mod remedy;
mod report;
mod root;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::refuse_by_name;
use crate::options::OpenOptions;
use crate::storage::{Access, Storage};
use crate::trace::operation;

use super::{Listener, Progress};

pub use findings::{Finding, Severity, Unlisted};
pub use remedy::Remedy;
pub use report::{CheckedLayer, Report};

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
pub struct Check<'a> {
    options: OpenOptions,
    alone: bool,
    most_per_code: usize,
    progress: Listener<'a>,
}

impl<'a> Check<'a> {
    /// Checks the whole chain.
    pub fn new() -> Self {
        Self {
            options: OpenOptions::new(),
            alone: false,
            most_per_code: 1000,
            progress: Listener::default(),
        }
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

    /// Calls `on` while the check runs, with the bytes of the layers' disks whose table entries are checked, of all
    /// layers. A break stops it with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
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
    /// [`ErrorKind::InUse`](crate::ErrorKind::InUse) if another process writes to it,
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled), and
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if its first bytes cannot be read. Everything else that is
    /// wrong is a finding.
    pub fn run_file(&self, storage: Arc<dyn Storage>) -> Result<Report> {
        let _span = operation("check", storage.name());
        chain::check(&self.options, !self.alone, self.most_per_code, storage, &self.progress)
    }
}

impl Default for Check<'_> {
    fn default() -> Self {
        Self::new()
    }
}
