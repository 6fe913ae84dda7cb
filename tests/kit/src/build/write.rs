//! Serializes an image description.

use super::layout::{BITMAP_BLOCK, METADATA_TABLE};
use super::{
    Contents, DEFAULT_PARENT, Data, Descriptor, Image, Layout, LogEntry, SECTOR, log, state,
};
use crate::io::{SparseFile, is_zero, ok};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The first sequence number of a dirty log: Windows, too, uses all 64 bits.
const FIRST_NUMBER: u64 = 0x0123_4567_FFFF_FFFF;

/// Receives bytes for a file offset.
type Sink<'a> = &'a mut dyn FnMut(u64, &[u8]);

/// Writes images, base first, as `l0.vhdx`, `l1.vhdx`, … to a folder; a default `relative_path`
/// is set to the layer below. Returns the paths, base first.
pub fn write_chain(dir: &Path, images: &[Image]) -> Vec<PathBuf> {
    let write = |(n, image): (usize, &Image)| {
        let mut image = image.clone();
        let default = ("relative_path".into(), DEFAULT_PARENT.into());
        if n > 0 && image.locator.pairs.contains(&default) {
            image.parent_path(&format!(".\\l{}.vhdx", n - 1));
        }
        let path = dir.join(format!("l{n}.vhdx"));
        image.write_to(&path);
        path
    };
    images.iter().enumerate().map(write).collect()
}

impl Image {
    /// Writes the image sparsely: an empty BAT, zero blocks and gaps are holes.
    pub fn write_to(&self, path: impl AsRef<Path>) -> Layout {
        let (path, layout) = (path.as_ref(), self.layout());
        let mut out = SparseFile::new(ok(path, File::create(path)));
        let mut put = |at: u64, bytes: &[u8]| ok(path, out.put(at, bytes));
        self.structures(&layout, &mut put);
        self.payload(&layout, &mut put);
        self.patches.iter().for_each(|(at, bytes)| put(*at, bytes));
        ok(path, out.finish(layout.file_length));
        layout
    }

    /// Hands the image over in pieces, each with its file offset; what no piece covers is zeros.
    pub fn put_to(&self, put: &mut dyn FnMut(u64, &[u8])) -> Layout {
        let layout = self.layout();
        self.structures(&layout, put);
        self.payload(&layout, put);
        self.patches.iter().for_each(|(at, bytes)| put(*at, bytes));
        layout
    }

    /// The image's bytes, for small ones.
    pub fn to_bytes(&self) -> Vec<u8> {
        let layout = self.layout();
        assert!(layout.file_length <= 1 << 32, "too large for memory: use write_to");
        let mut out = vec![0; layout.file_length as usize];
        // Everything past the chosen length of the file is dropped.
        let mut put = |at: u64, bytes: &[u8]| {
            if at < out.len() as u64 {
                let at = at as usize;
                let n = bytes.len().min(out.len() - at);
                out[at..at + n].copy_from_slice(&bytes[..n]);
            }
        };
        self.structures(&layout, &mut put);
        self.payload(&layout, &mut put);
        self.patches.iter().for_each(|(at, bytes)| put(*at, bytes));
        out
    }

    /// The image `after` as a crash left it: the log holds every change of metadata since
    /// `before`, in entries of at most `per_entry` updates, and none is applied yet. After
    /// replay the visible bytes are those of `after`. Both must place regions and bitmaps alike; blocks that
    /// only the BAT of `before` refers to may be missing.
    pub fn dirty(before: &Self, after: &Self, log_guid: Uuid, per_entry: usize) -> Self {
        let (old, new) = (before.metadata_pages(), after.metadata_pages());
        let mut image = after.clone();
        let zeros = vec![0; SECTOR];
        let mut updates = Vec::new();
        let mut offsets: Vec<u64> = old.keys().chain(new.keys()).copied().collect();
        offsets.sort_unstable();
        offsets.dedup();
        for at in offsets {
            let was = old.get(&at).unwrap_or(&zeros);
            let is = new.get(&at).unwrap_or(&zeros);
            if was != is {
                image.patches.push((at, was.clone()));
                updates.push(match is_zero(is) {
                    true => Descriptor::zero(at, SECTOR as u64),
                    false => Descriptor::data(at, is.clone()),
                });
            }
        }
        image.log = updates
            .chunks(per_entry.max(1))
            .zip(FIRST_NUMBER..)
            .map(|(part, number)| LogEntry::new(number, part.to_vec()))
            .collect();
        if image.log.is_empty() {
            image.log.push(LogEntry::new(FIRST_NUMBER, Vec::new()));
        }
        image.set_log_guid(log_guid);
        image
    }

    /// The 4 KiB pages that a log may update, except for pages of zeros.
    fn metadata_pages(&self) -> BTreeMap<u64, Vec<u8>> {
        let layout = self.layout();
        let mut pages: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let no_log = [layout.get("file_type"), layout.get("header1"), layout.get("header2")];
        let log = layout.get("log");
        let mut put = |at: u64, bytes: &[u8]| {
            if no_log.iter().chain([&log]).any(|r| r.contains(&at)) {
                return;
            }
            let mut done = 0;
            while done < bytes.len() {
                let here = at + done as u64;
                let within = (here % SECTOR as u64) as usize;
                let n = (SECTOR - within).min(bytes.len() - done);
                let part = &bytes[done..done + n];
                let start = here - within as u64;
                if !is_zero(part) || pages.contains_key(&start) {
                    let page = pages.entry(start).or_insert_with(|| vec![0; SECTOR]);
                    page[within..within + n].copy_from_slice(part);
                }
                done += n;
            }
        };
        self.structures(&layout, &mut put);
        pages
    }

