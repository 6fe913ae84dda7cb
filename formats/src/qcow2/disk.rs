//! The disk of an image and what is below it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use avhdx::storage::FileId;
use avhdx::{Disk, Extent, Geometry, LayerId, Result};

use super::layer::AnyLayer;
use crate::file::Warning;
use crate::stack::{Layer, Stack};

/// The disk of a qcow2 image together with its backing files, for reading. Made by
/// [`OpenOptions`](super::OpenOptions).
#[derive(Debug)]
pub struct Qcow2Disk {
    layers: Stack<AnyLayer>,
    warnings: Vec<Warning>,
}

/// What an image records of itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Qcow2Image {
    /// Identifies its data in extents, those that lie in the file as they are.
    pub layer: LayerId,
    /// Identifies its packed data in extents.
    pub packed: LayerId,
    /// The name of the file in errors.
    pub name: String,
    /// The path of the file, if it has one.
    pub path: Option<PathBuf>,
    /// Bytes of the disk.
    pub size: u64,
    /// The version of the format, 2 or 3; `None` for a raw disk below an image.
    pub version: Option<u32>,
    /// Bytes of a cluster; `None` for a raw disk.
    pub cluster_size: Option<u32>,
    /// The recorded name of the backing file.
    pub backing: Option<String>,
    /// Its recorded format.
    pub backing_format: Option<String>,
}

impl Qcow2Disk {
    pub(super) fn of(layers: Vec<AnyLayer>, warnings: Vec<Warning>) -> Self {
        Self { layers: Stack(layers), warnings }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.layers.top().size()
    }

    /// What the images record: of the one that was opened, then of its backing files.
    pub fn images(&self) -> impl Iterator<Item = Qcow2Image> + '_ {
        self.layers.0.iter().map(Qcow2Image::of)
    }

    /// What is odd about the images.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

impl Qcow2Image {
    pub(super) fn of(layer: &AnyLayer) -> Self {
        let header = match layer {
            AnyLayer::Qcow2(layer) => Some(&layer.header),
            AnyLayer::Raw(_) => None,
        };
        let backing = header.and_then(|header| header.backing.as_ref());
        let [own, packed] = layer.ids();
        Self {
            layer: own,
            packed,
            name: layer.storage().name().to_owned(),
            path: layer.storage().path().map(Path::to_path_buf),
            size: layer.size(),
            version: header.map(|header| header.version),
            cluster_size: header.map(|header| 1 << header.cluster_bits),
            backing: backing.map(|backing| backing.name.clone()),
            backing_format: backing.and_then(|backing| backing.format.clone()),
        }
    }
}

impl Disk for Qcow2Disk {
    fn geometry(&self) -> Geometry {
        self.layers.geometry()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.layers.read_at(buf, offset)
    }

    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        self.layers.next_extent(range)
    }

    fn files(&self) -> Vec<FileId> {
        self.layers.files()
    }
}
