//! What is left of the metadata.

use std::ops::Range;

use uuid::Uuid;

use super::anatomy::Anatomy;
use super::grade::{Fact, Traces};
use crate::format::locator::ParentLocator;
use crate::format::metadata::{
    self, FileFlags, FileParameters, MetadataTable, is_disk_size, is_sector_size,
};
use crate::format::{guid_bytes, u32_at, u64_at};
use crate::types::MIB;

/// The items, as far as they are there.
#[derive(Debug, Default)]
pub(super) struct Items {
    pub(super) block_size: Option<Fact<u32>>,
    pub(super) has_parent: Option<Fact<bool>>,
    pub(super) size: Option<Fact<u64>>,
    pub(super) logical_sector: Option<Fact<u32>>,
    pub(super) physical_sector: Option<u32>,
    pub(super) locator: Option<ParentLocator>,
}

/// The region as it is, of which 1 MiB counts.
struct Region<'a>(&'a [u8]);

impl Items {
    pub(super) fn find(anatomy: &mut Anatomy) -> Self {
        let Some(at) = anatomy.metadata else {
            anatomy.traces.lost("the metadata is lost");
            return Self::default();
        };
        let mut bytes = vec![0; MIB as usize];
        anatomy.read(&mut bytes, at);
        let region = Region(&bytes);
        if !bytes.starts_with(b"metadata") {
            anatomy.traces.lost(format!("no metadata signature at {at:#x}"));
        }
        let mut items = Self::named(&region);
        if items.block_size.is_none() && items.size.is_none() {
            items = Self::by_order(&region, &mut anatomy.traces).unwrap_or(items);
        }
        for (is_there, name) in [
            (items.block_size.is_some(), "the block size"),
            (items.size.is_some(), "the size of the disk"),
            (items.logical_sector.is_some(), "the sector size"),
        ] {
            if !is_there {
                anatomy.traces.lost(format!("{name} is not in the metadata"));
            }
        }
        items
    }

    /// The items that entries of the table name.
    fn named(region: &Region<'_>) -> Self {
        let mut items = Self::default();
        if let Some(bytes) = region.item(metadata::FILE_PARAMETERS, FileParameters::LEN)
            && let Ok(file) = FileParameters::parse(bytes, 0)
        {
            items.block_size = Some(Fact::sure(file.block_size));
            items.has_parent = Some(Fact::sure(file.flags.contains(FileFlags::HAS_PARENT)));
        }
        let sector = |item| {
            let size = u32_at(region.item(item, 4)?, 0)?;
            is_sector_size(size).then_some(size)
        };
        items.logical_sector = sector(metadata::LOGICAL_SECTOR_SIZE).map(Fact::sure);
        items.physical_sector = sector(metadata::PHYSICAL_SECTOR_SIZE);
        let size = region.item(metadata::VIRTUAL_DISK_SIZE, 8);
        let size = size.and_then(|bytes| u64_at(bytes, 0));
        items.size = size.filter(|size| *size > 0 && is_disk_size(*size, 512)).map(Fact::sure);
        if let Some(place) = region.place(metadata::PARENT_LOCATOR) {
            // A locator says so too.
            if items.has_parent.as_ref().is_none_or(|has| !has.value) {
                items.has_parent = Some(Fact::guessed(true));
            }
            items.locator = ParentLocator::inspect(&region.0[place], 0, &mut drop);
        }
        items
    }

    /// The items by their values, in the order and place in which programs write them.
    fn by_order(region: &Region<'_>, traces: &mut Traces) -> Option<Self> {
        let at = MetadataTable::LEN;
        let number = |at| u32_at(region.0, at).unwrap_or_default();
        let file = FileParameters::parse(&region.0[at..at + FileParameters::LEN], 0).ok()?;
        let size = u64_at(region.0, at + 8)?;
        // The identity of the disk stands behind the sector sizes, as Windows has it, or before them, as QEMU does.
        let sectors = |at: usize| {
            let (logical, physical) = (number(at), number(at + 4));
            (is_sector_size(logical) && is_sector_size(physical)).then_some((logical, physical))
        };
        let (logical, physical) = sectors(at + 16).or_else(|| sectors(at + 32))?;
        let is_it = number(at + 4) <= 3 && size > 0 && is_disk_size(size, logical);
        if !is_it {
            return None;
        }
        traces.guessed("the metadata items are told by their values, because their table is lost");
        Some(Self {
            block_size: Some(Fact::guessed(file.block_size)),
            has_parent: Some(Fact::guessed(file.flags.contains(FileFlags::HAS_PARENT))),
            size: Some(Fact::guessed(size)),
            logical_sector: Some(Fact::guessed(logical)),
            physical_sector: Some(physical),
            locator: None,
        })
    }
}

impl Region<'_> {
    fn item(&self, item: Uuid, len: usize) -> Option<&[u8]> {
        let place = self.place(item)?;
        (place.len() == len).then(|| &self.0[place])
    }

    /// The place of an item by its entry, which its identifier makes certain, whatever is left of the table.
    fn place(&self, item: Uuid) -> Option<Range<usize>> {
        let id = guid_bytes(item);
        let entries = self.0[..MetadataTable::LEN].chunks_exact(32);
        let entry = entries.skip(1).find(|entry| entry[..16] == id)?;
        let field = |at| u32_at(entry, at).map(|number| number as usize);
        let (offset, len) = (field(16)?, field(20)?);
        let end = offset.checked_add(len)?;
        (offset >= MetadataTable::LEN && end <= self.0.len() && len > 0).then_some(offset..end)
    }
}
