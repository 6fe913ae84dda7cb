//! Computes the size of a copy.

use std::ops::ControlFlow;

use super::{DiskRuns, Listener, Progress};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BlockLayout, ENTRY_LEN};
use crate::format::metadata;
use crate::types::{KIB, MIB};

/// The allocation unit of most file systems.
const PAGE: u64 = 4 * KIB;
/// Header section, log and metadata region of a new image.
const VHDX_FIXED_PARTS: u64 = 3 * MIB;

/// Counts the bytes that a copy of a disk needs, using only its extents. No payload is read, so that
/// data that happens to be zeros counts as data.
///
/// ```
/// use avhdx::RawDisk;
/// use avhdx::ops::Measure;
/// use avhdx::storage::MemStorage;
///
/// let disk = RawDisk::new(std::sync::Arc::new(MemStorage::new(vec![7; 9000])))?;
/// let needed = Measure::raw().run(&disk)?;
/// assert_eq!((needed.required, needed.fully_allocated), (12288, 12288));
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Measure<'a> {
    target: CopyTarget,
    progress: Listener<'a>,
}

#[derive(Clone, Debug)]
enum CopyTarget {
    Raw,
    Vhdx { block_size: u32, is_fixed: bool },
}

/// The bytes that a copy takes up on its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Measured {
    /// For the disk as it is now; an upper bound.
    pub required: u64,
    /// For the disk when all of it has been written to.
    pub fully_allocated: u64,
}

impl<'a> Measure<'a> {
    /// Measures a raw copy with holes for zeros, in pages of 4 KiB.
    pub fn raw() -> Self {
        Self::of(CopyTarget::Raw)
    }

    /// Measures a dynamic VHDX image with payload blocks of `block_size` bytes.
    pub fn vhdx(block_size: u32) -> Self {
        Self::of(CopyTarget::Vhdx { block_size, is_fixed: false })
    }

    /// Measures a fixed VHDX image with payload blocks of `block_size` bytes.
    pub fn vhdx_fixed(block_size: u32) -> Self {
        Self::of(CopyTarget::Vhdx { block_size, is_fixed: true })
    }

    fn of(target: CopyTarget) -> Self {
        Self { target, progress: Listener::default() }
    }

    /// Calls `on` while the operation runs. A break stops it with [`ErrorKind::Cancelled`].
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
        self
    }

    /// Measures `disk`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the block size is not one that the format allows;
    /// [`ErrorKind::Cancelled`]; as for [`Disk::next_extent`].
    pub fn run(self, disk: &dyn Disk) -> Result<Measured> {
        let geometry = disk.geometry();
        match self.target {
            CopyTarget::Raw => Ok(Measured {
                required: self.units_with_data(disk, PAGE)? * PAGE,
                fully_allocated: geometry.size.next_multiple_of(PAGE),
            }),
            CopyTarget::Vhdx { block_size, is_fixed } => {
                let block = u64::from(block_size);
                if !metadata::is_block_size(block_size) {
                    let message = "the format does not allow this block size";
                    return Err(Error::new(ErrorKind::InvalidInput, "measure.block-size", message)
                        .with_section("2.6.2.1")
                        .with_found(block_size)
                        .with_expected(metadata::BLOCK_SIZES));
                }
                let layout = BlockLayout::new(block_size, geometry.logical_sector, geometry.size);
                let table = (layout.entries_reserved() * ENTRY_LEN).max(1).next_multiple_of(MIB);
                let image = |blocks: u64| VHDX_FIXED_PARTS + table + blocks * block;
                let all = image(layout.blocks());
                let used = match is_fixed {
                    true => {
                        self.progress.report(geometry.size, geometry.size)?;
                        all
                    }
                    false => image(self.units_with_data(disk, block)?),
                };
                Ok(Measured { required: used, fully_allocated: all })
            }
        }
    }

    /// Counts the units of `unit` bytes that hold data.
    fn units_with_data(&self, disk: &dyn Disk, unit: u64) -> Result<u64> {
        let size = disk.geometry().size;
        let mut runs = DiskRuns::new(disk);
        let (mut at, mut units, mut counted) = (0, 0, 0);
        self.progress.report(at, size)?;
        while at < size {
            let run = runs.at(at)?;
            if !run.is_zero() {
                // Two runs may share a unit.
                let first = (at / unit).max(counted);
                counted = run.end.div_ceil(unit);
                units += counted.saturating_sub(first);
            }
            at = run.end;
            self.progress.report(at, size)?;
        }
        Ok(units)
    }
}
