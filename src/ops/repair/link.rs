//! Mends recorded paths to the parent, once its identity proves which file it is.

use std::path::PathBuf;
use std::sync::Arc;

use super::blocks::{UNFINISHED, has_marks};
use super::root::log_range;
use super::work::{Outcome, Work};
use crate::chain::{FoundBy, Linkage, ParentSource, file_id, find_parent, recorded};
use crate::error::{Error, ErrorKind, Result};
use crate::format::metadata::{ItemFlags, PARENT_LOCATOR};
use crate::image::{Core, ImagePolicy, Lock, ParentLink, identity_if_any};
use crate::storage::{Access, FileId, FileKind, Host, Storage, folder_of, is_temporary_name};
use crate::write::{ItemEdit, LinkPaths, Pending, WritePolicy, locator_edit};

const OF_LINK: &[&str] = &[
    "parent.stale-path",
    "parent.missing",
    "locator.no-path",
    "locator.posix-path",
    "locator.path-form",
];

/// Records a path that leads to the parent, and gives paths the form that Windows reads.
pub(super) fn paths(work: &Work<'_>) -> Result<Outcome> {
    let image = work.open()?;
    let Some(link) = image.parent_link()? else { return Ok(Outcome::Nothing) };
    let source = work.options.source();
    let host = Arc::clone(work.options.host_used());
    let leads = leads_there(&link, source.as_ref());
    let is_of_posix = recorded(&link).any(|(_, path)| is_posix(path));
    let bare = link.absolute_win32_path.as_deref().filter(|path| is_bare(path)).map(str::to_owned);
    if leads && !is_of_posix && bare.is_none() {
        return Ok(Outcome::Nothing);
    }
    if has_marks(&image) {
        return Ok(Outcome::refused(OF_LINK, UNFINISHED));
    }
    if leads && !is_of_posix {
        // The same path, in the form that Windows reads.
        let path = format!("\\\\?\\{}", bare.unwrap_or_default());
        let metadata = image.metadata();
        let Some(mut locator) = metadata.locator.as_ref().map(|it| it.locator.clone()) else {
            return Ok(Outcome::Nothing);
        };
        drop(metadata);
        locator.set("absolute_win32_path", Some(path));
        let bytes = locator.to_bytes()?;
        edit(work, &ItemEdit::Set { item: PARENT_LOCATOR, flags: ItemFlags::REQUIRED, bytes })?;
        return Ok(Outcome::did("a recorded path gets the form that Windows reads"));
    }
    let parent = match parent_of(&image, &link, source.as_ref(), host.as_ref()) {
        Ok(parent) => parent,
        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
        Err(error) => {
            let found = error.found().map(|found| format!(": {found}")).unwrap_or_default();
            return Ok(Outcome::refused(OF_LINK, format!("{}{found}", error.message())));
        }
    };
    let storage = host
        .open(&parent, Access::Read)
        .map_err(|error| Error::io("file.open", "cannot open the file", error).in_path(&parent))?;
    let to =
        LinkPaths::To { host: host.as_ref(), parent: &parent, file: file_id(storage.as_ref())? };
    edit(work, &locator_edit(&image, link.linkage, link.linkage2, to)?)?;
    Ok(Outcome::did(format!("the recorded paths lead to the parent, {}", parent.display())))
}

/// Carries out an edit of the metadata on the changed image, and drops what it wrote to the log: the log is empty
/// before and after.
fn edit(work: &Work<'_>, edit: &ItemEdit) -> Result<()> {
    let trial = Arc::new(work.image.fork());
    let policy = ImagePolicy {
        lock: Lock::None,
        budget: work.options.policies().0.budget.clone(),
        ..ImagePolicy::default()
    };
    let storage = Arc::clone(&trial) as Arc<dyn Storage>;
    let writer = Pending::open(storage, &WritePolicy::of(policy), Vec::new())?.replay(None)?;
    writer.edit_metadata(std::slice::from_ref(edit))?;
    writer.close()?;
    work.image.take(&trial);
    if let Some(range) = log_range(work)? {
        work.image.restore(range);
    }
    Ok(())
}

/// Whether a recorded path leads to a file with the identity of the parent.
fn leads_there(link: &ParentLink, source: &dyn ParentSource) -> bool {
    let by_path = |by: FoundBy| {
        matches!(by, FoundBy::RelativePath | FoundBy::VolumePath | FoundBy::AbsoluteWin32Path)
    };
    let mut candidates = source.candidates(link, Access::Read);
    candidates.any(|candidate| {
        by_path(candidate.found_by)
            && candidate.opened.is_ok_and(|storage| {
                let guid = identity_if_any(storage.as_ref()).ok().flatten();
                guid.is_some_and(|guid| link.accepts(guid))
            })
    })
}

/// The only file that the link can mean, among those that the options name and those beside the image.
fn parent_of(
    image: &Core,
    link: &ParentLink,
    source: &dyn ParentSource,
    host: &dyn Host,
) -> Result<PathBuf> {
    let at = image.locator_at().unwrap_or_default();
    let missing = match find_parent(link, at, Linkage::Verify, source) {
        Ok(found) => match found.storage.path() {
            Some(path) => return Ok(path.to_path_buf()),
            None => return Err(unproven("the parent has no path")),
        },
        Err(error) if error.kind() == ErrorKind::ParentMissing => error,
        Err(error) => return Err(error),
    };
    let Some(own) = image.path() else { return Err(missing) };
    let names = host.list(folder_of(own)).map_err(|error| {
        Error::io("forest.place", "cannot look there", error).in_path(folder_of(own))
    })?;
    let mut found: Vec<(PathBuf, Option<FileId>)> = Vec::new();
    for path in names {
        let is_file = host.stat(&path).is_ok_and(|stat| stat.kind == FileKind::File);
        let is_link = host.is_link(&path).unwrap_or(true);
        if !is_file || is_link || is_temporary_name(&path) {
            continue;
        }
        let Ok(storage) = host.open(&path, Access::Read) else { continue };
        let id = storage.id().ok().flatten();
        if id.is_some() && id == image.storage().id().ok().flatten() || path == own {
            continue;
        }
        let guid = identity_if_any(storage.as_ref()).ok().flatten();
        if guid.is_some_and(|guid| link.accepts(guid)) {
            found.push((path, id));
        }
    }
    // Two names of one file are one parent.
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let same =
        |a: &(PathBuf, Option<FileId>), b: &(PathBuf, Option<FileId>)| a.1.is_some() && a.1 == b.1;
    let firsts =
        (0..found.len()).filter(|i| !found[..*i].iter().any(|other| same(other, &found[*i])));
    let found: Vec<_> = firsts.map(|i| found[i].clone()).collect();
    match &found[..] {
        [(parent, _)] => Ok(parent.clone()),
        [] => Err(missing),
        _ => Err(unproven("several files beside the image have the identity of the parent")),
    }
}

fn unproven(message: &str) -> Error {
    Error::new(ErrorKind::Unproven, "relink.ambiguous", message).with_section("2.6.2.6.3")
}

fn is_posix(path: &str) -> bool {
    path.contains('/')
}

/// Whether it is a path with a drive that lacks the prefix of Windows.
fn is_bare(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.len() > 3
        && bytes[0].is_ascii_alphabetic()
        && bytes[1] == b':'
        && bytes[2] == b'\\'
        && !path.contains('/')
}
