//! Puts sector bitmaps and the states of their blocks right where the disk reads the same either way.

use std::collections::BTreeMap;

use super::blocks::{UNFINISHED, first_byte, has_marks, put_entries};
use super::work::{Outcome, Work};
use crate::error::Result;
use crate::format::bat::{BITMAP_BLOCK_LEN, BatEntry, BlockLayout, PayloadState};
use crate::image::{Core, Role};
use crate::ops::is_zero;
use crate::types::{BatIndex, BlockIndex, ChunkIndex, FileOffset, counted};

const OF_BITMAPS: &[&str] = &["bitmap.empty", "bitmap.full", "bitmap.stray", "bitmap.hidden"];
/// The unit in which bits are written.
const UNIT: usize = 512;

/// Marks full blocks as fully present and empty ones as not present, and clears bits that do not count.
pub(super) fn bits(work: &Work<'_>) -> Result<Outcome> {
    let image = work.open()?;
    if !image.has_parent() || image.check_claims().is_err() {
        return Ok(Outcome::Nothing);
    }
    if has_marks(&image) {
        return Ok(Outcome::refused(OF_BITMAPS, UNFINISHED));
    }
    let table = image.block_table();
    let mut chunks = Vec::new();
    let failed = table.entries(BatIndex(image.layout().entries_reserved()), |index, entry| {
        if let Role::Bitmap(chunk) = table.role(index)
            && table.claim(index, entry).is_some()
        {
            chunks.push((chunk, entry.offset()));
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let mut found = Found::default();
    for (chunk, at) in chunks {
        found.chunk(work, &image, chunk, at)?;
    }
    put_entries(work, &image, found.entries.iter())?;
    let Found { entries, strays, kept } = found;
    if entries.is_empty() && strays == 0 {
        return Ok(match kept {
            0 => Outcome::Nothing,
            _ => Outcome::refused(OF_BITMAPS, KEPT),
        });
    }
    let blocks = counted(entries.len() as u64, "block gets", "blocks get");
    let strays = counted(strays, "block", "blocks");
    Ok(Outcome::did(format!(
        "{blocks} the state that the sector bitmap gives; bits that do not count are cleared for {strays}"
    )))
}

const KEPT: &str = "a block without a bit holds data, which the bits may have lost";

#[derive(Default)]
struct Found {
    entries: BTreeMap<BatIndex, BatEntry>,
    /// Blocks whose bits are cleared.
    strays: u64,
    /// Blocks without a bit that hold data.
    kept: u64,
}

impl Found {
    fn chunk(
        &mut self,
        work: &Work<'_>,
        image: &Core,
        chunk: ChunkIndex,
        at: FileOffset,
    ) -> Result<()> {
        let layout = image.layout();
        let mut bits = vec![0; BITMAP_BLOCK_LEN as usize];
        work.read(&mut bits, at.get())?;
        let before = bits.clone();
        let first = chunk.0 * layout.chunk_ratio();
        let in_chunk = layout.chunk_ratio().min(layout.blocks().saturating_sub(first));
        let per_block = (layout.block_size() / layout.sector_size() / 8) as usize;
        for (i, bits) in (0..in_chunk).zip(bits.chunks_exact_mut(per_block)) {
            let block = BlockIndex(first + i);
            let index = layout.payload_index(block);
            let entry = image.bat_entry(index)?;
            let is_empty = is_zero(bits);
            if entry.payload_state() != PayloadState::PartiallyPresent {
                self.strays += u64::from(!is_empty);
                bits.fill(0);
            } else if is_empty {
                let start = entry.offset().get();
                match first_byte(work, start..start + layout.block_size())? {
                    None => drop(self.entries.insert(index, BatEntry(0))),
                    Some(_) => self.kept += 1,
                }
            } else if is_full(bits, layout, block) {
                self.entries.insert(index, BatEntry::new(6, entry.offset()));
                bits.fill(0);
            }
        }
        let mut place = at.get();
        for (new, old) in bits.chunks(UNIT).zip(before.chunks(UNIT)) {
            if new != old {
                work.write(new, place)?;
            }
            place += UNIT as u64;
        }
        Ok(())
    }
}

/// Whether all sectors that the block has on the disk have their bit.
fn is_full(bits: &[u8], layout: &BlockLayout, block: BlockIndex) -> bool {
    let in_disk = layout.block_size().min(layout.size() - layout.block_start(block).0);
    let sectors = in_disk.div_ceil(layout.sector_size());
    (0..sectors).all(|n| bits[(n / 8) as usize] >> (n % 8) & 1 == 1)
}
