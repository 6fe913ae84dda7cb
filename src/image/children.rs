//! Finding the children of an image that is to be written: a change would cut them off.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::open::identity_if_any;
use super::policy::{ImagePolicy, Lock};
use super::{VhdxFile, Warning};
use crate::error::{Error, ErrorKind, Result};
use crate::mutants::planted;
use crate::storage::{Access, FileId, FileKind, Host, Stat, Storage, folder_of, is_temporary_name};

/// The code of a warning that an image has names elsewhere.
pub(crate) const OTHER_NAMES: &str = "image.other-names";

/// Where children are looked for. A VHDX file does not record them.
#[derive(Clone, Debug)]
pub(crate) struct ChildSearch {
    pub(crate) host: Arc<dyn Host>,
    /// Folders that must be there, beside the image's own.
    pub(crate) folders: Vec<PathBuf>,
    /// Others, which are looked into where that can be done.
    pub(crate) beside: Vec<PathBuf>,
    /// Whether children that are found may be cut off.
    pub(crate) orphans: bool,
}

/// The image that is to change, as its children and its other names are told by.
struct Asked<'a> {
    storage: &'a dyn Storage,
    id: Option<FileId>,
    guid: Uuid,
    /// The images that are no others.
    known: Vec<(Option<FileId>, Option<&'a Path>)>,
    /// Its names that were met.
    names: u64,
}

impl ChildSearch {
    /// A search in the images' own folders alone.
    pub(crate) fn beside(host: Arc<dyn Host>) -> Self {
        Self { host, folders: Vec::new(), beside: Vec::new(), orphans: false }
    }

    /// Refuses to write to an image of which a child is found, and warns of what could not be looked at in
    /// its own folder. Folders that were asked for must be there.
    pub(crate) fn refuse_children(
        &self,
        storage: &dyn Storage,
        guid: Uuid,
        warnings: &mut Vec<Warning>,
    ) -> Result<()> {
        if self.orphans {
            return Ok(());
        }
        let own = [storage.path(), storage.via()].into_iter().flatten().map(folder_of);
        self.look_into(own.collect(), Asked::new(storage, guid), warnings)
    }

