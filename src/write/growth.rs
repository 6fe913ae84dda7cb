//! Allocates space for blocks, and controls when the file may grow.

use std::io;
use std::sync::{Arc, PoisonError};

use super::space::{Ahead, Allocated, Freed, Space};
use crate::image::{Generation, Pins};
use crate::storage::Storage;
use crate::sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering};
use crate::types::FileOffset;

/// The space of a file that several threads write to.
#[derive(Debug)]
pub(super) struct Growth {
    state: Mutex<State>,
    resumed: Condvar,
    pins: Arc<Pins>,
}

#[derive(Debug)]
struct State {
    space: Space,
    /// Set during a commit: the file must not grow.
    is_paused: bool,
}

/// Keeps the file from growing until dropped.
pub(super) struct GrowthPause<'a>(&'a Growth);

impl Growth {
    /// The space of a file of `file_len` bytes. `pins` delay the reuse of freed space.
    pub(super) fn new(file_len: u64, ahead: Ahead, pins: Arc<Pins>) -> Self {
        let state = State { space: Space::new(file_len, ahead), is_paused: false };
        Self { state: Mutex::new(state), resumed: Condvar::new(), pins }
    }

    pub(super) fn file_len(&self) -> u64 {
        self.state().space.file_len()
    }

    /// Allocates only behind `end`, in bytes.
    pub(super) fn start_after(&self, end: u64) {
        self.state().space.start_after(end);
    }

    /// Extends the file to hold everything that its tables claim.
    pub(super) fn extend_to_claims(&self, file: &dyn Storage) -> io::Result<()> {
        self.state().space.extend_to_claims(file)
    }

    /// Allocates a block of `len` bytes. Waits for a commit in progress if the file has to grow.
    pub(super) fn allocate(&self, file: &dyn Storage, len: u64) -> io::Result<Allocated> {
        let mut state = self.state();
        loop {
            self.unpin(&mut state);
            if let Some(space) = state.space.allocate(len) {
                return Ok(space);
            }
            if state.is_paused {
                state = self.resumed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.space.grow(file, len)?;
        }
    }

    /// Publishes the length of the file to readers. Of two concurrent calls the later one may have
    /// the smaller length: the published length never decreases.
    pub(super) fn publish_length(&self, shown: &AtomicU64) {
        shown.fetch_max(self.file_len(), Ordering::AcqRel);
    }

    pub(super) fn give_back(&self, space: Allocated) {
        self.state().space.give_back(space);
    }

    /// Records that a flush that began when the file had `len` bytes has returned.
    pub(super) fn flushed(&self, len: u64) {
        self.state().space.flushed(len);
    }

    /// Whether a crash that loses all writes to this space since the last flush leaves zeros there.
    pub(super) fn is_fresh(&self, at: FileOffset, len: u64) -> bool {
        self.state().space.is_fresh(at, len)
    }

    /// Records that the space at `at` may hold bytes that no table names.
    pub(super) fn spoil(&self, at: FileOffset) {
        self.state().space.spoil(at);
    }

    pub(super) fn free_later(&self, freed: Freed) {
        self.state().space.free_later(freed);
    }

    /// Takes the space freed so far, for the commit that makes that durable, and the generation of
    /// pins that may know of it.
    pub(super) fn take_freed(&self) -> Option<(Generation, Vec<Freed>)> {
        let freed = self.state().space.take_freed();
        // The tables no longer name that space: pins of the next generation cannot find it.
        (!freed.is_empty()).then(|| (self.pins.end_generation(), freed))
    }

    /// Records that the freeing is durable.
    pub(super) fn reuse(&self, (generation, freed): (Generation, Vec<Freed>)) {
        let mut state = self.state();
        state.space.reuse_after(generation, freed);
        self.unpin(&mut state);
    }

    /// Makes space reusable that is no longer pinned.
    fn unpin(&self, state: &mut State) {
        if state.space.has_pinned() {
            state.space.unpin(self.pins.oldest());
        }
    }

    /// Truncates space that the file grew by in this session and that is neither used nor pinned.
    pub(super) fn truncate(&self, file: &dyn Storage) -> io::Result<bool> {
        let mut state = self.state();
        self.unpin(&mut state);
        let Some(len) = state.space.truncated_len() else { return Ok(false) };
        file.set_len(len)?;
        state.space.set_truncated(len);
        Ok(true)
    }

    pub(super) fn pause(&self) -> GrowthPause<'_> {
        self.state().is_paused = true;
        GrowthPause(self)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for GrowthPause<'_> {
    fn drop(&mut self) {
        self.0.state().is_paused = false;
        self.0.resumed.notify_all();
    }
}
