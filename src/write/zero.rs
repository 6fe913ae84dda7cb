//! Zeroing and discarding ranges of the disk.

use std::ops::Range;

use super::space::{Contents, Freed};
use super::writer::Writer;
use crate::disk::Zeroing;
use crate::error::{Error, Result};
use crate::format::bat::{BatEntry, PayloadState};
use crate::read::Layers;
use crate::tables::Order;
use crate::types::{BlockIndex, DiskOffset, FileOffset, MIB};

static ZEROS: Zeros = Zeros([0; MIB as usize]);

/// A source of zeros. Aligned to a page of memory: a write that a signal interrupts ends at a page
/// of its source, which then is the end of a sector too.
#[repr(C, align(4096))]
struct Zeros([u8; MIB as usize]);

impl Writer {
    /// Makes a range read as zeros, of an image that is read without its parent.
    pub(crate) fn write_zeroes(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.zero_through(range, how, self.core.by_itself())
    }

    /// Makes a range read as zeros. Whole blocks may release their space.
    pub(crate) fn zero_through(
        &self,
        range: Range<u64>,
        how: Zeroing,
        disk: Layers<'_>,
    ) -> Result<()> {
        // Also for ranges that read as zeros already: a poisoned image must not appear to work.
        self.check()?;
        let len = range.end.saturating_sub(range.start);
        self.core.geometry().check_range(range.start, len)?;
        let change = self.begin_change(range.clone())?;
        let done = self.zero_in_change(&range, how, disk);
        change.finish(done, &|mirror| {
            mirror.mirror_zeroes(range.clone(), how, disk)?;
            Ok(0)
        })
    }

    fn zero_in_change(&self, range: &Range<u64>, how: Zeroing, disk: Layers<'_>) -> Result<()> {
        let mut at = DiskOffset(range.start);
        while at.0 < range.end {
            let block = self.core.layout.block_of(at);
            let within = self.core.layout.within_block(at);
            let block_end = at.0 - within + self.core.layout.block_size();
            let end = block_end.min(range.end);
            // The last block may extend past the end of the disk.
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

    fn zero_block(&self, block: BlockIndex, how: Zeroing) -> Result<()> {
        let _locked = self.blocks.lock_exclusive(block);
        // Planned writes that share space for the block come before this.
        self.reserved.detach(block);
        let index = self.core.layout.payload_index(block);
        let entry = self.core.bat_entry(index)?;
        let start = self.core.layout.block_start(block);
        let in_disk = self.core.layout.block_size().min(self.core.layout.size() - start.0);
        match entry.payload_state() {
            PayloadState::FullyPresent if self.core.keeps_blocks() || how == Zeroing::KeepSpace => {
                self.prepare_visible_change()?;
                let place = self.core.place_of(entry, index, start, in_disk)?;
                self.write_zeros(place, in_disk)
            }
            PayloadState::PartiallyPresent
                if how == Zeroing::KeepSpace && self.core.has_parent() =>
            {
                self.prepare_visible_change()?;
                let place = self.core.place_of(entry, index, start, in_disk)?;
                self.write_zeros(place, in_disk)?;
                self.mark_sectors(entry, start, in_disk, Order::PayloadFirst)
            }
            PayloadState::FullyPresent | PayloadState::PartiallyPresent => {
                // A damaged place is an error, and not space to be reused.
                let place = self.core.place_of(entry, index, start, in_disk)?;
                self.prepare_visible_change()?;
                self.set_block(block, BatEntry::new(2, FileOffset::new(0)), Order::Any)?;
                self.space.free_later(Freed { at: place, len: self.core.layout.block_size() });
                Ok(())
            }
            PayloadState::NotPresent if self.core.has_parent() => {
                self.prepare_visible_change()?;
                self.set_block(block, BatEntry::new(2, FileOffset::new(0)), Order::Any)
            }
            PayloadState::Reserved => self.core.resolve(start, in_disk).map(drop),
            // The block reads as zeros already.
            _ => Ok(()),
        }
    }

    /// Zeros a part of one block, unless it reads as zeros already.
    fn zero_part(&self, at: DiskOffset, len: u64, disk: Layers<'_>) -> Result<()> {
        let block = self.core.layout.block_of(at);
        let index = self.core.layout.payload_index(block);
        // Asked first: space that is named meanwhile shows in the entry. It may hold bytes of a write that failed.
        let is_reserved = self.reserved.has(block);
        let is_zero = match self.core.bat_entry(index)?.payload_state() {
            PayloadState::NotPresent => !self.core.has_parent(),
            PayloadState::FullyPresent | PayloadState::PartiallyPresent => false,
            PayloadState::Reserved => return self.core.resolve(at, len).map(drop),
            _ => true,
        };
        if is_zero && !is_reserved {
            return Ok(());
        }
        self.prepare_visible_change()?;
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
                self.write_sectors(ZEROS.0[..step as usize].into(), at, Some(disk))?
            };
            at = at + step;
        }
        Ok(())
    }

    /// Gives a block without space some, filled with zeros, of an image without a parent: it reads as before.
    pub(crate) fn allocate_block(&self, block: BlockIndex) -> Result<()> {
        let _change = self.change_lock.begin_hidden_change();
        self.prepare_hidden_change()?;
        {
            let _locked = self.blocks.lock_exclusive(block);
            let start = self.core.layout.block_start(block);
            let in_disk = self.core.layout.block_size().min(self.core.layout.size() - start.0);
            let index = self.core.layout.payload_index(block);
            let entry = self.core.bat_entry(index)?;
            match entry.payload_state() {
                PayloadState::FullyPresent => {
                    let at = self.core.place_of(entry, index, start, in_disk)?;
                    return self.take_space(at, self.core.layout.block_size());
                }
                PayloadState::PartiallyPresent | PayloadState::Reserved => {
                    return self.core.resolve(start, in_disk).map(drop);
                }
                _ => {}
            }
            let space = self.allocate(self.core.layout.block_size())?;
            self.space.publish_length(&self.core.file_len);
            let given = (|| {
                if space.contents != Contents::Zeros {
                    self.write_zeros(space.at, space.len)?;
                }
                self.take_space(space.at, space.len)?;
                let order = self.order_in(space.at, space.len, || Ok(true))?;
                self.set_block(block, BatEntry::new(6, space.at), order)
            })();
            given.inspect_err(|_| self.space.give_back(space))?;
        }
        self.limit_changes()
    }

    /// Has the host take space for what it stores nothing for: by its own means if it can, otherwise by writing the zeros
    /// that holes read as.
    fn take_space(&self, at: FileOffset, len: u64) -> Result<()> {
        let failed = |at: u64, error| {
            let message = format!("cannot take space for {len} bytes");
            Error::io("space.reserve", message, error).in_file(self.file.name()).at(at)
        };
        let range = at.get()..(at + len).get().min(self.file_len());
        let reserved = self.file.take_space(range.clone());
        // The space is durable with the next flush.
        self.wrote_payload();
        if reserved.map_err(|error| failed(at.get(), error))? {
            return Ok(());
        }
        let mut from = range.start;
        while from < range.end {
            let data = self.file.next_data(from).map_err(|error| failed(from, error))?;
            let data = data.unwrap_or(range.end..range.end);
            let hole = from..data.start.clamp(from, range.end);
            self.write_zeros(FileOffset::new(hole.start), hole.end - hole.start)?;
            from = data.end.max(from + 1);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_start_on_a_page_so_that_a_kill_tears_no_sector() {
        assert_eq!(ZEROS.0.as_ptr() as usize % 4096, 0);
    }
}
