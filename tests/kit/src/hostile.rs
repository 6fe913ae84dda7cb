//! Sound chains to be corrupted, and corruptions.

use std::ops::Range;

use uuid::Uuid;

use crate::build::{Block, Contents, Data, Descriptor, Image, Item, LogEntry, SECTOR, state};

const MIB: u64 = 1 << 20;

/// An identity of no known meaning.
pub const GUID: Uuid = Uuid::from_u128(0x1ec0_0000_0000_4000_8000_0000_0000_0001);

/// A sound chain, base first, with the ranges of its structures.
pub struct Chain {
    /// How its images are built.
    pub images: Vec<Image>,
    /// Their bytes.
    pub files: Vec<Vec<u8>>,
    /// The used part of each structure, by name.
    pub structures: Vec<Vec<(String, Range<u64>)>>,
}

impl Chain {
    /// The chain of these images.
    pub fn new(images: &[Image]) -> Self {
        let structures = images.iter().map(|image| {
            let layout = image.layout();
            // The used part of each table, the bytes after it, and its end.
            let used = |name: &str, range: Range<u64>| {
                let len = match name {
                    "log" | "metadata" | "payload:0" => return None,
                    "bat" => 8 * (layout.payload.len() as u64 + 3),
                    "region_table1" | "region_table2" => 16 + 4 * 32,
                    "metadata_table" => 32 * 9,
                    name if name.starts_with("header") => 96,
                    name if name.starts_with("bitmap") => 512,
                    name if name.starts_with("log_entry") => 2 * SECTOR as u64,
                    name if name.starts_with("payload") => return None,
                    _ => 600,
                };
                Some((name.to_owned(), range.start..range.end.min(range.start + len)))
            };
            let names = layout.names().into_iter();
            names.filter_map(|name| used(&name, layout.get(&name))).collect()
        });
        Self {
            images: images.to_vec(),
            structures: structures.collect(),
            files: images.iter().map(Image::to_bytes).collect(),
        }
    }
}

/// Chains that together have every structure.
pub fn corpus() -> Vec<Chain> {
    let mut base = Image::dynamic(3 * MIB - 512);
    base.put(0, Block::full(Data::Pattern(1))).put(2, Block::full(Data::Pattern(2)));
    let mut child = base.new_child();
    child.put(0, Block::partial_runs(Data::Pattern(3), &[(3, 5), (100, 1000)]));
    child.put(1, Block::bare(state::ZERO));
    child.locator.set("parent_linkage2", format!("{{{GUID}}}"));
    child.locator.set("absolute_win32_path", r"\\?\d:\vm\parent.vhdx");
    let mut tip = child.new_child();
    tip.put(2, Block::partial_runs(Data::Pattern(4), &[(0, 1), (2046, 1)]));
    let plain = Chain::new(&[base.clone(), child.clone(), tip]);

    let mut fixed = Image::fixed(2 * MIB);
    fixed.logical_sector = 4096;
    fixed.put(1, Block::full(Data::Pattern(5)));
    fixed.add_region(GUID, false, b"another maker's".to_vec());
    let kept = Item::new("other", GUID, 0, Contents::Bytes(b"kept".to_vec()));
    fixed.metadata.items.push(kept);
    let mut over = fixed.new_child();
    (over.size, over.block_size) = (5 * MIB, 2 << 20);
    over.put(0, Block::partial_runs(Data::Pattern(6), &[(1, 300)]));
    let other_sizes = Chain::new(&[fixed, over]);

    let mut before = child.clone();
    before.blocks.clear();
    before.bitmap_chunks.insert(0);
    before.bitmap_at = child.layout().bitmaps;
    let mut dirty = Image::dirty(&before, &child, GUID, 1);
    let spare = dirty.layout().needed_length;
    let zeros = (0..150).map(|n| Descriptor::zero(spare + n * 4096, 4096)).collect();
    let number = dirty.log.last().map_or(0, |entry| entry.sequence_number) + 1;
    dirty.log.push(LogEntry::new(number, zeros));
    let pending = Chain::new(&[base, dirty]);
    vec![plain, other_sizes, pending]
}

