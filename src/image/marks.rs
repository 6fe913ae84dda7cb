//! The marks of an image: the name of the checkpoint below it, the merge that it is part of, and the one that
//! was requested.

use crate::error::Error;
use crate::format::marks::{CheckpointMark, MergeMark, MergeRequest};

/// The marks found in an image.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    pub(crate) checkpoint: Option<CheckpointMark>,
    pub(crate) merge: Option<MergeMark>,
    pub(crate) request: Option<MergeRequest>,
    /// The faults of unreadable marks, which count as absent.
    pub(crate) unreadable: Vec<Error>,
}
