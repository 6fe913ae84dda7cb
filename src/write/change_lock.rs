//! Who may change the image, and who is told of it.
//!
//! Every change holds the lock, shared with other changes. A holder that has it alone knows each change to be either
//! complete or not begun, and can refuse those that are not begun. While changes are [tracked](ChangeTracker), each
//! reports its range when it ends: a copier that reads a range after its report misses nothing.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use super::tracker::{Again, ChangeTracker};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Lets changes in, unless it is closed.
#[derive(Debug, Default)]
pub(super) struct ChangeLock(RwLock<ChangeState>);

#[derive(Debug, Default)]
pub(super) struct ChangeState {
    pub(super) is_closed: bool,
    /// There while changes are followed.
    tracker: Option<Arc<ChangeTracker>>,
}

/// A change under way.
#[derive(Debug)]
pub(super) struct Change<'a> {
    state: RwLockReadGuard<'a, ChangeState>,
    /// The bytes of the disk that it is about.
    range: Range<u64>,
    /// Whether it has them for itself.
    is_held: bool,
    is_told: bool,
}

impl ChangeLock {
    /// Lets in a change of these bytes of the disk, once nobody has the gate alone or holds the bytes.
    pub(super) fn enter(&self, range: Range<u64>) -> Result<Change<'_>> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if state.is_closed {
            return Err(frozen());
        }
        let is_held = state.tracker.as_ref().is_some_and(|tracker| tracker.hold(&range));
        Ok(Change { state, range, is_held, is_told: false })
    }

    /// Lets in a change that nobody sees who reads the disk: also where others are refused.
    pub(super) fn begin_hidden_change(&self) -> RwLockReadGuard<'_, ChangeState> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for all changes under way, and keeps others out until the guard is dropped.
    pub(super) fn write(&self) -> RwLockWriteGuard<'_, ChangeState> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has all changes to come tell of themselves.
    pub(super) fn track(&self, tracker: Option<Arc<ChangeTracker>>) {
        self.write().tracker = tracker;
    }
}

impl ChangeState {
    /// Whether changes are followed, and some of these bytes were changed since they were copied.
    pub(super) fn is_changed(&self, range: &Range<u64>) -> bool {
        self.tracker.as_ref().is_some_and(|tracker| tracker.is_changed(range))
    }

    /// Refuses all changes to come, or lets them in again.
    pub(super) fn close(&mut self, yes: bool) {
        self.is_closed = yes;
    }
}

impl Change<'_> {
    /// Ends a change, and has it made `again` where others are to have it too. What becomes of that is not what
    /// becomes of the change.
    pub(super) fn leave(mut self, done: Result<()>, again: Again<'_>) -> Result<()> {
        self.is_told = true;
        let Some(tracker) = &self.state.tracker else { return done };
        let again = done.is_ok().then_some(again);
        let wait = tracker.changed(&self.range, self.is_held, again);
        drop(self);
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        done
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        // A change that failed may have been made in part.
        if let Some(tracker) = self.state.tracker.as_ref().filter(|_| !self.is_told) {
            tracker.changed(&self.range, self.is_held, None);
        }
    }
}

/// The refusal of a change to a frozen image.
pub(super) fn frozen() -> Error {
    let message = "the image takes no writes any more: its contents are a point in time now";
    Error::new(ErrorKind::ReadOnly, "image.frozen", message)
}
