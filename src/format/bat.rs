//! The block allocation table, \[MS-VHDX\] 2.5, and the arithmetic of blocks and chunks, 2.4 and 2.5.

use byteorder::{ByteOrder, LittleEndian};

use crate::types::{BatIndex, BlockIndex, ChunkIndex, DiskOffset, FileOffset, MIB};

/// Size of an entry in bytes.
pub(crate) const ENTRY_LEN: u64 = 8;
/// Size of a sector bitmap block in bytes, for every block size.
pub(crate) const BITMAP_BLOCK_LEN: u64 = MIB;
/// How many sectors a sector bitmap block covers.
const SECTORS_PER_CHUNK: u64 = 8 * BITMAP_BLOCK_LEN;

/// An entry of the table: bits 0 to 2 hold the state, bits 20 to 63 the file offset in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatEntry(pub(crate) u64);

/// The state of a payload block, \[MS-VHDX\] 2.5.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PayloadState {
    NotPresent,
    Undefined,
    Zero,
    Unmapped,
    FullyPresent,
    PartiallyPresent,
    /// State 5: UNMAPPED in a draft of the format, and still in QEMU.
    DraftUnmapped,
    /// State 4, which was never used.
    Reserved,
}

impl BatEntry {
    pub(crate) fn new(state: u8, at: FileOffset) -> Self {
        Self(u64::from(state & 7) | at.get() & !(MIB - 1))
    }

    /// Reads the entry at the start of `bytes`.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        Self(LittleEndian::read_u64(bytes))
    }

    pub(crate) fn to_bytes(self) -> [u8; ENTRY_LEN as usize] {
        let mut bytes = [0; ENTRY_LEN as usize];
        LittleEndian::write_u64(&mut bytes, self.0);
        bytes
    }

    /// The entry that these bits are.
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The three state bits.
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

    /// Bits 3 to 19, which must be zero.
    pub(crate) fn reserved_bits(self) -> u64 {
        self.0 & (MIB - 1) & !7
    }

    /// The file offset of the block, even if the state does not use it.
    pub(crate) fn offset(self) -> FileOffset {
        FileOffset::new(self.0 & !(MIB - 1))
    }
}

/// How a disk is divided into blocks and chunks, and the indexes of their entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockLayout {
    block_shift: u32,
    sector_shift: u32,
    size: u64,
}

impl BlockLayout {
    /// `block_size` and `sector` are powers of two in bytes; `size` is that of the virtual disk.
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

    /// The base-2 logarithm of the sector size.
    pub(crate) fn sector_shift(&self) -> u32 {
        self.sector_shift
    }

    /// How many bytes of the disk a sector bitmap block covers.
    pub(crate) fn chunk_size(&self) -> u64 {
        SECTORS_PER_CHUNK << self.sector_shift
    }

    /// How many payload blocks a chunk has: payload entries between bitmap entries.
    pub(crate) fn chunk_ratio(&self) -> u64 {
        1 << self.ratio_shift()
    }

    /// How many payload blocks the disk has; the last one may extend beyond its end.
    pub(crate) fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block_size())
    }

    /// How many bytes all payload blocks take up, with the sector bitmap blocks if the image has a parent.
    pub(crate) fn len_of_all(&self, has_parent: bool) -> u64 {
        let bitmaps = if has_parent { self.chunks() * BITMAP_BLOCK_LEN } else { 0 };
        self.blocks() * self.block_size() + bitmaps
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

    /// Whether an entry belongs to a sector bitmap block rather than a payload block.
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

    /// The chunk that a bitmap entry belongs to.
    pub(crate) fn chunk_of_bitmap(&self, index: BatIndex) -> ChunkIndex {
        ChunkIndex(index.0 / (self.chunk_ratio() + 1))
    }

    /// The payload block that a payload entry belongs to.
    pub(crate) fn block_of_payload(&self, index: BatIndex) -> BlockIndex {
        BlockIndex(index.0 - index.0 / (self.chunk_ratio() + 1))
    }

    /// The index of the sector's bit in the sector bitmap of its chunk.
    pub(crate) fn bit_of(&self, offset: DiskOffset) -> u64 {
        (offset.0 & (self.chunk_size() - 1)) >> self.sector_shift
    }

    /// How many entries a reader needs: up to that of the last payload block.
    pub(crate) fn entries_needed(&self) -> u64 {
        match self.blocks() {
            0 => 0,
            blocks => self.payload_index(BlockIndex(blocks - 1)).0 + 1,
        }
    }

    /// How many entries a writer reserves: whole chunks, so that the image can become a differencing one.
    pub(crate) fn entries_reserved(&self) -> u64 {
        self.chunks() * (self.chunk_ratio() + 1)
    }

    /// Length of a table with [all entries](Self::entries_reserved), in bytes. A region is never empty: a disk without a
    /// byte has one too.
    pub(crate) fn table_len(&self) -> u64 {
        (self.entries_reserved() * ENTRY_LEN).next_multiple_of(MIB).max(MIB)
    }

    /// The base-2 logarithm of the chunk ratio: a chunk has 2^23 sectors, a block at most 2^28 bytes.
    fn ratio_shift(&self) -> u32 {
        SECTORS_PER_CHUNK.trailing_zeros() + self.sector_shift - self.block_shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected indexes come from counting through the table: after every
    /// `2^23 * sector / block` payload entries comes the entry of a sector bitmap block.
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
