//! Changes metadata items of users, and what an image records of its disk.

use uuid::Uuid;

use super::{FileChangeKind, Forecast};
use crate::error::{Error, ErrorKind, Result};
use crate::file::{VhdxFile, read_only};
use crate::format::marks;
use crate::format::metadata::{self, ItemFlags, MetadataTable};
use crate::image::Core;
use crate::trace::operation;
use crate::types::MIB;
use crate::write::{ItemEdit, check_edits, edit_len};

/// Changes metadata items of users, and the identity and the physical sector size that an image records for its disk:
/// in one step, durably, and not a byte of the disk.
///
/// The image is opened for writing on its own, which refuses one that has children:
/// see [`OpenOptions::writable`](crate::OpenOptions::writable). It keeps its `DataWriteGuid`. After a crash, either all of
/// the changes are there or none.
///
/// Items have the flag IsUser, \[MS-VHDX\] 2.6.1.2; programs that do not know an item ignore it. There may be 1024, of up
/// to 1 MiB each, as far as they fit into the metadata region, usually of 1 MiB in all. The marks of this crate are not
/// changed.
///
/// ```no_run
/// use avhdx::OpenOptions;
/// use avhdx::ops::EditMetadata;
/// use avhdx::uuid::Uuid;
///
/// let image = OpenOptions::new().writable(true).open_image("web.vhdx")?;
/// let note = Uuid::from_u128(0x5ac1_c0de_0000_4000_8000_0000_0000_0001);
/// EditMetadata::new().set(note, "made by the nightly build").disk_id(Uuid::new_v4()).run(&image)?;
/// image.close()?;
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct EditMetadata {
    items: Vec<(Uuid, Option<Vec<u8>>)>,
    disk_id: Option<Uuid>,
    physical_sector: Option<u32>,
}

impl EditMetadata {
    /// No change.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the contents of an item, which is added if it does not exist. An existing item keeps its other flags.
    pub fn set(mut self, item: Uuid, contents: impl Into<Vec<u8>>) -> Self {
        self.change(item, Some(contents.into()));
        self
    }

    /// Removes an item, which must exist.
    pub fn remove(mut self, item: Uuid) -> Self {
        self.change(item, None);
        self
    }

    /// Sets the identity of the virtual disk, \[MS-VHDX\] 2.6.2.3, which guests and backup programs tell disks by. That of
    /// a parent is not changed; a merge gives the parent that of the child.
    pub fn disk_id(mut self, id: Uuid) -> Self {
        self.disk_id = Some(id);
        self
    }

    /// Sets the physical sector size that the disk claims to have, 512 or 4096 bytes, \[MS-VHDX\] 2.6.2.5. It shows in
    /// [`Disk::geometry`](crate::Disk::geometry) once the image is opened again.
    pub fn physical_sector(mut self, bytes: u32) -> Self {
        self.physical_sector = Some(bytes);
        self
    }

    /// Predicts what [`run`](Self::run) will do, which needs no space: the pages of the metadata that it writes. Changes
    /// nothing; the image may be open for reading.
    ///
    /// # Errors
    /// As for [`run`](Self::run), but for the host's.
    pub fn forecast(&self, image: &VhdxFile) -> Result<Forecast> {
        image.with(|layer| {
            let edits = self.edits(layer)?;
            let mut forecast = Forecast::in_place();
            forecast.written = edit_len(layer, &edits)?;
            check_edits(layer, &[edits])?;
            if let Some(path) = layer.path().filter(|_| forecast.written > 0) {
                forecast.add(path, FileChangeKind::Changed);
            }
            Ok(forecast)
        })
    }

    /// Makes the changes durable. Changes nothing if there are none to make.
    ///
    /// # Errors
    /// Before anything is changed: [`ErrorKind::InvalidInput`] for an item that does not exist, that is too long or that
    /// is a mark of this crate, and for a sector size that the format does not allow; [`ErrorKind::Unsupported`] if the
    /// items are too many, or do not fit into the region or a log entry; [`ErrorKind::Unfinished`] and
    /// [`ErrorKind::Merged`] for an image that a merge left unfinished; [`ErrorKind::ReadOnly`] if the image is not open
    /// for writing; [`ErrorKind::Damaged`]. During the change [`ErrorKind::Io`] and [`ErrorKind::Poisoned`].
    pub fn run(self, image: &VhdxFile) -> Result<()> {
        let _span = operation("edit metadata", image.name());
        let writer = image.writer().ok_or_else(|| read_only(image.name()))?;
        writer.edit_metadata(&self.edits(writer.core())?)
    }

