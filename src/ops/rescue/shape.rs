//! Determines the sizes of a disk and the place of its block allocation table.

use std::ops::Range;

use super::anatomy::Anatomy;
use super::grade::Fact;
use super::items::Items;
use super::partitions::size_by_partitions;
use super::signs::{is_like_table, is_possible};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BITMAP_BLOCK_LEN, BatEntry, BlockLayout, ENTRY_LEN};
use crate::format::log_entry::SECTOR;
use crate::format::metadata::{
    BLOCK_SIZES, SECTOR_SIZES, is_block_size, is_disk_size, is_sector_size,
};
use crate::image::{Units, units};
use crate::storage::Storage;
use crate::types::{BatIndex, KIB, MIB};

/// How many entries of a table are looked at to learn what it is.
const MOST_ENTRIES: usize = 1 << 20;
/// How many candidates the log may add.
const MOST_OF_LOG: usize = 64;
/// The longest table: one of the largest disk in the smallest blocks, with its bitmap entries.
const LONGEST_TABLE: u64 = (64 << 20) * ENTRY_LEN * 2;
const WINDOW: u64 = 64 * KIB;

/// What the caller knows of the disk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Given {
    pub(super) size: Option<u64>,
    pub(super) block_size: Option<u32>,
    pub(super) sector: Option<u32>,
}

/// The sizes of a disk, and where its table lies.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) layout: BlockLayout,
    pub(super) physical_sector: u32,
    pub(super) has_parent: bool,
    pub(super) table: Option<Range<u64>>,
    /// Whether the table was found by what it looks like.
    pub(super) is_searched: bool,
    /// Whether the size of the disk is certain.
    pub(super) is_size_sure: bool,
    /// Other places that look like tables of this disk, as a move of the table leaves them.
    pub(super) siblings: Vec<u64>,
}

impl Given {
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |what: &str, found: u64, expected: &str| {
            let message = format!("no {what} that the format allows");
            Err(Error::new(ErrorKind::InvalidInput, "rescue.given", message)
                .with_found(found)
                .with_expected(expected))
        };
        if let Some(block) = self.block_size.filter(|block| !is_block_size(*block)) {
            return refuse("block size", block.into(), BLOCK_SIZES);
        }
        if let Some(sector) = self.sector.filter(|sector| !is_sector_size(*sector)) {
            return refuse("sector size", sector.into(), SECTOR_SIZES);
        }
        let sector = self.sector.unwrap_or(512);
        match self.size.filter(|size| *size == 0 || !is_disk_size(*size, sector)) {
            Some(size) => refuse("disk size", size, "a multiple of the sector size, up to 64 TiB"),
            None => Ok(()),
        }
    }
}

/// The entries of a candidate.
struct Entries {
    at: u64,
    /// Those that are not zero, by index.
    named: Vec<(u64, BatEntry)>,
    /// The first that is none.
    end: u64,
}

impl Entries {
    fn read(anatomy: &Anatomy, at: u64, len: u64) -> Self {
        let end = at.saturating_add(len.min(LONGEST_TABLE)).min(anatomy.file_len);
        let mut found = Self { at, named: Vec::new(), end: (end.saturating_sub(at)) / ENTRY_LEN };
        let mut window = vec![0; WINDOW as usize];
        let mut place = at;
        while place < end {
            // A hole has no entries.
            let data = anatomy.storage.next_data(place).ok().flatten();
            let Some(data) = data.filter(|data| data.start < end) else { break };
            place = place.max(at + (data.start.saturating_sub(at)) / WINDOW * WINDOW);
            anatomy.read(&mut window, place);
            let entries = window.chunks_exact(ENTRY_LEN as usize).map(BatEntry::read);
            for (index, entry) in ((place - at) / ENTRY_LEN..).zip(entries) {
                if index >= found.end || entry.0 == 0 {
                    continue;
                }
                if !is_possible(entry, anatomy.file_len) || found.named.len() == MOST_ENTRIES {
                    found.end = index;
                    return found;
                }
                found.named.push((index, entry));
            }
            place += WINDOW;
        }
        found
    }

    fn last(&self) -> Option<u64> {
        self.named.last().map(|(index, _)| *index)
    }

    /// How many blocks the table names, if every entry is one of this disk's.
    fn fit(&self, layout: &BlockLayout, has_parent: bool, anatomy: &Anatomy) -> Option<u64> {
        if self.end < layout.entries_needed() {
            return None;
        }
        let own = self.at..self.at + layout.entries_needed() * ENTRY_LEN;
        let mut used = Units::default();
        for range in anatomy.structures.iter().chain([&own]) {
            let end = range.end.min(anatomy.file_len);
            used.take(units(range.start, end.saturating_sub(range.start)));
        }
        let mut blocks = 0;
        for (index, entry) in &self.named {
            let len = match layout.is_bitmap_index(BatIndex(*index)) {
                true if !has_parent || entry.state_bits() != 6 => return None,
                true => BITMAP_BLOCK_LEN,
                false => layout.block_size(),
            };
            let is_slack = *index >= layout.entries_reserved()
                || len != BITMAP_BLOCK_LEN
                    && layout.block_of_payload(BatIndex(*index)).0 >= layout.blocks();
            if is_slack || entry.state_bits() == 7 && !has_parent {
                return None;
            }
            if entry.state_bits() >= 6 {
                blocks += 1;
                let start = entry.offset().get();
                let len = len.min(anatomy.file_len - start);
                if used.take(units(start, len)) {
                    return None;
                }
            }
        }
        (blocks > 0).then_some(blocks)
    }

