//! Admits changes to the image, and reports them to a tracker and to records.
//!
//! Every change holds the lock shared. An exclusive holder knows that each change is either
//! complete or not begun, and can refuse later ones. While changes are [tracked](ChangeTracker),
//! each reports its range when it ends: a copier that reads a range after the report misses
//! nothing. [Records](ChangeRecord) get the same reports.

use std::ops::Range;
use std::sync::{Arc, PoisonError, TryLockError, Weak};

use super::record::ChangeRecord;
use super::tracker::{ChangeTracker, MirrorOp};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Admits changes until it is closed.
#[derive(Debug, Default)]
pub(super) struct ChangeLock(RwLock<ChangeState>);

#[derive(Debug, Default)]
pub(super) struct ChangeState {
    pub(super) is_closed: bool,
    /// Set while changes are tracked.
    tracker: Option<Arc<ChangeTracker>>,
    /// Records of all changes, as long as somebody holds them.
    records: Vec<Weak<ChangeRecord>>,
}

/// A change in progress.
#[derive(Debug)]
pub(super) struct Change<'a> {
    state: RwLockReadGuard<'a, ChangeState>,
    /// The bytes of the disk that change.
    range: Range<u64>,
    /// Whether the tracker holds the range for this change.
    is_held: bool,
    is_reported: bool,
}

impl ChangeLock {
    /// Begins a change of these bytes of the disk. Waits for an exclusive holder of the lock, and
    /// for holders of the bytes.
    pub(super) fn begin_change(&self, range: Range<u64>) -> Result<Change<'_>> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if state.is_closed {
            return Err(frozen());
        }
        let is_held = state.tracker.as_ref().is_some_and(|tracker| tracker.hold(&range));
        Ok(Change { state, range, is_held, is_reported: false })
    }

    /// Begins a change that readers of the disk cannot see; it is admitted to a closed image too.
    pub(super) fn begin_hidden_change(&self) -> RwLockReadGuard<'_, ChangeState> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a change that may be planned now; `None` while an exclusive holder is there or waits.
    ///
    /// # Errors
    /// As [`begin_change`](Self::begin_change).
    pub(super) fn try_admit(&self) -> Result<Option<RwLockReadGuard<'_, ChangeState>>> {
        let state = match self.0.try_read() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(None),
        };
        if state.is_closed { Err(frozen()) } else { Ok(Some(state)) }
    }

    /// Waits for all changes in progress, and keeps others out until the guard is dropped.
    pub(super) fn write(&self) -> RwLockWriteGuard<'_, ChangeState> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports all later changes to `tracker`.
    pub(super) fn track(&self, tracker: Option<Arc<ChangeTracker>>) {
        self.write().tracker = tracker;
    }

    /// Records all later changes in these, too.
    pub(super) fn record_in(&self, records: &[Weak<ChangeRecord>]) {
        let mut state = self.write();
        state.records.retain(|record| record.strong_count() > 0);
        state.records.extend_from_slice(records);
    }
}

impl ChangeState {
    /// Whether changes are tracked and some of these bytes changed since they were copied.
    pub(super) fn is_changed(&self, range: &Range<u64>) -> bool {
        self.tracker.as_ref().is_some_and(|tracker| tracker.is_changed(range))
    }

    /// Records a change that has ended.
    pub(super) fn record(&self, range: &Range<u64>) {
        for record in self.records.iter().filter_map(Weak::upgrade) {
            record.changed(range);
        }
    }

    /// Refuses all later changes, or admits them again.
    pub(super) fn close(&mut self, yes: bool) {
        self.is_closed = yes;
    }
}

impl Change<'_> {
    /// Ends a change, and repeats it in a mirror with `op` if there is one. A failure of the mirror
    /// does not fail the change.
    pub(super) fn finish(mut self, done: Result<()>, op: MirrorOp<'_>) -> Result<()> {
        self.is_reported = true;
        let Some(tracker) = &self.state.tracker else { return done };
        let op = done.is_ok().then_some(op);
        let wait = tracker.finish_change(&self.range, self.is_held, op);
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
        if let Some(tracker) = self.state.tracker.as_ref().filter(|_| !self.is_reported) {
            tracker.finish_change(&self.range, self.is_held, None);
        }
        self.state.record(&self.range);
    }
}

/// The error of a change to a frozen image.
pub(super) fn frozen() -> Error {
    let message = "the image is frozen: its contents have become a point in time";
    Error::new(ErrorKind::ReadOnly, "image.frozen", message)
}
