//! The link from a differencing image to its parent, \[MS-VHDX\] 2.6.2.6.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::format::locator::ParentLocator;
use crate::format::metadata::{self, ItemFlags};
use crate::names::{from_folder, relative, unfit};
use crate::storage::{FileId, Host, folder_of};
use crate::traps;
use crate::write::ItemEdit;

/// What a differencing image recorded of its parent: the identity, and where it was.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParentLink {
    /// What errors call the child.
    pub child: String,
    /// Where the child lies, if it lies in a folder.
    pub child_path: Option<PathBuf>,
    /// The name that the child was opened by, where symbolic links led from that to its path.
    pub child_via: Option<PathBuf>,
    /// The parent's `DataWriteGuid` when the two were linked. Zero where none is recorded, which only a chain
    /// with [`Linkage::Ignore`](crate::Linkage::Ignore) takes.
    pub linkage: Uuid,
    /// A second identity that the parent may have, while a merge is under way.
    pub linkage2: Option<Uuid>,
    /// The parent's path from the child's folder, as recorded.
    pub relative_path: Option<String>,
    /// The parent's path on its volume, as recorded: `\\?\Volume{…}\…`.
    pub volume_path: Option<String>,
    /// The parent's absolute path on the Windows machine that wrote it, as recorded.
    pub absolute_win32_path: Option<String>,
}

impl ParentLink {
    /// The link of a locator that records these identities.
    pub(crate) fn from_locator(
        locator: &ParentLocator,
        (linkage, linkage2): (Uuid, Option<Uuid>),
        child: &str,
        child_path: Option<&Path>,
        child_via: Option<&Path>,
    ) -> Self {
        let text = |key| locator.value(key).map(str::to_owned);
        Self {
            child: child.to_owned(),
            child_path: child_path.map(Path::to_path_buf),
            child_via: child_via.map(Path::to_path_buf),
            linkage,
            linkage2,
            relative_path: text("relative_path"),
            volume_path: text("volume_path"),
            absolute_win32_path: text("absolute_win32_path"),
        }
    }

    /// Whether an image with this `DataWriteGuid` is the parent.
    ///
    /// An all-zero GUID is nobody's: it is no secret that a stranger could not guess.
    pub fn accepts(&self, data_write_guid: Uuid) -> bool {
        !data_write_guid.is_nil()
            && (data_write_guid == self.linkage || Some(data_write_guid) == self.linkage2)
    }
}

/// What a new link says of the way to the parent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkPaths<'a> {
    /// What the old one says.
    Keep,
    /// The parent lies here, and is this file where the host can tell files apart.
    To { host: &'a dyn Host, parent: &'a Path, file: Option<FileId> },
}

impl Core {
    /// Links the image to a parent by these identities, durably and at once, and keeps what else its locator
    /// says. What its own children know it by stays.
    ///
    /// # Errors
    /// As [`locator_edit`](Self::locator_edit) and [`edit_metadata`](Self::edit_metadata).
    pub(crate) fn relink(
        &self,
        linkage: Uuid,
        linkage2: Option<Uuid>,
        paths: LinkPaths<'_>,
    ) -> Result<()> {
        self.edit_metadata(&[self.locator_edit(linkage, linkage2, paths)?])
    }

    /// The edit that links the image to a parent, to be made together with others.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the image is no differencing one, or no path leads from it to the
    /// parent; [`ErrorKind::Unsupported`] when one does that would not be read as it is; [`ErrorKind::Io`] when the host cannot tell where the files lie.
    pub(crate) fn locator_edit(
        &self,
        linkage: Uuid,
        linkage2: Option<Uuid>,
        paths: LinkPaths<'_>,
    ) -> Result<ItemEdit> {
        let metadata = self.metadata();
        let locator = metadata.locator.as_ref().map(|placed| placed.locator.clone());
        drop(metadata);
        let Some(mut locator) = locator else {
            let message = "an image without a parent cannot be linked to one";
            return Err(Error::new(ErrorKind::InvalidInput, "link.no-parent", message)
                .in_file(self.name())
                .with_section("2.6.2.6")
                .with_expected("a differencing image"));
        };
        let braced = |guid: Uuid| Some(format!("{{{}}}", guid.hyphenated()));
        locator.set("parent_linkage", braced(linkage));
        locator.set("parent_linkage2", linkage2.and_then(braced));
        if let LinkPaths::To { host, parent, file } = paths {
            self.set_paths(&mut locator, host, parent, file)?;
        }
        let bytes = locator.to_bytes().map_err(|error| error.in_file(self.name()))?;
        let item = metadata::PARENT_LOCATOR;
        Ok(ItemEdit::Set { item, flags: ItemFlags::REQUIRED, bytes })
    }

