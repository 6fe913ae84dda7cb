//! Lists the ranges in which two disks differ.

use std::fmt;
use std::ops::{ControlFlow, Range};

use super::pair::DiskPair;
use super::{Listener, Progress};
use crate::disk::Disk;
use crate::error::{Error, Result};

/// Lists the ranges in which two disks differ: two points in time of a chain or of two chains, or any other disks.
///
/// The answer comes from the tables alone, and no data is read, unless [`content`](Self::content) asks for it. For
/// two points with layers in common, it has exactly the ranges that the other layers of either decide, for instance
/// what was written from one checkpoint to the next, or on either of two branches:
///
/// - Where a sector bitmap tells sectors apart, \[MS-VHDX\] 2.5.1.2, these are the sectors that were written.
/// - A block that a layer holds as a whole is listed as a whole.
/// - Zeros are left out where the tables show zeros on both disks.
///
/// A layer counts as common to two chains if both have the same file open, with the same `DataWriteGuid`, and so have
/// all layers below it. If they have none in common, everything is listed that either holds as data.
///
/// If one disk is longer, all that it has past the end of the other is a difference.
///
/// [`DiffChain::changes`](crate::DiffChain::changes) tells besides where the bytes are, for an older and a newer point
/// of one chain. [`Compare`](super::Compare) stops at the first byte that differs.
///
/// ```no_run
/// use avhdx::DiffChain;
/// use avhdx::ops::Diff;
///
/// let tip = DiffChain::open("web_77F0.avhdx")?;
/// let monday = tip.view(tip.layers()[1].id)?;
/// for range in Diff::new().content(true).run(&monday, &tip)? {
///     let range = range?;
///     println!("{} bytes at {}", range.end - range.start, range.start);
/// }
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Diff<'a> {
    content: bool,
    progress: Listener<'a>,
}

/// The ranges in which two disks differ, in bytes. Made by [`Diff::run`]; ends after the first error.
///
/// The ranges ascend and do not touch each other. Memory grows neither with the disks nor with their number.
///
/// It holds on to the layers as they were at the call. Merges of these layers are refused with
/// [`ErrorKind::InUse`](crate::ErrorKind::InUse) until it is dropped. A disk that is written to meanwhile may be listed
/// as it was before or after each write.
#[must_use = "it finds a range when it is asked for one"]
pub struct Differences<'a> {
    pair: DiskPair<'a>,
    content: bool,
    progress: Listener<'a>,
    at: u64,
    /// The range that was read last, of which the part from `at` on is still to be compared.
    read: Range<u64>,
    /// The smaller logical sector, in which contents are compared.
    sector: u64,
    /// Found, and not yet returned.
    ahead: Option<Range<u64>>,
    failed: Option<Error>,
    /// Both disks are examined to their ends.
    has_ended: bool,
    is_over: bool,
}

impl<'a> Diff<'a> {
    /// Lists what may differ, from the tables alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether to read what may differ, and to list only logical sectors whose bytes do; those of the smaller size if
    /// the disks have different ones. Nothing else is read.
    pub fn content(mut self, yes: bool) -> Self {
        self.content = yes;
        self
    }

    /// Calls `on` while ranges are searched for, with the bytes of the disks that are examined. A break makes the next
    /// item [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
        self
    }

    /// Starts to compare `a` with `b`, in either order.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the host cannot tell files apart. The items are errors as for
    /// [`Disk::next_extent`], with [`content`](Self::content) also as for [`Disk::read_at`], but never
    /// [`ErrorKind::LogOverlay`](crate::ErrorKind::LogOverlay); and
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
    pub fn run(self, a: &'a dyn Disk, b: &'a dyn Disk) -> Result<Differences<'a>> {
        let sector = a.geometry().logical_sector.min(b.geometry().logical_sector);
        Ok(Differences {
            pair: DiskPair::new(a, b)?,
            content: self.content,
            progress: self.progress,
            at: 0,
            read: 0..0,
            sector: sector.into(),
            ahead: None,
            failed: None,
            has_ended: false,
            is_over: false,
        })
    }
}

impl Differences<'_> {
    /// Whether the disks are points of chains that have layers in common. Otherwise, the tables tell nothing of data that
    /// both disks hold.
    pub fn has_common_layers(&self) -> bool {
        self.pair.has_common_layers()
    }

    /// The next range, of which another may be the continuation.
    fn step(&mut self) -> Result<Option<Range<u64>>> {
        let [a, b] = self.pair.sizes();
        let (common, total) = (a.min(b), a.max(b));
        while self.at < common {
            if let Some(range) = self.differing_sectors() {
                return Ok(Some(range));
            }
            self.progress.report(self.at, total)?;
            let from = self.at;
            if self.content {
                let (until, has_read) = self.pair.read(from, common)?;
                match has_read {
                    true => self.read = from..until,
                    false => self.at = until,
                }
            } else {
                let (until, may_differ) = self.pair.look(from, common)?;
                self.at = until;
                if may_differ {
                    return Ok(Some(from..until));
                }
            }
        }
        if self.has_ended {
            return Ok(None);
        }
        self.progress.report(total, total)?;
        self.has_ended = true;
        Ok((common < total).then_some(common..total))
    }

    /// The first sectors that differ, of what was read and not yet compared.
    fn differing_sectors(&mut self) -> Option<Range<u64>> {
        if self.at >= self.read.end {
            return None;
        }
        let found = self.pair.differing(self.read.start, self.at, self.sector);
        self.at = found.as_ref().map_or(self.read.end, |found| found.end);
        found
    }

    /// The next range with all that continues it.
    fn joined(&mut self) -> Result<Option<Range<u64>>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let first = match self.ahead.take() {
            Some(range) => Some(range),
            None => self.step()?,
        };
        let Some(mut range) = first else { return Ok(None) };
        loop {
            match self.step() {
                Ok(Some(next)) if next.start == range.end => range.end = next.end,
                Ok(next) => self.ahead = next,
                // The range comes first.
                Err(error) => self.failed = Some(error),
            }
            // Nothing touches it any more.
            if self.ahead.is_some() || self.failed.is_some() || self.has_ended {
                return Ok(Some(range));
            }
        }
    }
}

impl Iterator for Differences<'_> {
    type Item = Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let item = self.joined().transpose();
        self.is_over = !matches!(item, Some(Ok(_)));
        item
    }
}

impl fmt::Debug for Differences<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Differences")
            .field("content", &self.content)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}
