//! Where things of a volume of ext are.

use std::collections::HashMap;
use std::sync::Arc;

use crate::boundary::{Bytes, u16_at, u32_at};
use crate::error::{Error, Result};

/// Blocks of 64 KiB: 1024 shifted by this.
const MOST_BLOCK_BITS: u32 = 6;
/// Features of volumes.
pub(super) const HAS_JOURNAL: u32 = 0x4;
pub(super) const NEEDS_RECOVERY: u32 = 0x4;
pub(super) const META_GROUPS: u32 = 0x10;
pub(super) const IS_64_BIT: u32 = 0x80;
const SPARSE_2: u32 = 0x200;
const SPARSE: u32 = 0x1;

/// The bytes with which the journal's own blocks begin.
pub(super) const MAGIC: [u8; 4] = [0xC0, 0x3B, 0x39, 0x98];

/// A block that waits in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// The block of the volume that holds the newer bytes.
    pub(super) at: u64,
    /// The bytes begin with the mark of the journal's own blocks, which is kept as zeros.
    pub(super) is_escaped: bool,
}

/// Where things are, and the bytes as the journal has them.
#[derive(Clone)]
pub(super) struct Shape {
    pub(super) bytes: Bytes,
    pub(super) block: u64,
    pub(super) blocks: u64,
    pub(super) first_block: u64,
    pub(super) of_group: u64,
    pub(super) inodes: u32,
    pub(super) inodes_of_group: u32,
    pub(super) inode_len: usize,
    pub(super) descriptor_len: u64,
    /// From this group of groups on, descriptors lie in their own groups.
    pub(super) meta_from: Option<u64>,
    pub(super) is_sparse: bool,
    /// What waits in the journal, by the blocks that it replaces.
    pub(super) waiting: Arc<HashMap<u64, Waiting>>,
}

impl Shape {
    pub(super) fn of(raw: &[u8], bytes: Bytes) -> Result<Self> {
        let damaged = |what: String| Error::damaged("ext.superblock", what);
        let bits = u32_at(raw, 24);
        if bits > MOST_BLOCK_BITS {
            return Err(damaged(format!("blocks have 2^{} bytes", u64::from(bits) + 10)));
        }
        let block = 1024u64 << bits;
        let incompatible = u32_at(raw, 96);
        let is_64_bit = incompatible & IS_64_BIT != 0;
        let high = if is_64_bit { u64::from(u32_at(raw, 336)) << 32 } else { 0 };
        let inode_len = if u32_at(raw, 76) == 0 { 128 } else { u16_at(raw, 88) };
        let descriptor_len = if is_64_bit { u64::from(u16_at(raw, 254)) } else { 32 };
        let shape = Self {
            bytes,
            block,
            blocks: high | u64::from(u32_at(raw, 4)),
            first_block: u32_at(raw, 20).into(),
            of_group: u32_at(raw, 32).into(),
            inodes: u32_at(raw, 0),
            inodes_of_group: u32_at(raw, 40),
            inode_len: inode_len.into(),
            descriptor_len,
            meta_from: (incompatible & META_GROUPS != 0).then(|| u32_at(raw, 260).into()),
            is_sparse: u32_at(raw, 100) & SPARSE != 0,
            waiting: Arc::default(),
        };
        let is_size = |len: u64, least| len.is_power_of_two() && (least..=block).contains(&len);
        let rules = [
            (is_size(inode_len.into(), 128), "the length of an inode"),
            (
                is_size(descriptor_len, if is_64_bit { 64 } else { 32 }),
                "the length of a group's descriptor",
            ),
            (shape.of_group > 0, "the number of blocks of a group"),
            (shape.inodes_of_group > 0, "the number of inodes of a group"),
            (shape.first_block < shape.blocks && shape.blocks < 1 << 48, "the number of blocks"),
        ];
        if let Some((_, what)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(damaged(format!("{what} is not one of ext")));
        }
        if shape.meta_from.is_some() && u32_at(raw, 92) & SPARSE_2 != 0 {
            let message = "the file system has two copies of its superblock in groups of groups";
            return Err(Error::unsupported("ext.feature", message));
        }
        Ok(shape)
    }

