//! Inodes, and where the bytes of their files lie.

use std::ops::Range;

use crate::boundary::{u16_at, u32_at};
use crate::error::{Error, Result};
use crate::ext::shape::Shape;
use crate::item::{Facts, Kind, Piece, Place, Stream, Time, Times};

const IS_ENCRYPTED: u32 = 0x800;
const HAS_EXTENTS: u32 = 0x8_0000;
const IS_INLINE: u32 = 0x1000_0000;
const INLINE: &str = "the bytes are in the inode itself (inline_data), which is not read";

const EXTENTS_MAGIC: u16 = 0xF30A;
const MOST_DEPTH: u16 = 5;
/// Longer extents are space without bytes, shorter by this.
const MOST_EXTENT: u64 = 32768;
/// The blocks of a file are counted in 32 bits.
const MOST_BLOCKS: u64 = 1 << 32;
const DIRECT: u64 = 12;
/// A hole is put together of so many pieces at most.
const MOST_HOLES: usize = 4096;

#[derive(Clone, Debug)]
pub(super) struct Inode {
    number: u32,
    mode: u16,
    owner: (u32, u32),
    pub(super) size: u64,
    flags: u32,
    links: u16,
    generation: u32,
    times: Times,
    /// The block with extended attributes; 0 for none.
    attributes: u64,
    /// The roots of what says where the bytes lie, or a short link.
    map: [u8; 60],
}

impl Inode {
    pub(super) fn read(shape: &Shape, number: u32) -> Result<Self> {
        let inode = Self::of(&shape.inode(number)?, number);
        let is_used = inode.kind().is_some() && inode.links > 0;
        if !is_used && number > 10 {
            let Self { mode, links, .. } = inode;
            let message = format!("inode {number} is of no file: mode {mode:o}, {links} names");
            return Err(Error::damaged("ext.inode", message));
        }
        Ok(inode)
    }

    /// The inode that these bytes are, whether in use or not.
    pub(super) fn of(raw: &[u8], number: u32) -> Self {
        Self {
            number,
            mode: u16_at(raw, 0),
            owner: (
                u32::from(u16_at(raw, 2)) | u32::from(u16_at(raw, 120)) << 16,
                u32::from(u16_at(raw, 24)) | u32::from(u16_at(raw, 122)) << 16,
            ),
            size: u64::from(u32_at(raw, 4)) | u64::from(u32_at(raw, 108)) << 32,
            flags: u32_at(raw, 32),
            links: u16_at(raw, 26),
            generation: u32_at(raw, 100),
            times: times(raw),
            attributes: u64::from(u32_at(raw, 104)) | u64::from(u16_at(raw, 118)) << 32,
            map: std::array::from_fn(|at| raw[40 + at]),
        }
    }

    fn kind(&self) -> Option<Kind> {
        Some(match self.mode >> 12 {
            0x1 => Kind::Other("fifo"),
            0x2 => Kind::Other("character device"),
            0x4 => Kind::Folder,
            0x6 => Kind::Other("block device"),
            0x8 => Kind::File,
            0xA => Kind::Link,
            0xC => Kind::Other("socket"),
            _ => return None,
        })
    }

    pub(super) fn facts(&self) -> Facts {
        let mut facts = Facts::new(self.kind().unwrap_or(Kind::Other("unknown")));
        facts.size = if facts.kind == Kind::File { self.size } else { 0 };
        facts.times = self.times;
        facts.id = Some(self.number.into());
        facts.links = Some(self.links.into());
        facts.mode = Some(self.mode & 0o7777);
        facts.owner = Some(self.owner);
        facts.generation = Some(self.generation);
        facts.device = self.device();
        if self.flags & IS_ENCRYPTED != 0 {
            facts.refusal = Some(("files.encrypted", "this is encrypted (fscrypt)".into()));
        } else if self.flags & IS_INLINE != 0 {
            facts.refusal = Some(("files.inline", INLINE.into()));
        }
        facts
    }

