//! Edits of the parent locator, of items of the virtual disk and of merge marks, \[MS-VHDX\]
//! 2.6.2.6.

use std::path::Path;

use uuid::Uuid;

use super::{ItemEdit, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::format::locator::ParentLocator;
use crate::format::marks::{self, CheckpointMark, MergeMark, MergeRequest};
use crate::format::metadata::{self, FileFlags, ItemFlags, MetadataEntry};
use crate::image::Core;
use crate::names::{NO_RECORDABLE_PATH, canonical, no_recordable_path, recordable_path};
use crate::storage::{FileId, Host, folder_of};

/// The paths of a new link to the parent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkPaths<'a> {
    /// Keeps the paths of the old link.
    Keep,
    /// The path of the parent, and its file if the host can identify files.
    To { host: &'a dyn Host, parent: &'a Path, file: Option<FileId> },
}

impl Writer {
    /// Links the image to a parent by these identities, durably and at once, and keeps the other
    /// entries of its locator. The image keeps the identity that its own children know.
    ///
    /// # Errors
    /// Those of [`locator_edit`] and [`edit_metadata`](Self::edit_metadata).
    pub(crate) fn relink(
        &self,
        linkage: Uuid,
        linkage2: Option<Uuid>,
        paths: LinkPaths<'_>,
    ) -> Result<()> {
        self.edit_metadata(&[locator_edit(&self.core, linkage, linkage2, paths)?])
    }
}

/// The edit that links the image to a parent, to be combined with others.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if the image is not a differencing one, or no path leads from it to
/// the parent; [`ErrorKind::Unsupported`] if the path cannot be recorded so that it is read back
/// unchanged; [`ErrorKind::Io`] if the host cannot locate the files.
pub(crate) fn locator_edit(
    image: &Core,
    linkage: Uuid,
    linkage2: Option<Uuid>,
    paths: LinkPaths<'_>,
) -> Result<ItemEdit> {
    let metadata = image.metadata();
    let locator = metadata.locator.as_ref().map(|placed| placed.locator.clone());
    drop(metadata);
    let Some(mut locator) = locator else {
        let message = "an image without a parent cannot be linked to one";
        return Err(Error::new(ErrorKind::InvalidInput, "link.no-parent", message)
            .in_file(image.name())
            .with_section("2.6.2.6")
            .with_expected("a differencing image"));
    };
    let braced = |guid: Uuid| Some(format!("{{{}}}", guid.hyphenated()));
    locator.set("parent_linkage", braced(linkage));
    locator.set("parent_linkage2", linkage2.and_then(braced));
    if let LinkPaths::To { host, parent, file } = paths {
        set_paths(image, &mut locator, host, parent, file)?;
    }
    let bytes = locator.to_bytes().map_err(|error| error.in_file(image.name()))?;
    let item = metadata::PARENT_LOCATOR;
    Ok(ItemEdit::Set { item, flags: ItemFlags::REQUIRED, bytes })
}

/// Sets the paths of the locator to `parent`, and removes outdated ones.
fn set_paths(
    image: &Core,
    locator: &mut ParentLocator,
    host: &dyn Host,
    parent: &Path,
    file: Option<FileId>,
) -> Result<()> {
    let here = image.path().map(folder_of);
    let way = match here.map(|folder| recordable_path(host, folder, parent, file)) {
        Some(Ok(way)) => Some(way),
        // On Windows the absolute path reaches another drive.
        Some(Err(error)) if cfg!(windows) && error.code() == NO_RECORDABLE_PATH => None,
        Some(Err(error)) => return Err(error.in_file(image.name())),
        None => None,
    };
    // An unchanged relative path means the same parent, and the other paths may name it from
    // elsewhere. If the relative path changes, they would lead to the old parent.
    let is_same = way.is_some() && locator.value("relative_path") == way.as_deref();
    locator.set("relative_path", way.clone());
    if !is_same {
        locator.set("volume_path", None);
    }
    if cfg!(windows) {
        let target = canonical(host, parent)?;
        locator.set("absolute_win32_path", target.to_str().map(str::to_owned));
    } else if !is_same {
        locator.set("absolute_win32_path", None);
    }
    if way.is_some() || locator.value("absolute_win32_path").is_some() {
        return Ok(());
    }
    Err(no_recordable_path(parent).in_file(image.name()))
}

/// The edits that give `other` this image's items of the virtual disk except its size, \[MS-VHDX\]
/// 2.6.1.2.
pub(crate) fn disk_edits(image: &Core, other: &Core) -> Result<Vec<ItemEdit>> {
    let is_user = |entry: &MetadataEntry| entry.flags.contains(ItemFlags::USER);
    let own = image.disk_items()?;
    let theirs = other.disk_items()?;
    let is_kept = |entry: &MetadataEntry| {
        own.iter().any(|(own, _)| own.item == entry.item && is_user(own) == is_user(entry))
    };
    let gone = theirs.iter().filter(|(entry, _)| !is_kept(entry));
    let gone =
        gone.map(|(entry, _)| ItemEdit::Remove { item: entry.item, is_user: is_user(entry) });
    let set = |item, flags, bytes| ItemEdit::Set { item, flags, bytes };
    let flags = ItemFlags::VIRTUAL_DISK | ItemFlags::REQUIRED;
    let id = metadata::disk_id_to_bytes(image.disk_id()).to_vec();
    let physical = metadata::sector_size_to_bytes(image.geometry().physical_sector).to_vec();
    let known = [
        set(metadata::VIRTUAL_DISK_ID, flags, id),
        set(metadata::PHYSICAL_SECTOR_SIZE, flags, physical),
    ];
    let moved = own.iter().map(|(entry, bytes)| set(entry.item, entry.flags, bytes.clone()));
    Ok(gone.chain(known).chain(moved).collect())
}

impl ItemEdit {
    /// Sets or clears LeaveBlocksAllocated, \[MS-VHDX\] 2.6.2.1.
    pub(crate) fn leave_blocks_allocated(image: &Core, yes: bool) -> Self {
        let mut file = image.metadata().file;
        file.flags.set(FileFlags::LEAVE_BLOCKS_ALLOCATED, yes);
        let bytes = file.to_bytes().to_vec();
        Self::Set { item: metadata::FILE_PARAMETERS, flags: ItemFlags::REQUIRED, bytes }
    }

    /// Sets or removes the merge mark.
    pub(crate) fn merge_mark(mark: Option<&MergeMark>) -> Self {
        Self::mark(marks::MERGE, mark.map(MergeMark::to_bytes))
    }

    /// Sets or removes the request for a merge.
    pub(crate) fn merge_request(mark: Option<&MergeRequest>) -> Self {
        Self::mark(marks::REQUEST, mark.map(MergeRequest::to_bytes))
    }

    /// Sets the checkpoint mark.
    pub(crate) fn checkpoint_mark(mark: &CheckpointMark) -> Self {
        Self::mark(marks::CHECKPOINT, Some(mark.to_bytes()))
    }

    fn mark(item: Uuid, bytes: Option<Vec<u8>>) -> Self {
        match bytes {
            Some(bytes) => Self::Set { item, flags: ItemFlags::USER, bytes },
            None => Self::Remove { item, is_user: true },
        }
    }
}