    /// Fills `buf` from a block of the volume on, as the journal has it.
    pub(super) fn read(&self, mut buf: &mut [u8], block: u64, within: u64) -> Result<()> {
        let end = within + buf.len() as u64;
        if block >= self.blocks || end.div_ceil(self.block) > self.blocks - block {
            let message = format!("block {block} is none of the {} there are", self.blocks);
            return Err(Error::damaged("ext.block", message));
        }
        if self.waiting.is_empty() {
            return self.bytes.read_at(buf, block * self.block + within);
        }
        let mut at = block * self.block + within;
        while !buf.is_empty() {
            let (block, within) = (at / self.block, at % self.block);
            let count = (buf.len() as u64).min(self.block - within) as usize;
            let (now, rest) = buf.split_at_mut(count);
            let waiting = self.waiting.get(&block);
            match waiting {
                Some(waiting) => {
                    // What counts is whether the block changed, wherever it waits.
                    self.bytes.meet(&(at..at + count as u64));
                    let place = waiting.at * self.block + within;
                    self.bytes.apart(|| self.bytes.read_at(now, place))?;
                }
                None => self.bytes.read_at(now, at)?,
            }
            if waiting.is_some_and(|waiting| waiting.is_escaped) {
                let skip = MAGIC.len().min(within as usize);
                now.iter_mut().zip(&MAGIC[skip..]).for_each(|(byte, first)| *byte = *first);
            }
            (buf, at) = (rest, at + count as u64);
        }
        Ok(())
    }

    /// How many groups there are.
    pub(super) fn groups(&self) -> u64 {
        (self.blocks - self.first_block).div_ceil(self.of_group)
    }

    /// The descriptor of a group, filled up with zeros.
    pub(super) fn descriptor(&self, group: u64) -> Result<[u8; 64]> {
        let per_block = self.block / self.descriptor_len;
        let (meta, within) = (group / per_block, group % per_block * self.descriptor_len);
        let block = self.descriptors(meta);
        let mut descriptor = [0; 64];
        let len = self.descriptor_len.min(64) as usize;
        self.read(&mut descriptor[..len], block, within)?;
        Ok(descriptor)
    }

    /// The block with the descriptors of a group of groups.
    pub(super) fn descriptors(&self, meta: u64) -> u64 {
        match self.meta_from {
            Some(from) if meta >= from => {
                let first = meta * (self.block / self.descriptor_len);
                self.first_block + first * self.of_group + u64::from(self.has_superblock(first))
            }
            _ => self.superblock() + 1 + meta,
        }
    }

    /// The first block of the table of inodes of a group. Descriptors count what is free in their groups and change with
    /// each file, and their tables never move: whether they did is looked up for all at once.
    pub(super) fn inode_table(&self, group: u64) -> Result<u64> {
        let descriptor = self.bytes.apart(|| self.descriptor(group))?;
        Ok(u64::from(u32_at(&descriptor, 40)) << 32 | u64::from(u32_at(&descriptor, 8)))
    }

    /// The bytes of an inode.
    pub(super) fn inode(&self, number: u32) -> Result<Vec<u8>> {
        if number == 0 || number > self.inodes {
            let message = format!("inode {number} is none of the {} there are", self.inodes);
            return Err(Error::damaged("ext.inode", message));
        }
        let group = u64::from((number - 1) / self.inodes_of_group);
        let index = u64::from((number - 1) % self.inodes_of_group);
        let table = self.inode_table(group)?;
        let at = index * self.inode_len as u64;
        let mut raw = vec![0; self.inode_len];
        self.read(&mut raw, table.saturating_add(at / self.block), at % self.block)?;
        Ok(raw)
    }

    /// The block with the superblock.
    pub(super) fn superblock(&self) -> u64 {
        1024 / self.block
    }

    /// Whether a group begins with a copy of the superblock.
    pub(super) fn has_superblock(&self, group: u64) -> bool {
        let is_power = |of: u64| {
            let mut power = of;
            while power < group {
                power *= of;
            }
            power == group
        };
        !self.is_sparse || group <= 1 || [3, 5, 7].into_iter().any(is_power)
    }
}
