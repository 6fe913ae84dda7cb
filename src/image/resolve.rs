//! Maps bytes of a disk to bytes of one image's file, \[MS-VHDX\] 2.5.
//!
//! Block states are interpreted only here.

use super::Core;
use crate::answers::{Owner, SpanBits, SpanOwner};
use crate::disk::LayerId;
use crate::error::{Error, Result};
use crate::format::bat::{BITMAP_BLOCK_LEN, BatEntry, ENTRY_LEN, PayloadState};
use crate::tables::{
    Budget, Epoch, FromFile, PAGE, Page, PageSource, PageView, TableFile, new_page,
};
use crate::types::{BatIndex, ChunkIndex, DiskOffset, FileOffset};

/// Number of blocks that one call examines to join contiguous ones.
const LOOK_AHEAD: usize = 4096;

/// A run of bytes with one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnedRun {
    pub(crate) len: u64,
    pub(crate) owner: Owner,
}

/// The meaning of a block's state.
enum Says {
    Owned(Owner),
    Present,
    /// The sector bitmap decides for each sector.
    Mixed,
}

impl Core {
    /// The run at the start of the `len` bytes at `at`, which must lie within the disk and not be empty.
    pub(crate) fn resolve(&self, at: DiskOffset, len: u64) -> Result<OwnedRun> {
        self.resolve_with(FromFile, at, len)
    }

    /// As [`resolve`](Self::resolve), with pages from this source.
    pub(crate) fn resolve_with<S: PageSource>(
        &self,
        source: S,
        at: DiskOffset,
        len: u64,
    ) -> Result<OwnedRun, S::Stop> {
        let mut run = self.resolve_in_block(source, at, len)?;
        for _ in 0..LOOK_AHEAD {
            let next_at = at + run.len;
            if run.len == len || self.layout.within_block(next_at) != 0 {
                return Ok(run);
            }
            // Faults of later blocks are reported when their bytes are requested.
            let Ok(next) = self.resolve_in_block(source, next_at, len - run.len) else {
                return Ok(run);
            };
            if !run.continues_in(next) {
                return Ok(run);
            }
            run.len += next.len;
        }
        if S::READS {
            run.len = self.pass_hole(run, at, len);
        }
        Ok(run)
    }

    /// As [`resolve`](Self::resolve), and whether a sector bitmap decided rather than the states of whole blocks. Data
    /// or zeros that are recorded in different ways are not joined.
    pub(crate) fn resolve_recorded(&self, at: DiskOffset, len: u64) -> Result<(OwnedRun, bool)> {
        let (mut run, by_sector) = self.resolve_recorded_in_block(FromFile, at, len)?;
        for _ in 0..LOOK_AHEAD {
            let next_at = at + run.len;
            if run.len == len || self.layout.within_block(next_at) != 0 {
                return Ok((run, by_sector));
            }
            let next = self.resolve_recorded_in_block(FromFile, next_at, len - run.len);
            let Ok((next, next_by_sector)) = next else { return Ok((run, by_sector)) };
            let is_alike = next.owner == Owner::Parent || next_by_sector == by_sector;
            if !is_alike || !run.continues_in(next) {
                return Ok((run, by_sector));
            }
            run.len += next.len;
        }
        if !by_sector {
            run.len = self.pass_hole(run, at, len);
        }
        Ok((run, by_sector))
    }

    /// The length of a run of blocks that are not present, up to the first entry for which the host stores data: where
    /// the table is a hole of the file, its pages need not be read. An image with a writer has pages that are not in
    /// the file.
    fn pass_hole(&self, run: OwnedRun, at: DiskOffset, len: u64) -> u64 {
        let absent = if self.has_parent() { Owner::Parent } else { Owner::Zero };
        let next = at + run.len;
        if run.len == len
            || run.owner != absent
            || self.feed.is_some()
            || self.layout.within_block(next) != 0
        {
            return run.len;
        }
        let first = self.bat_entry_at(self.layout.payload_index(self.layout.block_of(next))).get();
        let end = self.bat.end().min(self.file_len());
        let data = match self.storage.next_data(first) {
            Ok(data) => data.map_or(end, |data| data.start.min(end)),
            // Reading the entries tells what is wrong.
            Err(_) => return run.len,
        };
        if data <= first {
            return run.len;
        }
        let mut index = BatIndex((data - self.bat.offset.get()) / ENTRY_LEN);
        if self.layout.is_bitmap_index(index) {
            index.0 += 1;
        }
        let there = self.layout.block_start(self.layout.block_of_payload(index)).0;
        there.saturating_sub(at.0).clamp(run.len, len)
    }

