//! Finds the children of an image before it is changed: a change would orphan them.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::hash::Hash;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

use crate::disk::LayerId;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{
    Core, ImagePolicy, Lock, LogPolicy, MergeState, ParentLink, identity_if_any, is_signed,
};
use crate::storage::{Access, FileId, FileKind, Host, Stat, Storage, folder_of, is_temporary_name};
use crate::warning::Warning;

/// Warning code: an image has names elsewhere.
pub(crate) const OTHER_NAMES: &str = "image.other-names";

/// Where to search for children. A VHDX file does not record them.
#[derive(Clone, Debug)]
pub(crate) struct ChildSearch {
    pub(crate) host: Arc<dyn Host>,
    /// Folders that must exist, searched in addition to the image's own.
    pub(crate) folders: Vec<PathBuf>,
    /// Folders that are searched as far as possible.
    pub(crate) beside: Vec<PathBuf>,
    /// Whether children may be orphaned.
    pub(crate) orphans: bool,
    /// Whether children that were merged into the image are none.
    pub(crate) ignores_spent: bool,
    /// What was found out, for a search that is used for several images at once while nothing changes.
    pub(crate) seen: Option<Arc<Mutex<Seen>>>,
}

/// What a search has found out of folders and files.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    lists: HashMap<PathBuf, Vec<PathBuf>>,
    files: HashMap<PathBuf, Stat>,
    links: HashMap<PathBuf, bool>,
    real: HashMap<PathBuf, PathBuf>,
    ids: HashMap<LayerId, Option<FileId>>,
    parentages: HashMap<PathBuf, Parentage>,
}

/// The parents that an image accepts, as far as it has any.
#[derive(Clone, Debug)]
pub(crate) struct Parentage(Option<Link>);

#[derive(Clone, Debug)]
struct Link {
    link: ParentLink,
    /// The image that it was merged into.
    spent_into: Option<Uuid>,
}

/// The image to be changed, as its children and its other names identify it.
struct SearchedImage<'a> {
    storage: &'a dyn Storage,
    id: Option<FileId>,
    guid: Uuid,
    /// Images that are not reported as children.
    known: Vec<(Option<FileId>, Option<&'a Path>)>,
    /// Number of its names that were found.
    names: u64,
}

/// The results of a search, apart from children.
#[derive(Debug, Default)]
pub(crate) struct SearchResult {
    pub(crate) warnings: Vec<Warning>,
    /// The first file or folder that could not be examined, and why.
    pub(crate) unread: Option<String>,
    /// Children that were merged into the image and can be removed.
    pub(crate) spent: Vec<PathBuf>,
    /// The first folder or image to which the host denied access.
    denied: Option<String>,
}

/// What a file is to the image that is searched for.
enum Kin {
    None,
    Child,
    /// A child that was merged into it.
    Spent,
}

impl ChildSearch {
    /// A search of the images' own folders only.
    pub(crate) fn beside(host: Arc<dyn Host>) -> Self {
        Self {
            host,
            folders: Vec::new(),
            beside: Vec::new(),
            orphans: false,
            ignores_spent: false,
            seen: None,
        }
    }

