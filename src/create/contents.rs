//! The structures of a new image: their places and contents.

use uuid::Uuid;

use super::{CreateOptions, Parent};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BatEntry, BlockLayout, ENTRY_LEN};
use crate::format::header::Header;
use crate::format::identifier::FileIdentifier;
use crate::format::locator::{self, ParentLocator};
use crate::format::marks;
use crate::format::metadata::{
    self, FileFlags, FileParameters, ItemFlags, MetadataEntry, MetadataTable,
};
use crate::format::region::{self, RegionEntry, RegionFlags, RegionTable};
use crate::storage::Storage;
use crate::types::{BlockIndex, FileOffset, MIB};

const METADATA_LEN: u32 = MIB as u32;
/// Bytes of the block allocation table per write.
const BAT_PIECE: u64 = MIB;
/// Bytes of the log per write.
const LOG_PIECE: usize = MIB as usize;

impl CreateOptions {
    /// Length of the new file in bytes. The sizes must be valid.
    pub(crate) fn file_len(&self) -> u64 {
        self.payload_at() + self.payload_len()
    }

    fn payload_at(&self) -> u64 {
        MIB + u64::from(self.log_size) + u64::from(METADATA_LEN) + u64::from(self.bat_len())
    }

    pub(crate) fn bat_len(&self) -> u32 {
        (self.layout().entries_reserved() * ENTRY_LEN).next_multiple_of(MIB) as u32
    }

    fn payload_len(&self) -> u64 {
        let layout = self.layout();
        if self.is_fixed { layout.blocks() * layout.block_size() } else { 0 }
    }

    fn layout(&self) -> BlockLayout {
        BlockLayout::new(self.block_size, self.logical_sector, self.size)
    }

    /// Writes the structures of the image into an empty file, the identifier first, because its
    /// mark identifies a draft.
    pub(super) fn write_to(&self, storage: &dyn Storage, mark: Option<String>) -> Result<()> {
        let layout = self.layout();
        let log_at = MIB;
        let metadata_at = log_at + u64::from(self.log_size);
        let bat_at = metadata_at + u64::from(METADATA_LEN);
        let (bat_len, payload_at, len) = (self.bat_len(), self.payload_at(), self.file_len());

        let write = |bytes: &[u8], at| {
            storage.write_at(bytes, at).map_err(|error| {
                Error::io("create.write", "cannot write the new image", error).at(at)
            })
        };
        write(&self.identifier(mark), 0)?;
        let sized = if self.is_fixed { storage.reserve(len) } else { storage.set_len(len) };
        sized.map_err(|error| {
            Error::io("create.size", format!("cannot make room for {len} bytes"), error)
        })?;
        // Written rather than a hole, so that the host allocates the space of the log now and no
        // flush of an entry also has to update the host's tables.
        let zeros = vec![0; LOG_PIECE.min(self.log_size as usize)];
        for at in (0..u64::from(self.log_size)).step_by(zeros.len()) {
            write(&zeros, log_at + at)?;
        }
        for (i, at) in Header::OFFSETS.into_iter().enumerate() {
            write(&self.header(i as u64, log_at).to_bytes(), at)?;
        }
        let regions = RegionTable {
            entries: vec![
                required_region(region::BAT, bat_at, bat_len),
                required_region(region::METADATA, metadata_at, METADATA_LEN),
            ],
        };
        for at in RegionTable::OFFSETS {
            write(&regions.to_bytes(), at)?;
        }
        write(&self.metadata()?, metadata_at)?;
        if self.is_fixed {
            write_full_bat(&layout, payload_at, &|bytes, at| write(bytes, bat_at + at))?;
        }
        Ok(())
    }

    /// The file type identifier, with the mark of a draft instead of the creator if there is one.
    pub(super) fn identifier(&self, mark: Option<String>) -> Vec<u8> {
        let creator = mark.unwrap_or_else(|| self.creator.clone());
        FileIdentifier { creator }.to_bytes().to_vec()
    }

    fn header(&self, sequence_number: u64, log_offset: u64) -> Header {
        Header {
            sequence_number,
            file_write_guid: self.file_write_guid,
            data_write_guid: self.data_write_guid,
            log_guid: Uuid::nil(),
            log_version: 0,
            version: 1,
            log_length: self.log_size,
            log_offset,
        }
    }

