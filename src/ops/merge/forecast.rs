//! Predicts what a merge needs by following the same steps without moving anything.

use std::collections::{BTreeMap, HashSet};
use std::ops::{ControlFlow, Range};

use super::copy::{BATCH, CopyPiece, PIECE, next_extent};
use super::parameters::Merge;
use super::states::States;
use crate::chain::{Operation, path_of};
use crate::disk::{Extent, Source};
use crate::error::{Error, Result};
use crate::format::bat::{BITMAP_BLOCK_LEN, BlockLayout, ENTRY_LEN, PayloadState};
use crate::image::Core;
use crate::ops::{FileChangeKind, Forecast};
use crate::read::Layer;
use crate::types::{BlockIndex, ChunkIndex, DiskOffset, KIB, MIB, len};
use crate::write::fits_entry;

/// The unit in which hosts allocate space.
const PAGE: u64 = 4 * KIB;
/// How many blocks and pieces are processed between two checks for cancellation.
const CHECK_EVERY: u32 = 1 << 15;
/// How many ranges already searched for holes are remembered.
const MOST_PLACES: usize = 1 << 16;

/// Asks the caller at intervals whether to continue.
pub(super) struct CancelCheck<'a> {
    left: u32,
    ask: &'a mut dyn FnMut() -> ControlFlow<()>,
}

impl<'a> CancelCheck<'a> {
    pub(super) fn new(ask: &'a mut dyn FnMut() -> ControlFlow<()>) -> Self {
        Self { left: CHECK_EVERY, ask }
    }

    /// Counts one step.
    fn check(&mut self) -> Result<()> {
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            return Ok(());
        }
        self.left = CHECK_EVERY;
        match (self.ask)() {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::cancelled()),
        }
    }
}

/// Predicts the merge of each layer into the next one below, the lowest first. Also returns how many bytes to make
/// durable at once if space is short: as many as fit, down to one block.
pub(super) fn forecast(
    op: &Operation<'_>,
    steps: &[usize],
    merge: &Merge,
    cancel: &mut CancelCheck<'_>,
) -> Result<(Forecast, u64)> {
    let images: Vec<Layer> = op.images().into_iter().map(Layer::new).collect();
    let parent = &images[steps[0] + 1];
    let mut forecast = Forecast::on(op.host().as_ref(), path_of(parent)?)?;
    let blocks = steps.iter().map(|layer| u64::from(images[*layer].block_size()));
    let least = blocks.min().unwrap_or(BATCH);
    // Where the first change will allocate space.
    let end = parent.claims(0)?.end.max(parent.file_len());
    let mut batch = BATCH;
    let needs = loop {
        let needs = Needs::of(&images, steps, merge, (batch, end), cancel)?;
        let fits = forecast.available.is_none_or(|available| needs.peak <= available);
        if fits || !merge.low_space || batch <= least {
            break needs;
        }
        batch /= 2;
    };
    (forecast.read, forecast.written, forecast.peak) = (needs.read, needs.written, needs.peak);
    (forecast.cut, forecast.cut_data) = cut(&images, steps, cancel)?;
    forecast.may_cut = merge.shrink;
    for layer in steps {
        forecast.freed = forecast.freed.saturating_add(images[*layer].file_len());
        forecast.add(path_of(&images[*layer])?, FileChangeKind::Removed);
    }
    forecast.add(path_of(parent)?, FileChangeKind::Changed);
    if let Some(above) = steps[steps.len() - 1].checked_sub(1) {
        forecast.add(path_of(&images[above])?, FileChangeKind::Changed);
    }
    Ok((forecast, batch))
}

