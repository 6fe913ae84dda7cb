//! The ways of a write: in place, into new space, to zeros.

use std::ops::Range;

use super::block_locks::BlockGuard;
use super::change_lock::Change;
use super::payload::Payload;
use super::space::{Contents, Freed};
use super::tracker::Mirror;
use super::writer::Writer;
use crate::disk::Zeroing;
use crate::error::Result;
use crate::format::bat::{BITMAP_BLOCK_LEN, BatEntry, PayloadState};
use crate::read::Layers;
use crate::tables::PAGE;
use crate::tables::{Changed, PageKind};
use crate::types::{BatIndex, BlockIndex, ChunkIndex, DiskOffset, FileOffset, MIB};

static ZEROS: Zeros = Zeros([0; MIB as usize]);

/// Zeros to be written. They start on a page of memory: a write that a signal ends goes up to a page of its
/// source, which then is the end of a sector too.
#[repr(C, align(4096))]
struct Zeros([u8; MIB as usize]);

/// Blocks that one write goes to at the most.
const MOST_BLOCKS: usize = 64;

impl Writer {
    /// Writes `buf` at `offset` of an image that is read alone.
    pub(crate) fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.write_through(buf, offset, self.core.by_itself())
    }

    /// Makes a range of an image that is read alone read as zeros.
    pub(crate) fn write_zeroes(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.zero_through(range, how, self.core.by_itself())
    }

    /// Writes `buf` at `offset`; parts of sectors are completed with what the layers of the disk have there.
    pub(crate) fn write_through(&self, buf: &[u8], offset: u64, disk: Layers<'_>) -> Result<()> {
        self.core.geometry().check_range(offset, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        let entered = self.enter(offset..offset + buf.len() as u64)?;
        let done = self.write_entered(buf, offset, disk);
        entered.leave(done, &|mirror| mirror.write_again(buf, offset, disk))
    }

    fn write_entered(&self, buf: &[u8], offset: u64, disk: Layers<'_>) -> Result<()> {
        self.begin()?;
        let sector = self.core.layout.sector_size();
        let mut at = DiskOffset(offset);
        let mut rest = buf;
        while !rest.is_empty() {
            let (within, left) = (at.0 % sector, rest.len() as u64);
            let len = if within != 0 || left < sector {
                let len = left.min(sector - within);
                self.write_part_of_sector(&rest[..len as usize], at, disk)?;
                len
            } else {
                self.write_sectors(rest[..(left - left % sector) as usize].into(), at)?
            };
            at = at + len;
            rest = &rest[len as usize..];
        }
        self.limit_changes()
    }

    /// Writes whole sectors.
    pub(super) fn write_whole(&self, payload: Payload<'_>, at: DiskOffset) -> Result<()> {
        let len = payload.len();
        self.core.geometry().check_range(at.0, len)?;
        if len == 0 {
            return Ok(());
        }
        let _entered = self.enter(at.0..at.0 + len)?;
        self.begin()?;
        let (mut at, mut rest) = (at, payload);
        while rest.len() > 0 {
            let len = self.write_sectors(rest, at)?;
            at = at + len;
            rest = rest.after(len);
            self.limit_changes()?;
        }
        Ok(())
    }

    /// Makes a range read as zeros. Whole blocks may give up their space.
    pub(crate) fn zero_through(
        &self,
        range: Range<u64>,
        how: Zeroing,
        disk: Layers<'_>,
    ) -> Result<()> {
        // Also where it reads as zeros already, so that nobody goes on unawares.
        self.check()?;
        let len = range.end.saturating_sub(range.start);
        self.core.geometry().check_range(range.start, len)?;
        let entered = self.enter(range.clone())?;
        let done = self.zero_entered(&range, how, disk);
        entered.leave(done, &|mirror| {
            mirror.zero_again(range.clone(), how, disk)?;
            Ok(0)
        })
    }

    fn zero_entered(&self, range: &Range<u64>, how: Zeroing, disk: Layers<'_>) -> Result<()> {
        let mut at = DiskOffset(range.start);
        while at.0 < range.end {
            let block = self.core.layout.block_of(at);
            let within = self.core.layout.within_block(at);
            let block_end = at.0 - within + self.core.layout.block_size();
            let end = block_end.min(range.end);
            // The last block may reach past the end of the disk.
            let is_whole = within == 0 && end == block_end.min(self.core.layout.size());
            if is_whole {
                self.zero_block(block, how)?;
            } else {
                self.zero_part(at, end - at.0, disk)?;
            }
            at = DiskOffset(end);
            self.limit_changes()?;
        }
        Ok(())
    }

    fn enter(&self, range: Range<u64>) -> Result<Change<'_>> {
        self.change_lock.enter(range).map_err(|error| error.in_file(self.core.name()))
    }

    fn write_part_of_sector(&self, buf: &[u8], at: DiskOffset, disk: Layers<'_>) -> Result<()> {
        let sector = self.core.layout.sector_size();
        let within = (at.0 % sector) as usize;
        let start = DiskOffset(at.0 - within as u64);
        let block = self.core.layout.block_of(at);
        // Alone: nobody else may write the sector between our reading and our writing it.
        let claimed = self.blocks.claim(block);
        let mut whole = vec![0; sector as usize];
        disk.read_at(&mut whole, start.0)?;
        whole[within..within + buf.len()].copy_from_slice(buf);
        self.write_claimed(&claimed, whole[..].into(), start)
    }

    /// Writes some of these whole sectors, and says how many bytes: up to the end of their block, or as many
    /// blocks as lie in one piece in the file.
    fn write_sectors(&self, buf: Payload<'_>, at: DiskOffset) -> Result<u64> {
        let block = self.core.layout.block_of(at);
        let in_block = self.core.layout.block_size() - self.core.layout.within_block(at);
        if buf.len() > in_block {
            let len = self.write_in_piece(buf, at)?;
            if len > 0 {
                return Ok(len);
            }
        }
        let buf = buf.first(buf.len().min(in_block));
        let is_done = {
            let _shared = self.blocks.share(block);
            self.write_in_place(buf, at)?
        };
        if !is_done {
            let claimed = self.blocks.claim(block);
            self.write_claimed(&claimed, buf, at)?;
        }
        Ok(buf.len())
    }

    /// Writes into blocks that are present and lie one behind the other in the file too, all at once. Says
    /// how many bytes, 0 where there are no two of that kind to start with.
    fn write_in_piece(&self, buf: Payload<'_>, at: DiskOffset) -> Result<u64> {
        // Held in ascending order; whoever holds a block alone waits for no other.
        let mut shared = Vec::new();
        let mut piece = FileOffset::default();
        let mut len = 0;
        while len < buf.len() && shared.len() < MOST_BLOCKS {
            let next = at + len;
            let block = self.core.layout.block_of(next);
            let in_block = self.core.layout.block_size() - self.core.layout.within_block(next);
            let in_block = in_block.min(buf.len() - len);
            let guard = self.blocks.share(block);
            let index = self.core.layout.payload_index(block);
            let entry = self.core.bat_entry(index)?;
            if entry.payload_state() != PayloadState::FullyPresent {
                break;
            }
            let place = self.core.place_of(entry, index, next, in_block)?;
            if len > 0 && place != piece + len {
                break;
            }
            if len == 0 {
                piece = place;
            }
            len += in_block;
            shared.push(guard);
        }
        if shared.len() < 2 {
            return Ok(0);
        }
        self.write_payload(buf.first(len), piece)?;
        Ok(len)
    }

    fn write_claimed(
        &self,
        _claimed: &BlockGuard<'_>,
        buf: Payload<'_>,
        at: DiskOffset,
    ) -> Result<()> {
        if self.write_in_place(buf, at)? {
            return Ok(());
        }
        self.write_into_new(buf, at)
    }

    /// Writes into the block's space, if it has some.
    fn write_in_place(&self, buf: Payload<'_>, at: DiskOffset) -> Result<bool> {
        let block = self.core.layout.block_of(at);
        let index = self.core.layout.payload_index(block);
        let entry = self.core.bat_entry(index)?;
        let is_mixed = match entry.payload_state() {
            PayloadState::FullyPresent => false,
            PayloadState::PartiallyPresent if self.core.has_parent() => true,
            PayloadState::PartiallyPresent | PayloadState::Reserved => {
                // Reading says what is wrong with the entry; a write must not make it worse.
                self.core.resolve(at, buf.len())?;
                return Ok(false);
            }
            _ => return Ok(false),
        };
        let place = self.core.place_of(entry, index, at, buf.len())?;
        self.write_payload(buf, place)?;
        if is_mixed {
            self.mark_sectors(entry, at, buf.len())?;
        }
        Ok(true)
    }

    /// Writes into new space for a block that has none. The block is held alone.
    fn write_into_new(&self, buf: Payload<'_>, at: DiskOffset) -> Result<()> {
        let block = self.core.layout.block_of(at);
        let index = self.core.layout.payload_index(block);
        let old = self.core.bat_entry(index)?;
        let within = self.core.layout.within_block(at);
        let end = within + buf.len();
        let in_disk = self.core.layout.block_size().min(self.core.layout.size() - (at.0 - within));
        let is_whole = within == 0 && end >= in_disk;
        let parent_shows =
            self.core.has_parent() && old.payload_state() == PayloadState::NotPresent;

        let space = self.allocate(self.core.layout.block_size())?;
        self.space.show_length(&self.core.file_len);
        let committed = (|| {
            self.write_payload(buf, space.at + within)?;
            let rest_must_be_zero = is_whole || !parent_shows;
            if rest_must_be_zero && space.contents != Contents::Zeros {
                self.write_zeros(space.at, within)?;
                self.write_zeros(space.at + end, self.core.layout.block_size() - end)?;
            }
            if parent_shows && !is_whole {
                self.become_mixed(block, space.at, at, buf.len())
            } else {
                self.set_block(block, BatEntry::new(6, space.at))
            }
        })();
        committed.inspect_err(|_| self.space.give_back(space))
    }

    /// Marks sectors of a partially present block as here. Whoever changed the block meanwhile comes
    /// after this write.
    pub(super) fn mark_sectors(&self, seen: BatEntry, at: DiskOffset, len: u64) -> Result<()> {
        let block = self.core.layout.block_of(at);
        let index = self.core.layout.payload_index(block);
        let bitmap = self.core.bitmap_at(self.core.layout.chunk_of(block))?;
        let marks = self.bits(at, len);
        // Bits of a partially present block only ever get set: what is marked stays so.
        if self.core.bit_run(bitmap, marks.start, marks.end)? == (true, marks.end) {
            return Ok(());
        }
        let all = self.block_bits(block);
        let needed = bitmap_pages(bitmap, &all).chain([self.bat_page(index)]);
        self.change_tables(needed, |changed| {
            if self.entry_in(changed, index) != Some(seen) {
                return;
            }
            set_bits(changed, bitmap, &marks, true);
            if all_set(changed, bitmap, &all) {
                self.put_entry(changed, index, BatEntry::new(6, seen.offset()));
            }
            self.forget(at, len);
        })
    }

    /// Makes a block that was the parent's one whose sectors are here or there.
    pub(super) fn become_mixed(
        &self,
        block: BlockIndex,
        place: FileOffset,
        at: DiskOffset,
        len: u64,
    ) -> Result<()> {
        let index = self.core.layout.payload_index(block);
        let bitmap = self.bitmap_for(block)?;
        let (marks, all) = (self.bits(at, len), self.block_bits(block));
        let needed = bitmap_pages(bitmap, &all).chain([self.bat_page(index)]);
        self.change_tables(needed, |changed| {
            // What the bits said while the block was in another state means nothing.
            set_bits(changed, bitmap, &all, false);
            set_bits(changed, bitmap, &marks, true);
            self.put_entry(changed, index, BatEntry::new(7, place));
            // For the rest of the block it is still the parent that answers.
            self.forget(at, len);
        })
    }

    /// The sector bitmap block of a block's chunk, made if there is none.
    fn bitmap_for(&self, block: BlockIndex) -> Result<FileOffset> {
        let chunk = self.core.layout.chunk_of(block);
        let index = self.core.layout.bitmap_index(chunk);
        let _alone = self.bitmaps.lock();
        if self.core.bat_entry(index)?.state_bits() == 6 {
            return self.core.bitmap_at(chunk);
        }
        self.check_bitmap_is_new(chunk)?;
        let space = self.allocate(BITMAP_BLOCK_LEN)?;
        self.space.show_length(&self.core.file_len);
        let made = (|| {
            if space.contents != Contents::Zeros {
                self.write_zeros(space.at, space.len)?;
            }
            // Pages of what was there before must not be taken for the bitmap's.
            for page in 0..BITMAP_BLOCK_LEN / PAGE {
                self.core.budget.drop_page(self.core.id, space.at + page * PAGE);
            }
            self.set_entry(index, BatEntry::new(6, space.at))
        })();
        made.inspect_err(|_| self.space.give_back(space))?;
        Ok(space.at)
    }

    /// Refuses to give a chunk an empty sector bitmap where it lost the one it had: sectors of its partially present
    /// blocks that are here would be the parent's.
    fn check_bitmap_is_new(&self, chunk: ChunkIndex) -> Result<()> {
        let first = chunk.0 * self.core.layout.chunk_ratio();
        let end = self.core.layout.blocks().min(first + self.core.layout.chunk_ratio());
        for block in (first..end).map(BlockIndex) {
            let entry = self.core.bat_entry(self.core.layout.payload_index(block))?;
            if entry.payload_state() == PayloadState::PartiallyPresent {
                return self.core.bitmap_at(chunk).map(drop);
            }
        }
        Ok(())
    }

    fn zero_block(&self, block: BlockIndex, how: Zeroing) -> Result<()> {
        let _claimed = self.blocks.claim(block);
        let index = self.core.layout.payload_index(block);
        let entry = self.core.bat_entry(index)?;
        let start = self.core.layout.block_start(block);
        let in_disk = self.core.layout.block_size().min(self.core.layout.size() - start.0);
        match entry.payload_state() {
            PayloadState::FullyPresent if self.core.keeps_blocks() || how == Zeroing::KeepSpace => {
                self.begin()?;
                let place = self.core.place_of(entry, index, start, in_disk)?;
                self.write_zeros(place, in_disk)
            }
            PayloadState::PartiallyPresent
                if how == Zeroing::KeepSpace && self.core.has_parent() =>
            {
                self.begin()?;
                let place = self.core.place_of(entry, index, start, in_disk)?;
                self.write_zeros(place, in_disk)?;
                self.mark_sectors(entry, start, in_disk)
            }
            PayloadState::FullyPresent | PayloadState::PartiallyPresent => {
                // Damaged places are an error here too, not space to be given away.
                let place = self.core.place_of(entry, index, start, in_disk)?;
                self.begin()?;
                self.set_block(block, BatEntry::new(2, FileOffset::new(0)))?;
                self.space.free_later(Freed { at: place, len: self.core.layout.block_size() });
                Ok(())
            }
            PayloadState::NotPresent if self.core.has_parent() => {
                self.begin()?;
                self.set_block(block, BatEntry::new(2, FileOffset::new(0)))
            }
            PayloadState::Reserved => self.core.resolve(start, in_disk).map(drop),
            // It reads as zeros already.
            _ => Ok(()),
        }
    }

    /// Zeros a part of one block, only where it does not read as zeros by itself.
    fn zero_part(&self, at: DiskOffset, len: u64, disk: Layers<'_>) -> Result<()> {
        let index = self.core.layout.payload_index(self.core.layout.block_of(at));
        let is_zero = match self.core.bat_entry(index)?.payload_state() {
            PayloadState::NotPresent => !self.core.has_parent(),
            PayloadState::FullyPresent | PayloadState::PartiallyPresent => false,
            PayloadState::Reserved => return self.core.resolve(at, len).map(drop),
            _ => true,
        };
        if is_zero {
            return Ok(());
        }
        self.begin()?;
        let sector = self.core.layout.sector_size();
        let (mut at, end) = (at, at.0 + len);
        while at.0 < end {
            let (within, left) = (at.0 % sector, end - at.0);
            let step = if within != 0 || left < sector {
                let step = left.min(sector - within);
                self.write_part_of_sector(&ZEROS.0[..step as usize], at, disk)?;
                step
            } else {
                let step = (left - left % sector).min(MIB);
                self.write_sectors(ZEROS.0[..step as usize].into(), at)?
            };
            at = at + step;
        }
        Ok(())
    }

    pub(super) fn write_zeros(&self, at: FileOffset, len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let step = (len - done).min(MIB);
            self.write_bytes(&ZEROS.0[..step as usize], at.get() + done)?;
            done += step;
        }
        Ok(())
    }

    /// Flushes when the changes in memory are as many as one log entry takes.
    pub(super) fn limit_changes(&self) -> Result<()> {
        if self.feed.changed.read().dirty_pages() < self.most_dirty {
            return Ok(());
        }
        self.commit()
    }

    /// Gives a block another state or place.
    pub(super) fn set_block(&self, block: BlockIndex, entry: BatEntry) -> Result<()> {
        let index = self.core.layout.payload_index(block);
        let start = self.core.layout.block_start(block);
        let len = self.core.layout.block_size().min(self.core.layout.size() - start.0);
        self.change_tables([self.bat_page(index)], |changed| {
            self.put_entry(changed, index, entry);
            self.forget(start, len);
        })
    }

    /// Has forgotten what is known of bytes that another answers for, while the changed tables are still
    /// hidden: who finds in there that nothing is left to be done must not be the first to know.
    fn forget(&self, at: DiskOffset, len: u64) {
        self.feed.answers.changed(self.core.budget.answers(), at.0..at.0 + len);
    }

    fn set_entry(&self, index: BatIndex, entry: BatEntry) -> Result<()> {
        self.change_tables([self.bat_page(index)], |changed| {
            self.put_entry(changed, index, entry);
        })
    }

    /// Has the pages at hand and changes them, all at once for readers and for a snapshot.
    pub(super) fn change_tables<R>(
        &self,
        needed: impl IntoIterator<Item = (u64, PageKind)>,
        change: impl FnOnce(&mut Changed) -> R,
    ) -> Result<R> {
        let needed: Vec<(u64, PageKind)> = needed.into_iter().collect();
        loop {
            let (epoch, missing): (u64, Vec<_>) = {
                let changed = self.feed.changed.read();
                let missing = needed.iter().filter(|(at, _)| !changed.has(*at));
                (self.feed.changed.epoch(), missing.copied().collect())
            };
            let load = |(at, kind): (u64, PageKind)| {
                let page = self.core.table_page(FileOffset::new(at), |page| Box::new(*page))?;
                Ok((at, kind, page))
            };
            let loaded = missing.into_iter().map(load).collect::<Result<Vec<_>>>()?;
            let mut changed = self.feed.changed.write();
            if self.feed.changed.epoch() != epoch
                || needed.iter().any(|(at, _)| {
                    !changed.has(*at) && !loaded.iter().any(|(other, ..)| other == at)
                })
            {
                continue; // pages went to their places meanwhile: what was loaded may be old
            }
            for (at, kind, page) in loaded {
                changed.add(at, page, kind);
            }
            return Ok(change(&mut changed));
        }
    }

    pub(super) fn bat_page(&self, index: BatIndex) -> (u64, PageKind) {
        let at = self.core.bat_entry_at(index).get();
        (at - at % PAGE, PageKind::BlockAllocationTable)
    }

    fn entry_in(&self, changed: &Changed, index: BatIndex) -> Option<BatEntry> {
        let at = self.core.bat_entry_at(index).get();
        let page = changed.page(at - at % PAGE)?;
        let within = (at % PAGE) as usize;
        Some(BatEntry::read(&page[within..]))
    }

    pub(super) fn put_entry(&self, changed: &mut Changed, index: BatIndex, entry: BatEntry) {
        let at = self.core.bat_entry_at(index).get();
        let within = (at % PAGE) as usize;
        if let Some(page) = changed.change(at - at % PAGE) {
            page[within..within + 8].copy_from_slice(&entry.to_bytes());
        }
    }

    /// The bits of sectors in their chunk's bitmap.
    fn bits(&self, at: DiskOffset, len: u64) -> Range<u64> {
        let first = self.core.layout.bit_of(at);
        first..first + len / self.core.layout.sector_size()
    }

    fn block_bits(&self, block: BlockIndex) -> Range<u64> {
        self.bits(self.core.layout.block_start(block), self.core.layout.block_size())
    }
}

