//! What a merge is told, and what it returns.

use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::disk::LayerId;
use crate::ops::pace::Pace;
use crate::ops::progress::{Listener, Progress};
use crate::warning::Warning;

/// Merges a layer into its parent, or several layers into one ancestor: the points in between disappear, the disk
/// reads the same bytes as before, and the files of the merged layers are removed.
///
/// The chain may be in use, even a tip that is being merged. Until the parent durably holds everything, the
/// child's data covers it, so that the chain always reads correctly: after a crash or a failure it
/// opens with a warning, and [`resume`](Self::resume) completes the merge. Marks in both files record its state;
/// a child whose merge is complete is never opened over its parent again.
///
/// # A tip that is written to
///
/// A merge ends however fast its tip is written to, and whatever its [pace](Self::pace):
///
/// - First, everything that the tip holds is moved. Later writes to the part already moved are marked, in units of
///   64 KiB. The marks take at most 2 MiB of memory, enough for changes spread over 256 GiB; beyond that, the unit of
///   all marks doubles, up to 16 MiB for changes spread over 64 TiB.
/// - From then on each write goes to the tip and then to the parent too, and no more marks are made. The marked ranges
///   are moved at the same pace, 1 MiB at a time; a write to a range that is being moved waits. If a write to the
///   parent fails, the writer does not notice: the merge ends and can be resumed.
/// - Finally, writers wait once, while the remaining 4 MiB or less are moved and the files are flushed up to nine
///   times: the tip three times and the parent six times, usually two and four. Both files are flushed just
///   before that.
///
/// Only writes that fail, and may have been made in part, leave more to move. After four such rounds
/// each write waits 10 ms longer than in the round before, up to 100 ms, so that writers slow down but are not blocked.
///
/// The bytes that are moved and those that [writers sent to the parent](Merged::mirrored) add up to no more than the
/// tip held plus what was written meanwhile, counting each write in whole units.
///
/// ```no_run
/// use avhdx::OpenOptions;
/// use avhdx::ops::Merge;
///
/// let chain = OpenOptions::new().writable(true).open("web_3C4D.avhdx")?;
/// let child = chain.layers()[1].id;
/// let merged = Merge::new(child).run(&chain)?;
/// println!("{} bytes are in the parent now", merged.moved);
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Merge<'a> {
    pub(super) child: LayerId,
    pub(super) into: Option<LayerId>,
    pub(super) resumes: bool,
    pub(super) no_other_children: bool,
    pub(super) folders: Vec<PathBuf>,
    pub(super) low_space: bool,
    pub(super) shrink: bool,
    pub(super) share: bool,
    pub(super) keep_name: bool,
    pub(super) pace: Pace,
    pub(super) progress: Listener<'a>,
}

/// The result of a merge.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Merged {
    /// The path of the new tip, if the tip was merged. `None` also if its file was renamed or moved meanwhile
    /// and is not found in its folder; the warning `op.renamed` says so.
    pub tip: Option<PathBuf>,
    /// The files that were removed.
    pub removed: Vec<PathBuf>,
    /// Bytes of the disk that were moved into a parent, not counting zeros.
    pub moved: u64,
    /// Bytes that were written to the tip during the merge and sent to the parent at once, not counting zeros.
    pub mirrored: u64,
    /// How many of the moved bytes the file system was asked to share or copy itself.
    pub handed_over: u64,
    /// Bytes by which the parent's disk became shorter.
    pub cut: u64,
    /// Clean-up steps that failed. None of them affects the chain.
    pub warnings: Vec<Warning>,
}

impl Merged {
    /// The result of this merge and of a later one in the same chain.
    pub fn and(mut self, later: Self) -> Self {
        self.tip = later.tip.or(self.tip);
        self.removed.extend(later.removed);
        self.moved += later.moved;
        self.mirrored += later.mirrored;
        self.handed_over += later.handed_over;
        self.cut += later.cut;
        self.warnings.extend(later.warnings);
        self
    }
}

impl<'a> Merge<'a> {
    /// Merges the layer `child` into its parent.
    pub fn new(child: LayerId) -> Self {
        Self {
            child,
            into: None,
            resumes: false,
            no_other_children: false,
            folders: Vec::new(),
            low_space: false,
            shrink: false,
            share: true,
            keep_name: false,
            pace: Pace::new(),
            progress: Listener::default(),
        }
    }

    /// Completes an interrupted merge of the layer `child` into its parent, and what was requested with it: the merges
    /// of the layers directly above, if several were to be merged into one, and the name of the tip.
    pub fn resume(child: LayerId) -> Self {
        Self { resumes: true, ..Self::new(child) }
    }

    /// The same merge of another layer.
    pub(in crate::ops) fn of_child(mut self, child: LayerId) -> Self {
        self.child = child;
        self
    }

    /// Merges `child` and all layers between into `ancestor` instead of the next layer below.
    pub fn into_layer(mut self, ancestor: LayerId) -> Self {
        self.into = Some(ancestor);
        self
    }

    /// Asserts that the layers have no other children, if that cannot be determined because a file or
    /// folder cannot be read.
    pub fn no_other_children(mut self, yes: bool) -> Self {
        self.no_other_children = yes;
        self
    }

    /// Adds a folder to search for other children, besides the folders of the layers themselves.
    pub fn children_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.push(folder.into());
        self
    }

    /// Whether the child's blocks are freed as soon as they are durable in the parent. The chain reads correctly
    /// throughout, but the child loses its data step by step: the merge can only be completed. Space
    /// is freed every 64 MiB, or in smaller steps, down to one block of the child, if there is not enough space.
    pub fn low_space(mut self, yes: bool) -> Self {
        self.low_space = yes;
        self
    }

    /// Consents to losing data if a layer's disk is smaller than that of the layer below, which shrinks to the same
    /// size. No consent is needed if there is no data beyond the end.
    pub fn shrink(mut self, yes: bool) -> Self {
        self.shrink = yes;
        self
    }

    /// Whether to ask the host to copy bytes from file to file itself, sharing them if its file system
    /// can. The default is yes.
    pub fn share(mut self, yes: bool) -> Self {
        self.share = yes;
        self
    }

    /// Whether the new tip gets the path of the old one, if the tip is merged: machines that are configured with that
    /// path find the disk there. The names of the two files are exchanged in one step once the parent has everything,
    /// so that the path leads to the whole disk at any time. An exchange that the host refuses ends the merge, which can be
    /// resumed.
    ///
    /// The two files must lie in one folder, on a host that can exchange names; otherwise the warning
    /// `merge.name-not-kept` says that the tip has the parent's path. Merges of other layers change no tip.
    pub fn keep_name(mut self, yes: bool) -> Self {
        self.keep_name = yes;
        self
    }

    /// Calls `on` while the operation runs. A break stops it with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled);
    /// the merge can be [resumed](Self::resume).
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
        self
    }

    /// Limits the speed of the merge; it can be changed from other threads meanwhile.
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }
}