    /// The bytes of the file to tell where they are stored; `None` if that is here alone.
    pub(super) fn stored(self, shape: &Shape) -> Option<Box<dyn Stream>> {
        match self.flags & IS_INLINE {
            0 => Some(Box::new(File::new(shape.clone(), self))),
            _ if self.size <= self.map.len() as u64 => None,
            _ => Some(Box::new(Inline(self.size))),
        }
    }

    /// What is here of the bytes of the file, of a link that is not read, or of a device.
    pub(super) fn nature(&self) -> Vec<u8> {
        match self.kind() {
            Some(Kind::File | Kind::Folder) if self.flags & IS_INLINE == 0 => Vec::new(),
            _ => self.map.to_vec(),
        }
    }

    /// The major and the minor number of a device, as Linux keeps them: in 16 bits if they fit, or else in 32.
    fn device(&self) -> Option<(u32, u32)> {
        if !matches!(self.mode >> 12, 0x2 | 0x6) {
            return None;
        }
        Some(match (u32_at(&self.map, 0), u32_at(&self.map, 4)) {
            (0, long) => (long >> 8 & 0xFFF, long & 0xFF | long >> 12 & 0xF_FF00),
            (short, _) => (short >> 8 & 0xFF, short & 0xFF),
        })
    }

    /// The target of a link that is short enough to have no blocks.
    pub(super) fn short_target(&self) -> Option<&[u8]> {
        let len = usize::try_from(self.size).ok()?;
        self.map.get(..len).filter(|_| len < self.map.len() && self.flags & HAS_EXTENTS == 0)
    }
}

/// Blocks that an inode has, one after the other.
pub(super) struct Used {
    pub(super) blocks: Range<u64>,
}

impl Inode {
    /// Passes on all blocks that the inode has: those of its bytes, whether they were written or not and also behind its
    /// end, those that say where they lie, and that of its attributes.
    ///
    /// # Errors
    /// Those of `each`, and of reading what says where the blocks lie.
    pub(super) fn each_used(
        &self,
        shape: &Shape,
        each: &mut dyn FnMut(Used) -> Result<()>,
    ) -> Result<()> {
        if self.attributes != 0 {
            each(Used { blocks: self.attributes..self.attributes + 1 })?;
        }
        let has_blocks = match self.kind() {
            Some(Kind::Link) => self.short_target().is_none(),
            Some(Kind::File | Kind::Folder) => true,
            Some(Kind::Other(_)) => false,
            // The file system's own.
            None => true,
        };
        if !has_blocks || self.flags & IS_INLINE != 0 {
            return Ok(());
        }
        if self.flags & HAS_EXTENTS != 0 {
            return used_of_node(shape, &self.map, MOST_DEPTH + 1, each);
        }
        for (index, pointer) in (0..).zip(self.map.chunks_exact(4)) {
            let level = u32::saturating_sub(index + 1, DIRECT as u32);
            used_of_pointer(shape, u32_at(pointer, 0).into(), level, each)?;
        }
        Ok(())
    }
}

fn used_of_node(
    shape: &Shape,
    node: &[u8],
    above: u16,
    each: &mut dyn FnMut(Used) -> Result<()>,
) -> Result<()> {
    let (count, depth) = (usize::from(u16_at(node, 2)), u16_at(node, 6));
    if u16_at(node, 0) != EXTENTS_MAGIC || depth >= above || 12 * (count + 1) > node.len() {
        let what = format!("a node of extents has {count} entries and the depth {depth}");
        return Err(Error::damaged("ext.extents", what));
    }
    for entry in node[12..].chunks_exact(12).take(count) {
        if depth > 0 {
            let child = u64::from(u16_at(entry, 8)) << 32 | u64::from(u32_at(entry, 4));
            let mut bytes = vec![0; shape.block as usize];
            shape.read(&mut bytes, child, 0)?;
            each(Used { blocks: child..child + 1 })?;
            used_of_node(shape, &bytes, depth, each)?;
            continue;
        }
        let len = match u64::from(u16_at(entry, 4)) {
            len if len > MOST_EXTENT => len - MOST_EXTENT,
            len => len,
        };
        let place = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
        each(Used { blocks: place..place + len })?;
    }
    Ok(())
}

