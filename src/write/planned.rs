//! The parts of a planned write: how each block gets its bytes, and what the plan holds until it ends.

use std::ops::Range;
use std::sync::Arc;

use super::bits::bitmap_pages;
use super::held_pages::HeldPages;
use super::open_plans::{End, PlanId};
use super::reserved::Share;
use super::wait::{Cause, Wanted};
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BatEntry, PayloadState};
use crate::image::Ticket;
use crate::read::{HasLayers, Layers};
use crate::storage::Storage;
use crate::tables::{Carried, FromMemory, Missing, Stop};
use crate::types::{DiskOffset, FileOffset};

/// The tip of a chain: its writer, and the layers to read from.
pub(crate) struct Tip {
    /// Dropped before the writer, as in a stack.
    pub(crate) of: Arc<dyn HasLayers>,
    pub(crate) writer: Arc<Writer>,
}

/// A planned write, listed as open until it ends. Dropped before that, it ends as lost if its steps were handed out.
pub(super) struct Parts {
    tip: Tip,
    id: PlanId,
    ticket: Option<Ticket>,
    pages: HeldPages<Arc<Writer>>,
    parts: Vec<Part>,
    moves: Vec<Move>,
    /// How many blocks it reserved space for, and whether that of any of them must read as zeros.
    reserved: u64,
    needs_zeros: bool,
    is_in_flight: bool,
}

/// Bytes of the disk that go to one place of the file.
#[derive(Clone, Debug)]
pub(super) struct Move {
    pub(super) range: Range<u64>,
    pub(super) at: FileOffset,
}

/// A change of the tables that follows the bytes.
struct Part {
    at: DiskOffset,
    len: u64,
    bitmap: Option<FileOffset>,
    /// Whether these bytes are known to have read as zeros.
    read_zeros: bool,
    how: How,
}

#[derive(Clone, Copy)]
enum How {
    /// Sectors of a partially present block are marked.
    Mark(BatEntry),
    /// A block gets space.
    Name(Share),
}

/// Why a write cannot be planned now.
pub(super) enum Halt {
    Failed(Error),
    Missing(Missing),
    Wait(Cause),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Failed(error) => Self::Failed(error),
            Stop::Missing(missing) => Self::Missing(missing),
        }
    }
}

impl Parts {
    /// Plans a write of whole sectors within the disk. Waits for nothing, and reads no file.
    pub(super) fn plan(tip: Tip, range: Range<u64>, carried: &Carried) -> Result<Self, Halt> {
        let writer = Arc::clone(&tip.writer);
        writer.check()?;
        let named = |error: Error| error.in_file(writer.core.name());
        // Until the plan is listed: an exclusive holder of the lock sees it then.
        let Some(_admitted) = writer.change_lock.try_admit().map_err(named)? else {
            return Err(Halt::Wait(Cause::Changes));
        };
        if !writer.has_visible_session() {
            return Err(Halt::Wait(Cause::Session));
        }
        if writer.feed.changed.read().dirty_pages() >= writer.most_dirty {
            return Err(Halt::Wait(Cause::Flush));
        }
        let mut parts = Self {
            id: writer.plans.add(range.clone()),
            // Before any lookup.
            ticket: Some(writer.pins().enter()),
            pages: HeldPages::new(Arc::clone(&writer)),
            tip,
            parts: Vec::new(),
            moves: Vec::new(),
            reserved: 0,
            needs_zeros: false,
            is_in_flight: false,
        };
        let mut at = DiskOffset(range.start);
        while at.0 < range.end {
            at = at + parts.add(carried, at, range.end)?;
        }
        Ok(parts)
    }

    pub(super) fn begin(&mut self) {
        self.is_in_flight = true;
    }

    pub(super) fn moves(&self) -> &[Move] {
        &self.moves
    }

    pub(super) fn writer(&self) -> &Writer {
        self.pages.writer()
    }

    /// Has the tables name what was written, all of which has arrived.
    pub(super) fn commit(mut self) -> Result<()> {
        let writer = self.writer();
        let done = writer
            .check()
            .and_then(|()| self.parts.iter().try_for_each(|part| part.commit(writer)));
        writer.wrote_payload();
        self.end(End::Ended, done.is_ok());
        done
    }

    /// Ends the plan. None of its I/O is under way, and some of it failed.
    pub(super) fn failed(mut self) {
        self.writer().wrote_payload();
        self.end(End::Ended, false);
    }

