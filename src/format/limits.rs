//! What a file of the format can need at most.

use super::metadata::MAX_VIRTUAL_SIZE;
use super::region::MAX_ENTRIES;
use crate::types::MIB;

/// The length of a file that holds the largest disk, 64 TiB, in full: its payload, 1 MiB of sector bitmap for each
/// 4 GiB of payload, the maximum number of regions and the log, each below 4 GiB, and the header section.
pub(crate) const MOST_NEEDED: u64 = MAX_VIRTUAL_SIZE
    + MAX_VIRTUAL_SIZE / (4 << 30) * MIB
    + (MAX_ENTRIES as u64 + 1) * (4 << 30)
    + MIB;
