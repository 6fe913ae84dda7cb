//! The sound chains to be corrupted, and the corruptions.

use std::ops::Range;

use avhdx_testkit::build::{
    Block, Contents, Data, Descriptor, Image, Item, LogEntry, SECTOR, state,
};
use avhdx_testkit::mutate::{put_u16, put_u32, put_u64};
use proptest::prelude::*;
use uuid::Uuid;

use crate::common::MIB;

pub const GUID: Uuid = Uuid::from_u128(0x1ec0_0000_0000_4000_8000_0000_0000_0001);

/// A sound chain, base first, with the ranges of its structures.
pub struct Chain {
    pub images: Vec<Image>,
    pub files: Vec<Vec<u8>>,
    pub structures: Vec<Vec<(String, Range<u64>)>>,
}

impl Chain {
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
    Flip { structure: usize, at: u64, bits: u8 },
    /// Sets a field of `width` bytes.
    Set { structure: usize, at: u64, width: u8, value: u64 },
    /// Truncates the file, to a multiple of 4 KiB and a few bytes.
    Cut { sectors: u64, more: u64 },
    /// Copies bytes of one structure over another.
    Copy { from: usize, to: usize, len: u64 },
}

impl Mutation {
    pub fn apply(&self, file: &mut Vec<u8>, structures: &[(String, Range<u64>)]) {
        let place = |structure: &usize, at: u64, width: u64| {
            let (_, range) = &structures[structure % structures.len()];
            let room = (range.end - range.start).saturating_sub(width).max(1);
            range.start + at % room
        };
        let len = file.len() as u64;
        match self {
            Self::Flip { structure, at, bits } => {
                let at = place(structure, *at, 1);
                if at < len {
                    file[at as usize] ^= bits;
                }
            }
            Self::Set { structure, at, width, value } => {
                let width = u64::from(*width);
                let at = place(structure, *at, width) / width * width;
                if at + width <= len {
                    set(file, at, width, *value);
                }
            }
            Self::Cut { sectors, more } => file.truncate((sectors * 4096 + more) as usize),
            Self::Copy { from, to, len: bytes } => {
                let (from, to) = (place(from, 0, 1), place(to, 0, 1));
                let bytes = *bytes % 300;
                if from.max(to) + bytes <= len {
                    file.copy_within(from as usize..(from + bytes) as usize, to as usize);
                }
            }
        }
    }
}

pub fn set(file: &mut [u8], at: u64, width: u64, value: u64) {
    match width {
        2 => put_u16(file, at, value as u16),
        4 => put_u32(file, at, value as u32),
        _ => put_u64(file, at, value),
    }
}

/// Values that overflow, are misaligned, or lie just inside and outside the allowed range.
const EXTREMES: [u64; 24] = [
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

pub fn any_mutation() -> impl Strategy<Value = Mutation> {
    let at = || prop_oneof![0..64_u64, 0..5000_u64];
    let structure = || 0..1000_usize;
    let width = || prop_oneof![Just(2_u8), Just(4), Just(8)];
    let value = || {
        prop_oneof![
            proptest::sample::select(&EXTREMES[..]),
            any::<u64>(),
            // A small number of MiB and a block state.
            (0..12_u64, 0..8_u64).prop_map(|(mib, state)| mib << 20 | state),
        ]
    };
    prop_oneof![
        4 => (structure(), at(), 1..=255_u8)
            .prop_map(|(structure, at, bits)| Mutation::Flip { structure, at, bits }),
        8 => (structure(), at(), width(), value())
            .prop_map(|(structure, at, width, value)| Mutation::Set { structure, at, width, value }),
        1 => (0..3000_u64, prop_oneof![Just(0_u64), 0..4096_u64])
            .prop_map(|(sectors, more)| Mutation::Cut { sectors, more }),
        1 => (structure(), structure(), any::<u64>())
            .prop_map(|(from, to, len)| Mutation::Copy { from, to, len }),
    ]
}
