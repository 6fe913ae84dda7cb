//! What a merge is going to need: the same way as that of the merge, with nothing moved.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::Merge;
use super::copy::{BATCH, PIECE, Piece};
use crate::chain::{Operation, path_of};
use crate::disk::{Disk, Source};
use crate::error::Result;
use crate::format::bat::{BITMAP_BLOCK_LEN, BlockLayout, PayloadState};
use crate::image::VhdxFile;
use crate::ops::{FileChangeKind, Forecast};
use crate::types::{BlockIndex, ChunkIndex, MIB};

/// Looks at each layer that goes into the next below it, the lowest first. Says beside the forecast how many bytes are
/// to be made durable at once where space is short: as many as it allows, down to a block.
pub(super) fn forecast(
    op: &Operation<'_>,
    steps: &[usize],
    merge: &Merge,
) -> Result<(Forecast, u64)> {
    let images = op.images();
    let parent = &images[steps[0] + 1];
    let mut forecast = Forecast::on(op.host().as_ref(), path_of(parent)?)?;
    let blocks = steps.iter().map(|layer| u64::from(images[*layer].block_size()));
    let least = blocks.min().unwrap_or(BATCH);
    // As the first change has it.
    let end = parent.claims(0)?.end.max(parent.file_len());
    let mut batch = BATCH;
    let needs = loop {
        let needs = Needs::of(&images, steps, merge, batch, end)?;
        let fits = forecast.available.is_none_or(|available| needs.peak <= available);
        if fits || !merge.low_space || batch <= least {
            break needs;
        }
        batch /= 2;
    };
    (forecast.read, forecast.written, forecast.peak) = (needs.read, needs.written, needs.peak);
    (forecast.cut, forecast.cut_data) = cut(&images, steps)?;
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

/// By how much the parent's disk gets shorter, and how much of that its layers hold data for.
fn cut(images: &[Arc<VhdxFile>], steps: &[usize]) -> Result<(u64, u64)> {
    let (mut cut, mut data) = (0, 0);
    let mut below = vec![&images[steps[0] + 1]];
    let mut size = below[0].geometry().size;
    for layer in steps {
        let child = &images[*layer];
        let new = child.geometry().size;
        cut += size.saturating_sub(new);
        for image in below.iter().filter(|image| image.geometry().size > new) {
            let (mut at, end) = (new, size.min(image.geometry().size));
            while let Some(extent) = image.next_extent(at..end)? {
                if let Source::Data { .. } = extent.source {
                    data += extent.range.end - extent.range.start;
                }
                at = extent.range.end;
            }
        }
        below.push(child);
        size = new;
    }
    Ok((cut, data))
}

/// What is read and written, and how much more than now the files take up at their most.
#[derive(Default)]
struct Needs {
    read: u64,
    written: u64,
    peak: u64,
}

impl Needs {
    fn of(
        images: &[Arc<VhdxFile>],
        steps: &[usize],
        merge: &Merge,
        batch: u64,
        end: u64,
    ) -> Result<Self> {
        let mut needs = Self::default();
        let mut parent = Parent::new(&images[steps[0] + 1], end);
        // What the children gave up so far, with their files or before that.
        let mut gone = 0;
        for layer in steps {
            let child = &images[*layer];
            let size = child.geometry().size;
            parent.resize(size)?;
            let step = if merge.low_space { batch.max(child.block_size().into()) } else { size };
            let (mut at, mut given_back) = (0, 0);
            while at < size {
                let end = size.min((at / step + 1) * step);
                let moved = parent.pass(child, at..end, merge)?;
                needs.read += moved;
                needs.peak = needs.peak.max(parent.grown().saturating_sub(gone + given_back));
                // No more than the host is sure to get back.
                given_back += moved;
                at = end;
                if let Some(extent) = child.next_extent(at..size)?.filter(|_| moved == 0)
                    && extent.source == Source::Parent
                {
                    at = extent.range.end / step * step;
                    at = if extent.range.end == size { size } else { at.max(end) };
                }
            }
            gone += child.file_len();
        }
        needs.written = needs.read + parent.zeroed;
        Ok(needs)
    }
}

/// The parent as it is going to be.
struct Parent<'a> {
    image: &'a VhdxFile,
    layout: BlockLayout,
    /// Blocks and chunks that were there from the start and ever since.
    kept: (u64, u64),
    states: HashMap<u64, PayloadState>,
    bitmaps: HashSet<u64>,
    /// Where new space begins.
    end: u64,
    /// Zeros that are written.
    zeroed: u64,
}

