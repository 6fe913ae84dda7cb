//! Resizes the virtual disk, \[MS-VHDX\] 2.6.2.2 and 2.5.
//!
//! The size changes in one log entry, together with the entries of the block allocation table
//! beyond the smaller size, or with the place of the table if it must be longer or too much of it
//! changes: no valid entry ever lies beyond the end of the disk. Growing prepares the last block
//! first; shrinking releases the space beyond the new end afterwards.
//!
//! A compaction moves the table in the same way.

use std::cell::RefCell;
use std::sync::Arc;

use uuid::Uuid;

use super::change_lock::frozen;
use super::compact::Before;
use super::content::has_data;
use super::metadata_edit::{ItemEdit, Pages};
use super::open::WritePolicy;
use super::space::{Allocated, Contents, Freed, Released};
use super::writer::{Writer, most_dirty};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BatEntry, BlockLayout, ENTRY_LEN, PayloadState};
use crate::format::metadata::{self, ItemFlags};
use crate::format::region::{self, RegionEntry, RegionTable};
use crate::image::{Core, ImagePolicy, Lock, LogPolicy, Role, TablePlace, is_zero};
use crate::tables::{Order, PAGE, Page, new_page};
use crate::types::{BatIndex, BlockIndex, DiskOffset, FileOffset, MIB};

/// Table entries per page.
const ENTRIES: u64 = PAGE / ENTRY_LEN;
/// Limit of metadata pages that an edit of the size changes.
const SIZE_PAGES: u64 = 4;

/// Blocks of zeros for a larger disk, which no table names yet.
#[derive(Debug, Default)]
#[must_use = "their space is given back, or becomes part of the disk"]
pub(crate) struct Zeroed(Vec<Allocated>);

impl Writer {
    /// Resizes the virtual disk to `size` bytes, atomically and durably: a crash leaves a disk of
    /// the old or the new size. New space reads as zeros, also where the parent has more data. The
    /// image gets another identity, unless it has one that no child knows.
    ///
    /// The image must not be in use otherwise, and only [`reopen`](Self::reopen) may follow: this
    /// writer still has the old size, is frozen and has ended its session.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a size that the format does not allow; those of a write and
    /// of a flush.
    pub(crate) fn resize(&self, size: u64) -> Result<()> {
        check_size(&self.core, size)?;
        let mut state = self.change_alone()?;
        self.resize_alone(size, Zeroed::default())?;
        self.set_frozen(&mut state, true);
        state.record(&self.difference(size));
        Ok(())
    }

    /// Resizes an image in use. Changes in progress end first; then `check` may refuse the new size,
    /// and `switch` puts the writer of the new size in the place of this one before later changes
    /// go on. `zeroed` is what [`zero_growth`](Self::zero_growth) has returned for this size.
    ///
    /// # Errors
    /// Those of [`resize`](Self::resize) and of `check`; [`ErrorKind::InUse`] if planned writes have
    /// not ended. If the image is not poisoned then, it is unchanged.
    pub(crate) fn resize_in_use<R>(
        &self,
        size: u64,
        zeroed: Zeroed,
        check: impl FnOnce() -> Result<()>,
        switch: impl FnOnce(Self) -> R,
    ) -> Result<R> {
        let refused = |zeroed, error| {
            self.give_back_zeroed(zeroed);
            Err(error)
        };
        let mut state = match check_size(&self.core, size).and_then(|()| self.change_alone()) {
            Ok(state) => state,
            Err(error) => return refused(zeroed, error),
        };
        let open = match state.is_closed {
            true => Err(frozen().in_file(self.core.name())),
            false => check(),
        };
        if let Err(error) = open {
            return refused(zeroed, error);
        }
        self.resize_alone(size, zeroed)?;
        let next = Some(self.core.data_write_guid());
        let writer = self.reopen_alone(next).map_err(|error| self.poisoned_by(error))?;
        self.set_frozen(&mut state, true);
        let done = switch(writer);
        // Whoever makes a point from now on sees the new size.
        state.record(&self.difference(size));
        Ok(done)
    }

