//! The place of every structure of an image in its file.

use super::{Image, MIB, Order, REGION_BAT, REGION_METADATA, log};
use crate::rng::Rng;
use std::collections::BTreeMap;
use std::ops::Range;
use uuid::Uuid;

/// The size of a bitmap block. [MS-VHDX] 2.4
pub(super) const BITMAP_BLOCK: u64 = MIB;
/// The size of the metadata table, after which items start in the region. [MS-VHDX] 2.6.1
pub(super) const METADATA_TABLE: u64 = 64 << 10;

/// Named byte ranges of a file.
///
/// Names: `file_type`, `header1`, `header2`, `region_table1`, `region_table2`, `log`,
/// `log_entry:<index>` (up to the ring's end), `metadata`, `metadata_table`,
/// `metadata_entry:<item>`, `metadata_item:<item>`, `locator`, `bat`, `region:<guid>`,
/// `bitmap:<chunk>`, `payload:<block>`.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// All ranges except for those of blocks.
    pub ranges: BTreeMap<String, Range<u64>>,
    /// File offsets of payload blocks that have space.
    pub payload: BTreeMap<u64, u64>,
    /// File offsets of bitmap blocks, by chunk.
    pub bitmaps: BTreeMap<u64, u64>,
    /// The length of the file.
    pub file_length: u64,
    /// The length that all structures need, in whole MiB.
    pub needed_length: u64,
    bat_offset: u64,
    block_size: u64,
    chunk_ratio: u64,
}

impl Layout {
    /// The range with this name, if the image has it.
    pub fn find(&self, name: &str) -> Option<Range<u64>> {
        if let Some(r) = self.ranges.get(name) {
            return Some(r.clone());
        }
        let (kind, n) = name.split_once(':')?;
        let n: u64 = n.parse().ok()?;
        let (at, len) = match kind {
            "payload" => (*self.payload.get(&n)?, self.block_size),
            "bitmap" => (*self.bitmaps.get(&n)?, BITMAP_BLOCK),
            _ => return None,
        };
        Some(at..at + len)
    }

    /// The range with this name. Panics with all names if there is none.
    pub fn get(&self, name: &str) -> Range<u64> {
        self.find(name).unwrap_or_else(|| panic!("no {name:?} among {:?}", self.names()))
    }

    /// All names.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.ranges.keys().cloned().collect();
        names.extend(self.bitmaps.keys().map(|n| format!("bitmap:{n}")));
        names.extend(self.payload.keys().map(|n| format!("payload:{n}")));
        names
    }

    /// The BAT entry with this index.
    pub fn bat_entry(&self, index: u64) -> Range<u64> {
        let at = self.bat_offset + 8 * index;
        at..at + 8
    }

    /// The BAT entry of a payload block.
    pub fn payload_entry(&self, block: u64) -> Range<u64> {
        self.bat_entry(block + block / self.chunk_ratio)
    }

    /// The BAT entry of a chunk's bitmap block.
    pub fn bitmap_entry(&self, chunk: u64) -> Range<u64> {
        self.bat_entry(chunk * (self.chunk_ratio + 1) + self.chunk_ratio)
    }
}

/// Something that takes space after the regions.
enum Thing {
    Payload(u64),
    Bitmap(u64),
}

impl Image {
    /// Computes the layout without writing anything.
    pub fn layout(&self) -> Layout {
        let bat_length = self.bat_bytes();
        let mut out = Layout {
            bat_offset: self.bat_offset,
            block_size: self.block_size.into(),
            chunk_ratio: self.chunk_ratio(),
            ..Layout::default()
        };
        let mut add = |name: String, at: u64, len: u64| out.ranges.insert(name, at..at + len);
        for (name, at, len) in [
            ("file_type", 0, 64 << 10),
            ("header1", 64 << 10, 4096),
            ("header2", 128 << 10, 4096),
            ("region_table1", 192 << 10, 64 << 10),
            ("region_table2", 256 << 10, 64 << 10),
            ("log", self.log_offset, self.log_length.into()),
            ("metadata", self.metadata_offset, self.metadata_length.into()),
            ("metadata_table", self.metadata_offset, METADATA_TABLE),
            ("bat", self.bat_offset, bat_length.into()),
        ] {
            add(name.into(), at, len);
        }
        let mut end = self.regions_end();
        for (r, at) in self.extra_regions.iter().zip(self.extra_region_offsets()) {
            let len = region_length(r.contents.len());
            end = end.max(at + u64::from(len));
            add(format!("region:{}", r.guid), at, len.into());
        }
        for (i, (item, (at, bytes))) in
            self.metadata.items.iter().zip(self.placed_items()).enumerate()
        {
            let entry = self.metadata_offset + 32 + 32 * i as u64;
            add(format!("metadata_entry:{}", item.name), entry, 32);
            let at = self.metadata_offset + u64::from(at);
            add(format!("metadata_item:{}", item.name), at, bytes.len() as u64);
            if item.contents == super::Contents::Locator {
                add("locator".into(), at, bytes.len() as u64);
            }
        }
        if self.log_length > 0 {
            let starts = log::positions(&self.log, self.log_length);
            for (i, (e, at)) in self.log.iter().zip(starts).enumerate() {
                let len = (e.length() as u64).min(u64::from(self.log_length.saturating_sub(at)));
                add(format!("log_entry:{i}"), self.log_offset + u64::from(at), len);
            }
        }
        let ends = self.place_blocks(self.data_offset.unwrap_or(end), &mut out);
        out.needed_length = end.max(ends).next_multiple_of(MIB);
        out.file_length = self.file_length.unwrap_or(out.needed_length);
        out
    }

