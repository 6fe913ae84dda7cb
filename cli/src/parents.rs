//! What would help a chain that lacks its parent: tried before it is offered.

use std::path::{Path, PathBuf};

use avhdx::ops::Reparent;
use avhdx::{ErrorKind, Linkage, Lock, OpenOptions};

use crate::exit::Failure;
use crate::next;
use crate::shell::argument;

/// The failure to open the chain of `image` by these options, with the ways on that were seen to be open.
pub(crate) fn failure(error: avhdx::Error, image: &Path, options: &OpenOptions) -> Failure {
    let is_other = error.kind() == ErrorKind::ParentMismatch;
    let pair = error.child().zip(error.file());
    let pair = pair.map(|(child, file)| (PathBuf::from(child), PathBuf::from(file)));
    let mut failure = Failure::from(error);
    let Some((child, parent)) = pair.filter(|_| is_other) else { return failure };
    if next::has_flag("ignore-id-mismatch") && opens_with_another(image, options) {
        failure = failure.hint(
            "--ignore-id-mismatch reads with the file found, though the bytes may be a mixture that never was",
        );
    }
    match reparent(&child, &parent, options) {
        Some(command) => failure.or_else(command),
        None => failure,
    }
}

/// Whether the chain of `image` opens with the files found, whatever their identities.
pub(crate) fn opens_with_another(image: &Path, options: &OpenOptions) -> bool {
    let options = options.clone().writable(false).lock(Lock::None).linkage(Linkage::Ignore);
    options.open(image).is_ok()
}

/// The command that makes `parent` the parent of `child` without a proof, if it can be.
pub(crate) fn reparent(child: &Path, parent: &Path, options: &OpenOptions) -> Option<String> {
    let options = options.clone().writable(false).lock(Lock::None);
    let reparent = Reparent::new(parent).unproven(true).options(options);
    reparent.forecast(child).ok()?;
    let onto = argument(parent);
    let command = next::with_parents("reparent", child);
    Some(format!(
        "{command} --onto {onto} --unproven  # if you know that its bytes are the right ones"
    ))
}
