//! Moves the data of a layer into its parent, at a given pace.

use std::cell::Cell;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Extent, Source, Zeroing};
use crate::error::{Error, Result};
use crate::ops::Progress;
use crate::ops::pace::Pace;
use crate::read::Layer;
use crate::types::{DiskOffset, MIB};
use crate::write::{ChangeTracker, Copier, Writer};

/// How many bytes are moved between two checks of the pace and for cancellation.
pub(super) const PIECE: u64 = 16 * MIB;
/// The same while writers have to wait for the range.
const HELD_PIECE: u64 = MIB;
/// How many blocks are zeroed between two checks for cancellation.
const ZERO_BLOCKS: u64 = 64;
/// How many places are remembered until they are forgotten.
const MOST_PLACES: usize = 4096;
/// How many bytes of the disk are processed between two progress reports.
pub(super) const BATCH: u64 = 64 * MIB;

/// Tracks progress and pace, and asks the caller whether to continue.
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
        match self.notify() {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::cancelled()),
        }
    }

    pub(super) fn notify(&mut self) -> ControlFlow<()> {
        (self.on)(Progress { done: self.done.min(self.total), total: self.total })
    }

    /// Waits until some of `bytes` may be moved; returns how many, in whole pages.
    fn wait(&mut self, bytes: u64) -> Result<u64> {
        let bytes = self.pace.piece(bytes);
        let (done, total) = (self.done.min(self.total), self.total);
        match self.pace.wait(bytes, &mut || (self.on)(Progress { done, total })) {
            ControlFlow::Continue(()) => Ok(bytes),
            ControlFlow::Break(()) => Err(Error::cancelled()),
        }
    }
}

/// Copies what a child holds into its parent.
pub(super) struct LayerCopy<'a> {
    pub(super) from: Layer,
    pub(super) to: &'a Writer,
    pub(super) copier: Copier,
    /// Tracks concurrent writes, if there may be any.
    pub(super) tracker: Option<Arc<ChangeTracker>>,
    /// How far the pass over the disk got.
    pub(super) passed: Cell<u64>,
    /// Places in the child's file that have been read, and need not stay in memory.
    pub(super) read: &'a Places,
}

/// Places in a file.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<Vec<Range<u64>>>);

impl Places {
    fn add(&self, place: Range<u64>) {
        let mut places = self.held();
        let is_full = places.len() >= MOST_PLACES;
        match places.last_mut() {
            Some(last) if last.end == place.start => last.end = place.end,
            // What is not remembered stays in memory longer.
            _ if is_full => {}
            _ => places.push(place),
        }
    }