    /// Refuses to write to an image if a child is found or may be in a place to which the host
    /// denies access. Warns of other places in its own folder that could not be examined. The
    /// folders that were named must exist.
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
        let result = self.search_folders(own.collect(), SearchedImage::new(storage, guid))?;
        if let Some(denied) = result.denied {
            return Err(children_unknown(denied).in_file(storage.name()));
        }
        warnings.extend(result.warnings);
        Ok(())
    }

    /// Refuses to replace an image that has a child; returns warnings of places that could not be
    /// examined. A file that is not an image has no children.
    pub(crate) fn refuse_loss(&self, storage: &dyn Storage) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        if let Some(guid) = identity_if_any(storage)? {
            self.refuse_children(storage, guid, &mut warnings)?;
        }
        Ok(warnings)
    }

    /// Refuses to change an image with a child other than the known ones. Returns warnings, what could not be examined,
    /// and the ignored children.
    pub(crate) fn refuse_others(&self, image: &Core, known: &[&Core]) -> Result<SearchResult> {
        let storage = image.bare_storage().as_ref();
        let mut target = SearchedImage::new(storage, image.data_write_guid());
        let id_of = |image: &Core| {
            let id = self.once(|seen| &mut seen.ids, &image.id(), || image.storage().id());
            id.ok().flatten()
        };
        target.known.extend(known.iter().map(|image| (id_of(image), image.path())));
        // Children may lie beside the known images too.
        let places = known.iter().flat_map(|image| [image.path(), image.via()]).flatten();
        self.search_folders(places.map(folder_of).collect(), target)
    }

    /// Searches the folders of the images and the named folders, each once.
    fn search_folders(
        &self,
        own: Vec<&Path>,
        mut target: SearchedImage<'_>,
    ) -> Result<SearchResult> {
        let (mut result, mut visited) = (SearchResult::default(), Vec::new());
        for folder in own.into_iter().chain(self.beside.iter().map(PathBuf::as_path)) {
            if self.is_first_visit(folder, &mut visited) {
                match self.list(folder) {
                    Ok(paths) => self.check_paths(paths, &mut target, &mut result)?,
                    Err(error) => {
                        let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
                        result.unread(folder, &error, is_denied);
                    }
                }
            }
        }
        for folder in &self.folders {
            if self.is_first_visit(folder, &mut visited) {
                let paths = self.list(folder).map_err(|error| {
                    Error::io("image.children", "cannot search for children of the image", error)
                        .in_path(folder)
                })?;
                self.check_paths(paths, &mut target, &mut result)?;
            }
        }
        result.warnings.extend(self.other_names(&target));
        Ok(result)
    }

    /// Whether a folder is visited for the first time under any of its names.
    fn is_first_visit(&self, folder: &Path, visited: &mut Vec<PathBuf>) -> bool {
        let real = self.once(|seen| &mut seen.real, folder, || self.host.canonical(folder));
        let real = real.unwrap_or_else(|_| folder.to_path_buf());
        let is_new = !visited.contains(&real);
        if is_new {
            visited.push(real);
        }
        is_new
    }

    fn check_paths(
        &self,
        paths: Vec<PathBuf>,
        target: &mut SearchedImage<'_>,
        result: &mut SearchResult,
    ) -> Result<()> {
        for path in paths {
            match self.kin(&path, target) {
                Ok(Kin::None) => {}
                Ok(Kin::Spent) if self.ignores_spent => result.spent.push(path),
                Ok(Kin::Child | Kin::Spent) => {
                    let message = "the image has a child, which a change would orphan";
                    return Err(Error::new(ErrorKind::HasChildren, "image.children", message)
                        .in_file(target.storage.name())
                        .with_section("2.6.2.6.3")
                        .with_found(format_args!("{} as its child", path.display()))
                        .with_expected("no child, or consent to orphan it"));
                }
                Err(error) => {
                    // Denied access to a file without an image's name says nothing about children.
                    let is_denied = is_denial(&error) && has_name_of_image(&path);
                    result.unread(&path, &with_cause(&error), is_denied);
                }
            }
        }
        Ok(())
    }

    /// Warns of names of the image that were not found: children may lie beside them.
    fn other_names(&self, target: &SearchedImage<'_>) -> Option<Warning> {
        let names = self.host.stat(target.storage.path()?).ok()?.names?;
        let unseen = names.checked_sub(target.names.max(1)).filter(|unseen| *unseen > 0)?;
        let what = match unseen {
            1 => "has another name elsewhere (a hard link)".to_owned(),
            _ => format!("has {unseen} other names elsewhere (hard links)"),
        };
        let message = format!("{what}: a change would orphan a child there");
        Some(Warning::new(OTHER_NAMES, target.storage.name(), message))
    }

    /// Fails if the host cannot read the file, which may then be a child.
    fn kin(&self, path: &Path, target: &mut SearchedImage<'_>) -> Result<Kin> {
        let failed = |error| Error::io("image.children", "cannot examine the file", error);
        match self.stat(path) {
            Ok(stat) if self.is_known(path, &stat, target) => return Ok(Kin::None),
            Ok(stat) if stat.kind == FileKind::File => {}
            Ok(_) => return Ok(Kin::None),
            // Removed since the folder was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kin::None),
            Err(error) => return Err(failed(error)),
        }
        let parentage = self.once(
            |seen| &mut seen.parentages,
            path,
            || match self.host.open(path, Access::Read) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Parentage(None)),
                storage => Parentage::of(&storage.map_err(failed)?, path),
            },
        );
        Ok(parentage?.kin_of(target.guid))
    }

    /// The files of a folder that may be images.
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        self.once(
            |seen| &mut seen.lists,
            folder,
            || {
                let mut paths = self.host.list(folder)?;
                paths.retain(|path| !is_temporary_name(path));
                Ok(paths)
            },
        )
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.once(|seen| &mut seen.files, path, || self.host.stat(path))
    }

    fn is_link(&self, path: &Path) -> bool {
        let is_link = self.once(|seen| &mut seen.links, path, || self.host.is_link(path));
        is_link.unwrap_or(false)
    }

    /// Finds something, once for each key if the search keeps what it has seen.
    fn once<K, Q, T, E>(
        &self,
        part: fn(&mut Seen) -> &mut HashMap<K, T>,
        key: &Q,
        find: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E>
    where
        K: Borrow<Q> + Eq + Hash,
        Q: ToOwned<Owned = K> + Eq + Hash + ?Sized,
        T: Clone,
    {
        let Some(seen) = &self.seen else { return find() };
        let seen = || seen.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = part(&mut seen()).get(key).cloned();
        if let Some(found) = remembered {
            return Ok(found);
        }
        let found = find()?;
        part(&mut seen()).insert(key.to_owned(), found.clone());
        Ok(found)
    }

    /// Whether a path is a name of the image itself or of another known image.
    fn is_known(&self, path: &Path, stat: &Stat, target: &mut SearchedImage<'_>) -> bool {
        if stat.id.is_some() && stat.id == target.id && !self.is_link(path) {
            target.names += 1;
        }
        let same_place = |other: &Path| {
            let real = |path: &Path| self.host.canonical(path).ok();
            path == other || (path.file_name() == other.file_name() && real(path) == real(other))
        };
        target.known.iter().any(|(id, known)| match (id, stat.id) {
            (Some(id), Some(own)) => *id == own,
            _ => known.is_some_and(same_place),
        })
    }

    /// Warns of files in which Hyper-V tracks changes: they do not record changes made here.
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
                    "does not record changes made here: a backup that relies on it misses them";
                Warning::new("image.stale-tracker", tracker.display(), message)
            })
            .collect()
    }
}

