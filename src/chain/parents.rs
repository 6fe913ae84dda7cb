//! Images that are parents in several chains at once, and what names the stacks of layers that they share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::answers::AnswerKey;
use crate::disk::LayerId;
use crate::error::Result;
use crate::image::{Core, ImagePolicy, Lock, LogPolicy};
use crate::storage::{FileId, Storage};
use crate::tables::{Budget, InCommon};

/// Stacks of one layer over others that are told apart by number; of more, the oldest are forgotten.
const STACKS_OF_A_LAYER: usize = 16;

/// The image in `storage` as a parent, whose identity is known to be right. One that is open as such
/// already, and of which the file is still the same, is taken in its place: nothing of `storage` is then
/// kept, and the lock is the one that image holds.
pub(super) fn open(storage: Arc<dyn Storage>, policy: &ImagePolicy) -> Result<Arc<Core>> {
    // Without an identity, or where the host cannot tell, the file is nobody else's.
    let Ok(Some(id)) = storage.id() else {
        return Core::open(storage, policy).map(Arc::new);
    };
    let parents = &Registry::of(&policy.budget).parents;
    if let Some(open) = parents.find(id, storage.as_ref(), policy) {
        return Ok(open);
    }
    let image = Arc::new(Core::open(storage, policy)?);
    if is_shareable(&image) {
        parents.add(id, &image, policy);
    }
    Ok(image)
}

/// Is found no more by those who look for a parent that is open already.
pub(super) fn share_no_longer(image: &Core) {
    Registry::of(&image.budget).parents.hide(image);
}

fn is_shareable(image: &Core) -> bool {
    // Who is told that somebody writes to a file must not keep it from being opened anew.
    image.warnings.iter().all(|warning| warning.code != "lock.in-use")
}

/// Whether the file in `storage`, which has this image's identity on the host, is as it was when this image
/// was opened: each session that writes to a file changes its header first.
fn is_still(image: &Core, storage: &dyn Storage) -> bool {
    // The parents of an image are looked for from where it was found.
    let is_found_alike =
        !image.has_parent() || (image.path(), image.via()) == (storage.path(), storage.via());
    is_found_alike
        && storage.len().is_ok_and(|len| len == image.len_of_file())
        && image.has_headers_of(storage)
}

/// What the users of one budget have in common.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    parents: Parents,
    stacks: Mutex<HashMap<LayerId, Vec<Stack>>>,
}

/// Where a layer lies over others.
#[derive(Debug)]
struct Stack {
    /// The number of the layers below, 0 for none.
    below: u64,
    number: u64,
}

impl Registry {
    /// What the users of this budget have in common.
    pub(crate) fn of(budget: &Budget) -> &Self {
        budget.in_common()
    }

    /// What names the layer `top` over the stack that is named `below`, 0 for none: the same for all chains
    /// that share these images, and never the same for others.
    pub(crate) fn stack(&self, top: LayerId, below: u64) -> u64 {
        let mut stacks = held(&self.stacks);
        let known = stacks.entry(top).or_default();
        if let Some(stack) = known.iter().find(|stack| stack.below == below) {
            return stack.number;
        }
        if known.len() == STACKS_OF_A_LAYER {
            known.remove(0);
        }
        let number = AnswerKey::new_stack();
        known.push(Stack { below, number });
        number
    }

    /// Has a layer known by the number of another handle of the same file, over the same stack.
    pub(crate) fn adopt_stack(&self, top: LayerId, below: u64, number: u64) {
        held(&self.stacks).entry(top).or_default().push(Stack { below, number });
    }

    /// Has the stacks of which this layer is the top named anew.
    pub(crate) fn forget_stacks(&self, top: LayerId) {
        held(&self.stacks).remove(&top);
    }
}

impl InCommon for Registry {
    fn forget(&self, image: LayerId) {
        self.forget_stacks(image);
        self.parents.remove(image);
    }
}

/// Read-only images that are open as parents.
#[derive(Debug, Default)]
struct Parents(Mutex<OpenParents>);

#[derive(Debug, Default)]
struct OpenParents {
    by_file: HashMap<FileId, Vec<Parent>>,
    files: HashMap<LayerId, FileId>,
}

/// An image, and the policies it was opened by.
#[derive(Debug)]
struct Parent {
    lock: Lock,
    log: LogPolicy,
    any_locator: bool,
    of: Weak<Core>,
}

impl Parents {
    fn find(&self, id: FileId, storage: &dyn Storage, policy: &ImagePolicy) -> Option<Arc<Core>> {
        let alike = |parent: &&Parent| {
            parent.lock == policy.lock
                && parent.log == policy.log
                && parent.any_locator == policy.any_locator
        };
        // The last user of an image may be gone by the time it is looked at here, and its end must find the
        // registry free.
        let open: Vec<_> = {
            let parents = held(&self.0);
            let of_file = parents.by_file.get(&id)?.iter().filter(alike);
            of_file.filter_map(|parent| parent.of.upgrade()).collect()
        };
        open.into_iter().find(|image| is_still(image, storage))
    }

    fn add(&self, id: FileId, image: &Arc<Core>, policy: &ImagePolicy) {
        let mut parents = held(&self.0);
        parents.files.insert(image.id(), id);
        let &ImagePolicy { lock, log, any_locator, .. } = policy;
        let parent = Parent { lock, log, any_locator, of: Arc::downgrade(image) };
        parents.by_file.entry(id).or_default().push(parent);
    }

    fn hide(&self, image: &Core) {
        let mut parents = held(&self.0);
        let Some(id) = parents.files.remove(&image.id()) else { return };
        if let Some(of_file) = parents.by_file.get_mut(&id) {
            of_file.retain(|parent| !std::ptr::eq(parent.of.as_ptr(), image));
            if of_file.is_empty() {
                parents.by_file.remove(&id);
            }
        }
    }

    /// The image is one that nobody uses any more.
    fn remove(&self, image: LayerId) {
        let mut parents = held(&self.0);
        let Some(id) = parents.files.remove(&image) else { return };
        if let Some(of_file) = parents.by_file.get_mut(&id) {
            of_file.retain(|parent| parent.of.strong_count() > 0);
            if of_file.is_empty() {
                parents.by_file.remove(&id);
            }
        }
    }
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
