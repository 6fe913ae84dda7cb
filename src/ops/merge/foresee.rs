//! What a merge is going to need.

use std::collections::HashSet;

use super::copy::BATCH;
use crate::chain::{Operation, path_of};
use crate::disk::{Disk, DiskExt, Source};
use crate::error::Result;
use crate::format::bat::{BITMAP_BLOCK_LEN, BlockLayout, ENTRY_LEN, PayloadState};
use crate::image::VhdxFile;
use crate::ops::{FileChangeKind, Forecast};
use crate::types::{BlockIndex, MIB};

/// Looks at each layer that goes into the next below it, the lowest first.
pub(super) fn forecast(op: &Operation<'_>, steps: &[usize], low_space: bool) -> Result<Forecast> {
    let images = op.images();
    let parent = &images[steps[0] + 1];
    let mut forecast = Forecast::on(op.host().as_ref(), path_of(parent)?)?;
    let mut blocks = Allocated::default();
    // What is there more than now, at its most and at the end of a step.
    let (mut more, mut most) = (0_i128, 0_i128);
    for layer in steps {
        let child = &images[*layer];
        let mut taken = 0;
        for extent in child.extents(0..child.geometry().size) {
            let extent = extent?;
            match extent.source {
                Source::Data { .. } => {
                    forecast.read += extent.range.end - extent.range.start;
                    taken += blocks.needed(parent, extent.range.start, extent.range.end)?;
                }
                Source::Zero { .. } | Source::Parent => {}
            }
        }
        let taken = taken + blocks.grown(parent, child.geometry().size);
        // Blocks that are given back before others are taken: never more than a batch of them.
        let peak =
            if low_space { taken.min(BATCH + u64::from(parent.block_size())) } else { taken };
        most = most.max(more + i128::from(peak));
        more += i128::from(taken) - i128::from(child.file_len());
        forecast.freed = forecast.freed.saturating_add(child.file_len());
        forecast.add(path_of(child)?, FileChangeKind::Removed);
    }
    forecast.written = forecast.read;
    forecast.peak = most.max(0) as u64;
    forecast.add(path_of(parent)?, FileChangeKind::Changed);
    let top = steps[steps.len() - 1];
    if let Some(above) = top.checked_sub(1) {
        forecast.add(path_of(&images[above])?, FileChangeKind::Changed);
    }
    Ok(forecast)
}

/// Blocks that the parent is going to have.
#[derive(Default)]
struct Allocated {
    payload: HashSet<u64>,
    bitmaps: HashSet<u64>,
    size: u64,
}

impl Allocated {
    /// Bytes that the parent's file is going to grow by to hold these bytes of the disk.
    fn needed(&mut self, parent: &VhdxFile, start: u64, end: u64) -> Result<u64> {
        let layout = parent.layout();
        let block_size = layout.block_size();
        let mut bytes = 0;
        for block in start / block_size..end.div_ceil(block_size) {
            let is_whole = start <= block * block_size && (block + 1) * block_size <= end;
            let is_inside = block * block_size < layout.size();
            if !is_inside {
                bytes += if self.payload.insert(block) { block_size } else { 0 };
                continue;
            }
            let entry = parent.bat_entry(layout.payload_index(BlockIndex(block)))?;
            let has_space = matches!(
                entry.payload_state(),
                PayloadState::FullyPresent | PayloadState::PartiallyPresent
            );
            if has_space || !self.payload.insert(block) {
                continue;
            }
            bytes += block_size;
            if parent.has_parent() && !is_whole {
                let chunk = layout.chunk_of(BlockIndex(block));
                let bitmap = parent.bat_entry(layout.bitmap_index(chunk))?;
                if bitmap.state_bits() != 6 && self.bitmaps.insert(chunk.0) {
                    bytes += BITMAP_BLOCK_LEN;
                }
            }
        }
        Ok(bytes)
    }

    /// Bytes for a larger block allocation table, where the disk grows.
    fn grown(&mut self, parent: &VhdxFile, size: u64) -> u64 {
        let old = self.size.max(parent.geometry().size);
        if size <= old {
            return 0;
        }
        self.size = size;
        let layout =
            |size| BlockLayout::new(parent.block_size(), parent.geometry().logical_sector, size);
        let needed = (layout(size).entries_reserved() * ENTRY_LEN).next_multiple_of(MIB);
        let last_block = u64::from(parent.block_size()) + BITMAP_BLOCK_LEN;
        let has_part = !old.is_multiple_of(parent.block_size().into());
        let zeroed = if parent.has_parent() && has_part { last_block } else { 0 };
        if needed > parent.bat_len() { needed + zeroed } else { zeroed }
    }
}
