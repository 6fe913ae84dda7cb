//! Which blocks of a volume of ext nothing uses.

use std::ops::Range;

use super::shape::Shape;
use crate::bitmap::FreeRuns;
use crate::boundary::{u16_at, u32_at};
use crate::error::{Error, Result};

/// Features: descriptors have checksums, and with them flags; bits stand for clusters of blocks; two copies of the
/// superblock in groups of their own.
const HAS_FLAGS: u32 = 0x10 | 0x400;
const BIG_CLUSTERS: u32 = 0x200;
const SPARSE_2: u32 = 0x200;
/// The flags of a group: no inode was ever in use, the bitmap of blocks was never written.
pub(super) const NO_INODES: u16 = 1;
pub(super) const NO_BITMAP: u16 = 2;

/// What the superblock says of space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub(super) has_flags: bool,
    /// Blocks for each bit.
    pub(super) cluster: u64,
    /// Blocks behind the descriptors that are kept for more of them.
    reserved: u64,
    /// The only groups besides the first that begin with a copy of the superblock, if the superblock says which.
    copies: Option<[u64; 2]>,
}

impl Space {
    pub(super) fn of(raw: &[u8]) -> Result<Self> {
        let read_only = u32_at(raw, 100);
        let bits = match read_only & BIG_CLUSTERS {
            0 => 0,
            _ => u32_at(raw, 28).wrapping_sub(u32_at(raw, 24)),
        };
        if bits > 20 {
            let message = format!("clusters of 2^{bits} blocks");
            return Err(Error::damaged("ext.superblock", message));
        }
        Ok(Self {
            has_flags: read_only & HAS_FLAGS != 0,
            cluster: 1 << bits,
            reserved: u16_at(raw, 206).into(),
            copies: (u32_at(raw, 92) & SPARSE_2 != 0)
                .then(|| [588, 592].map(|at| u32_at(raw, at).into())),
        })
    }

    /// Refuses groups that have more bits than a block.
    pub(super) fn check(&self, shape: &Shape) -> Result<()> {
        if shape.of_group.div_ceil(self.cluster) <= shape.block * 8 {
            return Ok(());
        }
        let message = format!("a group of {} blocks in one block of bits", shape.of_group);
        Err(Error::damaged("ext.superblock", message))
    }

    /// Passes on what nothing uses, in bytes.
    pub(super) fn free(&self, shape: &Shape, each: &mut dyn FnMut(Range<u64>)) -> Result<()> {
        let Self { cluster, .. } = *self;
        self.check(shape)?;
        let groups = shape.groups();
        let mut kept = None;
        let start = shape.first_block * shape.block;
        let mut runs = FreeRuns::new(start, cluster * shape.block, each);
        for group in 0..groups {
            let first = group * shape.of_group;
            let blocks = shape.of_group.min(shape.blocks - shape.first_block - first);
            let descriptor = shape.descriptor(group)?;
            let bits = blocks.div_ceil(cluster);
            let first_bit = first / cluster;
            if self.has_flags && u16_at(&descriptor, 18) & NO_BITMAP != 0 {
                let kept = match &kept {
                    Some(kept) => kept,
                    None => kept.insert(self.kept(shape, groups)?),
                };
                let bitmap = self.made(shape, group, kept, bits);
                runs.bits(first_bit, &bitmap, bits);
                continue;
            }
            let mut bitmap = vec![0; bits.div_ceil(8) as usize];
            shape.read(&mut bitmap, place(&descriptor, 0, 32), 0)?;
            runs.bits(first_bit, &bitmap, bits);
        }
        runs.end();
        Ok(())
    }

    /// How many inodes of a group, from the first one on, were ever in use, by its descriptor.
    pub(super) fn inodes(&self, shape: &Shape, descriptor: &[u8]) -> u32 {
        let unused = u32::from(u16_at(descriptor, 28)) | u32::from(u16_at(descriptor, 50)) << 16;
        match () {
            () if !self.has_flags => shape.inodes_of_group,
            () if u16_at(descriptor, 18) & NO_INODES != 0 => 0,
            () => shape.inodes_of_group.saturating_sub(unused),
        }
    }

    /// The blocks of the bitmaps and of the tables of inodes of all groups, joined, in order.
    pub(super) fn kept(&self, shape: &Shape, groups: u64) -> Result<Vec<Range<u64>>> {
        let inodes = u64::from(shape.inodes_of_group) * shape.inode_len as u64;
        let table = inodes.div_ceil(shape.block);
        let mut all = Vec::new();
        for group in 0..groups {
            let descriptor = shape.descriptor(group)?;
            for (low, high, len) in [(0, 32, 1), (4, 36, 1), (8, 40, table)] {
                let at = place(&descriptor, low, high);
                all.push(at..at.saturating_add(len));
            }
        }
        all.sort_unstable_by_key(|range| range.start);
        all.dedup_by(|next, last| {
            let is_joined = next.start <= last.end;
            if is_joined {
                last.end = last.end.max(next.end);
            }
            is_joined
        });
        Ok(all)
    }

    /// The bitmap of a group that has none: only what the file system keeps itself is in use.
    pub(super) fn made(
        &self,
        shape: &Shape,
        group: u64,
        kept: &[Range<u64>],
        bits: u64,
    ) -> Vec<u8> {
        let mut bitmap = vec![0_u8; bits.div_ceil(8) as usize];
        let first = shape.first_block + group * shape.of_group;
        let mut take = |blocks: Range<u64>| {
            let start = blocks.start.max(first).saturating_sub(first) / self.cluster;
            let end = blocks.end.saturating_sub(first).div_ceil(self.cluster).min(bits);
            (start..end).for_each(|bit| bitmap[(bit / 8) as usize] |= 1 << (bit % 8));
        };
        let per_block = shape.block / shape.descriptor_len;
        let descriptors = match shape.meta_from {
            Some(from) => from,
            None => shape.groups().div_ceil(per_block) + self.reserved,
        };
        let has_copy = match self.copies {
            Some(copies) => group == 0 || copies.contains(&group),
            None => shape.has_superblock(group),
        };
        let head = match shape.meta_from {
            // Of a group of groups, the first two and the last one have its descriptors.
            Some(from) if group / per_block >= from => {
                let has_descriptors = [0, 1, per_block - 1].contains(&(group % per_block));
                u64::from(has_copy) + u64::from(has_descriptors)
            }
            _ if has_copy => 1 + descriptors,
            _ => 0,
        };
        // With clusters of blocks of 1 KiB, the first group begins a block before the superblock.
        let before = if group == 0 { shape.superblock().saturating_sub(first) } else { 0 };
        take(first..first + before + head);
        let from = kept.partition_point(|range| range.end <= first);
        let of_group = first + shape.of_group;
        kept[from..].iter().take_while(|range| range.start < of_group).for_each(|range| {
            take(range.clone());
        });
        bitmap
    }
}

/// A number of a block that is in two parts.
pub(super) fn place(descriptor: &[u8], low: usize, high: usize) -> u64 {
    u64::from(u32_at(descriptor, high)) << 32 | u64::from(u32_at(descriptor, low))
}

pub(super) fn checksum(what: &str) -> Error {
    Error::damaged("ext.checksum", format!("the checksum of {what} does not match"))
}
