//! Requests that wait for each other and are served together.

use std::sync::PoisonError;

use crate::error::Result;
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Counts requests of one kind. Serving one serves all that were made before it started.
#[derive(Debug, Default)]
pub(super) struct FlushRequests {
    asked: AtomicU64,
    /// The last request that was served; it changes only while the lock is held that they wait for.
    served: AtomicU64,
}

impl FlushRequests {
    /// Calls `serve` with what `lock` guards, unless a call that started after this request has been
    /// successful meanwhile.
    pub(super) fn ask<T>(
        &self,
        lock: &Mutex<T>,
        serve: impl FnOnce(&mut T) -> Result<()>,
    ) -> Result<()> {
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut guarded = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if self.served.load(Ordering::SeqCst) >= ticket {
            return Ok(());
        }
        // Who asked until here is waiting, with all its writes returned.
        let covered = self.asked.load(Ordering::SeqCst);
        serve(&mut guarded)?;
        self.served.store(covered, Ordering::SeqCst);
        Ok(())
    }
}
