//! Operations on whole disks. Each is a struct that is configured by its methods and started by `run`.
//!
//! | Operation | What it does |
//! |---|---|
//! | [`Export`] | writes the flat disk to a file (sparse) or a stream |
//! | [`Import`] | takes in a disk from a stream |
//! | [`Check`] | checks an image and its parents against the format |
//! | [`Repair`] | repairs an image as far as the file proves what belongs there |
//! | [`UndoRepair`] | restores an image as it was before a repair |
//! | [`AcceptLoss`] | makes a damaged image writable again, and lists what it lost |
//! | [`Compare`] | finds the first byte in which two disks differ |
//! | [`Diff`] | lists the ranges in which two points in time, or two disks, differ |
//! | [`Compact`] | makes the file of an image shorter |
//! | [`Measure`] | computes the size of a copy |
//! | [`Reparent`] | gives an image another parent, after proving that the disk stays the same |
//! | [`Rebase`] | puts an image on another base, and takes in what that has differently |
//! | [`Relink`] | updates recorded parent paths after files were moved |
//! | [`Explain`] | shows, layer by layer, where a byte comes from |
//! | [`Checkpoint`] | freezes the tip and continues in a new child |
//! | [`Merge`] | merges a layer into its parent without changing the disk |
//! | [`Delete`] | gives up a point in time and keeps all others |
//! | [`DeleteBranch`] | removes an image and everything that lies on it |
//! | [`Label`] | gives a point in time another label |
//! | [`EditMetadata`] | changes metadata items of users, and the identity of the disk |
//! | [`Provision`] | makes a dynamic image fixed, or a fixed one dynamic, in place |
//! | [`Resize`] | gives the disk another size |
//! | [`Rescue`] | reads what is left of a ruined image, and grades it |
//! | [`Revert`] | returns to an earlier point, in a new tip |
//! | [`clear_drafts`] | removes unfinished files that killed programs left in a folder |
//! | [`forest`] | finds the images in folders and their parents |
//!
//! Operations that move bytes, or look through many tables or files, report [`Progress`] to a callback, if they are given one with `on_progress`; it can stop
//! them. Operations that change a chain have a [`Forecast`], leave the chain readable throughout, and are refused if they
//! would cut off other images.
//!
//! If a callback panics, it is not called again: the operation stops as if the callback had asked it to, and the panic
//! resumes afterwards.

mod accept_loss;
mod check;
mod checkpoint;
mod child;
mod compact;
mod compare;
mod delete;
mod delete_branch;
mod diff;
mod edit_metadata;
mod explain;
mod export;
mod forecast;
pub mod forest;
mod held;
mod import;
mod label;
mod measure;
mod merge;
mod new_parent;
mod pace;
mod pair;
mod progress;
mod provision;
mod rebase;
mod relink;
mod repair;
mod reparent;
mod rescue;
mod resize;
mod revert;

use std::ops::Range;

pub use accept_loss::{AcceptLoss, Loss, LossKind, Losses};
pub use check::{Check, CheckedLayer, Finding, Remedy, Report, Severity, Unlisted};
pub use checkpoint::{Checkpoint, Checkpointed};
pub use compact::{Compact, CompactForecast, Compacted};
pub use compare::{Compare, Comparison, Difference};
pub use delete::Delete;
pub use delete_branch::{DeleteBranch, DeletedBranch};
pub use diff::{Diff, Differences};
pub use edit_metadata::EditMetadata;
pub use explain::{
    BitFacts, BitmapFacts, BlockFacts, EntryFacts, Explain, Explanation, LayerAnswer, Verdict,
};
pub use export::{Export, Exported};
pub use forecast::{FileChange, FileChangeKind, Forecast};
pub use import::{Import, Imported};
pub use label::Label;
pub use measure::{Measure, Measured};
pub use merge::{Merge, Merged};
pub use pace::Pace;
pub use progress::Progress;
pub use provision::{Provision, Provisioned};
pub use rebase::{Rebase, Rebased};
pub use relink::{Relink, Relinked, RelinkedImage};
pub use repair::{Repair, RepairLeft, RepairPlan, RepairStep, Repaired, UndoRepair, Undone};
pub use reparent::{Reparent, Reparented};
pub use rescue::{Grade, Loose, Piece, Pieces, Placement, Rescue, Ruin, Trace};
pub use resize::{Resize, ResizeForecast, Resized};
pub use revert::{Revert, Reverted};

pub use crate::write::clear_drafts;

use crate::disk::{Disk, Source};
use crate::error::{ErrorKind, Result};
use crate::image::is_zero;
use crate::types::MIB;

use progress::{CallerPanic, Listener};

/// How many bytes are read at once.
const WINDOW: u64 = 2 * MIB;

/// A contiguous range of a disk and the source of its bytes.
#[derive(Clone, Copy, Debug)]
struct DiskRun {
    start: u64,
    end: u64,
    /// `None` if the bytes are readable but lie at no place in a file.
    source: Option<Source>,
}

impl DiskRun {
    /// Whether the bytes are known to be zeros without reading them.
    fn is_zero(&self) -> bool {
        matches!(self.source, Some(Source::Zero { .. }))
    }
}

/// The runs of a disk, of which the last one is remembered.
struct DiskRuns<'a> {
    disk: &'a dyn Disk,
    size: u64,
    last: DiskRun,
}

impl<'a> DiskRuns<'a> {
    fn new(disk: &'a dyn Disk) -> Self {
        let none = DiskRun { start: 0, end: 0, source: None };
        Self { disk, size: disk.geometry().size, last: none }
    }

    /// Returns the run that contains the byte at `at`, possibly starting before it. `at` lies within the disk; a run is
    /// looked up again if it is left and returned to.
    fn at(&mut self, at: u64) -> Result<DiskRun> {
        if at >= self.last.end || at < self.last.start {
            self.last = self.find(at..self.size)?;
        }
        Ok(self.last)
    }

    fn find(&self, range: Range<u64>) -> Result<DiskRun> {
        let run = |end, source| Ok(DiskRun { start: range.start, end, source });
        match self.disk.next_extent(range.clone()) {
            Ok(Some(extent)) => run(extent.range.end, Some(extent.source)),
            Ok(None) => run(range.end, Some(Source::Zero { layer: None })),
            // The bytes lie at no place in a file, but can be read.
            Err(error) if error.kind() == ErrorKind::LogOverlay => {
                run(window_end(range.start, range.end), None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Returns where the window that contains `at` ends: windows start at multiples of their length.
fn window_end(at: u64, end: u64) -> u64 {
    end.min((at / WINDOW + 1) * WINDOW)
}
