//! The metadata table and its known items, \[MS-VHDX\] 2.6.

use bitflags::bitflags;
use uuid::{Uuid, uuid};

use super::{Fields, FieldsMut, OnError, check_reserved, check_signature};
use crate::error::{Error, ErrorKind, Result};
use crate::types::{KIB, MIB};

pub(crate) const FILE_PARAMETERS: Uuid = uuid!("CAA16737-FA36-4D43-B3B6-33F0AA44E76B");
pub(crate) const VIRTUAL_DISK_SIZE: Uuid = uuid!("2FA54224-CD1B-4876-B211-5DBED83BF4B8");
pub(crate) const VIRTUAL_DISK_ID: Uuid = uuid!("BECA12AB-B2E6-4523-93EF-C309E000C746");
pub(crate) const LOGICAL_SECTOR_SIZE: Uuid = uuid!("8141BF1D-A96F-4709-BA47-F233A8FAAB5F");
pub(crate) const PHYSICAL_SECTOR_SIZE: Uuid = uuid!("CDA348C7-445D-4471-9CC9-E9885251C556");
pub(crate) const PARENT_LOCATOR: Uuid = uuid!("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C");

/// The disk geometry that old firmware uses.
pub(crate) const CHS_PARAMETERS: Uuid = uuid!("DA02D7BC-3D3A-423C-AC88-2A36AB21479B");
/// Labels of a disk that is attached as persistent memory.
pub(crate) const PMEM_LABELS: Uuid = uuid!("10E1AE8A-4B7E-4169-A40F-CD70DE928393");
/// Present while the image is being created.
pub(crate) const INCOMPLETE_FILE: Uuid = uuid!("71CC85F0-1B69-4E28-9558-C3BF83AE75D3");

const ENTRY_LEN: usize = 32;
/// The largest disk that the format allows, in bytes.
pub(crate) const MAX_VIRTUAL_SIZE: u64 = 64 << 40;
/// The block sizes that [`is_block_size`] accepts, for errors.
pub(crate) const BLOCK_SIZES: &str = "a power of two from 1 MiB to 256 MiB";
/// The sector sizes that [`is_sector_size`] accepts, for errors.
pub(crate) const SECTOR_SIZES: &str = "512 or 4096";

/// The table at the start of the metadata region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetadataTable {
    pub(crate) entries: Vec<MetadataEntry>,
}

/// The location and kind of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetadataEntry {
    pub(crate) item: Uuid,
    /// Offset in the region; zero for an item that is present but empty.
    pub(crate) offset: u32,
    pub(crate) length: u32,
    pub(crate) flags: ItemFlags,
}

bitflags! {
    /// The owner of a metadata item, and whether readers must know it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct ItemFlags: u32 {
        /// Owned by a user of the disk, not by the format.
        const USER = 1;
        /// Describes the virtual disk rather than the file.
        const VIRTUAL_DISK = 2;
        /// A program that does not know the item must not open the file.
        const REQUIRED = 4;
        const _ = !0;
    }
}

impl ItemFlags {
    /// The flags as a table entry holds them.
    pub(crate) fn to_bytes(self) -> [u8; 4] {
        let mut bytes = [0; 4];
        FieldsMut(&mut bytes).u32(0, self.bits());
        bytes
    }
}

bitflags! {
    /// The flags of the File Parameters item.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct FileFlags: u32 {
        /// A fixed disk: every block stays allocated.
        const LEAVE_BLOCKS_ALLOCATED = 1;
        /// A differencing disk.
        const HAS_PARENT = 2;
        const _ = !0;
    }
}

/// The File Parameters item, \[MS-VHDX\] 2.6.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileParameters {
    pub(crate) block_size: u32,
    pub(crate) flags: FileFlags,
}

impl MetadataTable {
    /// Size of the table in bytes; items follow it.
    pub(crate) const LEN: usize = 64 * KIB as usize;
    /// How many entries it has room for.
    pub(crate) const MAX_ENTRIES: usize = 2047;
    /// How many of them may be items of users.
    pub(crate) const MAX_USER_ENTRIES: usize = 1024;

