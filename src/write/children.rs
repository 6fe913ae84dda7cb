//! Finding the children of an image that is to be written: a change would cut them off.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, ImagePolicy, Lock, LogPolicy, identity_if_any, is_signed};
use crate::storage::{Access, FileId, FileKind, Host, Stat, Storage, folder_of, is_temporary_name};
use crate::warning::Warning;

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

/// What was seen in the folders, beside children.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) warnings: Vec<Warning>,
    /// The first place that could not be looked at, and why.
    pub(crate) unread: Option<String>,
    /// The first that is kept from us, as a folder or under the name of an image.
    denied: Option<String>,
}

impl ChildSearch {
    /// A search in the images' own folders alone.
    pub(crate) fn beside(host: Arc<dyn Host>) -> Self {
        Self { host, folders: Vec::new(), beside: Vec::new(), orphans: false }
    }

    /// Refuses to write to an image of which a child is found, or may lie where the host does not let us look, and
    /// warns of what else could not be looked at in its own folder. Folders that were asked for must be there.
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
        let seen = self.look_into(own.collect(), Asked::new(storage, guid))?;
        if let Some(denied) = seen.denied {
            return Err(children_unknown(denied).in_file(storage.name()));
        }
        warnings.extend(seen.warnings);
        Ok(())
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

    /// Refuses to change an image of which another child is found than those that are known. Returns what there is to
    /// warn of, and what could not be looked at.
    pub(crate) fn refuse_others(&self, image: &Core, known: &[&Core]) -> Result<Seen> {
        let storage = image.bare_storage().as_ref();
        let mut asked = Asked::new(storage, image.data_write_guid());
        let ids = known.iter().map(|image| (image.storage().id().ok().flatten(), image.path()));
        asked.known.extend(ids);
        // They may lie beside those that are known as well.
        let places = known.iter().flat_map(|image| [image.path(), image.via()]).flatten();
        self.look_into(places.map(folder_of).collect(), asked)
    }

    /// Looks into the folders of the images and into those that were asked for, each once.
    fn look_into(&self, own: Vec<&Path>, mut asked: Asked<'_>) -> Result<Seen> {
        let (mut seen, mut known) = (Seen::default(), Vec::new());
        for folder in own.into_iter().chain(self.beside.iter().map(PathBuf::as_path)) {
            if self.is_new(folder, &mut known) {
                match self.host.list(folder) {
                    Ok(paths) => self.refuse_any_of(paths, &mut asked, &mut seen)?,
                    Err(error) => {
                        let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
                        seen.unread(folder, &error, is_denied);
                    }
                }
            }
        }
        for folder in &self.folders {
            if self.is_new(folder, &mut known) {
                let paths = self.host.list(folder).map_err(|error| {
                    Error::io("image.children", "cannot look for children of the image", error)
                        .in_path(folder)
                })?;
                self.refuse_any_of(paths, &mut asked, &mut seen)?;
            }
        }
        seen.warnings.extend(self.other_names(&asked));
        Ok(seen)
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
        seen: &mut Seen,
    ) -> Result<()> {
        paths.retain(|path| !is_temporary_name(path));
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
                Err(error) => {
                    // Whoever keeps others from a file of another kind tells nothing of images by it.
                    let is_denied = is_denial(&error) && has_name_of_image(&path);
                    seen.unread(&path, &with_cause(&error), is_denied);
                }
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
        let message = format!("{what}: a child that lies there is cut off by a change");
        Some(Warning::new(OTHER_NAMES, asked.storage.name(), message))
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
        // A child with a broken locator is one all the same, and so is one whose log holds nothing.
        let policy = ImagePolicy { lock: Lock::None, any_locator: true, ..ImagePolicy::default() };
        let without_log = ImagePolicy { log: LogPolicy::Ignore, ..policy.clone() };
        let link = |policy: &ImagePolicy| {
            let image = Core::open(Arc::clone(&storage), policy)?;
            image.parent_link()
        };
        let is_of_host = |error: &Error| matches!(error.kind(), ErrorKind::Io | ErrorKind::InUse);
        let link = link(&policy).or_else(|error| match is_of_host(&error) {
            true => Err(error),
            false => link(&without_log).map_err(|_| error),
        });
        match link {
            Ok(link) => Ok(link.is_some_and(|link| link.accepts(asked.guid))),
            // What says that it is an image and cannot be read may be a child once it is repaired.
            Err(error) => {
                let seems_one = is_signed(storage.as_ref()) || has_name_of_image(path);
                if is_of_host(&error) || seems_one {
                    return Err(error);
                }
                Ok(false)
            }
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
    pub(crate) fn stale_trackers(&self, storage: &dyn Storage) -> Vec<Warning> {
        let Some(path) = storage.path() else { return Vec::new() };
        let beside = |ending: &str| {
            let mut name = OsString::from(path);
            name.push(ending);
            PathBuf::from(name)
        };
        let trackers = [beside(".rct"), beside(".mrt")];
        let there = trackers.into_iter().filter(|tracker| self.host.stat(tracker).is_ok());
        there
            .map(|tracker| {
                let message =
                    "does not know of changes made here; a backup that relies on it misses them";
                Warning::new("image.stale-tracker", tracker.display(), message)
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

impl Seen {
    fn unread(&mut self, path: &Path, error: &dyn fmt::Display, is_denied: bool) {
        let what = "could not be looked at: a child that lies there is cut off by a change";
        let message = format!("{what}: {error}");
        let warning = Warning::new("image.children-unread", path.display(), message);
        if is_denied {
            self.denied.get_or_insert_with(|| warning.to_string());
        }
        self.unread.get_or_insert_with(|| warning.to_string());
        self.warnings.push(warning);
    }
}

/// The refusal to change an image that may have a child where nobody could look.
pub(crate) fn children_unknown(what: String) -> Error {
    let message = "the image may have a child, which a change would cut off";
    Error::new(ErrorKind::HasChildren, "image.children-unknown", message)
        .with_section("2.6.2.6.3")
        .with_found(what)
        .with_expected("files that can be looked at, or consent to orphan a child")
}

fn with_cause(error: &Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{}{}", error.message(), cause.unwrap_or_default())
}

fn is_denial(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|error| error.downcast_ref());
    source.map(io::Error::kind) == Some(io::ErrorKind::PermissionDenied)
}

fn has_name_of_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    ["vhdx", "avhdx"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}
