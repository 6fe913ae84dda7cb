//! Links children to their parents: by the paths that the child recorded if they are right, otherwise by
//! identity.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use uuid::Uuid;

use super::node::{Lead, LeadsTo, Node, NodeId};
use super::walk::{self, FileKey, Scanned};
use crate::chain::file_names;
use crate::chain::{Candidate, FoundBy, PathSource};
use crate::error::ErrorKind;
use crate::image::{ParentLink, identity_if_any, probe_identity};
use crate::names::same_name;
use crate::storage::{Access, Storage};

/// Finds every link's parent and leads, and adds the parents that lie outside the scanned places.
pub(super) fn link(found: Scanned, source: &PathSource) -> Scanned {
    let mut linker = Linker {
        source,
        found,
        guids: HashMap::new(),
        trails: HashMap::new(),
        folders: None,
        unresolved: Vec::new(),
    };
    for node in 0..linker.found.nodes.len() {
        linker.register(node);
    }
    let mut trails = Vec::new();
    // Parents found outside are appended and have parents of their own.
    while trails.len() < linker.found.nodes.len() {
        let trail = linker.resolve(trails.len());
        trails.push(trail);
    }
    for child in std::mem::take(&mut linker.unresolved) {
        if let Some(parent) = linker.by_identity(child) {
            linker.set(child, parent, None);
        }
    }
    for (child, trail) in trails.iter().enumerate() {
        let Some(link) = &linker.found.nodes[child].link else { continue };
        let leads = trail.iter().map(|tried| linker.lead(tried, &link.recorded)).collect();
        if let Some(link) = &mut linker.found.nodes[child].link {
            link.leads = leads;
        }
    }
    linker.found
}

struct Linker<'a> {
    source: &'a PathSource,
    found: Scanned,
    /// The nodes of each identity.
    guids: HashMap<Uuid, Vec<usize>>,
    /// Where recorded paths lead, cached for all children in a folder that recorded the same paths.
    trails: HashMap<TrailKey, Rc<[TriedPath]>>,
    /// The images in the folders that the caller named, once searched.
    folders: Option<HashMap<Uuid, Vec<FoundFile>>>,
    unresolved: Vec<usize>,
}

type TrailKey = (PathBuf, [Option<String>; 3]);

/// A path that was tried and what it leads to. The identity of a file outside stays inside this module.
struct TriedPath {
    found_by: FoundBy,
    path: PathBuf,
    there: io::Result<FoundFile>,
}

#[derive(Clone)]
struct FoundFile {
    key: FileKey,
    path: PathBuf,
    guid: Option<Uuid>,
}

/// The identity of a node; an error if the node could not be read, because it may have any.
fn known_guid(node: &Node) -> io::Result<Option<Uuid>> {
    match &node.image {
        Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::InUse) => {
            node.data_write_guid.map(Some).ok_or_else(|| error.same_again().into())
        }
        _ => Ok(node.data_write_guid),
    }
}

