//! Updates recorded parent paths after files were moved or renamed.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::forest::{Forest, ForestFinding, Lead, LeadsTo, Link, Node, NodeId};
use super::{Listener, Progress};
use crate::chain::recorded;
use crate::chain::{FoundBy, PathSource, file_id};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{
    ImagePolicy, Lock, ParentLink, folder, identity_if_any, lock, not_regular, probe_identity,
    why_no_image,
};
use crate::names::recordable_path;
use crate::storage::LockMode;
use crate::storage::{Access, FileKind, Host, folder_of, is_temporary_name};
use crate::trace::operation;
use crate::write::Pending;
use crate::write::WritePolicy;
use crate::write::locator_edit;
use crate::write::{LinkPaths, check_named};

/// Updates recorded parent paths that no longer lead to the parent.
///
/// An image is relinked if none of its recorded paths leads to its parent and exactly one file has the recorded
/// identity: among the images of the folder, or in the folders that [`parents`](Self::parents) names.
/// Only the paths change, and each image changes in one step; identities stay the same, so that
/// children are unaffected. If two files have the identity, the image is refused and both are named.
///
/// ```no_run
/// use avhdx::ops::Relink;
///
/// let relink = Relink::folder("/mnt/vm");
/// for image in relink.plan()?.images {
///     println!("{} -> {}", image.path.display(), image.parent.display());
/// }
/// let done = relink.run()?;
/// for why in done.refused {
///     println!("{why}");
/// }
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Relink<'a> {
    folder: PathBuf,
    recursive: bool,
    parents: PathSource,
    progress: Listener<'a>,
}

/// What a relink will do in a folder, or has done.
#[derive(Debug)]
#[non_exhaustive]
pub struct Relinked {
    /// The images with new paths, parents before their children.
    pub images: Vec<RelinkedImage>,
    /// Why other images that need new paths do not get them. Each error names the image:
    /// [`ErrorKind::ParentMissing`] if no file has the recorded identity; [`ErrorKind::Unproven`] if
    /// several files have it, or the file that has it cannot be the parent; [`ErrorKind::ParentDenied`] if it lies
    /// outside the folders that parents may come from; [`ErrorKind::Unsupported`] if no path that can be recorded leads
    /// to it; the parent's own error if the file in the parent's place cannot be read; or the error that kept the image
    /// from being changed.
    pub refused: Vec<Error>,
    /// How many images of the folder were read.
    pub looked_at: usize,
    /// What could not be read in the folder. Images may be missing from the result because of it.
    pub unread: Vec<Error>,
}

/// An image and its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelinkedImage {
    /// The image.
    pub path: PathBuf,
    /// The path of its parent.
    pub parent: PathBuf,
    /// The recorded paths that no longer led to the parent, as they were written.
    pub was: Vec<String>,
    /// The recorded link, to notice changes between plan and run.
    link: ParentLink,
}

