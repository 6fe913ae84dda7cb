//! What structures of ext say of their places.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::claims::{Seen, Sightings};
use super::space::Space;
use crate::boundary::{number, u16_at, u32_at};
use crate::checksum::{crc_16, crc_32c, crc_32c_before, crc_32c_between};

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
const EXTENTS: u32 = 0x8_0000;
const EXTENTS_MAGIC: u16 = 0xF30A;
const IS_INLINE: u32 = 0x1000_0000;
/// More folders and blocks that wait for their inodes are not kept.
const MOST_KEPT: usize = 1 << 20;
/// Copies of the descriptors that are compared.
const MOST_COPIES: usize = 32;
/// Bytes of inodes that are read at once.
const PIECE: u64 = 64 << 10;
/// Blocks of a folder that are kept.
const MOST_EXTENTS: usize = 340;
/// The last twelve bytes of a block of a folder, but for its checksum.
const TAIL: [u8; 8] = [0, 0, 0, 0, 12, 0, 0, 0xDE];

/// A superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Super {
    pub(super) uuid: [u8; 16],
    /// The group that it is a copy for.
    pub(super) group: u64,
    block: u64,
    blocks: u64,
    first_block: u64,
    of_group: u64,
    inodes: u32,
    inodes_of_group: u32,
    inode_len: u64,
    descriptor_len: u64,
    meta_from: Option<u64>,
    is_64_bit: bool,
    has_group_crc: bool,
    journal: u32,
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

    fn groups(&self) -> u64 {
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
struct Descriptor {
    bitmap: u64,
    inode_bitmap: u64,
    table: u64,
    checksums: [u32; 2],
}

impl Descriptor {
    fn places(&self) -> [u64; 3] {
        [self.bitmap, self.inode_bitmap, self.table]
    }
}

/// A volume of ext while its structures are looked for.
#[derive(Debug)]
pub(super) struct Ext {
    start: u64,
    shape: Super,
    volume: usize,
    /// Whether all copies of the descriptors say the same.
    pub(super) is_certain: bool,
    /// By their groups; nothing where a descriptor cannot be read.
    descriptors: Vec<Option<Descriptor>>,
    /// The groups by the checksums of their bitmaps.
    bitmaps: HashMap<u32, u64>,
    waiting: Vec<Waiting>,
}

/// A block that belongs to an inode.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    file: u64,
    /// The checksum behind the number of the inode and its use, or the number itself.
    key: u32,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Folder,
    Extents,
}

impl Ext {
    /// Of a volume at a place of the disk; `anchors` are its superblocks, by their places in the file.
    pub(super) fn new(
        space: &Space<'_>,
        start: u64,
        shape: Super,
        volume: usize,
        anchors: &[(u64, &Super)],
    ) -> Self {
        let (descriptors, bitmaps) = (Vec::new(), HashMap::new());
        let (waiting, is_certain) = (Vec::new(), true);
        let mut ext = Self { start, shape, volume, is_certain, descriptors, bitmaps, waiting };
        let shape = &ext.shape;
        let placed = |block: u64, len: usize| {
            space.bytes(start.checked_add(block.checked_mul(shape.block)?)?, len).map(|it| it.0)
        };
        // Where the table is not placed, a copy of it behind a copy of the superblock.
        let copies: Vec<u64> = anchors
            .iter()
            .filter(|(_, copy)| copy.is_kin(shape))
            .take(MOST_COPIES)
            .map(|(file, copy)| match (copy.group, shape.block) {
                (0, 1024) => file + 1024,
                (0, block) => (file - file.min(&1024)) + block,
                (_, block) => file + block,
            })
            .collect();
        let per_block = shape.block / shape.descriptor_len;
        let (mut all, mut is_certain) = (Vec::new(), true);
        for meta in 0..shape.groups().div_ceil(per_block) {
            let len = shape.block as usize;
            let own = match shape.meta_from {
                Some(from) if meta >= from => None,
                _ => Some(1024 / shape.block + 1 + meta),
            };
            let own = own.and_then(|block| placed(block, len));
            let copies: Vec<Vec<u8>> = match own {
                Some(own) => vec![own],
                None => copies
                    .iter()
                    .filter_map(|file| {
                        space.loose_bytes(file.checked_add(meta * shape.block)?, len)
                    })
                    .collect(),
            };
            for group in meta * per_block..((meta + 1) * per_block).min(shape.groups()) {
                let at = ((group - meta * per_block) * shape.descriptor_len) as usize;
                let mut found = copies.iter().filter_map(|raw| shape.descriptor(group, &raw[at..]));
                let first = found.next();
                // Copies of an older file system of the same identity say something else.
                is_certain &=
                    first.is_none_or(|first| found.all(|it| it.places() == first.places()));
                all.push(first);
            }
        }
        if shape.seed.is_some() {
            for (group, descriptor) in (0..).zip(&all) {
                let Some(descriptor) = descriptor else { continue };
                let [blocks, inodes] = descriptor.checksums;
                ext.bitmaps.insert(blocks, group << 1);
                ext.bitmaps.insert(inodes, group << 1 | 1);
            }
            ext.bitmaps.remove(&0);
        }
        (ext.descriptors, ext.is_certain) = (all, is_certain);
        ext
    }

