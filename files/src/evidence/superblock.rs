//! Superblocks of ext and the descriptors of groups.

use crate::boundary::{u16_at, u32_at};
use crate::checksum::{crc_16, crc_32c};

pub(super) const SUPERBLOCK_LEN: usize = 1024;
const HAS_CHECKSUMS: u32 = 0x400;
const HAS_GROUP_CRC: u32 = 0x10;
const HAS_SEED: u32 = 0x2000;
const HAS_JOURNAL: u32 = 0x4;
const META_GROUPS: u32 = 0x10;
const IS_64_BIT: u32 = 0x80;
const MOST_BLOCK_BITS: u32 = 6;
/// With more groups than in 128 TiB, nothing is placed.
const MOST_GROUPS: u64 = 1 << 20;

/// A superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Super {
    pub(super) uuid: [u8; 16],
    /// The group that it is a copy for.
    pub(super) group: u64,
    pub(super) block: u64,
    pub(super) blocks: u64,
    pub(super) first_block: u64,
    pub(super) of_group: u64,
    pub(super) inodes: u32,
    pub(super) inodes_of_group: u32,
    pub(super) inode_len: u64,
    pub(super) descriptor_len: u64,
    pub(super) meta_from: Option<u64>,
    pub(super) is_64_bit: bool,
    pub(super) has_group_crc: bool,
    pub(super) journal: u32,
    pub(super) seed: Option<u32>,
}

impl Super {
    /// Parses a superblock; nothing if it cannot be one, or if its checksum is wrong.
    pub(super) fn of(raw: &[u8]) -> Option<Self> {
        let [compatible, incompatible, read_only] = [92, 96, 100].map(|at| u32_at(raw, at));
        let bits = u32_at(raw, 24);
        (u16_at(raw, 56) == 0xEF53 && bits <= MOST_BLOCK_BITS).then_some(())?;
        let (block, is_64_bit) = (1024 << bits, incompatible & IS_64_BIT != 0);
        let high = if is_64_bit { u64::from(u32_at(raw, 336)) << 32 } else { 0 };
        let has_checksums = read_only & HAS_CHECKSUMS != 0;
        let seed = match incompatible & HAS_SEED {
            0 => crc_32c(!0, &raw[104..120]),
            _ => u32_at(raw, 624),
        };
        let found = Self {
            uuid: std::array::from_fn(|at| raw[104 + at]),
            group: u16_at(raw, 90).into(),
            block,
            blocks: high | u64::from(u32_at(raw, 4)),
            first_block: u32_at(raw, 20).into(),
            of_group: u32_at(raw, 32).into(),
            inodes: u32_at(raw, 0),
            inodes_of_group: u32_at(raw, 40),
            inode_len: if u32_at(raw, 76) == 0 { 128 } else { u16_at(raw, 88).into() },
            descriptor_len: if is_64_bit { u16_at(raw, 254).into() } else { 32 },
            meta_from: (incompatible & META_GROUPS != 0).then(|| u32_at(raw, 260).into()),
            is_64_bit,
            has_group_crc: read_only & HAS_GROUP_CRC != 0,
            journal: if compatible & HAS_JOURNAL != 0 { u32_at(raw, 224) } else { 0 },
            seed: has_checksums.then_some(seed),
        };
        let is_size = |len: u64, least| len.is_power_of_two() && (least..=block).contains(&len);
        let holds = is_size(found.inode_len, 128)
            && is_size(found.descriptor_len, if is_64_bit { 64 } else { 32 })
            && found.of_group > 0
            && found.of_group <= block * 8 * 1024
            && found.inodes_of_group > 0
            && found.first_block < found.blocks
            && found.blocks < 1 << 44
            && found.groups() <= MOST_GROUPS
            && found.group < found.groups()
            && found.first_block == u64::from(block == 1024)
            && (!has_checksums || crc_32c(!0, &raw[..1020]) == u32_at(raw, 1020));
        holds.then_some(found)
    }

    /// The bytes of the file system.
    pub(super) fn len(&self) -> u64 {
        self.blocks * self.block
    }

    pub(super) fn groups(&self) -> u64 {
        (self.blocks - self.first_block).div_ceil(self.of_group)
    }

    /// Where the superblock of a group lies in the volume.
    pub(super) fn place(&self) -> u64 {
        match self.group {
            0 => 1024,
            group => (self.first_block + group * self.of_group) * self.block,
        }
    }

    /// Whether both are of one file system, which may have grown.
    pub(super) fn is_kin(&self, other: &Self) -> bool {
        let shape = |it: &Self| {
            (it.uuid, it.block, it.first_block, it.of_group, it.inodes_of_group, it.inode_len)
        };
        shape(self) == shape(other) && self.seed == other.seed
    }
}

/// What a group's descriptor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) bitmap: u64,
    pub(super) inode_bitmap: u64,
    pub(super) table: u64,
    pub(super) checksums: [u32; 2],
}

impl Descriptor {
    pub(super) fn places(&self) -> [u64; 3] {
        [self.bitmap, self.inode_bitmap, self.table]
    }
}

impl Super {
    /// Parses the descriptor of a group; nothing if it cannot be one.
    pub(super) fn descriptor(&self, group: u64, raw: &[u8]) -> Option<Descriptor> {
        let len = (self.descriptor_len as usize).min(64);
        let raw = raw.get(..len)?;
        let own = (group as u32).to_le_bytes();
        let found = u16_at(raw, 30);
        let behind = raw.get(32..).unwrap_or(&[]);
        let is_sound = match self.seed {
            Some(seed) => {
                let crc = crc_32c(crc_32c(seed, &own), &raw[..30]);
                crc_32c(crc_32c(crc, &[0; 2]), behind) as u16 == found
            }
            None if self.has_group_crc => {
                let crc = crc_16(crc_16(crc_16(!0, &self.uuid), &own), &raw[..30]);
                crc_16(crc, if self.is_64_bit { behind } else { &[] }) == found
            }
            None => true,
        };
        let place = |low, high| u64::from(u32_at(raw, high)) << 32 | u64::from(u32_at(raw, low));
        let wide = |low, high| u32::from(u16_at(raw, low)) | u32::from(u16_at(raw, high)) << 16;
        let descriptor = Descriptor {
            bitmap: place(0, 32),
            inode_bitmap: place(4, 36),
            table: place(8, 40),
            checksums: [wide(24, 56), wide(26, 58)],
        };
        let Descriptor { bitmap, inode_bitmap, table, .. } = descriptor;
        let is_inside =
            [bitmap, inode_bitmap, table].iter().all(|at| (1..self.blocks).contains(at));
        (is_sound && is_inside).then_some(descriptor)
    }
}