    /// The largest blocks that have room between these entries.
    fn block_size(&self, sector: u32, file_len: u64) -> Option<u32> {
        let mut starts: Vec<u64> = self
            .named
            .iter()
            .filter(|(_, entry)| entry.state_bits() >= 6)
            .map(|(_, entry)| entry.offset().get())
            .collect();
        starts.sort_unstable();
        (20..=28).rev().map(|shift| 1_u32 << shift).find(|block| {
            let Some(last) = self.last() else { return false };
            let layout = BlockLayout::new(*block, sector, u64::from(*block) * (last + 1));
            let is_bitmap = |start: u64| {
                self.named.iter().any(|(index, entry)| {
                    entry.offset().get() == start && layout.is_bitmap_index(BatIndex(*index))
                })
            };
            let ends = starts.iter().skip(1).copied().chain([file_len]);
            let mut misfits =
                starts.iter().zip(ends).filter(|(start, end)| end - **start < u64::from(*block));
            // Bitmap blocks are few: whether a misfit is one is looked up.
            !starts.is_empty()
                && misfits
                    .by_ref()
                    .take(64)
                    .all(|(start, end)| end - *start >= BITMAP_BLOCK_LEN && is_bitmap(*start))
                && misfits.next().is_none()
        })
    }
}

/// Finds the sizes and the table. What is not in the metadata is concluded from the table.
pub(super) fn find(anatomy: &mut Anatomy, items: &Items, given: &Given) -> Result<Shape> {
    let candidates: Vec<Entries> = match anatomy.bat {
        Some((at, len)) => vec![Entries::read(anatomy, at, len)],
        None => searched(anatomy),
    };
    let is_searched = anatomy.bat.is_none();
    let fact = |given: Option<u32>, found: &Option<Fact<u32>>| match (given, found) {
        (Some(value), _) => Some(Fact::sure(value)),
        (None, Some(fact)) => Some(Fact { value: fact.value, grade: fact.grade }),
        (None, None) => None,
    };
    let sector = fact(given.sector, &items.logical_sector).unwrap_or_else(|| Fact::guessed(512));
    let block = fact(given.block_size, &items.block_size);
    let size = match given.size {
        Some(size) => Some(Fact::sure(size)),
        None => items.size.as_ref().map(|size| Fact { value: size.value, grade: size.grade }),
    };
    let is_child = match &items.has_parent {
        Some(fact) => Fact { value: fact.value, grade: fact.grade },
        None => {
            let has_partial =
                |entries: &Entries| entries.named.iter().any(|(_, entry)| entry.state_bits() == 7);
            Fact::guessed(candidates.iter().any(has_partial))
        }
    };
    let mut fits: Vec<(u64, Range<u64>, BlockLayout)> = Vec::new();
    let mut chosen: Option<(BlockLayout, Option<&Entries>)> = None;
    for entries in &candidates {
        let block = match &block {
            Some(block) => Some(block.value),
            None => entries.block_size(sector.value, anatomy.file_len),
        };
        let Some(block) = block else { continue };
        let layout = match &size {
            Some(size) => BlockLayout::new(block, sector.value, size.value),
            None => {
                let Some(last) = entries.last() else { continue };
                let whole = BlockLayout::new(block, sector.value, u64::from(block) * (last + 1));
                let blocks = match whole.is_bitmap_index(BatIndex(last)) {
                    true => last - last / (whole.chunk_ratio() + 1),
                    false => whole.block_of_payload(BatIndex(last)).0 + 1,
                };
                let len = blocks.saturating_mul(u64::from(block));
                if !is_disk_size(len, sector.value) {
                    continue;
                }
                BlockLayout::new(block, sector.value, len)
            }
        };
        if !is_searched {
            chosen = Some((layout, Some(entries)));
            continue;
        }
        if let Some(blocks) = entries.fit(&layout, is_child.value, anatomy) {
            let is_better = fits.iter().all(|(most, ..)| blocks > *most);
            fits.push((blocks, entries.at..entries.at + layout.table_len(), layout));
            if is_better {
                chosen = Some((layout, Some(entries)));
            }
        }
    }
    let (mut layout, entries) = match (chosen, &size) {
        (Some(chosen), _) => chosen,
        (None, Some(size)) => {
            // Without a table, no place is known by block: the smallest ones can be placed one by one.
            let block = block.as_ref().map_or(MIB as u32, |block| block.value);
            (BlockLayout::new(block, sector.value, size.value), None)
        }
        (None, None) => return Err(unknown_size(anatomy)),
    };
    let mut is_size_sure = size.as_ref().is_some_and(Fact::is_sure);
    if size.is_none() {
        let by_disk = entries.and_then(|entries| first_block(entries, &layout, anatomy));
        is_size_sure = false;
        match by_disk {
            Some(size) if size >= layout.size().saturating_sub(layout.block_size()) => {
                layout = BlockLayout::new(layout.block_size() as u32, sector.value, size);
                anatomy.traces.guessed(format!("a disk of {size} bytes, by its partition table"));
            }
            _ => anatomy.traces.guessed(format!(
                "a disk of {} bytes, by the last entry of the block allocation table: it may be larger",
                layout.size()
            )),
        }
    }
    if block.as_ref().is_none_or(|block| !block.is_sure()) && entries.is_some() {
        anatomy.doubt(format!(
            "blocks of {} bytes, by what the table leaves room for",
            layout.block_size()
        ));
    }
    let is_ambiguous = is_child.value || layout.chunks() > 1;
    if !sector.is_sure() && is_ambiguous && entries.is_some() {
        anatomy.doubt(format!("sectors of {} bytes, because most disks have them", sector.value));
    }
    if !is_child.is_sure() && entries.is_some() {
        let what = if is_child.value { "a child" } else { "no child" };
        anatomy.doubt(format!("{what} of another image, as far as can be told"));
    }
    let table = entries.map(|entries| {
        let len = match anatomy.bat {
            Some((_, len)) => len,
            None => layout.table_len(),
        };
        entries.at..entries.at.saturating_add(len)
    });
    if is_searched && let Some(table) = &table {
        let at = table.start;
        anatomy.traces.sure(format!("the block allocation table at {at:#x}, found by its entries"));
        if fits.len() > 1 {
            let more = fits.len() - 1;
            anatomy.doubt(format!("{more} more places may be the block allocation table"));
        }
    }
    if table.is_none() {
        anatomy.traces.lost("the block allocation table is lost");
    }
    anatomy.structures.extend(table.clone());
    let siblings = match is_searched {
        true => fits.iter().map(|(_, range, _)| range.start).collect(),
        false => Vec::new(),
    };
    Ok(Shape {
        layout,
        physical_sector: items.physical_sector.unwrap_or(4096),
        has_parent: is_child.value,
        table,
        is_searched,
        is_size_sure,
        siblings,
    })
}

