//! Cleans up files with temporary names that killed programs left in a folder.
//!
//! No chain uses such files. A file is removed only if it is provably an abandoned draft: by its
//! name, by the mark of an unfinished image with the digits of that name, and by an exclusive lock
//! on it. All others stay: copies that were complete but not yet renamed, raw copies, files whose
//! removal was interrupted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::image::read_creator;
use crate::storage::{
    Access, FileKind, Host, LockMode, LockOutcome, Storage, draft_mark, is_file, is_temporary_name,
};
use crate::warning::Warning;

/// Removes abandoned drafts among `names`, and warns of them and of other files with temporary
/// names.
pub(super) fn clear(host: &dyn Host, names: &[PathBuf], warnings: &mut Vec<Warning>) {
    for path in names.iter().filter(|path| is_temporary_name(path)) {
        let (code, what) = match inspect(host, path) {
            Ok(None) => continue,
            Ok(Some(LeftOver::Removed)) => (
                "folder.draft-removed",
                "an unfinished image was left behind and has been removed".into(),
            ),
            Ok(Some(LeftOver::Kept)) => (
                "folder.left-over",
                "was left behind under a temporary name and is kept: check whether it is of use"
                    .into(),
            ),
            Err(error) => (
                "folder.left-over",
                format!("was left behind under a temporary name and is kept: {error}"),
            ),
        };
        warnings.push(Warning::new(code, path.display(), what));
    }
}

/// Removes abandoned drafts of images from a folder: files with a temporary name, the mark of an
/// unfinished image in their file type identifier, and no lock of a program that is still writing.
/// Warns of each, and of other files with such names, which stay: complete outputs that were not
/// yet renamed, raw copies, unrelated files. For programs about to write to the folder; opening an
/// image for writing and creating one do the same in its own folder.
///
/// A folder that cannot be listed is left unchanged.
pub fn clear_drafts(host: &dyn Host, folder: &Path) -> Vec<Warning> {
    let mut warnings = Vec::new();
    // The write to the folder reports why it cannot be used.
    let mut names = host.list(folder).unwrap_or_default();
    names.sort();
    clear(host, &names, &mut warnings);
    warnings
}

enum LeftOver {
    Removed,
    /// Not a draft of this crate.
    Kept,
}

/// `None` if the file is gone, is being written, or is empty.
fn inspect(host: &dyn Host, path: &Path) -> io::Result<Option<LeftOver>> {
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
    // Checked under the lock: the file may have been published or replaced meanwhile.
    if !is_file(host, path, file.as_ref())? || file.is_empty()? {
        return Ok(None);
    }
    let creator = read_creator(file.as_ref());
    if creator.is_none() || creator != draft_mark(path) || file.id()?.is_none() {
        return Ok(Some(LeftOver::Kept));
    }
    host.remove(path)?;
    Ok(Some(LeftOver::Removed))
}
