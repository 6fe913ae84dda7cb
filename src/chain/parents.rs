//! Shares parent images between chains, and names the stacks of layers that they have in common.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::answers::AnswerKey;
use crate::disk::LayerId;
use crate::error::Result;
use crate::image::{Core, ImagePolicy, Lock, LogPolicy};
use crate::storage::{FileId, Storage};
use crate::tables::{Budget, InCommon};

/// Number of stacks that are kept apart for each top layer. Beyond that, the oldest are forgotten.
const STACKS_OF_A_LAYER: usize = 16;

/// The image in `storage` as a parent with a verified identity. If it is already open as a parent and its file is
/// unchanged, returns the open image with the lock that it holds, and drops `storage`.
pub(super) fn open(storage: Arc<dyn Storage>, policy: &ImagePolicy) -> Result<Arc<Core>> {
    // Without an identity from the host, the file cannot be shared.
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

/// Removes an image from those offered to new chains.
pub(super) fn share_no_longer(image: &Core) {
    Registry::of(&image.budget).parents.hide(image);
}

fn is_shareable(image: &Core) -> bool {
    // After a warning that the file is being written to, the next chain must open it again.
    image.warnings.iter().all(|warning| warning.code != "lock.in-use")
}

/// Whether the file in `storage`, which has this image's identity on the host, is unchanged since this image was
/// opened: each session that writes to a file changes its header first.
fn is_still(image: &Core, storage: &dyn Storage) -> bool {
    // The path of an image determines where its parents are searched for.
    let is_found_alike =
        !image.has_parent() || (image.path(), image.via()) == (storage.path(), storage.via());
    is_found_alike
        && storage.len().is_ok_and(|len| len == image.len_of_file())
        && image.has_headers_of(storage).is_ok_and(|are_same| are_same)
}

/// Stack names and open parents, shared by the users of one budget.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    parents: Parents,
    stacks: Mutex<HashMap<LayerId, Vec<Stack>>>,
}

/// The layers below a layer.
#[derive(Debug)]
struct Stack {
    /// The number of the stack below, 0 for none.
    below: u64,
    number: u64,
}

impl Registry {
    /// The registry of this budget.
    pub(crate) fn of(budget: &Budget) -> &Self {
        budget.in_common()
    }

    /// The number of the stack with the layer `top` over the stack numbered `below`, 0 for none. It is the same for
    /// all chains that share these images, and unique to them.
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

    /// Gives a layer over a stack the number that another handle of the same file has there.
    pub(crate) fn adopt_stack(&self, top: LayerId, below: u64, number: u64) {
        held(&self.stacks).entry(top).or_default().push(Stack { below, number });
    }

    /// Makes stacks with this layer on top get new numbers.
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

/// An image, and the policies that it was opened with.
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
        // These may be the last references to an image by now, and dropping one locks the registry. So they are
        // dropped after this lock is released.
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

    /// Removes an image that has no users left.
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