    fn disk(&self, block: u64) -> Option<u64> {
        (block < self.shape.blocks).then(|| self.start + block * self.shape.block)
    }

    fn seen(&self, what: &'static str, strong: bool) -> Seen {
        Seen { what, volume: self.volume, strong }
    }

    /// Adds the superblocks, and the descriptors behind them.
    pub(super) fn add_superblocks(
        &self,
        space: &Space<'_>,
        anchors: &[(u64, &Super)],
        sightings: &mut Sightings,
    ) {
        let shape = &self.shape;
        for (file, copy) in anchors.iter().filter(|(_, copy)| copy.is_kin(shape)) {
            let at = self.start + copy.place();
            let own = *file..file + SUPERBLOCK_LEN as u64;
            sightings.add(own, Some(at), self.seen("a superblock", true));
            let next = |place: u64| (place / shape.block + 1) * shape.block;
            let by = next(copy.place()) - copy.place();
            let Some(table) = space.loose_bytes(file + by, shape.block as usize) else { continue };
            let per_block = (shape.block / shape.descriptor_len).min(shape.groups());
            let is_same = |group: u64| {
                let raw = &table[(group * shape.descriptor_len) as usize..];
                let (own, other) =
                    (self.descriptors.get(group as usize), shape.descriptor(group, raw));
                let both = own.copied().flatten().zip(other);
                both.is_some_and(|(own, other)| own.places() == other.places())
            };
            if shape.meta_from.is_none() && (0..per_block).all(is_same) {
                let range = file + by..file + by + shape.block;
                let seen = self.seen("descriptors of groups", true);
                sightings.add(range, Some(at + by), seen);
            }
        }
    }

    /// Looks at loose bytes, which begin at a MiB of the file.
    pub(super) fn look(&mut self, file: u64, bytes: &[u8], sightings: &mut Sightings) {
        let block = self.shape.block as usize;
        // Blocks lie as the volume begins.
        let skip = (self.start % self.shape.block) as usize;
        let Some(bytes) = bytes.get(skip..) else { return };
        for (raw, at) in bytes.chunks_exact(block).zip((file + skip as u64..).step_by(block)) {
            let range = at..at + block as u64;
            if let Some(key) = self.folder_key(raw) {
                self.wait(Waiting { file: at, key, kind: Kind::Folder });
            } else if let Some(key) = self.extents_key(raw) {
                self.wait(Waiting { file: at, key, kind: Kind::Extents });
            } else if let Some(inodes) = self.inodes(raw) {
                sightings.add(range, inodes, self.seen("inodes with checksums", true));
            } else if let Some(place) = self.bitmap(raw) {
                sightings.add(range, Some(place), self.seen("a bitmap with a checksum", true));
            }
        }
    }

    fn wait(&mut self, waiting: Waiting) {
        if self.waiting.len() < MOST_KEPT {
            self.waiting.push(waiting);
        }
    }