    /// The last change of an item counts.
    fn change(&mut self, item: Uuid, contents: Option<Vec<u8>>) {
        self.items.retain(|(other, _)| *other != item);
        self.items.push((item, contents));
    }

    fn edits(&self, image: &Core) -> Result<Vec<ItemEdit>> {
        image.check_point()?;
        let named = |error: Error| error.in_file(image.name());
        let metadata = image.metadata();
        let items = self
            .items
            .iter()
            .map(|(item, contents)| self.edit(&metadata.table, *item, contents.as_deref()));
        let mut edits = items.collect::<Result<Vec<_>>>().map_err(named)?;
        self.check_count(&metadata.table).map_err(named)?;
        let flags = ItemFlags::VIRTUAL_DISK | ItemFlags::REQUIRED;
        let set = |item, bytes| ItemEdit::Set { item, flags, bytes };
        if let Some(id) = self.disk_id {
            let bytes = metadata::disk_id_to_bytes(id).to_vec();
            edits.push(set(metadata::VIRTUAL_DISK_ID, bytes));
        }
        if let Some(size) = self.physical_sector {
            if !metadata::is_sector_size(size) {
                let message = "the format does not allow this physical sector size";
                return Err(Error::new(ErrorKind::InvalidInput, "metadata.edit-sector", message)
                    .in_file(image.name())
                    .with_section("2.6.2.5")
                    .with_found(size)
                    .with_expected(metadata::SECTOR_SIZES));
            }
            let bytes = metadata::sector_size_to_bytes(size).to_vec();
            edits.push(set(metadata::PHYSICAL_SECTOR_SIZE, bytes));
        }
        Ok(edits)
    }

    fn edit(&self, table: &MetadataTable, item: Uuid, contents: Option<&[u8]>) -> Result<ItemEdit> {
        if [marks::CHECKPOINT, marks::MERGE, marks::REQUEST].contains(&item) {
            let message = "a mark of avhdx is not changed as an item";
            return Err(Error::new(ErrorKind::InvalidInput, "metadata.mark", message)
                .with_found(item)
                .with_expected("an item of others; labels and merges change marks"));
        }
        let old = table.user(item);
        let Some(contents) = contents else {
            let gone = ItemEdit::Remove { item, is_user: true };
            return old.map(|_| gone).ok_or_else(|| metadata::no_item(item));
        };
        if contents.len() as u64 > MIB {
            let message = "the format does not allow an item of this length";
            return Err(Error::new(ErrorKind::InvalidInput, "metadata.item-size", message)
                .with_section("2.6.1.2")
                .with_found(format_args!("{} bytes for {item}", contents.len()))
                .with_expected("at most 1 MiB"));
        }
        let flags = old.map_or(ItemFlags::USER, |old| old.flags);
        Ok(ItemEdit::Set { item, flags, bytes: contents.to_vec() })
    }

    /// Refuses more items than the format allows.
    fn check_count(&self, table: &MetadataTable) -> Result<()> {
        let is_new = |(item, contents): &&(Uuid, Option<Vec<u8>>)| {
            contents.is_some() && table.user(*item).is_none()
        };
        let added = self.items.iter().filter(is_new).count();
        let gone = self.items.iter().filter(|(_, contents)| contents.is_none()).count();
        let count = table.user_count() + added - gone;
        if added == 0 || count <= MetadataTable::MAX_USER_ENTRIES {
            return Ok(());
        }
        let message = "the format does not allow more items of users";
        Err(Error::new(ErrorKind::Unsupported, "metadata.full", message)
            .with_section("2.6.1.1")
            .with_found(count)
            .with_expected(format_args!("at most {}", MetadataTable::MAX_USER_ENTRIES)))
    }
}
