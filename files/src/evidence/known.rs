//! What is known of a disk, what is loose, and what is found of it.

use std::ops::Range;

use avhdx::Disk;

pub(super) const MIB: u64 = 1 << 20;

/// Ranges of the file of an image that no table claims.
pub trait Loose: Sync {
    /// The ranges in bytes, in order, aligned to MiB at both ends, neither empty nor overlapping.
    fn ranges(&self) -> &[Range<u64>];

    /// Fills `buf` with the bytes of the file at an offset within one of the ranges.
    ///
    /// # Errors
    /// Those of the host; the bytes then count as bytes that say nothing.
    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> avhdx::Result<()>;
}

/// What is known of a disk before anything is placed.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// What is placed already; the rest reads as zeros.
    pub disk: &'a dyn Disk,
    /// Which ranges of the disk are known, in order.
    pub ranges: &'a [Range<u64>],
    /// The size of the disk in bytes. Less is sure without it.
    pub size: Option<u64>,
    /// The size of a payload block in bytes; without it, each MiB is placed by itself.
    pub block_size: Option<u32>,
    /// The size of a logical sector in bytes.
    pub sector: Option<u32>,
}

/// Bytes of the file that lie at a place of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hit {
    /// Where the bytes lie in the file.
    pub file_offset: u64,
    /// Where they lie on the disk.
    pub disk_offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Whether the place is certain, and no guess.
    pub sure: bool,
    /// What the place rests on.
    pub evidence: String,
}

/// What loose blocks say.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Found {
    /// Placed bytes, by their places on the disk. They overlap neither there nor in the file.
    pub hits: Vec<Hit>,
    /// The size of the disk in bytes by its partition table, and what that rests on.
    pub disk_size: Option<(u64, String)>,
    /// The size of a logical sector by the partition table.
    pub sector: Option<u32>,
    /// What was noteworthy, such as two volumes that claim the same place.
    pub notes: Vec<String>,
}

/// The range that holds a place.
pub(super) fn holding(ranges: &[Range<u64>], at: u64) -> Option<&Range<u64>> {
    let next = ranges.partition_point(|range| range.start <= at);
    ranges.get(next.checked_sub(1)?).filter(|range| at < range.end)
}
