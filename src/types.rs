//! Newtypes for positions, so that a place in a file is never taken for a place on a disk.

use std::fmt;
use std::ops::Add;

/// Bytes in a kibibyte.
pub(crate) const KIB: u64 = 1 << 10;
/// Bytes in a mebibyte, the alignment of every object in a VHDX file.
pub(crate) const MIB: u64 = 1 << 20;

/// A position in a file on the host, in bytes from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileOffset(u64);

impl FileOffset {
    /// The position `bytes` from the start of the file.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The position in bytes from the start of the file.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl From<FileOffset> for u64 {
    fn from(offset: FileOffset) -> Self {
        offset.0
    }
}

impl Add<u64> for FileOffset {
    type Output = Self;

    /// Saturates: a position that cannot exist is refused where it is used, not here.
    fn add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}

impl fmt::Display for FileOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A position on a virtual disk, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DiskOffset(pub(crate) u64);

impl Add<u64> for DiskOffset {
    type Output = Self;

    fn add(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// The number of a payload block, counted from the start of the virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlockIndex(pub(crate) u64);

/// The number of a chunk: the payload blocks that share one sector bitmap block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChunkIndex(pub(crate) u64);

/// The number of an entry in the block allocation table, payload and bitmap entries counted alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BatIndex(pub(crate) u64);
