//! Everything an image says of itself, for people and programs to look at.

use uuid::Uuid;

use super::core::FoundLog;
use super::metadata::Metadata;
use super::{CheckpointMark, Core, MergeMark};
use crate::disk::Geometry;
use crate::error::Result;
use crate::format::bat::PayloadState;
use crate::format::header::Header;
use crate::format::metadata::{self, FileFlags, ItemFlags};
use crate::format::region::{self, RegionFlags, RegionTable};
use crate::sync::Ordering;
use crate::types::{BlockIndex, ChunkIndex, FileOffset};

/// What the structures of an image say, but for the block tables.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ImageInfo {
    /// The program that made the file, as it named itself.
    pub creator: String,
    /// Both headers; `Err` holds what is wrong with one. \[MS-VHDX\] 2.2.2.
    pub headers: [Result<HeaderInfo, String>; 2],
    /// The header that counts, 0 or 1.
    pub current_header: usize,
    /// Both region tables; `Err` holds what is wrong with one. \[MS-VHDX\] 2.2.3.
    pub region_tables: [Result<Vec<RegionInfo>, String>; 2],
    /// The region table that counts, 0 or 1.
    pub current_region_table: usize,
    /// The log and what became of it at the open.
    pub log: LogInfo,
    /// The metadata items in the order of their table, \[MS-VHDX\] 2.6.1.
    pub metadata: Vec<ItemInfo>,
    /// Size and sector sizes of the virtual disk.
    pub geometry: Geometry,
    /// Bytes of a payload block.
    pub block_size: u32,
    /// Payload blocks that share a sector bitmap block.
    pub chunk_ratio: u64,
    /// Whether blocks stay allocated: a fixed disk.
    pub leave_blocks_allocated: bool,
    /// Whether the image is a differencing one.
    pub has_parent: bool,
    /// The virtual disk's own identity, \[MS-VHDX\] 2.6.2.3.
    pub disk_id: Uuid,
    /// The parent locator as recorded.
    pub locator: Option<LocatorInfo>,
    /// What the point in time below the image is called, where a checkpoint made the image.
    pub checkpoint: Option<CheckpointMark>,
    /// The merge that concerns the image and is not over.
    pub merge: Option<MergeMark>,
    /// Length of the file in bytes, a replayed log included.
    pub file_len: u64,
}

/// A header, \[MS-VHDX\] 2.2.2.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeaderInfo {
    /// Rises with each update; the higher header counts.
    pub sequence_number: u64,
    /// Changes with each session that writes.
    pub file_write_guid: Uuid,
    /// Changes when what is read from the disk does.
    pub data_write_guid: Uuid,
    /// Zero when there is no log to replay.
    pub log_guid: Uuid,
    /// Version of the log's format: 0.
    pub log_version: u16,
    /// Version of the format: 1.
    pub version: u16,
    /// Bytes of the log.
    pub log_length: u32,
    /// Where the log starts in the file.
    pub log_offset: u64,
}

/// An entry of the region table, \[MS-VHDX\] 2.2.3.2.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegionInfo {
    /// Which region.
    pub guid: Uuid,
    /// The name of a region that the format defines.
    pub name: Option<&'static str>,
    /// Where it starts in the file.
    pub offset: FileOffset,
    /// Its length in bytes.
    pub length: u32,
    /// Whether who does not know it must not open the file.
    pub required: bool,
}

/// The log of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogInfo {
    /// Where it starts in the file.
    pub offset: FileOffset,
    /// Its length in bytes.
    pub length: u32,
    /// What was found in it.
    pub state: LogState,
}

/// What was found in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogState {
    /// Nothing to replay: the header names no log.
    Empty,
    /// The header names a log, and it was left alone as asked.
    Ignored,
    /// Entries that were replayed in memory.
    #[non_exhaustive]
    Replayed {
        /// How many.
        entries: u64,
        /// The oldest one's sequence number.
        tail_sequence: u64,
        /// The newest one's.
        head_sequence: u64,
        /// Changes that they make together.
        descriptors: u64,
        /// A length of the file that was durable when the newest was written.
        flushed_file_offset: u64,
        /// The length that the file needs to hold all its structures.
        last_file_offset: u64,
    },
}

/// A metadata item, \[MS-VHDX\] 2.6.1.2.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ItemInfo {
    /// Which item.
    pub guid: Uuid,
    /// The name of an item that the format defines, or that Windows is known to write.
    pub name: Option<&'static str>,
    /// Where it starts in the file; `None` for an empty item.
    pub offset: Option<FileOffset>,
    /// Its length in bytes.
    pub length: u32,
    /// Whether it belongs to a user of the disk rather than to the format.
    pub is_user: bool,
    /// Whether it describes the virtual disk rather than the file.
    pub is_virtual_disk: bool,
    /// Whether who does not know it must not open the file.
    pub is_required: bool,
}

/// A parent locator as recorded, \[MS-VHDX\] 2.6.2.6.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LocatorInfo {
    /// The type, which is always VHDX.
    pub locator_type: Uuid,
    /// Where the item starts in the file.
    pub offset: FileOffset,
    /// Keys and values in the order of the item.
    pub entries: Vec<(String, String)>,
}

/// The entries of a block allocation table by state, \[MS-VHDX\] 2.5.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockCounts {
    /// Payload blocks of the disk.
    pub blocks: u64,
    /// PAYLOAD_BLOCK_NOT_PRESENT.
    pub not_present: u64,
    /// PAYLOAD_BLOCK_UNDEFINED.
    pub undefined: u64,
    /// PAYLOAD_BLOCK_ZERO.
    pub zero: u64,
    /// PAYLOAD_BLOCK_UNMAPPED, and the value that a draft of the format had for it.
    pub unmapped: u64,
    /// PAYLOAD_BLOCK_FULLY_PRESENT.
    pub fully_present: u64,
    /// PAYLOAD_BLOCK_PARTIALLY_PRESENT.
    pub partially_present: u64,
    /// Blocks in a state that has no meaning.
    pub reserved: u64,
    /// Sector bitmap blocks that are present.
    pub bitmaps: u64,
}