impl<'a> Relink<'a> {
    /// Relinks the images in a folder and its subfolders.
    pub fn folder(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            recursive: true,
            parents: PathSource::new(),
            progress: Listener::default(),
        }
    }

    /// Whether to relink images in subfolders too. The default is yes.
    pub fn recursive(mut self, yes: bool) -> Self {
        self.recursive = yes;
        self
    }

    /// The host to work on, how to translate recorded Windows paths, and the files and folders to search for parents
    /// besides the folder itself.
    pub fn parents(mut self, source: PathSource) -> Self {
        self.parents = source;
        self
    }

    /// Calls `on` while the operation runs, with numbers of files: [`plan`](Self::plan) reads each file of the folder;
    /// [`run`](Self::run) counts each twice, once it is read and once it needs no new paths or has them. A break stops
    /// it with [`ErrorKind::Cancelled`], between two images; those that are done keep their new paths.
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
        self
    }

    /// Finds the images to relink, without changing anything.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the folder cannot be listed; [`ErrorKind::Cancelled`].
    pub fn plan(&self) -> Result<Relinked> {
        self.plan_counted(&mut |done, total| self.progress.report(done, total))
    }

    fn plan_counted(&self, on: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<Relinked> {
        let host = self.parents.its_host();
        let forest = Forest::scan_counted(&self.places(host)?, &self.parents, on)?;
        let unread = self.unread(&forest);
        let mut relinked =
            Relinked { images: Vec::new(), refused: Vec::new(), looked_at: 0, unread };
        for (id, node) in forest.nodes() {
            let Some(path) = self.own_name(node) else { continue };
            relinked.looked_at += usize::from(node.image.is_ok());
            let Some(link) = &node.link else { continue };
            match is_stale(link) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    relinked.refused.push(error.in_path(path));
                    continue;
                }
            }
            let found = self.parent_of(&forest, id, link).and_then(|parent| {
                let to = &forest.node(parent).path;
                if !self.parents.serves(to) {
                    return Err(denied(to));
                }
                recordable_path(host, folder_of(path), to, None).map(|_| parent)
            });
            match found {
                Ok(parent) => relinked.images.push(RelinkedImage {
                    path: path.to_path_buf(),
                    parent: forest.node(parent).path.clone(),
                    was: link.recorded_paths().map(str::to_owned).collect(),
                    link: link.recorded.clone(),
                }),
                Err(error) => relinked.refused.push(error.in_path(path)),
            }
        }
        Ok(relinked)
    }

    /// Relinks the images.
    ///
    /// # Errors
    /// As for [`plan`](Self::plan), before anything is changed; [`ErrorKind::Cancelled`]. An image that cannot be changed is listed in
    /// [`refused`](Relinked::refused), and the others are still relinked.
    pub fn run(self) -> Result<Relinked> {
        let _span = operation("relink", "folders");
        let mut files = 0;
        let mut relinked = self.plan_counted(&mut |done, total| {
            files = total;
            self.progress.report(done, total.saturating_mul(2))
        })?;
        let total = files.saturating_mul(2);
        let images = std::mem::take(&mut relinked.images);
        let mut left = images.len() as u64;
        for image in images {
            self.progress.report(total.saturating_sub(left).max(files), total)?;
            left -= 1;
            match image.relink(self.parents.its_host()) {
                Ok(()) => relinked.images.push(image),
                Err(error) => relinked.refused.push(error.in_path(&image.path)),
            }
        }
        // Nothing is left to stop.
        let _ = self.progress.call(Progress::new(total, total));
        Ok(relinked)
    }

    /// Returns why files of the folder that may be images could not be read.
    fn unread(&self, forest: &Forest) -> Vec<Error> {
        let of_finding = |finding: &ForestFinding| match finding {
            ForestFinding::Unreadable { path, error }
            | ForestFinding::NoSignature { path, error } => {
                self.lies_here(path).then(|| error.same_again().in_path(path))
            }
            ForestFinding::Damaged { node } => {
                let node = forest.node(*node);
                let path = self.own_name(node)?;
                node.image.as_ref().err().map(|error| error.same_again().in_path(path))
            }
            _ => None,
        };
        forest.findings().iter().filter_map(of_finding).collect()
    }

    /// Returns the places to scan: those of the images to relink and of their parents.
    fn places(&self, host: &dyn Host) -> Result<Vec<PathBuf>> {
        let is_file = |path: &Path| host.stat(path).is_ok_and(|stat| stat.kind == FileKind::File);
        let mut places = self.parents.extra_files();
        places.retain(|path| is_file(path));
        if self.recursive {
            places.push(self.folder.clone());
            return Ok(places);
        }
        let names = host.list(&self.folder).map_err(|error| {
            Error::io("forest.place", "cannot look there", error).in_path(&self.folder)
        })?;
        // As a walk over a folder: no subfolders, no link targets.
        let is_own = |path: &Path| {
            is_file(path)
                && !is_temporary_name(path)
                && host.is_link(path).is_ok_and(|is_link| !is_link)
        };
        places.extend(names.into_iter().filter(|path| is_own(path)));
        Ok(places)
    }

    /// Returns the name under which the file lies in the folder, if it does.
    fn own_name<'n>(&self, node: &'n Node) -> Option<&'n Path> {
        let mut names = [&node.path].into_iter().chain(&node.other_names);
        names.find(|path| self.lies_here(path)).filter(|_| !node.is_outside).map(PathBuf::as_path)
    }

    fn lies_here(&self, path: &Path) -> bool {
        match self.recursive {
            true => path.starts_with(&self.folder),
            false => path.parent() == Some(&self.folder),
        }
    }

    /// Returns why the file in the parent's place is not an image that could be identified.
    fn fault_of_parent(&self, forest: &Forest, link: &Link) -> Option<Error> {
        let host = self.parents.its_host();
        let of_lead = |lead: &Lead| match lead.to {
            LeadsTo::Other(node) => {
                let path = &forest.node(node).path;
                forest.node(node).image.as_ref().err().map(|e| e.same_again().in_path(path))
            }
            LeadsTo::Stranger => {
                let error = match host.stat(&lead.path).ok()?.kind {
                    FileKind::Folder => folder(),
                    other @ (FileKind::Fifo
                    | FileKind::Socket
                    | FileKind::Device
                    | FileKind::Other) => not_regular(other),
                    FileKind::File => {
                        let storage = host.open(&lead.path, Access::Read).ok()?;
                        let is_image = identity_if_any(storage.as_ref()).ok()?.is_some();
                        (!is_image).then(|| why_no_image(storage.as_ref()))?
                    }
                };
                Some(error.in_path(&lead.path))
            }
            _ => None,
        };
        let error = link.leads.iter().find_map(of_lead)?;
        let child = &link.recorded.child;
        let message = format!("cannot be the parent of {child}: {}", error.message());
        Some(error.with_message(message).of_parent_of(child))
    }

    /// Returns the only image that the link can refer to.
    fn parent_of(&self, forest: &Forest, child: NodeId, link: &Link) -> Result<NodeId> {
        let has_identity =
            |node: &Node| node.data_write_guid.is_some_and(|guid| link.recorded.accepts(guid));
        // Never the child itself: some writers give a child its parent's identity.
        let matches = forest.nodes().filter(|(id, node)| *id != child && has_identity(node));
        let matches: Vec<NodeId> = matches.map(|(id, _)| id).collect();
        let names = |of: &[NodeId]| {
            let names = of.iter().map(|id| forest.node(*id).path.display().to_string());
            names.collect::<Vec<_>>().join(" and ")
        };
        let refuse =
            |kind, code, message: &str| Error::new(kind, code, message).with_section("2.6.2.6.3");
        let parent = match matches[..] {
            [parent] => parent,
            [] => {
                if let Some(error) = self.fault_of_parent(forest, link) {
                    return Err(error);
                }
                let message = "no file has the identity of the parent";
                return Err(refuse(ErrorKind::ParentMissing, "relink.parent-missing", message)
                    .with_expected(format_args!(
                        "a VHDX file with the identity {}",
                        link.recorded.linkage
                    )));
            }
            _ => {
                let message = "several files have the identity of the parent";
                return Err(refuse(ErrorKind::Unproven, "relink.ambiguous", message)
                    .with_found(names(&matches))
                    .with_expected(
                        "exactly one such file; link the image to the right one by name",
                    ));
            }
        };
        let above = forest.layers(parent);
        if above.contains(&child) {
            let message = "the file with the identity of the parent is a descendant of the image";
            return Err(
                refuse(ErrorKind::Unproven, "relink.loop", message).with_found(names(&above))
            );
        }
        let image = forest.node(parent).image.as_ref().map_err(Error::same_again)?;
        let own = forest.node(child).image.as_ref().map_err(Error::same_again)?;
        let (above, below) = (own.geometry.logical_sector, image.geometry.logical_sector);
        if above != below {
            let message =
                "the file with the identity of the parent has another logical sector size";
            return Err(refuse(ErrorKind::Unproven, "relink.sector-size", message)
                .with_found(format_args!("{below} in {}", names(&[parent])))
                .with_expected(above));
        }
        Ok(parent)
    }
}