    /// Moves the block allocation table of an image in use to unused space, if that lets the file become shorter: `switch`
    /// puts the writer of the image with the moved table in the place of this one. Returns what that returns, or `None`
    /// if the table stays where it is. What the disk reads as does not change, so the image keeps its identity.
    ///
    /// # Errors
    /// Those of `before` and of a flush; [`ErrorKind::InUse`] while planned writes are open. If the image is not poisoned
    /// then, its table is where it was.
    pub(crate) fn move_table<R>(
        &self,
        before: Before<'_>,
        switch: impl FnOnce(Self) -> R,
    ) -> Result<Option<R>> {
        let (packing, _) = self.take_stock(before)?;
        let place = packing.target_with_table().table;
        let moved = place.map_or(Ok(None), |place| self.move_table_to(place, switch));
        if !matches!(moved, Ok(Some(_))) {
            self.give_holes_back(&packing);
        }
        moved
    }

    fn move_table_to<R>(
        &self,
        TablePlace { at, len }: TablePlace,
        switch: impl FnOnce(Self) -> R,
    ) -> Result<Option<R>> {
        let mut state = self.change_alone()?;
        if state.is_closed {
            return Err(frozen().in_file(self.core.name()));
        }
        // Another chain that was given the tip looks for the table in its old place.
        if self.has_guests() {
            return Ok(None);
        }
        self.prepare_hidden_change()?;
        // Other changes do not share the log entry of the edit.
        self.commit()?;
        if at != self.core.bat.offset {
            self.space.spoil(at);
            let space = Allocated { at, len, contents: Contents::Foreign };
            self.write_table(space, u64::MAX, |_| Ok(None))?;
        }
        self.put_table(&[], at, len)?;
        self.end_session_alone().map_err(|error| self.poisoned_by(error))?;
        // Children may know the present one.
        let next = self.session().next_identity;
        let writer = self.reopen_alone(next).map_err(|error| self.poisoned_by(error))?;
        self.set_frozen(&mut state, true);
        Ok(Some(switch(writer)))
    }

    /// Allocates the blocks by which a disk grows that keeps all of its blocks, and fills them with
    /// zeros, while others use the image. No table names them yet. `on` is told the bytes done.
    ///
    /// # Errors
    /// Those of a write, and of `on`. All space is given back then.
    pub(crate) fn zero_growth(
        &self,
        size: u64,
        on: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Zeroed> {
        let mut zeroed = Zeroed::default();
        let count = growth_in_blocks(&self.core, size);
        if count > 0 {
            let _change = self.change_lock.begin_hidden_change();
            self.prepare_hidden_change()?;
        }
        for done in 0..count {
            let next = on(done * self.core.layout.block_size()).and_then(|()| {
                let _change = self.change_lock.begin_hidden_change();
                self.check()?;
                self.new_zero_block()
            });
            match next {
                Ok(space) => zeroed.0.push(space),
                Err(error) => {
                    self.give_back_zeroed(zeroed);
                    return Err(error);
                }
            }
        }
        Ok(zeroed)
    }

    /// Gives back space that no table came to name.
    pub(crate) fn give_back_zeroed(&self, zeroed: Zeroed) {
        zeroed.0.into_iter().for_each(|space| self.space.give_back(space));
    }

    /// Reopens the image, as after a [`resize`](Self::resize): the same file under the same lock.
    /// It keeps its identity. The old image may be read as long as the new one does not change the
    /// places that it knows, and must not be used otherwise.
    ///
    /// # Errors
    /// Those of an open.
    pub(crate) fn reopen(&self) -> Result<Self> {
        self.end_session()?;
        self.reopen_alone(Some(self.core.data_write_guid()))
    }

    /// Takes over the space that this writer's image, as `old` had it open, does not need any more. It goes back to the
    /// host, and is used again, once nobody reads the image as it was: whoever does has a [pin](Self::pins) of this writer
    /// by now.
    pub(crate) fn take_over(&self, old: &Self) {
        let (freed, lost) = old.space.leave();
        lost.into_iter().for_each(|at| self.space.lose(at));
        let generation = self.pins().end_generation();
        let released = std::mem::take(&mut *old.released());
        let released = released.into_iter().map(|released| Released { generation, ..released });
        let freed = Released { generation, freed, is_reused: true };
        self.released().extend(released.chain([freed]));
    }

    /// The same. The next visible change gives the image this identity, or a new one.
    fn reopen_alone(&self, next_identity: Option<Uuid>) -> Result<Self> {
        // The lock belongs to the storage, which stays open.
        let policy = ImagePolicy {
            lock: Lock::None,
            log: LogPolicy::Replay,
            budget: self.core.budget.clone(),
            any_locator: false,
            one_flush: self.one_flush,
        };
        let file = Arc::clone(&self.file);
        let again = Self::open(file, &WritePolicy::of(policy), Vec::new())?;
        next_identity.into_iter().for_each(|next| again.set_next_identity(next));
        Ok(again)
    }

    /// The bytes that a disk of `size` bytes has more or less.
    fn difference(&self, size: u64) -> std::ops::Range<u64> {
        let old = self.core.layout.size();
        old.min(size)..old.max(size)
    }

    /// Resizes the disk and ends the session. The caller keeps all changes out.
    fn resize_alone(&self, size: u64, zeroed: Zeroed) -> Result<()> {
        let old = self.core.layout.size();
        let new =
            BlockLayout::new(self.core.block_size(), self.core.geometry().logical_sector, size);
        let zeroed = RefCell::new(zeroed);
        let resized = (|| match size.cmp(&old) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => {
                self.prepare_visible_change()?;
                self.grow(&new, &zeroed)
            }
            std::cmp::Ordering::Less => {
                self.prepare_visible_change()?;
                self.shrink(&new)
            }
        })();
        self.give_back_zeroed(zeroed.into_inner());
        resized?;
        // The file has the new size, which this writer does not know.
        self.end_session_alone().map_err(|error| match size == old {
            true => error,
            false => self.poisoned_by(error),
        })
    }

