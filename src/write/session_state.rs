//! State of a session: its log, and the durable length of the file.

use uuid::Uuid;

use crate::error::Error;
use crate::log::LogWriter;

/// Whether the claims of the tables allow the image to be changed.
#[derive(Debug, Default)]
pub(super) enum ClaimsState {
    #[default]
    Unchecked,
    Sound,
    Damaged(Error),
}

/// State of a session: its log, and the durable length of the file.
#[derive(Debug)]
pub(super) struct Session {
    /// Exists from the first change on, also if that is hidden.
    pub(super) log: Option<LogWriter>,
    /// Length of the file at the start of the last completed flush, in bytes.
    pub(super) flushed_len: u64,
    /// Whether the file was found unchanged since it was opened.
    pub(super) is_verified: bool,
    /// The identity that the next visible change gives the image, if it is set.
    pub(super) next_identity: Option<Uuid>,
}

impl Session {
    pub(super) fn new(file_len: u64) -> Self {
        Self { log: None, flushed_len: file_len, is_verified: false, next_identity: None }
    }
}
