//! Replaced stacks of a chain that still have users, and the pins that are held for them.
//!
//! A reader pins the tip itself. Below the tip, only a merge writes, and it pins the parent once for all readers.
//! After the merge, the parent may be the tip: new readers pin it, but users of replaced stacks do not. So the merge
//! hands its pin to the replaced stacks, and the last one releases it, whether a plan, a table load of a plan, a view
//! or a long read holds it.
//!
//! A layer in such a stack is not opened for another merge, through any handle.

use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::live::wait_until;
use super::operation::{Operation, Retired};
use super::stack::{Link, Pinned};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, Pins};
use crate::write::{OpenImage, Writer};

/// Keeps ranges of an image's file from being reused, for present and earlier readers of the chain.
#[must_use = "the places are kept no longer than this"]
pub(crate) struct Keep<'a> {
    op: &'a Operation<'a>,
    pin: Option<Pinned>,
}

/// A tip whose file was opened anew, with another size or another place of its table, in the place of the former handle.
#[must_use = "the places that former readers know are kept no longer than this"]
pub(crate) struct Reopened<'a> {
    pub(crate) image: OpenImage,
    keep: Keep<'a>,
    retired: Retired,
}

impl Operation<'_> {
    /// Puts the writer of the tip's file as it is now in the place of the writer that changed it. The caller keeps changes
    /// out.
    pub(crate) fn put_reopened(&self, before: &Writer, reopened: Writer) -> Reopened<'_> {
        let image = OpenImage::from(reopened);
        // Who still reads the former stack looks up places in this file.
        let keep = self.keep(&image.core);
        image.writer.iter().for_each(|reopened| reopened.take_over(before));
        let retired = self.resized(0, &image);
        Reopened { image, keep, retired }
    }

    /// Keeps ranges of the image's file from being reused. Must be called before any are looked up, and lasts until
    /// the operation is [done](Keep::done) with the image and the stacks replaced meanwhile have no users.
    pub(crate) fn keep(&self, image: &Arc<Core>) -> Keep<'_> {
        let ticket = image.pins().map(Pins::enter);
        Keep { op: self, pin: Some(Pinned { image: Arc::clone(image), ticket }) }
    }

    /// Waits for a short time until no replaced stack or handle with these layers has users.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] if one still has users; [`ErrorKind::Cancelled`].
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

    /// One of these layers that has a user through an older stack or handle.
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

    /// Hands a pin to all replaced stacks, and to the current one if it may be needed there.
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

impl Reopened<'_> {
    /// Leaves the places in the file to the former readers that are left. Stacks hold them; images that are read by
    /// themselves are waited for.
    pub(crate) fn done(self) -> OpenImage {
        let Self { image, keep, retired } = self;
        let op = keep.op;
        match op.images_left(&retired) {
            true => keep.done(true),
            false => drop(keep),
        }
        drop(op.drained(retired, &mut || ControlFlow::Break(())));
        // What this leaves, the end of the session returns.
        image.writer.iter().for_each(|writer| drop(writer.punch_released()));
        image
    }
}

impl Keep<'_> {
    /// Ends the changes to the image. If the operation did not complete, the chain still has the layers that were
    /// read meanwhile: their readers keep a replaced stack, and later readers look up the present state.
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

/// After a panic, the layers stay as they are and may still be in use.
impl Drop for Keep<'_> {
    fn drop(&mut self) {
        if let Some(pin) = self.pin.take() {
            self.op.hand_over(pin, true);
        }
    }
}

#[cfg(all(test, not(loom)))]
pub(super) mod tests;
