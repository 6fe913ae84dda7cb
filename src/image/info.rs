//! The structures of an image, for display and inspection.

use uuid::Uuid;

use super::block_table::Role;
use super::core::FoundLog;
use super::metadata::Metadata;
use super::{CheckpointMark, Core, MergeMark, MergeRequest};
use crate::disk::Geometry;
use crate::error::Result;
use crate::format::bat::PayloadState;
use crate::format::header::Header;
use crate::format::metadata::{self, FileFlags, ItemFlags};
use crate::format::region::{self, RegionFlags, RegionTable};
use crate::sync::Ordering;
use crate::types::{BatIndex, BlockIndex, FileOffset};

/// The contents of an image's structures, except for the block tables.
///
/// ```no_run
/// use avhdx::VhdxFile;
///
/// let image = VhdxFile::open("web_77F0.avhdx")?;
/// let info = image.info();
/// println!("made by {}, in blocks of {} bytes", info.creator, info.block_size);
/// for (key, value) in info.locator.iter().flat_map(|locator| &locator.entries) {
///     println!("{key}: {value}");
/// }
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ImageInfo {
    /// The program that created the file, as recorded.
    pub creator: String,
    /// Both headers; `Err` describes the fault of an invalid one. \[MS-VHDX\] 2.2.2.
    pub headers: [Result<HeaderInfo, String>; 2],
    /// Index of the current header, 0 or 1.
    pub current_header: usize,
    /// Both region tables; `Err` describes the fault of an invalid one. \[MS-VHDX\] 2.2.3.
    pub region_tables: [Result<Vec<RegionInfo>, String>; 2],
    /// Index of the region table in use, 0 or 1.
    pub current_region_table: usize,
    /// The log, and how it was handled at the open.
    pub log: LogInfo,
    /// The metadata items in the order of their table, \[MS-VHDX\] 2.6.1.
    pub metadata: Vec<ItemInfo>,
    /// Size and sector sizes of the virtual disk.
    pub geometry: Geometry,
    /// Size of a payload block in bytes.
    pub block_size: u32,
    /// Number of payload blocks that share a sector bitmap block.
    pub chunk_ratio: u64,
    /// Whether blocks stay allocated, as in a fixed disk.
    pub leave_blocks_allocated: bool,
    /// Whether this is a differencing image.
    pub has_parent: bool,
    /// The identity of the virtual disk, \[MS-VHDX\] 2.6.2.3.
    pub disk_id: Uuid,
    /// The parent locator as recorded.
    pub locator: Option<LocatorInfo>,
    /// The name of the point in time below the image, if a checkpoint made the image.
    pub checkpoint: Option<CheckpointMark>,
    /// The unfinished merge of the image, if there is one.
    pub merge: Option<MergeMark>,
    /// The request for a merge of this image into its parent, if there is one.
    pub merge_request: Option<MergeRequest>,
    /// Length of the file in bytes, including a replayed log.
    pub file_len: u64,
}

/// A header, \[MS-VHDX\] 2.2.2.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct HeaderInfo {
    /// Increases with each update. The header with the higher number is current.
    pub sequence_number: u64,
    /// Changes with each session that writes.
    pub file_write_guid: Uuid,
    /// Changes when the contents of the disk change.
    pub data_write_guid: Uuid,
    /// Zero if there is no log to replay.
    pub log_guid: Uuid,
    /// Version of the log format: 0.
    pub log_version: u16,
    /// Version of the format: 1.
    pub version: u16,
    /// Length of the log in bytes.
    pub log_length: u32,
    /// Offset of the log in the file, in bytes.
    pub log_offset: u64,
}

/// An entry of the region table, \[MS-VHDX\] 2.2.3.2.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RegionInfo {
    /// Identifies the region.
    pub guid: Uuid,
    /// The name of the region, if the format defines it.
    pub name: Option<&'static str>,
    /// Offset of the region in the file.
    pub offset: FileOffset,
    /// Length of the region in bytes.
    pub length: u32,
    /// Whether a program that does not know the region must not open the file.
    pub required: bool,
}

/// The log of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LogInfo {
    /// Offset of the log in the file.
    pub offset: FileOffset,
    /// Length of the log in bytes.
    pub length: u32,
    /// The state of its contents.
    pub state: LogState,
}