    /// Takes all places that were added so far.
    pub(super) fn take(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut *self.held())
    }

    fn held(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What to do next at an offset, and up to where.
pub(super) enum CopyPiece {
    /// The child has nothing up to this offset.
    Parent(u64),
    /// Zeros up to this offset.
    Zeros(u64),
    /// Data up to this offset, or less if the pace demands it.
    Data(u64),
}

/// Returns the first extent of `range`, limited to `near` unless the child defers to its parent there. A longer
/// extent would be looked up again for each piece of it.
pub(super) fn next_extent(image: &Layer, range: Range<u64>, near: u64) -> Result<Option<Extent>> {
    let near = near.min(range.end);
    let extent = image.by_itself().next_extent(range.start..near)?;
    match &extent {
        Some(Extent { range: found, source: Source::Parent })
            if found.end == near && near < range.end =>
        {
            image.by_itself().next_extent(range)
        }
        _ => Ok(extent),
    }
}

impl CopyPiece {
    /// Returns the first piece of an extent, for a parent with the given block and disk size. Zeros cover either whole
    /// blocks of the parent, at most `blocks` of them, which can then be unmapped, or part of a single block.
    pub(super) fn of(extent: &Extent, block: u64, size: u64, most: u64, blocks: u64) -> Self {
        let Range { start, end } = extent.range;
        let block_end = (start / block + 1) * block;
        match extent.source {
            Source::Parent => Self::Parent(end),
            Source::Zero { .. } => {
                // The last block may extend beyond the disk.
                let is_last = end == size;
                let whole = if is_last { end } else { end / block * block };
                let is_whole = start.is_multiple_of(block) && whole > start;
                Self::Zeros(match is_whole {
                    true => whole.min(start.saturating_add(blocks.saturating_mul(block))),
                    false => end.min(block_end).min(start + most),
                })
            }
            Source::Data { .. } => {
                Self::Data(end.min(start + most).min((start / BATCH + 1) * BATCH))
            }
        }
    }
}

impl LayerCopy<'_> {
    /// Moves what the child holds of `range`, at the meter's pace, and reports the bytes of each step to `moved`;
    /// returns how many bytes of data that was.
    pub(super) fn pass(
        &self,
        range: Range<u64>,
        meter: &mut Meter<'_>,
        moved: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<u64> {
        self.paced(range, PIECE, meter, &mut |at, bytes| {
            self.passed.set(at);
            moved(bytes)
        })
    }

    /// The same while writers to the range wait.
    pub(super) fn pass_while_held(&self, range: Range<u64>, meter: &mut Meter<'_>) -> Result<u64> {
        self.paced(range, HELD_PIECE, meter, &mut |_, _| Ok(()))
    }

    fn paced(
        &self,
        range: Range<u64>,
        most: u64,
        meter: &mut Meter<'_>,
        passed: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<u64> {
        let (block, size) =
            (u64::from(self.to.core().block_size()), self.to.core().geometry().size);
        let (mut moved, mut at) = (0, range.start);
        // One block more, because the first may be partial.
        let near = |at| (at / block + 1 + ZERO_BLOCKS) * block;
        while let Some(extent) = next_extent(&self.from, at..range.end, near(at))? {
            let end = match CopyPiece::of(&extent, block, size, most, ZERO_BLOCKS) {
                CopyPiece::Parent(end) | CopyPiece::Zeros(end) => end,
                CopyPiece::Data(end) => at + meter.wait(end - at)?,
            };
            // Until here, writes may change the extent; from here on they are tracked.
            let held = self.hold_writers(end);
            let step = self.copy_range(at..end)?;
            drop(held);
            moved += step;
            meter.done += step;
            passed(end, step)?;
            if end / BATCH > at / BATCH || end == range.end {
                meter.report()?;
            }
            at = end;
        }
        Ok(moved)
    }

    /// Returns the first offset in `range` at which the child holds something.
    pub(super) fn next_data(&self, range: Range<u64>) -> Result<Option<u64>> {
        let mut at = range.start;
        while let Some(extent) = next_extent(&self.from, at..range.end, at + MIB)? {
            if extent.source != Source::Parent {
                return Ok(Some(at));
            }
            drop(self.hold_writers(extent.range.end));
            let again = self.from.by_itself().next_extent(extent.range.clone())?;
            let end = match again {
                Some(again) if again.source == Source::Parent => again.range.end,
                _ => at,
            };
            if end != extent.range.end {
                return Ok(Some(end));
            }
            at = end;
        }
        Ok(None)
    }

    fn hold_writers(&self, end: u64) -> Option<crate::write::HeldRange<'_>> {
        self.tracker.as_ref().map(|tracker| tracker.advance(end))
    }

    /// Moves what the child holds of `range`.
    pub(super) fn copy_range(&self, range: Range<u64>) -> Result<u64> {
        let (mut moved, mut at) = (0, range.start);
        // Keeps the file offsets found below from being reused until they are read.
        let _pin = self.from.pin();
        while let Some(extent) = self.from.by_itself().next_extent(at..range.end)? {
            let Range { start, end } = extent.range;
            match extent.source {
                Source::Parent => {}
                Source::Zero { .. } => self.to.write_zeroes(start..end, Zeroing::MayUnmap)?,
                Source::Data { at: place, .. } => {
                    let from = self.from.storage();
                    let len = end - start;
                    self.to.copy_from(DiskOffset(start), len, from, place, &self.copier)?;
                    self.read.add(place.get()..place.get() + len);
                    moved += len;
                }
            }
            at = end;
        }
        Ok(moved)
    }
}