    /// Parses what it can and reports every fault. Invalid entries are kept, so that
    /// indexes stay the same.
    pub(crate) fn inspect(bytes: &[u8], at: u64, region_len: u32, on: OnError<'_>) -> Option<Self> {
        let (section, what) = ("2.6.1.1", "metadata table");
        let signed = check_signature(bytes, b"metadata", at, "metadata.signature", section, what);
        if let Err(error) = signed {
            on(error);
            return None;
        }
        let count = usize::from(Fields(bytes).u16(10));
        if count > Self::MAX_ENTRIES {
            let message = "too many metadata items";
            on(Error::damaged("metadata.count", "2.6.1.1", at + 10, message)
                .with_found(count)
                .with_expected(format_args!("at most {}", Self::MAX_ENTRIES)));
        }
        let mut entries = Vec::new();
        for i in 0..count.min(Self::MAX_ENTRIES) {
            let start = ENTRY_LEN * (i + 1);
            let entry = MetadataEntry::parse(Fields(bytes).from(start));
            if let Err(error) = entry.validate(at + start as u64, region_len) {
                on(error);
            }
            entries.push(entry);
        }
        let table = Self { entries };
        table.inspect_whole(at, region_len, on);
        Some(table)
    }

    /// Reports reserved fields that are not zero. Readers ignore them.
    pub(crate) fn inspect_reserved(&self, bytes: &[u8], at: u64, on: OnError<'_>) {
        let code = "metadata.reserved";
        for range in [8..10, 12..32] {
            let place = at + range.start as u64;
            check_reserved(&bytes[range], place, code, "2.6.1.1", "the metadata table", on);
        }
        for (i, entry) in self.entries.iter().enumerate() {
            let place = at + Self::entry_place(i);
            let what = format!("the entry of metadata item {}", entry.item);
            let start = ENTRY_LEN * (i + 1) + 28;
            check_reserved(&bytes[start..start + 4], place + 28, code, "2.6.1.2", &what, on);
            let known = ItemFlags::USER | ItemFlags::VIRTUAL_DISK | ItemFlags::REQUIRED;
            if !known.contains(entry.flags) {
                on(Error::damaged(
                    code,
                    "2.6.1.2",
                    place + 24,
                    format!("reserved flags in {what}"),
                )
                .with_found(format_args!("{:#x}", entry.flags.bits()))
                .with_expected("bits 0 to 2 alone"));
            }
        }
    }

    /// Reports items of the format whose flags are wrong, and empty
    /// items with an offset.
    pub(crate) fn inspect_flags(&self, at: u64, on: OnError<'_>) {
        for (i, entry) in self.entries.iter().enumerate() {
            let place = at + Self::entry_place(i);
            if entry.length == 0 && entry.offset != 0 {
                let message = format!("an offset for the empty metadata item {}", entry.item);
                on(Error::damaged("metadata.empty-item", "2.6.1.2", place + 16, message)
                    .with_found(format_args!("{:#x}", entry.offset))
                    .with_expected("0"));
            }
            let Some(expected) = flags_of(entry.item) else { continue };
            let found = ItemFlags::from_bits_truncate(entry.flags.bits() & 7);
            if found != expected {
                let message = format!("wrong flags of metadata item {}", entry.item);
                on(Error::damaged("metadata.flags", "2.6.2", place + 24, message)
                    .with_found(format_args!("{:#x}", found.bits()))
                    .with_expected(format_args!("{:#x}", expected.bits())));
            }
        }
    }

