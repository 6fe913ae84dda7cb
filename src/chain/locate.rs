//! Finds and opens candidates for the parents of images.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::image::{ParentLink, not_regular};
use crate::names::unsafe_paths;
use crate::names::{self, Listing, NameLookup};
use crate::storage::{Access, FileId, FileKind, Host, LocalHost, Stat, Storage};

/// Opens candidates for the parent of an image.
///
/// The source only opens files. The chain checks the identity of each candidate before it exposes any of its data,
/// and uses the first that has the recorded identity.
///
/// ```no_run
/// use std::iter;
/// use std::sync::Arc;
///
/// use avhdx::storage::{Access, Storage};
/// use avhdx::{Candidate, DiffChain, FoundBy, OpenOptions, ParentLink, ParentSource};
///
/// /// One file that is open already, for whoever asks.
/// #[derive(Debug)]
/// struct Known(Arc<dyn Storage>);
///
/// impl ParentSource for Known {
///     fn candidates<'a>(
///         &'a self,
///         _: &'a ParentLink,
///         _: Access,
///     ) -> Box<dyn Iterator<Item = Candidate> + 'a> {
///         let opened = Ok(self.0.clone());
///         Box::new(iter::once(Candidate::new(self.0.name(), FoundBy::Other, opened)))
///     }
/// }
///
/// fn over(base: Arc<dyn Storage>) -> avhdx::Result<DiffChain> {
///     OpenOptions::new().parents(Known(base)).open("web_77F0.avhdx")
/// }
/// ```
pub trait ParentSource: Debug + Send + Sync {
    /// Candidates in order of preference. The chain requests them one by one, up to the first match.
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
    /// The name of the file in errors.
    pub name: String,
    /// How the file was found.
    pub found_by: FoundBy,
    /// The file, or the reason why it cannot be opened: [`io::ErrorKind::PermissionDenied`] if policy or the host
    /// forbids it, [`io::ErrorKind::NotFound`] if it does not exist, [`io::ErrorKind::IsADirectory`] for a folder,
    /// and [`io::ErrorKind::InvalidInput`] for anything else that cannot be an image.
    pub opened: io::Result<Arc<dyn Storage>>,
}

impl Candidate {
    /// A candidate, opened or not.
    pub fn new(
        name: impl Into<String>,
        found_by: FoundBy,
        opened: io::Result<Arc<dyn Storage>>,
    ) -> Self {
        Self { name: name.into(), found_by, opened }
    }
}

/// How a parent was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum FoundBy {
    /// As a file named by the caller.
    Given,
    /// By the recorded path from the child's folder.
    RelativePath,
    /// By the recorded path on a volume.
    VolumePath,
    /// By the recorded absolute path on a Windows machine.
    AbsoluteWin32Path,
    /// By the recorded file name, in a folder named by the caller.
    FolderName,
    /// By its identity, in a folder named by the caller.
    FolderSearch,
    /// By a custom source.
    Other,
}

/// Finds parents by the paths recorded in their children.
///
/// Files named by the caller come first. Next come, in the order of \[MS-VHDX\] 2.6.2.6.3, the `relative_path`, the
/// `volume_path` and the `absolute_win32_path`, the last two through path mappings if another machine wrote them.
/// Last come the folders named by the caller; in each, the recorded file name is tried before every other file. Both
/// `\` and `/` separate names. If a name does not exist exactly, names that differ only in case are tried.
///
/// Only regular files are opened.
///
/// ```no_run
/// use avhdx::{OpenOptions, PathSource};
///
/// // Files from `D:\vm` lie in /mnt/vm now, or else somewhere in /backup. No link leads out of the two.
/// let parents = PathSource::new()
///     .map(r"D:\vm", "/mnt/vm")
///     .folder("/backup")
///     .confined_to("/mnt/vm")
///     .confined_to("/backup");
/// let chain = OpenOptions::new().parents(parents).open("/mnt/vm/web_77F0.avhdx")?;
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PathSource {
    host: Arc<dyn Host>,
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    mappings: Vec<(Vec<String>, PathBuf)>,
    confines: Option<Vec<PathBuf>>,
    listings: Option<Arc<Mutex<Listings>>>,
}

/// The folders listed so far.
type Listings = HashMap<PathBuf, Arc<Listing>>;

impl PathSource {
    /// Creates a source that uses only the recorded paths.
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

    /// Sets the host of the paths. The default is this machine.
    pub fn host(mut self, host: Arc<dyn Host>) -> Self {
        self.host = host;
        self
    }