impl Core {
    /// Everything that the image says of itself, but for the block tables.
    pub(crate) fn info(&self) -> ImageInfo {
        let headers = self.headers();
        let current = headers.current();
        let metadata = self.metadata();
        ImageInfo {
            creator: self.identifier.creator.clone(),
            headers: [0, 1].map(|i| match &headers.copies[i] {
                Ok(header) => Ok(HeaderInfo::of(header)),
                Err(error) => Err(error.to_string()),
            }),
            current_header: headers.current,
            region_tables: [0, 1].map(|i| match &self.region_tables[i] {
                Ok(table) => Ok(regions(table)),
                Err(error) => Err(error.to_string()),
            }),
            current_region_table: usize::from(self.region_tables[0].is_err()),
            log: LogInfo {
                offset: FileOffset::new(current.log_offset),
                length: current.log_length,
                state: self.log.state(),
            },
            metadata: self.items(&metadata),
            geometry: self.geometry(),
            block_size: metadata.file.block_size,
            chunk_ratio: self.layout.chunk_ratio(),
            leave_blocks_allocated: metadata.file.flags.contains(FileFlags::LEAVE_BLOCKS_ALLOCATED),
            has_parent: self.has_parent(),
            disk_id: metadata.disk_id,
            locator: metadata.locator.as_ref().map(|placed| LocatorInfo {
                locator_type: placed.locator.locator_type,
                offset: FileOffset::new(placed.at),
                entries: placed.locator.entries.clone(),
            }),
            checkpoint: metadata.marks.checkpoint.clone(),
            merge: metadata.marks.merge.clone(),
            file_len: self.file_len(),
        }
    }

    /// Counts the blocks by state. Reads the whole block allocation table.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) when the table cannot be read.
    pub(crate) fn count_blocks(&self) -> Result<BlockCounts> {
        let mut counts = BlockCounts { blocks: self.layout.blocks(), ..BlockCounts::default() };
        for block in 0..self.layout.blocks() {
            let entry = self.bat_entry(self.layout.payload_index(BlockIndex(block)))?;
            *match entry.payload_state() {
                PayloadState::NotPresent => &mut counts.not_present,
                PayloadState::Undefined => &mut counts.undefined,
                PayloadState::Zero => &mut counts.zero,
                PayloadState::Unmapped | PayloadState::DraftUnmapped => &mut counts.unmapped,
                PayloadState::FullyPresent => &mut counts.fully_present,
                PayloadState::PartiallyPresent => &mut counts.partially_present,
                PayloadState::Reserved => &mut counts.reserved,
            } += 1;
        }
        if self.has_parent() {
            for chunk in 0..self.layout.chunks() {
                let index = self.layout.bitmap_index(ChunkIndex(chunk));
                // A table that ends before the last chunk's bitmap entry has none there.
                if index.0 < self.bat_entries() {
                    counts.bitmaps += u64::from(self.bat_entry(index)?.state_bits() == 6);
                }
            }
        }
        Ok(counts)
    }

    pub(crate) fn file_len(&self) -> u64 {
        self.file_len.load(Ordering::Acquire)
    }

    pub(crate) fn has_replayed_log(&self) -> bool {
        matches!(self.log, FoundLog::Replayed(_))
    }

    pub(crate) fn metadata_at(&self) -> u64 {
        self.metadata_region.offset.get()
    }

    fn items(&self, metadata: &Metadata) -> Vec<ItemInfo> {
        let entries = metadata.table.entries.iter();
        entries
            .map(|entry| ItemInfo {
                guid: entry.item,
                name: metadata::name(entry).or_else(|| metadata::name_by_windows(entry)),
                offset: (entry.length > 0)
                    .then(|| self.metadata_region.offset + u64::from(entry.offset)),
                length: entry.length,
                is_user: entry.flags.contains(ItemFlags::USER),
                is_virtual_disk: entry.flags.contains(ItemFlags::VIRTUAL_DISK),
                is_required: entry.flags.contains(ItemFlags::REQUIRED),
            })
            .collect()
    }
}

impl HeaderInfo {
    fn of(header: &Header) -> Self {
        Self {
            sequence_number: header.sequence_number,
            file_write_guid: header.file_write_guid,
            data_write_guid: header.data_write_guid,
            log_guid: header.log_guid,
            log_version: header.log_version,
            version: header.version,
            log_length: header.log_length,
            log_offset: header.log_offset,
        }
    }
}

impl FoundLog {
    fn state(&self) -> LogState {
        match self {
            Self::Empty => LogState::Empty,
            Self::Ignored => LogState::Ignored,
            Self::Replayed(found) => LogState::Replayed {
                entries: found.entries.len() as u64,
                tail_sequence: found.tail().sequence_number,
                head_sequence: found.head().sequence_number,
                descriptors: found.entries.iter().map(|e| u64::from(e.descriptor_count)).sum(),
                flushed_file_offset: found.head().flushed_file_offset,
                last_file_offset: found.head().last_file_offset,
            },
        }
    }
}

fn regions(table: &RegionTable) -> Vec<RegionInfo> {
    let entries = table.entries.iter();
    entries
        .map(|entry| RegionInfo {
            guid: entry.guid,
            name: region::name(entry.guid),
            offset: entry.offset,
            length: entry.length,
            required: entry.flags.contains(RegionFlags::REQUIRED),
        })
        .collect()
}