impl Linker<'_> {
    fn register(&mut self, node: usize) {
        if let Some(guid) = self.found.nodes[node].data_write_guid.filter(|guid| !guid.is_nil()) {
            self.guids.entry(guid).or_default().push(node);
        }
    }

    /// Links a node to its parent and returns where its paths lead.
    fn resolve(&mut self, child: usize) -> Rc<[TriedPath]> {
        let Some(link) = &self.found.nodes[child].link else { return Rc::default() };
        let recorded = link.recorded.clone();
        let trail = self.trail(&recorded);
        for tried in trail.iter() {
            let Ok(place) = &tried.there else { continue };
            if place.guid.is_some_and(|guid| recorded.accepts(guid))
                && let Some(parent) = self.admit(place, &recorded)
            {
                self.set(child, parent, Some(tried.found_by));
                return trail;
            }
        }
        if let Some(parent) = self.by_identity(child) {
            self.set(child, parent, None);
        } else if let Some((place, found_by)) = self.in_folders(&recorded)
            && let Some(parent) = self.admit(&place, &recorded)
        {
            self.set(child, parent, Some(found_by));
        } else {
            self.unresolved.push(child);
        }
        trail
    }

    /// Finds the node with a recorded identity, preferring the scanned places to outside, then the lowest
    /// path. Never the child itself: some writers give a child its parent's identity.
    fn by_identity(&self, child: usize) -> Option<usize> {
        let nodes = &self.found.nodes;
        let recorded = &nodes[child].link.as_ref()?.recorded;
        let identities = [Some(recorded.linkage), recorded.linkage2];
        let matches = identities.iter().flatten().filter_map(|guid| self.guids.get(guid)).flatten();
        let others = matches.copied().filter(|i| *i != child);
        others.min_by_key(|i| (nodes[*i].is_outside, &nodes[*i].path))
    }

    /// Returns the node of a file that proved to be a parent, adding one if it lies outside.
    fn admit(&mut self, place: &FoundFile, recorded: &ParentLink) -> Option<usize> {
        if let Some(known) = self.found.by_file.get(&place.key) {
            return Some(*known);
        }
        let host = self.source.its_host();
        let stat = host.stat(&place.path).ok()?;
        let storage = host.open(&place.path, Access::Read).ok()?;
        // The file opened now must be the one that was examined.
        if FileKey::new(host, storage.id().ok()?, &place.path) != place.key
            || !probe_identity(storage.as_ref()).is_ok_and(|guid| recorded.accepts(guid))
        {
            return None;
        }
        let new = self.found.nodes.len();
        let path = host.canonical(&place.path).unwrap_or_else(|_| place.path.clone());
        let mut node = walk::node(storage, path, &stat);
        node.is_outside = true;
        self.found.nodes.push(node);
        self.found.by_file.insert(place.key.clone(), new);
        self.register(new);
        Some(new)
    }

    fn set(&mut self, child: usize, parent: usize, found_by: Option<FoundBy>) {
        if let Some(link) = &mut self.found.nodes[child].link {
            link.parent = Some(NodeId(parent));
            link.found_by = found_by;
        }
    }

    fn trail(&mut self, link: &ParentLink) -> Rc<[TriedPath]> {
        let folder = link.child_path.as_deref().and_then(Path::parent);
        // A child reached through a symbolic link resolves relative paths in two folders.
        let key = folder.filter(|_| link.child_via.is_none()).map(|folder| {
            let paths = [&link.relative_path, &link.volume_path, &link.absolute_win32_path];
            (folder.to_path_buf(), paths.map(Clone::clone))
        });
        if let Some(known) = key.as_ref().and_then(|key| self.trails.get(key)) {
            return Rc::clone(known);
        }
        let mut tries: Vec<TriedPath> = Vec::new();
        for candidate in self.source.by_path(link) {
            let Candidate { name, found_by, opened } = candidate;
            let there = opened.and_then(|storage| self.place(&storage, &name));
            let path = match &there {
                Ok(place) => place.path.clone(),
                Err(_) => name.into(),
            };
            tries.push(TriedPath { found_by, path, there });
        }
        let trail: Rc<[TriedPath]> = tries.into();
        if let Some(key) = key {
            self.trails.insert(key, Rc::clone(&trail));
        }
        trail
    }

    fn place(&self, storage: &Arc<dyn Storage>, name: &str) -> io::Result<FoundFile> {
        let path = storage.path().map_or_else(|| name.into(), Path::to_path_buf);
        let key = FileKey::new(self.source.its_host(), storage.id()?, &path);
        let guid = match self.found.by_file.get(&key) {
            Some(known) => known_guid(&self.found.nodes[*known])?,
            None => identity_if_any(storage.as_ref())?,
        };
        Ok(FoundFile { key, path, guid })
    }

    /// Finds a file in the folders that the caller named, preferring the recorded file name.
    fn in_folders(&mut self, link: &ParentLink) -> Option<(FoundFile, FoundBy)> {
        if self.folders.is_none() {
            let mut seen = HashSet::new();
            let mut folders: HashMap<Uuid, Vec<FoundFile>> = HashMap::new();
            for Candidate { name, opened, .. } in self.source.in_folders() {
                if let Ok(place) = opened.and_then(|storage| self.place(&storage, &name))
                    && let Some(guid) = place.guid
                    && seen.insert(place.key.clone())
                {
                    folders.entry(guid).or_default().push(place);
                }
            }
            self.folders = Some(folders);
        }
        let folders = self.folders.as_ref()?;
        let accepted = |guid: &Uuid| link.accepts(*guid);
        let identities = [Some(link.linkage), link.linkage2].into_iter().flatten();
        let places = identities.filter(accepted).filter_map(|guid| folders.get(&guid)).flatten();
        let names = file_names(link);
        let is_named = |place: &&FoundFile| {
            let name = place.path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| names.iter().any(|recorded| same_name(recorded, name)))
        };
        match places.clone().find(is_named) {
            Some(place) => Some((place.clone(), FoundBy::FolderName)),
            None => places.clone().next().map(|place| (place.clone(), FoundBy::FolderSearch)),
        }
    }

    /// Returns what is revealed about a tried path.
    fn lead(&self, tried: &TriedPath, recorded: &ParentLink) -> Lead {
        let to = match &tried.there {
            Ok(place) => match self.found.by_file.get(&place.key) {
                Some(node) if place.guid.is_some_and(|guid| recorded.accepts(guid)) => {
                    LeadsTo::Parent(NodeId(*node))
                }
                Some(node) if !self.found.nodes[*node].is_outside => LeadsTo::Other(NodeId(*node)),
                _ => LeadsTo::Stranger,
            },
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => LeadsTo::Nothing,
                io::ErrorKind::PermissionDenied => LeadsTo::Denied,
                // Not a regular file.
                io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => LeadsTo::Stranger,
                _ => LeadsTo::Failed,
            },
        };
        Lead { found_by: tried.found_by, path: tried.path.clone(), to }
    }
}
