//! Operations on a chain in use, which replace its layers.
//!
//! Readers of the old layers finish with them; an operation waits for these readers before it invalidates the layers.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, TryLockError, Weak};
use std::time::Duration;

use arc_swap::Guard;

use super::diff_chain::DiffChain;
use super::live::{Live, View, Views, wait_until};
use super::locate::{FoundBy, PathSource};
use super::parents::{Registry, share_no_longer};
use super::stack::{Link, Past, Stack, named};
use crate::disk::LayerId;
use crate::error::{Error, ErrorKind, Result};
use crate::file::Seat;
use crate::image::{Core, ImagePolicy, Lock, lock};
use crate::storage::{Access, Host, LockMode, Storage, folder_of};
use crate::write::{
    ChangeRecord, ChildSearch, OpenImage, UnknownReason, WritePolicy, Writer, check_named,
};

/// How long an operation waits for users of a point that is about to disappear.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long it waits for users that finish quickly, unless they are another chain.
const SHORT: Duration = Duration::from_secs(1);

impl DiffChain {
    /// Begins an operation that changes the layers. Only one can run at a time.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a view of an earlier point; [`ErrorKind::InUse`] while another operation runs,
    /// or if another chain or user writes to the tip.
    pub(crate) fn operate(&self) -> Result<Operation<'_>> {
        if !self.view.follows {
            let message = "an operation changes a chain, not a view of one of its points";
            return Err(Error::new(ErrorKind::InvalidInput, "chain.view", message)
                .in_file(self.tip_image().name())
                .with_found("a view")
                .with_expected("the chain as it was opened"));
        }
        let tip = self.tip_image();
        if tip.takes_writes() && self.stack().writer.is_none() {
            let message =
                "another has the tip open for writing, and gave it to this chain to be read";
            return Err(Error::new(ErrorKind::InUse, "chain.others-tip", message)
                .in_file(tip.name())
                .with_found("a tip that this chain may not write to")
                .with_expected("the chain that may"));
        }
        let alone = match self.live.operation.try_lock() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let message = "another operation is changing the layers of the chain";
                return Err(Error::new(ErrorKind::InUse, "chain.busy", message)
                    .in_file(self.tip_image().name())
                    .with_found("an operation under way")
                    .with_expected("one at a time"));
            }
        };
        Ok(Operation { chain: self, _alone: alone })
    }
}

/// The right to change the layers of a chain. Layers are numbered from the tip, which is 0.
pub(crate) struct Operation<'a> {
    chain: &'a DiffChain,
    _alone: MutexGuard<'a, ()>,
}

/// Layers that a chain no longer has, but that may still be read.
#[must_use = "who reads them must be waited for before they change"]
pub(crate) struct Retired(Arc<[Link]>);

