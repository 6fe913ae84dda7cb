//! The walk through what is copied, whatever it is copied to.

use avhdx_files::{Entry, Kind};

use super::report::Report;
use crate::failure::Failure;

/// What entries are copied to, one folder within the other.
pub(super) trait Target<'a> {
    fn report(&mut self) -> &mut Report<'a>;

    /// Leaves the folders that the path of a folder does not lie in. Returns whether the innermost that is left is the
    /// folder: what lies in one that was left out is left out with it.
    fn is_back_in(&mut self, folder: &[u8]) -> bool;

    /// Makes a folder and enters it.
    fn enter(&mut self, entry: &Entry, name: &[u8]) -> Result<(), Failure>;

    /// Copies what is no folder.
    fn one(&mut self, entry: &Entry, name: &[u8]) -> Result<(), Failure>;
}

/// Copies what lies in a folder that was entered, and below.
pub(super) fn walk<'a>(folder: &Entry, target: &mut impl Target<'a>) -> Result<(), Failure> {
    let tree = target.report().tree();
    for entry in tree.walk(folder) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                target.report().unread(error)?;
                continue;
            }
        };
        let path = entry.path();
        // A name may hold what separates names elsewhere.
        let above = &path[..path.len() - entry.name().len()];
        if !target.is_back_in(above.strip_suffix(b"/").unwrap_or(above)) {
            continue;
        }
        if entry.kind() == Some(Kind::Folder) {
            target.enter(&entry, entry.name())?;
        } else {
            target.one(&entry, entry.name())?;
        }
    }
    Ok(())
}

/// Whether a path is that of the folder, or lies below it.
pub(super) fn lies_in(path: &[u8], folder: &[u8]) -> bool {
    let rest = path.strip_prefix(folder);
    rest.is_some_and(|rest| folder.is_empty() || rest.is_empty() || rest.starts_with(b"/"))
}