    /// Plans the bytes up to the end of a block, and returns how many.
    fn add(&mut self, carried: &Carried, at: DiskOffset, end: u64) -> Result<u64, Halt> {
        let writer = Arc::clone(self.pages.writer());
        let layout = &writer.core.layout;
        let block = layout.block_of(at);
        let len = (end - at.0).min(layout.block_size() - layout.within_block(at));
        {
            // No other write is between the read and the write of a sector: the next one sees this plan.
            let Some(_shared) = writer.blocks.try_lock_shared(block) else {
                return Err(Halt::Wait(Cause::Block(block, Wanted::Shared)));
            };
            if self.add_in_place(carried, at, len)? {
                return Ok(len);
            }
        }
        let Some(_locked) = writer.blocks.try_lock_exclusive(block) else {
            return Err(Halt::Wait(Cause::Block(block, Wanted::Exclusive)));
        };
        // Joined first: the space may be named meanwhile, and without a share the entry stays.
        let joined = writer.reserved.join(block);
        let in_place = self.add_in_place(carried, at, len);
        match joined {
            joined if !matches!(in_place, Ok(false)) => {
                let space = joined.and_then(|share| writer.reserved.leave(share, End::Unused));
                writer.give_back(space);
                in_place?;
            }
            Some(share) => self.add_share(carried, share, at, len)?,
            None => {
                let index = layout.payload_index(block);
                let entry = writer.core.bat_entry_with(FromMemory(carried), index)?;
                let shows_parent =
                    writer.core.has_parent() && entry.payload_state() == PayloadState::NotPresent;
                // Where no bits tell which sectors count, the others must read as zeros.
                self.needs_zeros |= !shows_parent;
                let space = writer.space.allocate_at_once(layout.block_size(), !shows_parent);
                let Some(space) = space else {
                    // With what this plan gives back. Whether later blocks need space is not known yet.
                    let blocks = self.reserved + 1;
                    let must_be_zeros = self.needs_zeros;
                    return Err(Halt::Wait(Cause::Room { blocks, must_be_zeros }));
                };
                self.reserved += 1;
                writer.space.publish_length(&writer.core.file_len);
                let share = writer.reserved.reserve(block, space, shows_parent);
                self.add_share(carried, share, at, len)?;
            }
        }
        Ok(len)
    }

    /// Plans a write into a block's space; `false` if it has none.
    fn add_in_place(&mut self, carried: &Carried, at: DiskOffset, len: u64) -> Result<bool, Halt> {
        let writer = Arc::clone(self.pages.writer());
        let (core, source) = (&writer.core, FromMemory(carried));
        let block = core.layout.block_of(at);
        let index = core.layout.payload_index(block);
        let entry = core.bat_entry_with(source, index)?;
        match entry.payload_state() {
            PayloadState::FullyPresent => {}
            PayloadState::PartiallyPresent if core.has_parent() => {
                let bitmap = core.bitmap_at_with(source, core.layout.chunk_of(block))?;
                let marks = writer.bits(at, len);
                // Bits of a partially present block are never cleared: marked sectors stay marked.
                if core.bit_run_with(source, bitmap, marks.start, marks.end)? != (true, marks.end) {
                    let pages = bitmap_pages(bitmap, &writer.block_bits(block));
                    self.pages.hold(source, pages.chain([writer.bat_page(index)]))?;
                    let read_zeros = self.read_zeros(carried, at, len)?;
                    let how = How::Mark(entry);
                    self.parts.push(Part { at, len, bitmap: Some(bitmap), read_zeros, how });
                }
            }
            PayloadState::PartiallyPresent | PayloadState::Reserved => {
                // The resolver reports the fault of the entry.
                core.resolve_with(source, at, len)?;
                return Ok(false);
            }
            _ => return Ok(false),
        }
        let place = core.place_of(entry, index, at, len)?;
        self.push_move(at, len, place);
        Ok(true)
    }