    fn grow(&self, new: &BlockLayout, zeroed: &RefCell<Zeroed>) -> Result<()> {
        let size = ItemEdit::disk_size(new.size());
        let entries =
            if self.core.has_parent() { new.entries_reserved() } else { new.entries_needed() };
        self.fill_last_block()?;
        let first = self.core.layout.payload_index(BlockIndex(self.core.layout.blocks())).0;
        let indices = first..entries;
        if entries <= self.core.bat_entries()
            && !self.core.has_parent()
            && !self.core.keeps_blocks()
        {
            // Whatever these entries contain, they are cleared.
            self.set_entries(indices, |index| self.grown_entry(new, index, zeroed))?;
            self.commit()?;
            return self.edit_with(&[size], Pages::new());
        }
        // Durable before the size: other changes do not share its log entry.
        self.commit()?;
        if fits_entry(&self.core, &indices, self.core.bat_entries()) {
            let pages = self.table_pages(indices, |index| self.grown_entry(new, index, zeroed))?;
            return self.edit_with(&[size], pages);
        }
        self.edit_with_table(size, new, first, |index| self.grown_entry(new, index, zeroed))
    }

    /// Changes the size together with the place of the table. The new table copies the old one,
    /// except for the entries from `first` on that `entry` replaces.
    fn edit_with_table(
        &self,
        size: ItemEdit,
        new: &BlockLayout,
        first: u64,
        entry: impl FnMut(BatIndex) -> Result<Option<BatEntry>>,
    ) -> Result<()> {
        let space = self.allocate(new.table_len())?;
        self.space.publish_length(&self.core.file_len);
        self.write_table(space, first, entry)?;
        self.put_table(&[size], space.at, space.len)
    }

    /// Makes this the place of the block allocation table, together with edits of the metadata. The old place is free once
    /// the log is empty, as far as the new one is not a part of it.
    fn put_table(&self, edits: &[ItemEdit], at: FileOffset, len: u64) -> Result<()> {
        let old = &self.core.bat;
        let bat = RegionEntry { offset: at, length: len as u32, ..old.clone() };
        // The commit of the edit flushes the table before it writes its entry.
        self.edit_with(edits, self.region_pages(&bat)?)?;
        let kept = if at == old.offset { len } else { 0 };
        self.space.retire(Freed { at: old.offset + kept, len: u64::from(old.length) - kept });
        Ok(())
    }

