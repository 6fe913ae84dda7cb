//! Follows a chain from its tip to its base: finds each parent, verifies its identity and opens it.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use uuid::Uuid;

use super::locate::{Candidate, FoundBy, ParentSource, recorded};
use super::parents;
use super::stack::Link;
use crate::disk::LayerId;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{
    Core, ImagePolicy, ParentLink, folder, not_regular, probe_identity, probe_in_silence,
};
use crate::names::unsafe_paths;
use crate::storage::{Access, FileId, FileKind, Storage};
use crate::warning::Warning;
use crate::write::OpenImage;

/// The rules for assembling a chain.
#[derive(Clone, Debug)]
pub(crate) struct ChainPolicy {
    pub(crate) linkage: Linkage,
    pub(crate) max_depth: usize,
    /// Whether an unfinished merge may have left the top layer without a point in time of its own.
    pub(crate) unfinished: bool,
}

impl Default for ChainPolicy {
    fn default() -> Self {
        Self { linkage: Linkage::default(), max_depth: 256, unfinished: false }
    }
}

/// Whether a parent must have the identity that its child recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Linkage {
    /// The parent must have the recorded identity.
    #[default]
    Verify,
    /// If no candidate has the identity, uses the first VHDX file found in a place of the parent, with a warning: the
    /// bytes may be a mixture that the disk never held. An invalid parent locator is used as far as possible, also
    /// with a warning. For reading only.
    Ignore,
}

/// A chain as far as it could be followed.
pub(super) struct Walked {
    /// From the tip down, never empty.
    pub(super) layers: Vec<Link>,
    pub(super) warnings: Vec<Warning>,
    /// The reason why the last layer's parent is missing, if it should have one.
    pub(super) broken: Option<Error>,
}

pub(super) fn walk(
    tip: OpenImage,
    policy: &ChainPolicy,
    images: &ImagePolicy,
    source: &dyn ParentSource,
) -> Walked {
    let any_locator = policy.linkage == Linkage::Ignore;
    let images = &ImagePolicy { any_locator, ..images.clone() };
    let mut walk = Walk { policy, images, source, seen: HashSet::new(), warnings: Vec::new() };
    let mut layers = vec![Link::new(&tip, None)];
    let broken = loop {
        match walk.below(&layers) {
            Ok(Some(parent)) => layers.push(parent),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    Walked { layers, warnings: walk.warnings, broken }
}

/// The settings of a walk, and its results so far.
struct Walk<'a> {
    policy: &'a ChainPolicy,
    images: &'a ImagePolicy,
    source: &'a dyn ParentSource,
    seen: HashSet<Identity>,
    warnings: Vec<Warning>,
}

/// Distinguishes a layer from others of its chain.
#[derive(PartialEq, Eq, Hash)]
pub(crate) enum Identity {
    File(FileId),
    /// Used if the storage has no identity of its own.
    Guid(Uuid),
}

impl Identity {
    pub(crate) fn of(storage: &dyn Storage, guid: Uuid) -> Result<Self> {
        Ok(file_id(storage)?.map_or(Self::Guid(guid), Self::File))
    }
}

/// Identifies a file on its host, if the host can.
pub(crate) fn file_id(storage: &dyn Storage) -> Result<Option<FileId>> {
    storage.id().map_err(|error| {
        Error::io("file.identity", "cannot identify the file", error).in_file(storage.name())
    })
}

impl Walk<'_> {
    /// The parent of the last layer, `None` if that is a base.
    fn below(&mut self, layers: &[Link]) -> Result<Option<Link>> {
        let child = &layers[layers.len() - 1].image;
        let at = child.locator_at().unwrap_or_default();
        let in_child = |error: Error| error.at(at).in_file(child.name());
        self.seen.insert(Identity::of(child.storage(), child.data_write_guid())?);
        let Some(link) = child.parent_link()? else { return Ok(None) };
        if layers.len() >= self.policy.max_depth {
            return Err(in_child(too_deep(self.policy.max_depth)));
        }
        let parent =
            self.parent(&link, child.id(), at).map_err(|error| after_merge(error, child))?;
        check_fit(child, &parent.image)?;
        Ok(Some(parent))
    }

    fn parent(&mut self, link: &ParentLink, child: LayerId, locator_at: u64) -> Result<Link> {
        let found = find_parent(link, locator_at, self.policy.linkage, self.source)?;
        // Checked before locking: if a layer above is open for writing, it holds the lock.
        let identity = Identity::of(found.storage.as_ref(), found.guid)?;
        if self.seen.contains(&identity) {
            return Err(loop_error(&link.child).at(locator_at).in_file(&link.child));
        }
        let is_verified = found.warning.is_none();
        self.warnings.extend(found.warning.map(|warning| warning.of_layer(child)));
        let image = parents::open(found.storage, self.images).map_err(|error| {
            let message = format!("the parent of {}: {}", link.child, error.message());
            error.with_message(message).of_parent_of(&link.child)
        })?;
        // The file may have been written to before it was locked.
        if is_verified && !link.accepts(image.data_write_guid()) {
            return Err(changed_meanwhile(link, image.name(), image.data_write_guid()));
        }
        Ok(Link::new(&OpenImage { core: image, writer: None }, Some(found.found_by)))
    }
}

