//! How operations report how far they got.

use std::any::Any;
use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, TryLockError};

use crate::error::{Error, Result};

/// How far an operation has got, in bytes of disks, or for a [`Relink`](super::Relink) in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// How much is processed.
    pub done: u64,
    /// How much there is to process; 0 while a merge is still counting it.
    pub total: u64,
}

impl Progress {
    pub(super) fn new(done: u64, total: u64) -> Self {
        Self { done, total }
    }
}

/// The caller's callback, if there is one. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Listener<'a>(Option<Arc<Callback<'a>>>);

// Not `FnMut` behind a lock: a lifetime in there could not be shortened, and a configured operation not be given a
// callback that lives less long than its name.
type Callback<'a> = dyn Fn(Progress) -> ControlFlow<()> + Send + Sync + 'a;

impl<'a> Listener<'a> {
    pub(super) fn new(on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        let on = Mutex::new(on);
        Self(Some(Arc::new(move |now| match on.try_lock() {
            Ok(mut on) => on(now),
            // Asked from within, or by a clone meanwhile: the callback is asked again soon.
            Err(TryLockError::WouldBlock) => ControlFlow::Continue(()),
            // It panicked.
            Err(TryLockError::Poisoned(_)) => ControlFlow::Break(()),
        })))
    }

    /// Asks the callback whether to continue.
    pub(super) fn call(&self, now: Progress) -> ControlFlow<()> {
        self.0.as_ref().map_or(ControlFlow::Continue(()), |on| on(now))
    }

    /// Reports progress; a request to stop becomes [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
    pub(super) fn report(&self, done: u64, total: u64) -> Result<()> {
        match self.call(Progress { done, total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::cancelled()),
        }
    }
}

impl fmt::Debug for Listener<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "a callback" } else { "none" })
    }
}

/// A panic of the caller's callback, held back until the operation has stopped cleanly.
#[derive(Default)]
pub(super) struct CallerPanic(Option<Box<dyn Any + Send>>);

impl CallerPanic {
    /// Runs the callback; breaks if it panics, now or in an earlier call.
    pub(super) fn catch(&mut self, callback: impl FnOnce() -> ControlFlow<()>) -> ControlFlow<()> {
        if self.0.is_some() {
            return ControlFlow::Break(());
        }
        // The panic resumes in the caller, who may then inspect what the callback left behind.
        catch_unwind(AssertUnwindSafe(callback)).unwrap_or_else(|panic| {
            self.0 = Some(panic);
            ControlFlow::Break(())
        })
    }

    /// Resumes the panic, if there was one.
    pub(super) fn resume(self) {
        if let Some(panic) = self.0 {
            resume_unwind(panic);
        }
    }
}