/// Returns by how much the parent's disk shrinks, and how many of those bytes its layers hold data for.
fn cut(images: &[Layer], steps: &[usize], cancel: &mut CancelCheck<'_>) -> Result<(u64, u64)> {
    let (mut cut, mut data) = (0, 0);
    let mut size = images[steps[0] + 1].geometry().size;
    // Each layer below, with the size up to which its data is still part of the disk.
    let mut below = vec![(&images[steps[0] + 1], size)];
    for layer in steps {
        let child = &images[*layer];
        let new = child.geometry().size;
        cut += size.saturating_sub(new);
        let mut lost = RangeSet::default();
        for (image, there) in below.iter_mut().filter(|(_, there)| *there > new) {
            let mut at = new;
            while let Some(extent) = image.by_itself().next_extent(at..*there)? {
                cancel.check()?;
                at = extent.range.end;
                if let Source::Data { .. } = extent.source {
                    // Two layers may hold the same bytes of the disk.
                    data += lost.add(extent.range).iter().map(len).sum::<u64>();
                }
            }
            *there = new;
        }
        below.push((child, new));
        size = new;
    }
    Ok((cut, data.min(cut)))
}

/// Bytes read and written, and the peak of additional space.
#[derive(Default)]
struct Needs {
    read: u64,
    written: u64,
    peak: u64,
}

impl Needs {
    fn of(
        images: &[Layer],
        steps: &[usize],
        merge: &Merge,
        (batch, end): (u64, u64),
        cancel: &mut CancelCheck<'_>,
    ) -> Result<Self> {
        let mut needs = Self::default();
        let mut parent = ParentModel::new(&images[steps[0] + 1], end);
        // Bytes freed in the children so far.
        let mut gone = 0;
        for (n, layer) in steps.iter().enumerate() {
            let child = &images[*layer];
            let size = child.geometry().size;
            parent.resize(size)?;
            let step = if merge.low_space { batch.max(child.block_size().into()) } else { size };
            let (mut at, mut given_back) = (0, 0);
            while at < size {
                let end = size.min((at / step + 1) * step);
                let moved = parent.pass(child, at..end, merge, cancel)?;
                needs.read += moved.bytes;
                let before = gone + given_back;
                needs.peak = needs.peak.max(parent.grown().saturating_sub(before));
                // Counts only what the host is sure to free.
                given_back += moved.held;
                at = end;
                let next = match moved.bytes {
                    0 => next_extent(child, at..size, at + MIB)?,
                    _ => None,
                };
                if let Some(extent) = next.filter(|extent| extent.source == Source::Parent) {
                    at = extent.range.end / step * step;
                    at = if extent.range.end == size { size } else { at.max(end) };
                }
            }
            if n + 1 < steps.len() {
                gone += held(child, 0..child.file_len())?;
            }
        }
        needs.written = needs.read + parent.zeroed;
        Ok(needs)
    }
}

/// What is moved from a child: bytes of data, and how many of them lie outside holes of its file.
#[derive(Default)]
struct MovedBytes {
    bytes: u64,
    held: u64,
}

/// An image as a merge into it or a resize will leave it.
pub(in crate::ops) struct ParentModel<'a> {
    image: &'a Core,
    layout: BlockLayout,
    /// How many entries the block allocation table has room for.
    entries: u64,
    /// The blocks and chunks that have existed throughout.
    kept: (u64, u64),
    states: States,
    bitmaps: HashSet<u64>,
    /// The file offset from which space is allocated.
    pub(in crate::ops) end: u64,
    /// Bytes of holes that get filled, and the ranges of the file already searched for them.
    filled: u64,
    looked_at: RangeSet,
    /// Bytes of zeros that are written.
    pub(in crate::ops) zeroed: u64,
    /// Whether the table does not stay in its place.
    pub(in crate::ops) moves_table: bool,
}

impl<'a> ParentModel<'a> {
    /// The image as it is, with new space from `end` on.
    pub(in crate::ops) fn new(image: &'a Core, end: u64) -> Self {
        let layout = *image.layout();
        Self {
            image,
            layout,
            entries: image.bat_entries(),
            kept: (layout.blocks(), layout.chunks()),
            states: States::default(),
            bitmaps: HashSet::new(),
            end,
            filled: 0,
            looked_at: RangeSet::default(),
            zeroed: 0,
            moves_table: false,
        }
    }

