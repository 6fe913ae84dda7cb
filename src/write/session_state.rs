//! What a session knows of its log and of what is durable.

use uuid::Uuid;

use crate::error::Error;
use crate::log::LogWriter;

/// Whether the image is one that may be changed at all.
#[derive(Debug, Default)]
pub(super) enum Surveyed {
    #[default]
    NotYet,
    Sound,
    Damaged(Error),
}

/// What a session knows of its log and of what is durable.
#[derive(Debug)]
pub(super) struct Session {
    /// There from the first change on, be it one that nobody sees.
    pub(super) log: Option<LogWriter>,
    /// Length of the file at the start of the last completed flush.
    pub(super) flushed_len: u64,
    /// Whether the file was found to be the one that was opened.
    pub(super) is_verified: bool,
    /// What the image is known by from the next visible change on, where that is settled.
    pub(super) next_identity: Option<Uuid>,
}

impl Session {
    pub(super) fn new(file_len: u64) -> Self {
        Self { log: None, flushed_len: file_len, is_verified: false, next_identity: None }
    }
}