impl Operation<'_> {
    pub(crate) fn images(&self) -> Vec<Arc<Core>> {
        self.chain.images()
    }

    pub(crate) fn host(&self) -> &Arc<dyn Host> {
        &self.live().opened.host
    }

    /// The policy that the layers were opened with.
    pub(crate) fn policy(&self) -> &ImagePolicy {
        &self.live().opened.images
    }

    /// The writer of the tip, if the chain is open for writing.
    pub(crate) fn writer(&self) -> Option<Arc<Writer>> {
        self.stack().writer.clone()
    }

    /// Refuses a layer with bytes that its tables name but its file has lost, or that two of its claims share.
    pub(crate) fn check_claims(&self, layer: usize) -> Result<()> {
        match self.writer().filter(|_| layer == 0) {
            // A writer checks only once.
            Some(writer) => writer.check_claims(),
            None => self.stack().layers[layer].image.check_claims(),
        }
    }

    /// Searches for children of the chain's images, in these folders too.
    pub(crate) fn child_search(&self, folders: &[PathBuf]) -> ChildSearch {
        let opened = &self.live().opened;
        ChildSearch {
            folders: opened.child_folders.iter().chain(folders).cloned().collect(),
            beside: self.other_folders(),
            ..ChildSearch::beside(Arc::clone(&opened.host))
        }
    }

    /// The folders of other paths to the layers, as far as their children recorded those.
    fn other_folders(&self) -> Vec<PathBuf> {
        let source = PathSource::new().host(Arc::clone(self.host()));
        let (images, mut folders) = (self.images(), Vec::new());
        for (child, parent) in images.iter().zip(images.iter().skip(1)) {
            let Ok(Some(link)) = child.parent_link() else { continue };
            let Some(id) = parent.bare_storage().id().ok().flatten() else { continue };
            let places = source.by_path(&link).filter_map(|candidate| candidate.opened.ok());
            let same = places.filter(|place| place.id().is_ok_and(|place| place == Some(id)));
            let names = same.flat_map(|place| {
                [place.path(), place.via()].map(|path| path.map(folder_of).map(Path::to_path_buf))
            });
            folders.extend(names.flatten());
        }
        folders
    }

    /// The position of a layer in the chain.
    pub(crate) fn find(&self, layer: LayerId) -> Result<usize> {
        self.stack().position(layer)
    }

    /// Prevents new views of the point at this layer, which must not have any, until another point is to disappear or
    /// the operation ends.
    pub(crate) fn let_vanish(&self, layer: usize) -> Result<()> {
        let mut views = self.live().views();
        self.check_no_view(&views, layer)?;
        views.vanishing = Some(self.stack().links[layer].image.id());
        Ok(())
    }

    /// Refuses to continue while the point at this layer has a view.
    pub(crate) fn check_unseen(&self, layer: usize) -> Result<()> {
        self.check_no_view(&self.live().views(), layer)
    }

    fn check_no_view(&self, views: &Views, layer: usize) -> Result<()> {
        let stack = self.stack();
        let image = &stack.links[layer].image;
        let is_there = |view: Arc<View>| {
            let seen = view.stack.load();
            !view.follows && seen.tip().id() == image.id()
        };
        if views.all.iter().filter_map(Weak::upgrade).any(is_there) {
            let message = "a view of this point is open, which the operation would take away";
            return Err(Error::new(ErrorKind::InUse, "chain.viewed", message)
                .in_file(image.name())
                .with_found("a view")
                .with_expected("none, or another layer"));
        }
        Ok(())
    }

    /// Puts a child on this layer. Layers above it leave the chain.
    pub(crate) fn put_on(&self, child: &OpenImage, layer: usize) -> Retired {
        let stack = self.stack();
        let writer = child.writer.clone();
        let child = Link::new(child, None);
        let mut below = stack.links[layer..].to_vec();
        below[0].found_by = Some(FoundBy::RelativePath);
        let layers = std::iter::once(child).chain(below).collect();
        let lost = (layer > 0).then_some(UnknownReason::Reverted);
        self.switch_tip(layers, writer, lost, |old| old.checked_sub(layer).map(|below| below + 1))
    }

    /// Replaces the handles of some layers by others of the same files. Cached answers stay valid.
    fn replace(&self, handles: &[(usize, OpenImage)]) -> Retired {
        let mut layers = self.stack().links.to_vec();
        for (layer, image) in handles {
            let below = layers.get(layer + 1).map_or(0, |link| link.stack);
            let link = &mut layers[*layer];
            let core = &image.core;
            Registry::of(core.budget()).adopt_stack(core.id(), below, link.stack);
            *link = link.with_image(image);
        }
        self.switch(layers, Some)
    }

    /// Replaces a layer's handle by one with another disk size.
    pub(crate) fn resized(&self, layer: usize, image: &OpenImage) -> Retired {
        let mut layers = self.stack().links.to_vec();
        layers[layer] = layers[layer].with_image(image);
        let writer = if layer == 0 { image.writer.clone() } else { self.writer() };
        self.switch_tip(layers, writer, None, Some)
    }

    /// Waits until nobody reads the images of retired layers by themselves, and returns whether that is so. Stacks
    /// may still be read.
    pub(crate) fn images_left(&self, Retired(layers): &Retired) -> bool {
        let is_over = || layers.iter().all(|link| !link.seat.has_late_users());
        wait_until(patience(), is_over, &mut || ControlFlow::Continue(())).unwrap_or(false)
    }

    /// Removes a layer whose parent now holds all of its data. If it was the tip, its parent becomes the tip, with
    /// this writer in every view that had one.
    pub(crate) fn take_out(&self, layer: usize, parent: &Arc<Writer>) -> Retired {
        let mut layers = self.stack().links.to_vec();
        let above = layers.remove(layer);
        layers[layer].found_by = above.found_by;
        let place = |old| Some(if old > layer { old - 1 } else { old });
        let writer = if layer == 0 { Some(Arc::clone(parent)) } else { self.writer() };
        self.switch_tip(layers, writer, Some(UnknownReason::Merged), place)
    }

    /// Invalidates the answers that name offsets in this layer's file.
    pub(crate) fn forget_places(&self, layer: usize) -> Retired {
        let stack = self.stack();
        for link in &stack.links[..=layer] {
            Registry::of(link.image.budget()).forget_stacks(link.image.id());
        }
        self.switch(stack.links.to_vec(), Some)
    }

    /// Gives later readers a new stack of the same layers, while current readers keep the old one.
    pub(super) fn leave_behind(&self) {
        drop(self.switch(self.stack().links.to_vec(), Some));
    }

    /// Waits until the retired layers have no readers.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] if a reader, such as a plan, stays too long; [`ErrorKind::Cancelled`].
    pub(crate) fn drained(
        &self,
        Retired(layers): Retired,
        on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<()> {
        let is_over = || {
            let is_left = |link: &Link| !link.seat.has_late_users();
            Arc::strong_count(&layers) == 1 && layers.iter().all(is_left)
        };
        if !wait_until(patience(), is_over, on)? {
            let message = "a point that is to vanish is still being read";
            return Err(Error::new(ErrorKind::InUse, "chain.read", message)
                .in_file(layers[0].image.name())
                .with_found("a read or a plan under way")
                .with_expected(format_args!("none within {} s", PATIENCE.as_secs())));
        }
        let current = self.stack();
        // Other chains over the same tip have stacks of their own, and keep them.
        let is_current = |old: &&Link| current.links.iter().any(|link| link.stack == old.stack);
        for old in layers.iter().filter(|old| !is_current(old)) {
            old.image.keeps_no_answers(old.stack);
        }
        Ok(())
    }

    /// Reopens read-only layers for writing, each under its own lock, and replaces the old handles, which have no
    /// users afterwards.
    ///
    /// If locks are mandatory, no other handle can read a file that one handle has locked exclusively. So readers
    /// first move to a new handle, then the old one releases its lock, because locks cannot be upgraded in place, and
    /// then the new handle takes its lock and verifies that the file is unchanged.
    ///
    /// # Errors
    /// As for [`drained`](Self::drained); [`ErrorKind::InUse`] also if another chain or program has one of the layers
    /// open. The chain stays usable.
    pub(crate) fn take(
        &self,
        layers: &[usize],
        on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Vec<Arc<Writer>>> {
        // The seats are held too: images handed out for these layers move to the new handles.
        let (old, _seats): (Vec<Arc<Core>>, Vec<Arc<Seat>>) = {
            let stack = self.stack();
            let links = layers.iter().map(|layer| &stack.links[*layer]);
            links.map(|link| (Arc::clone(&link.image), Arc::clone(&link.seat))).unzip()
        };
        let with = |images: &[OpenImage]| -> Vec<_> {
            layers.iter().copied().zip(images.iter().cloned()).collect()
        };
        let read: Vec<_> = old.iter().map(|old| self.open_again(old)).collect::<Result<_>>()?;
        let alone = self.drained(self.replace(&with(&read)), on).and_then(|()| {
            // Chains opened later do not share handles that are about to become invalid.
            old.iter().for_each(|old| share_no_longer(old));
            // Users of even older stacks either finish as quickly or hold a plan.
            self.check_unread(layers, SHORT.min(patience()), on)?;
            let is_shared = || old.iter().find(|old| Arc::strong_count(old) > 2);
            wait_until(SHORT.min(patience()), || is_shared().is_none(), on)?;
            is_shared().map_or(Ok(()), |old| Err(in_use(old, "another chain of this program")))
        });
        // If another chain uses a handle, its lock belongs to that chain.
        let written = alone.and_then(|()| {
            old.iter().try_for_each(|old| self.let_go(old))?;
            read.iter().map(|read| self.open_for_writing(&read.core)).collect::<Result<Vec<_>>>()
        });
        let written =
            written.inspect_err(|_| read.iter().for_each(|read| self.lock_again(&read.core)))?;
        let writers: Vec<_> = written.iter().filter_map(|image| image.writer.clone()).collect();
        self.drained(self.replace(&with(&written)), on).inspect_err(|_| {
            writers.iter().for_each(|writer| drop(self.settle(writer)));
        })?;
        Ok(writers)
    }

    /// Another handle of a layer's file, opened with write access but used only for reading.
    fn open_again(&self, old: &Core) -> Result<OpenImage> {
        let path = path_of(old)?;
        let storage = self.host().open(path, Access::ReadWrite).map_err(|error| {
            Error::io("file.open", "cannot open the file for writing", error).in_path(path)
        })?;
        check_same(old, storage.as_ref())?;
        OpenImage::read(storage, &ImagePolicy { lock: Lock::None, ..self.policy().clone() })
    }

    /// Releases the lock of a handle.
    fn let_go(&self, image: &Core) -> Result<()> {
        if self.policy().lock == Lock::None {
            return Ok(());
        }
        unlock(image.bare_storage().as_ref()).map_err(|error| lock_failed(image, error))
    }

    /// Restores a lock for the readers of a handle that released its own. If it is taken, another error already
    /// reports that.
    fn lock_again(&self, image: &Core) {
        if self.policy().lock != Lock::None {
            drop(self.let_go(image));
            drop(image.bare_storage().try_lock(LockMode::Shared));
        }
    }

    /// Locks the file of a read-only handle, and opens the same file for writing if it is unchanged: before the lock
    /// was taken, others could have written to it.
    fn open_for_writing(&self, read: &Core) -> Result<OpenImage> {
        let storage = read.bare_storage();
        lock(storage.as_ref(), self.policy().lock, LockMode::Exclusive, &mut Vec::new())
            .map_err(|error| error.in_file(read.name()))?;
        check_named(self.host().as_ref(), storage.as_ref())
            .map_err(|error| error.in_file(read.name()))?;
        check_same(read, storage.as_ref())?;
        let policy = ImagePolicy { lock: Lock::None, ..self.policy().clone() };
        OpenImage::write(Arc::clone(storage), &WritePolicy::of(policy))
    }

    /// Turns an image that this operation wrote to into an ordinary layer: ends its session, freezes it, and shares
    /// it with readers.
    pub(crate) fn settle(&self, writer: &Writer) -> Result<()> {
        match writer.freeze(|| Ok(())) {
            Err(error) if error.code() != "image.frozen" => return Err(error),
            _ => writer.close()?,
        }
        if self.policy().lock == Lock::None {
            return Ok(());
        }
        let image = writer.core();
        let storage = image.storage();
        unlock(storage).map_err(|error| lock_failed(image, error))?;
        lock(storage, Lock::Shared, LockMode::Shared, &mut Vec::new())
            .map_err(|error| error.in_file(image.name()))?;
        check_same(image, storage)
    }

    /// Replaces the current stack by one of these layers with the same tip.
    fn switch(&self, layers: Vec<Link>, place: impl Fn(usize) -> Option<usize>) -> Retired {
        let writer = self.writer();
        self.switch_tip(layers, writer, None, place)
    }

    /// Replaces the stack and its tip, with the new tip's writer in every view that had one. Records of changes follow
    /// the tip; what they recorded so far is lost for this reason, if there is one.
    fn switch_tip(
        &self,
        layers: Vec<Link>,
        writer: Option<Arc<Writer>>,
        lost: Option<UnknownReason>,
        place: impl Fn(usize) -> Option<usize>,
    ) -> Retired {
        let layers = named(layers);
        let old = self.stack();
        let kept = Arc::default();
        let mut views = self.live().views();
        let records = self.follow_tip(&mut views, writer.as_ref());
        let mut locked: Vec<_> = records.iter().map(|record| record.lock()).collect();
        if let Some(reason) = lost {
            locked.iter_mut().for_each(|record| record.lose(reason));
        }
        for view in views.all.iter().filter_map(Weak::upgrade) {
            let seen = view.stack.load();
            // A view that an earlier operation cut off keeps its own layers.
            if !Arc::ptr_eq(&seen.links, &old.links) {
                continue;
            }
            let tip = if view.follows { Some(0) } else { place(seen.tip) };
            if let Some(tip) = tip {
                let writer = writer.clone().filter(|_| seen.writer.is_some());
                let (tally, kept) = (Arc::clone(&seen.tally), Arc::clone(&kept));
                let stack = Stack::new(Arc::clone(&layers), tip, writer, tally, kept);
                view.stack.store(Arc::new(stack));
            }
        }
        views.past.retain(Past::is_left);
        views.past.push(Past::of(&old));
        Retired(Arc::clone(&old.links))
    }

    /// Has the writer of the next tip record its changes, before the first one, and returns the records.
    fn follow_tip(&self, views: &mut Views, next: Option<&Arc<Writer>>) -> Vec<Arc<ChangeRecord>> {
        views.records.retain(|record| record.strong_count() > 0);
        let present = self.writer();
        if let Some(next) = next
            && !views.records.is_empty()
            && !present.is_some_and(|present| Arc::ptr_eq(&present, next))
        {
            next.record_changes(&views.records);
        }
        views.records.iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn stack(&self) -> Guard<Arc<Stack>> {
        self.chain.stack()
    }

    pub(super) fn live(&self) -> &Live {
        &self.chain.live
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.live().views().vanishing = None;
    }
}

#[cfg(not(all(test, not(loom))))]
fn patience() -> Duration {
    PATIENCE
}

/// Shortened in tests that exhaust it.
#[cfg(all(test, not(loom)))]
fn patience() -> Duration {
    super::past::tests::patience()
}

/// The path of a layer that an operation works on.
pub(crate) fn path_of(image: &Core) -> Result<&Path> {
    image.path().ok_or_else(|| {
        let message = "the operation needs the name of the file";
        Error::new(ErrorKind::InvalidInput, "op.no-path", message)
            .in_file(image.name())
            .with_found("a file that lies in no folder")
            .with_expected("a path")
    })
}

/// Refuses a file other than the one that `image` is open on.
fn check_same(image: &Core, storage: &dyn Storage) -> Result<()> {
    let ids = [image.bare_storage().id(), storage.id()].map(|id| id.ok().flatten());
    if ids[0] == ids[1] && image.has_headers_of(storage)? {
        return Ok(());
    }
    let message = "the file was changed since the chain was opened";
    Err(Error::new(ErrorKind::InUse, "chain.changed", message)
        .in_file(image.name())
        .with_found("another file, or another session that wrote to it")
        .with_expected(format_args!("the one with the identity {}", image.data_write_guid())))
}

/// Releases the lock on a file, if there is one.
fn unlock(storage: &dyn Storage) -> std::io::Result<()> {
    match storage.unlock() {
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(()),
        unlocked => unlocked,
    }
}

fn in_use(image: &Core, by: &str) -> Error {
    Error::in_use(by).in_file(image.name()).with_expected("a file that nobody else has open")
}

fn lock_failed(image: &Core, error: std::io::Error) -> Error {
    Error::io("lock.failed", "cannot change the lock on the file", error).in_file(image.name())
}
