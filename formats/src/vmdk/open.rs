//! Opens images, their extents, and the images below.

use std::io::ErrorKind as Io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::storage::{Access, Host, LocalHost, Storage};
use avhdx::{Error, ErrorKind, FoundBy, ParentLink, ParentSource, PathSource, Result};

use super::descriptor::Parent;
use super::disk::VmdkDisk;
use super::facts::VmdkImage;
use super::layer::VmdkLayer;
use crate::file::{self, Warning, lock};
use crate::stack::Layer;

/// How images are opened.
///
/// ```no_run
/// use avhdx::PathSource;
/// use avhdx_formats::vmdk::OpenOptions;
///
/// // An image and those below it, all in one folder or below.
/// let parents = PathSource::new().confined_to("/mnt/vm");
/// let disk = OpenOptions::new().parents(parents).open("/mnt/vm/web-000001.vmdk")?;
/// println!("{} images", disk.images().count());
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenOptions {
    host: Arc<dyn Host>,
    parents: Option<Arc<dyn ParentSource>>,
    extent_folders: Vec<PathBuf>,
    max_depth: usize,
}

impl OpenOptions {
    /// Opens extents from the folder of the image alone, and no images below: an image that is a change to another is refused.
    pub fn new() -> Self {
        Self { host: Arc::new(LocalHost), parents: None, extent_folders: Vec::new(), max_depth: 64 }
    }

    /// Sets the host of the paths. The default is this machine.
    #[must_use]
    pub fn host(mut self, host: Arc<dyn Host>) -> Self {
        self.host = host;
        self
    }

    /// Opens images below that this source finds by their recorded names and whose content has the recorded identity.
    #[must_use]
    pub fn parents(mut self, parents: impl ParentSource + 'static) -> Self {
        self.parents = Some(Arc::new(parents));
        self
    }

