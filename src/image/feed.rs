//! Shares state between the readers of an image and its writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::pins::Pins;
use crate::answers::Invalidation;
use crate::tables::Tables;

/// State that a writer shares with concurrent readers of the image.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    /// Pages that the writer has changed and not yet written to their places in the file.
    pub(crate) changed: Tables,
    /// Pins of readers, which keep the writer from reusing ranges of the file.
    pub(crate) pins: Arc<Pins>,
    /// Invalidates answers about the disk when a change makes them wrong.
    pub(crate) answers: Invalidation,
    is_frozen: AtomicBool,
}

impl Feed {
    /// Whether changes are still possible.
    pub(crate) fn takes_writes(&self) -> bool {
        !self.is_frozen.load(Ordering::Acquire)
    }

    /// Rules out further changes, or allows them again.
    pub(crate) fn freeze(&self, yes: bool) {
        self.is_frozen.store(yes, Ordering::Release);
    }
}
