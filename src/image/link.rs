//! The link from a differencing image to its parent, \[MS-VHDX\] 2.6.2.6.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::format::locator::ParentLocator;

/// A differencing image's record of its parent: identity and paths.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParentLink {
    /// The name of the child in errors.
    pub child: String,
    /// The path of the child, if it is in a folder.
    pub child_path: Option<PathBuf>,
    /// The path that the child was opened by, if symbolic links led from there to `child_path`.
    pub child_via: Option<PathBuf>,
    /// The parent's `DataWriteGuid` when the two were linked. Zero if none is recorded, which only a chain with
    /// [`Linkage::Ignore`](crate::Linkage::Ignore) accepts.
    pub linkage: Uuid,
    /// A second identity that the parent may have while a merge is unfinished.
    pub linkage2: Option<Uuid>,
    /// The parent's path from the child's folder, as recorded.
    pub relative_path: Option<String>,
    /// The parent's path on its volume, as recorded: `\\?\Volume{…}\…`.
    pub volume_path: Option<String>,
    /// The parent's absolute path on the Windows machine that wrote it, as recorded.
    pub absolute_win32_path: Option<String>,
}

impl ParentLink {
    /// The link of a child that records no path, to a parent with this identity. For images of other formats, whose parents
    /// a [`ParentSource`](crate::ParentSource) finds as well: set the fields that they record.
    pub fn new(child: impl Into<String>, linkage: Uuid) -> Self {
        Self {
            child: child.into(),
            child_path: None,
            child_via: None,
            linkage,
            linkage2: None,
            relative_path: None,
            volume_path: None,
            absolute_win32_path: None,
        }
    }

    /// The link recorded in a locator, with these identities.
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
    /// The nil GUID is never accepted: anyone could guess it.
    pub fn accepts(&self, data_write_guid: Uuid) -> bool {
        !data_write_guid.is_nil()
            && (data_write_guid == self.linkage || Some(data_write_guid) == self.linkage2)
    }
}