/// The block that a pointer leads to; above level 0, it holds further pointers.
fn used_of_pointer(
    shape: &Shape,
    place: u64,
    level: u32,
    each: &mut dyn FnMut(Used) -> Result<()>,
) -> Result<()> {
    if place == 0 {
        return Ok(());
    }
    each(Used { blocks: place..place + 1 })?;
    if level == 0 {
        return Ok(());
    }
    let mut bytes = vec![0; shape.block as usize];
    shape.read(&mut bytes, place, 0)?;
    for pointer in bytes.chunks_exact(4) {
        used_of_pointer(shape, u32_at(pointer, 0).into(), level - 1, each)?;
    }
    Ok(())
}

fn times(raw: &[u8]) -> Times {
    let extra = if raw.len() > 128 { usize::from(u16_at(raw, 128)) } else { 0 };
    // The bits of a moment beyond the first 32, and nanoseconds, where the inode is long enough.
    let time = |at: usize, more: usize| {
        let more = if more + 4 <= 128 + extra { u32_at(raw, more) } else { 0 };
        let seconds = i64::from(u32_at(raw, at) as i32) + (i64::from(more & 3) << 32);
        Some(Time { seconds, nanoseconds: (more >> 2).min(999_999_999) })
    };
    Times {
        created: if extra >= 24 { time(144, 148) } else { None },
        modified: time(16, 136),
        changed: time(12, 132),
        accessed: time(8, 140),
    }
}

/// So many bytes in the inode itself, which are not read.
struct Inline(u64);

impl Stream for Inline {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&mut self, _: &mut [u8], _: u64) -> Result<()> {
        Err(Error::unsupported("files.inline", INLINE))
    }

    fn piece(&mut self, offset: u64) -> Result<Piece> {
        Ok(Piece { len: (self.0 - offset).max(1), place: Place::Inside })
    }
}

/// The bytes of a file.
pub(super) struct File {
    shape: Shape,
    inode: Inode,
}

/// Blocks of a file that follow each other, here and on the volume; without a place, a hole.
#[derive(Clone, Copy, Debug)]
struct Mapped {
    place: Option<u64>,
    count: u64,
}

impl File {
    pub(super) fn new(shape: Shape, inode: Inode) -> Self {
        Self { shape, inode }
    }

    /// The block of the volume that holds a block of the file.
    pub(super) fn place(&self, block: u64) -> Result<u64> {
        let place = self.map(block)?.place;
        place.ok_or_else(|| Error::damaged("ext.journal", "the journal has a hole"))
    }

    /// Where a block of the file lies, with those that follow it.
    fn map(&self, block: u64) -> Result<Mapped> {
        if block >= MOST_BLOCKS {
            let message = format!("block {block} of a file is more than there may be");
            return Err(Error::damaged("ext.block", message));
        }
        match self.inode.flags & HAS_EXTENTS != 0 {
            true => self.by_extents(block),
            false => self.by_pointers(block),
        }
    }

