//! The marks of an image: what the checkpoint below it is called, and which merge concerns it.

use uuid::Uuid;

use super::{Core, Moved};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::marks::{self, CheckpointMark, MergeMark, MergeState};
use crate::format::metadata::{self, ItemFlags, MetadataEntry};
use crate::write::ItemEdit;

/// The marks that were found.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    pub(crate) checkpoint: Option<CheckpointMark>,
    pub(crate) merge: Option<MergeMark>,
    /// What is wrong with those that cannot be read. They count as not there.
    pub(crate) unreadable: Vec<Error>,
}

impl Core {
    /// What the point in time below this image is called, where a checkpoint made the image.
    pub fn checkpoint(&self) -> Option<CheckpointMark> {
        self.metadata().marks.checkpoint.clone()
    }

    /// The merge that concerns this image and is not over, if there is one.
    pub fn merge_mark(&self) -> Option<MergeMark> {
        self.metadata().marks.merge.clone()
    }

    /// The bytes of the disk before this one are durably in the parent, as far as they are this image's: a merge
    /// that was stopped left word of it, and nothing was changed since.
    pub(crate) fn in_parent(&self) -> u64 {
        let mark = self.merge_mark().filter(|mark| mark.state == MergeState::Merging);
        let moved = mark.and_then(|mark| mark.moved);
        let is_of_now = |moved: &Moved| moved.child == self.data_write_guid();
        moved.filter(is_of_now).map_or(0, |moved| moved.end)
    }

    /// Refuses an image as the top of a chain that, because of a merge, is no point in time.
    pub(crate) fn check_point(&self) -> Result<()> {
        let refused = self.merge_mark().and_then(|mark| no_point(&mark));
        refused.map_or(Ok(()), |error| Err(error.in_file(self.name())))
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

/// Why an image with this mark is no point in time, if it is none.
pub(crate) fn no_point(mark: &MergeMark) -> Option<Error> {
    let other = &mark.name;
    let error = match mark.state {
        MergeState::Merging => return None,
        MergeState::Spent => {
            let message = format!(
                "all that the image held is in its parent {other}, which may have newer bytes: read that instead",
            );
            Error::new(ErrorKind::Merged, "merge.spent", message)
                .with_found("the mark of a merge that is complete")
                .with_expected("an image that is part of a chain; this one can be removed")
        }
        MergeState::Target => {
            let message = format!(
                "{other} is being merged into the image, which holds a mixture until that is completed: read {other}, \
                 or what lies above it",
            );
            Error::new(ErrorKind::Unfinished, "merge.target", message)
                .with_found("the mark of a merge that is under way")
                .with_expected("the merge to be resumed first")
        }
    };
    Some(error.with_section("2.6.2.6.3"))
}
