//! An image that an operation has to itself, without its parents.

use std::path::Path;
use std::sync::Arc;

use crate::chain::Linkage;
use crate::error::Result;
use crate::image::{Core, ImagePolicy, Lock, LogPolicy, lock, open_storage};
use crate::options::OpenOptions;
use crate::storage::{Access, LockMode, Storage};
use crate::warning::Warning;
use crate::write::{WritePolicy, Writer, check_named};

/// An image whose file is locked as long as this value lives: exclusively if it is to be written to.
pub(super) struct HeldImage {
    pub(super) options: OpenOptions,
    pub(super) storage: Arc<dyn Storage>,
    /// The image, opened for reading.
    pub(super) image: Core,
    /// Whether a damaged parent locator is acceptable.
    any_locator: bool,
    pub(super) warnings: Vec<Warning>,
}

impl HeldImage {
    /// Opens and locks the image at `path`.
    pub(super) fn open(options: &OpenOptions, path: &Path, access: Access) -> Result<Self> {
        let storage = open_storage(options.host_used().as_ref(), path, access)?;
        Self::hold(&Self::careful(options), storage, access, false)
    }

    /// Locks the image in `storage`.
    pub(super) fn hold(
        options: &OpenOptions,
        storage: Arc<dyn Storage>,
        access: Access,
        any_locator: bool,
    ) -> Result<Self> {
        let mode = match access {
            Access::ReadWrite => LockMode::Exclusive,
            Access::Read => LockMode::Shared,
        };
        let named = |error: crate::Error| error.in_file(storage.name());
        let mut warnings = Vec::new();
        lock(storage.as_ref(), options.policies().0.lock, mode, &mut warnings).map_err(named)?;
        // Before the lock, the name could still have been given to another file.
        check_named(options.host_used().as_ref(), storage.as_ref()).map_err(named)?;
        let image = Self::read(&storage, options, any_locator)?;
        Ok(Self { options: options.clone(), storage, image, any_locator, warnings })
    }

    /// The options, for images whose identities and logs count.
    pub(super) fn careful(options: &OpenOptions) -> OpenOptions {
        options.clone().writable(false).linkage(Linkage::Verify).log(LogPolicy::Replay)
    }

    /// Opens the image once more, with a sound locator.
    pub(super) fn again(&self) -> Result<Core> {
        Self::read(&self.storage, &self.options, false)
    }

    /// Opens the image for writing. Children are not searched for: what they know the image by does not change.
    pub(super) fn writer(&self) -> Result<Writer> {
        let policy = Self::policy(&self.options, self.any_locator);
        Writer::open(Arc::clone(&self.storage), &WritePolicy::of(policy), Vec::new())
    }

    fn read(storage: &Arc<dyn Storage>, options: &OpenOptions, any_locator: bool) -> Result<Core> {
        Core::open(Arc::clone(storage), &Self::policy(options, any_locator))
    }

    /// The lock is already held.
    fn policy(options: &OpenOptions, any_locator: bool) -> ImagePolicy {
        ImagePolicy { lock: Lock::None, any_locator, ..options.policies().0.clone() }
    }
}
