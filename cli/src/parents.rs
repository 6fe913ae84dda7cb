//! Suggestions for a chain that does not open: with the wrong parent, or in use. Each is tried before it is made.

mod meanwhile;

use std::path::{Path, PathBuf};

use avhdx::ops::Reparent;
use avhdx::{ErrorKind, Linkage, Lock, OpenOptions};

use crate::failure::Failure;
use crate::shell::argument;
use crate::typed;

/// The failure to open the chain of `image`, with the suggestions that work.
pub(crate) fn failure(error: avhdx::Error, image: &Path, options: &OpenOptions) -> Failure {
    if error.kind() == ErrorKind::InUse {
        return meanwhile::named(error.into(), image, options);
    }
    let is_other = error.kind() == ErrorKind::ParentMismatch;
    let pair = error.child().zip(error.file());
    let pair = pair.map(|(child, file)| (PathBuf::from(child), PathBuf::from(file)));
    let mut failure = Failure::from(error);
    let Some((child, parent)) = pair.filter(|_| is_other) else { return failure };
    if typed::has_flag("ignore-id-mismatch") && opens_with_another(image, options) {
        failure = failure.hint(
            "--ignore-id-mismatch reads with the file found; the result may be a state that the disk never had",
        );
    }
    match reparent(&child, &parent, options) {
        Some(command) => failure.or_else(command),
        None => failure,
    }
}

/// Whether the chain of `image` opens if identities are ignored.
pub(crate) fn opens_with_another(image: &Path, options: &OpenOptions) -> bool {
    let options = options.clone().writable(false).lock(Lock::None).linkage(Linkage::Ignore);
    options.open(image).is_ok()
}

/// The command that makes `parent` the parent of `child` without a proof, if it would succeed.
pub(crate) fn reparent(child: &Path, parent: &Path, options: &OpenOptions) -> Option<String> {
    let options = options.clone().writable(false).lock(Lock::None);
    let reparent = Reparent::new(parent).unproven(true).options(options);
    reparent.forecast(child).ok()?;
    let onto = argument(parent);
    let command = typed::with_parents("reparent", child);
    Some(format!("{command} --onto {onto} --unproven  # if you know that its content is right"))
}