impl Mirror for Writer {
    fn write_again(&self, buf: &[u8], offset: u64, disk: Layers<'_>) -> Result<u64> {
        let sector = self.core.layout.sector_size();
        let (mut at, mut rest, mut written) = (offset, buf, 0);
        while !rest.is_empty() {
            let (within, left) = (at % sector, rest.len() as u64);
            let len = if within != 0 || left < sector {
                let mut whole = vec![0; sector as usize];
                disk.read_at(&mut whole, at - within)?;
                self.write_whole(whole[..].into(), DiskOffset(at - within))?;
                written += sector;
                left.min(sector - within)
            } else {
                let len = left - left % sector;
                self.write_whole(rest[..len as usize].into(), DiskOffset(at))?;
                written += len;
                len
            };
            at += len;
            rest = &rest[len as usize..];
        }
        Ok(written)
    }

    fn zero_again(&self, range: Range<u64>, how: Zeroing, disk: Layers<'_>) -> Result<()> {
        self.zero_through(range, how, disk)
    }
}

/// The pages of a bitmap that hold these bits.
fn bitmap_pages(
    bitmap: FileOffset,
    bits: &Range<u64>,
) -> impl Iterator<Item = (u64, PageKind)> + use<> {
    let pages = bits.start / (8 * PAGE)..bits.end.div_ceil(8 * PAGE);
    pages.map(move |page| (bitmap.get() + page * PAGE, PageKind::SectorBitmap))
}