impl RelinkedImage {
    fn relink(&self, host: &dyn Host) -> Result<()> {
        let failed = |error| Error::io("file.open", "cannot open the file", error).limits_named();
        let storage = host.open(&self.path, Access::ReadWrite).map_err(failed)?;
        lock(storage.as_ref(), Lock::default(), LockMode::Exclusive, &mut Vec::new())?;
        check_named(host, storage.as_ref())?;
        // The lock is already held. Children are not searched for: what they know the image by does not change.
        let policy = ImagePolicy { lock: Lock::None, ..ImagePolicy::default() };
        let pending = Pending::open(storage, &WritePolicy::of(policy), Vec::new())?;
        let image = pending.core();
        let parent = host.open(&self.parent, Access::Read);
        let parent = parent.map_err(|error| failed(error).in_path(&self.parent))?;
        let guid = probe_identity(parent.as_ref())?;
        let link = image
            .parent_link()?
            .filter(|link| recorded_link(link) == recorded_link(&self.link) && link.accepts(guid));
        let Some(link) = link else {
            let message = "the image or its parent has changed since the plan was made";
            return Err(Error::new(ErrorKind::InUse, "relink.changed", message)
                .with_expected("images that no other process changes"));
        };
        let file = file_id(parent.as_ref())?;
        let paths = LinkPaths::To { host, parent: &self.parent, file };
        // Every refusal comes before a pending log is replayed.
        image.check_claims()?;
        locator_edit(image, link.linkage, link.linkage2, paths)?;
        let writer = pending.replay(None)?;
        writer.relink(link.linkage, link.linkage2, paths)?;
        writer.close()
    }
}

/// What a link records, for comparison.
fn recorded_link(link: &ParentLink) -> (Uuid, Option<Uuid>, Vec<(FoundBy, &str)>) {
    (link.linkage, link.linkage2, recorded(link).collect())
}

/// Whether no recorded path leads to the parent.
///
/// # Errors
/// [`ErrorKind::InUse`] if no path is known to lead to it and one leads to a file that cannot be read.
fn is_stale(link: &Link) -> Result<bool> {
    let recorded = || link.leads.iter().filter(|lead| lead.found_by != FoundBy::Given);
    if recorded().any(|lead| matches!(lead.to, LeadsTo::Parent(_))) {
        return Ok(false);
    }
    match recorded().find(|lead| matches!(lead.to, LeadsTo::Failed)) {
        None => Ok(true),
        Some(lead) => {
            let message =
                "a recorded path leads to a file that cannot be read and may be the parent";
            Err(Error::new(ErrorKind::InUse, "relink.unread", message)
                .with_section("2.6.2.6.3")
                .with_found(lead.path.display())
                .with_expected("a file that can be read"))
        }
    }
}

fn denied(parent: &Path) -> Error {
    let message = "the parent lies outside the folders that parents may come from";
    Error::new(ErrorKind::ParentDenied, "parent.denied", message)
        .with_section("2.6.2.6.3")
        .with_found(parent.display())
        .with_expected("a parent in one of them")
}
