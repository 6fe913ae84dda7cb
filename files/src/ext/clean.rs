//! Whether it is certain which blocks nothing uses.

use std::collections::HashMap;
use std::ops::Range;

use super::counts::Counts;
use super::inode::{Inode, Used};
use super::journal;
use super::shape::{HAS_JOURNAL, IS_64_BIT, NEEDS_RECOVERY, Shape};
use super::space::{NO_BITMAP, Space, checksum, place};
use crate::boundary::{u16_at, u32_at, u64_at};
use crate::checksum::{crc_16, crc_32c};
use crate::error::{Error, Result};

const IS_VALID: u16 = 1;
const HAS_ERRORS: u16 = 2;
const HAS_ORPHANS: u16 = 4;
/// Features without which a writer does harm: those below, copies of the superblock in some groups only, large files,
/// large inodes, large folders, quotas, projects, verity, and being read-only.
const WRITABLE: u32 = 0x1
    | 0x2
    | 0x8
    | HAS_GROUP_CRC
    | 0x20
    | 0x40
    | 0x100
    | 0x200
    | HAS_CHECKSUMS
    | 0x1000
    | 0x2000
    | 0x8000
    | ORPHANS_PRESENT;
const HAS_GROUP_CRC: u32 = 0x10;
const HAS_CHECKSUMS: u32 = 0x400;
const ORPHANS_PRESENT: u32 = 0x1_0000;
const HAS_DOUBLE_MOUNT_BLOCK: u32 = 0x100;
const HAS_SEED: u32 = 0x2000;
/// What the block against double mounts says of a file system that nobody has mounted.
const NOT_MOUNTED: u32 = 0xFF4D_4D50;

/// Inodes up to this one are the file system's own.
const LAST_RESERVED: u32 = 10;
/// Bytes of inodes that are read at once.
const PIECE: usize = 64 << 10;
/// How many bitmaps are kept.
const MOST_BITMAPS: usize = 64;

/// What the superblock says.
pub(super) struct Clean {
    raw: Vec<u8>,
    /// What checksums begin with, if there are any.
    seed: Option<u32>,
}

impl Clean {
    pub(super) fn of(raw: &[u8]) -> Self {
        let has_checksums = u32_at(raw, 100) & HAS_CHECKSUMS != 0;
        let seed = match u32_at(raw, 96) & HAS_SEED {
            0 => crc_32c(!0, &raw[104..120]),
            _ => u32_at(raw, 624),
        };
        Self { raw: raw.to_vec(), seed: has_checksums.then_some(seed) }
    }

    pub(super) fn check_closed(&self, shape: &Shape) -> Result<()> {
        let raw = &self.raw[..];
        let [compatible, incompatible, read_only] = [92, 96, 100].map(|at| u32_at(raw, at));
        let state = u16_at(raw, 58);
        if read_only & !WRITABLE != 0 {
            let message =
                format!("unknown features {:#x} may use free space", read_only & !WRITABLE);
            return Err(Error::unclean("unclean.ext-features", message));
        }
        if incompatible & NEEDS_RECOVERY != 0 {
            let message = "the file system was not closed cleanly: changes wait in its journal";
            return Err(Error::unclean("unclean.ext", message));
        }
        if state & HAS_ERRORS != 0 {
            let message = "the file system has errors, by its superblock";
            return Err(Error::unclean("unclean.ext-errors", message));
        }
        if state & IS_VALID == 0 || state & HAS_ORPHANS != 0 {
            let message = "the file system is marked as in use in its superblock";
            return Err(Error::unclean("unclean.ext", message));
        }
        if u32_at(raw, 232) != 0 || read_only & ORPHANS_PRESENT != 0 {
            let message = "the file system has files to remove that were open (orphans)";
            return Err(Error::unclean("unclean.ext-orphans", message));
        }
        let number = u32_at(raw, 224);
        if compatible & HAS_JOURNAL != 0 && number != 0 {
            journal::check_empty(shape, Inode::read(shape, number)?)?;
        }
        if incompatible & HAS_DOUBLE_MOUNT_BLOCK != 0 {
            let mut block = [0; 8];
            shape.read(&mut block, u64_at(raw, 360), 0)?;
            if u32_at(&block, 4) != NOT_MOUNTED {
                let message = "the file system is mounted somewhere, by its block against that";
                return Err(Error::unclean("unclean.ext", message));
            }
        }
        Ok(())
    }

