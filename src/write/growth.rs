//! Allocates space for blocks, and controls when the file may grow.

use std::io;
use std::sync::{Arc, PoisonError};

use super::space::{Ahead, Allocated, Contents, Freed, Space};
use crate::error::{Error, Result};
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
    /// How many keep the file from growing: one for each commit.
    pauses: usize,
    /// Set while a thread has the file grow, without the lock.
    is_growing: bool,
}

/// Keeps the file from growing until dropped.
#[derive(Debug)]
pub(super) struct GrowthPause(Arc<Growth>);

impl Growth {
    /// The space of a file of `file_len` bytes. `pins` delay the reuse of freed space.
    pub(super) fn new(file_len: u64, ahead: Ahead, pins: Arc<Pins>) -> Self {
        let state = State { space: Space::new(file_len, ahead), pauses: 0, is_growing: false };
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
            state = self.grow(state, file, len)?;
        }
    }

    /// Allocates `len` bytes, which read as zeros if they must; `None` if there are none without
    /// waiting.
    pub(super) fn allocate_at_once(&self, len: u64, must_be_zeros: bool) -> Option<Allocated> {
        let mut state = self.state();
        self.unpin(&mut state);
        match must_be_zeros {
            true => state.space.allocate_zeros(len),
            false => state.space.allocate(len),
        }
    }

    /// Makes room for `count` blocks of `len` bytes that [are given out at once](Self::allocate_at_once):
    /// grows the file, or has `zero` fill space that is to be used again.
    ///
    /// # Errors
    /// Those of `zero`, and [`ErrorKind::Io`](crate::ErrorKind::Io) if the file cannot grow.
    pub(super) fn make_room(
        &self,
        file: &dyn Storage,
        (len, count): (u64, u64),
        must_be_zeros: bool,
        zero: impl Fn(Allocated) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.state();
        loop {
            self.unpin(&mut state);
            if state.space.room_for(len, must_be_zeros) >= count {
                return Ok(());
            }
            if must_be_zeros && let Some(space) = state.space.take_foreign(len) {
                drop(state);
                zero(space).inspect_err(|_| self.give_back(space))?;
                state = self.state();
                state.space.give_back_unused(Allocated { contents: Contents::Zeros, ..space });
                continue;
            }
            let missing = count - state.space.room_for(len, must_be_zeros);
            let len = len.saturating_mul(missing);
            state = self.grow(state, file, len).map_err(|error| {
                let message = format!("cannot grow the file by {len} bytes");
                Error::io("space.grow", message, error).in_file(file.name())
            })?;
        }
    }

    /// Grows the file by `len` bytes, or waits for what keeps it from growing. The host is called without the lock,
    /// which those who may not wait take too.
    fn grow<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        file: &dyn Storage,
        len: u64,
    ) -> io::Result<MutexGuard<'a, State>> {
        if state.pauses > 0 {
            state = self.resumed.wait(state).unwrap_or_else(PoisonError::into_inner);
            return Ok(state);
        }
        if state.is_growing {
            return Ok(self.resumed.wait(state).unwrap_or_else(PoisonError::into_inner));
        }
        let growth = state.space.growth(len);
        state.is_growing = true;
        drop(state);
        let mut growing = Growing { growth: self, grown: None };
        growing.grown = Some(growth.carry_out(file)?);
        drop(growing);
        Ok(self.state())
    }

    /// Publishes the length of the file to readers. Of two concurrent calls the later one may have
    /// the smaller length: the published length never decreases.
    pub(super) fn publish_length(&self, shown: &AtomicU64) {
        shown.fetch_max(self.file_len(), Ordering::AcqRel);
    }

    pub(super) fn give_back(&self, space: Allocated) {
        self.state().space.give_back(space);
    }

    /// Returns space to which nothing was written since it was allocated.
    pub(super) fn give_back_unused(&self, space: Allocated) {
        self.state().space.give_back_unused(space);
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

    /// Records that writes may reach the space at `at` at any time from now on: it is not used again.
    pub(super) fn lose(&self, at: FileOffset) {
        self.state().space.lose(at);
    }

    pub(super) fn free_later(&self, freed: Freed) {
        self.state().space.free_later(freed);
    }

    /// Records space of tables that a change in memory stopped using. It is used again once the log is empty.
    pub(super) fn retire(&self, freed: Freed) {
        self.state().space.retire(freed);
    }

    /// Records that the log is empty: no replay writes to space that is not used any more.
    pub(super) fn log_is_empty(&self) {
        let mut state = self.state();
        let freed = state.space.take_retired();
        if !freed.is_empty() {
            state.space.reuse_after(self.pins.end_generation(), freed);
        }
    }

    /// Leaves all space that is free to the caller, and returns what is neither free nor named by a table. The lost
    /// places are of blocks of `len` bytes.
    pub(super) fn hand_over(&self, len: u64) -> Vec<Freed> {
        let mut state = self.state();
        self.unpin(&mut state);
        state.space.hand_over(len)
    }

    /// Leaves the space that is free below `end` to the caller.
    pub(super) fn set_aside(&self, end: u64) {
        self.state().space.set_aside(end);
    }

    /// What is neither free nor named by a table. The lost places are of blocks of `len` bytes.
    pub(super) fn kept(&self, len: u64) -> Vec<Freed> {
        let mut state = self.state();
        self.unpin(&mut state);
        state.space.kept(len)
    }

    /// Leaves all space that no table names to another writer of the file: first what may be used again, then what never
    /// may.
    pub(super) fn leave(&self) -> (Vec<Freed>, Vec<FileOffset>) {
        self.state().space.leave()
    }

    /// Makes space reusable that no pin knows of, and whose freeing is durable.
    pub(super) fn reuse_now(&self, freed: Vec<Freed>) {
        self.state().space.reuse(freed);
    }

    /// Whether freed space waits for readers.
    pub(super) fn waits_for_readers(&self) -> bool {
        let mut state = self.state();
        self.unpin(&mut state);
        state.space.has_pinned()
    }

    /// The length of the file once what it grew by and does not need is cut off.
    pub(super) fn len_at_rest(&self) -> u64 {
        let mut state = self.state();
        self.unpin(&mut state);
        state.space.truncated_len().unwrap_or(state.space.file_len())
    }

    /// Lets the file be truncated to `end` bytes, behind which nothing is used.
    pub(super) fn end_at(&self, end: u64) {
        self.state().space.end_at(end);
    }

    /// Takes the space freed so far, for the commit that makes that durable, and the generation of
    /// pins that may know of it.
    pub(super) fn take_freed(&self) -> Option<(Generation, Vec<Freed>)> {
        let freed = self.state().space.take_freed();
        // The tables no longer name that space: pins of the next generation cannot find it.
        (!freed.is_empty()).then(|| (self.pins.end_generation(), freed))
    }

    /// Returns freed space to the next commit.
    pub(super) fn take_back(&self, freed: Vec<Freed>) {
        let mut state = self.state();
        freed.into_iter().for_each(|freed| state.space.free_later(freed));
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
        // One that another program cut shorter is not made longer: what it lost would read as zeros.
        let is_longer = file.len()? > len;
        if is_longer {
            file.set_len(len)?;
        }
        state.space.set_truncated(len);
        Ok(is_longer)
    }

    /// Waits until the file does not grow, and keeps it from growing.
    pub(super) fn pause(self: &Arc<Self>) -> GrowthPause {
        let mut state = self.state();
        while state.is_growing {
            state = self.resumed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.pauses += 1;
        GrowthPause(Arc::clone(self))
    }

    /// The same, unless that has to wait.
    pub(super) fn try_pause(self: &Arc<Self>) -> Option<GrowthPause> {
        let mut state = self.state();
        let is_still = !state.is_growing;
        state.pauses += usize::from(is_still);
        drop(state);
        is_still.then(|| GrowthPause(Arc::clone(self)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Growth of the file in progress. Others go on when it is dropped, also by a storage that panics.
struct Growing<'a> {
    growth: &'a Growth,
    /// The new length of the file, in bytes.
    grown: Option<u64>,
}

impl Drop for Growing<'_> {
    fn drop(&mut self) {
        let mut state = self.growth.state();
        state.is_growing = false;
        if let Some(len) = self.grown {
            state.space.set_grown(len);
        }
        self.growth.resumed.notify_all();
    }
}

impl Drop for GrowthPause {
    fn drop(&mut self) {
        self.0.state().pauses -= 1;
        self.0.resumed.notify_all();
    }
}
