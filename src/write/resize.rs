//! Another size for the virtual disk, \[MS-VHDX\] 2.6.2.2 and 2.5.
//!
//! The size changes in one entry of the log, together with the entries of the block allocation table behind the smaller
//! size, or with the place of that table where it has to be a longer one or too much of it changes: no entry ever
//! stands behind the end of the disk. Before, the last block is made ready for the larger disk; after it, the space
//! that the smaller one has no use for is given up.

use std::sync::Arc;

use super::Writer;
use super::metadata_edit::{ItemEdit, Pages};
use super::space::{Allocated, Contents, Freed};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BatEntry, BlockLayout, ENTRY_LEN, PayloadState};
use crate::format::metadata::{self, ItemFlags};
use crate::format::region::{self, RegionEntry, RegionTable};
use crate::image::{Core, ImagePolicy, Lock, LogPolicy};
use crate::tables::{PAGE, Page, new_page};
use crate::types::{BatIndex, BlockIndex, DiskOffset, FileOffset, MIB};

/// Entries of the table that one page holds.
const ENTRIES: u64 = PAGE / ENTRY_LEN;
/// Pages at the most that an edit of the size changes in the metadata.
const SIZE_PAGES: u64 = 4;

impl Core {
    /// Gives the virtual disk another size, at once and durably: a crash leaves a disk of the one size or of
    /// the other. What is new reads as zeros, also where the parent holds more. The image gets another
    /// identity, unless it has one that nobody else knows.
    ///
    /// Nobody else may use the image meanwhile, and nothing but [`again`](Self::again) after it: this
    /// one goes by the old size, takes no writes any more and has its session ended.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a size that the format does not have; those of a write and of a flush.
    pub(crate) fn resize(&self, size: u64) -> Result<()> {
        let writer = self.writer()?;
        self.check_size(size)?;
        let mut alone = writer.ops.write();
        if size != self.layout.size() {
            self.begin(writer)?;
            let block_size = self.block_size();
            let new = BlockLayout::new(block_size, self.geometry().logical_sector, size);
            if size > self.layout.size() {
                self.grow(writer, &new)?;
            } else {
                self.shrink(writer, &new)?;
            }
        }
        self.end_session_alone(writer)?;
        alone.close(true);
        Ok(())
    }

    /// Refuses a size that a [`resize`](Self::resize) would refuse.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a size that the format does not have.
    pub(crate) fn check_size(&self, size: u64) -> Result<()> {
        let sector = self.layout.sector_size() as u32;
        if size > 0 && metadata::is_disk_size(size, sector) {
            return Ok(());
        }
        let message = "invalid disk size";
        Err(Error::new(ErrorKind::InvalidInput, "resize.size", message)
            .in_file(self.name())
            .with_section("2.6.2.2")
            .with_found(size)
            .with_expected(format_args!("a multiple of {sector}, up to 64 TiB")))
    }

    /// The image opened anew, as after a [`resize`](Self::resize): in the same file, under the same lock. It
    /// goes on with the identity that it has. This one may be read as long as the other changes nothing that it
    /// looks at, and is done for otherwise.
    ///
    /// # Errors
    /// As those of an open.
    pub(crate) fn again(&self) -> Result<Self> {
        // The lock belongs to the storage, which stays open.
        let policy = ImagePolicy {
            lock: Lock::None,
            log: LogPolicy::Replay,
            budget: self.budget.clone(),
            writable: self.is_writable(),
            cancel: None,
            replay_later: false,
            children: None,
            any_locator: false,
        };
        self.end_session()?;
        let image = Self::from_storage(Arc::clone(self.bare_storage()), &policy)?;
        if image.is_writable() {
            image.set_next_identity(image.data_write_guid())?;
        }
        Ok(image)
    }