    /// Makes the rest of the last block, behind the end of the disk, read as zeros before it
    /// becomes part of the disk.
    fn fill_last_block(&self) -> Result<()> {
        let (end, block_size) =
            (DiskOffset(self.core.layout.size()), self.core.layout.block_size());
        let within = self.core.layout.within_block(end);
        if within == 0 {
            return Ok(());
        }
        let rest = block_size - within;
        let block = self.core.layout.block_of(end);
        let index = self.core.layout.payload_index(block);
        let entry = self.core.bat_entry(index)?;
        match entry.payload_state() {
            PayloadState::NotPresent if self.core.has_parent() => {
                let space = self.space_for_block()?;
                let made = (|| {
                    if space.contents != Contents::Zeros {
                        self.write_zeros(space.at + within, rest)?;
                    }
                    self.make_partially_present(block, space.at, end, rest, Order::PayloadFirst)
                })();
                made.inspect_err(|_| self.space.give_back(space))
            }
            PayloadState::FullyPresent | PayloadState::PartiallyPresent => {
                let start = self.core.layout.block_start(block);
                // Faults of the block are reported before anything is written there.
                self.core.resolve(start, within)?;
                let place = self.core.place_of(entry, index, start, within)?;
                self.write_zeros(place + within, rest)?;
                self.mark_rest(entry, end, rest)
            }
            PayloadState::Reserved => {
                self.core.resolve(self.core.layout.block_start(block), within).map(drop)
            }
            // The whole block reads as zeros.
            _ => Ok(()),
        }
    }

    /// Marks the sectors behind the end as present, if the block is partially present.
    fn mark_rest(&self, entry: BatEntry, end: DiskOffset, len: u64) -> Result<()> {
        if entry.payload_state() == PayloadState::FullyPresent {
            return Ok(());
        }
        self.mark_sectors(entry, end, len, Order::PayloadFirst)
    }

    fn space_for_block(&self) -> Result<Allocated> {
        let space = self.allocate(self.core.layout.block_size())?;
        self.space.publish_length(&self.core.file_len);
        Ok(space)
    }

    /// The entry behind the last of the disk that a larger disk needs; `None` to keep it.
    fn grown_entry(
        &self,
        new: &BlockLayout,
        index: BatIndex,
        zeroed: &RefCell<Zeroed>,
    ) -> Result<Option<BatEntry>> {
        let nothing = BatEntry::new(0, FileOffset::new(0));
        if new.is_bitmap_index(index) {
            let is_new = new.chunk_of_bitmap(index).0 >= self.core.layout.chunks();
            return Ok(is_new.then_some(nothing));
        }
        if index.0 >= new.entries_needed() {
            return Ok(Some(nothing));
        }
        if self.core.has_parent() {
            return Ok(Some(BatEntry::new(2, FileOffset::new(0))));
        }
        if !self.core.keeps_blocks() {
            return Ok(Some(nothing));
        }
        let ready = zeroed.borrow_mut().0.pop();
        let space = ready.map_or_else(|| self.new_zero_block(), Ok)?;
        Ok(Some(BatEntry::new(6, space.at)))
    }

    fn new_zero_block(&self) -> Result<Allocated> {
        let space = self.space_for_block()?;
        // Written rather than a hole, so that the host allocates the space now.
        self.write_zeros(space.at, space.len).inspect_err(|_| self.space.give_back(space))?;
        Ok(space)
    }