    /// The entry of the block allocation table at this index.
    pub(crate) fn bat_entry(&self, index: BatIndex) -> Result<BatEntry> {
        self.bat_entry_with(FromFile, index)
    }

    pub(crate) fn bat_entry_with<S: PageSource>(
        &self,
        source: S,
        index: BatIndex,
    ) -> Result<BatEntry, S::Stop> {
        if index.0 >= self.bat_entries() {
            return Err(self.bat_too_short(index).into());
        }
        let at = self.bat_entry_at(index);
        let word = (at.get() % PAGE / ENTRY_LEN) as usize;
        self.table_page_with(source, at, |page| BatEntry::from_bits(page.word(word)))
    }

    /// Number of entries that the table has room for.
    pub(crate) fn bat_entries(&self) -> u64 {
        u64::from(self.bat.length) / ENTRY_LEN
    }

    /// Offset in the file of an entry of the block allocation table.
    pub(crate) fn bat_entry_at(&self, index: BatIndex) -> FileOffset {
        self.bat.offset + index.0 * ENTRY_LEN
    }

    /// Offset in the file of the sector bitmap block of a chunk.
    pub(crate) fn bitmap_at(&self, chunk: ChunkIndex) -> Result<FileOffset> {
        self.bitmap_at_with(FromFile, chunk)
    }

    pub(crate) fn bitmap_at_with<S: PageSource>(
        &self,
        source: S,
        chunk: ChunkIndex,
    ) -> Result<FileOffset, S::Stop> {
        // A writer may give the chunk another bitmap block.
        let last = self.feed.is_none().then_some(&self.last_bitmap);
        if let Some(place) = last.and_then(|last| last.get(chunk)) {
            return Ok(place);
        }
        let index = self.layout.bitmap_index(chunk);
        let entry = self.bat_entry_with(source, index)?;
        let place = entry.offset();
        if entry.state_bits() != 6
            || place.get() < BITMAP_BLOCK_LEN
            || place.get().saturating_add(BITMAP_BLOCK_LEN) > self.file_len()
        {
            return Err(self.bad_bitmap(index, entry).into());
        }
        self.check_apart(place, BITMAP_BLOCK_LEN, index)?;
        if let Some(last) = last {
            last.set(chunk, place);
        }
        Ok(place)
    }

