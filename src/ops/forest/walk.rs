//! Finds images: walks folders, recognizes files by their signature, reads their facts and closes them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::finding::ForestFinding;
use super::node::{Image, Link, Node};
use crate::error::{Error, Result};
use crate::format::identifier::FileIdentifier;
use crate::image::{Core, ImagePolicy, Lock, probe_identity, why_no_image};
use crate::storage::{Access, FileId, FileKind, Host, Stat, Storage, is_temporary_name};

/// The result of a walk.
#[derive(Default)]
pub(super) struct Scanned {
    pub(super) nodes: Vec<Node>,
    /// The node of each file.
    pub(super) by_file: HashMap<FileKey, usize>,
    pub(super) findings: Vec<ForestFinding>,
}

/// Identifies a file independently of its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum FileKey {
    Id(FileId),
    /// The canonical path, if the host cannot identify files.
    Path(PathBuf),
}

/// Finds all images in `places`. Calls `each` before each file that is looked into.
///
/// # Errors
/// If one of the places cannot be looked up; those of `each`.
pub(super) fn walk<P: AsRef<Path>>(
    host: &dyn Host,
    places: impl IntoIterator<Item = P>,
    each: &mut dyn FnMut() -> Result<()>,
) -> Result<Scanned> {
    run(host, places, FileVisit::Examine(each)).map(|(found, _)| found)
}

/// Counts the files that [`walk`] looks into.
///
/// # Errors
/// If one of the places cannot be looked up.
pub(super) fn count<P: AsRef<Path>>(
    host: &dyn Host,
    places: impl IntoIterator<Item = P>,
) -> Result<u64> {
    run(host, places, FileVisit::Count).map(|(_, count)| count)
}

/// What is done with a file.
enum FileVisit<'a> {
    Count,
    Examine(&'a mut dyn FnMut() -> Result<()>),
}

/// Visits all files in `places`, and returns what was found and the number of visits.
fn run<P: AsRef<Path>>(
    host: &dyn Host,
    places: impl IntoIterator<Item = P>,
    visit: FileVisit<'_>,
) -> Result<(Scanned, u64)> {
    let mut walk = FolderWalk {
        host,
        visit,
        visits: 0,
        found: Scanned::default(),
        confines: Vec::new(),
        pending: Vec::new(),
        seen: HashSet::new(),
    };
    let mut files = Vec::new();
    for place in places {
        let place = place.as_ref();
        let unknown = |error| Error::io("forest.place", "cannot look there", error).in_path(place);
        let kind = host.stat(place).map_err(unknown)?.kind;
        walk.confines.push(host.canonical(place).map_err(unknown)?);
        match kind {
            FileKind::Folder => walk.pending.push(place.to_path_buf()),
            _ => files.push(place.to_path_buf()),
        }
    }
    walk.pending.reverse();
    for file in files {
        match host.stat(&file) {
            Ok(stat) if stat.kind == FileKind::File => walk.file(file, &stat, true)?,
            Ok(stat) => walk.unreadable(file, not_regular(stat.kind)),
            Err(error) => walk.unreadable(file, error),
        }
    }
    // A work list instead of recursion: the depth of folders is not bounded.
    while let Some(folder) = walk.pending.pop() {
        walk.folder(&folder)?;
    }
    Ok((walk.found, walk.visits))
}

/// Reads the facts of an image and closes it again.
pub(super) fn node(storage: Arc<dyn Storage>, path: PathBuf, stat: &Stat) -> Node {
    let data_write_guid = probe_identity(storage.as_ref()).ok();
    let policy = ImagePolicy { lock: Lock::Try, ..ImagePolicy::default() };
    let read = Core::open(storage, &policy).and_then(|image| {
        let recorded = image.parent_link()?;
        Ok((facts(&image), recorded))
    });
    let (image, recorded) = match read {
        Ok((facts, recorded)) => (Ok(facts), recorded),
        Err(error) => (Err(error), None),
    };
    let link =
        recorded.map(|recorded| Link { recorded, parent: None, found_by: None, leads: Vec::new() });
    Node {
        path,
        other_names: Vec::new(),
        is_outside: false,
        data_write_guid,
        file_len: stat.len,
        allocated: stat.allocated,
        modified: stat.modified,
        volume: stat.id.map(|id| id.volume()),
        image,
        link,
        children: Vec::new(),
        depth: 0,
    }
}

impl FileKey {
    pub(super) fn new(host: &dyn Host, id: Option<FileId>, path: &Path) -> Self {
        match id {
            Some(id) => Self::Id(id),
            None => Self::Path(host.canonical(path).unwrap_or_else(|_| path.to_path_buf())),
        }
    }
}

struct FolderWalk<'a, 'v> {
    host: &'a dyn Host,
    visit: FileVisit<'v>,
    visits: u64,
    found: Scanned,
    /// The canonical paths of the places.
    confines: Vec<PathBuf>,
    /// Folders still to visit, the next one last.
    pending: Vec<PathBuf>,
    /// Folders already visited; places may contain each other, and mounts may form loops.
    seen: HashSet<FileKey>,
}

