//! The metadata of an image: known items are read and checked, others are listed.

use uuid::Uuid;

use super::marks::Marks;
use crate::disk::Geometry;
use crate::error::{Error, ErrorKind, Result};
use crate::format::locator::ParentLocator;
use crate::format::marks::{self, CheckpointMark, MergeMark, MergeRequest};
use crate::format::metadata::{
    self, FileFlags, FileParameters, ItemFlags, MetadataEntry, MetadataTable,
};
use crate::format::region::RegionEntry;
use crate::format::{OnError, strict};
use crate::storage::Storage;

/// The contents of the metadata region.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub(crate) table: MetadataTable,
    pub(crate) file: FileParameters,
    pub(crate) geometry: Geometry,
    pub(crate) disk_id: Uuid,
    /// Present if and only if this is a differencing image.
    pub(crate) locator: Option<PlacedLocator>,
    pub(crate) marks: Marks,
    /// Faults of the locator that were tolerated.
    pub(crate) locator_faults: Vec<Error>,
    any_locator: bool,
}

/// A parent locator and its offset in the file.
#[derive(Debug)]
pub(crate) struct PlacedLocator {
    pub(crate) locator: ParentLocator,
    pub(crate) at: u64,
}

/// The readable part of the metadata. Missing parts have been reported.
#[derive(Debug)]
pub(crate) struct Inspected {
    pub(crate) table: MetadataTable,
    /// With the offset of the item in the file.
    pub(crate) file: Option<(FileParameters, u64)>,
    pub(crate) logical_sector: Option<u32>,
    pub(crate) physical_sector: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) disk_id: Option<Uuid>,
    pub(crate) locator: Option<PlacedLocator>,
}

impl Inspected {
    /// Reads the region and reports every fault. `None` if it has no metadata table.
    pub(crate) fn new(
        storage: &dyn Storage,
        region: &RegionEntry,
        on: OnError<'_>,
    ) -> Option<Self> {
        let at = region.offset.get();
        let bytes = table_bytes(storage, at).map_err(&mut *on).ok()?;
        let table = MetadataTable::inspect(&bytes, at, region.length, on)?;
        refuse_unknown(&table, at, on);
        let items = Items { storage, table: &table, at, region_len: region.length };

        let item = items.fixed(metadata::FILE_PARAMETERS, "File Parameters", FileParameters::LEN);
        let file = item.and_then(|found| {
            let Some((bytes, place)) = found else { return Ok(None) };
            Ok(Some((FileParameters::parse(&bytes, place)?, place)))
        });
        let file = said(file, on);
        let sector_size = |item, name, section| {
            let Some((bytes, place)) = items.fixed(item, name, 4)? else { return Ok(None) };
            metadata::parse_sector_size(&bytes, place, section).map(Some)
        };
        let logical_sector =
            sector_size(metadata::LOGICAL_SECTOR_SIZE, "Logical Sector Size", "2.6.2.4");
        let logical_sector = said(logical_sector, on);
        let physical_sector =
            sector_size(metadata::PHYSICAL_SECTOR_SIZE, "Physical Sector Size", "2.6.2.5");
        let physical_sector = said(physical_sector, on);
        let size = items.fixed(metadata::VIRTUAL_DISK_SIZE, "Virtual Disk Size", 8);
        let size = size.and_then(|found| {
            let Some((bytes, place)) = found else { return Ok(None) };
            // Without a recorded sector size, any multiple of the smallest is accepted.
            metadata::parse_virtual_size(&bytes, place, logical_sector.unwrap_or(512)).map(Some)
        });
        let size = said(size, on);
        let disk_id = said(items.fixed(metadata::VIRTUAL_DISK_ID, "Virtual Disk ID", 16), on)
            .map(|(bytes, _)| metadata::parse_disk_id(&bytes));
        let has_parent = file.map(|(file, _)| file.flags.contains(FileFlags::HAS_PARENT));
        let locator = items.locator(has_parent, on);
        Some(Self { file, logical_sector, physical_sector, size, disk_id, locator, table })
    }
}