    fn grow(&self, writer: &Writer, new: &BlockLayout) -> Result<()> {
        let size = ItemEdit::disk_size(new.size());
        let entries = if self.has_parent() { new.entries_reserved() } else { new.entries_needed() };
        self.fill_last_block(writer)?;
        let first = self.layout.payload_index(BlockIndex(self.layout.blocks())).0;
        let indices = first..entries;
        if entries <= self.bat_entries() && !self.has_parent() && !self.keeps_blocks() {
            // Whatever stands there, it becomes nothing.
            self.set_entries(writer, indices, |index| self.grown_entry(writer, new, index))?;
            self.commit(writer)?;
            return self.edit_with(writer, &[size], Pages::new());
        }
        // Durable before the size: what is new does not share its entry of the log.
        self.commit(writer)?;
        if self.fits_entry(&indices, self.bat_entries()) {
            let pages = self.table_pages(indices, |index| self.grown_entry(writer, new, index))?;
            return self.edit_with(writer, &[size], pages);
        }
        self.edit_with_table(writer, size, new, first, |index| self.grown_entry(writer, new, index))
    }

    /// Whether so many entries of a table with room for `entries` can change in the log's entry that the size
    /// changes in.
    pub(crate) fn fits_entry(&self, indices: &std::ops::Range<u64>, entries: u64) -> bool {
        let pages = indices.end.div_ceil(ENTRIES) - indices.start / ENTRIES;
        indices.end <= entries && pages + SIZE_PAGES <= self.most_dirty as u64
    }

    /// Changes the size together with the place of the table, which is a new one: as the old from entry `first` on
    /// but for what `entry` says.
    fn edit_with_table(
        &self,
        writer: &Writer,
        size: ItemEdit,
        new: &BlockLayout,
        first: u64,
        entry: impl FnMut(BatIndex) -> Result<Option<BatEntry>>,
    ) -> Result<()> {
        let space = writer.allocate(table_len(new))?;
        writer.space.show_length(&self.file_len);
        let bat = RegionEntry { offset: space.at, length: space.len as u32, ..self.bat.clone() };
        self.write_table(writer, space, first, entry)?;
        // The commit of the edit flushes before it writes its entry.
        self.edit_with(writer, &[size], self.region_pages(&bat)?)
    }

    /// Has what the last block holds behind the end of the disk read as zeros, once it is part of the disk.
    fn fill_last_block(&self, writer: &Writer) -> Result<()> {
        let (end, block_size) = (DiskOffset(self.layout.size()), self.layout.block_size());
        let within = self.layout.within_block(end);
        if within == 0 {
            return Ok(());
        }
        let rest = block_size - within;
        let block = self.layout.block_of(end);
        let index = self.layout.payload_index(block);
        let entry = self.bat_entry(index)?;
        match entry.payload_state() {
            PayloadState::NotPresent if self.has_parent() => {
                let space = self.space_for_block(writer)?;
                let made = (|| {
                    if space.contents != Contents::Zeros {
                        self.write_zeros(writer, space.at + within, rest)?;
                    }
                    self.become_mixed(writer, block, space.at, end, rest)
                })();
                made.inspect_err(|_| writer.space.give_back(space))
            }
            PayloadState::FullyPresent | PayloadState::PartiallyPresent => {
                let start = self.layout.block_start(block);
                // What is wrong with the block is said before anything is written there.
                self.resolve(start, within)?;
                let place = self.place_of(entry, index, start, within)?;
                self.write_zeros(writer, place + within, rest)?;
                self.mark_rest(writer, entry, end, rest)
            }
            PayloadState::Reserved => {
                self.resolve(self.layout.block_start(block), within).map(drop)
            }
            // All of the block reads as zeros.
            _ => Ok(()),
        }
    }

    /// Marks the sectors behind the end as here, where that is told one by one.
    fn mark_rest(&self, writer: &Writer, entry: BatEntry, end: DiskOffset, len: u64) -> Result<()> {
        if entry.payload_state() == PayloadState::FullyPresent {
            return Ok(());
        }
        self.mark_sectors(writer, entry, end, len)
    }

    fn space_for_block(&self, writer: &Writer) -> Result<Allocated> {
        let space = writer.allocate(self.layout.block_size())?;
        writer.space.show_length(&self.file_len);
        Ok(space)
    }