    /// Changes table entries, page by page.
    fn set_entries(
        &self,
        indices: std::ops::Range<u64>,
        mut entry: impl FnMut(BatIndex) -> Result<Option<BatEntry>>,
    ) -> Result<()> {
        let mut next = indices.start;
        while next < indices.end {
            // Pages are aligned in the file, and so is the table.
            let end = (next / ENTRIES + 1) * ENTRIES;
            let mut changes = Vec::new();
            for index in (next..end.min(indices.end)).map(BatIndex) {
                let Some(new) = entry(index)? else { continue };
                if self.core.bat_entry(index)? != new {
                    changes.push((index, new));
                }
            }
            if !changes.is_empty() {
                self.change_tables(
                    [self.bat_page(BatIndex(next))],
                    Order::PayloadFirst,
                    |changed| {
                        for (index, new) in changes {
                            self.put_entry(changed, index, new);
                        }
                    },
                )?;
                self.limit_changes()?;
            }
            next = end;
        }
        Ok(())
    }

    /// The table pages that change with these entries.
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
            let old = self.core.table_page(FileOffset::new(at), |page| page.to_page())?;
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

    /// Writes a new table into its space: a copy of the old one, except for the entries from
    /// `first` on that `entry` replaces.
    fn write_table(
        &self,
        space: Allocated,
        first: u64,
        mut entry: impl FnMut(BatIndex) -> Result<Option<BatEntry>>,
    ) -> Result<()> {
        let mut piece = vec![0; MIB as usize];
        for piece_at in (0..space.len).step_by(MIB as usize) {
            for (i, bytes) in piece.chunks_exact_mut(PAGE as usize).enumerate() {
                let page_at = piece_at + i as u64 * PAGE;
                let mut page = match page_at < self.core.bat.length.into() {
                    true => self
                        .core
                        .table_page(self.core.bat.offset + page_at, |page| page.to_page())?,
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
            let at = space.at + piece_at;
            match is_zero(&piece) {
                true if space.contents == Contents::Zeros => {}
                true => self.clear_piece(at, &piece)?,
                false => self.write_bytes(&piece, at.get())?,
            }
        }
        Ok(())
    }

    /// Makes a piece of a table zeros, as a hole if the host can do that.
    fn clear_piece(&self, at: FileOffset, zeros: &[u8]) -> Result<()> {
        let range = at.get()..at.get() + zeros.len() as u64;
        match self.file.punch(range) {
            Ok(true) => {
                self.wrote_payload();
                Ok(())
            }
            _ => self.write_bytes(zeros, at.get()),
        }
    }

    /// The pages of both region tables that change with the place of the block allocation table.
    fn region_pages(&self, bat: &RegionEntry) -> Result<Pages> {
        let [first, second] = &self.core.region_tables;
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
                let mut page = self.core.page_in_file(FileOffset::new(at))?;
                if page[..] != *new {
                    page.copy_from_slice(new);
                    pages.insert(at, page);
                }
            }
        }
        Ok(pages)
    }

    /// Changes the size together with the entries beyond it, then releases their space.
    fn shrink(&self, new: &BlockLayout) -> Result<()> {
        let size = ItemEdit::disk_size(new.size());
        let first = self.core.layout.payload_index(BlockIndex(new.blocks())).0;
        let last = match self.core.has_parent() {
            true => self.core.layout.entries_reserved().min(self.core.bat_entries()),
            false => self.core.layout.entries_needed(),
        };
        let freed = self.blocks_behind(first..last, new)?;
        let rest = self.rest_of_last_block(new)?;
        let nothing = BatEntry::new(0, FileOffset::new(0));
        let cleared = |index| {
            let is_kept = self.core.layout.is_bitmap_index(index)
                && self.core.layout.chunk_of_bitmap(index).0 < new.chunks();
            Ok((!is_kept).then_some(nothing))
        };
        self.commit()?;
        if fits_entry(&self.core, &(first..last), self.core.bat_entries()) {
            let pages = self.table_pages(first..last, cleared)?;
            self.edit_with(&[size], pages)?;
        } else {
            self.edit_with_table(size, new, first, cleared)?;
        }
        if let Some((place, len)) = rest {
            // The disk has the new size already, and a larger one has these bytes zeroed again.
            drop(self.write_zeros(place, len));
        }
        // A log entry may still write to sector bitmaps.
        freed.into_iter().for_each(|freed| self.space.retire(freed));
        Ok(())
    }

