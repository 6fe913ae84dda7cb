//! Operations on a chain that is in use: other layers, put in the place of those of now.
//!
//! Readers of the old layers finish with them; an operation that is about to make those wrong waits first.

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
use crate::write::{ChildSearch, OpenImage, WritePolicy, Writer, check_named};

/// How long an operation waits for those who still look at a point that is to vanish.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The same for those who are done in a moment, unless it is another chain.
const SHORT: Duration = Duration::from_secs(1);

impl DiffChain {
    /// Begins an operation that changes the layers. There is one at a time.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a view of an earlier point, [`ErrorKind::InUse`] while another is under way, or
    /// where the tip is one that another chain or user writes to.
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

/// The right to change the layers of a chain. Layers are counted from the tip, which is 0.
pub(crate) struct Operation<'a> {
    chain: &'a DiffChain,
    _alone: MutexGuard<'a, ()>,
}

/// Layers that a chain does not have any more, though somebody may still be reading them.
#[must_use = "who reads them must be waited for before they change"]
pub(crate) struct Retired(Arc<[Link]>);

impl Operation<'_> {
    pub(crate) fn images(&self) -> Vec<Arc<Core>> {
        self.chain.images()
    }

    pub(crate) fn host(&self) -> &Arc<dyn Host> {
        &self.live().opened.host
    }

    /// How the layers were opened.
    pub(crate) fn policy(&self) -> &ImagePolicy {
        &self.live().opened.images
    }

    /// What writes to the tip, where the chain does.
    pub(crate) fn writer(&self) -> Option<Arc<Writer>> {
        self.stack().writer.clone()
    }

    /// Refuses a layer that lost bytes which its tables name, or has the same bytes for two of them.
    pub(crate) fn check_claims(&self, layer: usize) -> Result<()> {
        match self.writer().filter(|_| layer == 0) {
            // It looks once.
            Some(writer) => writer.check_claims(),
            None => self.stack().layers[layer].image.check_claims(),
        }
    }

    /// Who looks for children of the chain's images, in these folders too.
    pub(crate) fn child_search(&self, folders: &[PathBuf]) -> ChildSearch {
        let opened = &self.live().opened;
        ChildSearch {
            folders: opened.child_folders.iter().chain(folders).cloned().collect(),
            beside: self.other_folders(),
            ..ChildSearch::beside(Arc::clone(&opened.host))
        }
    }

    /// The folders in which layers have other names, as far as their children recorded those.
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

    /// Where in the chain a layer is.
    pub(crate) fn find(&self, layer: LayerId) -> Result<usize> {
        self.stack().position(layer)
    }

    /// Keeps new views from the point that this layer is, which must have none, until another vanishes or the
    /// operation is over.
    pub(crate) fn let_vanish(&self, layer: usize) -> Result<()> {
        let mut views = self.live().views();
        self.check_no_view(&views, layer)?;
        views.vanishing = Some(self.stack().links[layer].image.id());
        Ok(())
    }

    /// Refuses to go on while somebody has a view of the point that this layer is.
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

    /// Puts a child on this layer; those above it are no longer part of the chain.
    pub(crate) fn put_on(&self, child: &OpenImage, layer: usize) -> Retired {
        let stack = self.stack();
        let writer = child.writer.clone();
        let child = Link::new(child, None);
        let mut below = stack.links[layer..].to_vec();
        below[0].found_by = Some(FoundBy::RelativePath);
        let layers = std::iter::once(child).chain(below).collect();
        self.switch_tip(layers, writer, |old| old.checked_sub(layer).map(|below| below + 1))
    }

    /// Puts other handles of the same files in the place of those of some layers. What is known of the disk stays
    /// right.
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

    /// Puts a handle that has another size of the disk in the place of a layer's.
    pub(crate) fn resized(&self, layer: usize, image: &OpenImage) -> Retired {
        let mut layers = self.stack().links.to_vec();
        layers[layer] = layers[layer].with_image(image);
        self.switch(layers, Some)
    }

    /// Takes a layer out, whose parent holds by now all that it held. Where it was the tip, its parent is the tip from
    /// then on, with this writer for those who had one.
    pub(crate) fn take_out(&self, layer: usize, parent: &Arc<Writer>) -> Retired {
        let mut layers = self.stack().links.to_vec();
        let above = layers.remove(layer);
        layers[layer].found_by = above.found_by;
        let place = |old| Some(if old > layer { old - 1 } else { old });
        match layer {
            0 => self.switch_tip(layers, Some(Arc::clone(parent)), place),
            _ => self.switch(layers, place),
        }
    }

    /// Has the answers forgotten that name places in this layer's file.
    pub(crate) fn forget_places(&self, layer: usize) -> Retired {
        let stack = self.stack();
        for link in &stack.links[..=layer] {
            Registry::of(link.image.budget()).forget_stacks(link.image.id());
        }
        self.switch(stack.links.to_vec(), Some)
    }

    /// Has those who come go on with a stack of the same layers, while others have the one of now.
    pub(super) fn leave_behind(&self) {
        drop(self.switch(self.stack().links.to_vec(), Some));
    }

    /// Waits until nobody reads the retired layers any more.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] when somebody does for long, a plan for instance; [`ErrorKind::Cancelled`].
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
        current.links.iter().for_each(|link| link.image.keeps_answers_only(link.stack));
        Ok(())
    }

    /// Opens layers that are open for reading once more, for writing, each under a lock of its own, and puts these
    /// handles in the place of the old ones, which nobody uses any more then.
    ///
    /// Where locks bind everybody, what one handle has locked for itself no other can read: so those who read go on
    /// in a new handle first, then the old one lets go of its lock, for locks are not changed in place, and then
    /// the new one takes its own and looks again whether all is as it was.
    ///
    /// # Errors
    /// As [`drained`](Self::drained); [`ErrorKind::InUse`] also when another chain or program has one of them open.
    /// The chain goes on as before.
    pub(crate) fn take(
        &self,
        layers: &[usize],
        on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Vec<Arc<Writer>>> {
        // With their seats, which have them too: who was given one of these layers goes on in the new handle.
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
            // Chains to come find none that is about to be wrong.
            old.iter().for_each(|old| share_no_longer(old));
            // Those who still look at an even older stack are as short-lived, or hold a plan.
            self.check_unread(layers, SHORT.min(patience()), on)?;
            let is_shared = || old.iter().find(|old| Arc::strong_count(old) > 2);
            wait_until(SHORT.min(patience()), || is_shared().is_none(), on)?;
            is_shared().map_or(Ok(()), |old| Err(in_use(old, "another chain of this program")))
        });
        // The lock of one that another chain goes on with is that chain's.
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

    /// Another handle of a layer's file, that could be written to and only reads.
    fn open_again(&self, old: &Core) -> Result<OpenImage> {
        let path = path_of(old)?;
        let storage = self.host().open(path, Access::ReadWrite).map_err(|error| {
            Error::io("file.open", "cannot open the file for writing", error).in_path(path)
        })?;
        check_same(old, storage.as_ref())?;
        OpenImage::read(storage, &ImagePolicy { lock: Lock::None, ..self.policy().clone() })
    }

    /// Gives up the lock that a handle has.
    fn let_go(&self, image: &Core) -> Result<()> {
        if self.policy().lock == Lock::None {
            return Ok(());
        }
        unlock(image.bare_storage().as_ref()).map_err(|error| lock_failed(image, error))
    }

    /// Takes a lock for those who read by a handle that let go of its own. Whoever took it meanwhile is told of by
    /// another error.
    fn lock_again(&self, image: &Core) {
        if self.policy().lock != Lock::None {
            drop(self.let_go(image));
            drop(image.bare_storage().try_lock(LockMode::Shared));
        }
    }

    /// Locks the file of a handle that only reads, and opens the same file for writing if it is as it was: until
    /// the lock was there it was anybody's.
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

    /// Makes an image that this operation wrote to a layer like others: its session is over, nobody writes to it,
    /// and others may read it.
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

    /// Puts a stack of these layers, of which the tip is the same, in the place of the one of now.
    fn switch(&self, layers: Vec<Link>, place: impl Fn(usize) -> Option<usize>) -> Retired {
        let writer = self.writer();
        self.switch_tip(layers, writer, place)
    }

    /// The same with another tip, and its writer for those who had one of the old tip.
    fn switch_tip(
        &self,
        layers: Vec<Link>,
        writer: Option<Arc<Writer>>,
        place: impl Fn(usize) -> Option<usize>,
    ) -> Retired {
        let layers = named(layers);
        let old = self.stack();
        let kept = Arc::default();
        let mut views = self.live().views();
        for view in views.all.iter().filter_map(Weak::upgrade) {
            let seen = view.stack.load();
            // A point that was left behind by an earlier operation keeps its own layers.
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

/// Tests of those who exhaust it have less of it.
#[cfg(all(test, not(loom)))]
fn patience() -> Duration {
    super::past::tests::patience()
}

/// Where a layer lies that an operation works on.
pub(crate) fn path_of(image: &Core) -> Result<&Path> {
    image.path().ok_or_else(|| {
        let message = "the operation needs the name of the file";
        Error::new(ErrorKind::InvalidInput, "op.no-path", message)
            .in_file(image.name())
            .with_found("a file that lies in no folder")
            .with_expected("a path")
    })
}

/// Refuses a file that is no longer the one that `image` is open on.
fn check_same(image: &Core, storage: &dyn Storage) -> Result<()> {
    let ids = [image.bare_storage().id(), storage.id()].map(|id| id.ok().flatten());
    if ids[0] == ids[1] && image.has_headers_of(storage) {
        return Ok(());
    }
    let message = "the file was changed since the chain was opened";
    Err(Error::new(ErrorKind::InUse, "chain.changed", message)
        .in_file(image.name())
        .with_found("another file, or another session that wrote to it")
        .with_expected(format_args!("the one with the identity {}", image.data_write_guid())))
}

/// Gives up the lock on a file, if there is one.
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
