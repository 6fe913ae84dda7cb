//! Finding the children of an image that is to be written: a change would cut them off.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::policy::{ImagePolicy, Lock};
use super::{VhdxFile, Warning};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Access, FileId, FileKind, Host, Storage, folder_of, is_temporary_name};

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
    /// Refuses to write to an image of which a child is found, and warns of what could not be looked at in
    /// its own folder. Folders that were asked for must be there.
    pub(super) fn refuse_children(
        &self,
        storage: &dyn Storage,
        guid: Uuid,
        warnings: &mut Vec<Warning>,
    ) -> Result<()> {
        if self.orphans {
            return Ok(());
        }
        if let Some(own) = storage.path().map(folder_of) {
            match self.host.list(own) {
                Ok(paths) => self.refuse_any_of(paths, storage, guid, warnings)?,
                Err(error) => warnings.push(unread(own, &error)),
            }
        }
        for folder in &self.folders {
            self.refuse_any_of(self.list(folder)?, storage, guid, warnings)?;
        }
        Ok(())
    }

    /// Refuses to change an image of which another child is found than those that are known.
    pub(crate) fn refuse_others(
        &self,
        image: &VhdxFile,
        known: &[&VhdxFile],
        warnings: &mut Vec<Warning>,
    ) -> Result<()> {
        let ids: Vec<FileId> =
            known.iter().filter_map(|image| image.storage().id().ok().flatten()).collect();
        let is_known = |path: &Path| {
            known.iter().any(|image| image.path() == Some(path))
                || self
                    .host
                    .stat(path)
                    .is_ok_and(|stat| stat.id.is_some_and(|id| ids.contains(&id)))
        };
        let storage = image.bare_storage().as_ref();
        // They may lie beside those that are known as well.
        let mut folders: Vec<&Path> =
            known.iter().filter_map(|image| image.path()).map(folder_of).collect();
        folders.sort_unstable();
        folders.dedup();
        for folder in folders {
            match self.host.list(folder) {
                Ok(mut paths) => {
                    paths.retain(|path| !is_known(path));
                    self.refuse_any_of(paths, storage, image.data_write_guid(), warnings)?;
                }
                Err(error) => warnings.push(unread(folder, &error)),
            }
        }
        for folder in &self.folders {
            let mut paths = self.list(folder)?;
            paths.retain(|path| !is_known(path));
            self.refuse_any_of(paths, storage, image.data_write_guid(), warnings)?;
        }
        Ok(())
    }

    /// The names in a folder that was asked for.
    fn list(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        self.host.list(folder).map_err(|error| {
            Error::io("image.children", "cannot look for children of the image", error)
                .in_path(folder)
        })
    }

    fn refuse_any_of(
        &self,
        paths: Vec<PathBuf>,
        parent: &dyn Storage,
        guid: Uuid,
        warnings: &mut Vec<Warning>,
    ) -> Result<()> {
        let others = paths.into_iter().filter(|path| Some(path.as_path()) != parent.path());
        for path in others.filter(|path| !is_temporary_name(path)) {
            match self.is_child(&path, guid) {
                Ok(false) => {}
                Ok(true) => {
                    let message = "the image has a child, which a change would cut off";
                    return Err(Error::new(ErrorKind::HasChildren, "image.children", message)
                        .in_file(parent.name())
                        .with_section("2.6.2.6.3")
                        .with_found(format_args!("{} as its child", path.display()))
                        .with_expected("no child, or consent to orphan it"));
                }
                Err(error) => warnings.push(unread(&path, &error)),
            }
        }
        Ok(())
    }

    /// An error where the host cannot read the file, which then may be anything.
    fn is_child(&self, path: &Path, guid: Uuid) -> Result<bool> {
        let failed = |error| Error::io("image.children", "cannot look at the file", error);
        let storage = match self.host.stat(path) {
            Ok(stat) if stat.kind == FileKind::File => self.host.open(path, Access::Read),
            Ok(_) => return Ok(false),
            Err(error) => Err(error),
        };
        let storage = match storage {
            // It was removed since the folder was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            storage => storage.map_err(failed)?,
        };
        // What does not open as an image cannot be read as a child either.
        let policy = ImagePolicy { lock: Lock::None, ..ImagePolicy::default() };
        let link = VhdxFile::from_storage(storage, &policy).and_then(|image| image.parent_link());
        match link {
            Ok(link) => Ok(link.is_some_and(|link| link.accepts(guid))),
            Err(error) if error.kind() == ErrorKind::Io => Err(error),
            Err(_) => Ok(false),
        }
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

fn unread(path: &Path, error: &dyn fmt::Display) -> Warning {
    let what = "could not be looked at: a child that lies there is cut off by a change";
    Warning {
        code: "image.children-unread",
        message: format!("{}: {what}: {error}", path.display()),
    }
}
