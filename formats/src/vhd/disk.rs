//! The disk of an image and its parents.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use avhdx::storage::FileId;
use avhdx::{Disk, Extent, Geometry, LayerId, Result};
use uuid::Uuid;

use super::footer::{Kind, time};
use super::layer::VhdLayer;
use crate::file::Warning;
use crate::stack::Stack;

/// The disk of a VHD image, for reading: of a differencing one, together with its parents. Made by
/// [`OpenOptions`](super::OpenOptions).
#[derive(Debug)]
pub struct VhdDisk {
    /// The image, then its parents.
    layers: Stack<VhdLayer>,
    warnings: Vec<Warning>,
}

/// What an image records of itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VhdImage {
    /// Identifies its data in extents.
    pub layer: LayerId,
    /// The name of the file in errors.
    pub name: String,
    /// The path of the file, if it has one.
    pub path: Option<PathBuf>,
    /// The kind.
    pub kind: Kind,
    /// The identity, by which children know it. Its bytes are in the order in which the file has them.
    pub id: Uuid,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes that the disk had when it was made.
    pub original_size: u64,
    /// Bytes of a block; `None` for a fixed image.
    pub block_size: Option<u32>,
    /// When it was made.
    pub created: SystemTime,
    /// The four letters of the program that made it, such as `win ` for Hyper-V and `vpc ` for Virtual PC.
    pub creator: [u8; 4],
    /// The recorded identity of the parent.
    pub parent_id: Option<Uuid>,
    /// The recorded paths of the parent: from the folder of the image, on the machine that made it, its name.
    pub parent_paths: Vec<String>,
}

impl VhdDisk {
    pub(super) fn of(layers: Vec<VhdLayer>, changed: Vec<Warning>) -> Self {
        let odd = layers.iter().flat_map(VhdLayer::warnings);
        let warnings = odd.chain(changed).collect();
        Self { layers: Stack(layers), warnings }
    }

    /// Bytes of the disk. The current size of the footer counts, never the geometry.
    pub fn size(&self) -> u64 {
        self.layers.top().footer.size
    }

    /// What the images record: of the one that was opened, then of its parents.
    pub fn images(&self) -> impl Iterator<Item = VhdImage> + '_ {
        self.layers.0.iter().map(VhdImage::of)
    }

    /// What is odd about the images.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

impl VhdImage {
    pub(super) fn of(layer: &VhdLayer) -> Self {
        let parent = layer.blocks.as_ref().and_then(|blocks| blocks.header.parent.as_ref());
        let paths = parent.into_iter().flat_map(|parent| {
            let name = Some(&parent.name).filter(|name| !name.is_empty());
            [parent.relative_path.as_ref(), parent.absolute_path.as_ref(), name]
        });
        Self {
            layer: layer.id,
            name: layer.storage.name().to_owned(),
            path: layer.storage.path().map(Path::to_path_buf),
            kind: layer.footer.kind,
            id: layer.footer.id,
            size: layer.footer.size,
            original_size: layer.footer.original_size,
            block_size: layer.blocks.as_ref().map(|blocks| blocks.header.block_size),
            created: time(layer.footer.stamp),
            creator: layer.footer.creator,
            parent_id: parent.map(|parent| parent.id),
            parent_paths: paths.flatten().cloned().collect(),
        }
    }
}

impl Disk for VhdDisk {
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