/// The contents of a log, and how they were handled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum LogState {
    /// Nothing to replay: the header names no log.
    Empty,
    /// The header names a log, which was ignored as requested.
    Ignored,
    /// The entries were replayed in memory.
    #[non_exhaustive]
    Replayed {
        /// Number of entries.
        entries: u64,
        /// Sequence number of the oldest entry.
        tail_sequence: u64,
        /// Sequence number of the newest entry.
        head_sequence: u64,
        /// Number of descriptors in all entries.
        descriptors: u64,
        /// A length of the file in bytes that was durable when the newest entry was written.
        flushed_file_offset: u64,
        /// The length in bytes that the file needs to hold all its structures.
        last_file_offset: u64,
        /// Where the log is damaged, if newer entries behind that place are intact: what they hold is lost.
        gap: Option<LogGap>,
    },
}

/// A place in the log where an entry is damaged or missing, although newer entries of the same log are intact. A
/// replay ends before it.
///
/// A crash alone leaves this only if the writer did not flush between two entries. Otherwise changes that were
/// flushed are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LogGap {
    /// Offset of the place in the file.
    pub offset: FileOffset,
    /// Number of intact entries that are newer than the last one replayed.
    pub newer_entries: u64,
    /// Sequence number of the newest of them.
    pub newest_sequence: u64,
}

/// A metadata item, \[MS-VHDX\] 2.6.1.2.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ItemInfo {
    /// Identifies the item.
    pub guid: Uuid,
    /// The name of the item, if the format defines it or Windows is known to write it.
    pub name: Option<&'static str>,
    /// Offset of the item in the file; `None` for an empty item.
    pub offset: Option<FileOffset>,
    /// Length of the item in bytes.
    pub length: u32,
    /// Whether the item is user metadata rather than part of the format.
    pub is_user: bool,
    /// Whether the item describes the virtual disk rather than the file.
    pub is_virtual_disk: bool,
    /// Whether a program that does not know the item must not open the file.
    pub is_required: bool,
}

/// A parent locator as recorded, \[MS-VHDX\] 2.6.2.6.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LocatorInfo {
    /// The locator type, always that of VHDX.
    pub locator_type: Uuid,
    /// Offset of the item in the file.
    pub offset: FileOffset,
    /// Keys and values in the order of the item.
    pub entries: Vec<(String, String)>,
}

/// The entries of a block allocation table, counted by state, \[MS-VHDX\] 2.5.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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
    /// PAYLOAD_BLOCK_UNMAPPED, including the value that a draft of the format assigned to it.
    pub unmapped: u64,
    /// PAYLOAD_BLOCK_FULLY_PRESENT.
    pub fully_present: u64,
    /// PAYLOAD_BLOCK_PARTIALLY_PRESENT.
    pub partially_present: u64,
    /// Blocks in a reserved state.
    pub reserved: u64,
    /// Sector bitmap blocks that are present.
    pub bitmaps: u64,
}

impl Core {
    /// Everything that the image records about itself, except for the block tables.
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
                state: self.log.state(current),
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
            merge_request: metadata.marks.request.clone(),
            file_len: self.file_len(),
        }
    }

    /// Counts the blocks by state. Reads the whole block allocation table.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the table cannot be read.
    pub(crate) fn count_blocks(&self) -> Result<BlockCounts> {
        let mut counts = BlockCounts { blocks: self.layout.blocks(), ..BlockCounts::default() };
        if let Some(last) = counts.blocks.checked_sub(1) {
            // Refuses a table that was cut off.
            self.bat_entry(self.layout.payload_index(BlockIndex(last)))?;
        }
        let table = self.block_table();
        let mut passed_over = counts.blocks;
        let failed = table.entries(BatIndex(self.layout.entries_reserved()), |index, entry| {
            match table.role(index) {
                Role::Payload(_) => {}
                Role::Bitmap(_) => {
                    counts.bitmaps += u64::from(self.has_parent() && entry.state_bits() == 6);
                    return;
                }
                Role::Slack => return,
            }
            passed_over -= 1;
            *match entry.payload_state() {
                PayloadState::NotPresent => &mut counts.not_present,
                PayloadState::Undefined => &mut counts.undefined,
                PayloadState::Zero => &mut counts.zero,
                PayloadState::Unmapped | PayloadState::DraftUnmapped => &mut counts.unmapped,
                PayloadState::FullyPresent => &mut counts.fully_present,
                PayloadState::PartiallyPresent => &mut counts.partially_present,
                PayloadState::Reserved => &mut counts.reserved,
            } += 1;
        });
        // Entries of zeros.
        counts.not_present += passed_over;
        failed.map_or(Ok(counts), |error| Err(error.in_file(self.name())))
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
    fn state(&self, header: &Header) -> LogState {
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
                gap: found.gap.map(|gap| LogGap {
                    offset: FileOffset::new(header.log_offset + gap.position),
                    newer_entries: gap.newer,
                    newest_sequence: gap.newest,
                }),
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
