//! The disk of an image and what is below it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use avhdx::storage::FileId;
use avhdx::{Disk, Extent, Geometry, LayerId, Result};

use super::layer::VmdkLayer;
use crate::file::Warning;
use crate::stack::{Layer, Stack};

/// The disk of a VMDK image together with the images below it, for reading. Made by
/// [`OpenOptions`](super::OpenOptions).
#[derive(Debug)]
pub struct VmdkDisk {
    layers: Stack<VmdkLayer>,
    warnings: Vec<Warning>,
}

/// What an image records of itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VmdkImage {
    /// The name of the file in errors.
    pub name: String,
    /// The path of the file, if it has one.
    pub path: Option<PathBuf>,
    /// Bytes of the disk.
    pub size: u64,
    /// The recorded kind, such as `monolithicSparse`.
    pub create_type: String,
    /// The identity of the content, the CID.
    pub content_id: u32,
    /// The identity that the content of the image below had.
    pub parent_content_id: Option<u32>,
    /// The recorded name of the image below.
    pub parent: Option<String>,
    /// The extents, in the order of the disk.
    pub extents: Vec<VmdkExtent>,
}

/// A part of a disk, in a file of its own or in the only one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VmdkExtent {
    /// Identifies its data in extents, those that lie in the file as they are.
    pub layer: LayerId,
    /// Identifies its packed data in extents.
    pub packed: LayerId,
    /// The recorded name of the file, which may be the image's own; `None` for one without a file.
    pub recorded: Option<String>,
    /// The name of the file in errors; `None` for one without a file, and for those that were not opened.
    pub name: Option<String>,
    /// The path of the file.
    pub path: Option<PathBuf>,
    /// The kind.
    pub kind: ExtentKind,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of a grain, of one with tables that was opened.
    pub grain_size: Option<u64>,
}

/// What the bytes of an extent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExtentKind {
    /// Zeros.
    Zero,
    /// Bytes as they are.
    Flat,
    /// Grains, found by tables.
    Sparse,
}

impl fmt::Display for ExtentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zero => "zero",
            Self::Flat => "flat",
            Self::Sparse => "sparse",
        })
    }
}

impl VmdkDisk {
    pub(super) fn of(layers: Vec<VmdkLayer>) -> Self {
        let warnings = layers.iter().flat_map(VmdkLayer::warnings).collect();
        Self { layers: Stack(layers), warnings }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.layers.top().size()
    }

    /// What the images record: of the one that was opened, then of those below.
    pub fn images(&self) -> impl Iterator<Item = VmdkImage> + '_ {
        self.layers.0.iter().map(VmdkLayer::image)
    }

    /// What is odd about the images.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

impl VmdkImage {
    /// What a descriptor records, with extents.
    pub(super) fn of(layer: &VmdkLayer, extents: Vec<VmdkExtent>) -> Self {
        let (storage, descriptor) = (layer.storage(), &layer.descriptor);
        let parent = descriptor.parent.as_ref();
        Self {
            name: storage.name().to_owned(),
            path: storage.path().map(Path::to_path_buf),
            size: layer.size(),
            create_type: descriptor.create_type.clone(),
            content_id: descriptor.content_id,
            parent_content_id: parent.map(|parent| parent.content_id),
            parent: parent.map(|parent| parent.name.clone()),
            extents,
        }
    }
}

impl Disk for VmdkDisk {
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