    /// What an entry behind the last of the disk is to be in a larger one; `None` for one that stays.
    fn grown_entry(
        &self,
        writer: &Writer,
        new: &BlockLayout,
        index: BatIndex,
    ) -> Result<Option<BatEntry>> {
        let nothing = BatEntry::new(0, FileOffset::new(0));
        if new.is_bitmap_index(index) {
            let is_new = new.chunk_of_bitmap(index).0 >= self.layout.chunks();
            return Ok(is_new.then_some(nothing));
        }
        if index.0 >= new.entries_needed() {
            return Ok(Some(nothing));
        }
        if self.has_parent() {
            return Ok(Some(BatEntry::new(2, FileOffset::new(0))));
        }
        if !self.keeps_blocks() {
            return Ok(Some(nothing));
        }
        let space = self.space_for_block(writer)?;
        // Written, so that the host finds the room now.
        self.write_zeros(writer, space.at, space.len)
            .inspect_err(|_| writer.space.give_back(space))?;
        Ok(Some(BatEntry::new(6, space.at)))
    }

    /// Changes entries of the table, page by page.
    fn set_entries(
        &self,
        writer: &Writer,
        indices: std::ops::Range<u64>,
        mut entry: impl FnMut(BatIndex) -> Result<Option<BatEntry>>,
    ) -> Result<()> {
        let mut next = indices.start;
        while next < indices.end {
            // Pages are those of the file, and the table starts at one.
            let end = (next / ENTRIES + 1) * ENTRIES;
            let mut changes = Vec::new();
            for index in (next..end.min(indices.end)).map(BatIndex) {
                let Some(new) = entry(index)? else { continue };
                if self.bat_entry(index)? != new {
                    changes.push((index, new));
                }
            }
            if !changes.is_empty() {
                self.change_tables(writer, [self.bat_page(BatIndex(next))], |changed| {
                    for (index, new) in changes {
                        self.put_entry(changed, index, new);
                    }
                })?;
                self.limit_changes(writer)?;
            }
            next = end;
        }
        Ok(())
    }

    /// The pages of the table that change with these entries.
    fn table_pages(
        &self,
        indices: std::ops::Range<u64>,
        mut entry: impl FnMut(BatIndex) -> Result<Option<BatEntry>>,
    ) -> Result<Pages> {
        let mut pages = Pages::new();
        let mut next = indices.start;
        while next < indices.end {
            let end = (next / ENTRIES + 1) * ENTRIES;
            let (at, _) = self.bat_page(BatIndex(next));
            let old = self.table_page(FileOffset::new(at), |page| Box::new(*page))?;
            let mut page = old.clone();
            for index in next..end.min(indices.end) {
                if let Some(new) = entry(BatIndex(index))? {
                    put(&mut page, index, new);
                }
            }
            if page != old {
                pages.insert(at, page);
            }
            next = end;
        }
        Ok(pages)
    }

    /// Writes a new table into its space: the old one up to entry `first`, and from there on what `entry` says, or
    /// the old one too.
    fn write_table(
        &self,
        writer: &Writer,
        space: Allocated,
        first: u64,
        mut entry: impl FnMut(BatIndex) -> Result<Option<BatEntry>>,
    ) -> Result<()> {
        let mut piece = vec![0; MIB as usize];
        for piece_at in (0..space.len).step_by(MIB as usize) {
            for (i, bytes) in piece.chunks_exact_mut(PAGE as usize).enumerate() {
                let page_at = piece_at + i as u64 * PAGE;
                let mut page = match page_at < self.bat.length.into() {
                    true => self.table_page(self.bat.offset + page_at, |page| Box::new(*page))?,
                    false => new_page(),
                };
                let first_here = page_at / ENTRY_LEN;
                for index in first.max(first_here)..first_here + ENTRIES {
                    if let Some(new) = entry(BatIndex(index))? {
                        put(&mut page, index, new);
                    }
                }
                bytes.copy_from_slice(&page[..]);
            }
            if space.contents != Contents::Zeros || piece.iter().any(|byte| *byte != 0) {
                writer.write_bytes(&piece, space.at.get() + piece_at)?;
            }
        }
        Ok(())
    }

    /// The pages of both region tables that change when the block allocation table lies elsewhere.
    fn region_pages(&self, bat: &RegionEntry) -> Result<Pages> {
        let [first, second] = &self.region_tables;
        let table = first.as_ref().or(second.as_ref()).map_err(Error::same_again)?;
        let mut table = RegionTable { entries: table.entries.clone() };
        for entry in table.entries.iter_mut().filter(|entry| entry.guid == region::BAT) {
            *entry = bat.clone();
        }
        let bytes = table.to_bytes();
        let mut pages = Pages::new();
        for start in RegionTable::OFFSETS {
            for (i, new) in bytes.chunks_exact(PAGE as usize).enumerate() {
                let at = start + i as u64 * PAGE;
                let mut page = self.page_in_file(FileOffset::new(at))?;
                if page[..] != *new {
                    page.copy_from_slice(new);
                    pages.insert(at, page);
                }
            }
        }
        Ok(pages)
    }