    fn folder_key(&self, raw: &[u8]) -> Option<u32> {
        match self.shape.seed {
            Some(_) => {
                let (body, tail) = raw.split_at(raw.len() - 12);
                let is_folder = tail[..8] == TAIL;
                is_folder.then(|| crc_32c_before(u32_at(tail, 8), body))
            }
            None => {
                let own = u32_at(raw, 0);
                let is_pair = own != 0
                    && raw[4..6] == [12, 0]
                    && raw[6] == 1
                    && raw[8..12] == [b'.', 0, 0, 0]
                    && raw[18] == 2
                    && raw[20..22] == *b"..";
                (is_pair && own <= self.shape.inodes).then_some(own)
            }
        }
    }

    fn extents_key(&self, raw: &[u8]) -> Option<u32> {
        self.shape.seed?;
        let [magic, count, most, depth] = [0, 2, 4, 6].map(|at| u16_at(raw, at));
        let end = 12 * (usize::from(most) + 1);
        let is_node = magic == EXTENTS_MAGIC && count <= most && depth < 5;
        let checksum = raw.get(end..end + 4).filter(|_| is_node)?;
        Some(crc_32c_before(u32_at(checksum, 0), &raw[..end]))
    }

    /// Where a block of inodes belongs, if it is one; nothing within if its inodes do not agree.
    fn inodes(&self, raw: &[u8]) -> Option<Option<u64>> {
        let (seed, len) = (self.shape.seed?, self.shape.inode_len as usize);
        let mut found: Option<Option<u64>> = None;
        for (inode, at) in raw.chunks_exact(len).zip((0..).step_by(len)) {
            let Some(number) = inode_number(seed, inode) else { continue };
            let Some(place) = self.inode_place(number) else { continue };
            let first = place.checked_sub(at);
            found = match found {
                Some(other) if other != first => Some(None),
                _ => Some(first),
            };
        }
        found
    }

    fn inode_place(&self, number: u32) -> Option<u64> {
        let shape = &self.shape;
        let index = number.checked_sub(1).filter(|_| number <= shape.inodes)?;
        let group = index / shape.inodes_of_group;
        let table = self.descriptors.get(group as usize).copied().flatten()?.table;
        let at = u64::from(index % shape.inodes_of_group) * shape.inode_len;
        Some(self.disk(table)? + at)
    }

    fn bitmap(&self, raw: &[u8]) -> Option<u64> {
        let (seed, shape) = (self.shape.seed?, &self.shape);
        // Groups begin with blocks in use, and bits behind the last inode are set.
        let lens = [shape.of_group / 8, u64::from(shape.inodes_of_group) / 8];
        let is_likely = [raw[..4] == [0xFF; 4], raw[raw.len() - 4..] == [0xFF; 4]];
        for (index, len) in lens.into_iter().enumerate() {
            let bits = raw.get(..len as usize).filter(|_| is_likely[index]);
            let crc = bits.map(|bits| crc_32c(seed, bits));
            // Without the upper halves, the checksums are of 16 bits, which is not enough.
            let group = crc.filter(|_| shape.descriptor_len >= 64);
            let group = group.and_then(|crc| self.bitmaps.get(&crc));
            let Some(group) = group.filter(|group| (*group & 1) as usize == index) else {
                continue;
            };
            let descriptor = self.descriptors.get((group >> 1) as usize).copied().flatten()?;
            let blocks = [descriptor.bitmap, descriptor.inode_bitmap];
            return self.disk(blocks[index]);
        }
        None
    }
}

/// The number that the checksum of an inode was made with, if it looks like an inode in use.
fn inode_number(seed: u32, raw: &[u8]) -> Option<u32> {
    let is_kind = matches!(raw[1] >> 4, 1 | 2 | 4 | 6 | 8 | 0xA | 0xC) || raw[..2] == [0, 0];
    let extra = if raw.len() > 128 { usize::from(u16_at(raw, 128)) } else { 0 };
    let is_long = (4..=raw.len().saturating_sub(128)).contains(&extra) && extra.is_multiple_of(4);
    if !is_kind || !is_long || u16_at(raw, 26) == 0 {
        return None;
    }
    let crc = u32::from(u16_at(raw, 124)) | u32::from(u16_at(raw, 130)) << 16;
    let mut bytes = raw.to_vec();
    bytes[124..126].fill(0);
    bytes[130..132].fill(0);
    let before = crc_32c_before(crc, &bytes);
    Some(crc_32c_between(seed, crc_32c_before(before, &raw[100..104])))
}