impl Metadata {
    /// Reads the region. With `any_locator`, an invalid or missing parent locator is tolerated and its faults are
    /// kept; other faults are errors.
    pub(crate) fn load(
        storage: &dyn Storage,
        region: &RegionEntry,
        any_locator: bool,
    ) -> Result<Self> {
        let mut faults = Vec::new();
        let mut metadata = strict(|on| {
            let found = Inspected::new(storage, region, &mut |error| {
                if any_locator && is_of_locator(&error) {
                    faults.push(error);
                } else {
                    on(error);
                }
            })?;
            let geometry =
                Geometry::new(found.size?, found.logical_sector?, found.physical_sector?);
            let file = found.file?.0;
            // Without a locator, the image is still a differencing one, whose parent the caller names.
            let is_child = any_locator && file.flags.contains(FileFlags::HAS_PARENT);
            let none =
                || PlacedLocator { locator: ParentLocator::empty(), at: region.offset.get() };
            Some(Self {
                file,
                geometry,
                disk_id: found.disk_id?,
                locator: found.locator.or_else(|| is_child.then(none)),
                table: found.table,
                marks: Marks::default(),
                locator_faults: Vec::new(),
                any_locator,
            })
        })?;
        if any_locator && let Some(placed) = &metadata.locator {
            placed.locator.linkages_as_meant(placed.at, &mut |error| faults.push(error));
        }
        metadata.locator_faults = faults;
        metadata.marks = Marks::find(storage, region, &metadata.table)?;
        Ok(metadata)
    }

    /// The identities that the parent may have. The first is nil if none is recorded, which only a tolerated locator
    /// allows.
    pub(crate) fn linkages(&self, placed: &PlacedLocator) -> Result<(Uuid, Option<Uuid>)> {
        let PlacedLocator { locator, at } = placed;
        match self.any_locator {
            true => Ok(locator.linkages_as_meant(*at, &mut drop)),
            false => Ok((locator.linkage(*at)?, locator.linkage2(*at)?)),
        }
    }

    /// The items, with their bytes, that describe the virtual disk and that the format does not define.
    pub(crate) fn disk_items(
        &self,
        storage: &dyn Storage,
        region: &RegionEntry,
    ) -> Result<Vec<(MetadataEntry, Vec<u8>)>> {
        let items = Items {
            storage,
            table: &self.table,
            at: region.offset.get(),
            region_len: region.length,
        };
        let is_disk = |entry: &&MetadataEntry| {
            entry.flags.contains(ItemFlags::VIRTUAL_DISK) && metadata::name(entry).is_none()
        };
        let found = self.table.entries.iter().filter(is_disk);
        found.map(|entry| Ok((entry.clone(), items.bytes(entry)?))).collect()
    }

    /// The bytes of a user item, if it exists.
    pub(crate) fn user_item(
        &self,
        storage: &dyn Storage,
        region: &RegionEntry,
        item: Uuid,
    ) -> Result<Option<Vec<u8>>> {
        let (at, region_len) = (region.offset.get(), region.length);
        let items = Items { storage, table: &self.table, at, region_len };
        Ok(items.of_user(item)?.map(|(bytes, _)| bytes))
    }

    pub(crate) fn has_parent(&self) -> bool {
        self.locator.is_some()
    }
}

impl Marks {
    /// Reads the marks named in the table of a region.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]. An invalid mark is not an error.
    pub(crate) fn find(
        storage: &dyn Storage,
        region: &RegionEntry,
        table: &MetadataTable,
    ) -> Result<Self> {
        let at = region.offset.get();
        let items = Items { storage, table, at, region_len: region.length };
        let mut marks = Self::default();
        if let Some((bytes, place)) = items.of_user(marks::CHECKPOINT)? {
            marks.checkpoint = said(CheckpointMark::parse(&bytes, place).map(Some), &mut |error| {
                marks.unreadable.push(error);
            });
        }
        if let Some((bytes, place)) = items.of_user(marks::MERGE)? {
            marks.merge = said(MergeMark::parse(&bytes, place).map(Some), &mut |error| {
                marks.unreadable.push(error);
            });
        }
        if let Some((bytes, place)) = items.of_user(marks::REQUEST)? {
            marks.request = said(MergeRequest::parse(&bytes, place).map(Some), &mut |error| {
                marks.unreadable.push(error);
            });
        }
        Ok(marks)
    }
}

/// Whether the fault concerns only the parent locator.
fn is_of_locator(error: &Error) -> bool {
    let is_it = |item: &str| item.parse() == Ok(metadata::PARENT_LOCATOR);
    error.code().starts_with("locator.")
        || error.code() == "metadata.missing" && error.expected().is_some_and(is_it)
}

/// Reads the items of a table one by one.
struct Items<'a> {
    storage: &'a dyn Storage,
    table: &'a MetadataTable,
    at: u64,
    region_len: u32,
}