    pub(in crate::ops) fn resize(&mut self, size: u64) -> Result<()> {
        let old = self.layout;
        let sector = self.image.geometry().logical_sector;
        let new = BlockLayout::new(self.image.block_size(), sector, size);
        if size > old.size() {
            self.grow(&new)?;
        } else if size < old.size() {
            self.shrink(&new)?;
        }
        self.layout = new;
        let (blocks, chunks) = (new.blocks(), new.chunks());
        self.kept = (self.kept.0.min(blocks), self.kept.1.min(chunks));
        self.states.truncate(blocks);
        self.bitmaps.retain(|chunk| *chunk < chunks);
        Ok(())
    }

    fn grow(&mut self, new: &BlockLayout) -> Result<()> {
        let old = self.layout;
        // The part of the last block beyond the disk is zeroed.
        let end = DiskOffset(old.size());
        let within = old.within_block(end);
        if within > 0 {
            let block = old.block_of(end);
            match self.state(block)? {
                PayloadState::NotPresent if self.image.has_parent() => {
                    self.put(block, within..within, false)?;
                }
                PayloadState::FullyPresent | PayloadState::PartiallyPresent => {
                    self.zero(block, within..old.block_size())?;
                }
                _ => {}
            }
        }
        let (keeps, has_parent) = (self.image.keeps_blocks(), self.image.has_parent());
        let entries = if has_parent { new.entries_reserved() } else { new.entries_needed() };
        let first = old.payload_index(BlockIndex(old.blocks())).0;
        let stays = match has_parent || keeps {
            false => entries <= self.entries,
            true => fits_entry(self.image, &(first..entries), self.entries),
        };
        self.table(new, stays);
        if keeps && !has_parent {
            let bytes = (new.blocks() - old.blocks()) * new.block_size();
            self.take(bytes);
            self.zeroed += bytes;
        }
        Ok(())
    }

    fn shrink(&mut self, new: &BlockLayout) -> Result<()> {
        let old = self.layout;
        let first = old.payload_index(BlockIndex(new.blocks())).0;
        let last = match self.image.has_parent() {
            true => old.entries_reserved().min(self.entries),
            false => old.entries_needed(),
        };
        let stays = fits_entry(self.image, &(first..last), self.entries);
        self.table(new, stays);
        let end = DiskOffset(new.size());
        let within = old.within_block(end);
        if within > 0 {
            let block = old.block_of(end);
            let state = self.state(block)?;
            if matches!(state, PayloadState::FullyPresent | PayloadState::PartiallyPresent) {
                let in_disk = old.block_size().min(old.size() - old.block_start(block).0);
                self.zero(block, within..in_disk)?;
            }
        }
        Ok(())
    }

    /// Keeps the table in place or moves it to new space.
    fn table(&mut self, new: &BlockLayout, stays: bool) {
        if !stays {
            let bytes = new.table_len();
            self.moves_table = true;
            self.take(bytes);
            self.entries = bytes / ENTRY_LEN;
        }
    }

    /// Moves what a child holds of `range`.
    fn pass(
        &mut self,
        child: &Layer,
        range: Range<u64>,
        merge: &Merge,
        cancel: &mut CancelCheck<'_>,
    ) -> Result<MovedBytes> {
        let (block, size) = (self.layout.block_size(), self.layout.size());
        let (mut at, mut moved) = (range.start, MovedBytes::default());
        // The rest of the last extent: looking it up again would read all its entries again.
        let mut rest: Option<Extent> = None;
        while at < range.end {
            cancel.check()?;
            let is_rest = rest.is_some();
            let Some(extent) = rest.take().map_or_else(
                || child.by_itself().next_extent(at..range.end),
                |rest| Ok(Some(rest)),
            )?
            else {
                break;
            };
            let piece = CopyPiece::of(&extent, block, size, PIECE, u64::MAX);
            let end = match piece {
                CopyPiece::Parent(end) | CopyPiece::Zeros(end) => end,
                CopyPiece::Data(end) => at + merge.pace.piece(end - at),
            };
            // The extent may continue beyond the range that was looked up.
            if is_rest && end == extent.range.end {
                continue;
            }
            match piece {
                CopyPiece::Parent(_) => {}
                CopyPiece::Zeros(_) => self.zeros(at..end, cancel)?,
                CopyPiece::Data(_) => {
                    self.data(at..end)?;
                    moved.bytes += end - at;
                    if let (true, Source::Data { at: place, .. }) = (merge.low_space, extent.source)
                    {
                        moved.held += held(child, place.get()..place.get() + (end - at))?;
                    }
                }
            }
            rest = after(&extent, end);
            at = end;
        }
        Ok(moved)
    }

