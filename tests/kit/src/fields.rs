//! Every number in an image's structures, its place, and values that are likely to break a reader.

use crate::build::{Contents, Descriptor, Image};
use crate::mutate::{put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};

/// A number in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its file offsets: several if the file has copies of the structure.
    pub at: Vec<u64>,
    /// Its size in bytes: 2, 4 or 8.
    pub width: u8,
}

impl Field {
    fn new(name: impl Into<String>, at: u64, width: u8) -> Self {
        Self { name: name.into(), at: vec![at], width }
    }

    /// The value at its first offset.
    pub fn value(&self, bytes: &[u8]) -> u64 {
        match self.width {
            2 => u16_at(bytes, self.at[0]).into(),
            4 => u32_at(bytes, self.at[0]).into(),
            _ => u64_at(bytes, self.at[0]),
        }
    }

    /// Sets it at all its offsets. Checksums are wrong afterwards, see [`reseal`](crate::mutate::reseal).
    pub fn set(&self, bytes: &mut [u8], value: u64) {
        for at in &self.at {
            match self.width {
                2 => put_u16(bytes, *at, value as u16),
                4 => put_u32(bytes, *at, value as u32),
                _ => put_u64(bytes, *at, value),
            }
        }
    }

    /// Values at the ends of the field's range, on both sides of its middle and of `now`, and in whole MiB,
    /// without duplicates and without `now`.
    pub fn extremes(&self, now: u64) -> Vec<u64> {
        let bits = 8 * u32::from(self.width);
        let most = u64::MAX >> (64 - bits);
        let middle = 1 << (bits - 1);
        let aligned = most & !0xF_FFFF;
        let mut values = vec![0, 1, most, most - 1, middle, middle - 1, aligned, aligned / 2 + 1];
        values.extend([now.wrapping_add(1) & most, now.wrapping_sub(1) & most]);
        values.sort_unstable();
        values.dedup();
        values.retain(|value| *value != now);
        values
    }
}

/// All numbers in the structures of an image: headers, region tables, metadata, block allocation table and log.
/// Descriptors of a log entry that resemble the first few are left out.
pub fn fields(image: &Image) -> Vec<Field> {
    let layout = image.layout();
    let mut all = Vec::new();
    // [MS-VHDX] 2.2.2
    let header = |at: u64| {
        [("signature", 0, 4), ("sequence_number", 8, 8), ("log_version", 64, 2), ("version", 66, 2)]
            .into_iter()
            .chain([("log_length", 68, 4), ("log_offset", 72, 8), ("reserved", 80, 8)])
            .map(move |(name, place, width)| Field::new(name, at + place, width))
    };
    twice("header", ["header1", "header2"].map(|n| header(layout.get(n).start)), &mut all);
    // [MS-VHDX] 2.2.3
    let regions = image.region_tables.iter().flatten().map(|table| table.entries.len()).max();
    let table = |at: u64| {
        let entry = move |i: usize| {
            let start = at + 16 + 32 * i as u64;
            [("file_offset", 16, 8), ("length", 24, 4), ("required", 28, 4)]
                .map(|(name, place, width)| Field::new(format!("{name}:{i}"), start + place, width))
        };
        [("signature", 0, 4), ("entry_count", 8, 4), ("reserved", 12, 4)]
            .map(|(name, place, width)| Field::new(name, at + place, width))
            .into_iter()
            .chain((0..regions.unwrap_or(0)).flat_map(entry))
    };
    let tables = ["region_table1", "region_table2"].map(|name| table(layout.get(name).start));
    twice("region_table", tables, &mut all);
    metadata(image, &mut all);
    // [MS-VHDX] 2.5: all entries that the disk needs, including those of sector bitmap blocks.
    let chunks = image.block_count().div_ceil(image.chunk_ratio());
    let payload = (0..image.block_count()).map(|b| ("payload", b, layout.payload_entry(b)));
    let bitmaps = (0..chunks).map(|c| ("bitmap", c, layout.bitmap_entry(c)));
    let within = layout.get("bat");
    for (kind, n, range) in payload.chain(bitmaps).filter(|(.., r)| r.end <= within.end) {
        all.push(Field::new(format!("bat:{kind}:{n}"), range.start, 8));
    }
    log(image, &mut all);
    all.retain(|field| field.at.iter().all(|at| at + u64::from(field.width) <= layout.file_length));
    all
}

/// The fields of a structure with two copies: of each copy alone, and of both.
fn twice(name: &str, copies: [impl Iterator<Item = Field>; 2], all: &mut Vec<Field>) {
    let [first, second] = copies;
    for (a, b) in first.zip(second) {
        let at = vec![a.at[0], b.at[0]];
        let named =
            |of: &str, at| Field { name: format!("{name}{of}:{}", a.name), at, ..a.clone() };
        all.extend([named("1", a.at.clone()), named("2", b.at.clone()), named("s", at)]);
    }
}

