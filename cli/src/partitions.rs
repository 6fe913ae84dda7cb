//! The tables of partitions on a disk.

use avhdx::{DiffChain, Disk};

use crate::failure::Failure;

const GPT_SIGNATURE: &[u8; 8] = b"EFI PART";

/// Whether the disk has a copy of a GPT, in the second sector or in the last one.
pub(crate) fn has_gpt(disk: &DiffChain) -> Result<bool, Failure> {
    let geometry = disk.geometry();
    let sector = u64::from(geometry.logical_sector);
    for at in [Some(sector), geometry.size.checked_sub(sector)].into_iter().flatten() {
        let mut signature = [0; 8];
        if at + sector <= geometry.size {
            disk.read_at(&mut signature, at)?;
        }
        if signature == *GPT_SIGNATURE {
            return Ok(true);
        }
    }
    Ok(false)
}