    /// The space of the blocks behind the end of the smaller disk, whose entries are among these.
    fn blocks_behind(
        &self,
        indices: std::ops::Range<u64>,
        new: &BlockLayout,
    ) -> Result<Vec<Freed>> {
        let mut freed = Vec::new();
        self.core.each_entry(|index, entry| {
            let Some(claim) =
                self.core.claim_of(index, entry).filter(|_| indices.contains(&index.0))
            else {
                return Ok(());
            };
            let is_behind = match claim.role {
                // A damaged place must not be reused.
                Role::Payload(block) => {
                    has_data(&claim)
                        && self
                            .core
                            .place_of(
                                entry,
                                index,
                                self.core.layout.block_start(block),
                                claim.needed,
                            )
                            .is_ok()
                }
                Role::Bitmap(chunk) => chunk.0 >= new.chunks(),
                Role::Slack => false,
            };
            if is_behind {
                freed.push(Freed { at: entry.offset(), len: claim.len });
            }
            Ok(())
        })?;
        Ok(freed)
    }

    /// The part of the last block beyond the end of the smaller disk: its place in the file and its
    /// length.
    fn rest_of_last_block(&self, new: &BlockLayout) -> Result<Option<(FileOffset, u64)>> {
        let end = DiskOffset(new.size());
        let within = self.core.layout.within_block(end);
        if within == 0 {
            return Ok(None);
        }
        let block = self.core.layout.block_of(end);
        let index = self.core.layout.payload_index(block);
        let entry = self.core.bat_entry(index)?;
        let start = self.core.layout.block_start(block);
        let in_disk = self.core.layout.block_size().min(self.core.layout.size() - start.0);
        let state = entry.payload_state();
        if !matches!(state, PayloadState::FullyPresent | PayloadState::PartiallyPresent) {
            return Ok(None);
        }
        let place = self.core.place_of(entry, index, start, in_disk)?;
        Ok(Some((place + within, in_disk - within)))
    }
}

/// Refuses a size that [`resize`](Writer::resize) would refuse.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a size that the format does not allow.
pub(crate) fn check_size(image: &Core, size: u64) -> Result<()> {
    let sector = image.layout.sector_size();
    if size > 0 && size <= metadata::MAX_VIRTUAL_SIZE && size.is_multiple_of(sector) {
        return Ok(());
    }
    let message = "invalid disk size";
    Err(Error::new(ErrorKind::InvalidInput, "resize.size", message)
        .in_file(image.name())
        .with_section("2.6.2.2")
        .with_found(size)
        .with_expected(format_args!("a multiple of {sector}, up to 64 TiB")))
}

/// How many blocks with space of their own a disk of `size` bytes has more.
pub(crate) fn growth_in_blocks(image: &Core, size: u64) -> u64 {
    let sector = image.geometry().logical_sector;
    let new = BlockLayout::new(image.block_size(), sector, size);
    match image.keeps_blocks() && !image.has_parent() {
        true => new.blocks().saturating_sub(image.layout.blocks()),
        false => 0,
    }
}

/// Whether these entries, of a table with room for `entries`, can change in the log entry that
/// changes the size.
pub(crate) fn fits_entry(image: &Core, indices: &std::ops::Range<u64>, entries: u64) -> bool {
    let pages = indices.end.div_ceil(ENTRIES) - indices.start / ENTRIES;
    indices.end <= entries && pages + SIZE_PAGES <= most_dirty(image) as u64
}

/// Writes an entry into its page.
fn put(page: &mut Page, index: u64, entry: BatEntry) {
    let within = (index % ENTRIES * ENTRY_LEN) as usize;
    page[within..within + ENTRY_LEN as usize].copy_from_slice(&entry.to_bytes());
}

impl ItemEdit {
    fn disk_size(size: u64) -> Self {
        Self::Set {
            item: metadata::VIRTUAL_DISK_SIZE,
            flags: ItemFlags::VIRTUAL_DISK | ItemFlags::REQUIRED,
            bytes: metadata::virtual_size_to_bytes(size).to_vec(),
        }
    }
}
