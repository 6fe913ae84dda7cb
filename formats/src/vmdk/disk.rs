//! The disk of an image and what is below it.

use std::ops::Range;

use avhdx::storage::FileId;
use avhdx::{Disk, Extent, Geometry, Result};

use super::facts::VmdkImage;
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
