//! Weighs the entries of a table against each other and against the data of the file, and looks for those that are lost.

use std::ops::Range;

use super::grade::Grade;
use super::layer::{Empties, Found, Judged, Layer};
use super::shape::siblings;
use crate::format::bat::{BatEntry, ENTRY_LEN};
use crate::format::log_entry::SECTOR;
use crate::image::{MOST_UNITS, is_zero, units};
use crate::storage::Storage;
use crate::types::{BatIndex, BlockIndex, FileOffset, KIB, MIB};

const WINDOW: u64 = 64 * KIB;

/// What the entries of a table came to.
#[derive(Debug, Default)]
struct Count {
    /// Entries that name a block.
    blocks: u64,
    /// Entries of payload that are not zeros.
    named: u64,
    /// Entries that are none.
    bad: u64,
}

impl Layer {
    /// Looks at all entries.
    pub(super) fn settle(&mut self) {
        for range in self.anatomy.structures.clone() {
            let end = range.end.min(self.anatomy.file_len);
            self.structural.take(units(range.start, end.saturating_sub(range.start)));
        }
        self.used = self.structural.clone();
        let count = self.claim();
        self.claim_tail();
        self.find_loose();
        let needed = self.shape.layout.blocks();
        let room = self.room();
        let empty = needed.saturating_sub(count.named);
        self.empties = match () {
            () if room == 0 || empty == 0 => Empties::Sure,
            () if count.blocks == 0 || 2 * room >= empty => Empties::Lost,
            () => Empties::Guessed,
        };
        if self.empties != Empties::Sure {
            let bytes: u64 = self.loose.iter().map(|range| range.end - range.start).sum();
            self.anatomy
                .traces
                .lost(format!("{bytes} bytes of the file hold data that no entry names"));
        }
        if count.bad > 0 {
            self.anatomy.traces.lost(format!("{} entries of the table are none", count.bad));
        }
        if self.shape.is_searched && (self.empties != Empties::Sure || count.bad > 0) {
            self.anatomy
                .doubt("the block allocation table that was found does not account for all data");
        }
        if self.empties != Empties::Sure || count.bad > 0 {
            self.take_old_pages();
            self.take_siblings();
        }
        self.interpolate();
    }

    /// Notes which units the entries claim, and which of them more than one claims.
    fn claim(&mut self) -> Count {
        let mut count = Count::default();
        let Some(table) = self.shape.table.clone() else { return count };
        let layout = self.shape.layout;
        let all = match self.shape.has_parent {
            true => layout.entries_reserved(),
            false => layout.entries_needed(),
        };
        let end =
            table.end.min(table.start.saturating_add(all * ENTRY_LEN)).min(self.anatomy.file_len);
        let mut window = vec![0; WINDOW as usize];
        let mut at = table.start;
        while at < end {
            let data = self.anatomy.storage.next_data(at).unwrap_or(Some(at..end));
            let Some(data) = data.filter(|data| data.start < end) else { break };
            at = at.max(table.start + data.start.saturating_sub(table.start) / WINDOW * WINDOW);
            let len = (end - at).min(WINDOW) as usize;
            self.anatomy.read(&mut window[..len], at);
            let first = (at - table.start) / ENTRY_LEN;
            for (index, bytes) in (first..).zip(window[..len].chunks_exact(ENTRY_LEN as usize)) {
                let entry = BatEntry::read(bytes);
                if entry.0 != 0 {
                    self.claim_one(BatIndex(index), entry, &mut count);
                }
            }
            at += WINDOW;
        }
        count
    }

    /// Claims what the last block has behind the end of the disk, as far as nothing else does.
    fn claim_tail(&mut self) {
        let layout = &self.shape.layout;
        let Some(last) = layout.blocks().checked_sub(1).map(BlockIndex) else { return };
        let index = layout.payload_index(last);
        let Some(Judged::Block(at)) = self.raw(index).map(|entry| self.judge(index, entry)) else {
            return;
        };
        let end = at.saturating_add(layout.block_size()).min(self.anatomy.file_len);
        self.used.take(at / MIB..end.div_ceil(MIB));
    }

