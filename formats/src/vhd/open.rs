//! Opens images, and finds the parents of differencing ones.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use avhdx::storage::{Access, Host, LocalHost, Storage};
use avhdx::{Error, ErrorKind, FoundBy, ParentLink, ParentSource, Result};

use super::disk::{VhdDisk, VhdImage};
use super::footer::time;
use super::header::Parent;
use super::layer::VhdLayer;
use crate::file::{self, Warning, lock};

/// How far the clocks of two file systems may be apart: FAT counts in two seconds.
const TICK: Duration = Duration::from_secs(2);

/// How images are opened.
///
/// ```no_run
/// use avhdx::PathSource;
/// use avhdx_formats::vhd::OpenOptions;
///
/// // A differencing image and its parents, all in one folder or below.
/// let parents = PathSource::new().confined_to("/mnt/vm");
/// let disk = OpenOptions::new().parents(parents).open("/mnt/vm/web_2.vhd")?;
/// println!("{} images", disk.images().count());
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenOptions {
    host: Arc<dyn Host>,
    parents: Option<Arc<dyn ParentSource>>,
    max_depth: usize,
}

impl OpenOptions {
    /// Opens no parents: a differencing image is refused.
    pub fn new() -> Self {
        Self { host: Arc::new(LocalHost), parents: None, max_depth: 64 }
    }

    /// Sets the host of the paths. The default is this machine.
    #[must_use]
    pub fn host(mut self, host: Arc<dyn Host>) -> Self {
        self.host = host;
        self
    }

    /// Opens parents that this source finds and that have the recorded identity.
    #[must_use]
    pub fn parents(mut self, parents: impl ParentSource + 'static) -> Self {
        self.parents = Some(Arc::new(parents));
        self
    }

    /// Sets the maximum number of images, the parents included. The default is 64.
    #[must_use]
    pub fn max_depth(mut self, images: usize) -> Self {
        self.max_depth = images;
        self
    }

