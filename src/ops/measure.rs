//! How many bytes would a copy need?

use super::Runs;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BlockLayout, ENTRY_LEN};
use crate::types::{KIB, MIB};

/// The unit in which file systems hold data.
const PAGE: u64 = 4 * KIB;
/// Header section, log and metadata region of a new image.
const VHDX_FIXED_PARTS: u64 = 3 * MIB;

/// Counts the bytes that a copy of a disk would need, from its maps alone: no payload is read, so that
/// data which happens to be zeros counts as data.
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
pub struct Measure {
    target: Target,
}

#[derive(Clone, Debug)]
enum Target {
    Raw,
    Vhdx { block_size: u32, is_fixed: bool },
}

/// Bytes that a copy needs on its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Needed {
    /// For the disk as it is now, at most.
    pub required: u64,
    /// For the disk when every byte of it was written to.
    pub fully_allocated: u64,
}

impl Measure {
    /// A raw copy with holes for zeros, in pages of 4 KiB.
    pub fn raw() -> Self {
        Self { target: Target::Raw }
    }

    /// A dynamic VHDX image with blocks of `block_size` bytes.
    pub fn vhdx(block_size: u32) -> Self {
        Self { target: Target::Vhdx { block_size, is_fixed: false } }
    }

    /// A fixed VHDX image with blocks of `block_size` bytes.
    pub fn vhdx_fixed(block_size: u32) -> Self {
        Self { target: Target::Vhdx { block_size, is_fixed: true } }
    }

    /// Measures `disk`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the block size is none that the format has; as
    /// [`Disk::next_extent`].
    pub fn run(self, disk: &dyn Disk) -> Result<Needed> {
        let geometry = disk.geometry();
        match self.target {
            Target::Raw => Ok(Needed {
                required: units_with_data(disk, PAGE)? * PAGE,
                fully_allocated: geometry.size.next_multiple_of(PAGE),
            }),
            Target::Vhdx { block_size, is_fixed } => {
                let block = u64::from(block_size);
                if !block.is_power_of_two() || !(MIB..=256 * MIB).contains(&block) {
                    let message = "no block size of the format";
                    return Err(Error::new(ErrorKind::InvalidInput, "measure.block-size", message)
                        .with_section("2.6.2.1")
                        .with_found(block_size)
                        .with_expected("a power of two from 1 MiB to 256 MiB"));
                }
                let layout = BlockLayout::new(block_size, geometry.logical_sector, geometry.size);
                let table = (layout.entries_reserved() * ENTRY_LEN).max(1).next_multiple_of(MIB);
                let image = |blocks: u64| VHDX_FIXED_PARTS + table + blocks * block;
                let all = image(layout.blocks());
                let used = if is_fixed { all } else { image(units_with_data(disk, block)?) };
                Ok(Needed { required: used, fully_allocated: all })
            }
        }
    }
}

/// How many units of that length hold a byte of data.
fn units_with_data(disk: &dyn Disk, unit: u64) -> Result<u64> {
    let size = disk.geometry().size;
    let mut runs = Runs::new(disk);
    let (mut at, mut units, mut counted) = (0, 0, 0);
    while at < size {
        let run = runs.at(at)?;
        if !run.is_zero() {
            // Two runs may share a unit.
            let first = (at / unit).max(counted);
            counted = run.end.div_ceil(unit);
            units += counted.saturating_sub(first);
        }
        at = run.end;
    }
    Ok(units)
}
