//! Where parents come from.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::image::ParentLink;
use crate::names::unsafe_paths;
use crate::names::{self, Listing, NameLookup};
use crate::storage::{Access, FileId, FileKind, Host, LocalHost, Stat, Storage};

/// Opens what may be the parent of an image.
///
/// The source only opens. The chain checks the identity of each candidate before it shows anything
/// of it, and takes the first that has the recorded one.
pub trait ParentSource: Debug + Send + Sync {
    /// Candidates in order of preference. They are asked for one by one, and no further than to the
    /// first that matches.
    fn candidates<'a>(
        &'a self,
        link: &'a ParentLink,
        access: Access,
    ) -> Box<dyn Iterator<Item = Candidate> + 'a>;
}

/// A file that may be the parent.
#[derive(Debug)]
#[non_exhaustive]
pub struct Candidate {
    /// What errors call it.
    pub name: String,
    /// What led to it.
    pub found_by: FoundBy,
    /// The file, or why it cannot be had. [`io::ErrorKind::PermissionDenied`] says that policy or
    /// host forbid it, [`io::ErrorKind::NotFound`] that nothing is there, and
    /// [`io::ErrorKind::IsADirectory`] and [`io::ErrorKind::InvalidInput`] that what is there is a folder, or
    /// nothing that could be an image.
    pub opened: io::Result<Arc<dyn Storage>>,
}

impl Candidate {
    /// A candidate that was opened, or not.
    pub fn new(
        name: impl Into<String>,
        found_by: FoundBy,
        opened: io::Result<Arc<dyn Storage>>,
    ) -> Self {
        Self { name: name.into(), found_by, opened }
    }
}

/// What led to a parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FoundBy {
    /// The caller named the file.
    Given,
    /// The path from the child's folder.
    RelativePath,
    /// The path on a volume.
    VolumePath,
    /// The absolute path on a Windows machine.
    AbsoluteWin32Path,
    /// The recorded file name, in a folder that the caller named.
    FolderName,
    /// The identity, in a folder that the caller named.
    FolderSearch,
    /// A source of the caller's own.
    Other,
}

/// Finds parents by the paths that their children recorded.
///
/// Files that the caller names come first. Then, in the order of \[MS-VHDX\] 2.6.2.6.3, the
/// `relative_path`, the `volume_path` and the `absolute_win32_path`, the last two through path
/// mappings where the machine is not the one that wrote them. Then the folders that the caller names,
/// where the recorded file name is tried before every other file. `\` and `/` both separate names,
/// and where a name is not there exactly, names that differ in case only are tried.
///
/// Only regular files are opened.
#[derive(Clone, Debug)]
pub struct PathSource {
    host: Arc<dyn Host>,
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    mappings: Vec<(Vec<String>, PathBuf)>,
    confines: Option<Vec<PathBuf>>,
    listings: Option<Arc<Mutex<Listings>>>,
}

/// What was listed, by folder.
type Listings = HashMap<PathBuf, Arc<Listing>>;

impl PathSource {
    /// A source that knows nothing but the recorded paths.
    pub fn new() -> Self {
        Self {
            host: Arc::new(LocalHost),
            files: Vec::new(),
            folders: Vec::new(),
            mappings: Vec::new(),
            confines: None,
            listings: None,
        }
    }

    /// The host that the paths are on: this machine unless told otherwise.
    pub fn host(mut self, host: Arc<dyn Host>) -> Self {
        self.host = host;
        self
    }

