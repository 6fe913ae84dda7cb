//! Finds out what a compaction would do, from the tables and, if asked for, from the data.

use std::ops::Range;

use super::parameters::{Compact, Compacted};
use crate::error::Result;
use crate::format::bat::BatEntry;
use crate::image::{Core, Packing, Role, Target};
use crate::read::Layers;
use crate::types::{FileOffset, MIB};
use crate::write::{Appraiser, Unneeded, Worth, has_data};

/// What a compaction would do.
pub(super) struct Survey {
    pub(super) outcome: Compacted,
    /// Bytes of the host's pages that what moves takes.
    pub(super) taken: u64,
    packing: Packing,
    target: Target,
}

impl Survey {
    /// Surveys an image. Data is read through `disk`, if there is one and the compaction asks for it; `before` is called
    /// for each block then.
    ///
    /// # Errors
    /// Those of `before`, and of reading tables and data.
    pub(super) fn of(
        image: &Core,
        compact: &Compact<'_>,
        disk: Option<Layers<'_>>,
        before: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Self> {
        let mut appraiser = disk.filter(|_| compact.content).map(Appraiser::new);
        let data = data_len(image)?;
        let free = whole_blocks(image, &compact.free);
        let mut unneeded = Unneeded::default();
        let mut dropped = Dropped::default();
        let mut punched = 0;
        let mut packing = image.packing(|_| Ok(false))?;
        image.each_entry(|index, entry| {
            let mut kept = entry;
            let claim = image.claim_of(index, entry);
            dropped.end = dropped.end.max(claim.as_ref().map_or(0, |claim| claim.end()));
            if let Some(claim) = claim.filter(has_data) {
                let Role::Payload(block) = claim.role else { return Ok(()) };
                let nothing = BatEntry::new(2, FileOffset::new(0));
                let start = image.layout().block_start(block).0;
                let next = free.partition_point(|free| free.end <= start);
                if free.get(next).is_some_and(|free| free.start <= start) {
                    (kept, dropped.free) = (nothing, dropped.free + claim.len);
                } else if let Some(appraiser) = &mut appraiser {
                    before(claim.needed)?;
                    if appraiser.worth(block)? != Worth::Own {
                        (kept, dropped.content) = (nothing, dropped.content + claim.len);
                    }
                }
            }
            let is_cleared = unneeded.cleared(image, index, kept).is_some();
            // Only a file that is cut has its tables cleared.
            let is_used = compact.punch || !is_cleared;
            if let Some(claim) = image.claim_of(index, kept).filter(|_| is_used) {
                packing.add(claim.role, claim.entry.offset(), claim.len);
                if compact.punch {
                    image.each_gap(&claim, |gap| {
                        punched += image.stored_in(gap)?;
                        Ok(())
                    })?;
                }
            }
            Ok(())
        })?;
        let target = packing.target();
        let (mut moved, mut taken) = (0, 0);
        if compact.punch {
            for hole in packing.holes(image.file_len()) {
                punched += image.stored_in(hole)?;
            }
        }
        image.each_claim(|claim| {
            if claim.end() > target.end && packing.has(&claim) {
                moved += image.present_len(&claim)?;
                taken += image.pages_len(&claim)?;
            }
            Ok(())
        })?;
        let file_len_before = image.file_len();
        let unused = packing.unused(file_len_before);
        // A change extends the file to hold everything that is claimed.
        let changes = dropped.content + dropped.free > 0;
        let len = if changes { file_len_before.max(dropped.end) } else { file_len_before };
        let is_shorter = target.end < len && !compact.punch;
        let outcome = Compacted {
            tables: unused.saturating_sub(dropped.content + dropped.free),
            content: appraiser.map(|_| dropped.content),
            free: dropped.free,
            data,
            moved: if is_shorter { moved } else { 0 },
            file_len_before,
            punched: compact.punch.then_some(punched),
            file_len: if is_shorter { target.end } else { len },
        };
        Ok(Self { outcome, taken: if is_shorter { taken } else { 0 }, packing, target })
    }

    /// Bytes of the sector bitmap blocks that would move.
    pub(super) fn moved_bitmaps(&self) -> u64 {
        self.target.bitmaps * MIB
    }

    /// Bytes of the unused space before the end that the file is cut at for which the host stores nothing.
    ///
    /// # Errors
    /// If the host cannot tell holes from data.
    pub(super) fn holes(&self, image: &Core) -> Result<u64> {
        self.packing
            .holes(self.target.end)
            .try_fold(0, |sum, hole| Ok(sum + (hole.end - hole.start) - image.stored_in(hole)?))
    }
}

/// Bytes of the disk for which the image has data, in whole blocks.
///
/// # Errors
/// If the tables cannot be read.
pub(super) fn data_len(image: &Core) -> Result<u64> {
    let mut len = 0;
    image.each_claim(|claim| {
        len += if has_data(&claim) { claim.needed } else { 0 };
        Ok(())
    })?;
    Ok(len)
}

/// The whole blocks in ranges of the disk, in order, each once: a block that ends with the disk is whole.
pub(super) fn whole_blocks(image: &Core, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let (block, size) = (image.layout().block_size(), image.layout().size());
    let whole = |range: &Range<u64>| {
        let end = if range.end == size { size } else { range.end / block * block };
        range.start.next_multiple_of(block)..end
    };
    let mut whole: Vec<_> =
        ranges.iter().map(whole).filter(|range| range.start < range.end).collect();
    whole.sort_unstable_by_key(|range| range.start);
    whole.dedup_by(|next, last| {
        let is_joined = next.start <= last.end;
        if is_joined {
            last.end = last.end.max(next.end);
        }
        is_joined
    });
    whole
}

/// Data that would be dropped.
#[derive(Default)]
struct Dropped {
    /// End of the last claim before that.
    end: u64,
    content: u64,
    free: u64,
}
