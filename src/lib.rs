//! Hyper-V virtual disks and their checkpoint chains: VHDX images, `.vhdx` and `.avhdx`.
#![warn(missing_debug_implementations)]

mod chain;
mod cursor;
mod disk;
mod error;
mod format;
mod image;
mod log;
mod options;
mod raw;
pub mod storage;
mod types;

pub use chain::{Candidate, DiffChain, FoundBy, Layer, Linkage, ParentSource, PathSource};
pub use cursor::Cursor;
pub use disk::{Disk, DiskExt, Extent, Extents, Geometry, LayerId, Source};
pub use error::{Error, ErrorKind, Result};
pub use image::{
    BlockCounts, Budget, HeaderInfo, ImageInfo, ItemInfo, LocatorInfo, Lock, LogInfo, LogPolicy,
    LogState, ParentLink, RegionInfo, VhdxFile, Warning,
};
pub use options::OpenOptions;
pub use raw::RawDisk;
pub use types::FileOffset;