    /// The size changes together with the entries behind it; after it, what those held is cleared away.
    fn shrink(&self, writer: &Writer, new: &BlockLayout) -> Result<()> {
        let size = ItemEdit::disk_size(new.size());
        let first = self.layout.payload_index(BlockIndex(new.blocks())).0;
        let last = match self.has_parent() {
            true => self.layout.entries_reserved().min(self.bat_entries()),
            false => self.layout.entries_needed(),
        };
        let freed = self.blocks_behind(first..last)?;
        let rest = self.rest_of_last_block(new)?;
        let nothing = BatEntry::new(0, FileOffset::new(0));
        let cleared = |index| {
            // The space of the bitmap block is left alone: an entry of the log may still write there.
            let is_kept = self.layout.is_bitmap_index(index)
                && self.layout.chunk_of_bitmap(index).0 < new.chunks();
            Ok((!is_kept).then_some(nothing))
        };
        self.commit(writer)?;
        if self.fits_entry(&(first..last), self.bat_entries()) {
            let pages = self.table_pages(first..last, cleared)?;
            self.edit_with(writer, &[size], pages)?;
        } else {
            self.edit_with_table(writer, size, new, first, cleared)?;
        }
        if let Some((place, len)) = rest {
            self.write_zeros(writer, place, len)?;
        }
        freed.into_iter().for_each(|freed| writer.space.free_later(freed));
        Ok(())
    }

    /// What payload blocks hold whose entries are these.
    fn blocks_behind(&self, indices: std::ops::Range<u64>) -> Result<Vec<Freed>> {
        let block_size = self.layout.block_size();
        let mut freed = Vec::new();
        for index in indices.map(BatIndex).filter(|index| !self.layout.is_bitmap_index(*index)) {
            let entry = self.bat_entry(index)?;
            let state = entry.payload_state();
            let holds =
                matches!(state, PayloadState::FullyPresent | PayloadState::PartiallyPresent);
            // A damaged place is no space to be given away.
            let start = DiskOffset(self.layout.block_of_payload(index).0 * block_size);
            if holds && self.place_of(entry, index, start, block_size).is_ok() {
                freed.push(Freed { at: entry.offset(), len: block_size });
            }
        }
        Ok(freed)
    }

    /// Where the last block of a smaller disk goes on behind its end, and for how long.
    fn rest_of_last_block(&self, new: &BlockLayout) -> Result<Option<(FileOffset, u64)>> {
        let end = DiskOffset(new.size());
        let within = self.layout.within_block(end);
        if within == 0 {
            return Ok(None);
        }
        let block = self.layout.block_of(end);
        let index = self.layout.payload_index(block);
        let entry = self.bat_entry(index)?;
        let start = self.layout.block_start(block);
        let in_disk = self.layout.block_size().min(self.layout.size() - start.0);
        let state = entry.payload_state();
        if !matches!(state, PayloadState::FullyPresent | PayloadState::PartiallyPresent) {
            return Ok(None);
        }
        let place = self.place_of(entry, index, start, in_disk)?;
        Ok(Some((place + within, in_disk - within)))
    }
}

/// Bytes of a table of its own for such a disk.
pub(crate) fn table_len(new: &BlockLayout) -> u64 {
    (new.entries_reserved() * ENTRY_LEN).next_multiple_of(MIB)
}

/// Puts an entry into its page.
fn put(page: &mut Page, index: u64, entry: BatEntry) {
    let within = (index % ENTRIES * ENTRY_LEN) as usize;
    page[within..within + ENTRY_LEN as usize].copy_from_slice(&entry.to_bytes());
}

impl ItemEdit {
    fn disk_size(size: u64) -> Self {
        Self::Set {
            item: metadata::VIRTUAL_DISK_SIZE,
            flags: ItemFlags::VIRTUAL_DISK | ItemFlags::REQUIRED,
            bytes: size.to_le_bytes().to_vec(),
        }
    }
}
