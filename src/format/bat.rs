//! The block allocation table, \[MS-VHDX\] 2.5, and the arithmetic around it, 2.4 and 2.5.

use byteorder::{ByteOrder, LittleEndian};

use crate::types::{BatIndex, BlockIndex, ChunkIndex, DiskOffset, FileOffset, MIB};

/// Bytes of one entry.
pub(crate) const ENTRY_LEN: u64 = 8;
/// Bytes of a sector bitmap block, whatever the block size.
pub(crate) const BITMAP_BLOCK_LEN: u64 = MIB;
/// Sectors that one sector bitmap block speaks for.
const SECTORS_PER_CHUNK: u64 = 8 * BITMAP_BLOCK_LEN;

/// One entry of the table: bits 0–2 are the state, 20–63 the place in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatEntry(pub(crate) u64);

/// What a payload block's entry says, \[MS-VHDX\] 2.5.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PayloadState {
    NotPresent,
    Undefined,
    Zero,
    Unmapped,
    FullyPresent,
    PartiallyPresent,
    /// State 5, which a draft of the format had for UNMAPPED and QEMU still reads as that.
    DraftUnmapped,
    /// State 4, which nothing ever meant.
    Reserved,
}

impl BatEntry {
    pub(crate) fn new(state: u8, at: FileOffset) -> Self {
        Self(u64::from(state & 7) | at.get() & !(MIB - 1))
    }

    /// The entry that `bytes` start with.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        Self(LittleEndian::read_u64(bytes))
    }

    pub(crate) fn to_bytes(self) -> [u8; ENTRY_LEN as usize] {
        self.0.to_le_bytes()
    }

    /// The three bits of the state as they are.
    pub(crate) fn state_bits(self) -> u8 {
        (self.0 & 7) as u8
    }

    pub(crate) fn payload_state(self) -> PayloadState {
        match self.state_bits() {
            0 => PayloadState::NotPresent,
            1 => PayloadState::Undefined,
            2 => PayloadState::Zero,
            3 => PayloadState::Unmapped,
            5 => PayloadState::DraftUnmapped,
            6 => PayloadState::FullyPresent,
            7 => PayloadState::PartiallyPresent,
            _ => PayloadState::Reserved,
        }
    }

    /// Bits 3 to 19, which mean nothing and are zero.
    pub(crate) fn reserved_bits(self) -> u64 {
        self.0 & (MIB - 1) & !7
    }

    /// Where the block lies, whether or not the state gives that a meaning.
    pub(crate) fn offset(self) -> FileOffset {
        FileOffset::new(self.0 & !(MIB - 1))
    }
}

/// How a disk is divided into blocks and chunks, and where their entries stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockLayout {
    block_shift: u32,
    sector_shift: u32,
    size: u64,
}

impl BlockLayout {
    /// `block_size` and `sector` are powers of two in bytes, `size` is the virtual disk's.
    pub(crate) fn new(block_size: u32, sector: u32, size: u64) -> Self {
        Self {
            block_shift: block_size.trailing_zeros(),
            sector_shift: sector.trailing_zeros(),
            size,
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn block_size(&self) -> u64 {
        1 << self.block_shift
    }

    pub(crate) fn sector_size(&self) -> u64 {
        1 << self.sector_shift
    }

    /// Its logarithm to base 2.
    pub(crate) fn sector_shift(&self) -> u32 {
        self.sector_shift
    }

    /// Virtual bytes that one sector bitmap block speaks for.
    pub(crate) fn chunk_size(&self) -> u64 {
        SECTORS_PER_CHUNK << self.sector_shift
    }

    /// Payload blocks in a chunk: payload entries before each bitmap entry.
    pub(crate) fn chunk_ratio(&self) -> u64 {
        1 << self.ratio_shift()
    }

    /// Payload blocks of the disk; the last one may reach past its end.
    pub(crate) fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block_size())
    }

    pub(crate) fn chunks(&self) -> u64 {
        self.blocks().div_ceil(self.chunk_ratio())
    }

