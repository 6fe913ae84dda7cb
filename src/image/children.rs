//! Finding the children of an image that is to be written: a change would cut them off.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::policy::{ImagePolicy, Lock};
use super::{VhdxFile, Warning};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Access, FileKind, Host, Storage, folder_of};

/// Where children are looked for. A VHDX file does not record them.
#[derive(Clone, Debug)]
pub(crate) struct ChildSearch {
    pub(crate) host: Arc<dyn Host>,
    /// Beside the image's own folder.
    pub(crate) folders: Vec<PathBuf>,
    /// Whether children that are found may be cut off.
    pub(crate) orphans: bool,
}

impl ChildSearch {
    /// Refuses to write to an image of which a child is found.
    pub(super) fn refuse_children(&self, storage: &dyn Storage, guid: Uuid) -> Result<()> {
        if self.orphans {
            return Ok(());
        }
        let own = storage.path().map(folder_of);
        for folder in own.into_iter().chain(self.folders.iter().map(PathBuf::as_path)) {
            for path in self.host.list(folder).unwrap_or_default() {
                if self.is_child(&path, storage, guid) {
                    let message = "the image has a child, which a change would cut off";
                    return Err(Error::new(ErrorKind::HasChildren, "image.children", message)
                        .with_section("2.6.2.6.3")
                        .with_found(format_args!("{} as its child", path.display()))
                        .with_expected("no child, or consent to orphan it"));
                }
            }
        }
        Ok(())
    }

    fn is_child(&self, path: &Path, parent: &dyn Storage, guid: Uuid) -> bool {
        let is_file = self.host.stat(path).is_ok_and(|stat| stat.kind == FileKind::File);
        if !is_file || Some(path) == parent.path() {
            return false;
        }
        // What does not open as an image cannot be read as a child either.
        let policy = ImagePolicy { lock: Lock::None, ..ImagePolicy::default() };
        let opened = self.host.open(path, Access::Read).ok();
        let image = opened.and_then(|storage| VhdxFile::from_storage(storage, &policy).ok());
        let link = image.and_then(|image| image.parent_link().ok().flatten());
        link.is_some_and(|link| link.accepts(guid))
    }

    /// Warns of files in which Hyper-V keeps track of changes, and which know nothing of ours.
    pub(super) fn stale_trackers(&self, storage: &dyn Storage) -> Vec<Warning> {
        let Some(path) = storage.path() else { return Vec::new() };
        let beside = |ending: &str| {
            let mut name = OsString::from(path);
            name.push(ending);
            PathBuf::from(name)
        };
        let trackers = [beside(".rct"), beside(".mrt")];
        let there = trackers.into_iter().filter(|tracker| self.host.stat(tracker).is_ok());
        there
            .map(|tracker| Warning {
                code: "image.stale-tracker",
                message: format!(
                    "{}: does not know of changes made here; a backup that relies on it misses them",
                    tracker.display()
                ),
            })
            .collect()
    }
}
