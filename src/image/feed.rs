//! What the readers of an image and its writer tell each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::pins::Pins;
use crate::answers::Invalidation;
use crate::tables::Tables;

/// What a writer feeds to those who read the image meanwhile, and what they tell it.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    /// Pages that the writer changed and that do not stand in their places yet.
    pub(crate) changed: Tables,
    /// Readers, whose places the writer gives to no other block.
    pub(crate) pins: Arc<Pins>,
    /// Drops the answers about the disk that a change makes wrong.
    pub(crate) answers: Invalidation,
    is_frozen: AtomicBool,
}

impl Feed {
    /// Whether changes may still come.
    pub(crate) fn takes_writes(&self) -> bool {
        !self.is_frozen.load(Ordering::Acquire)
    }

    /// Notes that no change comes any more, or that changes may come again.
    pub(crate) fn freeze(&self, yes: bool) {
        self.is_frozen.store(yes, Ordering::Release);
    }
}
