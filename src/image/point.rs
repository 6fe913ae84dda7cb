//! Whether an image is a point in time: what the checkpoint below it is called, and which merge concerns it.

use super::{Core, Moved};
use crate::error::{Error, ErrorKind, Result};
use crate::format::marks::{CheckpointMark, MergeMark, MergeState};

impl Core {
    /// What the point in time below this image is called, where a checkpoint made the image.
    pub(crate) fn checkpoint(&self) -> Option<CheckpointMark> {
        self.metadata().marks.checkpoint.clone()
    }

    /// The merge that concerns this image and is not over, if there is one.
    pub(crate) fn merge_mark(&self) -> Option<MergeMark> {
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