    /// A file to try before all others, for every layer.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(path.into());
        self
    }

    /// A folder to search when no recorded path leads to the parent.
    pub fn folder(mut self, path: impl Into<PathBuf>) -> Self {
        self.folders.push(path.into());
        self
    }

    /// Where a Windows folder, such as `D:\vm` or `\\?\Volume{…}`, is found on this machine.
    pub fn map(mut self, from: impl AsRef<str>, to: impl Into<PathBuf>) -> Self {
        let from = names::parts(from.as_ref());
        self.mappings.push((from, to.into()));
        // The longest match comes first.
        self.mappings.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        self
    }

    /// Serves nothing that does not lie in one of these folders or below, links followed: for
    /// services that take images from strangers. Each call adds a folder.
    pub fn confined_to(mut self, folder: impl Into<PathBuf>) -> Self {
        self.confines.get_or_insert_default().push(folder.into());
        self
    }

    /// The same source, which lists each folder once: for who asks for many parents in one go.
    pub(crate) fn remembering(&self) -> Self {
        Self { listings: Some(Arc::default()), ..self.clone() }
    }

    /// Whether parents may come from where this file lies, links followed.
    pub(crate) fn serves(&self, path: &Path) -> bool {
        let Some(confines) = &self.confines else { return true };
        let real = |path: &Path| self.host.canonical(path).ok();
        real(path).is_some_and(|path| {
            confines.iter().filter_map(|folder| real(folder)).any(|folder| path.starts_with(folder))
        })
    }

    /// The host that the paths are on.
    pub(crate) fn its_host(&self) -> &dyn Host {
        self.host.as_ref()
    }

    /// The candidates that a path leads to, without those of folders to search.
    pub(crate) fn by_path<'a>(
        &'a self,
        link: &'a ParentLink,
    ) -> impl Iterator<Item = Candidate> + 'a {
        self.path_steps(link).into_iter().flat_map(move |step| self.along(step, link, Access::Read))
    }

    /// Every file of the folders to search, whoever looks for a parent there.
    pub(crate) fn in_folders(&self) -> impl Iterator<Item = Candidate> + '_ {
        self.folders.iter().flat_map(|folder| {
            let places = self.files_of(folder).into_iter();
            places.map(|place| self.candidate(&place, FoundBy::FolderSearch, Access::Read))
        })
    }

    /// The files that the caller named, and those of the folders to search.
    pub(crate) fn extra_files(&self) -> Vec<PathBuf> {
        let in_folders = self.folders.iter().flat_map(|folder| self.files_of(folder));
        self.files.iter().cloned().chain(in_folders).collect()
    }

    fn steps<'a>(&'a self, link: &'a ParentLink) -> Vec<Step<'a>> {
        let mut steps = self.path_steps(link);
        for folder in &self.folders {
            steps.extend(file_names(link).into_iter().map(|name| Step::Named(folder, name)));
            steps.push(Step::Search(folder));
        }
        steps
    }

    fn path_steps<'a>(&'a self, link: &'a ParentLink) -> Vec<Step<'a>> {
        let given = self.files.iter().map(|file| Step::Given(file));
        given.chain(recorded(link).map(|(by, path)| Step::Recorded(by, path))).collect()
    }

    fn along<'a>(
        &'a self,
        step: Step<'a>,
        link: &'a ParentLink,
        access: Access,
    ) -> impl Iterator<Item = Candidate> + 'a {
        let found_by = step.found_by();
        let refused = self.refused(&step);
        let places = match refused {
            Some(_) => Vec::new(),
            None => self.places(&step, link),
        };
        let places = places.into_iter();
        let candidates = places.map(move |place| self.candidate(&place, found_by, access));
        refused.into_iter().chain(candidates)
    }

    /// That a recorded path leads where it must not.
    fn refused(&self, step: &Step<'_>) -> Option<Candidate> {
        let Step::Recorded(found_by, path) = step else { return None };
        let is_relative = *found_by == FoundBy::RelativePath;
        let why = match self.mapped(path) {
            Some((_, names)) if !is_relative || unsafe_paths::is_absolute(path) => {
                unsafe_paths::in_names(names.iter().map(String::as_str))
            }
            _ if is_relative => unsafe_paths::in_relative(path),
            _ if cfg!(windows) => unsafe_paths::in_absolute(path),
            _ => None,
        };
        let refused = |why| Candidate::new(*path, *found_by, Err(unsafe_paths::refused(why)));
        why.map(refused)
    }

    /// The folder that a mapping says, and the names that lead on from there.
    fn mapped(&self, path: &str) -> Option<(&Path, Vec<String>)> {
        let mut names = names::parts(path);
        let is_start = |from: &[String]| {
            names.len() > from.len() && from.iter().zip(&names).all(|(a, b)| names::same_name(a, b))
        };
        let (from, to) = self.mappings.iter().find(|(from, _)| is_start(from))?;
        Some((to, names.split_off(from.len())))
    }

    fn candidate(&self, place: &Path, found_by: FoundBy, access: Access) -> Candidate {
        Candidate::new(place.display().to_string(), found_by, self.open(place, access))
    }

    fn files_of(&self, folder: &Path) -> Vec<PathBuf> {
        names::files_of(self.host.as_ref(), folder)
    }

    fn places(&self, step: &Step<'_>, link: &ParentLink) -> Vec<PathBuf> {
        match step {
            Step::Given(file) => vec![file.to_path_buf()],
            Step::Recorded(FoundBy::RelativePath, path) if !unsafe_paths::is_absolute(path) => {
                self.relative(link, path)
            }
            Step::Recorded(_, path) => self.absolute(path),
            // Such a name is looked for by nobody; the file may be found by its identity.
            Step::Named(_, name) if unsafe_paths::in_relative(name).is_some() => Vec::new(),
            Step::Named(folder, name) => names::matches(self, folder, &[(*name).to_owned()]),
            Step::Search(folder) => self.files_of(folder),
        }
    }

    /// Where a path from the child's folder leads: from where it really lies, and from the name that it was
    /// opened by.
    fn relative(&self, link: &ParentLink, path: &str) -> Vec<PathBuf> {
        if let Some(rooted) = names::rooted(path) {
            return vec![rooted];
        }
        let folder_of = |file: &PathBuf| file.parent().map(Path::to_path_buf).unwrap_or_default();
        let mut folders: Vec<PathBuf> =
            [&link.child_path, &link.child_via].into_iter().flatten().map(folder_of).collect();
        folders.dedup();
        folders.iter().flat_map(|folder| names::from_folder(self, folder, path)).collect()
    }

    /// Where an absolute path of a Windows machine leads: through the mappings, or as it is.
    fn absolute(&self, path: &str) -> Vec<PathBuf> {
        if let Some((folder, names)) = self.mapped(path) {
            return names::matches(self, folder, &names);
        }
        if cfg!(windows) {
            return vec![PathBuf::from(path)];
        }
        names::rooted(path).into_iter().collect()
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        if self.is_out_of_bounds(path) {
            return Err(unsafe_paths::out_of_bounds());
        }
        let Some(confines) = &self.confines else {
            let id = self.regular(path)?;
            return opened(self.host.open(path, access)?, id);
        };
        let real = self.host.canonical(path)?;
        let mut roots = confines.iter().filter_map(|folder| self.host.canonical(folder).ok());
        let root =
            roots.find(|root| real.starts_with(root)).ok_or_else(unsafe_paths::out_of_bounds)?;
        let id = self.regular(&real)?;
        // Whatever is put in the place of one of its names by now, nothing outside the folder is opened.
        let below = real.strip_prefix(&root).map_err(|_| unsafe_paths::out_of_bounds())?;
        opened(self.host.open_beneath(&root, below, access)?, id)
    }

    /// The identity of a regular file; others are not opened.
    fn regular(&self, path: &Path) -> io::Result<Option<FileId>> {
        match self.host.stat(path)? {
            Stat { kind: FileKind::File, id, .. } => Ok(id),
            Stat { kind: FileKind::Folder, .. } => Err(io::ErrorKind::IsADirectory.into()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        }
    }

    /// Whether a path leads out of the allowed folders by its names alone, so that not even its
    /// existence is to be looked at.
    fn is_out_of_bounds(&self, path: &Path) -> bool {
        let Some(confines) = &self.confines else { return false };
        let plain = |path: &Path| match self.host.canonical(Path::new(".")) {
            Ok(here) if path.is_relative() => without_dots(&here.join(path)),
            _ => without_dots(path),
        };
        let path = plain(path);
        let lies_in = |folder: &PathBuf| {
            // The child may have been named by way of a link to an allowed folder, or by its own name.
            path.starts_with(plain(folder))
                || self.host.canonical(folder).is_ok_and(|folder| path.starts_with(folder))
        };
        !confines.iter().any(lies_in)
    }
}

