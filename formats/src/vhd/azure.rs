//! What Azure takes.

use avhdx::Geometry;

use super::create::MAX_SIZE;

const MIB: u64 = 1 << 20;
/// The least bytes of a disk that Azure takes in, without the footer.
const LEAST: u64 = 20 * MIB;

/// A rule of Azure for a disk to be taken in, besides those that every fixed VHD image of this crate follows: the format is
/// VHD, the image is fixed, and the file ends with the footer right behind the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AzureRule {
    /// The disk is a whole number of MiB.
    WholeMiB,
    /// The disk has at least 20 MiB.
    Least,
    /// The disk has at most 2,040 GiB, which is what the format allows.
    Most,
    /// Sectors have 512 bytes.
    Sector,
}

impl std::fmt::Display for AzureRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::WholeMiB => "a disk for Azure is a whole number of MiB",
            Self::Least => "a disk for Azure has at least 20 MiB",
            Self::Most => "a VHD image has at most 2,040 GiB",
            Self::Sector => "a disk for Azure has sectors of 512 bytes",
        })
    }
}

/// The size in bytes of an image for Azure of such a disk: its own, or with `pad` the next one that Azure takes, with zeros
/// behind the end of the disk.
///
/// # Errors
/// The rule that the disk does not follow.
pub fn azure_size(geometry: Geometry, pad: bool) -> Result<u64, AzureRule> {
    if geometry.logical_sector != 512 {
        return Err(AzureRule::Sector);
    }
    let size = match pad {
        true => geometry.size.max(LEAST).checked_next_multiple_of(MIB).unwrap_or(u64::MAX),
        false => geometry.size,
    };
    match size {
        _ if size > MAX_SIZE => Err(AzureRule::Most),
        _ if size % MIB != 0 => Err(AzureRule::WholeMiB),
        _ if size < LEAST => Err(AzureRule::Least),
        _ => Ok(size),
    }
}
