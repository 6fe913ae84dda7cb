//! The marks of an image: what the checkpoint below it is called, and which merge concerns it.

use uuid::Uuid;

use super::{ItemEdit, VhdxFile};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::marks::{self, CheckpointMark, MergeMark};
use crate::format::metadata::{self, ItemFlags, MetadataEntry};

/// The marks that were found.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    pub(crate) checkpoint: Option<CheckpointMark>,
    pub(crate) merge: Option<MergeMark>,
    /// What is wrong with those that cannot be read. They count as not there.
    pub(crate) unreadable: Vec<Error>,
}

impl VhdxFile {
    /// What the point in time below this image is called, where a checkpoint made the image.
    pub fn checkpoint(&self) -> Option<CheckpointMark> {
        self.metadata().marks.checkpoint.clone()
    }

    /// The merge that concerns this image and is not over, if there is one.
    pub fn merge_mark(&self) -> Option<MergeMark> {
        self.metadata().marks.merge.clone()
    }

    /// The edits by which `other` gets what this image says of the virtual disk, but for its size,
    /// \[MS-VHDX\] 2.6.1.2.
    pub(crate) fn disk_edits(&self, other: &Self) -> Result<Vec<ItemEdit>> {
        let is_user = |entry: &MetadataEntry| entry.flags.contains(ItemFlags::USER);
        let own = self.disk_items()?;
        let theirs = other.disk_items()?;
        let is_kept = |entry: &MetadataEntry| {
            own.iter().any(|(own, _)| own.item == entry.item && is_user(own) == is_user(entry))
        };
        let gone = theirs.iter().filter(|(entry, _)| !is_kept(entry));
        let gone =
            gone.map(|(entry, _)| ItemEdit::Remove { item: entry.item, is_user: is_user(entry) });
        let set = |item, flags, bytes| ItemEdit::Set { item, flags, bytes };
        let flags = ItemFlags::VIRTUAL_DISK | ItemFlags::REQUIRED;
        let id = self.disk_id().to_bytes_le().to_vec();
        let physical = self.geometry().physical_sector.to_le_bytes().to_vec();
        let known = [
            set(metadata::VIRTUAL_DISK_ID, flags, id),
            set(metadata::PHYSICAL_SECTOR_SIZE, flags, physical),
        ];
        let moved = own.iter().map(|(entry, bytes)| set(entry.item, entry.flags, bytes.clone()));
        Ok(gone.chain(known).chain(moved).collect())
    }
}

impl ItemEdit {
    /// Sets the mark of a merge, or removes it.
    pub(crate) fn merge_mark(mark: Option<&MergeMark>) -> Self {
        Self::mark(marks::MERGE, mark.map(MergeMark::to_bytes))
    }

    fn mark(item: Uuid, bytes: Option<Vec<u8>>) -> Self {
        match bytes {
            Some(bytes) => Self::Set { item, flags: ItemFlags::USER, bytes },
            None => Self::Remove { item, is_user: true },
        }
    }
}
