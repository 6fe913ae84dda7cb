//! Stacks that a chain has left behind and that somebody still has, and what is kept as it is for them.
//!
//! Who reads keeps the places of the tip by a pin of his own. Below the tip nobody writes but a merge, which keeps the
//! places of its parent by one pin for all who read. When the merge is over the parent may be the tip: who reads by it
//! from then on has pins there, but who still looks at the chain as it was has not. So the pin is handed to
//! the stacks that were left behind, and goes with the last of them, be it held by a plan, by tables that a plan waits
//! for, by a view or by a read that takes long.
//!
//! A layer that such a stack has is not opened for another merge, by whatever handle.

use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::live::wait_until;
use super::operation::Operation;
use super::stack::{Link, Pinned};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, Pins};

/// Keeps the places in an image as they are for who reads the chain now or did before.
#[must_use = "the places are kept no longer than this"]
pub(crate) struct Keep<'a> {
    op: &'a Operation<'a>,
    pin: Option<Pinned>,
}

impl Operation<'_> {
    /// Has no place in the image's file given to other bytes, from before any is looked for until the operation
    /// [is done](Keep::done) with it, and then until nobody has a stack that was left behind meanwhile.
    pub(crate) fn keep(&self, image: &Arc<Core>) -> Keep<'_> {
        let ticket = image.pins().map(Pins::enter);
        Keep { op: self, pin: Some(Pinned { image: Arc::clone(image), ticket }) }
    }

    /// Waits for a short time until nobody looks at these layers by a stack that was left behind, or by a handle that
    /// was replaced since.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] when somebody does; [`ErrorKind::Cancelled`].
    pub(super) fn check_unread(
        &self,
        layers: &[usize],
        patience: Duration,
        on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<()> {
        let is_over = || self.read_of_old(layers).is_none();
        if wait_until(patience, is_over, on)? {
            return Ok(());
        }
        let Some(read) = self.read_of_old(layers) else { return Ok(()) };
        let message = "a layer is still being read as the chain was before";
        Err(Error::new(ErrorKind::InUse, "chain.read", message)
            .in_file(read.name())
            .with_found("a view, a read or a plan from then")
            .with_expected("none"))
    }

    /// One of these layers that somebody still has by an older stack.
    fn read_of_old(&self, layers: &[usize]) -> Option<Arc<Core>> {
        let stack = self.stack();
        let past: Vec<_> = {
            let views = self.live().views();
            views.past.iter().filter_map(|past| past.layers.upgrade()).collect()
        };
        let is_read = |link: &&Link| {
            let is_same = |old: &Link| old.seat.is_same(&link.seat);
            past.iter().any(|links| links.iter().any(is_same)) || link.seat.has_earlier_users()
        };
        let found = layers.iter().map(|layer| &stack.links[*layer]).find(is_read);
        found.map(|link| Arc::clone(&link.image))
    }

    /// Has a pin stay for all stacks that were left behind, and for that of now if it may be needed there.
    fn hand_over(&self, pin: Pinned, with_current: bool) {
        let pin = Arc::new(pin);
        let views = self.live().views();
        let past = views.past.iter().filter_map(|past| past.kept.upgrade());
        let current = with_current.then(|| Arc::clone(&self.stack().kept));
        for kept in past.chain(current) {
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&pin));
        }
    }
}

impl Keep<'_> {
    /// The operation changes no more in the image. Where it did not come to its end the chain has still the layers that
    /// were read meanwhile: those who read them keep what they know, and who comes later finds what is there.
    pub(crate) fn done(mut self, came_to_its_end: bool) {
        let Some(pin) = self.pin.take() else {
            return;
        };
        if !came_to_its_end {
            self.op.leave_behind();
        }
        self.op.hand_over(pin, false);
    }
}

/// What panics leaves the layers as they are, and perhaps others at work on them.
impl Drop for Keep<'_> {
    fn drop(&mut self) {
        if let Some(pin) = self.pin.take() {
            self.op.hand_over(pin, true);
        }
    }
}

#[cfg(all(test, not(loom)))]
pub(super) mod tests;