    fn data(&mut self, range: Range<u64>) -> Result<()> {
        for (block, part, is_whole) in self.parts(range) {
            self.put(block, part, is_whole)?;
        }
        Ok(())
    }

    fn zeros(&mut self, range: Range<u64>, cancel: &mut CancelCheck<'_>) -> Result<()> {
        for (block, part, is_whole) in self.parts(range) {
            cancel.check()?;
            let state = self.state(block)?;
            let holds =
                matches!(state, PayloadState::FullyPresent | PayloadState::PartiallyPresent);
            let shows_parent = state == PayloadState::NotPresent && self.image.has_parent();
            if is_whole && !(state == PayloadState::FullyPresent && self.image.keeps_blocks()) {
                if holds || shows_parent {
                    self.states.put(block.0, PayloadState::Zero);
                }
            } else if holds || shows_parent {
                self.zeroed += len(&part);
                self.put(block, part, is_whole)?;
            }
        }
        Ok(())
    }

    /// Writes zeros to part of a block that has space.
    fn zero(&mut self, block: BlockIndex, part: Range<u64>) -> Result<()> {
        self.zeroed += len(&part);
        self.fill(block, part)
    }

    /// Writes to part of a block; `is_whole` if that is all that the disk has of it.
    fn put(&mut self, block: BlockIndex, part: Range<u64>, is_whole: bool) -> Result<()> {
        let state = match self.state(block)? {
            PayloadState::FullyPresent | PayloadState::PartiallyPresent => {
                return self.fill(block, part);
            }
            PayloadState::NotPresent if self.image.has_parent() && !is_whole => {
                self.bitmap(block)?;
                PayloadState::PartiallyPresent
            }
            _ => PayloadState::FullyPresent,
        };
        self.take(self.layout.block_size());
        self.states.put(block.0, state);
        Ok(())
    }

    /// Writes to part of a block that has space, which may fill holes if it has existed from the start.
    fn fill(&mut self, block: BlockIndex, part: Range<u64>) -> Result<()> {
        if self.states.get(block.0).is_some() || block.0 >= self.kept.0 {
            return Ok(());
        }
        let at = self.image.bat_entry(self.image.layout().payload_index(block))?.offset().get();
        let (start, end) = (at + part.start / PAGE * PAGE, at + part.end.next_multiple_of(PAGE));
        let end = end.min(self.image.file_len());
        // Space beyond the end of the file is counted as growth.
        let pages = Some(start..end).filter(|pages| !pages.is_empty());
        for new in pages.map(|pages| self.looked_at.add(pages)).unwrap_or_default() {
            self.filled += len(&new) - held(self.image, new)?;
        }
        Ok(())
    }

    /// Splits a range at blocks: the block, the range within it, and whether that is all that the disk has of it.
    fn parts(
        &self,
        range: Range<u64>,
    ) -> impl Iterator<Item = (BlockIndex, Range<u64>, bool)> + use<> {
        let (block_size, size) = (self.layout.block_size(), self.layout.size());
        (range.start / block_size..range.end.div_ceil(block_size)).map(move |block| {
            let start = block * block_size;
            let of_disk = start..size.min(start + block_size);
            let part = range.start.max(of_disk.start)..range.end.min(of_disk.end);
            (BlockIndex(block), part.start - start..part.end - start, part == of_disk)
        })
    }

    fn state(&self, block: BlockIndex) -> Result<PayloadState> {
        if let Some(state) = self.states.get(block.0) {
            return Ok(state);
        }
        if block.0 < self.kept.0 {
            let index = self.image.layout().payload_index(block);
            return Ok(self.image.bat_entry(index)?.payload_state());
        }
        Ok(match (self.image.has_parent(), self.image.keeps_blocks()) {
            (true, _) => PayloadState::Zero,
            (false, true) => PayloadState::FullyPresent,
            (false, false) => PayloadState::NotPresent,
        })
    }