impl NameLookup for PathSource {
    fn is_settled(&self, path: &Path) -> bool {
        self.is_out_of_bounds(path) || self.host.stat(path).is_ok()
    }

    fn listing(&self, folder: &Path) -> Arc<Listing> {
        let Some(listings) = &self.listings else {
            return Arc::new(names::list(self.host.as_ref(), folder));
        };
        let mut listings = listings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = listings.get(folder) {
            return Arc::clone(known);
        }
        let listing = Arc::new(names::list(self.host.as_ref(), folder));
        listings.insert(folder.to_path_buf(), Arc::clone(&listing));
        listing
    }
}

impl Default for PathSource {
    fn default() -> Self {
        Self::new()
    }
}

impl ParentSource for PathSource {
    fn candidates<'a>(
        &'a self,
        link: &'a ParentLink,
        access: Access,
    ) -> Box<dyn Iterator<Item = Candidate> + 'a> {
        let steps = self.steps(link).into_iter();
        Box::new(steps.flat_map(move |step| self.along(step, link, access)))
    }
}

impl FoundBy {
    /// The locator's key for a path that was recorded.
    pub(crate) fn key(self) -> Option<&'static str> {
        match self {
            Self::RelativePath => Some("relative_path"),
            Self::VolumePath => Some("volume_path"),
            Self::AbsoluteWin32Path => Some("absolute_win32_path"),
            _ => None,
        }
    }
}

/// The recorded paths, in the order in which they are tried.
pub(crate) fn recorded(link: &ParentLink) -> impl Iterator<Item = (FoundBy, &str)> {
    let recorded = [
        (FoundBy::RelativePath, &link.relative_path),
        (FoundBy::VolumePath, &link.volume_path),
        (FoundBy::AbsoluteWin32Path, &link.absolute_win32_path),
    ];
    recorded.into_iter().filter_map(|(by, path)| Some((by, path.as_deref()?)))
}

/// The file names at the ends of the recorded paths.
pub(crate) fn file_names(link: &ParentLink) -> Vec<&str> {
    let mut names: Vec<&str> =
        recorded(link).filter_map(|(_, path)| names::file_name(path)).collect();
    names.dedup();
    names
}

/// One way to look for a parent.
enum Step<'a> {
    Given(&'a Path),
    Recorded(FoundBy, &'a str),
    Named(&'a Path, &'a str),
    Search(&'a Path),
}

impl Step<'_> {
    fn found_by(&self) -> FoundBy {
        match self {
            Self::Given(_) => FoundBy::Given,
            Self::Recorded(by, _) => *by,
            Self::Named(..) => FoundBy::FolderName,
            Self::Search(_) => FoundBy::FolderSearch,
        }
    }
}

fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    plain
}

/// A file that was looked at under its name before. In between the name may have become another file's.
fn opened(storage: Arc<dyn Storage>, id: Option<FileId>) -> io::Result<Arc<dyn Storage>> {
    if storage.id()? != id {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the file was replaced"));
    }
    Ok(storage)
}