    /// Serializes the table.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; Self::LEN];
        let mut fields = FieldsMut(&mut bytes);
        fields.bytes(0, b"metadata");
        fields.u16(10, self.entries.len() as u16);
        for (i, entry) in self.entries.iter().enumerate() {
            let start = ENTRY_LEN * (i + 1);
            fields.guid(start, entry.item);
            fields.u32(start + 16, entry.offset);
            fields.u32(start + 20, entry.length);
            fields.u32(start + 24, entry.flags.bits());
        }
        bytes
    }

    /// Returns the entry of a system item, and the file offset of the entry.
    pub(crate) fn system(&self, item: Uuid, at: u64) -> Option<(&MetadataEntry, u64)> {
        let is_it = |e: &&MetadataEntry| e.item == item && !e.flags.contains(ItemFlags::USER);
        let i = self.entries.iter().position(|entry| is_it(&entry))?;
        Some((&self.entries[i], at + Self::entry_place(i)))
    }

    /// Returns the entry of a user item.
    pub(crate) fn user(&self, item: Uuid) -> Option<&MetadataEntry> {
        let is_it = |e: &&MetadataEntry| e.item == item && e.flags.contains(ItemFlags::USER);
        self.entries.iter().find(is_it)
    }

    /// The number of user items.
    pub(crate) fn user_count(&self) -> usize {
        self.entries.iter().filter(|entry| entry.flags.contains(ItemFlags::USER)).count()
    }

    /// The offset of entry `i` in the table.
    pub(crate) fn entry_place(i: usize) -> u64 {
        (ENTRY_LEN * (i + 1)) as u64
    }

    /// Reports faults that concern several entries.
    fn inspect_whole(&self, at: u64, region_len: u32, on: OnError<'_>) {
        let user = self.user_count();
        if user > Self::MAX_USER_ENTRIES {
            let message = "too many user metadata items";
            on(Error::damaged("metadata.user-count", "2.6.1.1", at + 10, message)
                .with_found(user)
                .with_expected(format_args!("at most {}", Self::MAX_USER_ENTRIES)));
        }
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        order.sort_by_key(|i| {
            let entry = &self.entries[*i];
            (entry.item, entry.flags.contains(ItemFlags::USER))
        });
        for pair in order.windows(2) {
            let (a, b) = (&self.entries[pair[0]], &self.entries[pair[1]]);
            if a.item == b.item && !(a.flags ^ b.flags).contains(ItemFlags::USER) {
                let place = at + Self::entry_place(pair[0].max(pair[1]));
                let message = "duplicate metadata item";
                on(Error::damaged("metadata.duplicate", "2.6.1.2", place, message)
                    .with_found(a.item)
                    .with_expected("every item once"));
            }
        }
        order.retain(|i| self.entries[*i].length > 0 && self.entries[*i].is_placed(region_len));
        order.sort_by_key(|i| self.entries[*i].offset);
        // The one with the greatest end so far.
        let mut furthest: Option<&MetadataEntry> = None;
        for i in order {
            let b = &self.entries[i];
            if let Some(a) = furthest.filter(|a| a.end() > u64::from(b.offset)) {
                let place = at + Self::entry_place(i) + 16;
                let message = format!("metadata items {} and {} overlap", a.item, b.item);
                on(Error::damaged("metadata.overlap", "2.6.1.2", place, message)
                    .with_found(format_args!("offset {:#x}", b.offset))
                    .with_expected(format_args!("at least {:#x}", a.end())));
            }
            furthest = furthest.filter(|a| a.end() >= b.end()).or(Some(b));
        }
    }
}

impl MetadataEntry {
    fn parse(fields: Fields<'_>) -> Self {
        Self {
            item: fields.guid(0),
            offset: fields.u32(16),
            length: fields.u32(20),
            flags: ItemFlags::from_bits_retain(fields.u32(24)),
        }
    }

    fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.length)
    }

    /// The range of the region that the item takes up; `None` if it is empty.
    pub(crate) fn place(&self) -> Option<std::ops::Range<u64>> {
        (self.length > 0).then(|| u64::from(self.offset)..self.end())
    }

    /// Whether the item lies within a region of this length.
    pub(crate) fn is_placed(&self, region_len: u32) -> bool {
        self.validate(0, region_len).is_ok()
    }

    fn validate(&self, at: u64, region_len: u32) -> Result<()> {
        let misplaced = |code, place, message: &str| {
            let message = format!("{message} of metadata item {}", self.item);
            Error::damaged(code, "2.6.1.2", at + place, message)
        };
        if u64::from(self.length) > MIB {
            return Err(misplaced("metadata.length", 20, "excessive length")
                .with_found(self.length)
                .with_expected("at most 1 MiB"));
        }
        if self.length == 0 {
            // An empty item should have no offset. Some writers give it one, and readers ignore it.
            return Ok(());
        }
        if (self.offset as usize) < MetadataTable::LEN || self.end() > u64::from(region_len) {
            return Err(misplaced("metadata.offset", 16, "invalid offset")
                .with_found(format_args!("bytes {:#x} to {:#x}", self.offset, self.end()))
                .with_expected(format_args!(
                    "bytes from 0x10000 to {region_len:#x} of the region"
                )));
        }
        Ok(())
    }
}

impl FileParameters {
    pub(crate) const LEN: usize = 8;

    /// Parses the item and checks the block size.
    pub(crate) fn parse(bytes: &[u8], at: u64) -> Result<Self> {
        let block_size = Fields(bytes).u32(0);
        if !is_block_size(block_size) {
            let message = "invalid block size";
            return Err(Error::damaged("metadata.block-size", "2.6.2.1", at, message)
                .with_found(block_size)
                .with_expected(BLOCK_SIZES));
        }
        Ok(Self { block_size, flags: FileFlags::from_bits_retain(Fields(bytes).u32(4)) })
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut fields = FieldsMut(&mut bytes);
        fields.u32(0, self.block_size);
        fields.u32(4, self.flags.bits());
        bytes
    }
}

/// Whether the format allows this size of payload blocks in bytes, \[MS-VHDX\] 2.6.2.1.
pub(crate) fn is_block_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && (MIB..=256 * MIB).contains(&bytes.into())
}

/// Whether the format allows this logical or physical sector size in bytes.
pub(crate) fn is_sector_size(bytes: u32) -> bool {
    [512, 4096].contains(&bytes)
}

/// Whether the format allows this size of a disk in bytes, \[MS-VHDX\] 2.6.2.2.
pub(crate) fn is_disk_size(bytes: u64, logical_sector: u32) -> bool {
    bytes <= MAX_VIRTUAL_SIZE && bytes.is_multiple_of(logical_sector.into())
}

/// Parses the Logical or Physical Sector Size item, \[MS-VHDX\] 2.6.2.4 and 2.6.2.5.
pub(crate) fn parse_sector_size(bytes: &[u8], at: u64, section: &'static str) -> Result<u32> {
    let size = Fields(bytes).u32(0);
    if !is_sector_size(size) {
        return Err(Error::damaged("metadata.sector-size", section, at, "invalid sector size")
            .with_found(size)
            .with_expected(SECTOR_SIZES));
    }
    Ok(size)
}

pub(crate) fn sector_size_to_bytes(size: u32) -> [u8; 4] {
    let mut bytes = [0; 4];
    FieldsMut(&mut bytes).u32(0, size);
    bytes
}

/// Parses the Virtual Disk Size item, \[MS-VHDX\] 2.6.2.2, in bytes.
pub(crate) fn parse_virtual_size(bytes: &[u8], at: u64, logical_sector: u32) -> Result<u64> {
    let size = Fields(bytes).u64(0);
    if !is_disk_size(size, logical_sector) {
        return Err(Error::damaged("metadata.disk-size", "2.6.2.2", at, "invalid disk size")
            .with_found(size)
            .with_expected(format_args!("a multiple of {logical_sector}, at most 64 TiB")));
    }
    Ok(size)
}

pub(crate) fn virtual_size_to_bytes(size: u64) -> [u8; 8] {
    let mut bytes = [0; 8];
    FieldsMut(&mut bytes).u64(0, size);
    bytes
}

