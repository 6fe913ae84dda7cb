//! What a volume holds, by its first bytes.

use std::fmt;
use std::ops::Range;

use crate::boundary::{Bytes, number, u16_at};
use crate::error::Result;

/// What a volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Content {
    /// ext2, ext3 or ext4.
    Ext,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// NTFS.
    Ntfs,
    /// A kind that is recognized by name and not read.
    Refused(&'static str),
    /// Zeros, as far as any known kind would show.
    Empty,
    /// Something else.
    Unknown,
}

impl Content {
    /// Whether this crate reads it.
    pub fn is_readable(self) -> bool {
        matches!(self, Self::Ext | Self::Fat | Self::Ntfs)
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext => "ext",
            Self::Fat => "FAT",
            Self::Ntfs => "NTFS",
            Self::Refused(name) => name,
            Self::Empty => "empty",
            Self::Unknown => "unknown",
        })
    }
}

/// Bytes at a place by which a kind is recognized, those that tell the most first.
const SIGNS: &[(u64, &[u8], &str)] = &[
    (3, b"-FVE-FS-", "BitLocker"),
    // The volume id of BitLocker To Go, whose first sector looks like FAT.
    (0x1A8, &BITLOCKER_TO_GO, "BitLocker"),
    (3, b"EXFAT   ", "exFAT"),
    (3, b"ReFS\0\0\0\0", "ReFS"),
    (0, b"LUKS\xBA\xBE", "LUKS"),
    (0, b"LABELONE", "LVM"),
    (512, b"LABELONE", "LVM"),
    (1024, b"LABELONE", "LVM"),
    (1536, b"LABELONE", "LVM"),
    (0, b"XFSB", "XFS"),
    (32, b"NXSB", "APFS"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (1024, b"H+\0\x04", "HFS+"),
    (1024, b"HX\0\x05", "HFS+"),
    (1024, b"\x10\x20\xF5\xF2", "F2FS"),
    (0, b"\xFC\x4E\x2B\xA9", "Linux RAID"),
    (4096, b"\xFC\x4E\x2B\xA9", "Linux RAID"),
    (4096 + 24, &BCACHE, "bcache"),
    (4096 - 10, b"SWAPSPACE2", "swap"),
    (8192 - 10, b"SWAPSPACE2", "swap"),
    (16384 - 10, b"SWAPSPACE2", "swap"),
    (65536 - 10, b"SWAPSPACE2", "swap"),
    (0, b"SPACEDB ", "Storage Spaces"),
    (4096, b"SPACEDB ", "Storage Spaces"),
    (0, b"PRIVHEAD", "LDM"),
];

const BITLOCKER_TO_GO: [u8; 16] = [
    0x3B, 0xD6, 0x67, 0x49, 0x29, 0x2E, 0xD8, 0x4A, 0x83, 0x99, 0xF6, 0xA3, 0x39, 0xE3, 0xD0, 0x01,
];

const BCACHE: [u8; 16] = [
    0xC6, 0x85, 0x73, 0xF6, 0x4E, 0x1A, 0x45, 0xCA, 0x82, 0x65, 0xF5, 0x7F, 0x48, 0xBA, 0x6D, 0x81,
];

/// How much of a volume is examined.
const EXAMINED: u64 = 0x1_0048;

/// Where ZFS keeps its uberblocks, of 1 KiB or more each, and what they begin with in the order of the host that wrote
/// them. It leaves alone what the first KiB of its volume held before.
const UBERBLOCKS: Range<u64> = 128 << 10..256 << 10;
const UBERBLOCK: u64 = 0x00BA_B10C;

/// Recognizes what the volume holds. Only the disk can fail.
pub(crate) fn recognize(bytes: &Bytes) -> Result<Content> {
    let first = bytes.read(0, bytes.len().min(EXAMINED) as usize)?;
    let has = |at: u64, sign: &[u8]| has(&first, at, sign);
    if let Some((.., name)) = SIGNS.iter().find(|(at, sign, _)| has(*at, sign)) {
        return Ok(Content::Refused(name));
    }
    let content = match () {
        () if has(3, b"NTFS    ") => Content::Ntfs,
        () if has(1024 + 56, b"\x53\xEF") => Content::Ext,
        () if is_fat(&first) => Content::Fat,
        () if first.iter().all(|byte| *byte == 0) => Content::Empty,
        () => Content::Unknown,
    };
    // Behind a table of partitions, they may be what a disk held before it was partitioned.
    let is_table = content == Content::Unknown && has(510, b"\x55\xAA");
    Ok(if !is_table && has_uberblocks(bytes)? { Content::Refused("ZFS") } else { content })
}

fn has_uberblocks(bytes: &Bytes) -> Result<bool> {
    let Range { start, end } = UBERBLOCKS;
    if bytes.len() < end {
        return Ok(false);
    }
    let signs = [UBERBLOCK.to_le_bytes(), UBERBLOCK.to_be_bytes()];
    for at in (start..end).step_by(1 << 10) {
        let mut sign = [0; 8];
        bytes.read_at(&mut sign, at)?;
        if signs.contains(&sign) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The kinds that are read and that a volume looks like: it may hold the beginning of one that was there before.
pub(crate) fn kinds(bytes: &Bytes) -> Result<Vec<Content>> {
    let first = bytes.read(0, bytes.len().min(EXAMINED) as usize)?;
    let kinds = [
        (has(&first, 3, b"NTFS    "), Content::Ntfs),
        (has(&first, 1024 + 56, b"\x53\xEF"), Content::Ext),
        (is_fat(&first), Content::Fat),
    ];
    Ok(kinds.into_iter().filter_map(|(is_it, kind)| is_it.then_some(kind)).collect())
}

fn has(first: &[u8], at: u64, sign: &[u8]) -> bool {
    first.get(at as usize..).is_some_and(|rest| rest.starts_with(sign))
}

/// Whether the first sector describes a FAT file system. Its signature alone is that of an MBR too.
pub(crate) fn is_fat(first: &[u8]) -> bool {
    let sector = u16_at(first, 11);
    let cluster = number(first, 13, 1);
    let is_jump = matches!(first.first(), Some(0xEB | 0xE9));
    is_jump
        && sector.is_power_of_two()
        && (512..=4096).contains(&sector)
        && cluster.is_power_of_two()
        && u16_at(first, 14) > 0
        && (1..=4).contains(&number(first, 16, 1))
        && number(first, 21, 1) >= 0xF0
}
