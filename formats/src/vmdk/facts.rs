//! What images and their extents record.

use std::fmt;
use std::path::PathBuf;

use avhdx::LayerId;

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