    /// Opens an image for reading. It is locked against writers where the host has locks.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if the image breaks a rule of the format; [`ErrorKind::Unsupported`] if it is another kind of
    /// image; [`ErrorKind::ParentRequired`] if it has a parent and none may be opened; [`ErrorKind::ParentMissing`] and
    /// [`ErrorKind::ParentMismatch`] if the parent is not found; [`ErrorKind::Limit`] for too many parents, and for parents
    /// that lead to each other; [`ErrorKind::InUse`] if another program writes it; [`ErrorKind::Io`] if the host fails.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<VhdDisk> {
        let storage = file::open(self.host.as_ref(), path.as_ref())?;
        lock(storage.as_ref())?;
        self.open_file(storage)
    }

    /// Reads what an image records of itself, without its parents. It may be in use.
    ///
    /// # Errors
    /// As for [`open`](Self::open), but for what concerns parents and locks.
    pub fn inspect(&self, path: impl AsRef<Path>) -> Result<(VhdImage, Vec<Warning>)> {
        let layer = VhdLayer::open(file::open(self.host.as_ref(), path.as_ref())?)?;
        Ok((VhdImage::of(&layer), layer.warnings().collect()))
    }

    /// Opens the image in `storage` for reading. The caller locks it.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_file(&self, storage: Arc<dyn Storage>) -> Result<VhdDisk> {
        let mut layers = vec![VhdLayer::open(storage)?];
        let mut changed = Vec::new();
        while let Some(link) = layers.last().and_then(Link::of) {
            if layers.len() >= self.max_depth {
                let message = "the image has more parents than are opened";
                return Err(Error::new(ErrorKind::Limit, "vhd.depth", message)
                    .in_file(layers[0].storage.name())
                    .with_expected(format_args!("at most {} images", self.max_depth)));
            }
            let parent = self.find(&link)?;
            if layers.iter().any(|layer| layer.footer.id == parent.footer.id) {
                let message = "the image is above itself: its parents lead back to it";
                return Err(Error::new(ErrorKind::Limit, "vhd.parent-loop", message)
                    .in_file(parent.storage.name()));
            }
            changed.extend(self.change(&link, &parent));
            layers.push(parent);
        }
        Ok(VhdDisk::of(layers, changed))
    }

    /// Finds the parent: the first file with the recorded identity.
    fn find(&self, link: &Link<'_>) -> Result<VhdLayer> {
        let paths = link.paths();
        let Some(parents) = &self.parents else {
            let message = "the image holds what differs from its parent, and parents are opened only where asked";
            let error = Error::new(ErrorKind::ParentRequired, "vhd.parent-required", message);
            return Err(error.in_file(&link.parent_link.child).with_expected(paths));
        };
        let mut others = Vec::new();
        for candidate in parents.candidates(&link.parent_link, Access::Read) {
            // Of the files that are merely in a folder, none is a reason to stop.
            let is_named = candidate.found_by != FoundBy::FolderSearch;
            let layer = candidate.opened.map_err(Error::from).and_then(VhdLayer::open);
            match layer {
                Ok(layer) if layer.footer.id == link.parent.id => {
                    lock(layer.storage.as_ref())?;
                    return Ok(layer);
                }
                Ok(layer) => {
                    others
                        .push(format!("{}: another identity, {}", candidate.name, layer.footer.id));
                }
                // A damaged parent is no reason to take another file.
                Err(error) if is_named && is_serious(&error) => return Err(error),
                Err(_) => {}
            }
        }
        let (kind, code, message) = match others.is_empty() {
            true => (ErrorKind::ParentMissing, "vhd.parent-missing", "the parent is not found"),
            false => {
                let message = "no file has the identity of the parent";
                (ErrorKind::ParentMismatch, "vhd.parent-mismatch", message)
            }
        };
        let error = Error::new(kind, code, message).in_file(&link.parent_link.child);
        let expected = format!("the image {} ({paths})", link.parent.id);
        let error = error.with_expected(expected);
        Err(match others.is_empty() {
            true => error,
            false => error.with_found(others.join(", ")),
        })
    }

    /// Says that the parent changed since the child was made: its bytes may not be those that the child was made for.
    fn change(&self, link: &Link<'_>, parent: &VhdLayer) -> Option<Warning> {
        let modified = self.host.stat(parent.storage.path()?).ok()?.modified?;
        let recorded = time(link.parent.stamp);
        let apart = |a: SystemTime, b: SystemTime| a.duration_since(b).unwrap_or_default();
        let is_same = apart(modified, recorded).max(apart(recorded, modified)) < TICK;
        let message =
            "the file has another time than its child recorded: it was changed or copied since";
        (!is_same).then(|| Warning::new("vhd.parent-time", parent.storage.name(), message))
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// The way from a child to its parent.
struct Link<'a> {
    parent: &'a Parent,
    parent_link: ParentLink,
}

impl<'a> Link<'a> {
    fn of(child: &'a VhdLayer) -> Option<Self> {
        let parent = child.blocks.as_ref()?.header.parent.as_ref()?;
        let mut link = ParentLink::new(child.storage.name(), parent.id);
        link.child_path = child.storage.path().map(Path::to_path_buf);
        link.child_via = child.storage.via().map(Path::to_path_buf);
        // Images of other programs have the name alone.
        let name = Some(&parent.name).filter(|name| !name.is_empty());
        let is_path = |path: &&String| path.contains(['\\', '/', ':']);
        link.relative_path =
            parent.relative_path.clone().or_else(|| name.filter(|name| !is_path(name)).cloned());
        link.absolute_win32_path =
            parent.absolute_path.clone().or_else(|| name.filter(is_path).cloned());
        Some(Self { parent, parent_link: link })
    }

    /// The recorded paths as they are shown.
    fn paths(&self) -> String {
        let link = &self.parent_link;
        let paths = [&link.relative_path, &link.absolute_win32_path].into_iter().flatten();
        let paths: Vec<String> = paths.map(|path| format!("{path:?}")).collect();
        if paths.is_empty() { "no recorded path".to_owned() } else { paths.join(" or ") }
    }
}

/// Whether this ends the search for a parent.
fn is_serious(error: &Error) -> bool {
    error.kind() == ErrorKind::Damaged && error.code() != "vhd.footer"
}
