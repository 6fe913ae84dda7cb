//! Operations over whole disks: one struct each, set up by its methods and started by `run`.
//!
//! | Operation | Question or work |
//! |---|---|
//! | [`Export`] | the flat disk, into a file (sparse) or a stream |
//! | [`Check`] | is the image, with its parents, as the format wants it |
//! | [`AcceptLoss`] | go on without what an image lost, with a list of it |
//! | [`Compare`] | do two disks hold the same bytes, and where do they first differ |
//! | [`Measure`] | how many bytes would a copy need |
//! | [`Reparent`] | another parent for an image, proven to leave the disk as it is |
//! | [`Relink`] | the paths to parents, set right where files were moved |
//! | [`Explain`] | why does this byte read as it does, layer by layer |
//! | [`Checkpoint`] | keep this point in time, and go on writing on top of it |
//! | [`Merge`] | a layer into its parent, the disk as it was |
//! | [`Revert`] | go back to an earlier point, on a new tip |
//! | [`clear_drafts`] | what killed programs left in a folder and nobody will complete |
//! | [`forest`] | which images are below these folders, and who is whose parent |
//!
//! Those that move bytes report their [`Progress`] to a callback, which may stop them. Those that change a chain
//! have a [`Forecast`], leave it readable at any moment, and are refused where others would be cut off.
//!
//! A callback that panics is one that asks to stop: it is not called again, the operation leaves all as it does for
//! such a wish, and then the panic goes on.

mod accept_loss;
mod check;
mod checkpoint;
mod child;
mod compare;
mod explain;
mod export;
mod forecast;
pub mod forest;
mod measure;
mod merge;
mod pace;
mod relink;
mod reparent;
mod revert;

use std::any::Any;
use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

pub use accept_loss::{AcceptLoss, Loss, LossKind, Losses};
pub use check::{Check, CheckedLayer, Finding, Report, Severity, Unlisted};
pub use checkpoint::{Checkpoint, Checkpointed};
pub use compare::{Compare, Comparison, Difference};
pub use explain::{
    BitFacts, BitmapFacts, BlockFacts, EntryFacts, Explain, Explanation, LayerAnswer, Verdict,
};
pub use export::{Export, Exported};
pub use forecast::{FileChange, FileChangeKind, Forecast};
pub use measure::{Measure, Needed};
pub use merge::{Merge, Merged};
pub use pace::Pace;
pub use relink::{Relink, Relinked, RelinkedImage};
pub use reparent::{Reparent, Reparented};
pub use revert::{Revert, Reverted};

pub use crate::write::clear_drafts;

use crate::disk::{Disk, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::image::is_zero;
use crate::mutants::planted;
use crate::types::MIB;

/// Bytes that are read at once.
const WINDOW: u64 = 2 * MIB;

/// How far an operation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of the disk that are dealt with.
    pub done: u64,
    /// Bytes of the disk that there are; 0 as long as a merge looks how many.
    pub total: u64,
}

/// Reports progress, and turns a wish to stop into an error.
fn report(on: &mut dyn FnMut(Progress) -> ControlFlow<()>, done: u64, total: u64) -> Result<()> {
    match on(Progress { done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::cancelled()),
    }
}

/// The panic of a caller's callback, kept until the operation has ended as for a wish to stop.
#[derive(Default)]
struct CallerPanic(Option<Box<dyn Any + Send>>);

impl CallerPanic {
    /// What the callback says, unless it panics or did before.
    fn catch(&mut self, callback: impl FnOnce() -> ControlFlow<()>) -> ControlFlow<()> {
        if planted("callers-panic-not-caught") {
            return callback();
        }
        if self.0.is_some() {
            return ControlFlow::Break(());
        }
        // Who called the operation hears of the panic, and may look at what it left then.
        catch_unwind(AssertUnwindSafe(callback)).unwrap_or_else(|panic| {
            self.0 = Some(panic);
            ControlFlow::Break(())
        })
    }

    /// Has the panic go on, if there was one.
    fn go_on(self) {
        if let Some(panic) = self.0 {
            resume_unwind(panic);
        }
    }
}

/// Bytes of a disk in a row, and what supplies them.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: u64,
    end: u64,
    /// `None` where no place in a file has them, though reading serves them.
    source: Option<Source>,
}

impl Run {
    /// Whether the bytes are zeros without a look at them.
    fn is_zero(&self) -> bool {
        matches!(self.source, Some(Source::Zero { .. }))
    }
}

/// The runs of a disk, asked for from the front to the back.
struct Runs<'a> {
    disk: &'a dyn Disk,
    size: u64,
    last: Run,
}

impl<'a> Runs<'a> {
    fn new(disk: &'a dyn Disk) -> Self {
        let none = Run { start: 0, end: 0, source: None };
        Self { disk, size: disk.geometry().size, last: none }
    }

    /// The run that the byte at `at` lies in, from there on or from before. `at` lies within the disk and
    /// never goes back.
    fn at(&mut self, at: u64) -> Result<Run> {
        if at >= self.last.end {
            self.last = self.find(at..self.size)?;
        }
        Ok(self.last)
    }

    fn find(&self, range: Range<u64>) -> Result<Run> {
        let run = |end, source| Ok(Run { start: range.start, end, source });
        match self.disk.next_extent(range.clone()) {
            Ok(Some(extent)) => run(extent.range.end, Some(extent.source)),
            Ok(None) => run(range.end, Some(Source::Zero { layer: None })),
            // No place in a file has these bytes, but reading serves them.
            Err(error) if error.kind() == ErrorKind::LogOverlay => {
                run(window_end(range.start, range.end), None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Where the window that starts at `at` ends: windows lie at multiples of their length.
fn window_end(at: u64, end: u64) -> u64 {
    end.min((at / WINDOW + 1) * WINDOW)
}