impl FolderWalk<'_, '_> {
    fn folder(&mut self, folder: &Path) -> Result<()> {
        let id = match self.host.stat(folder) {
            Ok(stat) => stat.id,
            Err(error) => {
                self.unreadable(folder.to_path_buf(), error);
                return Ok(());
            }
        };
        if !self.seen.insert(FileKey::new(self.host, id, folder)) {
            return Ok(());
        }
        let mut names = match self.host.list(folder) {
            Ok(names) => names,
            Err(error) => {
                self.unreadable(folder.to_path_buf(), error);
                return Ok(());
            }
        };
        names.retain(|name| !is_temporary_name(name));
        names.sort();
        let mut folders = Vec::new();
        for path in names {
            match self.kind_of(&path) {
                Ok(Some(FolderEntry::Folder)) => folders.push(path),
                Ok(Some(FolderEntry::File(stat))) => self.file(path, &stat, false)?,
                Ok(None) => {}
                // Removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.unreadable(path, error),
            }
        }
        self.pending.extend(folders.into_iter().rev());
        Ok(())
    }

    /// Returns what a name in a folder stands for, if it is to be examined.
    fn kind_of(&mut self, path: &Path) -> io::Result<Option<FolderEntry>> {
        if self.host.is_link(path)? {
            self.link(path);
            return Ok(None);
        }
        let stat = self.host.stat(path)?;
        Ok(match stat.kind {
            FileKind::Folder => Some(FolderEntry::Folder),
            FileKind::File => Some(FolderEntry::File(stat)),
            FileKind::Fifo | FileKind::Socket | FileKind::Device | FileKind::Other => None,
        })
    }

    /// Reports a symbolic link that leads out of the places. Targets inside the places are found under their own
    /// names; targets outside may belong to somebody other than the link's creator, and are not shown.
    fn link(&mut self, path: &Path) {
        let (Ok(stat), Ok(real)) = (self.host.stat(path), self.host.canonical(path)) else {
            return;
        };
        let is_of_interest = match stat.kind {
            FileKind::Folder => true,
            FileKind::File => is_named_as_image(path) || is_named_as_image(&real),
            FileKind::Fifo | FileKind::Socket | FileKind::Device | FileKind::Other => false,
        };
        if is_of_interest && !self.confines.iter().any(|place| real.starts_with(place)) {
            self.found.findings.push(ForestFinding::LinkOutside { path: path.to_path_buf() });
        }
    }

    /// Visits a regular file; `is_given` if the caller named it.
    fn file(&mut self, path: PathBuf, stat: &Stat, is_given: bool) -> Result<()> {
        self.visits += 1;
        match &mut self.visit {
            FileVisit::Count => return Ok(()),
            FileVisit::Examine(each) => each()?,
        }
        self.examine(path, stat, is_given);
        Ok(())
    }

    fn examine(&mut self, path: PathBuf, stat: &Stat, is_given: bool) {
        let key = FileKey::new(self.host, stat.id, &path);
        if let Some(known) = self.found.by_file.get(&key) {
            let node = &mut self.found.nodes[*known];
            if node.path != path && !node.other_names.contains(&path) {
                node.other_names.push(path);
            }
            return;
        }
        let storage = match self.open(&path, stat) {
            Ok(storage) => storage,
            Err(error) => return self.unreadable(path, error),
        };
        // A file without the signature is not even locked.
        match has_signature(storage.as_ref()) {
            Ok(true) => {}
            Ok(false) => {
                if is_given || is_named_as_image(&path) {
                    let error = why_no_image(storage.as_ref()).in_path(&path);
                    self.found.findings.push(ForestFinding::NoSignature { path, error });
                }
                return;
            }
            Err(error) => return self.unreadable(path, error),
        }
        self.found.by_file.insert(key, self.found.nodes.len());
        self.found.nodes.push(node(storage, path, stat));
    }

    fn open(&self, path: &Path, stat: &Stat) -> io::Result<Arc<dyn Storage>> {
        let storage = self.host.open(path, Access::Read)?;
        // The name may have been given to another file since `stat`.
        if storage.id()? != stat.id {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "the file was replaced"));
        }
        Ok(storage)
    }

    fn unreadable(&mut self, path: PathBuf, error: io::Error) {
        let error = Error::io("forest.unreadable", "cannot be read", error).in_path(&path);
        let error = error.limits_named();
        self.found.findings.push(ForestFinding::Unreadable { path, error });
    }
}

/// An entry of a folder to examine.
enum FolderEntry {
    Folder,
    File(Stat),
}

fn facts(image: &Core) -> Image {
    Image {
        geometry: image.geometry(),
        block_size: image.block_size(),
        creator: image.info().creator,
        is_log_pending: image.has_replayed_log(),
        is_in_use: image.warnings().iter().any(|warning| warning.code == "lock.in-use"),
        checkpoint: image.checkpoint(),
        merge: image.merge_mark(),
        merge_request: image.merge_request(),
    }
}

fn has_signature(storage: &dyn Storage) -> io::Result<bool> {
    let mut start = [0; 8];
    match storage.read_exact_at(&mut start, 0) {
        Ok(()) => Ok(FileIdentifier::matches(&start)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_named_as_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| {
        ["vhdx", "avhdx"].iter().any(|known| extension.eq_ignore_ascii_case(known))
    })
}

fn not_regular(kind: FileKind) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("this is {kind}"))
}