impl Super {
    /// Parses the descriptor of a group; nothing if it cannot be one.
    fn descriptor(&self, group: u64, raw: &[u8]) -> Option<Descriptor> {
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

/// Blocks of a file, with whether the inode that says so is surely in its place.
type Extents = (Vec<Range<u64>>, bool);

/// What inodes that are placed say.
#[derive(Debug, Default)]
struct Told {
    /// The blocks of folders and nodes of extents, by what their checksums show.
    blocks: HashMap<(Kind, u32), Extents>,
    journal: Option<Vec<Range<u64>>>,
}

impl Ext {
    /// Places the blocks that belong to inodes; returns where the journal lies, or nothing if that is not sure.
    pub(super) fn follow(
        &mut self,
        space: &Space<'_>,
        sightings: &mut Sightings,
    ) -> Option<Vec<Range<u64>>> {
        let wanted: HashSet<(Kind, u32)> =
            self.waiting.iter().map(|waiting| (waiting.kind, waiting.key)).collect();
        let mut told = Told::default();
        for group in 0..self.descriptors.len() {
            self.read_group(space, group, &wanted, &mut told);
        }
        let (block, has_checksums) = (self.shape.block, self.shape.seed.is_some());
        for Waiting { file, key, kind } in std::mem::take(&mut self.waiting) {
            let Some((extents, sure)) = told.blocks.get(&(kind, key)) else { continue };
            // Of all the places, the one where a block of the file can be.
            let mut fitting = extents.iter().flat_map(|blocks| {
                let first = self.start + blocks.start * block;
                let skip = (file.wrapping_sub(first) % super::MIB) / block;
                let is_even = (file.wrapping_sub(first) % super::MIB).is_multiple_of(block);
                let step = (super::MIB / block) as usize;
                let blocks = (blocks.start + skip..blocks.end).step_by(step);
                blocks.filter(move |_| is_even)
            });
            let (one, other) = (fitting.next(), fitting.next());
            let what = match kind {
                Kind::Folder => "a block of a folder",
                Kind::Extents => "a node of extents",
            };
            let at = one.filter(|_| other.is_none()).and_then(|one| self.disk(one));
            // What could lie in several places says nothing.
            if at.is_some() || one.is_none() {
                sightings.add(file..file + block, at, self.seen(what, has_checksums && *sure));
            }
        }
        match self.shape.journal {
            0 => Some(Vec::new()),
            // Its blocks are found only if each MiB of it has one that says what it is.
            _ if block > 4096 => None,
            _ => {
                let blocks = told.journal?;
                let bytes = |range: Range<u64>| {
                    Some(self.disk(range.start)?..self.disk(range.end - 1)? + block)
                };
                blocks.into_iter().map(bytes).collect()
            }
        }
    }

    fn read_group(
        &self,
        space: &Space<'_>,
        group: usize,
        wanted: &HashSet<(Kind, u32)>,
        told: &mut Told,
    ) {
        let shape = &self.shape;
        let table = self.descriptors[group].and_then(|descriptor| self.disk(descriptor.table));
        let Some(table) = table else { return };
        let len = u64::from(shape.inodes_of_group) * shape.inode_len;
        let mut piece = vec![0; PIECE as usize];
        for at in (0..len).step_by(PIECE as usize) {
            let piece = &mut piece[..(len - at).min(PIECE) as usize];
            let Some(sure) = space.read(piece, table + at) else { continue };
            let first = at / shape.inode_len + group as u64 * u64::from(shape.inodes_of_group) + 1;
            for (raw, number) in piece.chunks_exact(shape.inode_len as usize).zip(first..) {
                if u16_at(raw, 26) == 0 && number > 10 {
                    continue;
                }
                let Ok(number) = u32::try_from(number) else { return };
                let is_own = shape.seed.map(|seed| inode_number(seed, raw) == Some(number));
                if is_own == Some(false) {
                    continue;
                }
                if number == shape.journal {
                    told.journal = self.journal(space, raw).filter(|_| sure);
                }
                self.tell((raw, sure), number, wanted, told);
            }
        }
    }

    fn tell(
        &self,
        (raw, sure): (&[u8], bool),
        number: u32,
        wanted: &HashSet<(Kind, u32)>,
        told: &mut Told,
    ) {
        let flags = u32_at(raw, 32);
        if flags & IS_INLINE != 0 {
            return;
        }
        let key = match self.shape.seed {
            Some(seed) => crc_32c(crc_32c(seed, &number.to_le_bytes()), &raw[100..104]),
            None => number,
        };
        let map = &raw[40..100];
        let is_tree = flags & EXTENTS != 0;
        let depth = if is_tree { u16_at(map, 6) } else { 0 };
        if raw[1] >> 4 == 4 && wanted.contains(&(Kind::Folder, key)) {
            let blocks = match is_tree {
                true => extents(map),
                false => (0..12)
                    .map(|index| u64::from(u32_at(map, 4 * index)))
                    .filter(|block| *block != 0)
                    .map(|block| block..block + 1)
                    .collect(),
            };
            // Those of a large folder are named elsewhere.
            if depth == 0 {
                told.blocks.insert((Kind::Folder, key), (blocks, sure));
            }
        }
        if is_tree && depth == 1 && wanted.contains(&(Kind::Extents, key)) {
            told.blocks.insert((Kind::Extents, key), (children(map), sure));
        }
    }

    fn journal(&self, space: &Space<'_>, raw: &[u8]) -> Option<Vec<Range<u64>>> {
        let map = &raw[40..100];
        (u32_at(raw, 32) & EXTENTS != 0 && u16_at(map, 0) == EXTENTS_MAGIC).then_some(())?;
        let mut all = match u16_at(map, 6) {
            0 => extents(map),
            1 => {
                let mut all = Vec::new();
                for child in children(map) {
                    let at = self.disk(child.start)?;
                    let (node, sure) = space.bytes(at, self.shape.block as usize)?;
                    (sure && u16_at(&node, 0) == EXTENTS_MAGIC && u16_at(&node, 6) == 0)
                        .then_some(())?;
                    all.extend(extents(&node));
                }
                all
            }
            _ => return None,
        };
        let held: u64 = all.iter().map(|range| range.end - range.start).sum();
        let size = u64::from(u32_at(raw, 4)) | u64::from(u32_at(raw, 108)) << 32;
        all.sort_by_key(|range| range.start);
        (held * self.shape.block >= size && held > 0).then_some(all)
    }
}

/// The blocks of the extents in a leaf.
fn extents(node: &[u8]) -> Vec<Range<u64>> {
    let entries = entries(node).iter().filter_map(|entry| {
        let len = u64::from(number(entry, 4, 2) as u16);
        let start = number(entry, 6, 2) << 32 | number(entry, 8, 4);
        (1..=32768).contains(&len).then(|| start..start + len)
    });
    entries.collect()
}

/// The blocks with the nodes below a node.
fn children(node: &[u8]) -> Vec<Range<u64>> {
    let entries = entries(node).iter().map(|entry| {
        let start = number(entry, 8, 2) << 32 | number(entry, 4, 4);
        start..start + 1
    });
    entries.collect()
}

fn entries(node: &[u8]) -> &[[u8; 12]] {
    let count = usize::from(u16_at(node, 2)).min(MOST_EXTENTS);
    let (entries, _) = node.get(12..).unwrap_or(&[]).as_chunks::<12>();
    let is_node = u16_at(node, 0) == EXTENTS_MAGIC;
    if is_node { &entries[..count.min(entries.len())] } else { &[] }
}

/// The file system of a volume that is placed, with whether that is sure.
pub(super) fn at(space: &Space<'_>, start: u64) -> Option<(Super, bool)> {
    let (raw, sure) = space.bytes(start.checked_add(1024)?, SUPERBLOCK_LEN)?;
    let found = Super::of(&raw).filter(|found| found.group == 0)?;
    Some((found, sure))
}
