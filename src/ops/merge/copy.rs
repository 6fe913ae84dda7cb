//! Moving what a layer holds into its parent, at a pace.

use std::ops::{ControlFlow, Range};

use crate::disk::{Disk, DiskExt, Source, Zeroing};
use crate::error::{Error, Result};
use crate::image::{Copier, VhdxFile};
use crate::mutants::planted;
use crate::ops::Progress;
use crate::ops::pace::Pace;
use crate::types::{DiskOffset, MIB};

/// Bytes that are moved between two looks at the pace and the caller's wishes.
const PIECE: u64 = 16 * MIB;
/// Bytes that are made durable at once, before their space in the child is given back.
pub(super) const BATCH: u64 = 64 * MIB;

/// How far a merge has come, how fast it may go, and whether it is to go on.
pub(super) struct Meter<'a> {
    pace: &'a Pace,
    done: u64,
    total: u64,
    on: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
}

impl<'a> Meter<'a> {
    pub(super) fn new(
        pace: &'a Pace,
        total: u64,
        on: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Self {
        Self { pace, done: 0, total, on }
    }

    pub(super) fn report(&mut self) -> Result<()> {
        match self.tell() {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::cancelled()),
        }
    }

    pub(super) fn tell(&mut self) -> ControlFlow<()> {
        (self.on)(Progress { done: self.done.min(self.total), total: self.total })
    }

    /// Waits until some of these bytes may be moved, and says how many, in whole pages.
    fn wait(&mut self, bytes: u64) -> Result<u64> {
        let bytes = self.pace.piece(bytes);
        let (done, total) = (self.done.min(self.total), self.total);
        match self.pace.wait(bytes, &mut || (self.on)(Progress { done, total })) {
            ControlFlow::Continue(()) => Ok(bytes),
            ControlFlow::Break(()) => Err(Error::cancelled()),
        }
    }
}

/// How bytes get from the child to the parent.
pub(super) struct Copy<'a> {
    pub(super) from: &'a VhdxFile,
    pub(super) to: &'a VhdxFile,
    pub(super) copier: Copier,
}

impl Copy<'_> {
    /// Moves what the child holds of these bytes of the disk, at the meter's pace, and says how many bytes of
    /// data that was.
    pub(super) fn paced(&self, range: Range<u64>, meter: &mut Meter<'_>) -> Result<u64> {
        let mut moved = 0;
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / BATCH + 1) * BATCH);
            let step = self.run(at..end, &mut |bytes| meter.wait(bytes))?;
            moved += step;
            meter.done += step;
            meter.report()?;
            at = end;
        }
        Ok(moved)
    }

    /// Moves what the child holds of these bytes. `before` is asked before each piece how much of it is to be moved
    /// at once.
    pub(super) fn run(
        &self,
        range: Range<u64>,
        before: &mut dyn FnMut(u64) -> Result<u64>,
    ) -> Result<u64> {
        let mut moved = 0;
        // Places that are found are read from before they may be given to others.
        let _pin = self.from.pin();
        for extent in self.from.extents(range) {
            let extent = extent?;
            let (mut at, end) = (extent.range.start, extent.range.end);
            match extent.source {
                Source::Parent => {}
                Source::Zero { .. } if planted("zeros-not-merged") => {}
                Source::Zero { .. } => self.to.write_zeroes(extent.range, Zeroing::MayUnmap)?,
                Source::Data { at: place, .. } => {
                    while at < end {
                        let len = before(PIECE.min(end - at))?;
                        let from = place + (at - extent.range.start);
                        self.to.take(DiskOffset(at), len, self.from, from, &self.copier)?;
                        moved += len;
                        at += len;
                    }
                }
            }
        }
        Ok(moved)
    }
}