    /// Gives the block's chunk a sector bitmap block.
    fn bitmap(&mut self, block: BlockIndex) -> Result<()> {
        let ChunkIndex(chunk) = self.layout.chunk_of(block);
        if chunk < self.kept.1 {
            let index = self.image.layout().bitmap_index(ChunkIndex(chunk));
            if self.image.bat_entry(index)?.state_bits() == 6 {
                return Ok(());
            }
        }
        if self.bitmaps.insert(chunk) {
            self.take(BITMAP_BLOCK_LEN);
        }
        Ok(())
    }

    /// Grows the file, starting at a multiple of 1 MiB.
    fn take(&mut self, bytes: u64) {
        if bytes > 0 {
            self.end = self.end.next_multiple_of(MIB) + bytes;
        }
    }

    /// The bytes that the file takes up in addition.
    pub(in crate::ops) fn grown(&self) -> u64 {
        // The file of a tip may grow meanwhile.
        self.end.saturating_sub(self.image.file_len()) + self.filled
    }
}

/// Returns the part of an extent from `at` on.
fn after(extent: &Extent, at: u64) -> Option<Extent> {
    let Range { start, end } = extent.range;
    let source = match extent.source {
        Source::Data { layer, at: place } => Source::Data { layer, at: place + (at - start) },
        other => other,
    };
    (at < end).then_some(Extent { range: at..end, source })
}

/// Counts the bytes of a range of the image's file that are not holes.
fn held(image: &Core, range: Range<u64>) -> Result<u64> {
    let (file, mut at, mut bytes) = (image.bare_storage(), range.start, 0);
    while at < range.end {
        let data = file.next_data(at).map_err(|error| {
            let message = "cannot tell holes from data in the file";
            Error::io("merge.holes", message, error).in_file(image.name()).at(at)
        })?;
        let Some(data) = data.filter(|data| data.end > at) else { break };
        bytes += data.end.min(range.end).saturating_sub(data.start.max(at));
        at = data.end;
    }
    Ok(bytes)
}

/// Disjoint ranges, by start and end. Bounded in number: ranges added beyond the bound count as new every time, so
/// that they are counted too often rather than not at all.
#[derive(Debug, Default)]
struct RangeSet(BTreeMap<u64, u64>);

impl RangeSet {
    /// Adds a range and returns the parts of it that are new.
    fn add(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        let (mut whole, mut new, mut at) = (range.clone(), Vec::new(), range.start);
        let before = self.0.range(..range.start).next_back().map(|(start, _)| *start);
        let first = before.unwrap_or(range.start);
        let met: Vec<(u64, u64)> = self
            .0
            .range(first..=range.end)
            .map(|(start, end)| (*start, *end))
            .filter(|(_, end)| *end >= range.start)
            .collect();
        for (start, end) in met {
            self.0.remove(&start);
            whole = whole.start.min(start)..whole.end.max(end);
            new.push(at..start.max(at));
            at = at.max(end);
        }
        new.push(at..range.end.max(at));
        new.retain(|part| !part.is_empty());
        if self.0.len() < MOST_PLACES {
            self.0.insert(whole.start, whole.end);
        }
        new
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeSet;

    use avhdx_testkit::rng::Rng;

    use super::*;

    #[test]
    fn ranges_say_what_of_them_is_new() {
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let (mut spans, mut known) = (RangeSet::default(), BTreeSet::new());
            for _ in 0..40 {
                let start = rng.below(60);
                let range = start..start + 1 + rng.below(9);
                let expected: Vec<u64> = range.clone().filter(|at| known.insert(*at)).collect();
                let new = spans.add(range).into_iter().flatten().collect::<Vec<u64>>();
                assert_eq!(new, expected, "seed {seed}");
                let ends: Vec<_> = spans.0.iter().flat_map(|(start, end)| [*start, *end]).collect();
                assert!(ends.windows(2).all(|two| two[0] < two[1]), "seed {seed}: {spans:?}");
            }
        }
    }
}