    fn claim_one(&mut self, index: BatIndex, entry: BatEntry, count: &mut Count) {
        let is_bitmap = self.shape.layout.is_bitmap_index(index);
        if !is_bitmap && self.shape.layout.block_of_payload(index).0 >= self.shape.layout.blocks() {
            return;
        }
        count.named += u64::from(!is_bitmap);
        match self.judge(index, entry) {
            Judged::Block(at) => {
                if is_bitmap && !self.shape.has_parent {
                    return;
                }
                count.blocks += u64::from(!is_bitmap);
                for unit in self.units_of(index, at) {
                    if self.used.has(unit) {
                        self.shared.put(unit);
                    }
                    self.used.put(unit);
                }
            }
            // Old data of a block that needs none.
            Judged::Zero if entry.offset().get() >= MIB => {
                let held = self.units_of(index, entry.offset().get());
                self.used.take(held);
            }
            Judged::Bad(_) => count.bad += 1,
            Judged::Empty | Judged::Held(_) | Judged::Zero => {}
        }
    }

    /// The units of the file that an entry's block takes up.
    pub(super) fn units_of(&self, index: BatIndex, at: u64) -> Range<u64> {
        let end = at.saturating_add(self.len_of(index)).min(self.anatomy.file_len);
        at / MIB..end.div_ceil(MIB)
    }

    /// Lists the units with data that nothing claims.
    pub(super) fn find_loose(&mut self) {
        let end = self.anatomy.file_len.div_ceil(MIB).min(MOST_UNITS);
        let mut loose: Vec<Range<u64>> = Vec::new();
        let mut unit = 1;
        let mut buf = vec![0; WINDOW as usize];
        while let Some(next) = self.used.next_absent(unit..end) {
            let data = self.anatomy.careful.next_data(next * MIB).ok().flatten();
            let Some(data) = data else { break };
            unit = next.max(data.start / MIB);
            if unit != next && self.used.has(unit) {
                continue;
            }
            if unit >= end {
                break;
            }
            let start = unit * MIB;
            let stop = (start + MIB).min(self.anatomy.file_len);
            let mut parts = (start..stop).step_by(WINDOW as usize);
            let has_data = parts.any(|at| {
                let len = (stop - at).min(WINDOW) as usize;
                self.anatomy.careful.fill(&mut buf[..len], at);
                !is_zero(&buf[..len])
                    || self.anatomy.careful.first_unread(at..at + len as u64).is_some()
            });
            if has_data {
                match loose.last_mut() {
                    Some(last) if last.end == start => last.end = stop,
                    _ => loose.push(start..stop),
                }
            }
            unit += 1;
        }
        self.loose = loose;
    }

    /// How many blocks may lie where nothing is claimed, by the stretches with data.
    fn room(&self) -> u64 {
        let block = self.shape.layout.block_size();
        let end = self.anatomy.file_len.div_ceil(MIB).min(MOST_UNITS);
        let (mut blocks, mut passed) = (0, 0);
        let mut ranges = self.loose.iter().peekable();
        while let Some(range) = ranges.next() {
            // From the start of the unclaimed stretch to its end.
            let unit = range.start / MIB;
            let mut first = unit;
            while first > passed && !self.used.has(first - 1) {
                first -= 1;
            }
            let stop = self.used.next(unit..end).unwrap_or(end);
            let len = (stop - first) * MIB;
            let holds = if stop == end { len.div_ceil(block) } else { len / block };
            // No more than there is data for.
            let mut most = (range.end - range.start).div_ceil(MIB);
            while let Some(range) = ranges.next_if(|range| range.start < stop * MIB) {
                most += (range.end - range.start).div_ceil(MIB);
            }
            blocks += holds.min(most);
            passed = stop;
        }
        blocks
    }

    /// The loose units that nothing was placed in since.
    pub(super) fn still_loose(&self) -> Vec<Range<u64>> {
        let mut left: Vec<Range<u64>> = Vec::new();
        for range in &self.loose {
            let units = range.start / MIB..range.end.div_ceil(MIB);
            let mut unit = units.start;
            while let Some(first) = self.used.next_absent(unit..units.end) {
                let stop = self.used.next(first..units.end).unwrap_or(units.end);
                left.push(first * MIB..(stop * MIB).min(range.end));
                unit = stop;
                if unit >= units.end {
                    break;
                }
            }
        }
        left
    }