    /// Plans a write into reserved space.
    fn add_share(
        &mut self,
        carried: &Carried,
        share: Share,
        at: DiskOffset,
        len: u64,
    ) -> Result<(), Halt> {
        let writer = Arc::clone(self.pages.writer());
        // Listed at once: a plan that ends here leaves its share.
        self.parts.push(Part { at, len, bitmap: None, read_zeros: false, how: How::Name(share) });
        let mut bitmap = None;
        if share.shows_parent && !writer.is_whole_block(at, len) {
            let chunk = writer.core.layout.chunk_of(share.block);
            let index = writer.core.layout.bitmap_index(chunk);
            let entry = writer.core.bat_entry_with(FromMemory(carried), index)?;
            if entry.state_bits() != 6 {
                return Err(Halt::Wait(Cause::Bitmap(share.block)));
            }
            bitmap = Some(writer.core.bitmap_at_with(FromMemory(carried), chunk)?);
        }
        self.pages.hold(FromMemory(carried), writer.pages_to_name(share, bitmap))?;
        let read_zeros = !share.shows_parent || self.read_zeros(carried, at, len)?;
        if let Some(part) = self.parts.last_mut() {
            (part.bitmap, part.read_zeros) = (bitmap, read_zeros);
        }
        self.push_move(at, len, share.space.at + writer.core.layout.within_block(at));
        Ok(())
    }

    fn read_zeros(&self, carried: &Carried, at: DiskOffset, len: u64) -> Result<bool, Halt> {
        let writer = self.writer();
        if !writer.has_one_flush {
            return Ok(false);
        }
        let disk: Layers<'_> = self.tip.of.layers();
        Ok(writer.read_zeros_with(FromMemory(carried), Some(disk), at, len)?)
    }

    fn push_move(&mut self, at: DiskOffset, len: u64, place: FileOffset) {
        if let Some(last) = self.moves.last_mut()
            && last.at + (last.range.end - last.range.start) == place
        {
            last.range.end += len;
            return;
        }
        self.moves.push(Move { range: at.0..at.0 + len, at: place });
    }

    /// The places of the blocks that the moves lead to.
    fn places(&self) -> impl Iterator<Item = FileOffset> {
        let block_size = self.writer().core.layout.block_size();
        self.moves.iter().flat_map(move |Move { range, at }| {
            let blocks = range.start / block_size..range.end.div_ceil(block_size);
            // The first block begins before the range, perhaps.
            let ahead = range.start % block_size;
            let place =
                move |block| at.get() - ahead + (block - range.start / block_size) * block_size;
            blocks.map(place).map(FileOffset::new)
        })
    }

    fn end(&mut self, how: End, all_arrived: bool) {
        let Some(ticket) = self.ticket.take() else { return };
        let writer = Arc::clone(self.pages.writer());
        if how == End::Lost {
            // Its bytes may still arrive there, also after the space was freed.
            self.places().for_each(|place| writer.space.lose(place));
        }
        for part in self.parts.drain(..) {
            part.leave(&writer, how, all_arrived);
        }
        writer.pins().leave(&ticket);
        writer.plans.end(self.id, how);
    }
}

impl Writer {
    /// Refuses a range that cannot be planned.
    pub(super) fn check_plan(&self, range: &Range<u64>) -> Result<()> {
        let sector = self.core.layout.sector_size();
        let len = range.end.saturating_sub(range.start);
        self.core.geometry().check_range(range.start, len)?;
        if range.start.is_multiple_of(sector) && len.is_multiple_of(sector) {
            return Ok(());
        }
        let message = "a planned write of a part of a sector";
        Err(Error::new(ErrorKind::InvalidInput, "plan.alignment", message)
            .in_file(self.core.name())
            .with_found(format_args!("{len} bytes at {}", range.start))
            .with_expected(format_args!("whole sectors of {sector} bytes")))
    }

    /// The file that steps are written to.
    pub(super) fn steps_storage(&self) -> &Arc<dyn Storage> {
        &self.file
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.end(if self.is_in_flight { End::Lost } else { End::Unused }, false);
    }
}

impl Part {
    fn commit(&self, writer: &Writer) -> Result<()> {
        let block_size = writer.core.layout.block_size();
        let order = |place| writer.order_in(place, block_size, || Ok(self.read_zeros));
        match (self.how, self.bitmap) {
            (How::Mark(seen), Some(bitmap)) => {
                writer.mark_held(seen, bitmap, self.at, self.len, order(seen.offset())?);
            }
            (How::Mark(_), None) => {}
            (How::Name(share), bitmap) => {
                writer.name_reserved(share, bitmap, self.at, self.len, order(share.space.at)?);
            }
        }
        Ok(())
    }

    fn leave(&self, writer: &Writer, how: End, all_arrived: bool) {
        let is_spoiled = how != End::Unused && !all_arrived;
        match self.how {
            How::Mark(seen) if is_spoiled => writer.space.spoil(seen.offset()),
            How::Mark(_) => {}
            How::Name(share) => {
                if is_spoiled {
                    writer.space.spoil(share.space.at);
                }
                writer.give_back(writer.reserved.leave(share, how));
            }
        }
    }
}
