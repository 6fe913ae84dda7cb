//! The planned writes that have not ended.
//!
//! A plan is admitted while it holds the change lock shared for a moment, and is listed here from then on: an exclusive
//! holder of the lock sees all of them. It ends without that lock, so that its end never waits.

use std::ops::Range;
use std::sync::{Arc, PoisonError, Weak};

use super::record::ChangeRecord;
use super::tracker::ChangeTracker;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Mutex, MutexGuard};
use crate::types::counted;

/// Lists the planned writes that have not ended.
#[derive(Debug, Default)]
pub(super) struct OpenPlans(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    open: Vec<(PlanId, Range<u64>)>,
    next: PlanId,
    /// The ranges of those that were dropped in flight: their I/O may still be under way.
    lost: Vec<Range<u64>>,
    /// Set while changes are tracked.
    tracker: Option<Arc<ChangeTracker>>,
    /// Records of all changes, as long as somebody holds them.
    records: Vec<Weak<ChangeRecord>>,
}

/// The number of a plan.
pub(super) type PlanId = u64;

/// How a plan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Its steps were not handed out.
    Unused,
    /// All of its I/O has ended.
    Ended,
    /// It was dropped in flight.
    Lost,
}

impl OpenPlans {
    /// Lists a plan for these bytes of the disk.
    pub(super) fn add(&self, range: Range<u64>) -> PlanId {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.open.push((id, range));
        id
    }

    /// Removes a plan. The tracker, if there is one, learns that its bytes changed. The tables must have changed
    /// before: a tracker that comes later then reads what they name now.
    pub(super) fn end(&self, id: PlanId, how: End) {
        let mut state = self.state();
        let Some(at) = state.open.iter().position(|(open, _)| *open == id) else { return };
        let (_, range) = state.open.swap_remove(at);
        if how == End::Unused {
            return;
        }
        // Before the plan counts as ended.
        if let Some(tracker) = &state.tracker {
            tracker.finish_change(&range, false, None);
        }
        for record in state.records.iter().filter_map(Weak::upgrade) {
            if how == End::Lost {
                record.changes_for_good(range.clone());
            } else {
                record.changed(&range);
            }
        }
        if how == End::Lost {
            state.lost.push(range);
        }
    }

    /// Records the changes of all plans that end from now on in these, too.
    pub(super) fn record_in(&self, records: &[Weak<ChangeRecord>]) {
        let mut state = self.state();
        state.records.retain(|record| record.strong_count() > 0);
        state.records.extend_from_slice(records);
        for record in records.iter().filter_map(Weak::upgrade) {
            state.lost.iter().for_each(|range| record.changes_for_good(range.clone()));
        }
    }

    /// Reports all plans that end from now on to `tracker`.
    pub(super) fn track(&self, tracker: Option<Arc<ChangeTracker>>) {
        self.state().tracker = tracker;
    }

    /// Whether a plan may still write to any of these bytes.
    pub(super) fn meets(&self, range: &Range<u64>) -> bool {
        let state = self.state();
        let mut all = state.open.iter().map(|(_, range)| range).chain(&state.lost);
        all.any(|open| open.start < range.end && range.start < open.end)
    }

    /// Whether there are plans, or some were lost.
    pub(super) fn has_any(&self) -> bool {
        let state = self.state();
        !state.open.is_empty() || !state.lost.is_empty()
    }

    /// Refuses what needs all plans to have ended.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] with their number.
    pub(super) fn check_all_ended(&self) -> Result<()> {
        self.check_none_open()?;
        match self.state().lost.len() {
            0 => Ok(()),
            lost => {
                let message =
                    "planned writes were dropped in flight: the image has to be reopened first";
                Err(Error::new(ErrorKind::InUse, "write.plans-lost", message)
                    .with_found(format_args!("{lost} whose I/O may still be under way"))
                    .with_expected("none"))
            }
        }
    }

    /// The same, but for plans that were dropped in flight.
    pub(super) fn check_none_open(&self) -> Result<()> {
        match self.state().open.len() {
            0 => Ok(()),
            open => {
                let message = "planned writes or flushes have not ended";
                Err(Error::new(ErrorKind::InUse, "write.plans-open", message)
                    .with_found(counted(open as u64, "open plan", "open plans"))
                    .with_expected("none"))
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
