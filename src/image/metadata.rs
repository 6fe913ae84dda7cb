//! The metadata of an image: the known items read and judged, the rest kept by name.

use uuid::Uuid;

use crate::disk::Geometry;
use crate::error::{Error, ErrorKind, Result};
use crate::format::locator::ParentLocator;
use crate::format::metadata::{
    self, FileFlags, FileParameters, ItemFlags, MetadataEntry, MetadataTable,
};
use crate::format::region::RegionEntry;
use crate::storage::Storage;

/// What the metadata region says of the disk.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub(crate) table: MetadataTable,
    pub(crate) file: FileParameters,
    pub(crate) geometry: Geometry,
    pub(crate) disk_id: Uuid,
    /// There if and only if the image is a differencing one.
    pub(crate) locator: Option<PlacedLocator>,
}

/// A parent locator, and where in the file it stands.
#[derive(Debug)]
pub(crate) struct PlacedLocator {
    pub(crate) locator: ParentLocator,
    pub(crate) at: u64,
}

impl Metadata {
    pub(crate) fn load(storage: &dyn Storage, region: &RegionEntry) -> Result<Self> {
        let at = region.offset.get();
        let mut bytes = vec![0; MetadataTable::LEN];
        read(storage, &mut bytes, at)?;
        let table = MetadataTable::parse(&bytes, at, region.length)?;
        refuse_unknown(&table, at)?;
        let items = Items { storage, table: &table, at };

        let (bytes, place) =
            items.fixed(metadata::FILE_PARAMETERS, "File Parameters", FileParameters::LEN)?;
        let file = FileParameters::parse(&bytes, place)?;
        let (bytes, place) =
            items.fixed(metadata::LOGICAL_SECTOR_SIZE, "Logical Sector Size", 4)?;
        let logical = metadata::parse_sector_size(&bytes, place, "2.6.2.4")?;
        let (bytes, place) =
            items.fixed(metadata::PHYSICAL_SECTOR_SIZE, "Physical Sector Size", 4)?;
        let physical = metadata::parse_sector_size(&bytes, place, "2.6.2.5")?;
        let (bytes, place) = items.fixed(metadata::VIRTUAL_DISK_SIZE, "Virtual Disk Size", 8)?;
        let size = metadata::parse_virtual_size(&bytes, place, logical)?;
        let (bytes, _) = items.fixed(metadata::VIRTUAL_DISK_ID, "Virtual Disk ID", 16)?;
        let disk_id = metadata::parse_disk_id(&bytes);
        let locator = items.locator(file.flags.contains(FileFlags::HAS_PARENT))?;
        let geometry = Geometry::new(size, logical, physical);
        Ok(Self { file, geometry, disk_id, locator, table })
    }

    /// The items that describe the virtual disk and that the format does not define, with their bytes.
    pub(crate) fn disk_items(
        &self,
        storage: &dyn Storage,
        region: &RegionEntry,
    ) -> Result<Vec<(MetadataEntry, Vec<u8>)>> {
        let items = Items { storage, table: &self.table, at: region.offset.get() };
        let is_disk = |entry: &&MetadataEntry| {
            entry.flags.contains(ItemFlags::VIRTUAL_DISK) && metadata::name(entry).is_none()
        };
        let found = self.table.entries.iter().filter(is_disk);
        found.map(|entry| Ok((entry.clone(), items.bytes(entry)?.0))).collect()
    }

    pub(crate) fn has_parent(&self) -> bool {
        self.locator.is_some()
    }
}

/// The items of a table, to be read one by one.
struct Items<'a> {
    storage: &'a dyn Storage,
    table: &'a MetadataTable,
    at: u64,
}

impl Items<'_> {
    /// A required item of a fixed length, and where in the file it stands.
    fn fixed(&self, item: Uuid, name: &str, len: usize) -> Result<(Vec<u8>, u64)> {
        let found = self.table.system(item, self.at);
        let (entry, entry_at) = found.ok_or_else(|| metadata::missing(item, name, self.at))?;
        if entry.length as usize != len {
            let message = format!("wrong length of the {name} item");
            return Err(Error::damaged("metadata.item-length", "2.6.2", entry_at + 20, message)
                .with_found(entry.length)
                .with_expected(len));
        }
        self.bytes(entry)
    }

    fn locator(&self, has_parent: bool) -> Result<Option<PlacedLocator>> {
        match (self.table.system(metadata::PARENT_LOCATOR, self.at), has_parent) {
            (None, false) => Ok(None),
            (None, true) => {
                Err(metadata::missing(metadata::PARENT_LOCATOR, "Parent Locator", self.at))
            }
            (Some((_, entry_at)), false) => {
                let message = "a parent locator in an image that says it has no parent";
                Err(Error::damaged("metadata.locator", "2.6.2.6", entry_at, message)
                    .with_found("a Parent Locator item")
                    .with_expected("none, or the flag HasParent"))
            }
            (Some((entry, _)), true) => {
                let (bytes, at) = self.bytes(entry)?;
                Ok(Some(PlacedLocator { locator: ParentLocator::parse(&bytes, at)?, at }))
            }
        }
    }

    fn bytes(&self, entry: &MetadataEntry) -> Result<(Vec<u8>, u64)> {
        // The table was checked: at most 1 MiB, within the region.
        let mut bytes = vec![0; entry.length as usize];
        let at = self.at + u64::from(entry.offset);
        read(self.storage, &mut bytes, at)?;
        Ok((bytes, at))
    }
}

fn refuse_unknown(table: &MetadataTable, at: u64) -> Result<()> {
    let unknown = |entry: &&MetadataEntry| {
        entry.flags.contains(ItemFlags::REQUIRED) && metadata::name(entry).is_none()
    };
    let Some(i) = table.entries.iter().position(|entry| unknown(&entry)) else { return Ok(()) };
    let message = "an unknown metadata item that whoever opens the file must know";
    Err(Error::new(ErrorKind::Unsupported, "metadata.unknown-required", message)
        .with_section("2.6.1.2")
        .at(at + MetadataTable::entry_place(i))
        .with_found(table.entries[i].item)
        .with_expected("one of the six items that the format defines"))
}

fn read(storage: &dyn Storage, buf: &mut [u8], at: u64) -> Result<()> {
    storage.read_exact_at(buf, at).map_err(|error| {
        Error::io("metadata.read", format!("cannot read {} bytes of metadata", buf.len()), error)
            .at(at)
    })
}
