//! What a compaction is told, and what it returns.

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;

#[cfg(doc)]
use crate::error::ErrorKind;
use crate::ops::pace::Pace;
use crate::ops::progress::{Listener, Progress};

/// Makes the file of the tip shorter: blocks move down into unused space, and the file is cut behind the last one.
///
/// What the disk reads as stays the same, unless ranges are [declared free](Self::free). Space becomes unused in levels:
///
/// - **Tables**, always: holes that nothing names, table entries that name space although they need none, and sector
///   bitmap blocks without a partially present block. Reads the block allocation table alone.
/// - **[Content](Self::content)**: reads all data, and drops blocks of zeros. In a differencing image it also drops
///   blocks that the parent shows with the same bytes. A partially present block goes as a whole or stays as it is:
///   clearing the bits of some of its sectors would free nothing.
/// - **[Free](Self::free)**: drops the whole blocks in ranges of the disk that the caller declares free. They read as
///   zeros afterwards, so the image gets another identity.
///
/// A block moves at most once, and only if it reaches beyond the end that the file is cut at. That end is the lowest one
/// below which there is room for all of them: holes that are shorter than a block stay, as does what lies before the
/// metadata and the log, which do not move. The block allocation table moves first, if that lowers the end: to a hole, or
/// to as much of its own place as it needs.
///
/// The chain may be in use. A write waits only while its block is moved; all writes wait while the free space is
/// determined, which takes as long as reading the block allocation table, and while 1 MiB of sector bitmap is moved. What
/// is written meanwhile behind the end is moved too, up to three times. A table that moves is copied while all writes
/// wait, and the tip is opened anew: it has another [`LayerId`](crate::LayerId) then. Planned writes must have ended when the operation
/// begins and ends.
///
/// A crash, a kill or a failure leaves each block in its old or its new place, and the disk reads as before. Starting the
/// operation again does the rest. Moves need little additional space on hosts that can give back parts of a file: see
/// [`CompactForecast::peak`].
///
/// ```no_run
/// use avhdx::OpenOptions;
/// use avhdx::ops::Compact;
///
/// let chain = OpenOptions::new().writable(true).open("web.vhdx")?;
/// let done = Compact::new().content(true).run(&chain)?;
/// println!("{} bytes shorter", done.file_len_before - done.file_len);
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Compact<'a> {
    pub(super) content: bool,
    pub(super) punch: bool,
    pub(super) free: Vec<Range<u64>>,
    pub(super) with_children: bool,
    pub(super) folders: Vec<PathBuf>,
    pub(super) pace: Pace,
    pub(super) progress: Listener<'a>,
}

/// What a compaction does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Compacted {
    /// Bytes of the file that are unused, or named only by entries that need no space.
    pub tables: u64,
    /// Bytes of the file with data that need not be there; `None` if the data was not read.
    pub content: Option<u64>,
    /// Bytes of the file with data of ranges that were declared free.
    pub free: u64,
    /// Bytes of the disk that the image holds data for.
    pub data: u64,
    /// Bytes of data and of sector bitmaps that move.
    pub moved: u64,
    /// Bytes of the block allocation table that are written to another place in the file; 0 if it stays in its place.
    pub table: u64,
    /// Bytes of the file that are [punched](Compact::punch), as far as the host stores data there; `None` if blocks move
    /// instead.
    pub punched: Option<u64>,
    /// Length of the file before, in bytes.
    pub file_len_before: u64,
    /// Length of the file afterwards, in bytes.
    pub file_len: u64,
}

/// What a compaction will do if nothing else changes the image meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CompactForecast {
    /// The result.
    pub outcome: Compacted,
    /// Bytes of data that will be read, without those that move.
    pub read: u64,
    /// Peak of the additional space on the volume of the image in bytes: the blocks that move until their old space is
    /// given back, the sector bitmap blocks and the block allocation table; all that moves on a host that cannot give back a part of a file. It is
    /// no more than the holes of the host in the space that they move to: space that the file has there already is used
    /// without any more.
    pub peak: u64,
    /// Free bytes on that volume, if the host can tell.
    pub available: Option<u64>,
    /// A path on that volume.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(super) on: PathBuf,
}

impl<'a> Compact<'a> {
    /// A compaction by the tables alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether to read all data and drop what need not be in the file.
    pub fn content(mut self, yes: bool) -> Self {
        self.content = yes;
        self
    }

    /// Declares ranges of the disk free, in bytes: their contents are lost as far as they cover whole blocks. In a child
    /// they read as zeros too, whatever its parent has there. What is written there between the moment when the caller
    /// finds out that they are free and the end of the operation may be lost, so nobody else may use the disk meanwhile.
    pub fn free(mut self, ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        self.free.extend(ranges);
        self
    }

    /// Whether to give unused space back to the host where it is, instead of moving blocks and cutting the file: what no
    /// block uses, the sectors that a partially present block does not have, and what the last block has behind the end of
    /// the disk. The file keeps its length and its tables, and becomes sparse. A fixed disk can be compacted in no other
    /// way; its blocks stay allocated.
    ///
    /// Hyper-V refuses sparse files on Windows, and may refuse a copy that keeps the holes.
    pub fn punch(mut self, yes: bool) -> Self {
        self.punch = yes;
        self
    }

    /// Consents to changing the file of an image that has children. They do not notice: the disk and its identity stay.
    /// Refused all the same if ranges are [declared free](Self::free).
    pub fn with_children(mut self, yes: bool) -> Self {
        self.with_children = yes;
        self
    }

    /// Searches for children in this folder too, besides those of the chain's images.
    pub fn children_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.push(folder.into());
        self
    }

    /// Limits how fast data is read and moved. A block is moved as a whole.
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// Calls `on` while the operation runs. A break stops it with [`ErrorKind::Cancelled`]; what was moved until then
    /// stays, and the file is cut as far as possible.
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
        self
    }
}