/// Parses the Virtual Disk ID item, \[MS-VHDX\] 2.6.2.3.
pub(crate) fn parse_disk_id(bytes: &[u8]) -> Uuid {
    Fields(bytes).guid(0)
}

/// Reports undefined flags in the File Parameters item at `at`.
pub(crate) fn inspect_file_flags(file: &FileParameters, at: u64, on: OnError<'_>) {
    let known = FileFlags::LEAVE_BLOCKS_ALLOCATED | FileFlags::HAS_PARENT;
    if !known.contains(file.flags) {
        let message = "reserved flags in the File Parameters item";
        on(Error::damaged("metadata.reserved", "2.6.2.1", at + 4, message)
            .with_found(format_args!("{:#x}", file.flags.bits()))
            .with_expected("bits 0 and 1 alone"));
    }
}

/// Returns the flags that the format prescribes for its own items.
pub(crate) fn flags_of(item: Uuid) -> Option<ItemFlags> {
    match item {
        FILE_PARAMETERS | PARENT_LOCATOR => Some(ItemFlags::REQUIRED),
        VIRTUAL_DISK_SIZE | VIRTUAL_DISK_ID | LOGICAL_SECTOR_SIZE | PHYSICAL_SECTOR_SIZE => {
            Some(ItemFlags::REQUIRED | ItemFlags::VIRTUAL_DISK)
        }
        _ => None,
    }
}

pub(crate) fn disk_id_to_bytes(id: Uuid) -> [u8; 16] {
    id.to_bytes_le()
}

/// Returns the name of a system item that the format defines.
pub(crate) fn name(entry: &MetadataEntry) -> Option<&'static str> {
    if entry.flags.contains(ItemFlags::USER) {
        return None;
    }
    match entry.item {
        FILE_PARAMETERS => Some("File Parameters"),
        VIRTUAL_DISK_SIZE => Some("Virtual Disk Size"),
        VIRTUAL_DISK_ID => Some("Virtual Disk ID"),
        LOGICAL_SECTOR_SIZE => Some("Logical Sector Size"),
        PHYSICAL_SECTOR_SIZE => Some("Physical Sector Size"),
        PARENT_LOCATOR => Some("Parent Locator"),
        _ => None,
    }
}

/// Returns the name of a system item that Windows writes although the format does not define it.
pub(crate) fn name_by_windows(entry: &MetadataEntry) -> Option<&'static str> {
    if entry.flags.contains(ItemFlags::USER) {
        return None;
    }
    match entry.item {
        CHS_PARAMETERS => Some("Cylinders, Heads and Sectors"),
        PMEM_LABELS => Some("Persistent Memory Labels"),
        INCOMPLETE_FILE => Some("Incomplete File"),
        _ => None,
    }
}

/// Whether an item has a meaning of its own: one of the format, or the nil identifier. As an item of a user it makes
/// other programs refuse the image.
pub(crate) fn is_reserved(item: Uuid) -> bool {
    let known = [
        FILE_PARAMETERS,
        VIRTUAL_DISK_SIZE,
        VIRTUAL_DISK_ID,
        LOGICAL_SECTOR_SIZE,
        PHYSICAL_SECTOR_SIZE,
        PARENT_LOCATOR,
        CHS_PARAMETERS,
        PMEM_LABELS,
        INCOMPLETE_FILE,
    ];
    item.is_nil() || known.contains(&item)
}

/// The error for a user item that does not exist.
pub(crate) fn no_item(item: Uuid) -> Error {
    let message = "there is no such item of a user";
    Error::new(ErrorKind::InvalidInput, "metadata.no-item", message)
        .with_section("2.6.1.2")
        .with_found("a metadata table without it")
        .with_expected(item)
}

/// The error for a required item that is missing.
pub(crate) fn missing(item: Uuid, name: &str, at: u64) -> Error {
    Error::new(ErrorKind::Damaged, "metadata.missing", format!("no {name} item"))
        .with_section("2.6.2")
        .at(at)
        .with_found("a metadata table without it")
        .with_expected(item)
}
