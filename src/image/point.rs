//! Determines whether an image is a point in time: the checkpoint below it, and the merge that it is part of.

use super::{Core, Moved};
use crate::error::{Error, ErrorKind, Result};
use crate::format::marks::{CheckpointMark, MergeMark, MergeRequest, MergeState};

impl Core {
    /// The name of the point in time below this image, if a checkpoint made the image.
    pub(crate) fn checkpoint(&self) -> Option<CheckpointMark> {
        self.metadata().marks.checkpoint.clone()
    }

    /// The unfinished merge of this image, if there is one.
    pub(crate) fn merge_mark(&self) -> Option<MergeMark> {
        self.metadata().marks.merge.clone()
    }

    /// The merge of this image that was requested, if there is one.
    pub(crate) fn merge_request(&self) -> Option<MergeRequest> {
        self.metadata().marks.request.clone()
    }

    /// Whether a merge of this image into its parent was begun or requested, and is not complete.
    pub(crate) fn is_to_be_merged(&self) -> bool {
        let mark = self.merge_mark();
        self.merge_request().is_some() || mark.is_some_and(|mark| mark.state != MergeState::Target)
    }

    /// The parent durably holds this image's data before this byte of the disk. Recorded by a merge that was stopped,
    /// and valid while the image is unchanged since then.
    pub(crate) fn in_parent(&self) -> u64 {
        let mark = self.merge_mark().filter(|mark| mark.state == MergeState::Merging);
        let moved = mark.and_then(|mark| mark.moved);
        let is_of_now = |moved: &Moved| moved.child == self.data_write_guid();
        moved.filter(is_of_now).map_or(0, |moved| moved.end)
    }

    /// Refuses an image as the top of a chain if a merge has left it without a point in time.
    pub(crate) fn check_point(&self) -> Result<()> {
        let refused = self.merge_mark().and_then(|mark| no_point(&mark));
        refused.map_or(Ok(()), |error| Err(error.in_file(self.name())))
    }
}

/// The reason why an image with this mark is not a point in time, if it is not.
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
