//! Types for offsets and indexes, so that file and disk offsets cannot be confused.

use std::fmt;
use std::ops::{Add, Range};

/// Bytes in a kibibyte.
pub(crate) const KIB: u64 = 1 << 10;
/// Bytes in a mebibyte, the alignment of every object in a VHDX file.
pub(crate) const MIB: u64 = 1 << 20;

/// The length of a range.
pub(crate) fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// An offset in a file on the host, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileOffset(u64);

impl FileOffset {
    /// The offset `bytes` from the start of the file.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The offset in bytes from the start of the file.
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

    /// Saturates: an invalid offset is refused where it is used.
    fn add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}

impl fmt::Display for FileOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// An offset on a virtual disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DiskOffset(pub(crate) u64);

impl Add<u64> for DiskOffset {
    type Output = Self;

    fn add(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// The index of a payload block on the virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlockIndex(pub(crate) u64);

/// The index of a chunk: the payload blocks that share a sector bitmap block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChunkIndex(pub(crate) u64);

/// The index of an entry in the block allocation table, counting payload and bitmap entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BatIndex(pub(crate) u64);