    /// The length of the BAT region.
    pub(super) fn bat_bytes(&self) -> u32 {
        let chunks = self.block_count().div_ceil(self.chunk_ratio());
        let bytes = (chunks * (self.chunk_ratio() + 1) * 8).max(1).next_multiple_of(MIB);
        self.bat_length.unwrap_or_else(|| bytes.try_into().expect("the BAT fits its length field"))
    }

    /// The place of the region with this GUID; zeros if there is none.
    pub(super) fn region(&self, guid: Uuid) -> (u64, u32) {
        if guid == REGION_BAT {
            return (self.bat_offset, self.bat_bytes());
        }
        if guid == REGION_METADATA {
            return (self.metadata_offset, self.metadata_length);
        }
        let mut extra = self.extra_regions.iter().zip(self.extra_region_offsets());
        extra
            .find(|(r, _)| r.guid == guid)
            .map_or((0, 0), |(r, at)| (at, region_length(r.contents.len())))
    }

    pub(super) fn extra_region_offsets(&self) -> Vec<u64> {
        let mut next = self.regions_end();
        let place = |r: &super::ExtraRegion| {
            let at = r.offset.unwrap_or(next);
            next = next.max(at + u64::from(region_length(r.contents.len())));
            at
        };
        self.extra_regions.iter().map(place).collect()
    }

    /// The end of the regions that every image has.
    fn regions_end(&self) -> u64 {
        let ends = [
            MIB,
            self.log_offset + u64::from(self.log_length),
            self.metadata_offset + u64::from(self.metadata_length),
            self.bat_offset + u64::from(self.bat_bytes()),
        ];
        ends.into_iter().max().unwrap_or(MIB)
    }

    /// Places every block that needs space; returns the end of the last one.
    fn place_blocks(&self, from: u64, out: &mut Layout) -> u64 {
        let mut things = Vec::new();
        let mut chunks = self.bitmap_chunks_all().into_iter().peekable();
        let ratio = self.chunk_ratio();
        let every = if self.allocate_all { self.block_count() } else { 0 };
        let unlisted = (0..every).filter(|b| !self.blocks.contains_key(b));
        let listed = self.blocks.iter().filter(|(_, b)| b.data != super::Data::None);
        let mut blocks: Vec<u64> = unlisted.chain(listed.map(|(n, _)| *n)).collect();
        blocks.sort_unstable();
        for b in blocks {
            while let Some(c) = chunks.next_if(|c| *c <= b / ratio) {
                things.push(Thing::Bitmap(c));
            }
            things.push(Thing::Payload(b));
        }
        things.extend(chunks.map(Thing::Bitmap));
        match self.order {
            Order::Sequential => {}
            Order::Reversed => things.reverse(),
            Order::Shuffled(seed) => Rng::new(seed).shuffle(&mut things),
        }
        let (mut next, mut end) = (from, 0);
        for thing in things {
            let (explicit, len) = match thing {
                Thing::Payload(b) => {
                    (self.blocks.get(&b).and_then(|b| b.at), u64::from(self.block_size))
                }
                Thing::Bitmap(c) => (self.bitmap_at.get(&c).copied(), BITMAP_BLOCK),
            };
            let at = explicit.unwrap_or_else(|| {
                let at = next + self.gap;
                next = at + len;
                at
            });
            end = end.max(at + len);
            match thing {
                Thing::Payload(b) => out.payload.insert(b, at),
                Thing::Bitmap(c) => out.bitmaps.insert(c, at),
            };
        }
        end
    }

    /// Items with their offsets in the region, in the order of the table.
    pub(super) fn placed_items(&self) -> Vec<(u32, Vec<u8>)> {
        let mut next = METADATA_TABLE as u32;
        let place = |item: &super::Item| {
            let bytes = self.item_bytes(&item.contents);
            let at = item.offset.unwrap_or(if bytes.is_empty() { 0 } else { next });
            if item.offset.is_none() {
                next = (next + bytes.len() as u32).next_multiple_of(8);
            }
            (at, bytes)
        };
        self.metadata.items.iter().map(place).collect()
    }
}

/// Regions take whole MiB.
fn region_length(bytes: usize) -> u32 {
    (bytes.max(1) as u64).next_multiple_of(MIB) as u32
}