/// [MS-VHDX] 2.6
fn metadata(image: &Image, all: &mut Vec<Field>) {
    let layout = image.layout();
    let table = layout.get("metadata_table").start;
    for (name, place, width) in [("reserved", 8, 2), ("entry_count", 10, 2), ("reserved2", 12, 4)] {
        all.push(Field::new(format!("metadata:{name}"), table + place, width));
    }
    for item in &image.metadata.items {
        let entry = layout.get(&format!("metadata_entry:{}", item.name)).start;
        let parts = [("offset", 16), ("length", 20), ("flags", 24), ("reserved", 28)];
        for (name, place) in parts {
            all.push(Field::new(format!("metadata_entry:{}:{name}", item.name), entry + place, 4));
        }
        let at = layout.get(&format!("metadata_item:{}", item.name)).start;
        let parts: &[(&str, u64, u8)] = match item.contents {
            Contents::FileParameters => &[("block_size", 0, 4), ("flags", 4, 4)],
            Contents::DiskSize => &[("size", 0, 8)],
            Contents::LogicalSector | Contents::PhysicalSector => &[("sector", 0, 4)],
            Contents::Locator => &[("reserved", 16, 2), ("key_value_count", 18, 2)],
            _ => &[],
        };
        for (name, place, width) in parts {
            all.push(Field::new(format!("{}:{name}", item.name), at + place, *width));
        }
        if item.contents == Contents::Locator {
            for i in 0..image.locator.pairs.len() as u64 {
                let start = at + 20 + 12 * i;
                for (name, place, width) in
                    [("key_offset", 0, 4), ("value_offset", 4, 4), ("key_length", 8, 2)]
                        .into_iter()
                        .chain([("value_length", 10, 2)])
                {
                    all.push(Field::new(format!("locator:{i}:{name}"), start + place, width));
                }
            }
        }
    }
}

/// [MS-VHDX] 2.3.1
fn log(image: &Image, all: &mut Vec<Field>) {
    const SOME: usize = 3;
    let layout = image.layout();
    let ring = layout.get("log");
    for (n, entry) in image.log.iter().enumerate() {
        let start = layout.get(&format!("log_entry:{n}")).start;
        // Past its end the ring continues at its start.
        let place = |at: u64| ring.start + (start - ring.start + at) % (ring.end - ring.start);
        let mut add = |name: String, at: u64, width: u8| {
            all.push(Field::new(format!("log_entry:{n}:{name}"), place(at), width));
        };
        for (name, at, width) in [
            ("entry_length", 8, 4),
            ("tail", 12, 4),
            ("sequence_number", 16, 8),
            ("descriptor_count", 24, 4),
            ("reserved", 28, 4),
            ("flushed_file_offset", 48, 8),
            ("last_file_offset", 56, 8),
        ] {
            add(name.into(), at, width);
        }
        let kind = |d: &Descriptor| std::mem::discriminant(d);
        let mut data = (entry.descriptors.len() as u64 + 2).div_ceil(128) * 4096;
        for (i, descriptor) in entry.descriptors.iter().enumerate() {
            let alike = entry.descriptors[..i].iter().filter(|d| kind(d) == kind(descriptor));
            let is_told = alike.count() < SOME;
            let at = 64 + 32 * i as u64;
            if is_told {
                add(format!("descriptor:{i}:file_offset"), at + 16, 8);
                add(format!("descriptor:{i}:sequence_number"), at + 24, 8);
                if matches!(descriptor, Descriptor::Zero { .. }) {
                    add(format!("descriptor:{i}:zero_length"), at + 8, 8);
                }
            }
            if matches!(descriptor, Descriptor::Data { .. }) {
                if is_told {
                    add(format!("descriptor:{i}:sequence_high"), data + 4, 4);
                    add(format!("descriptor:{i}:sequence_low"), data + 4092, 4);
                }
                data += 4096;
            }
        }
    }
}

/// Entries of a block allocation table that are likely to break a reader: every state without an offset, at the given
/// offsets, beyond `end`, and at the extremes of what an entry can refer to. [MS-VHDX] 2.5.1
pub fn bat_entries(places: &[u64], end: u64) -> Vec<u64> {
    let far = [end, end - 0x10_0000, end + 0x10_0000, 1 << 62, 1 << 63, !1 << 20, !0 << 20];
    let places: Vec<u64> =
        [0, 0x10_0000].into_iter().chain(places.iter().copied()).chain(far).collect();
    let mut entries: Vec<u64> = places
        .iter()
        .flat_map(|place| (0..8).map(move |state| place & !0xF_FFFF | state))
        .collect();
    // Reserved bits.
    entries.extend(places.iter().map(|place| place | 0xF_FFF8 | 6));
    entries.sort_unstable();
    entries.dedup();
    entries
}