    /// Has the locator say the way to `parent` and no other.
    fn set_paths(
        &self,
        locator: &mut ParentLocator,
        host: &dyn Host,
        parent: &Path,
        file: Option<FileId>,
    ) -> Result<()> {
        let here = self.path().map(folder_of);
        let way = match here.map(|folder| way_to(host, folder, parent, file)) {
            Some(Ok(way)) => Some(way),
            // Of another drive Windows knows the absolute path.
            Some(Err(error)) if cfg!(windows) && error.code() == NO_WAY => None,
            Some(Err(error)) => return Err(error.in_file(self.name())),
            None => None,
        };
        // The same way from here is the same parent, which other paths may know under other names. Where the
        // way is another one they would lead to the old parent.
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
        Err(no_way(parent).in_file(self.name()))
    }
}

/// The path from a folder to a parent as it is recorded, once it is sure to lead there: whoever follows it later finds
/// the same file.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] where there is no such path; [`ErrorKind::Unsupported`] where there is one that
/// leads elsewhere or nowhere; [`ErrorKind::Io`] when the host cannot tell where the files lie.
pub(crate) fn way_to(
    host: &dyn Host,
    folder: &Path,
    parent: &Path,
    file: Option<FileId>,
) -> Result<String> {
    let (folder, target) = (canonical(host, folder)?, canonical(host, parent)?);
    let unfit = || unfit(&folder, &target);
    let Some(way) = relative(&folder, &target) else {
        return Err(unfit().map_or_else(|| no_way(parent), |(place, why)| astray(place, why)));
    };
    let stat = host.stat(&target).map_err(|error| not_told(&target, error))?;
    if file.is_some() && stat.id.is_some() && file != stat.id {
        return Err(astray(parent, "a name that another file has by now"));
    }
    let is_parent = |place: &PathBuf| match (host.stat(place), stat.id) {
        (Err(_), _) => false,
        (Ok(found), Some(id)) => found.id == Some(id),
        (Ok(_), None) => host.canonical(place).is_ok_and(|place| place == target),
    };
    // Whoever reads it does not follow it, wherever it leads.
    if let Some(why) = traps::in_relative(&way) {
        let found = format!("{way:?}, which {why}");
        return Err(
            unfit().map_or_else(|| astray(parent, found), |(place, why)| astray(place, why))
        );
    }
    // The first that is there is the one that is looked at first.
    let places = from_folder(&host, &folder, &way);
    let first = places.iter().find(|place| host.stat(place).is_ok()).or(places.first());
    if first.is_some_and(is_parent) {
        return Ok(way);
    }
    Err(match (unfit(), first) {
        (Some((place, why)), _) => astray(place, why),
        (None, Some(first)) => {
            astray(parent, format_args!("{way:?}, which leads to {}", first.display()))
        }
        (None, None) => astray(parent, format_args!("{way:?}, which leads nowhere")),
    })
}

const NO_WAY: &str = "create.parent-path";

fn no_way(parent: &Path) -> Error {
    let message = "no path leads from the child to its parent";
    Error::new(ErrorKind::InvalidInput, NO_WAY, message)
        .with_section("2.6.2.6.3")
        .with_found(parent.display())
        .with_expected("a parent on the volume of the child")
}

fn astray(place: &Path, found: impl std::fmt::Display) -> Error {
    let message = "no path to the parent that could be recorded would lead back to it";
    Error::new(ErrorKind::Unsupported, "parent.astray", message)
        .in_path(place)
        .with_section("2.6.2.6.3")
        .with_found(found)
        .with_expected("names that recorded paths can have, on a path that is not too long")
}

fn canonical(host: &dyn Host, path: &Path) -> Result<PathBuf> {
    host.canonical(path).map_err(|error| not_told(path, error))
}

fn not_told(path: &Path, error: std::io::Error) -> Error {
    Error::io("link.path", "cannot tell where the file lies", error).in_path(path)
}
