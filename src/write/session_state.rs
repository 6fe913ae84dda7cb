//! State of a session: its log, and the durable length of the file.

use std::ops::{Deref, DerefMut};
use std::sync::{PoisonError, TryLockError};

use uuid::Uuid;

use crate::error::Error;
use crate::log::LogWriter;
use crate::sync::{Condvar, Mutex, MutexGuard};
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

/// The session, which one thread at a time locks, or one planned flush reserves from its first step to its last.
#[derive(Debug)]
pub(super) struct SessionLock {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug)]
struct State {
    session: Session,
    is_reserved: bool,
}

/// The locked session.
pub(super) struct SessionGuard<'a>(MutexGuard<'a, State>);

impl SessionLock {
    pub(super) fn new(file_len: u64) -> Self {
        let state = State { session: Session::new(file_len), is_reserved: false };
        Self { state: Mutex::new(state), released: Condvar::new() }
    }

    /// Waits until nobody has the session.
    pub(super) fn lock(&self) -> SessionGuard<'_> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.is_reserved {
            state = self.released.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        SessionGuard(state)
    }

    /// Reserves the session, unless that has to wait.
    pub(super) fn try_reserve(&self) -> bool {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        !std::mem::replace(&mut state.is_reserved, true)
    }

    /// The session, for the one who reserved it. The others hold the lock for a moment only.
    pub(super) fn lock_reserved(&self) -> SessionGuard<'_> {
        SessionGuard(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the reservation.
    pub(super) fn release(&self) {
        self.lock_reserved().0.is_reserved = false;
        self.released.notify_all();
    }
}

impl Deref for SessionGuard<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0.session
    }
}

impl DerefMut for SessionGuard<'_> {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.0.session
    }
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

    /// Records that the pages of all log entries were written to their places.
    pub(super) fn pages_written(&mut self) {
        if let Some(log) = &mut self.log {
            log.pages_written();
        }
    }

    /// Whether the pages of the log entries before may stay out of their places while these pages are logged.
    pub(super) fn may_keep_back(&self, pages: &[Snapshot]) -> bool {
        self.log.as_ref().is_some_and(|log| log.may_keep_back(pages.len()))
    }

    /// Whether the next log entry must need none of those before.
    pub(super) fn begins_lap(&self) -> bool {
        self.log.as_ref().is_some_and(LogWriter::begins_lap)
    }

    /// Whether these pages fit into one log entry beside all that the log has to keep.
    pub(super) fn fits_one_entry(&self, pages: &[Snapshot]) -> bool {
        let fits = |log: &LogWriter| pages.len() <= log.most_changes() && log.fits(pages.len());
        self.log.as_ref().is_some_and(fits)
    }
}