    /// Opens extents in this folder or below too, after following links. Each call adds a folder.
    #[must_use]
    pub fn extents_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.extent_folders.push(folder.into());
        self
    }

    /// Sets the maximum number of images, those below included. The default is 64.
    #[must_use]
    pub fn max_depth(mut self, images: usize) -> Self {
        self.max_depth = images;
        self
    }

    /// Opens an image for reading. It and its extents are locked against writers where the host has locks.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if the image breaks a rule of the format; [`ErrorKind::Unsupported`] if it is of a kind that is not
    /// read; [`ErrorKind::ParentDenied`] for an extent that is in no folder that extents are opened from, and
    /// [`ErrorKind::Io`] for one that is not there; [`ErrorKind::ParentRequired`] if it is a change to another image and none
    /// may be opened; [`ErrorKind::ParentMissing`] and [`ErrorKind::ParentMismatch`] if that is not found;
    /// [`ErrorKind::Limit`] for too many images below, and for images below themselves; [`ErrorKind::InUse`] if another program
    /// writes one; [`ErrorKind::Io`] if the host fails.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<VmdkDisk> {
        let storage = file::open(self.host.as_ref(), path.as_ref())?;
        lock(storage.as_ref())?;
        self.open_file(storage)
    }

    /// Reads what an image records of itself, without its extents and the images below. It may be in use.
    ///
    /// # Errors
    /// As for [`open`](Self::open), but for what concerns extents, images below and locks.
    pub fn inspect(&self, path: impl AsRef<Path>) -> Result<(VmdkImage, Vec<Warning>)> {
        let layer = VmdkLayer::open(file::open(self.host.as_ref(), path.as_ref())?, None)?;
        Ok((layer.image(), layer.warnings().into_iter().collect()))
    }

    /// Opens the image in `storage` for reading. The caller locks it.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_file(&self, storage: Arc<dyn Storage>) -> Result<VmdkDisk> {
        let mut layers = vec![self.layer(storage)?];
        while let Some(child) = layers.last()
            && let Some(parent) = &child.descriptor.parent
        {
            if layers.len() >= self.max_depth {
                let message = "the image is above more images than are opened";
                return Err(Error::new(ErrorKind::Limit, "vmdk.depth", message)
                    .in_file(child.storage().name())
                    .with_expected(format_args!("at most {} images", self.max_depth)));
            }
            let below = self.below(child, parent)?;
            let id = below.storage().id().ok().flatten();
            let is_again =
                |layer: &VmdkLayer| id.is_some() && layer.storage().id().ok().flatten() == id;
            if layers.iter().any(is_again) {
                let message = "the image is below itself: its parents lead back to it";
                return Err(Error::new(ErrorKind::Limit, "vmdk.parent-loop", message)
                    .in_file(below.storage().name()));
            }
            layers.push(below);
        }
        Ok(VmdkDisk::of(layers))
    }

    /// Opens an image with its extents.
    fn layer(&self, storage: Arc<dyn Storage>) -> Result<VmdkLayer> {
        let image = Arc::clone(&storage);
        VmdkLayer::open(storage, Some(&|name| self.extent(image.as_ref(), name)))
    }

    /// Opens an extent: in the folder of its image, or in one that the caller named.
    fn extent(&self, image: &dyn Storage, name: &str) -> Result<Arc<dyn Storage>> {
        let refuse = |kind, code, message| {
            Error::new(kind, code, message)
                .in_file(image.name())
                .with_found(format_args!("{name:?}"))
        };
        let missing = || refuse(ErrorKind::Io, "vmdk.extent-missing", "an extent is not found");
        let Some(path) = image.path() else { return Err(missing()) };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut source = PathSource::new()
            .host(Arc::clone(&self.host))
            .confined_to(folder.unwrap_or(Path::new(".")));
        for folder in &self.extent_folders {
            source = source.confined_to(folder);
        }
        let mut link = ParentLink::new(image.name(), uuid::Uuid::nil());
        link.child_path = Some(path.to_path_buf());
        link.relative_path = Some(name.to_owned());
        let mut failure = None;
        for candidate in source.candidates(&link, Access::Read) {
            match candidate.opened {
                Ok(storage) => {
                    lock(storage.as_ref())?;
                    return Ok(storage);
                }
                Err(error) => failure = failure.or(Some((candidate.name, error))),
            }
        }
        match failure {
            // Refused by the source, not by the host.
            Some((_, error))
                if error.kind() == Io::PermissionDenied && error.raw_os_error().is_none() =>
            {
                let message = "an extent does not lie in the folder of the image";
                Err(refuse(ErrorKind::ParentDenied, "vmdk.extent-outside", message))
            }
            Some((_, error)) if matches!(error.kind(), Io::IsADirectory | Io::InvalidInput) => {
                let message = "an extent is not a regular file";
                Err(refuse(ErrorKind::Unsupported, "vmdk.extent-file", message))
            }
            Some((name, error)) if error.kind() != Io::NotFound => {
                Err(Error::from(error).in_file(name))
            }
            _ => Err(missing()),
        }
    }

    /// Opens the image below: the first one of the recorded name whose content has the recorded identity.
    fn below(&self, child: &VmdkLayer, parent: &Parent) -> Result<VmdkLayer> {
        let name = child.storage().name();
        let refuse = |kind, code, message: &str| {
            let expected = format!("{:?} with the CID {:08x}", parent.name, parent.content_id);
            Error::new(kind, code, message).in_file(name).with_expected(expected)
        };
        let Some(parents) = &self.parents else {
            let message = "the image holds what differs from its parent, and parents are opened only where asked";
            return Err(refuse(ErrorKind::ParentRequired, "vmdk.parent-required", message));
        };
        let mut link = ParentLink::new(name, uuid::Uuid::nil());
        link.child_path = child.storage().path().map(Path::to_path_buf);
        link.child_via = child.storage().via().map(Path::to_path_buf);
        link.relative_path = Some(parent.name.clone());
        let candidates = parents.candidates(&link, Access::Read);
        // 32 bits are too few to find a file by.
        let named = candidates.filter(|candidate| candidate.found_by != FoundBy::FolderSearch);
        let mut others = Vec::new();
        for candidate in named {
            let Ok(storage) = candidate.opened else { continue };
            lock(storage.as_ref())?;
            let layer = match VmdkLayer::open(Arc::clone(&storage), None) {
                Ok(layer) => layer,
                // Files of other kinds may be given for other layers.
                Err(error) if matches!(error.code(), "vmdk.signature" | "vmdk.extent-alone") => {
                    others.push(format!("{}: no VMDK image", candidate.name));
                    continue;
                }
                Err(error) => return Err(error),
            };
            if layer.descriptor.content_id == parent.content_id {
                return self.layer(storage);
            }
            let found = layer.descriptor.content_id;
            others.push(format!("{}: another CID, {found:08x}", candidate.name));
        }
        if others.is_empty() {
            let message = "the parent is not found";
            return Err(refuse(ErrorKind::ParentMissing, "vmdk.parent-missing", message));
        }
        let message = "no file of its name has the content of the parent: it was changed since";
        let error = refuse(ErrorKind::ParentMismatch, "vmdk.parent-mismatch", message);
        Err(error.with_found(others.join(", ")))
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}
