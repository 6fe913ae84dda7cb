//! Opens images, and those below them.

use std::path::Path;
use std::sync::Arc;

use avhdx::storage::{Host, LocalHost, Storage};
use avhdx::{Error, ErrorKind, Result};

use super::backing::BackingFiles;
use super::disk::{Qcow2Disk, Qcow2Image};
use super::header::Backing;
use super::layer::{AnyLayer, Qcow2Layer, RawLayer};
use crate::file::{self, Warning, lock};
use crate::stack::Layer;

/// How images are opened.
///
/// ```no_run
/// use avhdx_formats::qcow2::{BackingFiles, OpenOptions};
///
/// // An image and its backing files, all in one folder or below.
/// let files = BackingFiles::new().confined_to("/mnt/vm");
/// let disk = OpenOptions::new().backing(files).open("/mnt/vm/web.qcow2")?;
/// println!("{} images", disk.images().count());
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenOptions {
    host: Arc<dyn Host>,
    backing: BackingFiles,
    max_depth: usize,
}

impl OpenOptions {
    /// Opens no backing files: an image that has one is refused.
    pub fn new() -> Self {
        Self { host: Arc::new(LocalHost), backing: BackingFiles::new(), max_depth: 64 }
    }

    /// Sets the host of the paths. The default is this machine.
    #[must_use]
    pub fn host(mut self, host: Arc<dyn Host>) -> Self {
        self.host = host;
        self
    }

    /// Sets where backing files may come from.
    #[must_use]
    pub fn backing(mut self, files: BackingFiles) -> Self {
        self.backing = files;
        self
    }

    /// Sets the maximum number of images, the backing files included. The default is 64.
    #[must_use]
    pub fn max_depth(mut self, images: usize) -> Self {
        self.max_depth = images;
        self
    }

    /// Opens an image for reading. It is locked against writers where the host has locks.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if the image breaks a rule of the format; [`ErrorKind::Unsupported`] if it has a feature that is
    /// not read, or a backing file of another format than qcow2 and raw, or of one that is not recorded;
    /// [`ErrorKind::ParentRequired`] if it has a backing file and none may be opened; [`ErrorKind::ParentMissing`] if that is
    /// not found; [`ErrorKind::Limit`] for too many backing files, and for images below themselves; [`ErrorKind::InUse`] if
    /// another program writes one; [`ErrorKind::Io`] if the host fails.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Qcow2Disk> {
        let storage = file::open(self.host.as_ref(), path.as_ref())?;
        lock(storage.as_ref())?;
        self.open_file(storage)
    }

    /// Reads what an image records of itself, without its backing files. It may be in use.
    ///
    /// # Errors
    /// As for [`open`](Self::open), but for what concerns backing files and locks.
    pub fn inspect(&self, path: impl AsRef<Path>) -> Result<(Qcow2Image, Vec<Warning>)> {
        let storage = file::open(self.host.as_ref(), path.as_ref())?;
        let layer = Qcow2Layer::open(storage)?;
        let warnings = warnings(&layer);
        Ok((Qcow2Image::of(&AnyLayer::Qcow2(Box::new(layer))), warnings))
    }

    /// Opens the image in `storage` for reading. The caller locks it.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_file(&self, storage: Arc<dyn Storage>) -> Result<Qcow2Disk> {
        let mut found = Vec::new();
        let mut layers = Vec::new();
        let mut next = Some((storage, true));
        while let Some((storage, is_image)) = next {
            if layers.len() >= self.max_depth {
                let message = "the image has more backing files than are opened";
                return Err(Error::new(ErrorKind::Limit, "qcow2.depth", message)
                    .in_file(storage.name())
                    .with_expected(format_args!("at most {} images", self.max_depth)));
            }
            let id = storage.id().ok().flatten();
            let is_again =
                |layer: &AnyLayer| id.is_some() && layer.storage().id().ok().flatten() == id;
            if layers.iter().any(is_again) {
                let message = "the image is below itself: its backing files lead back to it";
                return Err(Error::new(ErrorKind::Limit, "qcow2.backing-loop", message)
                    .in_file(storage.name()));
            }
            if !is_image {
                layers.push(AnyLayer::Raw(RawLayer::open(storage)?));
                break;
            }
            let layer = Qcow2Layer::open(storage)?;
            found.extend(warnings(&layer));
            next = match &layer.header.backing {
                Some(backing) => Some(self.below(&layer, backing)?),
                None => None,
            };
            layers.push(AnyLayer::Qcow2(Box::new(layer)));
        }
        Ok(Qcow2Disk::of(layers, found))
    }

    /// Opens the backing file of an image, and tells whether it is an image.
    fn below(&self, child: &Qcow2Layer, backing: &Backing) -> Result<(Arc<dyn Storage>, bool)> {
        let name = child.storage().name();
        let refuse = |kind, code, message: &str| {
            Error::new(kind, code, message)
                .in_file(name)
                .with_found(format_args!("{:?}", backing.name))
        };
        let is_image = match backing.format.as_deref() {
            Some("qcow2") => true,
            Some("raw") => false,
            // What a guest wrote to a raw disk must not make an image of it.
            None => {
                let message = "the format of the backing file is not recorded, and never guessed";
                return Err(refuse(ErrorKind::Unsupported, "qcow2.backing-format", message));
            }
            Some(other) => {
                let message = format!("the backing file has a format that is not read: {other:?}");
                return Err(refuse(ErrorKind::Unsupported, "qcow2.backing-format", &message));
            }
        };
        if is_elsewhere(&backing.name) {
            let message = "the backing file is not named by a path";
            return Err(refuse(ErrorKind::Unsupported, "qcow2.backing-name", message));
        }
        if self.backing.is_empty() {
            let message = "the image holds what differs from its backing file, and those are opened only where asked";
            return Err(refuse(ErrorKind::ParentRequired, "qcow2.parent-required", message));
        }
        let storage = self.backing.open(&self.host, child.storage().as_ref(), &backing.name)?;
        let Some(storage) = storage else {
            let message = "the backing file is not found";
            return Err(refuse(ErrorKind::ParentMissing, "qcow2.parent-missing", message));
        };
        lock(storage.as_ref())?;
        Ok((storage, is_image))
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether QEMU takes a name for a description, or for a protocol: one letter, as in `C:`, is a drive.
fn is_elsewhere(name: &str) -> bool {
    let before = name.split(['/', '\\']).next().unwrap_or_default();
    before.split_once(':').is_some_and(|(protocol, _)| protocol.len() > 1)
}

fn warnings(layer: &Qcow2Layer) -> Vec<Warning> {
    let name = layer.storage().name();
    let header = &layer.header;
    let mut found = Vec::new();
    if header.is_corrupt {
        let message = "QEMU marked the image as corrupt: what it reads as may be wrong";
        found.push(Warning::new("qcow2.corrupt", name, message));
    }
    if header.is_dirty {
        let message = "the image was not closed: its counts of clusters may be old; its disk is read as it is";
        found.push(Warning::new("qcow2.dirty", name, message));
    }
    if header.cut > 0 {
        let message = format!(
            "the recorded size of the disk is no whole number of sectors: its last {} bytes are not read, as QEMU does not",
            header.cut
        );
        found.push(Warning::new("qcow2.part-of-sector", name, message));
    }
    if header.snapshots > 0 {
        let message =
            format!("the image has {} snapshots inside, which are not read", header.snapshots);
        found.push(Warning::new("qcow2.snapshots", name, message));
    }
    found
}