    /// Refuses to give up a file that is an image of which a child is found, and says what could not be looked at.
    /// A file that is no image is nobody's parent.
    pub(crate) fn refuse_loss(&self, storage: &dyn Storage) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        if let Some(guid) = identity_if_any(storage)? {
            self.refuse_children(storage, guid, &mut warnings)?;
        }
        Ok(warnings)
    }

    /// Refuses to change an image of which another child is found than those that are known.
    pub(crate) fn refuse_others(
        &self,
        image: &VhdxFile,
        known: &[&VhdxFile],
        warnings: &mut Vec<Warning>,
    ) -> Result<()> {
        let storage = image.bare_storage().as_ref();
        let mut asked = Asked::new(storage, image.data_write_guid());
        let ids = known.iter().map(|image| (image.storage().id().ok().flatten(), image.path()));
        asked.known.extend(ids);
        // They may lie beside those that are known as well.
        let places = known.iter().flat_map(|image| [image.path(), image.via()]).flatten();
        self.look_into(places.map(folder_of).collect(), asked, warnings)
    }

    /// Looks into the folders of the images and into those that were asked for, each once.
    fn look_into(
        &self,
        own: Vec<&Path>,
        mut asked: Asked<'_>,
        warnings: &mut Vec<Warning>,
    ) -> Result<()> {
        let mut seen = Vec::new();
        for folder in own.into_iter().chain(self.beside.iter().map(PathBuf::as_path)) {
            if self.is_new(folder, &mut seen) {
                match self.host.list(folder) {
                    Ok(paths) => self.refuse_any_of(paths, &mut asked, warnings)?,
                    Err(error) => warnings.push(unread(folder, &error)),
                }
            }
        }
        for folder in &self.folders {
            if self.is_new(folder, &mut seen) {
                let paths = self.host.list(folder).map_err(|error| {
                    Error::io("image.children", "cannot look for children of the image", error)
                        .in_path(folder)
                })?;
                self.refuse_any_of(paths, &mut asked, warnings)?;
            }
        }
        warnings.extend(self.other_names(&asked));
        Ok(())
    }

    /// Whether a folder was not looked into yet, by whatever name.
    fn is_new(&self, folder: &Path, seen: &mut Vec<PathBuf>) -> bool {
        let real = self.host.canonical(folder).unwrap_or_else(|_| folder.to_path_buf());
        let is_new = !seen.contains(&real);
        if is_new {
            seen.push(real);
        }
        is_new
    }

    fn refuse_any_of(
        &self,
        mut paths: Vec<PathBuf>,
        asked: &mut Asked<'_>,
        warnings: &mut Vec<Warning>,
    ) -> Result<()> {
        paths.retain(|path| !is_temporary_name(path) || planted("temporary-file-taken-for-child"));
        for path in paths {
            match self.is_child(&path, asked) {
                Ok(false) => {}
                Ok(true) => {
                    let message = "the image has a child, which a change would cut off";
                    return Err(Error::new(ErrorKind::HasChildren, "image.children", message)
                        .in_file(asked.storage.name())
                        .with_section("2.6.2.6.3")
                        .with_found(format_args!("{} as its child", path.display()))
                        .with_expected("no child, or consent to orphan it"));
                }
                Err(error) => warnings.push(unread(&path, &error)),
            }
        }
        Ok(())
    }

    /// Warns of names of the image that were not met: children may lie beside them.
    fn other_names(&self, asked: &Asked<'_>) -> Option<Warning> {
        let names = self.host.stat(asked.storage.path()?).ok()?.names?;
        let unseen = names.checked_sub(asked.names.max(1)).filter(|unseen| *unseen > 0)?;
        let what = match unseen {
            1 => "has another name elsewhere (a hard link)".to_owned(),
            _ => format!("has {unseen} other names elsewhere (hard links)"),
        };
        let name = asked.storage.name();
        let message = format!("{name}: {what}: a child that lies there is cut off by a change");
        Some(Warning { code: OTHER_NAMES, message })
    }

    /// An error where the host cannot read the file, which then may be anything.
    fn is_child(&self, path: &Path, asked: &mut Asked<'_>) -> Result<bool> {
        let failed = |error| Error::io("image.children", "cannot look at the file", error);
        let storage = match self.host.stat(path) {
            Ok(stat) if self.is_known(path, &stat, asked) => return Ok(false),
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
        // A child with a broken locator is one all the same.
        let policy = ImagePolicy { lock: Lock::None, any_locator: true, ..ImagePolicy::default() };
        let link = VhdxFile::from_storage(storage, &policy).and_then(|image| image.parent_link());
        match link {
            Ok(link) => Ok(link.is_some_and(|link| link.accepts(asked.guid))),
            Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::InUse) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Whether a name is one of the image itself, or of another that is known.
    fn is_known(&self, path: &Path, stat: &Stat, asked: &mut Asked<'_>) -> bool {
        let is_link = || self.host.is_link(path).unwrap_or(false);
        if stat.id.is_some() && stat.id == asked.id && !is_link() {
            asked.names += 1;
        }
        let same_place = |other: &Path| {
            let real = |path: &Path| self.host.canonical(path).ok();
            path == other || (path.file_name() == other.file_name() && real(path) == real(other))
        };
        asked.known.iter().any(|(id, known)| match (id, stat.id) {
            (Some(id), Some(own)) => *id == own,
            _ => known.is_some_and(same_place),
        })
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

impl<'a> Asked<'a> {
    fn new(storage: &'a dyn Storage, guid: Uuid) -> Self {
        let id = storage.id().ok().flatten();
        Self { storage, id, guid, known: vec![(id, storage.path())], names: 0 }
    }
}

fn unread(path: &Path, error: &dyn fmt::Display) -> Warning {
    let what = "could not be looked at: a child that lies there is cut off by a change";
    Warning {
        code: "image.children-unread",
        message: format!("{}: {what}: {error}", path.display()),
    }
}
