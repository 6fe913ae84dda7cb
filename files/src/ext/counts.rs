//! Whether the numbers of what is free match the bitmaps and each other. A group's descriptor that is older than the rest,
//! as after a write that was lost, has a sound checksum and calls inodes and bitmaps unused that are in use.

use super::shape::{IS_64_BIT, Shape};
use super::space::{NO_INODES, Space, checksum, place};
use crate::boundary::{u16_at, u32_at};
use crate::checksum::crc_32c;
use crate::error::{Error, Result};

/// What groups call free, and the first number that does not match.
pub(super) struct Counts<'a> {
    superblock: &'a [u8],
    seed: Option<u32>,
    clusters: u64,
    inodes: u64,
    first: Option<String>,
}

impl<'a> Counts<'a> {
    pub(super) fn new(superblock: &'a [u8], seed: Option<u32>) -> Self {
        Self { superblock, seed, clusters: 0, inodes: 0, first: None }
    }

    /// Adds a group with the bitmap of its blocks, as it is or is made.
    pub(super) fn add(
        &mut self,
        shape: &Shape,
        space: &Space,
        group: u64,
        blocks: (&[u8], u64),
    ) -> Result<()> {
        let descriptor = shape.descriptor(group)?;
        let wide = |low, high| {
            u64::from(u16_at(&descriptor, low)) | u64::from(u16_at(&descriptor, high)) << 16
        };
        let (clusters, inodes) = (wide(12, 44), wide(14, 46));
        self.clusters += clusters;
        self.inodes += inodes;
        let free = blocks.1 - used(blocks.0, blocks.1);
        self.same(clusters, free, || {
            format!("group {group} counts {clusters} free clusters, and its bitmap has {free}")
        });

        let all = u64::from(shape.inodes_of_group);
        if space.has_flags && u16_at(&descriptor, 18) & NO_INODES != 0 {
            // Its bitmap was never written, and may be one of a file system that was there before.
            self.same(inodes, all, || {
                format!("group {group} counts {inodes} free inodes of {all} that were never in use")
            });
            return Ok(());
        }
        let mut bitmap = vec![0; all.div_ceil(8) as usize];
        if bitmap.len() as u64 > shape.block {
            let message = format!("a group of {all} inodes in one block of bits");
            return Err(Error::damaged("ext.superblock", message));
        }
        shape.read(&mut bitmap, place(&descriptor, 4, 36), 0)?;
        if let Some(seed) = self.seed {
            let crc = crc_32c(seed, &bitmap[..(all / 8) as usize]);
            let has_high = shape.descriptor_len >= 60;
            let is_sound = crc as u16 == u16_at(&descriptor, 26)
                && (!has_high || (crc >> 16) as u16 == u16_at(&descriptor, 58));
            if !is_sound {
                return Err(checksum(&format!("the bitmap of inodes of group {group}")));
            }
        }
        let (free, reached) = (all - used(&bitmap, all), space.inodes(shape, &descriptor));
        self.same(inodes, free, || {
            format!("group {group} counts {inodes} free inodes, and its bitmap has {free}")
        });
        self.same(all - used(&bitmap, reached.into()), free, || {
            format!("group {group} has inodes in use behind the {reached} that ever were")
        });
        Ok(())
    }

    /// Refuses groups of which a number did not match, and those that are not together what the superblock says.
    pub(super) fn check(mut self, space: &Space) -> Result<()> {
        let raw = self.superblock;
        let is_64_bit = u32_at(raw, 96) & IS_64_BIT != 0;
        let high = if is_64_bit { u64::from(u32_at(raw, 344)) << 32 } else { 0 };
        let told = [high | u64::from(u32_at(raw, 12)), u32_at(raw, 16).into()];
        let found = [self.clusters * space.cluster, self.inodes];
        for (what, told, found) in [("blocks", told[0], found[0]), ("inodes", told[1], found[1])] {
            self.same(told, found, || {
                format!("the superblock counts {told} free {what}, and all groups {found}")
            });
        }
        self.first.map_or(Ok(()), |message| Err(Error::damaged("ext.counts", message)))
    }

    fn same(&mut self, told: u64, found: u64, message: impl FnOnce() -> String) {
        if told != found && self.first.is_none() {
            self.first = Some(message());
        }
    }
}

/// How many of the first bits are set.
fn used(bitmap: &[u8], bits: u64) -> u64 {
    let whole = (bits / 8) as usize;
    let rest = bitmap.get(whole).map_or(0, |byte| byte & ((1 << (bits % 8)) - 1));
    let ones = bitmap[..whole].iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
    ones + u64::from(rest.count_ones())
}
