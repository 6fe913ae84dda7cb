//! The marks of an image: what the checkpoint below it is called, and which merge concerns it.

use crate::error::Error;
use crate::format::marks::{CheckpointMark, MergeMark};

/// The marks that were found.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    pub(crate) checkpoint: Option<CheckpointMark>,
    pub(crate) merge: Option<MergeMark>,
    /// What is wrong with those that cannot be read. They count as not there.
    pub(crate) unreadable: Vec<Error>,
}