    /// The used part of the metadata region.
    fn metadata(&self) -> Result<Vec<u8>> {
        let mut flags = FileFlags::empty();
        flags.set(FileFlags::LEAVE_BLOCKS_ALLOCATED, self.is_fixed);
        flags.set(FileFlags::HAS_PARENT, self.parent.is_some());
        let file = FileParameters { block_size: self.block_size, flags };
        let disk = ItemFlags::VIRTUAL_DISK | ItemFlags::REQUIRED;
        let sector = |size| metadata::sector_size_to_bytes(size).to_vec();
        let mut items: Vec<(Uuid, ItemFlags, Vec<u8>)> = vec![
            (metadata::FILE_PARAMETERS, ItemFlags::REQUIRED, file.to_bytes().to_vec()),
            (
                metadata::VIRTUAL_DISK_SIZE,
                disk,
                metadata::virtual_size_to_bytes(self.size).to_vec(),
            ),
            (metadata::VIRTUAL_DISK_ID, disk, metadata::disk_id_to_bytes(self.disk_id).to_vec()),
            (metadata::LOGICAL_SECTOR_SIZE, disk, sector(self.logical_sector)),
            (metadata::PHYSICAL_SECTOR_SIZE, disk, sector(self.physical_sector)),
        ];
        if let Some(parent) = &self.parent {
            let locator = parent.locator().to_bytes()?;
            items.push((metadata::PARENT_LOCATOR, ItemFlags::REQUIRED, locator));
            let copied = parent.items.iter();
            items.extend(copied.map(|(entry, bytes)| (entry.item, entry.flags, bytes.clone())));
        }
        if let Some(mark) = &self.checkpoint {
            items.push((marks::CHECKPOINT, ItemFlags::USER, mark.to_bytes()));
        }
        let mut table = MetadataTable { entries: Vec::new() };
        let mut bytes = vec![0; MetadataTable::LEN];
        for (item, flags, contents) in items {
            let (offset, length) = (bytes.len() as u32, contents.len() as u32);
            let offset = if length == 0 { 0 } else { offset };
            table.entries.push(MetadataEntry { item, offset, length, flags });
            bytes.extend(contents);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        if bytes.len() > METADATA_LEN as usize {
            let message = "the parent's metadata items do not fit into the metadata region";
            return Err(Error::new(ErrorKind::Unsupported, "create.metadata", message)
                .with_found(format_args!("{} bytes", bytes.len()))
                .with_expected(format_args!("at most {METADATA_LEN}")));
        }
        bytes[..MetadataTable::LEN].copy_from_slice(&table.to_bytes());
        Ok(bytes)
    }
}

impl Parent {
    fn locator(&self) -> ParentLocator {
        let linkage = format!("{{{}}}", self.linkage.hyphenated());
        let mut entries = vec![("parent_linkage".to_owned(), linkage)];
        let paths = [
            ("relative_path", &self.relative_path),
            ("absolute_win32_path", &self.absolute_win32_path),
        ];
        for (key, path) in paths {
            entries.extend(path.iter().map(|path| (key.to_owned(), path.clone())));
        }
        ParentLocator { locator_type: locator::VHDX_TYPE, entries }
    }
}

fn required_region(guid: Uuid, at: u64, length: u32) -> RegionEntry {
    RegionEntry { guid, offset: FileOffset::new(at), length, flags: RegionFlags::REQUIRED }
}

/// Writes the table of a disk whose blocks are contiguous from `payload_at` on.
fn write_full_bat(
    layout: &BlockLayout,
    payload_at: u64,
    write: &dyn Fn(&[u8], u64) -> Result<()>,
) -> Result<()> {
    let mut piece = Vec::new();
    let mut piece_at = 0;
    for block in (0..layout.blocks()).map(BlockIndex) {
        let place = layout.payload_index(block).0 * ENTRY_LEN;
        if place - piece_at >= BAT_PIECE {
            write(&piece, piece_at)?;
            piece.clear();
            piece_at = place;
        }
        // Sector bitmap entries in between stay zero.
        piece.resize((place - piece_at) as usize, 0);
        let at = FileOffset::new(payload_at + block.0 * layout.block_size());
        piece.extend(BatEntry::new(6, at).to_bytes());
    }
    write(&piece, piece_at)
}