impl Parentage {
    /// Reads that of a file, which may be none of an image.
    fn of(storage: &Arc<dyn Storage>, path: &Path) -> Result<Self> {
        // A child with a damaged locator is still a child, and so is one with a damaged log.
        let policy = ImagePolicy { lock: Lock::None, any_locator: true, ..ImagePolicy::default() };
        let without_log = ImagePolicy { log: LogPolicy::Ignore, ..policy.clone() };
        let read = |policy: &ImagePolicy| {
            let image = Core::open(Arc::clone(storage), policy)?;
            let mark = image.merge_mark().filter(|mark| mark.state == MergeState::Spent);
            let spent_into = mark.map(|mark| mark.other);
            Ok(Self(image.parent_link()?.map(|link| Link { link, spent_into })))
        };
        let is_of_host = |error: &Error| matches!(error.kind(), ErrorKind::Io | ErrorKind::InUse);
        let parentage = read(&policy).or_else(|error| match is_of_host(&error) {
            true => Err(error),
            false => read(&without_log).map_err(|_| error),
        });
        match parentage {
            // An image that cannot be read may turn out to be a child once it is repaired.
            Err(error) => {
                let seems_one = is_signed(storage.as_ref()) || has_name_of_image(path);
                if is_of_host(&error) || seems_one {
                    return Err(error);
                }
                Ok(Self(None))
            }
            parentage => parentage,
        }
    }

    /// What the file is to the image with this identity.
    fn kin_of(&self, parent: Uuid) -> Kin {
        match self.0.as_ref().filter(|own| own.link.accepts(parent)) {
            None => Kin::None,
            Some(own) if own.spent_into.is_some_and(|into| own.link.accepts(into)) => Kin::Spent,
            Some(_) => Kin::Child,
        }
    }
}

impl<'a> SearchedImage<'a> {
    fn new(storage: &'a dyn Storage, guid: Uuid) -> Self {
        let id = storage.id().ok().flatten();
        Self { storage, id, guid, known: vec![(id, storage.path())], names: 0 }
    }
}

impl SearchResult {
    fn unread(&mut self, path: &Path, error: &dyn fmt::Display, is_denied: bool) {
        let what = "could not be examined";
        // What a change would do to a child there depends on the change.
        let unread = format!("{}: {what}: {error}", path.display());
        if is_denied {
            self.denied.get_or_insert_with(|| unread.clone());
        }
        self.unread.get_or_insert(unread);
        let message = format!("{what}: a change would orphan a child there: {error}");
        self.warnings.push(Warning::new("image.children-unread", path.display(), message));
    }
}

/// The error of a change to an image that may have a child in a place that could not be examined.
pub(crate) fn children_unknown(what: String) -> Error {
    let message = "the image may have a child, which a change would orphan";
    Error::new(ErrorKind::HasChildren, "image.children-unknown", message)
        .with_section("2.6.2.6.3")
        .with_found(what)
        .with_expected("readable files, or consent to orphan a child")
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