/// Places elsewhere whose entries are all possible ones of this disk.
pub(super) fn siblings(anatomy: &Anatomy, shape: &Shape) -> Vec<u64> {
    let Some(table) = &shape.table else { return Vec::new() };
    let places = anatomy.signs().tables.iter().copied();
    let mut others: Vec<u64> = places.filter(|at| !table.contains(at)).collect();
    others.retain(|at| {
        let entries = Entries::read(anatomy, *at, shape.layout.entries_needed() * ENTRY_LEN);
        entries.fit(&shape.layout, shape.has_parent, anatomy).is_some()
    });
    others
}

/// Candidates by what units look like, and by where the log writes what looks like entries.
fn searched(anatomy: &Anatomy) -> Vec<Entries> {
    let mut places = anatomy.signs().tables.clone();
    for old in &anatomy.old {
        let (mut at, mut page) = (0, [0; SECTOR as usize]);
        while let Some(next) = old.first_within(at..u64::MAX) {
            at = next + SECTOR;
            let unit = next / MIB * MIB;
            let is_new = !places.contains(&unit) && places.len() < 2 * MOST_OF_LOG;
            if is_new
                && old.read_exact_at(&mut page, next).is_ok()
                && is_like_table(&page, anatomy.file_len)
            {
                places.push(unit);
            }
        }
    }
    places.retain(|at| !anatomy.structures.iter().any(|range| range.contains(at)));
    places.into_iter().map(|at| Entries::read(anatomy, at, LONGEST_TABLE)).collect()
}

/// The size of the disk by what its first block says.
fn first_block(entries: &Entries, layout: &BlockLayout, anatomy: &Anatomy) -> Option<u64> {
    let (_, entry) = entries.named.first().filter(|(index, _)| *index == 0)?;
    if entry.state_bits() < 6 {
        return None;
    }
    let mut start = vec![0; 2 * SECTOR as usize];
    anatomy.read(&mut start, entry.offset().get());
    size_by_partitions(&start, layout.sector_size())
}

fn unknown_size(anatomy: &Anatomy) -> Error {
    if !anatomy.is_image {
        let message = "the file has nothing of a VHDX image: no signature, no table";
        return Error::new(ErrorKind::NotVhdx, "rescue.nothing", message)
            .at(0)
            .with_section("2.2")
            .with_found(format_args!("{} bytes", anatomy.file_len))
            .with_expected(
                "a header, a region table, a log, metadata, or a block allocation table",
            );
    }
    let message = "neither metadata nor a table is left to tell the size of the disk";
    Error::new(ErrorKind::Damaged, "rescue.size-unknown", message)
        .with_section("2.6.2.2")
        .at(anatomy.metadata.unwrap_or_default())
        .with_found("no size")
        .with_expected("the size of the disk, from whoever knows it")
}