impl<'a> Parent<'a> {
    fn new(image: &'a VhdxFile, end: u64) -> Self {
        let layout = *image.layout();
        let kept = (layout.blocks(), layout.chunks());
        let (states, bitmaps) = (HashMap::new(), HashSet::new());
        Self { image, layout, kept, states, bitmaps, end, zeroed: 0 }
    }

    fn resize(&mut self, size: u64) -> Result<()> {
        let old = self.layout;
        let sector = self.image.geometry().logical_sector;
        self.layout = BlockLayout::new(self.image.block_size(), sector, size);
        let (blocks, chunks) = (self.layout.blocks(), self.layout.chunks());
        if size > old.size() {
            // After a merge of a smaller layer between, only the table is foreseen.
            let (bytes, filled) = match old.size() == self.image.geometry().size {
                true => self.image.grown_by(size)?,
                false => (0, None),
            };
            self.take(bytes);
            if let Some(block) = filled
                && self.state(block)? == PayloadState::NotPresent
            {
                self.bitmap(block)?;
                self.states.insert(block.0, PayloadState::PartiallyPresent);
            }
        }
        self.kept = (self.kept.0.min(blocks), self.kept.1.min(chunks));
        self.states.retain(|block, _| *block < blocks);
        self.bitmaps.retain(|chunk| *chunk < chunks);
        Ok(())
    }

    /// Moves what a child holds of these bytes, and says how many bytes of data that is.
    fn pass(&mut self, child: &VhdxFile, range: Range<u64>, merge: &Merge) -> Result<u64> {
        let (block, size) = (self.layout.block_size(), self.layout.size());
        let (mut at, mut moved) = (range.start, 0);
        while let Some(extent) = child.next_extent(at..range.end)? {
            at = match Piece::of(&extent, block, size, PIECE) {
                Piece::Parent(end) => end,
                Piece::Zeros(end) => {
                    self.zeros(at..end)?;
                    end
                }
                Piece::Data(end) => {
                    let end = at + merge.pace.piece(end - at);
                    self.data(at..end)?;
                    moved += end - at;
                    end
                }
            };
        }
        Ok(moved)
    }

    fn data(&mut self, range: Range<u64>) -> Result<()> {
        for (block, _, is_whole) in self.parts(range) {
            self.put(block, is_whole)?;
        }
        Ok(())
    }

    fn zeros(&mut self, range: Range<u64>) -> Result<()> {
        for (block, len, is_whole) in self.parts(range) {
            let state = self.state(block)?;
            let holds =
                matches!(state, PayloadState::FullyPresent | PayloadState::PartiallyPresent);
            let shows_parent = state == PayloadState::NotPresent && self.image.has_parent();
            if is_whole && !(holds && self.image.keeps_blocks()) {
                if holds || shows_parent {
                    self.states.insert(block.0, PayloadState::Zero);
                }
            } else if holds || shows_parent {
                self.zeroed += len;
                self.put(block, is_whole)?;
            }
        }
        Ok(())
    }

    /// Something is written to a block, to all of it or to a part.
    fn put(&mut self, block: BlockIndex, is_whole: bool) -> Result<()> {
        let state = match self.state(block)? {
            PayloadState::FullyPresent | PayloadState::PartiallyPresent => return Ok(()),
            PayloadState::NotPresent if self.image.has_parent() && !is_whole => {
                self.bitmap(block)?;
                PayloadState::PartiallyPresent
            }
            _ => PayloadState::FullyPresent,
        };
        self.take(self.layout.block_size());
        self.states.insert(block.0, state);
        Ok(())
    }

    /// The blocks of a range: how many bytes of each, and whether those are all that the disk has of it.
    fn parts(&self, range: Range<u64>) -> impl Iterator<Item = (BlockIndex, u64, bool)> + use<> {
        let (block_size, size) = (self.layout.block_size(), self.layout.size());
        (range.start / block_size..range.end.div_ceil(block_size)).map(move |block| {
            let of_disk = block * block_size..size.min((block + 1) * block_size);
            let part = range.start.max(of_disk.start)..range.end.min(of_disk.end);
            (BlockIndex(block), part.end - part.start, part == of_disk)
        })
    }

    fn state(&self, block: BlockIndex) -> Result<PayloadState> {
        if let Some(state) = self.states.get(&block.0) {
            return Ok(*state);
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

    /// The chunk of a block has a sector bitmap block from now on.
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

    /// The file grows, from a whole MiB on.
    fn take(&mut self, bytes: u64) {
        if bytes > 0 {
            self.end = self.end.next_multiple_of(MIB) + bytes;
        }
    }

    fn grown(&self) -> u64 {
        self.end - self.image.file_len()
    }
}