    fn by_extents(&self, block: u64) -> Result<Mapped> {
        let damaged = |what: String| Error::damaged("ext.extents", what);
        let mut node = self.inode.map.to_vec();
        // Where the next extent begins at the earliest.
        let (mut end, mut above) = (MOST_BLOCKS, MOST_DEPTH + 1);
        loop {
            let (count, depth) = (usize::from(u16_at(&node, 2)), u16_at(&node, 6));
            if u16_at(&node, 0) != EXTENTS_MAGIC || depth >= above || 12 * (count + 1) > node.len()
            {
                let what = format!("a node of extents has {count} entries and the depth {depth}");
                return Err(damaged(what));
            }
            let entries: Vec<&[u8]> = node[12..].chunks_exact(12).take(count).collect();
            let next = entries.partition_point(|entry| u64::from(u32_at(entry, 0)) <= block);
            if let Some(next) = entries.get(next) {
                end = end.min(u32_at(next, 0).into());
            }
            let hole = Mapped { place: None, count: end.saturating_sub(block).max(1) };
            let Some(entry) = next.checked_sub(1).map(|index| entries[index]) else {
                return Ok(hole);
            };
            if depth > 0 {
                let child = u64::from(u16_at(entry, 8)) << 32 | u64::from(u32_at(entry, 4));
                let mut bytes = vec![0; self.shape.block as usize];
                self.shape.read(&mut bytes, child, 0)?;
                (node, above) = (bytes, depth);
                continue;
            }
            let start = u64::from(u32_at(entry, 0));
            let (len, is_held) = match u64::from(u16_at(entry, 4)) {
                len if len > MOST_EXTENT => (len - MOST_EXTENT, false),
                len => (len, true),
            };
            let place = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
            return Ok(match block - start {
                within if within >= len => hole,
                within => Mapped { place: is_held.then_some(place + within), count: len - within },
            });
        }
    }

    fn by_pointers(&self, block: u64) -> Result<Mapped> {
        let pointers = self.shape.block / 4;
        let root = |index: u64| u64::from(u32_at(&self.inode.map, 4 * index as usize));
        let mapped = |place: u64, count| Mapped { place: (place != 0).then_some(place), count };
        if block < DIRECT {
            return Ok(mapped(root(block), 1));
        }
        let mut rest = block - DIRECT;
        for level in 1..=3u32 {
            let span = pointers.pow(level);
            if rest >= span {
                rest -= span;
                continue;
            }
            let (mut place, mut span) = (root(DIRECT + u64::from(level) - 1), span);
            for _ in 0..level {
                if place == 0 {
                    return Ok(mapped(0, span - rest));
                }
                span /= pointers;
                let mut pointer = [0; 4];
                self.shape.read(&mut pointer, place, 4 * (rest / span))?;
                (place, rest) = (u32::from_le_bytes(pointer).into(), rest % span);
            }
            return Ok(mapped(place, 1));
        }
        let message = format!("block {block} of a file is more than pointers reach");
        Err(Error::damaged("ext.block", message))
    }
}

impl Stream for File {
    fn len(&self) -> u64 {
        self.inode.size
    }

    fn read_at(&mut self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        let len = self.shape.block;
        while !buf.is_empty() {
            let (block, within) = (offset / len, offset % len);
            let Mapped { place, count } = self.map(block)?;
            let count = (buf.len() as u64).min(count * len - within) as usize;
            let (now, rest) = buf.split_at_mut(count);
            match place {
                Some(place) => self.shape.read(now, place, within)?,
                None => now.fill(0),
            }
            (buf, offset) = (rest, offset + count as u64);
        }
        Ok(())
    }

    fn hole_end(&self, offset: u64) -> u64 {
        let len = self.shape.block;
        let (mut block, end) = (offset / len, self.inode.size.div_ceil(len));
        for _ in 0..MOST_HOLES {
            match self.map(block) {
                Ok(Mapped { place: None, count }) if block < end => block += count,
                // Whatever is wrong is told where the bytes are read.
                _ => break,
            }
        }
        (block * len).max(offset)
    }

    fn piece(&mut self, offset: u64) -> Result<Piece> {
        let len = self.shape.block;
        let Mapped { place, count } = self.map(offset / len)?;
        let within = offset % len;
        let place = place.map_or(Place::Zeros, |place| Place::At(place * len + within));
        Ok(Piece { len: count * len - within, place })
    }
}
