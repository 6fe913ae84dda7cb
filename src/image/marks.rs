//! The marks of an image: what the checkpoint below it is called, and which merge concerns it.

use uuid::Uuid;

use super::{ItemEdit, VhdxFile};
use crate::error::Error;
use crate::format::marks::{self, CheckpointMark, MergeMark};
use crate::format::metadata::ItemFlags;

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
}

#[allow(dead_code, reason = "the operations that change chains are built on it")]
impl ItemEdit {
    /// Sets the mark of a merge, or removes it.
    pub(crate) fn merge_mark(mark: Option<&MergeMark>) -> Self {
        Self::mark(marks::MERGE, mark.map(MergeMark::to_bytes))
    }

    /// Sets the mark of a checkpoint, or removes it.
    pub(crate) fn checkpoint(mark: Option<&CheckpointMark>) -> Self {
        Self::mark(marks::CHECKPOINT, mark.map(CheckpointMark::to_bytes))
    }

    fn mark(item: Uuid, bytes: Option<Vec<u8>>) -> Self {
        match bytes {
            Some(bytes) => Self::Set { item, flags: ItemFlags::USER, bytes },
            None => Self::Remove { item, is_user: true },
        }
    }
}