    fn structures(&self, layout: &Layout, put: Sink<'_>) {
        let mut file_type = self.signature.to_vec();
        file_type.extend(self.creator.iter().take(256).flat_map(|u| u.to_le_bytes()));
        put(0, &file_type);
        for (h, at) in self.headers.iter().zip([64 << 10, 128 << 10]) {
            if let Some(h) = h {
                put(at, &h.bytes(self.log_offset, self.log_length));
            }
        }
        for (t, at) in self.region_tables.iter().zip([192 << 10, 256 << 10]) {
            if let Some(t) = t {
                put(at, &t.bytes(|guid| self.region(guid)));
            }
        }
        for (r, at) in self.extra_regions.iter().zip(self.extra_region_offsets()) {
            put(at, &r.contents);
        }
        self.metadata(put);
        self.bat(layout, put);
        self.bitmaps(layout, put);
        if !self.log.is_empty() {
            let guid = self.newest_header().map_or(Uuid::nil(), |h| h.log_guid);
            let (flushed, last) = (layout.file_length, layout.needed_length);
            let ring = log::ring(&self.log, self.log_length, guid, flushed, last);
            put(self.log_offset, &ring);
        }
    }

    /// [MS-VHDX] 2.6.1
    fn metadata(&self, put: Sink<'_>) {
        let m = &self.metadata;
        let items = self.placed_items();
        let mut table = vec![0; 32 + 32 * m.items.len()];
        table[0..8].copy_from_slice(&m.signature);
        let count = m.entry_count.unwrap_or(m.items.len() as u16);
        table[10..12].copy_from_slice(&count.to_le_bytes());
        for (i, (item, (offset, bytes))) in m.items.iter().zip(&items).enumerate() {
            let e = &mut table[32 + 32 * i..64 + 32 * i];
            e[0..16].copy_from_slice(&item.id.to_bytes_le());
            e[16..20].copy_from_slice(&offset.to_le_bytes());
            let length = item.length.unwrap_or(bytes.len() as u32);
            e[20..24].copy_from_slice(&length.to_le_bytes());
            e[24..28].copy_from_slice(&item.flags.to_le_bytes());
            if let Some(raw) = item.raw_entry {
                e.copy_from_slice(&raw);
            }
            put(self.metadata_offset + u64::from(*offset), bytes);
        }
        table.truncate(METADATA_TABLE as usize);
        put(self.metadata_offset, &table);
    }

    pub(super) fn item_bytes(&self, contents: &Contents) -> Vec<u8> {
        match contents {
            Contents::FileParameters => {
                let flags =
                    u32::from(self.leave_blocks_allocated) | u32::from(self.has_parent) << 1;
                [self.block_size.to_le_bytes(), flags.to_le_bytes()].concat()
            }
            Contents::DiskSize => self.size.to_le_bytes().into(),
            Contents::DiskId => self.disk_id.to_bytes_le().into(),
            Contents::LogicalSector => self.logical_sector.to_le_bytes().into(),
            Contents::PhysicalSector => self.physical_sector.to_le_bytes().into(),
            Contents::Locator => self.locator.bytes(),
            Contents::Bytes(b) => b.clone(),
        }
    }

    /// Only pages of the BAT with an entry are written: the rest stays a hole.
    fn bat(&self, layout: &Layout, put: Sink<'_>) {
        let mut entries: BTreeMap<u64, u64> = BTreeMap::new();
        for (b, at) in &layout.payload {
            entries.insert(self.bat_index(*b), at | u64::from(state::FULLY_PRESENT));
        }
        for (b, block) in &self.blocks {
            let at = layout.payload.get(b).copied().or(block.at).unwrap_or(0);
            entries.insert(self.bat_index(*b), at | u64::from(block.state));
        }
        for (c, at) in &layout.bitmaps {
            entries.insert(self.bitmap_index(*c), at | u64::from(state::FULLY_PRESENT));
        }
        entries.extend(&self.bat_override);
        let mut run: Vec<u8> = Vec::new();
        let mut run_at = 0;
        for (i, entry) in entries {
            // Runs are limited so that a huge BAT is not held twice.
            if run_at + run.len() as u64 / 8 != i || run.len() >= 1 << 20 {
                put(self.bat_offset + 8 * run_at, &run);
                run.clear();
                run_at = i;
            }
            run.extend(entry.to_le_bytes());
        }
        put(self.bat_offset + 8 * run_at, &run);
    }

    /// [MS-VHDX] 2.4: one bit per sector of the chunk, lowest bit first.
    fn bitmaps(&self, layout: &Layout, put: Sink<'_>) {
        let (ratio, per_block) = (self.chunk_ratio(), self.sectors_per_block());
        for (c, at) in &layout.bitmaps {
            let mut bytes = vec![0u8; BITMAP_BLOCK as usize];
            for (b, block) in self.blocks.range(c * ratio..(c + 1) * ratio) {
                let first = (b % ratio) * per_block;
                let bits = block.bitmap.iter().take(per_block as usize);
                for (s, _) in (first..).zip(bits).filter(|(_, set)| **set) {
                    bytes[s as usize / 8] |= 1 << (s % 8);
                }
            }
            put(*at, &bytes);
        }
    }

    fn payload(&self, layout: &Layout, put: Sink<'_>) {
        let mut buf = Vec::new();
        for (b, block) in &self.blocks {
            let Some(at) = layout.payload.get(b) else {
                continue;
            };
            if block.data == Data::Zeros {
                continue;
            }
            // Large blocks are written in parts.
            let size = self.block_size as usize;
            for from in (0..size).step_by(4 << 20) {
                buf.resize((size - from).min(4 << 20), 0);
                block.data.fill(b * u64::from(self.block_size), from, &mut buf);
                put(at + from as u64, &buf);
            }
        }
    }
}
