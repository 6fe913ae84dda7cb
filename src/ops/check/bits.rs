//! Compares sector bitmaps with the states of their blocks.

use super::findings::Findings;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BITMAP_BLOCK_LEN, BlockLayout};
use crate::ops::is_zero;
use crate::storage::Storage;
use crate::types::{BlockIndex, ChunkIndex, FileOffset, counted};

/// Blocks with remarkable sector bitmaps, counted over a whole image.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Partially present without a bit set.
    empty: BlockTally,
    /// Partially present with every bit set.
    full: BlockTally,
    /// Not partially present, but with bits set.
    stray: BlockTally,
    /// Partially present without a bit set, but holding data. The search stops at the first.
    hidden: BlockTally,
    /// How many of the empty ones were sampled.
    looked_into: u32,
}

/// How many blocks without a bit are sampled for data.
const MOST_LOOKED_INTO: u32 = 64;
/// Size of a sample in bytes; three are read from each block.
const SAMPLE: usize = 4096;

#[derive(Debug, Default)]
struct BlockTally {
    count: u64,
    /// The first block, and the file offset of its bits.
    first: Option<(BlockIndex, u64)>,
}

/// Checks the sector bitmap at `at`. `partial` lists the chunk's partially present blocks by their ascending index in
/// the chunk, with their file offsets.
pub(super) fn check(
    storage: &dyn Storage,
    at: FileOffset,
    layout: &BlockLayout,
    chunk: ChunkIndex,
    partial: &[(u32, FileOffset)],
    buffer: &mut Vec<u8>,
    totals: &mut Totals,
) -> Result<()> {
    buffer.resize(BITMAP_BLOCK_LEN as usize, 0);
    storage.read_exact_at(buffer, at.get()).map_err(|error| {
        Error::io("table.read", "cannot read a sector bitmap", error).at(at.get())
    })?;
    let first = chunk.0 * layout.chunk_ratio();
    let in_chunk = layout.chunk_ratio().min(layout.blocks().saturating_sub(first));
    let bytes_per_block = (layout.block_size() / layout.sector_size() / 8) as usize;
    let mut partial = partial.iter().copied().peekable();
    for (i, bits) in (0..in_chunk).zip(buffer.chunks_exact(bytes_per_block)) {
        let block = BlockIndex(first + i);
        let is_partial = partial.next_if(|(number, _)| u64::from(*number) == i);
        let place = at.get() + i * bytes_per_block as u64;
        let is_empty = is_zero(bits);
        let Some((_, payload)) = is_partial else {
            if !is_empty {
                totals.stray.add(block, place);
            }
            continue;
        };
        let in_disk = layout.block_size().min(layout.size() - layout.block_start(block).0);
        let sectors = in_disk.div_ceil(layout.sector_size());
        if is_empty {
            totals.empty.add(block, place);
            if totals.looked_into < MOST_LOOKED_INTO && totals.hidden.count == 0 {
                totals.looked_into += 1;
                if holds_data(storage, payload, in_disk) {
                    totals.hidden.add(block, place);
                }
            }
        } else if are_all_set(bits, sectors) {
            totals.full.add(block, place);
        }
    }
    Ok(())
}

/// Whether the start, the middle or the end of a block holds anything but zeros.
fn holds_data(storage: &dyn Storage, at: FileOffset, in_disk: u64) -> bool {
    let last = in_disk.saturating_sub(SAMPLE as u64);
    [0, last / 2, last].into_iter().any(|within| {
        let mut bytes = [0; SAMPLE];
        let place = at.get().checked_add(within);
        place.is_some_and(|place| storage.read_exact_at(&mut bytes, place).is_ok())
            && !is_zero(&bytes)
    })
}

fn are_all_set(bits: &[u8], sectors: u64) -> bool {
    let (whole, rest) = bits.split_at((sectors / 8) as usize);
    let last = (1_u8 << (sectors % 8)) - 1;
    whole.iter().all(|byte| *byte == 0xFF) && (last == 0 || rest[0] & last == last)
}

impl Totals {
    pub(super) fn report(&self, findings: &mut Findings) {
        if let Some((BlockIndex(block), place)) = self.hidden.first {
            let message =
                "partially present blocks hold data but no sector bits: their bits may be lost";
            findings.warning(
                Error::new(ErrorKind::Damaged, "bitmap.hidden", message)
                    .with_section("2.4")
                    .at(place)
                    .with_found(format_args!("data in block {block}, the first such block found"))
                    .with_expected("a bit set for each sector that the block holds"),
            );
        }
        for (code, message, tally) in [
            ("bitmap.empty", "partially present blocks with no sector in this file", &self.empty),
            ("bitmap.full", "partially present blocks with every sector in this file", &self.full),
            ("bitmap.stray", "bits set for blocks that are not partially present", &self.stray),
        ] {
            let Some((BlockIndex(block), place)) = tally.first else { continue };
            findings.info(
                Error::new(ErrorKind::Damaged, code, message)
                    .with_section("2.4")
                    .at(place)
                    .with_found(format_args!(
                        "{}, the first is {block}",
                        counted(tally.count, "block", "blocks")
                    ))
                    .with_expected("none"),
            );
        }
    }
}

impl BlockTally {
    fn add(&mut self, block: BlockIndex, place: u64) {
        self.count += 1;
        self.first.get_or_insert((block, place));
    }
}