/// The file of a parent.
pub(crate) struct FoundParent {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) found_by: FoundBy,
    /// Its current identity.
    pub(crate) guid: Uuid,
    /// The warning if its identity differs from the recorded one.
    pub(crate) warning: Option<Warning>,
}

/// The first candidate that has the recorded identity. The image itself is not opened yet.
pub(crate) fn find_parent(
    link: &ParentLink,
    locator_at: u64,
    linkage: Linkage,
    source: &dyn ParentSource,
) -> Result<FoundParent> {
    let mut tried = Tried::default();
    for candidate in source.candidates(link, Access::Read) {
        let Candidate { name, found_by, opened } = candidate;
        let storage = match opened {
            Ok(storage) => storage,
            Err(error) => {
                let error = not_opened(error).in_file(&name).limits_named();
                if error.kind() == ErrorKind::Limit {
                    return Err(error);
                }
                tried.failed(name, found_by, error);
                continue;
            }
        };
        // The file may belong to anyone, so none of its data is revealed before it matches.
        // By a recorded path, its author could find out what lies on the host.
        let identity = match found_by.key() {
            Some(_) => probe_in_silence(storage.as_ref()),
            None => probe_identity(storage.as_ref()),
        };
        match identity {
            Ok(guid) if link.accepts(guid) => {
                return Ok(FoundParent { storage, found_by, guid, warning: None });
            }
            Ok(guid) => tried.mismatched(name, found_by, guid, storage),
            Err(error) => tried.failed(name, found_by, error),
        }
    }
    if linkage == Linkage::Ignore
        && let Some((storage, found_by, guid)) = tried.fallback
    {
        let why = match link.linkage.is_nil() {
            true => "no identity is recorded",
            false => "its identity is another",
        };
        let message = format!(
            "THE LINKAGE IS IGNORED: {} is taken for its parent, though {why}",
            storage.name(),
        );
        let warning = Some(Warning::new("parent.linkage-ignored", &link.child, message));
        return Ok(FoundParent { storage, found_by, guid, warning });
    }
    Err(tried.into_error(link, locator_at))
}

/// Refuses a parent that changed before it was locked.
pub(crate) fn changed_meanwhile(link: &ParentLink, parent: &str, found: Uuid) -> Error {
    let message = format!("the parent of {} was written to while it was opened", link.child);
    Error::new(ErrorKind::ParentMismatch, "parent.mismatch", message)
        .in_file(parent)
        .with_section("2.6.2.6.3")
        .with_found(found)
        .with_expected(link.linkage)
}

/// Whether the host denies the file, rather than the rules on where parents may be.
fn is_kept_by_host(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    source.is_some_and(|source: &io::Error| source.raw_os_error().is_some())
}

/// The reason why a candidate was not opened, or the kind of object found instead of a file.
fn not_opened(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::IsADirectory => folder(),
        // The library's own sources say what it is.
        io::ErrorKind::InvalidInput => {
            error.downcast().unwrap_or_else(|_| not_regular(FileKind::Other))
        }
        _ => Error::io("parent.open", "cannot open the parent", error),
    }
}

/// The results of the candidates so far.
#[derive(Default)]
struct Tried {
    missing: Vec<(FoundBy, String)>,
    mismatched: Option<String>,
    /// The first candidate that is not an image, or too damaged to identify: it may be the parent.
    unusable: Option<Error>,
    /// The first candidate that policy or the host forbids, or that failed in another way.
    denied: Option<Error>,
    failed: Option<Error>,
    /// Number of files in searched folders.
    searched: usize,
    /// The first VHDX file with another identity.
    fallback: Option<(Arc<dyn Storage>, FoundBy, Uuid)>,
}

impl Tried {
    fn failed(&mut self, name: String, found_by: FoundBy, error: Error) {
        // Other files are expected in a searched folder.
        if found_by == FoundBy::FolderSearch {
            self.searched += 1;
            return;
        }
        let kind = std::error::Error::source(&error)
            .and_then(|source| source.downcast_ref::<io::Error>())
            .map(io::Error::kind);
        match kind {
            Some(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                self.missing.push((found_by, name));
            }
            Some(io::ErrorKind::PermissionDenied) => {
                self.denied.get_or_insert(error);
            }
            _ if error.kind() != ErrorKind::Io => {
                self.unusable.get_or_insert(error);
            }
            _ => {
                self.failed.get_or_insert(error);
            }
        }
    }

    fn mismatched(&mut self, name: String, found_by: FoundBy, guid: Uuid, image: Arc<dyn Storage>) {
        if found_by == FoundBy::FolderSearch {
            self.searched += 1;
            return;
        }
        self.mismatched.get_or_insert(name);
        self.fallback.get_or_insert((image, found_by, guid));
    }

