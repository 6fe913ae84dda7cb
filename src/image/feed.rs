//! Shares state between the readers of an image and its writer.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use uuid::Uuid;

use super::pins::Pins;
use crate::answers::Invalidation;
use crate::error::Result;
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
    /// Held by each chain that reads the image without being the one that writes to it.
    guests: Arc<()>,
    issuer: OnceLock<Weak<dyn IssueIdentity>>,
}

/// Hands out the identity that a new child records. Every holder of the image may ask for it, since a child of a stale
/// identity would accept later changes of its parent.
pub(crate) trait IssueIdentity: Debug + Send + Sync {
    /// Makes the image durable as it stands and returns its identity; the next visible change gives it another.
    fn hand_out_identity(&self) -> Result<Uuid>;
}

impl Feed {
    /// Whether changes are still possible.
    pub(crate) fn takes_writes(&self) -> bool {
        !self.is_frozen.load(Ordering::Acquire)
    }

    /// Held by a chain that reads the image while another may write to it.
    pub(crate) fn guest(&self) -> Arc<()> {
        Arc::clone(&self.guests)
    }

    /// Whether there is such a chain.
    pub(crate) fn has_guests(&self) -> bool {
        Arc::strong_count(&self.guests) > 1
    }

    /// Sets the writer as the issuer of identities.
    pub(crate) fn set_issuer(&self, issuer: Weak<dyn IssueIdentity>) {
        // There is one writer for good.
        drop(self.issuer.set(issuer));
    }

    /// The issuer of identities, while the image is open for writing.
    pub(crate) fn issuer(&self) -> Option<Arc<dyn IssueIdentity>> {
        self.issuer.get()?.upgrade()
    }

    /// Rules out further changes, or allows them again.
    pub(crate) fn freeze(&self, yes: bool) {
        self.is_frozen.store(yes, Ordering::Release);
    }
}
