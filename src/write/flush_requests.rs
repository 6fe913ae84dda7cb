//! Flush requests that are served together.

use crate::error::Result;
use crate::sync::{AtomicU64, Ordering};

/// Counts flush requests. Serving one serves all that were made before it started.
#[derive(Debug, Default)]
pub(super) struct FlushRequests {
    requested: AtomicU64,
    /// The last request that was served. Changes only under the lock that the requests wait for.
    served: AtomicU64,
}

impl FlushRequests {
    /// Calls `serve` with what `lock` returns, unless a call that started after this request has succeeded meanwhile.
    /// `lock` waits for the end of the call before.
    pub(super) fn request<G>(
        &self,
        lock: impl FnOnce() -> G,
        serve: impl FnOnce(&mut G) -> Result<()>,
    ) -> Result<()> {
        let ticket = self.requested.fetch_add(1, Ordering::SeqCst) + 1;
        let mut guarded = lock();
        if self.served.load(Ordering::SeqCst) >= ticket {
            return Ok(());
        }
        // All requests up to here are waiting, and their writes have returned.
        let covered = self.requested.load(Ordering::SeqCst);
        serve(&mut guarded)?;
        self.served.store(covered, Ordering::SeqCst);
        Ok(())
    }
}