    /// Refuses a file system of which a block of any file, or one that it keeps itself, is free by its bitmaps.
    pub(super) fn check_blocks(&self, shape: &Shape, space: &Space) -> Result<()> {
        if self.seed.is_some() && crc_32c(!0, &self.raw[..1020]) != u32_at(&self.raw, 1020) {
            return Err(checksum("the superblock"));
        }
        space.check(shape)?;
        let groups = shape.groups();
        let kept = space.kept(shape, groups)?;
        let mut maps = Bitmaps { clean: self, shape, space, kept: &kept, held: HashMap::new() };
        let mut counts = Counts::new(&self.raw, self.seed);
        for group in 0..groups {
            let bits = maps.bits(group);
            let own = space.made(shape, group, &kept, bits);
            let bitmap = maps.bitmap(group)?;
            if own.iter().zip(bitmap).any(|(own, used)| own & !used != 0) {
                let message = format!(
                    "the bitmap of group {group} calls blocks free that hold bitmaps, inodes or descriptors"
                );
                return Err(Error::damaged("ext.bitmap", message));
            }
            counts.add(shape, space, group, (bitmap, bits))?;
        }
        for range in &kept {
            maps.check(range.clone(), "what the file system keeps itself")?;
        }
        if u32_at(&self.raw, 96) & HAS_DOUBLE_MOUNT_BLOCK != 0 {
            let block = u64_at(&self.raw, 360);
            maps.check(block..block.saturating_add(1), "the block against double mounts")?;
        }
        for group in 0..groups {
            self.check_inodes(shape, group, &mut maps)?;
        }
        // Last, as a file that has a free block says more.
        counts.check(space)
    }

    fn check_inodes(&self, shape: &Shape, group: u64, maps: &mut Bitmaps<'_>) -> Result<()> {
        let descriptor = shape.descriptor(group)?;
        let count = maps.space.inodes(shape, &descriptor);
        let table = place(&descriptor, 8, 40);
        let len = shape.inode_len;
        let mut piece = vec![0; PIECE.max(len)];
        let per_piece = (piece.len() / len) as u32;
        for first in (0..count).step_by(per_piece as usize) {
            let piece = &mut piece[..(count - first).min(per_piece) as usize * len];
            let at = u64::from(first) * len as u64;
            shape.read(piece, table.saturating_add(at / shape.block), at % shape.block)?;
            for (raw, index) in piece.chunks_exact(len).zip(first..) {
                let number = group * u64::from(shape.inodes_of_group) + u64::from(index) + 1;
                let number = u32::try_from(number).unwrap_or(u32::MAX);
                let is_used = u16_at(raw, 26) > 0 && u16_at(raw, 0) != 0;
                let is_own = number <= LAST_RESERVED && raw[40..100].iter().any(|byte| *byte != 0);
                if !is_used && !is_own {
                    continue;
                }
                if self.seed.is_some_and(|seed| !is_inode_sound(seed, number, raw)) {
                    return Err(checksum(&format!("inode {number}")));
                }
                let inode = Inode::of(raw, number);
                inode.each_used(shape, &mut |Used { blocks }| {
                    maps.check(blocks, &format!("inode {number}"))
                })?;
            }
        }
        Ok(())
    }

    /// Whether the checksum of a group's descriptor is the one that it should have, if it has any.
    fn is_descriptor_sound(&self, shape: &Shape, group: u64, descriptor: &[u8]) -> bool {
        let len = (shape.descriptor_len as usize).min(descriptor.len());
        let group = (group as u32).to_le_bytes();
        let found = u16_at(descriptor, 30);
        if let Some(seed) = self.seed {
            let crc = crc_32c(crc_32c(seed, &group), &descriptor[..30]);
            return crc_32c(crc_32c(crc, &[0; 2]), &descriptor[32..len]) as u16 == found;
        }
        if u32_at(&self.raw, 100) & HAS_GROUP_CRC == 0 {
            return true;
        }
        let crc = crc_16(crc_16(!0, &self.raw[104..120]), &group);
        let crc = crc_16(crc, &descriptor[..30]);
        let more = if u32_at(&self.raw, 96) & IS_64_BIT != 0 { &descriptor[32..len] } else { &[] };
        crc_16(crc, more) == found
    }
}