    /// Applies `look` to the table page that contains `at`.
    pub(crate) fn table_page<R>(
        &self,
        at: FileOffset,
        look: impl FnOnce(PageView<'_>) -> R,
    ) -> Result<R> {
        self.table_page_with(FromFile, at, look)
    }

    pub(crate) fn table_page_with<S: PageSource, T>(
        &self,
        source: S,
        at: FileOffset,
        look: impl FnOnce(PageView<'_>) -> T,
    ) -> Result<T, S::Stop> {
        let start = FileOffset::new(at.get() - at.get() % PAGE);
        let epoch = match &self.feed {
            None => None,
            Some(feed) => {
                let changed = feed.changed.read();
                if let Some(page) = changed.page(start.get()) {
                    return Ok(look(PageView::Whole(page)));
                }
                Some(feed.changed.epoch())
            }
        };
        source.page(self, start, epoch, look)
    }

    /// Counts a table page that was read from the file, by this image or a caller.
    pub(crate) fn note_table_load(&self) {
        self.tally.table_loads.add(1);
    }

    /// The table page that starts at `start`, as stored in the file.
    pub(crate) fn page_in_file(&self, start: FileOffset) -> Result<Box<Page>> {
        let mut page = new_page();
        self.load_page(start, &mut page)?;
        Ok(page)
    }

    /// The byte of a table at `at`.
    pub(crate) fn table_byte(&self, at: FileOffset) -> Result<u8> {
        self.table_page(at, |page| page.byte((at.get() % PAGE) as usize))
    }

    fn resolve_in_block<S: PageSource>(
        &self,
        source: S,
        at: DiskOffset,
        len: u64,
    ) -> Result<OwnedRun, S::Stop> {
        Ok(self.resolve_recorded_in_block(source, at, len)?.0)
    }

    /// The run, and whether a sector bitmap decided.
    fn resolve_recorded_in_block<S: PageSource>(
        &self,
        source: S,
        at: DiskOffset,
        len: u64,
    ) -> Result<(OwnedRun, bool), S::Stop> {
        let block = self.layout.block_of(at);
        let within = self.layout.within_block(at);
        let len = len.min(self.layout.block_size() - within);
        let index = self.layout.payload_index(block);
        let entry = self.bat_entry_with(source, index)?;
        Ok(match self.says(entry, index)? {
            Says::Owned(owner) => (OwnedRun { len, owner }, false),
            Says::Present => (self.present(entry, index, within, len)?, false),
            Says::Mixed => (self.resolve_mixed(source, entry, index, at, len)?, true),
        })
    }

    fn says(&self, entry: BatEntry, index: BatIndex) -> Result<Says> {
        Ok(match entry.payload_state() {
            PayloadState::NotPresent if self.has_parent() => Says::Owned(Owner::Parent),
            PayloadState::NotPresent
            | PayloadState::Undefined
            | PayloadState::Zero
            | PayloadState::Unmapped
            | PayloadState::DraftUnmapped => Says::Owned(Owner::Zero),
            PayloadState::FullyPresent => Says::Present,
            PayloadState::PartiallyPresent if self.has_parent() => Says::Mixed,
            PayloadState::PartiallyPresent => {
                let message = "a partially present block without a parent";
                return Err(self.bad_state(index, entry, message));
            }
            PayloadState::Reserved => {
                return Err(self.bad_state(index, entry, "a block in a reserved state"));
            }
        })
    }

    /// The owner of a span of the disk: the `len` bytes at `at`, a multiple of 1 MiB. They must be whole sectors, at
    /// most [`MOST_SPAN`](crate::answers::MOST_SPAN), and lie within one block and the disk. An error means that some
    /// of them, perhaps not all, are unavailable. If owners differ, `here` gets the sectors that this image holds.
    pub(crate) fn resolve_span<S: PageSource>(
        &self,
        source: S,
        at: DiskOffset,
        len: u64,
        here: &mut SpanBits,
    ) -> Result<SpanOwner, S::Stop> {
        let block = self.layout.block_of(at);
        let index = self.layout.payload_index(block);
        let entry = self.bat_entry_with(source, index)?;
        match self.says(entry, index)? {
            Says::Owned(owner) => Ok(SpanOwner::One(owner)),
            Says::Present => Ok(SpanOwner::One(Owner::Here(self.place_of(entry, index, at, len)?))),
            Says::Mixed => {
                let bitmap = self.bitmap_at_with(source, self.layout.chunk_of(block))?;
                let sectors = len / self.layout.sector_size();
                self.read_bits(source, bitmap, self.layout.bit_of(at), sectors, here)?;
                let Some(last) = here.last() else {
                    return Ok(SpanOwner::One(Owner::Parent));
                };
                let len = (last + 1) * self.layout.sector_size();
                Ok(SpanOwner::Mixed(self.place_of(entry, index, at, len)?))
            }
        }
    }

    /// The bits of a bitmap from `first`, a multiple of 64, on. All must lie in one page of the bitmap.
    fn read_bits<S: PageSource>(
        &self,
        source: S,
        bitmap: FileOffset,
        first: u64,
        count: u64,
        bits: &mut SpanBits,
    ) -> Result<(), S::Stop> {
        bits.clear();
        let at = bitmap + first / 8;
        let words = ((at.get() % PAGE / 8) as usize, count.div_ceil(64) as usize);
        self.table_page_with(source, at, |page| {
            page.each_word(words.0, words.1, |word, of_word| bits.add(word, of_word));
        })?;
        bits.end_at(count);
        Ok(())
    }

    /// A run within a block whose sectors belong to this image or the parent individually.
    fn resolve_mixed<S: PageSource>(
        &self,
        source: S,
        entry: BatEntry,
        index: BatIndex,
        at: DiskOffset,
        len: u64,
    ) -> Result<OwnedRun, S::Stop> {
        let sector = self.layout.sector_size();
        let block = self.layout.block_of(at);
        let bitmap = self.bitmap_at_with(source, self.layout.chunk_of(block))?;
        let first = self.layout.bit_of(at);
        let last = self.layout.bit_of(at + (len - 1));
        let (is_here, end) = self.bit_run_with(source, bitmap, first, last + 1)?;
        // The run of whole sectors, without the part of the first sector before `at`.
        let len = len.min((end - first) * sector - at.0 % sector);
        if !is_here {
            return Ok(OwnedRun { len, owner: Owner::Parent });
        }
        Ok(self.present(entry, index, self.layout.within_block(at), len)?)
    }

    /// The value of bit `first` of a bitmap, and the first later bit, up to `end`, that differs.
    pub(crate) fn bit_run(&self, bitmap: FileOffset, first: u64, end: u64) -> Result<(bool, u64)> {
        self.bit_run_with(FromFile, bitmap, first, end)
    }

    pub(crate) fn bit_run_with<S: PageSource>(
        &self,
        source: S,
        bitmap: FileOffset,
        first: u64,
        end: u64,
    ) -> Result<(bool, u64), S::Stop> {
        const BITS: u64 = 8 * PAGE;
        let mut value = None;
        let mut bit = first;
        while bit < end {
            let page_end = end.min((bit / BITS + 1) * BITS);
            let within = (bit % BITS, page_end - bit / BITS * BITS);
            let at = bitmap + bit / BITS * PAGE;
            let (is_set, len) =
                self.table_page_with(source, at, |page| run_of_bits(page, within.0, within.1))?;
            if *value.get_or_insert(is_set) != is_set {
                break;
            }
            bit += len;
            if bit < page_end {
                break;
            }
        }
        Ok((value.unwrap_or_default(), bit))
    }

    /// The run of a block that this file holds, cut at the end of the file.
    fn present(&self, entry: BatEntry, index: BatIndex, within: u64, len: u64) -> Result<OwnedRun> {
        let block = entry.offset();
        let start = block + within;
        let file_len = self.file_len();
        let there = file_len.saturating_sub(start.get());
        if block.get() == 0 || there == 0 {
            return Err(self.bad_place(index, start));
        }
        self.check_apart(block, self.layout.block_size(), index)?;
        Ok(OwnedRun { len: len.min(there), owner: Owner::Here(start) })
    }

    /// Refuses a block that overlaps the file's own structures.
    fn check_apart(&self, place: FileOffset, len: u64, index: BatIndex) -> Result<()> {
        let (start, end) = (place.get(), place.get().saturating_add(len));
        // The structures nearly always come first.
        if start >= self.structures_end {
            return Ok(());
        }
        let Some(met) = self.structures.iter().find(|s| s.start < end && start < s.end) else {
            return Ok(());
        };
        let at = self.bat_entry_at(index).get();
        let message = "a block that lies over the file's own structures";
        Err(self
            .damaged("bat.overlap", "2.5.1", at, message)
            .with_found(format_args!("bytes {start:#x} to {end:#x}"))
            .with_expected(format_args!("nothing of {:#x} to {:#x}", met.start, met.end)))
    }

    /// The offset in the file of the `len` bytes at `at`, all of which the block of `entry` must hold.
    pub(crate) fn place_of(
        &self,
        entry: BatEntry,
        index: BatIndex,
        at: DiskOffset,
        len: u64,
    ) -> Result<FileOffset> {
        let within = self.layout.within_block(at);
        let run = self.present(entry, index, within, len)?;
        if run.len < len {
            return self.present(entry, index, within + run.len, len).map(|_| FileOffset::new(0));
        }
        Ok(entry.offset() + within)
    }

    // Out of line, to keep the usual read path short.

    #[cold]
    fn bat_too_short(&self, index: BatIndex) -> Error {
        let message = "the block allocation table is too short";
        self.damaged("bat.length", "2.5", self.bat.offset.get(), message)
            .with_found(format_args!("{} bytes", self.bat.length))
            .with_expected(format_args!("at least {}", (index.0 + 1) * ENTRY_LEN))
    }

    #[cold]
    fn bad_bitmap(&self, index: BatIndex, entry: BatEntry) -> Error {
        let at = self.bat_entry_at(index).get();
        if entry.state_bits() != 6 {
            let message = "a partially present block whose chunk has no sector bitmap";
            return self
                .damaged("bat.bitmap-missing", "2.5.1.2", at, message)
                .with_found(format_args!("state {}", entry.state_bits()))
                .with_expected("state 6");
        }
        let message = "a sector bitmap block that does not lie within the file";
        self.damaged("bat.bitmap-place", "2.5.1.2", at, message)
            .with_found(entry.offset())
            .with_expected(format_args!("1 MiB up to {:#x}, and 1 MiB of room", self.file_len()))
    }

    #[cold]
    fn bad_place(&self, index: BatIndex, start: FileOffset) -> Error {
        let at = self.bat_entry_at(index).get();
        let message = "a block whose bytes do not lie within the file";
        self.damaged("bat.payload-place", "2.5.1.1", at, message)
            .with_found(format_args!("byte {:#x} of the file", start.get()))
            .with_expected(format_args!("1 MiB up to {:#x}", self.file_len()))
    }

    #[cold]
    fn bad_state(&self, index: BatIndex, entry: BatEntry, message: &str) -> Error {
        let at = self.bat_entry_at(index).get();
        self.damaged("bat.state", "2.5.1.1", at, message)
            .with_found(format_args!("state {}", entry.state_bits()))
            .with_expected(if self.has_parent() { "0 to 3, 6 or 7" } else { "0 to 3 or 6" })
    }

    fn damaged(&self, code: &'static str, section: &'static str, at: u64, message: &str) -> Error {
        Error::damaged(code, section, at, message).in_file(self.name())
    }
}

impl TableFile for Core {
    fn id(&self) -> LayerId {
        self.id
    }

    fn budget(&self) -> &Budget {
        &self.budget
    }

    fn epoch(&self) -> Epoch {
        self.feed.as_ref().map(|feed| feed.changed.epoch())
    }

    fn load_page(&self, at: FileOffset, page: &mut Page) -> Result<()> {
        self.note_table_load();
        self.storage.read_exact_at(page, at.get()).map_err(|error| {
            Error::io("table.read", "cannot read a page of the block tables", error)
                .in_file(self.name())
                .at(at.get())
        })
    }
}

impl OwnedRun {
    fn continues_in(&self, next: Self) -> bool {
        match (self.owner, next.owner) {
            (Owner::Here(a), Owner::Here(b)) => a + self.len == b,
            (a, b) => a == b,
        }
    }
}

/// The value of bit `first` of a page, and how many bits from there on, before `end`, have the same value. Bits count
/// from the lowest of each byte.
fn run_of_bits(page: PageView<'_>, first: u64, end: u64) -> (bool, u64) {
    let word = |bit: u64| page.word((bit / 64) as usize);
    let is_set = word(first) >> (first % 64) & 1 == 1;
    let mut bit = first;
    while bit < end {
        let others = (if is_set { !word(bit) } else { word(bit) }) >> (bit % 64);
        if others != 0 {
            return (is_set, (bit + u64::from(others.trailing_zeros())).min(end) - first);
        }
        bit = (bit / 64 + 1) * 64;
    }
    (is_set, end - first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bit_runs_are_those_of_a_walk_bit_by_bit(
            runs in proptest::collection::vec(1_usize..400, 1..200),
            first in 0_u64..8 * PAGE,
            len in 1_u64..8 * PAGE,
        ) {
            let bits: Vec<bool> = runs.iter().enumerate()
                .flat_map(|(i, len)| std::iter::repeat_n(i % 2 == 1, *len))
                .chain(std::iter::repeat(true))
                .take(8 * PAGE as usize)
                .collect();
            let mut page = [0; PAGE as usize];
            for (i, _) in bits.iter().enumerate().filter(|(_, set)| **set) {
                page[i / 8] |= 1 << (i % 8);
            }
            let end = (first + len).min(8 * PAGE);
            let value = bits[first as usize];
            let expected = bits[first as usize..end as usize].iter().take_while(|b| **b == value).count();
            prop_assert_eq!(run_of_bits(PageView::Whole(&page), first, end), (value, expected as u64));
        }
    }
}
