//! State of a session: its log, and the durable length of the file.

use uuid::Uuid;

use crate::error::Error;
use crate::log::LogWriter;
use crate::tables::Snapshot;

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
    /// Whether the newer header was written after that flush.
    pub(super) has_unflushed_header: bool,
    /// Whether the file was found unchanged since it was opened.
    pub(super) is_verified: bool,
    /// The identity that the next visible change gives the image, if it is set.
    pub(super) next_identity: Option<Uuid>,
}

impl Session {
    pub(super) fn new(file_len: u64) -> Self {
        Self {
            log: None,
            flushed_len: file_len,
            has_unflushed_header: false,
            is_verified: false,
            next_identity: None,
        }
    }

    /// Whether these pages fit into one log entry beside all that the log has to keep.
    pub(super) fn fits_one_entry(&self, pages: &[Snapshot]) -> bool {
        let fits = |log: &LogWriter| pages.len() <= log.most_changes() && log.fits(pages.len());
        self.log.as_ref().is_some_and(fits)
    }
}