    /// The most informative of the failures.
    fn into_error(self, link: &ParentLink, locator_at: u64) -> Error {
        let identity = match link.linkage2 {
            None => link.linkage.to_string(),
            Some(second) => format!("{} or {second}", link.linkage),
        };
        let expected = format!("a VHDX file with the identity {identity}");
        if let Some(error) = self.unusable {
            let message = format!(
                "cannot be the parent of {}, which expects the identity {identity}: {}",
                link.child,
                error.message()
            );
            return error.with_message(message).of_parent_of(&link.child);
        }
        if let Some(first) = self.mismatched {
            let message = format!("not the parent that {} was linked to", link.child);
            return Error::new(ErrorKind::ParentMismatch, "parent.mismatch", message)
                .in_file(first)
                .of_parent_of(&link.child)
                .with_section("2.6.2.6.3")
                .with_found("a file without that identity")
                .with_expected(expected);
        }
        if let Some(error) = self.denied {
            let (code, found) = match unsafe_paths::why_refused(&error) {
                Some(why) => ("parent.leads-away", format!("a path that {why}")),
                None if is_kept_by_host(&error) => {
                    ("parent.no-access", "a file that the host does not let this user read".into())
                }
                None => ("parent.denied", "a place that may not be opened".to_owned()),
            };
            return error
                .with_kind(ErrorKind::ParentDenied, code)
                .of_parent_of(&link.child)
                .with_section("2.6.2.6.3")
                .with_found(found)
                .with_expected(expected);
        }
        if let Some(error) = self.failed {
            return error
                .of_parent_of(&link.child)
                .with_section("2.6.2.6.3")
                .with_expected(expected);
        }
        Error::new(ErrorKind::ParentMissing, "parent.missing", "the parent is missing")
            .in_file(&link.child)
            .with_section("2.6.2.6.3")
            .at(locator_at)
            .with_found(self.where_it_is_not(link))
            .with_expected(expected)
    }

    /// Lists every recorded path with its result, and the other places searched.
    fn where_it_is_not(&self, link: &ParentLink) -> String {
        let places = |found_by: FoundBy| {
            let places = self.missing.iter().filter(move |(by, _)| *by == found_by);
            places.map(|(_, place)| place.as_str()).collect::<Vec<_>>().join(", nor at ")
        };
        let mut said: Vec<String> = recorded(link)
            .map(|(by, path)| {
                let key = by.key().unwrap_or_default();
                match places(by).as_str() {
                    "" => format!("{key} {path:?} (no path of this machine)"),
                    places => format!("{key} {path:?} (nothing at {places})"),
                }
            })
            .collect();
        if said.is_empty() {
            said.push("no recorded path".into());
        }
        for by in [FoundBy::Given, FoundBy::FolderName, FoundBy::Other] {
            let places = places(by);
            if !places.is_empty() {
                said.push(format!("nothing at {places}"));
            }
        }
        if self.searched > 0 {
            said.push(match self.searched {
                1 => "one file of folders searched, another one".into(),
                more => format!("{more} files of folders searched, all others"),
            });
        }
        said.join("; ")
    }
}

/// Refuses a parent whose disk does not fit the child's.
fn check_fit(child: &Core, parent: &Core) -> Result<()> {
    let (above, below) = (child.geometry().logical_sector, parent.geometry().logical_sector);
    check_sectors(above, below, child.name())
        .map_err(|error| error.in_file(parent.name()).at(parent.metadata_at()))
}

/// Refuses a parent whose sector size differs from that of its child.
pub(crate) fn check_sectors(above: u32, below: u32, child: &str) -> Result<()> {
    if above == below {
        return Ok(());
    }
    let message = format!("another logical sector size than that of its child {child}");
    Err(Error::new(ErrorKind::Damaged, "chain.sector-size", message)
        .with_section("2.6.2.4")
        .with_found(below)
        .with_expected(above))
}

/// Explains how an unfinished merge may have changed the parent.
fn after_merge(error: Error, child: &Core) -> Error {
    let Some(mark) = child.merge_mark() else { return error };
    if error.kind() != ErrorKind::ParentMismatch {
        return error;
    }
    let (name, parent) = (child.name(), mark.name);
    error.with_message(format!(
        "not the parent that {name} was linked to: {name} was being merged into {parent}, which was written to since; \
         if {parent} opens by itself it holds all of {name}"
    ))
}

pub(crate) fn loop_error(child: &str) -> Error {
    Error::new(ErrorKind::Damaged, "chain.loop", "the chain of parents leads back to this file")
        .with_section("2.6.2.6")
        .with_found(format_args!("{child} as an ancestor of its own"))
        .with_expected("a base without a parent at the end of the chain")
}

pub(crate) fn too_deep(most: usize) -> Error {
    Error::new(ErrorKind::Limit, "limit.depth", "the chain is deeper than allowed")
        .with_section("2.6.2.6")
        .with_found(format_args!("a parent below {most} layers"))
        .with_expected(format_args!("at most {most} layers; the limit is an option"))
}