    /// Takes entries from what the log still has of the table.
    fn take_old_pages(&mut self) {
        let Some(table) = self.shape.table.clone() else { return };
        let mut pages = Vec::new();
        for old in &self.anatomy.old {
            let (mut at, mut bytes) = (table.start, vec![0; SECTOR as usize]);
            while let Some(next) = old.first_within(at..table.end) {
                if old.read_exact_at(&mut bytes, next).is_ok() {
                    let number = old.entry_at(next).unwrap_or_default();
                    pages.push(((next - table.start) / ENTRY_LEN, bytes.clone(), number));
                }
                at = next + SECTOR;
            }
        }
        for (first, bytes, number) in pages {
            let evidence =
                format!("an old entry of the log, number {number}, has this entry of the table");
            self.take(first, &bytes, &evidence);
        }
    }

    /// Takes entries from old places of the table.
    fn take_siblings(&mut self) {
        let Some(table) = self.shape.table.clone() else { return };
        let mut places = siblings(&self.anatomy, &self.shape);
        places.extend(self.shape.siblings.iter().filter(|at| **at != table.start));
        places.dedup();
        for place in places {
            self.anatomy.traces.guessed(format!("an older block allocation table at {place:#x}"));
            let len = self.shape.layout.entries_needed() * ENTRY_LEN;
            let mut bytes = vec![0; WINDOW as usize];
            let mut at = 0;
            while at < len {
                let now = (len - at).min(WINDOW) as usize;
                self.anatomy.read(&mut bytes[..now], place + at);
                let evidence =
                    format!("an older block allocation table at {place:#x} has this entry");
                self.take(at / ENTRY_LEN, &bytes[..now], &evidence);
                at += WINDOW;
            }
        }
    }

    /// Takes entries for blocks that have none, where they take nothing from others.
    fn take(&mut self, first: u64, bytes: &[u8], evidence: &str) {
        for (index, entry) in (first..).zip(bytes.chunks_exact(ENTRY_LEN as usize)) {
            let (index, entry) = (BatIndex(index), BatEntry::read(entry));
            let layout = &self.shape.layout;
            let is_payload = !layout.is_bitmap_index(index);
            if is_payload && layout.block_of_payload(index).0 >= layout.blocks()
                || !is_payload && !self.shape.has_parent
                || index.0 >= layout.entries_reserved()
                || entry.0 == 0
                || self.found.contains_key(&index.0)
                || !self.is_open(index)
            {
                continue;
            }
            let Judged::Block(at) = self.judge(index, entry) else { continue };
            let units = self.units_of(index, at);
            if self.used.has_any(units.clone()) {
                continue;
            }
            let evidence = evidence.to_owned().into();
            let found = Found { entry, grade: Grade::Guessed, evidence, is_contested: false };
            self.put(index, found);
        }
    }

    /// Places the loose blocks between two sure ones that lie as far apart in the file as on the disk. Returns how many.
    pub(super) fn interpolate(&mut self) -> u64 {
        if self.loose.is_empty() {
            return 0;
        }
        let layout = self.shape.layout;
        let block_size = layout.block_size();
        let mut placed = 0;
        let mut last: Option<(u64, u64)> = None;
        let mut block = 0;
        while block < layout.blocks() {
            let at = self.sure_place(BlockIndex(block));
            if let (Some((from, start)), Some(at)) = (last, at) {
                let between = block - from - 1;
                let is_in_order = between > 0 && at == start + (between + 1) * block_size;
                if is_in_order && self.is_free(start + block_size..at) {
                    for k in from + 1..block {
                        placed += u64::from(self.place_between(k, start + (k - from) * block_size));
                    }
                }
            }
            if let Some(at) = at {
                last = Some((block, at));
            }
            // Blocks without an entry are passed at once.
            let here = block * block_size;
            block += match at {
                Some(_) => 1,
                None => (self.run(here, layout.size() - here).len / block_size).max(1),
            };
        }
        placed
    }

    fn is_free(&self, range: Range<u64>) -> bool {
        !self.used.has_any(range.start / MIB..range.end.div_ceil(MIB))
    }

    fn place_between(&mut self, block: u64, at: u64) -> bool {
        let index = self.shape.layout.payload_index(BlockIndex(block));
        if self.found.contains_key(&index.0) || !self.is_open(index) || self.shape.has_parent {
            return false;
        }
        let evidence = "the blocks before and behind it lie as far apart in the file".into();
        let entry = BatEntry::new(6, FileOffset::new(at));
        let found = Found { entry, grade: Grade::Guessed, evidence, is_contested: false };
        self.put(index, found);
        true
    }
}