impl Items<'_> {
    /// A required item of fixed length and its offset in the file. `None` if the table's faults leave it without an
    /// offset.
    fn fixed(&self, item: Uuid, name: &str, len: usize) -> Result<Option<(Vec<u8>, u64)>> {
        let found = self.table.system(item, self.at);
        let (entry, entry_at) = found.ok_or_else(|| metadata::missing(item, name, self.at))?;
        if !entry.is_placed(self.region_len) {
            return Ok(None);
        }
        if entry.length as usize != len {
            let message = format!("wrong length of the {name} item");
            return Err(Error::damaged("metadata.item-length", "2.6.2", entry_at + 20, message)
                .with_found(entry.length)
                .with_expected(len));
        }
        Ok(Some((self.bytes(entry)?, self.at + u64::from(entry.offset))))
    }

    /// A user item with data, and its offset in the file.
    fn of_user(&self, item: Uuid) -> Result<Option<(Vec<u8>, u64)>> {
        let entry = self.table.user(item);
        let Some(entry) = entry.filter(|entry| entry.is_placed(self.region_len)) else {
            return Ok(None);
        };
        Ok(Some((self.bytes(entry)?, self.at + u64::from(entry.offset))))
    }

    fn locator(&self, has_parent: Option<bool>, on: OnError<'_>) -> Option<PlacedLocator> {
        match (self.table.system(metadata::PARENT_LOCATOR, self.at), has_parent?) {
            (None, false) => None,
            (None, true) => {
                on(metadata::missing(metadata::PARENT_LOCATOR, "Parent Locator", self.at));
                None
            }
            (Some((_, entry_at)), false) => {
                let message = "a parent locator in an image that says it has no parent";
                on(Error::damaged("metadata.locator", "2.6.2.6", entry_at, message)
                    .with_found("a Parent Locator item")
                    .with_expected("none, or the flag HasParent"));
                None
            }
            (Some((entry, _)), true) => {
                if !entry.is_placed(self.region_len) {
                    return None;
                }
                let at = self.at + u64::from(entry.offset);
                let bytes = self.bytes(entry).map_err(&mut *on).ok()?;
                Some(PlacedLocator { locator: ParentLocator::inspect(&bytes, at, on)?, at })
            }
        }
    }

    /// The bytes of an item whose position was checked: at most 1 MiB within the region.
    fn bytes(&self, entry: &MetadataEntry) -> Result<Vec<u8>> {
        let mut bytes = vec![0; entry.length as usize];
        read(self.storage, &mut bytes, self.at + u64::from(entry.offset))?;
        Ok(bytes)
    }
}

/// The bytes of the table of the region at `at`.
pub(crate) fn table_bytes(storage: &dyn Storage, at: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; MetadataTable::LEN];
    read(storage, &mut bytes, at)?;
    Ok(bytes)
}

/// Returns the value found; reports an error.
fn said<T>(found: Result<Option<T>>, on: OnError<'_>) -> Option<T> {
    found.unwrap_or_else(|error| {
        on(error);
        None
    })
}

fn refuse_unknown(table: &MetadataTable, at: u64, on: OnError<'_>) {
    for (i, entry) in table.entries.iter().enumerate() {
        let by_windows = metadata::name_by_windows(entry);
        let place = at + MetadataTable::entry_place(i);
        if by_windows.is_some() && entry.item == metadata::INCOMPLETE_FILE {
            let message =
                "the image is not complete: whoever was making it marked it so and did not finish";
            on(Error::new(ErrorKind::Unsupported, "metadata.incomplete-file", message)
                .with_section("2.6.1.2")
                .at(place)
                .with_found(format_args!("the Incomplete File item, {}", entry.item))
                .with_expected("an image without it"));
        }
        // Other items that Windows is known to write do not affect the contents of the disk.
        let is_known = metadata::name(entry).or(by_windows).is_some();
        if entry.flags.contains(ItemFlags::REQUIRED) && !is_known {
            let message = "an unknown metadata item that whoever opens the file must know";
            on(Error::new(ErrorKind::Unsupported, "metadata.unknown-required", message)
                .with_section("2.6.1.2")
                .at(place)
                .with_found(entry.item)
                .with_expected("one of the six items that the format defines"));
        }
    }
}

fn read(storage: &dyn Storage, buf: &mut [u8], at: u64) -> Result<()> {
    storage.read_exact_at(buf, at).map_err(|error| {
        Error::io("metadata.read", format!("cannot read {} bytes of metadata", buf.len()), error)
            .at(at)
    })
}