/// The parts of a bit range that lie in one page each: the page's place, and the bits within it.
fn parts_by_page(
    bitmap: FileOffset,
    bits: &Range<u64>,
) -> impl Iterator<Item = (u64, Range<usize>)> + use<> {
    let bits = bits.clone();
    bitmap_pages(bitmap, &bits).map(move |(at, _)| {
        let first_bit = (at - bitmap.get()) * 8;
        let within = bits.start.max(first_bit)..bits.end.min(first_bit + 8 * PAGE);
        (at, (within.start - first_bit) as usize..(within.end - first_bit) as usize)
    })
}

/// The bytes that a bit range reaches, each with the mask of its bits: those at the ends one by one,
/// those in between, whose bits are all meant, as a range.
fn bytes_of(bits: &Range<usize>) -> ([(usize, u8); 2], Range<usize>) {
    let (first, last) = (bits.start / 8, (bits.end - 1) / 8);
    let head = 0xFF_u8 << (bits.start % 8);
    let tail = 0xFF_u8 >> (7 - (bits.end - 1) % 8);
    if first == last {
        return ([(first, head & tail), (last, 0)], first..first);
    }
    ([(first, head), (last, tail)], first + 1..last)
}

fn set_bits(changed: &mut Changed, bitmap: FileOffset, bits: &Range<u64>, value: bool) {
    for (at, within) in parts_by_page(bitmap, bits) {
        let Some(page) = changed.change(at) else { continue };
        let (ends, middle) = bytes_of(&within);
        for (byte, mask) in ends {
            page[byte] = if value { page[byte] | mask } else { page[byte] & !mask };
        }
        page[middle].fill(if value { 0xFF } else { 0 });
    }
}

fn all_set(changed: &Changed, bitmap: FileOffset, bits: &Range<u64>) -> bool {
    parts_by_page(bitmap, bits).all(|(at, within)| {
        let (ends, middle) = bytes_of(&within);
        changed.page(at).is_some_and(|page| {
            ends.iter().all(|(byte, mask)| page[*byte] & mask == *mask)
                && page[middle].iter().all(|byte| *byte == 0xFF)
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zeros_start_on_a_page_so_that_a_kill_tears_no_sector() {
        assert_eq!(ZEROS.0.as_ptr() as usize % 4096, 0);
    }

    proptest! {
        #[test]
        fn bytes_of_a_bit_range_are_those_of_a_walk_bit_by_bit(start in 0_usize..200, len in 1_usize..200) {
            let bits = start..start + len;
            let mut expected = [0_u8; 50];
            for bit in bits.clone() {
                expected[bit / 8] |= 1 << (bit % 8);
            }
            let mut found = [0_u8; 50];
            let (ends, middle) = bytes_of(&bits);
            for (byte, mask) in ends {
                found[byte] |= mask;
            }
            found[middle].fill(0xFF);
            prop_assert_eq!(found, expected);
        }
    }
}
