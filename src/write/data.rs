//! The ways of a write: in place, into new space, to zeros.

use std::ops::Range;

use super::Writer;
use super::block_locks::BlockGuard;
use super::copy_from::Payload;
use super::freeze::Entered;
use super::space::{Contents, Freed};
use crate::disk::Disk;
use crate::disk::{Zeroing, check_range};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BITMAP_BLOCK_LEN, BatEntry, PayloadState};
use crate::image::Core;
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

/// Reads bytes of the disk as its user sees them: what stands beside a part of a sector.
pub(crate) type Visible<'a> = &'a dyn Fn(&mut [u8], u64) -> Result<()>;

impl Core {
    /// Writes `buf` at `offset`; parts of sectors are completed with what `visible` reads.
    pub(crate) fn write_through(
        &self,
        buf: &[u8],
        offset: u64,
        visible: Visible<'_>,
    ) -> Result<()> {
        let writer = self.writer()?;
        check_range(&self.geometry(), offset, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        let entered = self.enter(writer, offset..offset + buf.len() as u64)?;
        let done = self.write_entered(writer, buf, offset, visible);
        entered.leave(done, &|mirror| mirror.write_again(buf, offset, visible))
    }

    fn write_entered(
        &self,
        writer: &Writer,
        buf: &[u8],
        offset: u64,
        visible: Visible<'_>,
    ) -> Result<()> {
        self.begin(writer)?;
        let sector = self.layout.sector_size();
        let mut at = DiskOffset(offset);
        let mut rest = buf;
        while !rest.is_empty() {
            let (within, left) = (at.0 % sector, rest.len() as u64);
            let len = if within != 0 || left < sector {
                let len = left.min(sector - within);
                self.write_part_of_sector(writer, &rest[..len as usize], at, visible)?;
                len
            } else {
                self.write_sectors(writer, rest[..(left - left % sector) as usize].into(), at)?
            };
            at = at + len;
            rest = &rest[len as usize..];
        }
        self.limit_changes(writer)
    }

    /// Writes what was written elsewhere, and says how many bytes that takes: of sectors that were written in part
    /// all, which `visible` reads there.
    fn write_again(&self, buf: &[u8], offset: u64, visible: Visible<'_>) -> Result<u64> {
        let sector = self.layout.sector_size();
        let (mut at, mut rest, mut written) = (offset, buf, 0);
        while !rest.is_empty() {
            let (within, left) = (at % sector, rest.len() as u64);
            let len = if within != 0 || left < sector {
                let mut whole = vec![0; sector as usize];
                visible(&mut whole, at - within)?;
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

    /// Writes whole sectors.
    pub(super) fn write_whole(&self, payload: Payload<'_>, at: DiskOffset) -> Result<()> {
        let writer = self.writer()?;
        let len = payload.len();
        check_range(&self.geometry(), at.0, len)?;
        if len == 0 {
            return Ok(());
        }
        let _entered = self.enter(writer, at.0..at.0 + len)?;
        self.begin(writer)?;
        let (mut at, mut rest) = (at, payload);
        while rest.len() > 0 {
            let len = self.write_sectors(writer, rest, at)?;
            at = at + len;
            rest = rest.after(len);
            self.limit_changes(writer)?;
        }
        Ok(())
    }

    /// Makes a range read as zeros. Whole blocks may give up their space.
    pub(crate) fn zero_through(
        &self,
        range: Range<u64>,
        how: Zeroing,
        visible: Visible<'_>,
    ) -> Result<()> {
        let writer = self.writer()?;
        // Also where it reads as zeros already, so that nobody goes on unawares.
        writer.check()?;
        let len = range.end.saturating_sub(range.start);
        check_range(&self.geometry(), range.start, len)?;
        let entered = self.enter(writer, range.clone())?;
        let done = self.zero_entered(writer, &range, how, visible);
        entered.leave(done, &|mirror| {
            mirror.zero_through(range.clone(), how, visible)?;
            Ok(0)
        })
    }

    fn zero_entered(
        &self,
        writer: &Writer,
        range: &Range<u64>,
        how: Zeroing,
        visible: Visible<'_>,
    ) -> Result<()> {
        let mut at = DiskOffset(range.start);
        while at.0 < range.end {
            let block = self.layout.block_of(at);
            let within = self.layout.within_block(at);
            let block_end = at.0 - within + self.layout.block_size();
            let end = block_end.min(range.end);
            // The last block may reach past the end of the disk.
            let is_whole = within == 0 && end == block_end.min(self.layout.size());
            if is_whole {
                self.zero_block(writer, block, how)?;
            } else {
                self.zero_part(writer, at, end - at.0, visible)?;
            }
            at = DiskOffset(end);
            self.limit_changes(writer)?;
        }
        Ok(())
    }

    pub(super) fn writer(&self) -> Result<&Writer> {
        self.writer.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::ReadOnly, "disk.read-only", "the image is open for reading only")
                .in_file(self.name())
        })
    }

    fn enter<'a>(&self, writer: &'a Writer, range: Range<u64>) -> Result<Entered<'a>> {
        writer.ops.enter(range).map_err(|error| error.in_file(self.name()))
    }

    fn write_part_of_sector(
        &self,
        writer: &Writer,
        buf: &[u8],
        at: DiskOffset,
        visible: Visible<'_>,
    ) -> Result<()> {
        let sector = self.layout.sector_size();
        let within = (at.0 % sector) as usize;
        let start = DiskOffset(at.0 - within as u64);
        let block = self.layout.block_of(at);
        // Alone: nobody else may write the sector between our reading and our writing it.
        let claimed = writer.blocks.claim(block);
        let mut whole = vec![0; sector as usize];
        visible(&mut whole, start.0)?;
        whole[within..within + buf.len()].copy_from_slice(buf);
        self.write_claimed(writer, &claimed, whole[..].into(), start)
    }

    /// Writes some of these whole sectors, and says how many bytes: up to the end of their block, or as many
    /// blocks as lie in one piece in the file.
    fn write_sectors(&self, writer: &Writer, buf: Payload<'_>, at: DiskOffset) -> Result<u64> {
        let block = self.layout.block_of(at);
        let in_block = self.layout.block_size() - self.layout.within_block(at);
        if buf.len() > in_block {
            let len = self.write_in_piece(writer, buf, at)?;
            if len > 0 {
                return Ok(len);
            }
        }
        let buf = buf.first(buf.len().min(in_block));
        let is_done = {
            let _shared = writer.blocks.share(block);
            self.write_in_place(writer, buf, at)?
        };
        if !is_done {
            let claimed = writer.blocks.claim(block);
            self.write_claimed(writer, &claimed, buf, at)?;
        }
        Ok(buf.len())
    }

    /// Writes into blocks that are present and lie one behind the other in the file too, all at once. Says
    /// how many bytes, 0 where there are no two of that kind to start with.
    fn write_in_piece(&self, writer: &Writer, buf: Payload<'_>, at: DiskOffset) -> Result<u64> {
        // Held in ascending order; whoever holds a block alone waits for no other.
        let mut shared = Vec::new();
        let mut piece = FileOffset::default();
        let mut len = 0;
        while len < buf.len() && shared.len() < MOST_BLOCKS {
            let next = at + len;
            let block = self.layout.block_of(next);
            let in_block = self.layout.block_size() - self.layout.within_block(next);
            let in_block = in_block.min(buf.len() - len);
            let guard = writer.blocks.share(block);
            let index = self.layout.payload_index(block);
            let entry = self.bat_entry(index)?;
            if entry.payload_state() != PayloadState::FullyPresent {
                break;
            }
            let place = self.place_of(entry, index, next, in_block)?;
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
        writer.write_payload(buf.first(len), piece)?;
        Ok(len)
    }

    fn write_claimed(
        &self,
        writer: &Writer,
        _claimed: &BlockGuard<'_>,
        buf: Payload<'_>,
        at: DiskOffset,
    ) -> Result<()> {
        if self.write_in_place(writer, buf, at)? {
            return Ok(());
        }
        self.write_into_new(writer, buf, at)
    }

    /// Writes into the block's space, if it has some.
    fn write_in_place(&self, writer: &Writer, buf: Payload<'_>, at: DiskOffset) -> Result<bool> {
        let block = self.layout.block_of(at);
        let index = self.layout.payload_index(block);
        let entry = self.bat_entry(index)?;
        let is_mixed = match entry.payload_state() {
            PayloadState::FullyPresent => false,
            PayloadState::PartiallyPresent if self.has_parent() => true,
            PayloadState::PartiallyPresent | PayloadState::Reserved => {
                // Reading says what is wrong with the entry; a write must not make it worse.
                self.resolve(at, buf.len())?;
                return Ok(false);
            }
            _ => return Ok(false),
        };
        let place = self.place_of(entry, index, at, buf.len())?;
        writer.write_payload(buf, place)?;
        if is_mixed {
            self.mark_sectors(writer, entry, at, buf.len())?;
        }
        Ok(true)
    }

    /// Writes into new space for a block that has none. The block is held alone.
    fn write_into_new(&self, writer: &Writer, buf: Payload<'_>, at: DiskOffset) -> Result<()> {
        let block = self.layout.block_of(at);
        let index = self.layout.payload_index(block);
        let old = self.bat_entry(index)?;
        let within = self.layout.within_block(at);
        let end = within + buf.len();
        let in_disk = self.layout.block_size().min(self.layout.size() - (at.0 - within));
        let is_whole = within == 0 && end >= in_disk;
        let parent_shows = self.has_parent() && old.payload_state() == PayloadState::NotPresent;

        let space = writer.allocate(self.layout.block_size())?;
        writer.space.show_length(&self.file_len);
        let committed = (|| {
            writer.write_payload(buf, space.at + within)?;
            let rest_must_be_zero = is_whole || !parent_shows;
            if rest_must_be_zero && space.contents != Contents::Zeros {
                self.write_zeros(writer, space.at, within)?;
                self.write_zeros(writer, space.at + end, self.layout.block_size() - end)?;
            }
            if parent_shows && !is_whole {
                self.become_mixed(writer, block, space.at, at, buf.len())
            } else {
                self.set_block(writer, block, BatEntry::new(6, space.at))
            }
        })();
        committed.inspect_err(|_| writer.space.give_back(space))
    }

    /// Marks sectors of a partially present block as here. Whoever changed the block meanwhile comes
    /// after this write.
    pub(super) fn mark_sectors(
        &self,
        writer: &Writer,
        seen: BatEntry,
        at: DiskOffset,
        len: u64,
    ) -> Result<()> {
        let block = self.layout.block_of(at);
        let index = self.layout.payload_index(block);
        let bitmap = self.bitmap_at(self.layout.chunk_of(block))?;
        let marks = self.bits(at, len);
        // Bits of a partially present block only ever get set: what is marked stays so.
        if self.bit_run(bitmap, marks.start, marks.end)? == (true, marks.end) {
            return Ok(());
        }
        let all = self.block_bits(block);
        let needed = bitmap_pages(bitmap, &all).chain([self.bat_page(index)]);
        self.change_tables(writer, needed, |changed| {
            if self.entry_in(changed, index) != Some(seen) {
                return;
            }
            set_bits(changed, bitmap, &marks, true);
            if all_set(changed, bitmap, &all) {
                self.put_entry(changed, index, BatEntry::new(6, seen.offset()));
            }
            self.forget(writer, at, len);
        })
    }

    /// Makes a block that was the parent's one whose sectors are here or there.
    pub(super) fn become_mixed(
        &self,
        writer: &Writer,
        block: BlockIndex,
        place: FileOffset,
        at: DiskOffset,
        len: u64,
    ) -> Result<()> {
        let index = self.layout.payload_index(block);
        let bitmap = self.bitmap_for(writer, block)?;
        let (marks, all) = (self.bits(at, len), self.block_bits(block));
        let needed = bitmap_pages(bitmap, &all).chain([self.bat_page(index)]);
        self.change_tables(writer, needed, |changed| {
            // What the bits said while the block was in another state means nothing.
            set_bits(changed, bitmap, &all, false);
            set_bits(changed, bitmap, &marks, true);
            self.put_entry(changed, index, BatEntry::new(7, place));
            // For the rest of the block it is still the parent that answers.
            self.forget(writer, at, len);
        })
    }

    /// The sector bitmap block of a block's chunk, made if there is none.
    fn bitmap_for(&self, writer: &Writer, block: BlockIndex) -> Result<FileOffset> {
        let chunk = self.layout.chunk_of(block);
        let index = self.layout.bitmap_index(chunk);
        let _alone = writer.bitmaps.lock();
        if self.bat_entry(index)?.state_bits() == 6 {
            return self.bitmap_at(chunk);
        }
        self.check_bitmap_is_new(chunk)?;
        let space = writer.allocate(BITMAP_BLOCK_LEN)?;
        writer.space.show_length(&self.file_len);
        let made = (|| {
            if space.contents != Contents::Zeros {
                self.write_zeros(writer, space.at, space.len)?;
            }
            // Pages of what was there before must not be taken for the bitmap's.
            for page in 0..BITMAP_BLOCK_LEN / PAGE {
                self.budget.drop_page(self.id, space.at + page * PAGE);
            }
            self.set_entry(writer, index, BatEntry::new(6, space.at))
        })();
        made.inspect_err(|_| writer.space.give_back(space))?;
        Ok(space.at)
    }

    /// Refuses to give a chunk an empty sector bitmap where it lost the one it had: sectors of its partially present
    /// blocks that are here would be the parent's.
    fn check_bitmap_is_new(&self, chunk: ChunkIndex) -> Result<()> {
        let first = chunk.0 * self.layout.chunk_ratio();
        let end = self.layout.blocks().min(first + self.layout.chunk_ratio());
        for block in (first..end).map(BlockIndex) {
            let entry = self.bat_entry(self.layout.payload_index(block))?;
            if entry.payload_state() == PayloadState::PartiallyPresent {
                return self.bitmap_at(chunk).map(drop);
            }
        }
        Ok(())
    }

    fn zero_block(&self, writer: &Writer, block: BlockIndex, how: Zeroing) -> Result<()> {
        let _claimed = writer.blocks.claim(block);
        let index = self.layout.payload_index(block);
        let entry = self.bat_entry(index)?;
        let start = self.layout.block_start(block);
        let in_disk = self.layout.block_size().min(self.layout.size() - start.0);
        match entry.payload_state() {
            PayloadState::FullyPresent if self.keeps_blocks() || how == Zeroing::KeepSpace => {
                self.begin(writer)?;
                let place = self.place_of(entry, index, start, in_disk)?;
                self.write_zeros(writer, place, in_disk)
            }
            PayloadState::PartiallyPresent if how == Zeroing::KeepSpace && self.has_parent() => {
                self.begin(writer)?;
                let place = self.place_of(entry, index, start, in_disk)?;
                self.write_zeros(writer, place, in_disk)?;
                self.mark_sectors(writer, entry, start, in_disk)
            }
            PayloadState::FullyPresent | PayloadState::PartiallyPresent => {
                // Damaged places are an error here too, not space to be given away.
                let place = self.place_of(entry, index, start, in_disk)?;
                self.begin(writer)?;
                self.set_block(writer, block, BatEntry::new(2, FileOffset::new(0)))?;
                writer.space.free_later(Freed { at: place, len: self.layout.block_size() });
                Ok(())
            }
            PayloadState::NotPresent if self.has_parent() => {
                self.begin(writer)?;
                self.set_block(writer, block, BatEntry::new(2, FileOffset::new(0)))
            }
            PayloadState::Reserved => self.resolve(start, in_disk).map(drop),
            // It reads as zeros already.
            _ => Ok(()),
        }
    }

    /// Zeros a part of one block, only where it does not read as zeros by itself.
    fn zero_part(
        &self,
        writer: &Writer,
        at: DiskOffset,
        len: u64,
        visible: Visible<'_>,
    ) -> Result<()> {
        let index = self.layout.payload_index(self.layout.block_of(at));
        let is_zero = match self.bat_entry(index)?.payload_state() {
            PayloadState::NotPresent => !self.has_parent(),
            PayloadState::FullyPresent | PayloadState::PartiallyPresent => false,
            PayloadState::Reserved => return self.resolve(at, len).map(drop),
            _ => true,
        };
        if is_zero {
            return Ok(());
        }
        self.begin(writer)?;
        let sector = self.layout.sector_size();
        let (mut at, end) = (at, at.0 + len);
        while at.0 < end {
            let (within, left) = (at.0 % sector, end - at.0);
            let step = if within != 0 || left < sector {
                let step = left.min(sector - within);
                self.write_part_of_sector(writer, &ZEROS.0[..step as usize], at, visible)?;
                step
            } else {
                let step = (left - left % sector).min(MIB);
                self.write_sectors(writer, ZEROS.0[..step as usize].into(), at)?
            };
            at = at + step;
        }
        Ok(())
    }

    pub(super) fn write_zeros(&self, writer: &Writer, at: FileOffset, len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let step = (len - done).min(MIB);
            writer.write_bytes(&ZEROS.0[..step as usize], at.get() + done)?;
            done += step;
        }
        Ok(())
    }

    /// Flushes when the changes in memory are as many as one log entry takes.
    pub(super) fn limit_changes(&self, writer: &Writer) -> Result<()> {
        if writer.tables.read().dirty_pages() < self.most_dirty {
            return Ok(());
        }
        self.commit(writer)
    }

    /// Gives a block another state or place.
    pub(super) fn set_block(
        &self,
        writer: &Writer,
        block: BlockIndex,
        entry: BatEntry,
    ) -> Result<()> {
        let index = self.layout.payload_index(block);
        let start = self.layout.block_start(block);
        let len = self.layout.block_size().min(self.layout.size() - start.0);
        self.change_tables(writer, [self.bat_page(index)], |changed| {
            self.put_entry(changed, index, entry);
            self.forget(writer, start, len);
        })
    }

    /// Has forgotten what is known of bytes that another answers for, while the changed tables are still
    /// hidden: who finds in there that nothing is left to be done must not be the first to know.
    fn forget(&self, writer: &Writer, at: DiskOffset, len: u64) {
        writer.watch.changed(&self.budget, at.0..at.0 + len);
    }

    fn set_entry(&self, writer: &Writer, index: BatIndex, entry: BatEntry) -> Result<()> {
        self.change_tables(writer, [self.bat_page(index)], |changed| {
            self.put_entry(changed, index, entry);
        })
    }

    /// Has the pages at hand and changes them, all at once for readers and for a snapshot.
    pub(super) fn change_tables<R>(
        &self,
        writer: &Writer,
        needed: impl IntoIterator<Item = (u64, PageKind)>,
        change: impl FnOnce(&mut Changed) -> R,
    ) -> Result<R> {
        let needed: Vec<(u64, PageKind)> = needed.into_iter().collect();
        loop {
            let (epoch, missing): (u64, Vec<_>) = {
                let changed = writer.tables.read();
                let missing = needed.iter().filter(|(at, _)| !changed.has(*at));
                (writer.tables.epoch(), missing.copied().collect())
            };
            let load = |(at, kind): (u64, PageKind)| {
                let page = self.table_page(FileOffset::new(at), |page| Box::new(*page))?;
                Ok((at, kind, page))
            };
            let loaded = missing.into_iter().map(load).collect::<Result<Vec<_>>>()?;
            let mut changed = writer.tables.write();
            if writer.tables.epoch() != epoch
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
        let at = self.bat_entry_at(index).get();
        (at - at % PAGE, PageKind::BlockAllocationTable)
    }

    fn entry_in(&self, changed: &Changed, index: BatIndex) -> Option<BatEntry> {
        let at = self.bat_entry_at(index).get();
        let page = changed.page(at - at % PAGE)?;
        let within = (at % PAGE) as usize;
        Some(BatEntry::read(&page[within..]))
    }

    pub(super) fn put_entry(&self, changed: &mut Changed, index: BatIndex, entry: BatEntry) {
        let at = self.bat_entry_at(index).get();
        let within = (at % PAGE) as usize;
        if let Some(page) = changed.change(at - at % PAGE) {
            page[within..within + 8].copy_from_slice(&entry.to_bytes());
        }
    }

    /// The bits of sectors in their chunk's bitmap.
    fn bits(&self, at: DiskOffset, len: u64) -> Range<u64> {
        let first = self.layout.bit_of(at);
        first..first + len / self.layout.sector_size()
    }

    fn block_bits(&self, block: BlockIndex) -> Range<u64> {
        self.bits(self.layout.block_start(block), self.layout.block_size())
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
