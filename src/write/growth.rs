//! Space for blocks, and when the file may grow for it.

use std::io;
use std::sync::{Arc, PoisonError};

use super::space::{Allocated, Freed, Space};
use crate::image::{Generation, Pins};
use crate::storage::Storage;
use crate::sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering};

/// The space of a file that several threads write.
#[derive(Debug)]
pub(super) struct Growth {
    state: Mutex<State>,
    thawed: Condvar,
    pins: Arc<Pins>,
}

#[derive(Debug)]
struct State {
    space: Space,
    /// While a commit is on its way to the log the file must not grow.
    frozen: bool,
}

/// Keeps the file from growing until it is dropped.
pub(super) struct Frozen<'a>(&'a Growth);

impl Growth {
    /// The space of a file of `file_len` bytes. `pins` keep freed space from being given away.
    pub(super) fn new(file_len: u64, pins: Arc<Pins>) -> Self {
        let state = State { space: Space::new(file_len), frozen: false };
        Self { state: Mutex::new(state), thawed: Condvar::new(), pins }
    }

    pub(super) fn file_len(&self) -> u64 {
        self.state().space.file_len()
    }

    /// Has new space begin there or later.
    pub(super) fn begin_behind(&self, end: u64) {
        self.state().space.begin_behind(end);
    }

    /// Has the file hold all that its tables claim.
    pub(super) fn hold_claimed(&self, file: &dyn Storage) -> io::Result<()> {
        self.state().space.hold_claimed(file)
    }

    /// Space for a block of `len` bytes. Waits for a commit under way when the file must grow.
    pub(super) fn allocate(&self, file: &dyn Storage, len: u64) -> io::Result<Allocated> {
        let mut state = self.state();
        loop {
            self.unpin(&mut state);
            if let Some(space) = state.space.allocate(len) {
                return Ok(space);
            }
            if state.frozen {
                state = self.thawed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.space.grow(file, len)?;
        }
    }

    /// Lets readers have what the file was grown by. Of two that do so at once the later may know of the
    /// shorter length: it never takes back what the other allowed.
    pub(super) fn show_length(&self, shown: &AtomicU64) {
        shown.fetch_max(self.file_len(), Ordering::AcqRel);
    }

    pub(super) fn give_back(&self, space: Allocated) {
        self.state().space.give_back(space);
    }

    pub(super) fn free_later(&self, freed: Freed) {
        self.state().space.free_later(freed);
    }

    /// What was freed up to now, for the commit that makes it durable, and whose pins may know of it.
    pub(super) fn take_freed(&self) -> Option<(Generation, Vec<Freed>)> {
        let freed = self.state().space.take_freed();
        // The tables name none of it any more, so that the pins of the next generation do not find it.
        (!freed.is_empty()).then(|| (self.pins.end_generation(), freed))
    }

    /// Notes that this freeing is durable.
    pub(super) fn reuse(&self, (generation, freed): (Generation, Vec<Freed>)) {
        let mut state = self.state();
        state.space.reuse_after(generation, freed);
        self.unpin(&mut state);
    }

    /// Makes reusable what no pin keeps any more.
    fn unpin(&self, state: &mut State) {
        if state.space.has_pinned() {
            state.space.unpin(self.pins.oldest());
        }
    }

    /// Cuts off what this session grew the file by and neither uses nor has given to a pin.
    pub(super) fn cut(&self, file: &dyn Storage) -> io::Result<bool> {
        let mut state = self.state();
        self.unpin(&mut state);
        let Some(len) = state.space.cut_len() else { return Ok(false) };
        file.set_len(len)?;
        state.space.was_cut(len);
        Ok(true)
    }

    pub(super) fn freeze(&self) -> Frozen<'_> {
        self.state().frozen = true;
        Frozen(self)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.state().frozen = false;
        self.0.thawed.notify_all();
    }
}
