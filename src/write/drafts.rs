//! What programs that were killed left in a folder: files with temporary names.
//!
//! Nobody takes them for images of a chain. One is removed only where three things say that it is a draft that
//! nobody will complete: its name, the mark of an unfinished image with the digits of that name, and its exclusive
//! lock. All else is somebody's: a copy that was complete before it got its name, a raw copy, a file on its way out
//! when its remover was killed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::image::read_creator;
use crate::storage::{
    Access, FileKind, Host, LockMode, LockOutcome, Storage, draft_mark, is_file, is_temporary_name,
};
use crate::warning::Warning;

/// Removes the drafts among the names of a folder that nobody is going to complete, and tells of them and of what
/// else has a temporary name.
pub(super) fn clear(host: &dyn Host, names: &[PathBuf], warnings: &mut Vec<Warning>) {
    for path in names.iter().filter(|path| is_temporary_name(path)) {
        let (code, what) = match look(host, path) {
            Ok(None) => continue,
            Ok(Some(LeftOver::Removed)) => (
                "folder.draft-removed",
                "an unfinished image that was left behind is removed".into(),
            ),
            Ok(Some(LeftOver::Complete)) => (
                "folder.left-over",
                "was left behind under a temporary name, and stays: look whether it is of use"
                    .into(),
            ),
            Err(error) => (
                "folder.left-over",
                format!("was left behind under a temporary name, and stays: {error}"),
            ),
        };
        warnings.push(Warning::new(code, path.display(), what));
    }
}

/// Removes from a folder the drafts of images that nobody is going to complete: files with a temporary name, the mark
/// of an unfinished image in their file type identifier, and no lock of somebody who is still writing. Tells of
/// each, and of what else has such a name, which stays: outputs that were complete and had no name yet, raw copies,
/// strangers' files. For who is about to write in the folder; opening an image for writing, and making one, does the
/// same in the image's own.
///
/// A folder that cannot be listed is left as it is.
pub fn clear_drafts(host: &dyn Host, folder: &Path) -> Vec<Warning> {
    let mut warnings = Vec::new();
    // Who writes there is told why the folder cannot be used, if it cannot.
    let mut names = host.list(folder).unwrap_or_default();
    names.sort();
    clear(host, &names, &mut warnings);
    warnings
}

enum LeftOver {
    Removed,
    /// No draft, or none of ours.
    Complete,
}

/// `None` where the file is gone, is being written, or was not begun.
fn look(host: &dyn Host, path: &Path) -> io::Result<Option<LeftOver>> {
    let there = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(None),
        _ => Err(error),
    };
    if host.is_link(path).or_else(|error| there(error).map(|_| true))? {
        return Ok(None);
    }
    match host.stat(path) {
        Ok(stat) if stat.kind == FileKind::File => {}
        Ok(_) => return Ok(None),
        Err(error) => return there(error),
    }
    let file: Arc<dyn Storage> = match host.open(path, Access::ReadWrite) {
        Ok(file) => file,
        Err(error) => return there(error),
    };
    match file.try_lock(LockMode::Exclusive)? {
        LockOutcome::Locked => {}
        LockOutcome::InUse(_) => return Ok(None),
    }
    // Under the lock: it may have been published, or replaced, until now.
    if !is_file(host, path, file.as_ref())? || file.is_empty()? {
        return Ok(None);
    }
    let creator = read_creator(file.as_ref());
    if creator.is_none() || creator != draft_mark(path) || file.id()?.is_none() {
        return Ok(Some(LeftOver::Complete));
    }
    host.remove(path)?;
    Ok(Some(LeftOver::Removed))
}
