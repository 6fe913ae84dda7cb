//! What images take, without making them.

use std::ops::Range;

use avhdx::{Disk, ErrorKind, Extent, Result, Source};

use super::create::{CreateOptions, SECTOR, counts};

/// The unit of a log, whose changes lie at no place in a file.
const LOG_UNIT: u64 = 4096;

/// What an image takes, by the extents of its disk. Made by [`measure`] and [`Measurer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measured {
    /// The length of the file now, in bytes.
    pub required: u64,
    /// The length of the file once every cluster has space, in bytes.
    pub fully_allocated: u64,
    /// The clusters that have space now.
    pub clusters: u64,
}

/// Computes what an image takes from its parts, each named once, in the order of the disk.
#[derive(Clone, Debug)]
pub struct Measurer {
    size: u64,
    cluster: u64,
    /// The second tables of the whole disk.
    tables: u64,
    /// Clusters with space, and second tables.
    used: u64,
    used_tables: u64,
    /// The first cluster, and the first table, that no part has been in.
    next: u64,
    next_table: u64,
}

/// Computes what an image of this disk takes without a backing file. `cluster_size` is in bytes.
///
/// # Errors
/// As for [`CreateOptions::create`]; and those of the disk.
pub fn measure(disk: &dyn Disk, cluster_size: u32) -> Result<Measured> {
    let size = disk.geometry().size;
    let mut measurer = Measurer::new(size.next_multiple_of(SECTOR), cluster_size)?;
    let mut at = 0;
    while at < size {
        let end = match disk.next_extent(at..size) {
            Ok(Some(Extent { range, source: Source::Zero { .. } })) => range.end,
            Ok(Some(Extent { range, .. })) => {
                let end = range.end;
                measurer.data(range);
                end
            }
            Ok(None) => break,
            // What waits in a log is data.
            Err(error) if error.kind() == ErrorKind::LogOverlay => {
                let end = ((at / LOG_UNIT + 1) * LOG_UNIT).min(size);
                measurer.data(at..end);
                end
            }
            Err(error) => return Err(error),
        };
        at = end;
    }
    Ok(measurer.measured())
}

impl Measurer {
    /// Begins with an image of a disk of zeros, or of what is below. Sizes are in bytes.
    ///
    /// # Errors
    /// As for [`CreateOptions::check`].
    pub fn new(size: u64, cluster_size: u32) -> Result<Self> {
        let tables = CreateOptions::new(size).cluster_size(cluster_size).entries()?;
        let cluster = u64::from(cluster_size);
        Ok(Self { size, cluster, tables, used: 0, used_tables: 0, next: 0, next_table: 0 })
    }

    /// Adds data: its clusters have space.
    pub fn data(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (first, end) =
            ((range.start / self.cluster).max(self.next), range.end.div_ceil(self.cluster));
        self.used += end.saturating_sub(first);
        self.next = self.next.max(end);
        self.add_tables(range);
    }

    /// Adds zeros over something else: a cluster of which they are a part has space, the others have none.
    pub fn zeros(&mut self, range: Range<u64>) {
        let Range { start, end } = range;
        let first = start.next_multiple_of(self.cluster);
        let last = if end == self.size { end } else { end / self.cluster * self.cluster };
        self.data(start..first.min(end));
        self.data(last.max(start)..end);
        self.add_tables(range);
    }

    /// What the image takes with the parts that were added.
    pub fn measured(&self) -> Measured {
        let fixed = 1 + (self.tables * 8).div_ceil(self.cluster);
        let len = |used: u64| {
            let (table, blocks) = counts(used, self.cluster);
            (used + table + blocks) * self.cluster
        };
        Measured {
            required: len(fixed + self.used_tables + self.used),
            fully_allocated: len(fixed + self.tables + self.size.div_ceil(self.cluster)),
            clusters: self.used,
        }
    }

    fn add_tables(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let of_one = self.cluster * (self.cluster / 8);
        let (first, end) =
            ((range.start / of_one).max(self.next_table), range.end.div_ceil(of_one));
        self.used_tables += end.saturating_sub(first);
        self.next_table = self.next_table.max(end);
    }
}