/// One change to one file.
#[derive(Clone, Debug)]
pub enum Mutation {
    /// Flips bits in a byte of a structure.
    Flip {
        /// Which structure; of any number, the remainder counts.
        structure: usize,
        /// Where in it, in the same way.
        at: u64,
        /// The bits.
        bits: u8,
    },
    /// Sets a field of `width` bytes.
    Set {
        /// Which structure.
        structure: usize,
        /// Where in it.
        at: u64,
        /// 2, 4 or 8.
        width: u8,
        /// The new value.
        value: u64,
    },
    /// Truncates the file, to a multiple of 4 KiB and a few bytes.
    Cut {
        /// 4 KiB each.
        sectors: u64,
        /// Bytes.
        more: u64,
    },
    /// Copies bytes of one structure over another.
    Copy {
        /// The structure to copy from.
        from: usize,
        /// The structure to copy to.
        to: usize,
        /// At most 300 bytes, of any number the remainder.
        len: u64,
    },
}

/// The bytes of a file, to be changed.
pub trait Changed {
    /// The length of the file.
    fn length(&self) -> u64;
    /// Reads bytes that are there.
    fn get(&self, at: u64, buf: &mut [u8]);
    /// Overwrites bytes that are there.
    fn put(&mut self, at: u64, bytes: &[u8]);
    /// Cuts the file; a shorter one stays as it is.
    fn cut(&mut self, len: u64);
}

impl Changed for Vec<u8> {
    fn length(&self) -> u64 {
        self.len() as u64
    }
    fn get(&self, at: u64, buf: &mut [u8]) {
        buf.copy_from_slice(&self[at as usize..][..buf.len()]);
    }
    fn put(&mut self, at: u64, bytes: &[u8]) {
        self[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    fn cut(&mut self, len: u64) {
        self.truncate(len as usize);
    }
}

#[cfg(feature = "library")]
impl Changed for crate::sim::Bytes {
    fn length(&self) -> u64 {
        self.len()
    }
    fn get(&self, at: u64, buf: &mut [u8]) {
        self.read(at, buf);
    }
    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.write(at, bytes);
    }
    fn cut(&mut self, len: u64) {
        self.set_len(len.min(self.len()));
    }
}

impl Mutation {
    /// Changes the file with these structures.
    pub fn apply(&self, file: &mut impl Changed, structures: &[(String, Range<u64>)]) {
        let place = |structure: &usize, at: u64, width: u64| {
            let (_, range) = &structures[structure % structures.len()];
            let room = (range.end - range.start).saturating_sub(width).max(1);
            range.start + at % room
        };
        let len = file.length();
        match self {
            Self::Flip { structure, at, bits } => {
                let at = place(structure, *at, 1);
                if at < len {
                    let mut byte = [0];
                    file.get(at, &mut byte);
                    file.put(at, &[byte[0] ^ bits]);
                }
            }
            Self::Set { structure, at, width, value } => {
                let bytes = u64::from(*width);
                let at = place(structure, *at, bytes) / bytes * bytes;
                if at + bytes <= len {
                    set(file, at, bytes, *value);
                }
            }
            Self::Cut { sectors, more } => file.cut(sectors * 4096 + more),
            Self::Copy { from, to, len: bytes } => {
                let (from, to) = (place(from, 0, 1), place(to, 0, 1));
                let mut bytes = vec![0; (bytes % 300) as usize];
                if from.max(to) + bytes.len() as u64 <= len {
                    file.get(from, &mut bytes);
                    file.put(to, &bytes);
                }
            }
        }
    }
}

/// Sets a little-endian number of 2, 4 or 8 bytes.
pub fn set(file: &mut impl Changed, at: u64, width: u64, value: u64) {
    file.put(at, &value.to_le_bytes()[..if matches!(width, 2 | 4) { width as usize } else { 8 }]);
}

/// Values that overflow, are misaligned, or lie just inside and outside the allowed range.
pub const EXTREMES: [u64; 24] = [
    0,
    1,
    2,
    7,
    511,
    512,
    4095,
    4096,
    0x1_0000,
    0xF_FFFF,
    MIB,
    MIB + 1,
    256 * MIB,
    512 * MIB,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFF0_0000,
    0xFFFF_FFFF,
    64 << 40,
    i64::MAX as u64,
    1 << 63,
    !0 << 20,
    !0 - 1,
    !0,
];
