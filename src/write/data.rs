//! Paths of a write: in place, or into new space.

use std::ops::Range;

use super::bits::{all_set, bitmap_pages, set_bits};
use super::block_locks::BlockGuard;
use super::change_lock::Change;
use super::held_pages::HeldPages;
use super::open_plans::End;
use super::payload::Payload;
use super::reserved::Share;
use super::space::Contents;
use super::tracker::Mirror;
use super::writer::Writer;
use crate::disk::Zeroing;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BITMAP_BLOCK_LEN, BatEntry, PayloadState};
use crate::read::Layers;
use crate::tables::{Changed, FromFile, Order, PAGE, PageKind};
use crate::types::{BatIndex, BlockIndex, ChunkIndex, DiskOffset, FileOffset};

/// Limit of blocks that one write to the file covers.
const MOST_BLOCKS: usize = 64;

impl Writer {
    /// Writes `buf` at `offset` of an image that is read without its parent.
    pub(crate) fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.write_through(buf, offset, self.core.by_itself())
    }

    /// Writes `buf` at `offset`. Partial sectors are completed from the layers of the disk.
    pub(crate) fn write_through(&self, buf: &[u8], offset: u64, disk: Layers<'_>) -> Result<()> {
        self.core.geometry().check_range(offset, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        let change = self.begin_change(offset..offset + buf.len() as u64)?;
        let done = self.write_in_change(buf, offset, disk);
        change.finish(done, &|mirror| mirror.mirror_write(buf, offset, disk))
    }

    fn write_in_change(&self, buf: &[u8], offset: u64, disk: Layers<'_>) -> Result<()> {
        self.prepare_visible_change()?;
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
                let whole = rest[..(left - left % sector) as usize].into();
                self.write_sectors(whole, at, Some(disk))?
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
        let _change = self.begin_change(at.0..at.0 + len)?;
        self.prepare_visible_change()?;
        let (mut at, mut rest) = (at, payload);
        while rest.len() > 0 {
            let len = self.write_sectors(rest, at, None)?;
            at = at + len;
            rest = rest.after(len);
            self.limit_changes()?;
        }
        Ok(())
    }

    pub(super) fn begin_change(&self, range: Range<u64>) -> Result<Change<'_>> {
        self.change_lock.begin_change(range).map_err(|error| error.in_file(self.core.name()))
    }

    pub(super) fn write_part_of_sector(
        &self,
        buf: &[u8],
        at: DiskOffset,
        disk: Layers<'_>,
    ) -> Result<()> {
        let sector = self.core.layout.sector_size();
        let within = (at.0 % sector) as usize;
        let start = DiskOffset(at.0 - within as u64);
        let block = self.core.layout.block_of(at);
        // Exclusively: no other write to the sector may come between the read and the write.
        let locked = self.blocks.lock_exclusive(block);
        if self.plans.meets(&(start.0..start.0 + sector)) {
            let message = "a part of a sector cannot be written while a planned write covers it";
            return Err(Error::new(ErrorKind::InUse, "write.sector-planned", message)
                .in_file(self.core.name())
                .with_found(format_args!("a part of the sector at {} of the disk", start.0))
                .with_expected("whole sectors, or planned writes that have ended"));
        }
        let mut whole = vec![0; sector as usize];
        disk.read_at(&mut whole, start.0)?;
        whole[within..within + buf.len()].copy_from_slice(buf);
        self.write_locked(&locked, whole[..].into(), start, Some(disk))
    }

    /// Writes some of these whole sectors and returns how many bytes: up to the end of the block,
    /// or as many blocks as are contiguous in the file. `disk` tells what they read as before.
    pub(super) fn write_sectors(
        &self,
        buf: Payload<'_>,
        at: DiskOffset,
        disk: Option<Layers<'_>>,
    ) -> Result<u64> {
        let block = self.core.layout.block_of(at);
        let in_block = self.core.layout.block_size() - self.core.layout.within_block(at);
        if buf.len() > in_block {
            let len = self.write_contiguous(buf, at)?;
            if len > 0 {
                return Ok(len);
            }
        }
        let buf = buf.first(buf.len().min(in_block));
        let is_done = {
            let _shared = self.blocks.lock_shared(block);
            self.write_in_place(buf, at, disk)?
        };
        if !is_done {
            let locked = self.blocks.lock_exclusive(block);
            self.write_locked(&locked, buf, at, disk)?;
        }
        Ok(buf.len())
    }

    /// Writes into present blocks that are contiguous in the file, in one piece. Returns how many
    /// bytes, 0 if the first two blocks are not contiguous.
    fn write_contiguous(&self, buf: Payload<'_>, at: DiskOffset) -> Result<u64> {
        // Locked in ascending order; the holder of an exclusive lock waits for no other block.
        let mut shared = Vec::new();
        let mut piece = FileOffset::default();
        let mut len = 0;
        while len < buf.len() && shared.len() < MOST_BLOCKS {
            let next = at + len;
            let block = self.core.layout.block_of(next);
            let in_block = self.core.layout.block_size() - self.core.layout.within_block(next);
            let in_block = in_block.min(buf.len() - len);
            let guard = self.blocks.lock_shared(block);
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

    fn write_locked(
        &self,
        _locked: &BlockGuard<'_>,
        buf: Payload<'_>,
        at: DiskOffset,
        disk: Option<Layers<'_>>,
    ) -> Result<()> {
        // Joined first: the space may be named meanwhile, and without a share the entry stays.
        let share = self.reserved.join(self.core.layout.block_of(at));
        let done = self.write_in_place(buf, at, disk);
        match (share, matches!(done, Ok(false))) {
            (Some(share), true) => self.write_to_reserved(share, buf, at, disk),
            (None, true) => self.write_to_new_space(buf, at, disk),
            (share, false) => {
                self.give_back(share.and_then(|share| self.reserved.leave(share, End::Unused)));
                done.map(drop)
            }
        }
    }

    /// Writes into the block's space; `false` if it has none.
    fn write_in_place(
        &self,
        buf: Payload<'_>,
        at: DiskOffset,
        disk: Option<Layers<'_>>,
    ) -> Result<bool> {
        let block = self.core.layout.block_of(at);
        let index = self.core.layout.payload_index(block);
        let entry = self.core.bat_entry(index)?;
        let is_partial = match entry.payload_state() {
            PayloadState::FullyPresent => false,
            PayloadState::PartiallyPresent if self.core.has_parent() => true,
            PayloadState::PartiallyPresent | PayloadState::Reserved => {
                // The resolver reports the fault of the entry; a write must not make it worse.
                self.core.resolve(at, buf.len())?;
                return Ok(false);
            }
            _ => return Ok(false),
        };
        let place = self.core.place_of(entry, index, at, buf.len())?;
        if !is_partial {
            return self.write_payload(buf, place).map(|()| true);
        }
        let len = buf.len();
        let order = self.order_in(entry.offset(), self.core.layout.block_size(), || {
            self.read_zeros(disk, at, len)
        })?;
        let marked =
            self.write_payload(buf, place).and_then(|()| self.mark_sectors(entry, at, len, order));
        // Sectors that are not marked may have been written.
        marked.inspect_err(|_| self.space.spoil(entry.offset()))?;
        Ok(true)
    }

    /// Writes to new space for a block that has none. The block is locked exclusively.
    fn write_to_new_space(
        &self,
        buf: Payload<'_>,
        at: DiskOffset,
        disk: Option<Layers<'_>>,
    ) -> Result<()> {
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
        self.space.publish_length(&self.core.file_len);
        let order = self
            .order_in(space.at, space.len, || {
                Ok(!parent_shows || self.read_zeros(disk, at, buf.len())?)
            })
            .inspect_err(|_| self.space.give_back(space))?;
        let committed = (|| {
            self.write_payload(buf, space.at + within)?;
            let rest_must_be_zero = is_whole || !parent_shows;
            if rest_must_be_zero && space.contents != Contents::Zeros {
                self.write_zeros(space.at, within)?;
                self.write_zeros(space.at + end, self.core.layout.block_size() - end)?;
            }
            if parent_shows && !is_whole {
                self.make_partially_present(block, space.at, at, buf.len(), order)
            } else {
                self.set_block(block, BatEntry::new(6, space.at), order)
            }
        })();
        committed.inspect_err(|_| self.space.give_back(space))
    }

    /// Writes to the space that planned writes have reserved for a block. The block is locked exclusively.
    fn write_to_reserved(
        &self,
        share: Share,
        buf: Payload<'_>,
        at: DiskOffset,
        disk: Option<Layers<'_>>,
    ) -> Result<()> {
        let mut held = HeldPages::new(self);
        let named = (|| {
            let len = buf.len();
            let bitmap = match share.shows_parent && !self.is_whole_block(at, len) {
                true => Some(self.bitmap_for(share.block)?),
                false => None,
            };
            held.hold(FromFile, self.pages_to_name(share, bitmap))?;
            let read_zeros = || Ok(!share.shows_parent || self.read_zeros(disk, at, len)?);
            let order = self.order_in(share.space.at, share.space.len, read_zeros)?;
            self.write_payload(buf, share.space.at + self.core.layout.within_block(at))?;
            self.name_reserved(share, bitmap, at, len, order);
            Ok(())
        })();
        if named.is_err() {
            self.space.spoil(share.space.at);
        }
        self.give_back(self.reserved.leave(share, End::Ended));
        named
    }

    /// Marks sectors of a partially present block as present. If the block changed meanwhile, that
    /// change counts as the later one.
    pub(super) fn mark_sectors(
        &self,
        seen: BatEntry,
        at: DiskOffset,
        len: u64,
        order: Order,
    ) -> Result<()> {
        let block = self.core.layout.block_of(at);
        let index = self.core.layout.payload_index(block);
        let bitmap = self.core.bitmap_at(self.core.layout.chunk_of(block))?;
        let marks = self.bits(at, len);
        // Bits of a partially present block are never cleared: marked sectors stay marked.
        if self.core.bit_run(bitmap, marks.start, marks.end)? == (true, marks.end) {
            return Ok(());
        }
        let all = self.block_bits(block);
        let needed = bitmap_pages(bitmap, &all).chain([self.bat_page(index)]);
        self.change_tables(needed, order, |changed| {
            if self.entry_in(changed, index) != Some(seen) {
                return;
            }
            set_bits(changed, bitmap, &marks, true);
            if all_set(changed, bitmap, &all) {
                self.put_entry(changed, index, BatEntry::new(6, seen.offset()));
            }
            self.invalidate_answers(at, len);
        })
    }

    /// Makes a block that is not present partially present.
    pub(super) fn make_partially_present(
        &self,
        block: BlockIndex,
        place: FileOffset,
        at: DiskOffset,
        len: u64,
        order: Order,
    ) -> Result<()> {
        let index = self.core.layout.payload_index(block);
        let bitmap = self.bitmap_for(block)?;
        let (marks, all) = (self.bits(at, len), self.block_bits(block));
        let needed = bitmap_pages(bitmap, &all).chain([self.bat_page(index)]);
        self.change_tables(needed, order, |changed| {
            // Bits left from an earlier state of the block mean nothing.
            set_bits(changed, bitmap, &all, false);
            set_bits(changed, bitmap, &marks, true);
            self.put_entry(changed, index, BatEntry::new(7, place));
            // The parent still answers for the rest of the block.
            self.invalidate_answers(at, len);
        })
    }

    /// Returns the sector bitmap block of a block's chunk, and creates it if there is none.
    pub(super) fn bitmap_for(&self, block: BlockIndex) -> Result<FileOffset> {
        let chunk = self.core.layout.chunk_of(block);
        let index = self.core.layout.bitmap_index(chunk);
        let _exclusive = self.bitmaps.lock();
        if self.core.bat_entry(index)?.state_bits() == 6 {
            return self.core.bitmap_at(chunk);
        }
        self.check_bitmap_is_new(chunk)?;
        let space = self.allocate(BITMAP_BLOCK_LEN)?;
        self.space.publish_length(&self.core.file_len);
        let made = (|| {
            if space.contents != Contents::Zeros {
                self.write_zeros(space.at, space.len)?;
            }
            // Cached pages of the earlier contents must not be taken for the bitmap's.
            for page in 0..BITMAP_BLOCK_LEN / PAGE {
                self.core.budget.drop_page(self.core.id, space.at + page * PAGE);
            }
            let order = self.order_in(space.at, space.len, || Ok(true))?;
            self.change_tables([self.bat_page(index)], order, |changed| {
                self.put_entry(changed, index, BatEntry::new(6, space.at));
            })
        })();
        made.inspect_err(|_| self.space.give_back(space))?;
        Ok(space.at)
    }

    /// Refuses to create an empty sector bitmap for a chunk that lost its own: the present sectors
    /// of its partially present blocks would read from the parent.
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

    /// Commits if there are as many changed pages as one log entry holds.
    pub(super) fn limit_changes(&self) -> Result<()> {
        if self.feed.changed.read().dirty_pages() < self.most_dirty {
            return Ok(());
        }
        self.commit()
    }

    /// Changes the state and place of a block.
    pub(super) fn set_block(&self, block: BlockIndex, entry: BatEntry, order: Order) -> Result<()> {
        let index = self.core.layout.payload_index(block);
        let start = self.core.layout.block_start(block);
        let len = self.core.layout.block_size().min(self.core.layout.size() - start.0);
        self.change_tables([self.bat_page(index)], order, |changed| {
            self.put_entry(changed, index, entry);
            self.invalidate_answers(start, len);
        })
    }

    /// Invalidates cached answers for these bytes while the changed tables are still hidden: a
    /// reader of the new tables must not precede the invalidation.
    pub(super) fn invalidate_answers(&self, at: DiskOffset, len: u64) {
        self.feed.answers.changed(self.core.budget.answers(), at.0..at.0 + len);
    }

    /// Loads the pages and changes them, in one step for readers and for snapshots.
    pub(super) fn change_tables<R>(
        &self,
        needed: impl IntoIterator<Item = (u64, PageKind)>,
        order: Order,
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
                let page = self.core.table_page(FileOffset::new(at), |page| page.to_page())?;
                Ok((at, kind, page))
            };
            let loaded = missing.into_iter().map(load).collect::<Result<Vec<_>>>()?;
            let mut changed = self.feed.changed.write();
            if self.feed.changed.epoch() != epoch
                || needed.iter().any(|(at, _)| {
                    !changed.has(*at) && !loaded.iter().any(|(other, ..)| other == at)
                })
            {
                continue; // pages were applied meanwhile: the loaded ones may be stale
            }
            for (at, kind, page) in loaded {
                changed.add(at, page, kind);
            }
            changed.require(order);
            return Ok(change(&mut changed));
        }
    }

    pub(super) fn bat_page(&self, index: BatIndex) -> (u64, PageKind) {
        let at = self.core.bat_entry_at(index).get();
        (at - at % PAGE, PageKind::BlockAllocationTable)
    }

    pub(super) fn entry_in(&self, changed: &Changed, index: BatIndex) -> Option<BatEntry> {
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

    /// The bits of these sectors in their chunk's bitmap.
    pub(super) fn bits(&self, at: DiskOffset, len: u64) -> Range<u64> {
        let first = self.core.layout.bit_of(at);
        first..first + len / self.core.layout.sector_size()
    }

    pub(super) fn block_bits(&self, block: BlockIndex) -> Range<u64> {
        self.bits(self.core.layout.block_start(block), self.core.layout.block_size())
    }
}

impl Mirror for Writer {
    fn mirror_write(&self, buf: &[u8], offset: u64, disk: Layers<'_>) -> Result<u64> {
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

    fn mirror_zeroes(&self, range: Range<u64>, how: Zeroing, disk: Layers<'_>) -> Result<()> {
        self.zero_through(range, how, disk)
    }
}