fn is_inode_sound(seed: u32, number: u32, raw: &[u8]) -> bool {
    let crc = crc_32c(crc_32c(seed, &number.to_le_bytes()), &raw[100..104]);
    let mut bytes = raw.to_vec();
    let low = u16_at(raw, 124);
    bytes[124..126].fill(0);
    // The upper half, where the inode is long enough.
    let has_high = raw.len() > 128 && u16_at(raw, 128) >= 4;
    if has_high {
        bytes[130..132].fill(0);
    }
    let crc = crc_32c(crc, &bytes);
    crc as u16 == low && (!has_high || (crc >> 16) as u16 == u16_at(raw, 130))
}

/// The bitmaps of blocks, a few of which are kept.
struct Bitmaps<'a> {
    clean: &'a Clean,
    shape: &'a Shape,
    space: &'a Space,
    kept: &'a [Range<u64>],
    held: HashMap<u64, Vec<u8>>,
}

impl Bitmaps<'_> {
    /// How many bits a group has.
    fn bits(&self, group: u64) -> u64 {
        let shape = self.shape;
        let left = shape.blocks - shape.first_block - group * shape.of_group;
        shape.of_group.min(left).div_ceil(self.space.cluster)
    }

    fn bitmap(&mut self, group: u64) -> Result<&[u8]> {
        if !self.held.contains_key(&group) {
            if self.held.len() == MOST_BITMAPS {
                self.held.clear();
            }
            let read = self.read(group)?;
            self.held.insert(group, read);
        }
        Ok(&self.held[&group])
    }

    fn read(&self, group: u64) -> Result<Vec<u8>> {
        let Self { clean, shape, space, .. } = self;
        let descriptor = shape.descriptor(group)?;
        if shape.descriptor_len > descriptor.len() as u64 {
            let message = format!("descriptors of groups have {} bytes", shape.descriptor_len);
            return Err(Error::unsupported("ext.feature", message));
        }
        if !clean.is_descriptor_sound(shape, group, &descriptor) {
            return Err(checksum(&format!("the descriptor of group {group}")));
        }
        let bits = self.bits(group);
        if space.has_flags && u16_at(&descriptor, 18) & NO_BITMAP != 0 {
            return Ok(space.made(shape, group, self.kept, bits));
        }
        // The checksum is one of a whole group, even of the last one.
        let whole = shape.of_group.div_ceil(space.cluster).div_ceil(8);
        let mut bitmap = vec![0; whole.min(shape.block) as usize];
        shape.read(&mut bitmap, place(&descriptor, 0, 32), 0)?;
        if let Some(seed) = clean.seed {
            let crc = crc_32c(seed, &bitmap);
            let has_high = shape.descriptor_len >= 58;
            let is_sound = crc as u16 == u16_at(&descriptor, 24)
                && (!has_high || (crc >> 16) as u16 == u16_at(&descriptor, 56));
            if !is_sound {
                return Err(checksum(&format!("the bitmap of group {group}")));
            }
        }
        bitmap.truncate(bits.div_ceil(8) as usize);
        Ok(bitmap)
    }

    /// Refuses blocks of which the bitmaps call any free.
    fn check(&mut self, blocks: Range<u64>, of: &str) -> Result<()> {
        let Shape { first_block, of_group, blocks: end, .. } = *self.shape;
        let cluster = self.space.cluster;
        if blocks.start >= blocks.end || blocks.end > end {
            let Range { start, end: to } = blocks;
            let message = format!("{of} has blocks from {start} to {to}, and there are {end}");
            return Err(Error::damaged("ext.block", message));
        }
        // The block before the first group has the boot sector and no bit.
        let mut at = blocks.start.max(first_block);
        while at < blocks.end {
            let group = (at - first_block) / of_group;
            let first = first_block + group * of_group;
            let until = blocks.end.min(first + of_group);
            let bitmap = self.bitmap(group)?;
            let mut bits = (at - first) / cluster..(until - first).div_ceil(cluster);
            if let Some(bit) = bits.find(|bit| bitmap[(bit / 8) as usize] >> (bit % 8) & 1 == 0) {
                let block = first + bit * cluster;
                let message = format!("{of} has block {block}, which the bitmap calls free");
                return Err(Error::damaged("ext.bitmap", message));
            }
            at = until;
        }
        Ok(())
    }
}