    /// Adds a file to try first, for every layer.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(path.into());
        self
    }

    /// Adds a folder to search if no recorded path leads to the parent.
    pub fn folder(mut self, path: impl Into<PathBuf>) -> Self {
        self.folders.push(path.into());
        self
    }

    /// Maps a Windows folder, such as `D:\vm` or `\\?\Volume{…}`, to a folder on this machine.
    pub fn map(mut self, from: impl AsRef<str>, to: impl Into<PathBuf>) -> Self {
        let from = names::parts(from.as_ref());
        self.mappings.push((from, to.into()));
        // The longest match comes first.
        self.mappings.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        self
    }

    /// Restricts parents to files in these folders or below, after following links: for services that accept images
    /// from strangers. Each call adds a folder.
    pub fn confined_to(mut self, folder: impl Into<PathBuf>) -> Self {
        self.confines.get_or_insert_default().push(folder.into());
        self
    }

    /// The same source, but listing each folder only once, for finding many parents in a row.
    pub(crate) fn remembering(&self) -> Self {
        Self { listings: Some(Arc::default()), ..self.clone() }
    }

    /// Whether parents may come from the location of this file, after following links.
    pub(crate) fn serves(&self, path: &Path) -> bool {
        let Some(confines) = &self.confines else { return true };
        let real = |path: &Path| self.host.canonical(path).ok();
        real(path).is_some_and(|path| {
            confines.iter().filter_map(|folder| real(folder)).any(|folder| path.starts_with(folder))
        })
    }

    /// The host of the paths.
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

    /// Every file of the folders to search, independently of any child.
    pub(crate) fn in_folders(&self) -> impl Iterator<Item = Candidate> + '_ {
        self.folders.iter().flat_map(|folder| {
            let places = self.files_of(folder).into_iter();
            places.map(|place| self.candidate(&place, FoundBy::FolderSearch, Access::Read))
        })
    }

    /// The files named by the caller, and those of the folders to search.
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

    /// The refusal of a recorded path that leads out of bounds.
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

    /// The target folder of the mapping that applies, and the remaining names.
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
            // Unsafe names are not looked up; the search by identity may still find the file.
            Step::Named(_, name) if unsafe_paths::in_relative(name).is_some() => Vec::new(),
            Step::Named(folder, name) => names::matches(self, folder, &[(*name).to_owned()]),
            Step::Search(folder) => self.files_of(folder),
        }
    }

    /// Resolves a path from the child's folder: the folder of its real path, and that of the path it was opened by.
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

    /// Resolves an absolute path of a Windows machine: through the mappings, or unchanged.
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
        let real = match self.host.canonical(path) {
            Err(_) if self.leads_out(path) => return Err(unsafe_paths::out_of_bounds()),
            real => real?,
        };
        let mut roots = confines.iter().filter_map(|folder| self.host.canonical(folder).ok());
        let root =
            roots.find(|root| real.starts_with(root)).ok_or_else(unsafe_paths::out_of_bounds)?;
        let id = self.regular(&real)?;
        // Even if names are replaced meanwhile, nothing outside the folder is opened.
        let below = real.strip_prefix(&root).map_err(|_| unsafe_paths::out_of_bounds())?;
        opened(self.host.open_beneath(&root, below, access)?, id)
    }

    /// The identity of a regular file. Fails for other kinds.
    fn regular(&self, path: &Path) -> io::Result<Option<FileId>> {
        match self.host.stat(path)? {
            Stat { kind: FileKind::File, id, .. } => Ok(id),
            Stat { kind: FileKind::Folder, .. } => Err(io::ErrorKind::IsADirectory.into()),
            Stat { kind, .. } => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, not_regular(kind)))
            }
        }
    }

    /// Whether a link on the way leads out of the allowed folders, or nowhere: then nothing is looked for behind it.
    fn leads_out(&self, path: &Path) -> bool {
        let Some(confines) = &self.confines else { return false };
        for path in path.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            if let Ok(real) = self.host.canonical(path) {
                let real_confines =
                    confines.iter().filter_map(|folder| self.host.canonical(folder).ok());
                // An ancestor of an allowed folder is on the way there.
                return !real_confines
                    .into_iter()
                    .any(|folder| real.starts_with(&folder) || folder.starts_with(&real));
            }
            if self.host.is_link(path).unwrap_or(false) {
                return true;
            }
        }
        false
    }

    /// Whether the names of a path alone lead out of the allowed folders. Not even the existence of such a path may
    /// be checked.
    fn is_out_of_bounds(&self, path: &Path) -> bool {
        let Some(confines) = &self.confines else { return false };
        let plain = |path: &Path| match self.host.canonical(Path::new(".")) {
            Ok(here) if path.is_relative() => without_dots(&here.join(path)),
            _ => without_dots(path),
        };
        let path = plain(path);
        let lies_in = |folder: &PathBuf| {
            // The child may have been named through a link to an allowed folder, or by its real path.
            path.starts_with(plain(folder))
                || self.host.canonical(folder).is_ok_and(|folder| path.starts_with(folder))
        };
        !confines.iter().any(lies_in)
    }
}

impl NameLookup for PathSource {
    fn is_settled(&self, path: &Path) -> bool {
        self.is_out_of_bounds(path) || self.leads_out(path) || self.host.stat(path).is_ok()
    }

    fn listing(&self, folder: &Path) -> Arc<Listing> {
        if self.leads_out(folder) {
            return Arc::default();
        }
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
    /// The locator's key for a recorded path.
    pub(crate) fn key(self) -> Option<&'static str> {
        match self {
            Self::RelativePath => Some("relative_path"),
            Self::VolumePath => Some("volume_path"),
            Self::AbsoluteWin32Path => Some("absolute_win32_path"),
            _ => None,
        }
    }
}

/// The recorded paths, in the order of trial.
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

/// One way to find a parent.
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

/// Checks that the opened file is the one whose kind was checked: the name may refer to another file by now.
fn opened(storage: Arc<dyn Storage>, id: Option<FileId>) -> io::Result<Arc<dyn Storage>> {
    if storage.id()? != id {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the file was replaced"));
    }
    Ok(storage)
}