    pub(crate) fn block_of(&self, offset: DiskOffset) -> BlockIndex {
        BlockIndex(offset.0 >> self.block_shift)
    }

    pub(crate) fn within_block(&self, offset: DiskOffset) -> u64 {
        offset.0 & (self.block_size() - 1)
    }

    pub(crate) fn block_start(&self, block: BlockIndex) -> DiskOffset {
        DiskOffset(block.0 << self.block_shift)
    }

    /// Whether an entry places a sector bitmap block rather than a payload block.
    pub(crate) fn is_bitmap_index(&self, index: BatIndex) -> bool {
        index.0 % (self.chunk_ratio() + 1) == self.chunk_ratio()
    }

    pub(crate) fn chunk_of(&self, block: BlockIndex) -> ChunkIndex {
        ChunkIndex(block.0 >> self.ratio_shift())
    }

    pub(crate) fn payload_index(&self, block: BlockIndex) -> BatIndex {
        BatIndex(block.0 + (block.0 >> self.ratio_shift()))
    }

    pub(crate) fn bitmap_index(&self, chunk: ChunkIndex) -> BatIndex {
        BatIndex(chunk.0 * (self.chunk_ratio() + 1) + self.chunk_ratio())
    }

    /// The chunk whose sector bitmap block an entry places.
    pub(crate) fn chunk_of_bitmap(&self, index: BatIndex) -> ChunkIndex {
        ChunkIndex(index.0 / (self.chunk_ratio() + 1))
    }

    /// The payload block that an entry places, which is no sector bitmap block's.
    pub(crate) fn block_of_payload(&self, index: BatIndex) -> BlockIndex {
        BlockIndex(index.0 - index.0 / (self.chunk_ratio() + 1))
    }

    /// The number of the sector's bit in its chunk's sector bitmap.
    pub(crate) fn bit_of(&self, offset: DiskOffset) -> u64 {
        (offset.0 & (self.chunk_size() - 1)) >> self.sector_shift
    }

    /// Entries that a reader needs: up to the last payload block's.
    pub(crate) fn entries_needed(&self) -> u64 {
        match self.blocks() {
            0 => 0,
            blocks => self.payload_index(BlockIndex(blocks - 1)).0 + 1,
        }
    }

    /// Entries that a writer reserves: whole chunks, so that the image can become a differencing one.
    pub(crate) fn entries_reserved(&self) -> u64 {
        self.chunks() * (self.chunk_ratio() + 1)
    }

    /// The chunk ratio is a power of two: a chunk holds 2^23 sectors, a block at most 2^28 bytes.
    fn ratio_shift(&self) -> u32 {
        SECTORS_PER_CHUNK.trailing_zeros() + self.sector_shift - self.block_shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For each block size and sector size the numbers are walked entry by entry: after every
    /// `2^23 * sector / block` payload entries comes one of a sector bitmap block.
    #[test]
    fn indices_are_those_of_a_walk_through_the_table() {
        for (block_shift, sector) in (20..=28).flat_map(|shift| [(shift, 512), (shift, 4096)]) {
            let block_size = 1_u32 << block_shift;
            let ratio = (1_u64 << 23) * u64::from(sector) / u64::from(block_size);
            let blocks = 2 * ratio + 3;
            let layout = BlockLayout::new(block_size, sector, blocks * u64::from(block_size) - 512);
            assert_eq!(
                (layout.chunk_ratio(), layout.blocks(), layout.chunks()),
                (ratio, blocks, 3)
            );
            let mut index = 0;
            for block in (0..blocks).map(BlockIndex) {
                assert_eq!(layout.payload_index(block), BatIndex(index));
                assert_eq!(layout.chunk_of(block), ChunkIndex(block.0 / ratio));
                index += 1;
                if (block.0 + 1) % ratio == 0 {
                    assert_eq!(layout.bitmap_index(layout.chunk_of(block)), BatIndex(index));
                    index += 1;
                }
            }
            assert_eq!(layout.entries_needed(), index);
            assert_eq!(layout.entries_reserved(), 3 * (ratio + 1));
        }
    }
}
